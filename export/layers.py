"""Translations of convolution, normalisation and embedding, forward and backward."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeff.export import winograd
from edgeff.export.ir import ONE_SUM, Graph, Rows, Shape, Value
from edgeff.export.lowering import Call, Lowered, translates
from edgeff.export.strips import strip
from edgeff.goodness import largest_divisor

aten = torch.ops.aten


# --- convolution ------------------------------------------------------------------------------------------------------


@translates(aten.convolution.default)
def _convolution(call: Call) -> Lowered:
    stride, padding, dilation = call.argument(3), call.argument(4), call.argument(5)
    if call.argument(6):
        raise ValueError("transposed convolutions are not supported")
    weight = call.tensor(1)
    window = Window(stride, padding, dilation, weight.shape[2:])
    how = _tiles(call.graph, call.tensor(0), weight, window, call.argument(8))
    if how is not None:
        return winograd.convolution(call.graph, call.tensor(0), weight, call.optional(2), how)
    inputs = [call.tensor(0), weight, call.optional(2)]
    attributes = window.attributes(call.argument(8))
    return call.graph.node("Conv", inputs if inputs[2] else inputs[:2], [(call.shape, call.dtype)], attributes)[0]


@translates(aten.convolution_backward.default)
def _convolution_backward(call: Call) -> Lowered:
    gradient, x, weight = call.tensor(0), call.tensor(1), call.tensor(2)
    if call.argument(7):
        raise ValueError("transposed convolutions are not supported")
    window = Window(call.argument(4), call.argument(5), call.argument(6), weight.shape[2:])
    groups = call.argument(9)
    strips = [] if call.uses_output(0) else _strips(gradient, weight, window, groups)
    if strips and call.uses_output(1):
        of_weight, of_bias = _gradients_by_strip(call.graph, strips, x, weight, window)
    else:
        of_weight = _weight_gradient(call.graph, gradient, x, weight, window, groups)
        of_bias = call.graph.reduce("ReduceSum", gradient, [0, *range(2, len(x.shape))], keep=False)
    return (
        _input_gradient(call.graph, gradient, x, weight, window, groups) if call.uses_output(0) else None,
        of_weight if call.uses_output(1) else None,
        of_bias if call.uses_output(2) else None,
    )


def _tiles(graph: Graph, x: Value, weight: Value, window: Window, groups: int) -> winograd.Tiles | None:
    """How to cut the maps of a convolution, where the graph takes such forms and it is worth while."""
    if not graph.fast or len(x.shape) != 4:
        return None
    outs, ins = _numbers(weight.shape[:2])
    return winograd.tiles(
        ins,
        outs,
        _numbers(x.shape[2:]),
        window.kernel,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=groups,
    )


class Window:
    """How a kernel moves over a map: per spatial axis."""

    def __init__(self, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], kernel: Shape) -> None:
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self.kernel = [dim for dim in kernel if isinstance(dim, int)]

    def attributes(self, groups: int) -> dict[str, Any]:
        """Of a Conv."""
        return {
            "kernel_shape": self.kernel,
            "strides": self.stride,
            "pads": [*self.padding, *self.padding],
            "dilations": self.dilation,
            "group": groups,
        }

    def taps(self) -> list[tuple[int, ...]]:
        """Offsets of the kernel's entries into the padded map, in the order of the weight."""
        axes = zip(self.kernel, self.dilation, strict=True)
        return list(itertools.product(*([k * dilation for k in range(size)] for size, dilation in axes)))

    def leftover(self, size: Sequence[int], out: Sequence[int]) -> list[int]:
        """Entries at the end of each axis that no window reaches (`output_padding` of the transposed convolution)."""
        return [
            n - ((o - 1) * s - 2 * p + d * (k - 1) + 1)
            for n, o, s, p, d, k in zip(size, out, self.stride, self.padding, self.dilation, self.kernel, strict=True)
        ]


def _input_gradient(graph: Graph, gradient: Value, x: Value, weight: Value, window: Window, groups: int) -> Value:
    how = _tiles(graph, x, weight, window, groups)
    if how is not None:
        return winograd.input_gradient(graph, gradient, weight, how)
    if {*window.kernel, *window.stride} == {1} and not any(window.padding) and groups == 1:
        turned = graph.transpose(weight, [1, 0, *range(2, len(weight.shape))])
        return graph.node("Conv", [gradient, turned], [(x.shape, x.dtype)], window.attributes(groups))[0]
    leftover = window.leftover(_numbers(x.shape[2:]), _numbers(gradient.shape[2:]))
    attributes = {**window.attributes(groups), "output_padding": leftover}
    return graph.node("ConvTranspose", [gradient, weight], [(x.shape, x.dtype)], attributes)[0]


# Strips of a map: where each begins along its first spatial axis, and what it holds.
Strips = Sequence[tuple[int, Value]]
# Numbers of a row's map that is cut into strips, and into how many at most.
_LARGE_MAP = 32 * 1024
_STRIPS = 4


def _strips(gradient: Value, weight: Value, window: Window, groups: int) -> Strips:
    """A large gradient in strips, where its products are made row by row and nothing else needs it; else none.

    It is never there as a whole then, which takes fewer bytes and more time.
    """
    (outs, ins), (length, *_) = _numbers(weight.shape[:2]), _numbers(gradient.shape[2:])
    numbers = math.prod(_numbers(gradient.shape[1:]))
    by_row = groups == 1 and _dense_form(outs, ins, numbers // outs, window) is _weight_gradient_by_row
    sums = outs * ins * math.prod(window.kernel)  # of a strip: they are there beside those of the strips before
    if not by_row or numbers < max(_LARGE_MAP, 2 * sums) or gradient.graph.fast:
        return []
    each = length // largest_divisor(length, _STRIPS)
    return [(start, strip(gradient, 2, start, start + each)) for start in range(0, length, each)]


def _weight_gradient(graph: Graph, gradient: Value, x: Value, weight: Value, window: Window, groups: int) -> Value:
    """dL/dW[o, i, k] = sum over rows n and places p of dL/dy[n, o, p] x[n, i, p * stride + k * dilation - padding]."""
    how = _tiles(graph, x, weight, window, groups)
    if how is not None:
        return winograd.weight_gradient(graph, gradient, x, weight, how)
    out_channels, in_channels = _numbers(weight.shape[:2])
    padding = [0, 0, *window.padding]
    if in_channels == 1 and groups > 1:
        return _depthwise_weight_gradient(graph, gradient, graph.pad(x, padding, padding), weight, window, groups)
    outs = out_channels // groups
    form = _dense_form(outs, in_channels, math.prod(_numbers(gradient.shape[2:])), window)
    source = x if form is _weight_gradient_by_row else graph.pad(x, padding, padding)
    parts = [
        form(
            graph,
            graph.slice(gradient, 1, group * outs, (group + 1) * outs),
            graph.slice(source, 1, group * in_channels, (group + 1) * in_channels),
            window,
        )
        for group in range(groups)
    ]
    return graph.reshape(graph.concat(parts, 0), weight.shape)


# A weight gradient of every row is made, to be added up, where it is at most this part of the smaller map.
_ROW_PRODUCT = 0.5
# Numbers of a row's unfolded map that is small enough to be made: 16 KiB.
_SMALL_MAP = 4 * 1024
# Rows at which the bytes of two forms are compared.
_ROWS = 8


def _dense_form(outs: int, ins: int, places: int, window: Window) -> Callable[[Graph, Value, Value, Window], Value]:
    """The form of a dense weight gradient that holds least for these sizes."""
    if outs * ins <= _ROW_PRODUCT * places * min(outs, ins) and set(window.stride) == {1}:
        return _weight_gradient_by_row
    # The map is unfolded once for each tap; else the products of all taps are there twice, apart and joined.
    if places * _ROWS <= 2 * outs:
        return _weight_gradient_unfolded
    return _weight_gradient_by_tap


def _weight_gradient_by_row(graph: Graph, gradient: Value, x: Value, window: Window, /) -> Value:
    """Matrix products of every row, then their sum over the rows: (O, I, taps).

    A small map is unfolded and takes one product, (O, P) x (P, I taps), whose sum lies as the weight does. A large one
    stays as it is and is shifted tap by tap.
    """
    outs, ins = _numbers((gradient.shape[1], x.shape[1]))
    places, taps = math.prod(_numbers(gradient.shape[2:])), window.taps()
    if len(taps) * ins * places > _SMALL_MAP:
        summed = _summed(_products(graph, 0, gradient, x, window), gradient)
        return graph.transpose(graph.reshape(summed, (len(taps), ins, outs)), [2, 1, 0])
    maps = [graph.reshape(_seen(x, tap, 0, gradient.shape[2:], window), (Rows(1), ins, 1, places)) for tap in taps]
    unfolded = graph.reshape(graph.concat(maps, 2), (Rows(1), ins * len(taps), places))
    inputs = [graph.reshape(gradient, (Rows(1), outs, places)), graph.transpose(unfolded, [0, 2, 1])]
    product = graph.node("MatMul", inputs, [((Rows(1), outs, ins * len(taps)), x.dtype)])[0]
    return graph.reduce("ReduceSum", product, [0], keep=False)


def _gradients_by_strip(graph: Graph, strips: Strips, x: Value, weight: Value, window: Window) -> tuple[Value, Value]:
    """Gradients of weight and bias. A strip's part of both is made while the strip is there."""
    outs, ins, *kernel = _numbers(weight.shape)
    sums = []
    for start, gradient in strips:
        ones = graph.constant(np.ones((1, math.prod(_numbers(gradient.shape[2:]))), np.float32))
        total = graph.node("MatMul", [ones, _channel_last(graph, gradient)], [((Rows(1), 1, outs), x.dtype)])[0]
        # Summed for each strip, so that an order can be found in which one strip is done before the next is made.
        sums.append(_summed([*_products(graph, start, gradient, x, window), total], gradient))
    each = ins * math.prod(kernel)
    summed = functools.reduce(operator.add, sums)
    by_tap = graph.reshape(graph.slice(summed, 0, 0, each), (math.prod(kernel), ins, outs))
    bias = graph.reshape(graph.slice(summed, 0, each, each + 1), (outs,))
    return graph.reshape(graph.transpose(by_tap, [2, 1, 0]), weight.shape), bias


def _products(graph: Graph, start: int, gradient: Value, x: Value, window: Window) -> list[Value]:
    """A strip's matrix products of every row and tap, (N, I, O): (I, P) x (P, O).

    The only copies are one of the strip and one of what a tap sees of the map.
    """
    outs, ins = _numbers((gradient.shape[1], x.shape[1]))
    channel_last, kept = _channel_last(graph, gradient), gradient.shape[2:]
    maps = (
        graph.reshape(_seen(x, tap, start, kept, window), (Rows(1), ins, math.prod(_numbers(kept))))
        for tap in window.taps()
    )
    shape = (Rows(1), ins, outs)
    return [graph.node("MatMul", [one, channel_last], [(shape, x.dtype)])[0] for one in maps]


def _channel_last(graph: Graph, value: Value) -> Value:
    """(N, P, O) of a map (N, O, ...)."""
    flat = graph.reshape(value, (*value.shape[:2], math.prod(_numbers(value.shape[2:]))))
    return graph.transpose(flat, [0, 2, 1])


def _summed(products: Sequence[Value], gradient: Value) -> Value:
    """Sums over the rows of a gradient's products (N, R, O), one below the other: (R, O).

    Small ones are summed together. Each by itself takes fewer bytes where they are large.
    """
    graph = gradient.graph
    numbers = sum(math.prod(_numbers(one.shape[1:])) for one in products)
    if 2 * numbers <= math.prod(_numbers(gradient.shape[1:])):
        return graph.reduce("ReduceSum", graph.concat(products, 1), [0], keep=False)
    return graph.concat([graph.reduce("ReduceSum", one, [0], keep=False) for one in products], 0)


def _seen(x: Value, tap: Sequence[int], start: int, kept: Shape, window: Window) -> Value:
    """What one tap of a kernel of stride 1 sees of a map from the window at `start` on: shifted, zeros coming in."""
    sizes = _numbers(x.shape[2:])
    begins = [start, *(0 for _ in sizes[1:])]
    before = [pad - offset - begin for pad, offset, begin in zip(window.padding, tap, begins, strict=True)]
    after = [out - size - first for out, size, first in zip(_numbers(kept), sizes, before, strict=True)]
    return x.graph.pad(x, [0, 0, *before], [0, 0, *after])


def _weight_gradient_by_tap(graph: Graph, gradient: Value, padded: Value, window: Window, /) -> Value:
    """One matrix product per tap over channel-last maps: (O, N P) x (N P, I) -> (O, I, taps)."""
    outs, ins = _numbers((gradient.shape[1], padded.shape[1]))
    places = math.prod(_numbers(gradient.shape[2:]))
    last = [0, *range(2, len(padded.shape)), 1]
    gradient_rows = graph.reshape(graph.transpose(gradient, last), (Rows(places), outs))
    channel_last = graph.transpose(padded, last)
    products = []
    for tap in window.taps():
        cut = _cut(graph, channel_last, 1, tap, gradient.shape[2:], window)
        rows = graph.reshape(cut, (Rows(places), ins))
        product = graph.node("Gemm", [gradient_rows, rows], [((outs, ins), rows.dtype)], {"transA": 1})[0]
        products.append(graph.reshape(product, (outs, ins, 1)))
    return graph.concat(products, 2)


def _weight_gradient_unfolded(graph: Graph, gradient: Value, padded: Value, window: Window, /) -> Value:
    """One matrix product over the unfolded map, (O, N P) x (N P, I taps) -> (O, I taps).

    The result lies as the weight does, so that a sum of gradients takes it up where it is, without a copy of its size.
    """
    outs, ins = _numbers((gradient.shape[1], padded.shape[1]))
    places = math.prod(_numbers(gradient.shape[2:]))
    first = [1, 0, *range(2, len(padded.shape))]
    channel_first = graph.transpose(padded, first)
    cuts = [
        graph.reshape(_cut(graph, channel_first, 2, tap, gradient.shape[2:], window), (ins, 1, Rows(places)))
        for tap in window.taps()
    ]
    unfolded = graph.reshape(graph.concat(cuts, 1), (ins * len(cuts), Rows(places)))
    gradient_rows = graph.reshape(graph.transpose(gradient, first), (outs, Rows(places)))
    shape = ((outs, ins * len(cuts)), gradient.dtype)
    return graph.node("Gemm", [gradient_rows, unfolded], [shape], {"transB": 1})[0]


def _depthwise_weight_gradient(
    graph: Graph, gradient: Value, padded: Value, weight: Value, window: Window, groups: int
) -> Value:
    """One input channel per group: a product and a sum per tap, or all taps of a kernel's row by one matrix product."""
    outs = _numbers(weight.shape[:1])[0]
    kept = _numbers(gradient.shape[2:])
    if len(kept) == 2 and kept[1] <= _NARROW:
        return graph.reshape(_weight_gradient_by_diagonal(graph, gradient, padded, window, groups), weight.shape)
    places = math.prod(kept)
    by_group = graph.reshape(gradient, (Rows(1), groups, outs // groups, places))
    sums = []
    for tap in window.taps():
        cut = graph.reshape(_cut(graph, padded, 2, tap, gradient.shape[2:], window), (Rows(1), groups, 1, places))
        total = graph.reduce("ReduceSum", by_group * cut, [0, 3], keep=False)
        sums.append(graph.reshape(total, (outs, 1, 1)))
    return graph.reshape(graph.concat(sums, 2), weight.shape)


# Columns of a map that are few enough to multiply all of them with all: 64 channels of 25 x 20, 4 rows, take 0.70 ms
# so and 0.98 tap by tap, of 32 x 32 0.20 and 0.29 a row.
_NARROW = 32


def _weight_gradient_by_diagonal(graph: Graph, gradient: Value, padded: Value, window: Window, groups: int) -> Value:
    """Depthwise, (O, taps): for each row of taps, columns of the gradient times those of the map, (W, N H) x (N H, W').

    A tap is the sum along one diagonal of such a product: of the pairs of columns that it brings together.
    """
    outs = _numbers(gradient.shape[1:2])[0]
    (height, width), (columns,) = _numbers(gradient.shape[2:]), _numbers(padded.shape[3:])
    each = outs // groups
    by_group = graph.reshape(gradient, (Rows(1), groups, each, height, width))
    last = graph.reshape(graph.transpose(by_group, [1, 0, 3, 2, 4]), (groups, Rows(height), each * width))
    columns_first, channel_first = graph.transpose(last, [0, 2, 1]), graph.transpose(padded, [1, 0, 2, 3])
    pairs = graph.constant(_pairs(window, width, columns))
    (down, across), stride, dilation = window.kernel, window.stride[0], window.dilation[0]
    found = []
    for tap in range(down):
        first = tap * dilation
        rows = graph.slice(channel_first, 2, first, first + (height - 1) * stride + 1, stride)
        inputs = [columns_first, graph.reshape(rows, (groups, Rows(height), columns))]
        product = graph.node("MatMul", inputs, [((groups, each * width, columns), padded.dtype)])[0]
        flat = graph.reshape(product, (outs, width * columns))
        found.append(graph.node("MatMul", [flat, pairs], [((outs, across), padded.dtype)])[0])
    return graph.concat(found, 1)


def _pairs(window: Window, width: int, columns: int) -> NDArray[np.float32]:
    """Which columns of result and padded map each tap of a row brings together: (width columns, taps), 0 or 1."""
    found = np.zeros((width, columns, window.kernel[1]), np.float32)
    for column, tap in itertools.product(range(width), range(window.kernel[1])):
        found[column, column * window.stride[1] + tap * window.dilation[1], tap] = 1.0
    return found.reshape(width * columns, -1)


def _cut(graph: Graph, value: Value, first: int, tap: Sequence[int], out: Shape, window: Window) -> Value:
    """What one tap of the kernel sees: a strided cut of the padded map along its spatial axes (from `first` on)."""
    axes = list(range(first, first + len(tap)))
    sizes = _numbers(out)
    stops = [start + (size - 1) * stride + 1 for start, size, stride in zip(tap, sizes, window.stride, strict=True)]
    whole = all(
        start == 0 and stride == 1 and stop == value.shape[axis]
        for start, stop, stride, axis in zip(tap, stops, window.stride, axes, strict=True)
    )
    if whole:
        return value
    shape = tuple(sizes[axes.index(axis)] if axis in axes else dim for axis, dim in enumerate(value.shape))
    bounds = [graph.constant(np.array(numbers, np.int64)) for numbers in (tap, stops, axes, window.stride)]
    return graph.node("Slice", [value, *bounds], [(shape, value.dtype)])[0]


def _numbers(dims: Shape) -> list[int]:
    if not all(isinstance(dim, int) for dim in dims):
        raise ValueError("the batch must be the first axis")
    return [dim for dim in dims if isinstance(dim, int)]


# --- normalisation ----------------------------------------------------------------------------------------------------


@translates(aten.native_layer_norm.default)
def _layer_norm(call: Call) -> Lowered:
    x, epsilon = call.tensor(0), float(call.argument(4))
    normalised = len(call.argument(1))
    weight, bias = call.optional(2), call.optional(3)
    axes = list(range(len(x.shape) - normalised, len(x.shape)))
    if call.uses_output(1) or call.uses_output(2):
        y, mean, scale = _normalise(call.graph, x, axes, epsilon)
        return affine(y, weight, bias), mean, scale
    if weight is None or bias is None:
        count = math.prod(_numbers(x.shape[axes[0] :]))
        rows = Rows(math.prod(d if isinstance(d, int) else d.per_row for d in x.shape[: axes[0]]))
        return affine(instance_norm(call.graph, x, (rows, 1, count), epsilon), weight, bias), None, None
    attributes = {"axis": axes[0], "epsilon": epsilon}
    return call.graph.node("LayerNormalization", [x, weight, bias], [(x.shape, x.dtype)], attributes)[0], None, None


def _normalise(graph: Graph, x: Value, axes: list[int], epsilon: float) -> tuple[Value, Value, Value]:
    """(x - mean) / sqrt(var + epsilon) with its two statistics, which the backward pass reads."""
    centred, mean, scale = center(graph, x, axes, epsilon)
    return centred * scale, mean, scale


def center(graph: Graph, x: Value, axes: list[int], epsilon: float) -> tuple[Value, Value, Value]:
    """What is left of x without its mean, the mean, and 1 / sqrt(var + epsilon), over axes that the statistics keep."""
    mean = graph.reduce("ReduceMean", x, axes, keep=True)
    centred = x - mean
    variance = graph.reduce("ReduceMean", centred * centred, axes, keep=True)
    return centred, mean, graph.elementwise("Reciprocal", (variance + epsilon) ** 0.5)


def instance_norm(graph: Graph, x: Value, grouped: Shape, epsilon: float) -> Value:
    """The same in one kernel and without temporaries, where nothing reads the statistics."""
    (groups,), count = _numbers(grouped[1:2]), grouped[2]
    if isinstance(count, int) and count > ONE_SUM:  # it adds up in one float32
        return _normalise_in_two(graph, x, grouped, epsilon)
    inputs = graph.reshape(x, grouped)
    scale, shift = graph.constant(np.ones(groups, np.float32)), graph.constant(np.zeros(groups, np.float32))
    y = graph.node("InstanceNormalization", [inputs, scale, shift], [(grouped, x.dtype)], {"epsilon": epsilon})[0]
    return graph.reshape(y, x.shape)


def _normalise_in_two(graph: Graph, x: Value, grouped: Shape, epsilon: float) -> Value:
    """(x - mean) / sqrt(var + epsilon) over the last axis of x as `grouped`.

    Each sum is made in two steps so that float32 keeps its digits; that of squares needs no squares in memory. Where
    one group is a whole row, nothing is reshaped at the end: a result that leaves the graph is written in its place.
    """
    rows, groups, count = grouped[0], *_numbers(grouped[1:])
    inner = max(size for size in range(1, math.isqrt(count) + 1) if count % size == 0)
    split = (rows, groups, count // inner, inner)
    whole_rows = groups == 1 and x.shape[0] == rows
    shape = x.shape if whole_rows else grouped
    per_group: Shape = (rows, *(1 for _ in x.shape[1:])) if whole_rows else (rows, groups, 1)

    def statistic(first: str, second: str, value: Value) -> Value:
        summed = graph.reduce(first, graph.reshape(value, split), [-1], keep=True)
        return graph.reshape(graph.reduce(second, summed, [-2], keep=True), per_group)

    centred = graph.reshape(x, shape) - statistic("ReduceMean", "ReduceMean", x)
    variance = statistic("ReduceSumSquare", "ReduceSum", centred) * (1.0 / count)
    scale = graph.elementwise("Reciprocal", (variance + epsilon) ** 0.5)
    return graph.reshape(centred * scale, x.shape)


def affine(y: Value, weight: Value | None, bias: Value | None) -> Value:
    """Multiply by a weight and add a bias, where there is one."""
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


# --- embedding --------------------------------------------------------------------------------------------------------


@translates(aten.embedding.default)
def _embedding(call: Call) -> Lowered:
    return call.graph.node("Gather", [call.tensor(0), call.tensor(1)], [(call.shape, call.dtype)], {"axis": 0})[0]


@translates(aten.embedding_dense_backward.default)
def _embedding_backward(call: Call) -> Lowered:
    gradient, indices = call.tensor(0), call.tensor(1)
    if call.argument(4):
        raise ValueError("an embedding with `scale_grad_by_freq` is not supported")
    padding_index: Any = call.argument(3)
    if padding_index >= 0:
        is_padding = call.graph.elementwise("Equal", indices, call.graph.constant(padding_index, "int64"), dtype="bool")
        keep = call.graph.cast(call.graph.elementwise("Not", is_padding), "float32")
        gradient = gradient * call.graph.reshape(keep, (*indices.shape, 1))
    zeros = call.graph.filled(0.0, call.shape, call.dtype)
    places = call.graph.reshape(indices, (*indices.shape, 1))
    return call.graph.node("ScatterND", [zeros, places, gradient], [(call.shape, call.dtype)], {"reduction": "add"})[0]
