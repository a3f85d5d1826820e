"""Group normalisation, forward and backward, against PyTorch's autograd in float64."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from layer_cases import CLASSES, Runner, block_of, compiled, starting_feeds
from torch import Tensor, nn

from edgeff.export.graphs import BlockGraphs
from edgeff.model import LocalBlock

CHANNELS = 8
SHAPES = {"no axis": (CHANNELS,), "1-D": (CHANNELS, 6), "2-D": (CHANNELS, 5, 3)}


class Shifted(nn.Module):
    """Adds a number to every entry of a row: for a single row, its gradient is the row's own."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def norm(groups: int, affine: bool) -> nn.GroupNorm:
    layer = nn.GroupNorm(groups, CHANNELS, affine=affine)
    for value in layer.parameters():
        nn.init.normal_(value, 0.5)
    return layer


def rows_of(shape: tuple[int, ...], rows: int, mean: float) -> dict[str, Tensor]:
    """Rows in steps of 2^-12: with a mean of up to 1000, float32 adds to them without rounding."""
    draw = torch.Generator().manual_seed(rows)
    x = torch.round(torch.randn((rows, *shape), generator=draw) * 2**12) / 2**12 + mean
    y = torch.randint(0, CLASSES, (rows,), generator=draw)
    return {"x": x, "y": y, "row_weight": (torch.rand(rows, generator=draw) + 0.5) / rows}


def in_float64(block: LocalBlock, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """What a block hands over, its loss, and the gradients of its weights."""
    twin = copy.deepcopy(block).double()
    handover, scores = twin(batch["x"].double())
    loss = twin.loss(scores, batch["y"], batch["row_weight"].double())
    loss.backward()
    found = {"handover": handover, "loss": loss}
    found |= {f"new.gradient.{name}": one.grad for name, one in twin.named_parameters() if one.grad is not None}
    return {name: value.detach().numpy() for name, value in found.items()}


def assert_as_in_float64(block: LocalBlock, graphs: BlockGraphs, batch: dict[str, Tensor], tolerance: float) -> None:
    """All that is handed over and all gradients, as part of the largest number there, or nearly of all gradients."""
    expected = in_float64(block, batch)
    largest = max(float(np.abs(value).max()) for name, value in expected.items() if name.startswith("new.gradient."))
    feeds = starting_feeds(graphs) | {name: value.numpy() for name, value in batch.items()}
    training, alone = (Runner(graphs.models[kind])(feeds) for kind in ("accumulate", "forward"))  # type: ignore[index]
    for name, value in expected.items():
        allowed = tolerance * max(float(np.abs(value).max()), 0.05 * largest)
        np.testing.assert_allclose(training[name].reshape(value.shape), value, rtol=0, atol=allowed, err_msg=name)
    np.testing.assert_allclose(alone["handover"], training["handover"], rtol=0, atol=tolerance)


@cache
def shifted(case: str, groups: int, affine: bool) -> tuple[LocalBlock, BlockGraphs]:
    torch.manual_seed(groups)
    block = block_of(nn.Sequential(Shifted(SHAPES[case]), norm(groups, affine)), SHAPES[case])
    return block, compiled(block)


GROUPS = [1, 2, CHANNELS]
# A group of a single number has no deviation, and torch refuses it.
NORMS = [(case, groups) for case in SHAPES for groups in GROUPS if (case, groups) != ("no axis", CHANNELS)]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize(("case", "groups"), NORMS)
def test_results_and_gradients_are_those_of_float64(case: str, groups: int, affine: bool) -> None:
    block, graphs = shifted(case, groups, affine)
    assert any(node.op_type == "BatchNormalization" for node in graphs.models["accumulate"].graph.node)
    for rows in (1, 5):
        assert_as_in_float64(block, graphs, rows_of(SHAPES[case], rows, mean=0.0), 2e-5)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize(("case", "groups"), NORMS)
def test_a_large_mean_costs_no_more_digits_than_it_has(case: str, groups: int, affine: bool) -> None:
    """Squares of a thousand have rounding errors of a sixteenth: a variance from them would be none."""
    block, graphs = shifted(case, groups, affine)
    assert_as_in_float64(block, graphs, rows_of(SHAPES[case], 1, mean=1000.0), 1e-3)


@pytest.mark.parametrize("case", SHAPES)
def test_a_norm_whose_input_needs_no_gradient_has_those_of_its_weights(case: str) -> None:
    torch.manual_seed(0)
    block = block_of(nn.Sequential(norm(2, True)), SHAPES[case])
    graphs = compiled(block)
    assert_as_in_float64(block, graphs, rows_of(SHAPES[case], 5, mean=0.0), 2e-5)


def test_a_bias_without_a_weight_that_learns_has_its_gradient() -> None:
    torch.manual_seed(0)
    layer = norm(2, True)
    layer.weight.requires_grad_(False)
    block = block_of(nn.Sequential(Shifted(SHAPES["2-D"]), layer), SHAPES["2-D"])
    graphs = compiled(block)
    assert_as_in_float64(block, graphs, rows_of(SHAPES["2-D"], 5, mean=0.0), 2e-5)
