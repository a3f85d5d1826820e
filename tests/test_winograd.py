"""Convolutions by Winograd's minimal filtering against torch, and for which convolutions they are taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import ADAMW, CASES, Runner, compiled
from torch import Tensor

from edgeff.export.check import TOLERANCE, relative_error
from edgeff.export.cost import work_of
from edgeff.export.graphs import compile_block
from edgeff.export.ir import Graph, Rows, Value
from edgeff.export.winograd import Axis, Tiles, convolution, input_gradient, tiles, transforms, weight_gradient

Emit = Callable[[Graph, dict[str, Value], Tiles], Value]


@pytest.mark.parametrize("tile", [2, 4])
def test_transforms_filter_a_line(tile: int) -> None:
    """Equation 6 of Lavin and Gray, in one dimension, where nothing is rounded that counts."""
    draw, matrices = np.random.default_rng(tile), transforms(tile)
    data, filters = draw.standard_normal(tile + 2), draw.standard_normal(3)
    found = matrices.results @ ((matrices.filters @ filters) * (matrices.data @ data))
    assert np.abs(found - np.correlate(data, filters, "valid")).max() < 1e-14


def test_the_transforms_of_two_results_are_those_of_the_paper() -> None:
    """Equation 7, but for the sign that a row of B' and the same row of G share."""
    matrices = transforms(2)
    assert np.abs(matrices.data).tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]]
    assert np.abs(matrices.filters).tolist() == [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]]


@st.composite
def cuts(draw: st.DrawFn) -> Tiles:
    sizes = draw(st.tuples(*[st.integers(3, 9) | st.integers(16, 75)] * 2))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 2))
    return Tiles(draw(st.integers(1, 5)), draw(st.integers(1, 5)), sizes, padding, draw(st.sampled_from([2, 4])))


def on_onnxruntime(how: Tiles, emit: Emit, given: dict[str, Tensor]) -> np.ndarray:
    """What some nodes give for tensors, whose first axis is the rows' but for the weight and the bias."""
    graph = Graph()
    shapes = {
        name: tuple(tensor.shape) if name in ("weight", "bias") else (Rows(1), *tensor.shape[1:])
        for name, tensor in given.items()
    }
    graph.output("found", emit(graph, {name: graph.input(name, shape) for name, shape in shapes.items()}, how))
    feeds = {name: tensor.detach().numpy() for name, tensor in given.items()}
    return Runner(graph.to_model("one"))(feeds)["found"]


@given(cuts(), st.integers(1, 4), st.booleans())
def test_all_three_passes_are_those_of_torch(how: Tiles, rows: int, with_bias: bool) -> None:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn((rows, how.ins, *how.sizes), generator=draw, requires_grad=True)
    weight = torch.randn((how.outs, how.ins, 3, 3), generator=draw, requires_grad=True)
    bias = torch.randn(how.outs, generator=draw) if with_bias else None
    result = F.conv2d(x, weight, bias, padding=how.padding)
    assert how.kept == tuple(result.shape[2:])
    gradient = torch.randn(result.shape, generator=draw)
    result.backward(gradient)
    assert x.grad is not None
    assert weight.grad is not None

    inputs = {"x": x, "weight": weight, **({} if bias is None else {"bias": bias})}
    found = on_onnxruntime(how, lambda g, v, h: convolution(g, v["x"], v["weight"], v.get("bias"), h), inputs)
    assert relative_error(found, result.detach().numpy()) <= TOLERANCE
    inputs = {"gradient": gradient, "x": x, "weight": weight}
    found = on_onnxruntime(how, lambda g, v, h: weight_gradient(g, v["gradient"], v["x"], v["weight"], h), inputs)
    assert relative_error(found, weight.grad.numpy()) <= TOLERANCE
    inputs = {"gradient": gradient, "weight": weight}
    found = on_onnxruntime(how, lambda g, v, h: input_gradient(g, v["gradient"], v["weight"], h), inputs)
    assert relative_error(found, x.grad.numpy()) <= TOLERANCE


def test_512_channels_keep_their_digits() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 512, 16, 16, generator=draw), torch.randn(8, 512, 3, 3, generator=draw)
    how = Tiles(512, 8, (16, 16), (1, 1), tile=4)
    found = on_onnxruntime(
        how, lambda g, v, h: convolution(g, v["x"], v["weight"], None, h), {"x": x, "weight": weight}
    )
    expected = F.conv2d(x.double(), weight.double(), padding=1).numpy()
    assert relative_error(found, expected) <= TOLERANCE / 2


def test_a_long_axis_is_cut_into_windows_of_equal_length() -> None:
    whole, parted = Axis(size=32, padding=1, tile=4), Axis(size=224, padding=1, tile=4)
    assert (whole.windows, whole.each, whole.reads, whole.zeros) == (1, 8, 32, (0, 0))
    assert (parted.windows, parted.each, parted.reads, parted.zeros) == (7, 8, 34, (1, 1))
    uneven = Axis(size=50, padding=0, tile=4)
    assert (uneven.windows, uneven.each, uneven.count, uneven.zeros) == (2, 6, 12, (0, 0))
    assert parted.places()[1].tolist() == list(range(32, 66))
    assert whole.matrix().shape == (6 * 8, 32)


def chosen(ins: int, outs: int, size: int, **changed: object) -> Tiles | None:
    given = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, **changed}
    return tiles(ins, outs, (size, size), **given)  # type: ignore[arg-type]


def test_many_channels_are_cut_into_tiles_by_the_length_of_the_map() -> None:
    assert {size: how.tile for size in (4, 8, 15, 16, 32) if (how := chosen(256, 256, size))} == {
        4: 2,
        8: 2,
        15: 2,
        16: 4,
        32: 4,
    }


def test_others_stay_as_they_are() -> None:
    assert chosen(16, 16, 64) is None  # moving numbers takes as long as multiplying them
    assert chosen(64, 128, 224) is not None
    assert chosen(3, 128, 32) is None
    for changed in (
        {"kernel": [5, 5]},
        {"kernel": [3, 1]},
        {"stride": [2, 2]},
        {"dilation": [2, 2]},
        {"groups": 2},
        {"padding": [3, 3]},
    ):
        assert chosen(256, 256, 16, **changed) is None
    assert chosen(256, 256, 2, padding=[0, 0]) is None


@pytest.mark.parametrize("name", ["conv wide", "convs wide"])
def test_a_block_has_a_fast_graph_with_fewer_operations(name: str) -> None:
    graphs = compiled(CASES[name].block(), ADAMW)
    fast, plain = (graphs.models[kind] for kind in ("fast_accumulate", "accumulate"))
    assert [port.name for port in fast.graph.input] == [port.name for port in plain.graph.input]
    assert [port.name for port in fast.graph.output] == [port.name for port in plain.graph.output]
    assert not any(node.op_type in ("Conv", "ConvTranspose") for node in fast.graph.node)
    assert work_of(fast).per_row < 0.7 * work_of(plain).per_row


def test_a_block_without_such_convolutions_has_none() -> None:
    assert "fast_accumulate" not in compiled(CASES["conv"].block(), ADAMW).models
    assert "fast_accumulate" not in compiled(CASES["conv1d"].block(), ADAMW).models


@pytest.mark.parametrize("target", ["coreml", "webgpu"])
def test_graphs_for_a_provider_have_none(target: str) -> None:
    """Which forms are fast there nobody has measured; such a provider has its own convolutions."""
    block = CASES["conv wide"].block()
    graphs = compile_block(block, optimizer_spec=ADAMW, input_dtype="float32", last=False, target=target)
    assert "fast_accumulate" not in graphs.models
