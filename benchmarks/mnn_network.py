"""Reference networks as MNN expressions.

MNN's Python functions cast some inputs, and a cast has no gradient: `expr.reduce_sum(x)` trains nothing, silently. So
operators are taken from below them (`expr._F`), all of which have gradients here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import MNN.expr as F

_F = F._F
Var = Any
Operator = Mapping[str, Any]
Parameters = Mapping[str, Var]


def constant(array: Any) -> Var:
    """A tensor (contiguous float32) as an expression."""
    return F.const(array, list(array.shape), F.NCHW)


def conv(x: Var, operator: Operator, parameters: Parameters) -> Var:
    weight, bias = parameters[operator["weight"]], parameters[operator["bias"]]
    # MNN counts strides and pads from the last axis.
    stride, pads = operator["stride"][::-1], operator["padding"][::-1]
    return _F.conv2d(_blocked(x), weight, bias, stride, pads, [1, 1], operator["groups"], F.CAFFE)


def linear(x: Var, operator: Operator, parameters: Parameters) -> Var:
    weight, bias = parameters[operator["weight"]], parameters[operator["bias"]]
    x = plain(x)
    rows = F.reshape(x, [x.shape[0], math.prod(x.shape[1:])])
    return _F.matmul(rows, weight, False, True) + bias


def layer_norm(x: Var, operator: Operator, parameters: Parameters) -> Var:
    del parameters
    axes = list(range(1, len(x.shape)))
    centred = x - _F.reduce_mean(x, axes, True)
    variance = _F.reduce_mean(_F.square(centred), axes, True)
    return centred * _F.rsqrt(variance + F.scalar(float(operator["eps"])))


def group_norm(x: Var, operator: Operator, parameters: Parameters) -> Var:
    x = plain(x)
    groups, shape = operator["groups"], x.shape
    grouped = F.reshape(x, [shape[0], groups, math.prod(shape[1:]) // groups])
    centred = grouped - _F.reduce_mean(grouped, [2], True)
    variance = _F.reduce_mean(_F.square(centred), [2], True)
    normal = F.reshape(centred * _F.rsqrt(variance + F.scalar(float(operator["eps"]))), shape)
    weight, bias = (F.reshape(parameters[operator[key]], [1, shape[1], 1, 1]) for key in ("weight", "bias"))
    return normal * weight + bias


def temperature(x: Var, operator: Operator, parameters: Parameters) -> Var:
    low, high = operator["minimum"], operator["maximum"]
    value = _F.sigmoid(parameters[operator["alpha"]]) * F.scalar(float(high - low)) + F.scalar(float(low))
    return x / value


def max_pool(x: Var, operator: Operator, parameters: Parameters) -> Var:
    del parameters
    kernel = operator["kernel"][::-1]
    return x if math.prod(kernel) == 1 else _F.max_pool(_blocked(x), kernel, kernel, F.VALID, [0, 0])


def avg_pool(x: Var, operator: Operator, parameters: Parameters) -> Var:
    """Means over rows, then over columns: the gradient of `avg_pool` takes 250 MB for 4 rows of (16, 64, 64)."""
    del parameters
    (high, wide), (rows, channels, height, width) = operator["kernel"], x.shape
    means = _F.reduce_mean(F.reshape(plain(x), [rows * channels * (height // high), high, width]), [1], False)
    means = _F.reduce_mean(F.reshape(means, [-1, wide]), [1], False)
    return F.reshape(means, [rows, channels, height // high, width // wide])


OPERATORS: Mapping[str, Callable[[Var, Operator, Parameters], Var]] = {
    "conv": conv,
    "linear": linear,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "temperature": temperature,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "relu": lambda x, operator, parameters: _F.relu(x, 0.0),
}


def through(operators: Sequence[Operator], x: Var, parameters: Parameters) -> Var:
    """Rows x through some operators."""
    for operator in operators:
        x = OPERATORS[operator["op"]](x, operator, parameters)
    return x


def cross_entropy(scores: Var, one_hot: Var, batch: int) -> Var:
    """Sum over rows of the cross-entropy, over the batch's size; shape ()."""
    log = _F.log(_F.softmax(scores, -1))
    return _F.reduce_sum(log * one_hot, [], False) * F.scalar(-1.0 / batch)


def plain(x: Var) -> Var:
    """In the order of numpy."""
    return x if x.data_format == F.NCHW else F.convert(x, F.NCHW)


def _blocked(x: Var) -> Var:
    """In the order of MNN's convolutions."""
    return x if x.data_format == F.NC4HW4 else F.convert(x, F.NC4HW4)
