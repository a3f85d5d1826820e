"""Strips of maps: what is cut, and gradients of convolutions that are made strip by strip, against torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import ADAMW, CLASSES, Runner, block_of, compiled
from torch import nn

from edgeff.export.check import check_block
from edgeff.export.graphs import BlockGraphs
from edgeff.export.ir import Graph, Rows, Value
from edgeff.export.memory import transient
from edgeff.export.strips import strip
from edgeff.goodness import PooledGoodness
from edgeff.model import LocalBlock

ROWS, CHANNELS, HEIGHT, WIDTH = 2, 3, 12, 4


def made(graph: Graph, draw: st.DataObject, x: Value) -> Value:
    """A map of the shape of `x` by a few operators, those that a strip is made through and one that it is not."""
    for step in draw.draw(st.lists(st.sampled_from(["mask", "times", "cells", "plus", "root"]), max_size=5)):
        if step == "mask":
            positive = graph.elementwise("Greater", x, graph.constant(0.0, "float32"), dtype="bool")
            x = x * graph.cast(positive, "float32")
        elif step == "times":
            x = graph.constant(np.arange(HEIGHT, dtype=np.float32).reshape(HEIGHT, 1)) * x
        elif step == "cells":
            cells = graph.reshape(x, (Rows(1), CHANNELS, 3, HEIGHT // 3, WIDTH))
            x = graph.reshape(cells * graph.constant(np.float32([[[[2.0]], [[3.0]], [[5.0]]]])), x.shape)
        elif step == "plus":
            x = x - graph.constant(np.arange(WIDTH, dtype=np.float32)) + 1.0
        else:
            x = graph.elementwise("Tanh", x)
    return x


@given(st.data(), st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from([2, 3]))
def test_a_strip_is_what_would_be_cut_out_of_the_whole(draw: st.DataObject, count: int, axis: int) -> None:
    graph = Graph()
    value = made(graph, draw, graph.input("x", (Rows(1), CHANNELS, HEIGHT, WIDTH)))
    length = (HEIGHT, WIDTH)[axis - 2]
    each = max(1, length // count)
    bounds = [(start, min(start + each, length)) for start in range(0, length, each)]
    for number, (start, stop) in enumerate(bounds):
        cut = strip(value, axis, start, stop)
        assert cut.shape[axis] == stop - start
        graph.output(f"strip_{number}", cut)
    graph.output("whole", graph.elementwise("Identity", value))
    x = np.random.default_rng(0).standard_normal((ROWS, CHANNELS, HEIGHT, WIDTH)).astype(np.float32)
    found = Runner(graph.to_model("one"))({"x": x})
    for number, (start, stop) in enumerate(bounds):
        expected = np.take(found["whole"], range(start, stop), axis)
        assert np.array_equal(found[f"strip_{number}"].reshape(expected.shape), expected)


def test_the_whole_of_a_masked_map_is_never_made() -> None:
    graph = Graph()
    x, cells = graph.input("x", (Rows(1), 2, 8, 4)), graph.input("cells", (Rows(1), 2, 2, 1, 4))
    mask = graph.cast(graph.elementwise("Greater", x, graph.constant(0.0, "float32"), dtype="bool"), "float32")
    spread = graph.reshape(cells * graph.reshape(mask, (Rows(1), 2, 2, 4, 4)), x.shape)
    graph.output("strip", strip(spread, 2, 4, 8))
    sizes = {
        node.op_type: math.prod(int(str(dim)) for dim in graph.values[node.output[0]].shape[1:])
        for node in graph.live_nodes()
    }
    assert sizes == {"Greater": 64, "Slice": 32, "Cast": 32, "Reshape": 32, "Mul": 32}


def test_the_batch_is_not_cut() -> None:
    graph = Graph()
    with pytest.raises(ValueError, match="batch"):
        strip(graph.input("x", (Rows(1), 2)), 0, 0, 1)


def large(layers: Sequence[nn.Module], row: tuple[int, ...]) -> tuple[LocalBlock, BlockGraphs]:
    torch.manual_seed(0)
    block = block_of(nn.Sequential(*layers), row, goodness=PooledGoodness(cells=4))
    return block, compiled(block)


LARGE = {
    "four strips": ([nn.Conv2d(2, 8, 3, padding=1), nn.ReLU()], (2, 64, 64)),
    "three strips of a window that grows the map": ([nn.Conv2d(2, 8, (5, 3), padding=(4, 1)), nn.ReLU()], (2, 62, 66)),
    "no bias, dilated": ([nn.Conv2d(2, 8, 3, padding=2, dilation=2, bias=False), nn.ReLU()], (2, 64, 64)),
    "a signal": ([nn.Conv1d(2, 8, 5, padding=2), nn.ReLU()], (2, 4096)),
    "large products": ([nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()], (32, 32, 32)),
    "not through the activation": ([nn.Conv2d(2, 8, 3, padding=1), nn.GELU()], (2, 64, 64)),
}


@pytest.mark.parametrize("name", LARGE)
def test_gradients_that_are_made_in_strips_agree_with_torch(name: str) -> None:
    block, graphs = large(*LARGE[name])
    height = int(str(graphs.models["accumulate"].graph.output[1].type.tensor_type.shape.dim[2].dim_value))
    shifted = [
        value
        for value in graphs.models["accumulate"].graph.value_info
        if value.name.startswith("pad") and value.type.tensor_type.shape.dim[2].dim_value < height
    ]
    assert shifted
    check_block(block, graphs, spec=ADAMW, input_dtype="float32", classes=CLASSES)


def test_a_block_whose_gradient_is_made_in_strips_holds_two_maps() -> None:
    """The activation and, once the gradients are there, what is left of it without its mean."""
    _, graphs = large([nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()], (8, 64, 64))
    rows, bytes_ = 16, 16 * 4 * 8 * 64 * 64
    maps = {
        kind: max(moment.at(rows) for moment in transient(graphs.models[kind])) / bytes_
        for kind in ("accumulate", "fast_accumulate")
    }
    assert maps["accumulate"] == pytest.approx(2.0, abs=0.1)
    assert maps["fast_accumulate"] == pytest.approx(3.0, abs=0.1)
