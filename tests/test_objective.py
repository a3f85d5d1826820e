from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeff.blocks import LocalBlock
from edgeff.errors import ModelError
from edgeff.objective import (
    CrossEntropyObjective,
    Objective,
    SuperClassObjective,
    TwoSidedObjective,
    even_groups,
    one_hot,
)

GROUPS = (0, 1, 0, 2)
OBJECTIVES = {
    "cross-entropy": CrossEntropyObjective(),
    "smoothed": CrossEntropyObjective(0.1),
    "two-sided": TwoSidedObjective(0.5),
    "super-class": SuperClassObjective(GROUPS),
}
EVERY = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
ROWS = st.lists(
    st.tuples(
        st.lists(st.floats(-6, 6, width=32), min_size=4, max_size=4), st.integers(0, 3), st.floats(0, 2, width=32)
    ),
    min_size=1,
    max_size=6,
)
Rows = list[tuple[list[float], int, float]]


def tensors(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and row weights."""
    scores, y, weight = zip(*rows, strict=True)
    return (
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(y, dtype=torch.int64),
        torch.tensor(weight, dtype=torch.float64),
    )


def batch(rows: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, 4, generator=draw, dtype=torch.float64),
        torch.randint(0, 4, (rows,), generator=draw),
        torch.rand(rows, generator=draw, dtype=torch.float64) + 0.1,
    )


def summed(rows: Rows, loss: Callable[[list[float], int], float]) -> float:
    return math.fsum(weight * loss(scores, label) for scores, label, weight in rows)


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def probabilities(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / math.fsum(powers) for power in powers]


def test_labels_become_rows_of_zero_and_one() -> None:
    found = one_hot(torch.tensor([2, 0]), 3, torch.zeros(1, dtype=torch.float64))
    assert found.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert found.dtype == torch.float64


# --- each formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_objective_equals_torchs_cross_entropy(smoothing: float) -> None:
    scores, y, weight = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2]), torch.rand(5)
    expected = nn.functional.cross_entropy(scores, y, reduction="none", label_smoothing=smoothing) @ weight.double()
    torch.testing.assert_close(CrossEntropyObjective(smoothing)(scores, y, weight), expected)


@settings(deadline=None)
@given(rows=ROWS, threshold=st.floats(-3, 3, width=32))
def test_the_two_sided_loss_is_the_mean_over_all_wrong_labels_of_that_with_one_drawn(
    rows: Rows, threshold: float
) -> None:
    def drawn(scores: list[float], label: int, wrong: int) -> float:
        return softplus(threshold - scores[label]) + softplus(scores[wrong] - threshold)

    def mean(scores: list[float], label: int) -> float:
        wrong = [k for k in range(4) if k != label]
        return math.fsum(drawn(scores, label, k) for k in wrong) / len(wrong)

    found = TwoSidedObjective(threshold)(*tensors(rows))
    assert float(found) == pytest.approx(summed(rows, mean), rel=1e-8, abs=1e-12)


def test_a_true_label_is_never_a_negative() -> None:
    scores, y, weight = batch()
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(TwoSidedObjective()(scores, y, weight), scores)
    true = nn.functional.one_hot(y, 4).bool()
    assert bool((gradient[true] < 0).all())
    assert bool((gradient[~true] > 0).all())
    # However good it is under its own label, a row is content with that.
    sure = torch.where(true, 1e4, -1e4)
    assert float(TwoSidedObjective()(sure, y, weight)) == 0.0


@settings(deadline=None)
@given(rows=ROWS)
def test_the_loss_of_super_classes_is_that_of_summed_probabilities(rows: Rows) -> None:
    def group_loss(scores: list[float], label: int) -> float:
        inside = [p for k, p in enumerate(probabilities(scores)) if GROUPS[k] == GROUPS[label]]
        return -math.log(math.fsum(inside))

    found = SuperClassObjective(GROUPS)(*tensors(rows))
    assert float(found) == pytest.approx(summed(rows, group_loss), rel=1e-8, abs=1e-12)


def test_super_classes_of_one_class_each_are_cross_entropy() -> None:
    scores, y, weight = batch()
    expected = CrossEntropyObjective()(scores, y, weight)
    torch.testing.assert_close(SuperClassObjective((3, 1, 0, 2))(scores, y, weight), expected)


def test_within_a_group_a_block_is_free() -> None:
    objective = SuperClassObjective(GROUPS)  # 0 and 2 are one group
    scores, _, weight = batch(3)
    loss = objective(scores, torch.tensor([0, 2, 0]), weight)
    torch.testing.assert_close(objective(scores, torch.tensor([2, 0, 2]), weight), loss)
    torch.testing.assert_close(objective(scores[:, [2, 1, 0, 3]], torch.tensor([0, 2, 0]), weight), loss)
    assert not torch.isclose(objective(scores, torch.tensor([1, 2, 0]), weight), loss)


@pytest.mark.parametrize("objective", [SuperClassObjective(GROUPS), CrossEntropyObjective(), TwoSidedObjective()])
def test_losses_of_extreme_scores_and_their_gradients_are_finite(objective: Objective) -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0, 1e4], [-1e4, 1e4, -1e4, -1e4], [-1e4] * 4]).requires_grad_()
    for y in (torch.tensor([1, 0, 2]), torch.tensor([0, 1, 3])):
        loss = objective(extreme, y, torch.ones(3))
        (gradient,) = torch.autograd.grad(loss, extreme)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


def test_a_row_that_is_quite_wrong_about_its_group_still_learns() -> None:
    wrong = torch.tensor([[200.0, 0.0, 0.0, 0.0]]).requires_grad_()
    (gradient,) = torch.autograd.grad(SuperClassObjective(GROUPS)(wrong, torch.tensor([1]), torch.ones(1)), wrong)
    assert float(gradient[0, 0]) == pytest.approx(1.0)


# --- what all have in common ------------------------------------------------------------------------------------------


@EVERY
def test_the_gradient_of_an_objective_is_that_of_finite_differences(objective: Objective) -> None:
    scores, y, weight = batch()
    assert torch.autograd.gradcheck(lambda s, w: objective(s, y, w), (scores.requires_grad_(), weight.requires_grad_()))


@EVERY
def test_a_batch_may_be_cut_anywhere(objective: Objective) -> None:
    scores, y, weight = batch()
    parts = [objective(scores[part], y[part], weight[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 5))]
    whole = objective(scores, y, weight)
    assert whole.shape == ()
    torch.testing.assert_close(sum(parts[1:], start=parts[0]), whole)


@EVERY
def test_a_row_of_weight_zero_does_not_count(objective: Objective) -> None:
    scores, y, weight = batch()
    weight[2] = 0.0
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(objective(scores, y, weight), objective(scores[kept], y[kept], weight[kept]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropyObjective(1.0), r"label smoothing must be in \[0, 1\), got 1.0"),
        (lambda: CrossEntropyObjective(-0.1), r"label smoothing must be in \[0, 1\), got -0.1"),
        (lambda: SuperClassObjective((0, 0, 0)), r"needs two or more groups, .* got \(0, 0, 0\)"),
        (lambda: SuperClassObjective((0, 2)), r"numbered from 0 without a gap, got \(0, 2\)"),
        (lambda: SuperClassObjective((1, 2)), r"numbered from 0 without a gap, got \(1, 2\)"),
        (lambda: SuperClassObjective((-1, 0, 1)), r"numbered from 0 without a gap, got \(-1, 0, 1\)"),
        (lambda: SuperClassObjective(()), r"needs two or more groups, .* got \(\)"),
    ],
)
def test_objectives_refuse_settings_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()  # type: ignore[operator]


def test_super_classes_are_for_as_many_classes_as_they_have_groups_for() -> None:
    with pytest.raises(ModelError, match="SuperClassObjective has groups for 4 classes, not 5"):
        SuperClassObjective(GROUPS)(torch.zeros(2, 5), torch.tensor([0, 1]), torch.ones(2))


@given(classes=st.integers(1, 60), count=st.integers(1, 20))
def test_even_groups_are_consecutive_and_as_even_as_can_be(classes: int, count: int) -> None:
    count = min(classes, count)
    found = even_groups(classes, count)
    sizes = [found.count(group) for group in range(count)]
    assert found == tuple(sorted(found))
    assert sum(sizes) == len(found) == classes
    assert max(sizes) - min(sizes) <= 1


@given(classes=st.integers(2, 40), count=st.integers(2, 20))
def test_even_groups_are_what_super_classes_take(classes: int, count: int) -> None:
    groups = even_groups(classes, min(classes, count))
    assert SuperClassObjective(groups).groups == groups


def test_a_block_of_super_classes_divides_their_probability_evenly_in_the_prediction() -> None:
    scores = torch.randn(4, 5, dtype=torch.float64) * 3
    groups = (0, 0, 1, 1, 1)
    found = SuperClassObjective(groups).log_probabilities(scores).exp()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4, dtype=torch.float64))
    probabilities = torch.softmax(scores, dim=1)
    for label, group in enumerate(groups):
        members = [other for other, own in enumerate(groups) if own == group]
        torch.testing.assert_close(found[:, label], probabilities[:, members].sum(dim=1) / len(members))
    block = LocalBlock(nn.Linear(3, 8), objective=SuperClassObjective(groups))
    block.build((3,), 5)
    _, readings = block(torch.randn(2, 3))
    torch.testing.assert_close(block.log_probabilities(readings)[:, 0], block.log_probabilities(readings)[:, 1])
