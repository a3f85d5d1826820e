from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeff.errors import ModelError
from edgeff.fusion import FUSIONS, FusionName, LogProbabilitySum, choose_fusion


def test_fusion_sums_weighted_log_probabilities() -> None:
    one, two, three = (torch.randn(2, 3) for _ in range(3))
    torch.testing.assert_close(LogProbabilitySum().fuse([one, two, three]), one + two + three)
    torch.testing.assert_close(LogProbabilitySum((0.0, 1.0, 0.5)).fuse([one, two, three]), two + 0.5 * three)
    torch.testing.assert_close(LogProbabilitySum(first_block=2).fuse([one, two, three]), three)
    assert LogProbabilitySum(first_block=2).for_count(1) == (1.0,)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "fusion has 1 weights, the network has 2 readouts"),
        ((0.0, 0.0), "one above"),
        ((2.0, -1.0), "weights of at least 0"),
    ],
)
def test_fusion_refuses_weights_that_make_no_prediction(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LogProbabilitySum(weights).for_count(2)


def _sure_of(labels: list[int], strength: float) -> torch.Tensor:
    return torch.log_softmax(strength * nn.functional.one_hot(torch.tensor(labels), 3).float(), dim=1)


def test_the_chosen_fusion_is_the_range_that_is_right_most_often() -> None:
    y = torch.tensor([0, 1, 2, 0])
    wrong, right = _sure_of([1, 2, 0, 1], 9.0), _sure_of(y.tolist(), 1.0)
    assert choose_fusion([wrong, right, right, wrong], y).weights == (0.0, 1.0, 1.0, 0.0)


def test_of_equally_good_ranges_the_longest_is_chosen_and_then_the_last() -> None:
    y = torch.tensor([0, 1, 2])
    right, wrong = _sure_of([0, 1, 2], 1.0), _sure_of([1, 2, 0], 9.0)
    assert choose_fusion([right, right], y).weights == (1.0, 1.0)
    assert choose_fusion([right, wrong, right], y).weights == (0.0, 0.0, 1.0)
    assert choose_fusion([right, right, wrong, right], y).weights == (1.0, 1.0, 0.0, 0.0)


# --- by name ----------------------------------------------------------------------------------------------------------


def _some_readouts(count: int = 3) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The first knows nothing, the next ones more and more."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (40,), generator=draw)
    right = nn.functional.one_hot(y, 3).double()
    noise = [torch.randn(40, 3, generator=draw, dtype=torch.float64) for _ in range(count)]
    return [torch.log_softmax(index * right + one, dim=1) for index, one in enumerate(noise)], y


def test_the_sum_counts_every_readout_alike() -> None:
    readouts, y = _some_readouts()
    assert FUSIONS["sum"](readouts, y).weights == (1.0, 1.0, 1.0)


def test_by_loss_a_readout_counts_by_the_inverse_of_its_own() -> None:
    readouts, y = _some_readouts()
    losses = [-sum(float(row[label]) for row, label in zip(one, y, strict=True)) / len(y) for one in readouts]
    assert FUSIONS["loss"](readouts, y).weights == pytest.approx([min(losses) / loss for loss in losses])
    assert max(FUSIONS["loss"](readouts, y).weights) == 1.0
    # One that is never wrong does not divide by zero.
    sure = _sure_of(y.tolist(), 1e4).double()
    assert FUSIONS["loss"]([*readouts, sure], y).weights[-1] == 1.0


def test_trained_weights_are_those_of_which_none_can_be_moved_for_the_better() -> None:
    readouts, y = _some_readouts()
    found = FUSIONS["readout"](readouts, y).weights

    def loss(weights: list[float]) -> float:
        fused = sum(weight * one for weight, one in zip(weights, readouts, strict=True))
        return float(nn.functional.cross_entropy(fused, y))  # type: ignore[arg-type]

    least = loss(list(found))
    for index in range(3):
        for factor in (0.9, 1.1):
            moved = [weight * factor if number == index else weight for number, weight in enumerate(found)]
            assert loss(moved) >= least - 1e-9
    assert least < min(loss([1.0, 1.0, 1.0]), loss([0.0, 0.0, 1.0]))


def test_a_readout_that_misleads_is_left_out_by_trained_weights() -> None:
    readouts, y = _some_readouts()
    misleading = torch.log_softmax(-3.0 * nn.functional.one_hot(y, 3).double(), dim=1)
    found = FUSIONS["readout"]([misleading, *readouts], y).weights
    assert found[0] == 0.0
    assert found[-1] > 0.0


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_has_a_weight_for_each_readout_and_sees_which_one_is_right(name: FusionName) -> None:
    readouts, y = _some_readouts()
    fusion = FUSIONS[name](readouts, y)
    weights = fusion.for_count(3)
    assert weights[-1] == max(weights)
    assert int((fusion.fuse(readouts).argmax(dim=1) == y).sum()) >= int((readouts[0].argmax(dim=1) == y).sum())
