"""Forward-Forward with the label laid over the row."""

from __future__ import annotations

import copy
import json
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.export.compiled import compile_checked
from edgeff.handover import NoHandoverNorm
from edgeff.learner import Learner, learn_batch
from edgeff.locality import check_locality
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.overlay import MeanSquare, OverlayBlock
from edgeff.pretrain_settings import PretrainSettings

K = 3
SHAPES = ((5,), (2, 7), (2, 4, 4))


def transform(shape: tuple[int, ...], outgoing: int = 4) -> nn.Module:
    incoming = shape[0] + K
    layer = (
        nn.Linear(incoming, outgoing),
        nn.Conv1d(incoming, outgoing, 3, padding=1),
        nn.Conv2d(incoming, outgoing, 3, padding=1),
    )[len(shape) - 1]
    return nn.Sequential(layer, nn.ReLU())


def block_for(shape: tuple[int, ...], **settings: object) -> OverlayBlock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = OverlayBlock(transform(shape), name="first", **settings)  # type: ignore[arg-type]
        block.build(shape, K)
    return block


def network_of_two(shape: tuple[int, ...] = (2, 4, 4)) -> LocalNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [OverlayBlock(transform(shape)), OverlayBlock(transform((4, *shape[1:])))]
        return LocalNetwork(blocks, input_shape=shape, classes=K)


def rows_of(shape: tuple[int, ...], rows: int = 4) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))


def laid_over(row: np.ndarray, label: np.ndarray) -> Tensor:
    """A row (C, ...) with a number for each class, each as a channel of its own, (1, C + K, ...)."""
    planes = [np.full(row.shape[1:], number, np.float32) for number in label]
    return torch.from_numpy(np.concatenate([row, np.stack(planes)])[None])


def test_goodness_is_the_mean_of_the_squares_of_a_row() -> None:
    found = MeanSquare()(torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]]))
    assert found.tolist() == [[7.5], [1.0]]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_score_is_the_goodness_of_the_row_under_that_label(shape: tuple[int, ...]) -> None:
    block, x = block_for(shape), rows_of(shape)
    _, (reading,) = block(x)
    expected = np.zeros((len(x), K))
    for number, row in enumerate(x.numpy()):
        for label in range(K):
            activation = block.transform(laid_over(row, np.eye(K, dtype=np.float32)[label])).detach().numpy()
            expected[number, label] = np.mean(activation.astype(np.float64) ** 2)
    np.testing.assert_allclose(reading.scores.detach().numpy(), expected, rtol=1e-5)
    assert reading.embedding is None


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_handed_over_was_seen_under_no_label(shape: tuple[int, ...]) -> None:
    block, x = block_for(shape), rows_of(shape)
    handover, _ = block(x)
    activation = torch.cat([block.transform(laid_over(row, np.full(K, 1 / K))) for row in x.numpy()])
    expected = nn.functional.layer_norm(activation, activation.shape[1:])
    torch.testing.assert_close(handover, expected, atol=1e-5, rtol=1e-5)
    assert block.handover_shape == handover.shape[1:]
    plain = block_for(shape, handover=NoHandoverNorm())
    torch.testing.assert_close(plain(x)[0], activation, atol=1e-6, rtol=1e-5)


def test_the_loss_wants_the_right_label_above_the_threshold_and_every_other_below_it() -> None:
    block, x = block_for((5,), threshold=0.5), rows_of((5,))
    y = torch.tensor([0, 2, 1, 2])
    _, readings = block(x)
    (scores, _), *_ = readings
    expected = 0.0
    for row, label in zip(scores, y.tolist(), strict=True):
        wrong = [nn.functional.softplus(row[k] - 0.5) for k in range(K) if k != label]
        expected = expected + 0.25 * (nn.functional.softplus(0.5 - row[label]) + sum(wrong) / len(wrong))
    torch.testing.assert_close(block.loss(readings, y, torch.full((4,), 0.25)), expected)


def test_rows_are_treated_one_by_one_and_none_is_compared_with_another() -> None:
    network, x = network_of_two(), rows_of((2, 4, 4))
    torch.testing.assert_close(network(x)[1:3], network(x[1:3]), atol=1e-5, rtol=1e-5)
    assert not any(block.compares_rows for block in network.sequence)


def test_a_block_has_no_weights_but_those_of_its_transform() -> None:
    block = block_for((5,))
    assert {name.partition(".")[0] for name, _ in block.named_parameters()} == {"transform"}
    described = json.loads(json.dumps(block.describe()))
    assert described["objective"] == {"part": "TwoSidedObjective", "threshold": 2.0}
    assert described["goodness"] == {"part": "MeanSquare"}


def test_no_label_can_be_laid_over_tokens() -> None:
    with pytest.raises(ModelError, match="block `block1`: a label cannot be laid over rows of tokens") as caught:
        LocalNetwork([OverlayBlock(nn.Embedding(9, 4))], input_shape=(5,), classes=K, input_dtype="int64")
    assert caught.value.hint == "begin with a block of another kind"


def test_tokens_may_go_through_a_block_of_another_kind_first() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.embedding(x).transpose(1, 2))

    blocks = [LocalBlock(Words()), OverlayBlock(transform((4, 6)))]
    network = LocalNetwork(blocks, input_shape=(6,), classes=K, input_dtype="int64")
    assert network(torch.randint(0, 9, (2, 6))).shape == (2, K)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(5 + K, 4), nn.BatchNorm1d(4)),
            "block `first`: `BatchNorm1d` .* needs statistics of a whole batch",
        ),
        (lambda: nn.Linear(5, 4), r"block `first`: the transform fails on rows of shape \(8,\)"),
    ],
)
def test_a_transform_that_does_not_take_rows_with_their_labels_is_refused(made: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        OverlayBlock(made(), name="first").build((5,), K)  # type: ignore[operator]


def test_a_few_updates_lower_the_loss_of_both_blocks_and_teach_the_labels() -> None:
    network = network_of_two()
    settings = PretrainSettings(learning_rate=0.02, schedule="constant")
    learners = [Learner(block, settings, steps=40) for block in network.sequence]
    x, y = rows_of((2, 4, 4), 24), torch.arange(24) % K
    x = x + 2.0 * (y - 1.0).reshape(-1, 1, 1, 1)
    losses = [learn_batch(learners, x, y, step=step) for step in range(1, 41)]
    for block in network.sequence:
        assert float(losses[-1][block.name]) < 0.8 * float(losses[0][block.name])
    assert int((network(x).argmax(dim=1) == y).sum()) >= 20


def test_a_network_of_such_blocks_is_local() -> None:
    found = check_locality(network_of_two())
    assert (found.local, found.kind, len(found.blocks)) == (True, "local", 2)


def test_such_blocks_can_learn_as_one() -> None:
    network = network_of_two()
    x, y = rows_of((2, 4, 4)), torch.tensor([0, 2, 1, 2])
    weight = torch.full((4,), 0.25)
    (block,) = network.regroup("whole").sequence
    _, readings = block(x)
    first, second = (copy.deepcopy(one) for one in network.sequence)
    _, (expected,) = second(first(x)[0])
    torch.testing.assert_close(readings[-1].scores, expected.scores)
    block.loss(readings, y, weight).backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_it_compiles_to_graphs_that_are_as_near_to_torch_as_any() -> None:
    compiled = compile_checked(
        block_for((2, 4, 4)),
        optimizer=optimizer_spec("sgd", momentum=0.0),
        input_dtype="float32",
        classes=K,
        last=False,
        dropout=False,
    )
    assert compiled.check.error < 1e-5
    assert compiled.spec.rows_together == 1
