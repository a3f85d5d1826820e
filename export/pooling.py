"""Translations of max, average and adaptive pooling, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from edgeff.export.ir import Graph, Rows, Shape, Value
from edgeff.export.lowering import Call, Lowered, translates

aten = torch.ops.aten

# --- maximum ----------------------------------------------------------------------------------------------------------


def _max_window(call: Call, first: int, shape: Shape, out: Shape) -> dict[str, list[int]]:
    """How the windows stand. Those of `ceil_mode` that hang over the end get more padding there instead.

    onnxruntime versions differ in how many windows `ceil_mode` makes.
    """
    kernel = _pair(call.argument(first))
    strides = _pair(call.argument(first + 1, "stride") or kernel)
    padding = _pair(call.argument(first + 2, "padding", 0))
    dilations = _pair(call.argument(first + 3, "dilation", 1))
    reach = [
        (length - 1) * stride + dilation * (size - 1) + 1 - pad - whole
        for (whole, length), size, stride, pad, dilation in zip(
            _axes(shape, out), kernel, strides, padding, dilations, strict=True
        )
    ]
    after = list(map(max, padding, reach))
    if any(pad >= size for pad, size in zip((*padding, *after), kernel * 2, strict=True)):
        raise ValueError("a dilated window that stands mostly outside the map is not supported")
    return {"kernel_shape": kernel, "strides": strides, "pads": [*padding, *after], "dilations": dilations}


@translates(aten.max_pool2d_with_indices.default)
def _max_pool(call: Call) -> Lowered:
    return _max_pool_node(call, _max_window(call, 1, call.tensor(0).shape, call.shape))


@translates(aten.adaptive_max_pool2d.default)
def _adaptive_max_pool(call: Call) -> Lowered:
    return _max_pool_node(call, _even_window(call.tensor(0).shape, call.shape))


def _max_pool_node(call: Call, attributes: dict[str, list[int]]) -> Lowered:
    values = call.graph.node("MaxPool", [call.tensor(0)], [(call.shape, call.dtype)], attributes)[0]
    if not call.uses_output(1):
        return values, None
    outputs = [(call.shape, call.dtype), (call.shape, "int64")]
    with_places = call.graph.node("MaxPool", [call.tensor(0)], outputs, attributes)
    # Where the backward pass compares pairs, it does not read the places, and the node that finds them falls away.
    return values if _pairs(attributes, call.tensor(0).shape, call.shape) else with_places[0], with_places[1]


@translates(aten.max_pool2d_with_indices_backward.default)
def _max_pool_backward(call: Call) -> Lowered:
    return _unpool(call, call.tensor(7), _max_window(call, 2, call.shape, call.tensor(0).shape))


@translates(aten.adaptive_max_pool2d_backward.default)
def _adaptive_max_pool_backward(call: Call) -> Lowered:
    gradient, x, indices = call.tensor(0), call.tensor(1), call.tensor(2)
    return _unpool(call, indices, _even_window(x.shape, gradient.shape))


def _unpool(call: Call, indices: Value, window: dict[str, list[int]]) -> Value:
    """Send each gradient to where its maximum was. onnxruntime's indices count over the whole tensor."""
    gradient, x = call.tensor(0), call.tensor(1)
    kernel, strides = window["kernel_shape"], window["strides"]
    if _pairs(window, x.shape, gradient.shape):
        return _unpool_pairs(call.graph, gradient, x, kernel)
    if _stands_apart(window, x.shape, gradient.shape):
        # Taken from the graph's input: a Shape of `x` would keep `x` alive until here.
        shape = call.graph.shape_tensor(x.shape)
        operands = [gradient, indices, shape]
        attributes = {"kernel_shape": kernel, "strides": strides}
        return call.graph.node("MaxUnpool", operands, [(x.shape, x.dtype)], attributes)[0]
    # Windows overlap: one place may be the maximum of several, and their gradients add up.
    graph = call.graph
    zeros = graph.filled(0.0, _flat(x.shape), x.dtype)
    flat = [graph.reshape(value, _flat(value.shape)) for value in (indices, gradient)]
    adding = {"axis": 0, "reduction": "add"}
    summed = graph.node("ScatterElements", [zeros, *flat], [(zeros.shape, x.dtype)], adding)[0]
    return graph.reshape(summed, x.shape)


def _pairs(window: dict[str, list[int]], shape: Shape, out: Shape) -> bool:
    """Whether the windows are pairs of neighbours along one axis or both, and tile the map."""
    kernel = window["kernel_shape"]
    return (
        set(kernel) in ({2}, {1, 2})
        and kernel == window["strides"]
        and not any(window["pads"])
        and window["dilations"] == [1, 1]
        and _tiles(shape, out, kernel)
    )


def _unpool_pairs(graph: Graph, gradient: Value, x: Value, kernel: Sequence[int]) -> Value:
    """Send each gradient to where its maximum was, the first of equal ones, by comparing pairs.

    First the pairs along rows, then those along columns: so of equal maxima the first in reading order is taken, as in
    torch. onnxruntime compares whole maps many times as fast as it finds the places of maxima.
    """
    shape, largest = x.shape, x
    count, width = _entries(x.shape), x.shape[3]
    if kernel[1] == 2:
        # Turned, all left ones lie in one stretch and all right ones in another.
        turned = graph.transpose(graph.reshape(x, (Rows(count // 2), 2)), [1, 0])
        left, right = graph.slice(turned, 0, 0, 1), graph.slice(turned, 0, 1, 2)
        is_left, largest = _at_least(graph, left, right), graph.elementwise("Max", left, right)
        count, width = count // 2, gradient.shape[3]
    if kernel[0] == 2:
        assert isinstance(width, int)
        by_row = graph.reshape(largest, (Rows(count // (2 * width)), 2, width))
        top, bottom = graph.slice(by_row, 1, 0, 1), graph.slice(by_row, 1, 1, 2)
        gradient = _handed_on(graph, gradient, _at_least(graph, top, bottom), 1)
    if kernel[1] == 2:
        gradient = graph.transpose(_handed_on(graph, gradient, is_left, 0), [1, 0])
    return graph.reshape(gradient, shape)


def _at_least(graph: Graph, first: Value, second: Value) -> Value:
    """1 where the first number is no less than the second, else 0."""
    return graph.cast(graph.elementwise("GreaterOrEqual", first, second, dtype="bool"), first.dtype)


def _handed_on(graph: Graph, gradient: Value, is_first: Value, axis: int) -> Value:
    """The gradient where `is_first` is 1, and next to it along an axis the gradient where it is 0."""
    whole = graph.reshape(gradient, is_first.shape)
    first = whole * is_first
    return graph.concat([first, whole - first], axis)


def _entries(shape: Shape) -> int:
    return math.prod(dim if isinstance(dim, int) else dim.per_row for dim in shape)


def _stands_apart(window: dict[str, list[int]], shape: Shape, out: Shape) -> bool:
    """Whether no two windows share a place and none hangs over the end, which is all that MaxUnpool can do."""
    kernel, strides = window["kernel_shape"], window["strides"]
    inside = all(
        (length - 1) * stride + size <= whole
        for (whole, length), size, stride in zip(_axes(shape, out), kernel, strides, strict=True)
    )
    return inside and all(map(int.__le__, kernel, strides)) and window["dilations"] == [1, 1]


def _flat(shape: Shape) -> Shape:
    return (Rows(_entries(shape)),)


# --- average ----------------------------------------------------------------------------------------------------------


def _average_window(call: Call, first: int) -> tuple[list[int], list[int], list[int], bool, bool]:
    kernel = _pair(call.argument(first))
    stride = _pair(call.argument(first + 1, "stride") or kernel)
    padding = _pair(call.argument(first + 2, "padding", 0))
    if call.argument(first + 5, "divisor_override") is not None:
        raise ValueError("average pooling with `divisor_override` is not supported")
    ceil_mode = bool(call.argument(first + 3, "ceil_mode", False))
    return kernel, stride, padding, ceil_mode, bool(call.argument(first + 4, "count_include_pad", True))


@translates(aten.avg_pool2d.default)
def _average_pool(call: Call) -> Lowered:
    kernel, stride, padding, ceil_mode, count_pads = _average_window(call, 1)
    if ceil_mode:
        # onnxruntime versions differ in how they count the windows that hang over the edge.
        return _matrix_pool(call.graph, call.tensor(0), call.shape, kernel, stride, padding, count_pads)
    x, shape = call.tensor(0), call.shape
    axes = slice(1 if x.shape[2] == shape[2] == kernel[0] == 1 else 0, None)  # a signal has one axis
    attributes = {
        "kernel_shape": kernel[axes],
        "strides": stride[axes],
        "pads": [*padding[axes], *padding[axes]],
        "count_include_pad": int(count_pads),
    }
    x, pooled = (call.graph.reshape(x, _of_axes(x.shape, axes)), _of_axes(shape, axes))
    return call.graph.reshape(call.graph.node("AveragePool", [x], [(pooled, call.dtype)], attributes)[0], shape)


def _of_axes(shape: Shape, axes: slice) -> Shape:
    return (*shape[:2], *shape[2:][axes])


@translates(aten.avg_pool2d_backward.default)
def _average_pool_backward(call: Call) -> Lowered:
    gradient, x = call.tensor(0), call.tensor(1)
    kernel, stride, padding, _, count_pads = _average_window(call, 2)
    if kernel == stride and not any(padding) and _tiles(x.shape, gradient.shape, kernel):
        return _spread(call.graph, gradient, x.shape, kernel)
    return _matrix_unpool(call.graph, gradient, x.shape, kernel, stride, padding, count_pads)


@translates(aten._adaptive_avg_pool2d.default)
def _adaptive_average_pool(call: Call) -> Lowered:
    x, out = call.tensor(0), call.shape
    if _divides(x.shape, out):
        window = _even_window(x.shape, out)
        attributes = {key: window[key] for key in ("kernel_shape", "strides")}
        return call.graph.node("AveragePool", [x], [(out, call.dtype)], attributes)[0]
    rows, columns = (_adaptive_matrix(size, length) for size, length in _axes(x.shape, out))
    return _sandwich(call.graph, x, rows, columns, out)


@translates(aten._adaptive_avg_pool2d_backward.default)
def _adaptive_average_pool_backward(call: Call) -> Lowered:
    gradient, x = call.tensor(0), call.tensor(1)
    if _divides(x.shape, gradient.shape):
        kernel = _even_window(x.shape, gradient.shape)["kernel_shape"]
        return _spread(call.graph, gradient, x.shape, kernel)
    rows, columns = (_adaptive_matrix(size, length) for size, length in _axes(x.shape, gradient.shape))
    return _sandwich(call.graph, gradient, rows.T, columns.T, x.shape)


def _spread(graph: Graph, gradient: Value, shape: Shape, kernel: Sequence[int]) -> Value:
    """Hand every entry its share of the window that it stands for, where windows tile the map.

    Along rows by a product with a narrow matrix, which is many times as fast as broadcasting over stretches of a few
    numbers; from row to row by broadcasting.
    """
    rows, channels, height, width = gradient.shape
    if kernel == [1, 1]:
        return gradient
    length = shape[3]
    assert isinstance(width, int)
    assert isinstance(length, int)
    shares = np.repeat(np.eye(width, dtype=gradient.dtype), kernel[1], axis=1) / math.prod(kernel)
    along = graph.constant(shares, gradient.dtype)
    if height == 1:  # a signal: no more axes than it has where it comes from and goes to
        gradient = graph.reshape(gradient, (rows, channels, width))
    wide = graph.node("MatMul", [gradient, along], [((*gradient.shape[:-1], length), gradient.dtype)])[0]
    if kernel[0] == 1:
        return graph.reshape(wide, shape)
    return graph.tile(graph.reshape(wide, (rows, channels, height, 1, length)), (kernel[0], 1), shape)


def _matrix_pool(
    graph: Graph,
    x: Value,
    out: Shape,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_pads: bool,
) -> Value:
    rows, columns = (
        _window_matrix(size, length, *window, count_pads)
        for (size, length), window in zip(_axes(x.shape, out), zip(kernel, stride, padding, strict=True), strict=True)
    )
    return _sandwich(graph, x, rows, columns, out)


def _matrix_unpool(
    graph: Graph,
    gradient: Value,
    shape: Shape,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_pads: bool,
) -> Value:
    rows, columns = (
        _window_matrix(size, length, *window, count_pads)
        for (size, length), window in zip(
            _axes(shape, gradient.shape), zip(kernel, stride, padding, strict=True), strict=True
        )
    )
    return _sandwich(graph, gradient, rows.T, columns.T, shape)


def _sandwich(graph: Graph, x: Value, rows: np.ndarray, columns: np.ndarray, out: Shape) -> Value:
    """`rows @ x @ columns.T` over the last two axes: averaging along one axis, then the other."""
    middle = (*x.shape[:3], columns.shape[0])
    right = graph.constant(np.ascontiguousarray(columns.T, x.dtype))
    narrowed = graph.node("MatMul", [x, right], [(middle, x.dtype)])[0]
    return graph.node("MatMul", [graph.constant(rows.astype(x.dtype)), narrowed], [(out, x.dtype)])[0]


def _window_matrix(size: int, out: int, kernel: int, stride: int, padding: int, count_pads: bool) -> np.ndarray:
    """(out, size): the share of each entry in each window of one axis. torch counts pads inside the padded map only."""
    matrix = np.zeros((out, size))
    for window in range(out):
        start = window * stride - padding
        stop = min(start + kernel, size + padding)
        inside = slice(max(start, 0), min(stop, size))
        matrix[window, inside] = 1.0 / (stop - start if count_pads else inside.stop - inside.start)
    return matrix


def _adaptive_matrix(size: int, out: int) -> np.ndarray:
    """(out, size): window i averages the entries floor(i size / out) to ceil((i + 1) size / out)."""
    matrix = np.zeros((out, size))
    for window in range(out):
        inside = slice(window * size // out, -(-(window + 1) * size // out))
        matrix[window, inside] = 1.0 / (inside.stop - inside.start)
    return matrix


# --- windows ----------------------------------------------------------------------------------------------------------


def _pair(value: int | Sequence[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _axes(shape: Shape, out: Shape) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip(shape[-2:], out[-2:], strict=True) if isinstance(a, int) and isinstance(b, int)]


def _divides(shape: Shape, out: Shape) -> bool:
    return all(size % length == 0 for size, length in _axes(shape, out))


def _tiles(shape: Shape, out: Shape, kernel: Sequence[int]) -> bool:
    return all(size == length * k for (size, length), k in zip(_axes(shape, out), kernel, strict=True))


def _even_window(shape: Shape, out: Shape) -> dict[str, list[int]]:
    """The window of an adaptive pooling whose output divides its input."""
    if not _divides(shape, out):
        raise ValueError("adaptive max pooling needs an output size that divides the input's")
    kernel = [size // length for size, length in _axes(shape, out)]
    return {"kernel_shape": kernel, "strides": kernel, "pads": [0] * 4, "dilations": [1, 1]}
