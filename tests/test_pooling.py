"""Pooling, forward and backward, against PyTorch's autograd: shares of averages, and which of equal maxima is taken."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from layer_cases import CLASSES, Runner, block_of, compiled, starting_feeds
from test_group_norm import Shifted
from torch import Tensor, nn

from edgeff.export.graphs import BlockGraphs
from edgeff.model import LocalBlock

SIGNAL, IMAGE = (3, 24), (3, 12, 8)

AVERAGES = {
    "signal": (nn.AvgPool1d(4), SIGNAL),
    "signal of one": (nn.AvgPool1d(1), SIGNAL),
    "whole signal": (nn.AdaptiveAvgPool1d(1), SIGNAL),
    "even image": (nn.AvgPool2d(2), IMAGE),
    "rows alone": (nn.AvgPool2d((1, 4)), IMAGE),
    "columns alone": (nn.AvgPool2d((3, 1)), IMAGE),
    "unequal": (nn.AvgPool2d((3, 4)), IMAGE),
    "unequal, the other way": (nn.AvgPool2d((6, 2)), IMAGE),
    "whole image": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "divided image": (nn.AdaptiveAvgPool2d((4, 2)), IMAGE),
    "one row of an image": (nn.AvgPool2d((1, 2)), (3, 1, 8)),
}
MAXIMA = {
    "signal by 2": (nn.MaxPool1d(2), SIGNAL),
    "signal by 3": (nn.MaxPool1d(3), SIGNAL),
    "signal by 2 with an entry left over": (nn.MaxPool1d(2), (3, 25)),
    "signal overlapping": (nn.MaxPool1d(3, 2), SIGNAL),
    "signal overlapping, padded": (nn.MaxPool1d(3, 2, 1), SIGNAL),
    "signal with gaps": (nn.MaxPool1d(2, 3), SIGNAL),
    "signal dilated": (nn.MaxPool1d(2, dilation=2), SIGNAL),
    "image by 2": (nn.MaxPool2d(2), IMAGE),
    "image by 3": (nn.MaxPool2d(3), IMAGE),
    "image by 2 with a row left over": (nn.MaxPool2d(2), (3, 11, 8)),
    "pairs along rows": (nn.MaxPool2d((1, 2)), IMAGE),
    "pairs along columns": (nn.MaxPool2d((2, 1)), IMAGE),
    "unequal": (nn.MaxPool2d((2, 4)), IMAGE),
    "image overlapping": (nn.MaxPool2d(3, 2), IMAGE),
    "image overlapping, padded": (nn.MaxPool2d(3, 2, 1), IMAGE),
}


@cache
def shifted(pool: nn.Module, shape: tuple[int, ...]) -> tuple[LocalBlock, BlockGraphs]:
    torch.manual_seed(0)
    block = block_of(nn.Sequential(Shifted(shape), pool), shape)
    return block, compiled(block)


def assert_as_torch(pool: nn.Module, shape: tuple[int, ...], rows: int, *, tied: bool) -> None:
    """What is handed over and all gradients; those of the shift are, for a single row, the row's own."""
    block, graphs = shifted(pool, shape)
    draw = torch.Generator().manual_seed(rows)
    if tied:
        x = torch.randint(-1, 2, (rows, *shape), generator=draw).float()
    else:
        x = torch.randn((rows, *shape), generator=draw)
    y = torch.randint(0, CLASSES, (rows,), generator=draw)
    expected = gradients(block, x, y)
    feeds = starting_feeds(graphs) | {
        "x": x.numpy(),
        "y": y.numpy(),
        "row_weight": np.full(rows, 1 / rows, np.float32),
    }
    found = Runner(graphs.models["accumulate"])(feeds)
    alone = Runner(graphs.models["forward"])(feeds)
    for name, value in expected.items():
        allowed = 2e-5 * max(float(np.abs(value).max()), 1e-3)
        np.testing.assert_allclose(found[name].reshape(value.shape), value, rtol=0, atol=allowed, err_msg=name)
    np.testing.assert_allclose(alone["handover"], expected["handover"], rtol=0, atol=1e-6)


def gradients(block: nn.Module, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    twin = copy.deepcopy(block).double()
    handover, scores = twin(x.double())
    twin.loss(scores, y, torch.full((len(y),), 1 / len(y), dtype=torch.float64)).backward()  # type: ignore[operator]
    found = {f"new.gradient.{name}": value.grad for name, value in twin.named_parameters() if value.grad is not None}
    return {name: value.detach().numpy() for name, value in {"handover": handover, **found}.items()}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", AVERAGES)
def test_each_entry_has_its_share_of_the_average_that_it_went_into(name: str, rows: int) -> None:
    assert_as_torch(*AVERAGES[name], rows, tied=False)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("name", MAXIMA)
def test_the_gradient_goes_to_the_maximum_and_of_equal_ones_to_the_first(name: str, tied: bool, rows: int) -> None:
    """Of whole numbers from -1 to 1 most windows have several maxima."""
    assert_as_torch(*MAXIMA[name], rows, tied=tied)
