"""Translations of group normalisation, forward and backward, in few passes over the map.

Of a row n, with D channels of P places in each of G groups, z = x - mean and r = 1 / sqrt(var + epsilon):

    y[n, c, p] = z[n, c, p] f[n, c] + bias[c]        f = weight r
    dx[n, c, p] = dy[n, c, p] f[n, c] + z[n, c, p] a[n, g] + b[n, g]
        a = -r^3 sum(weight sum(dy z)) / (D P)        b = -r sum(weight sum(dy)) / (D P)

Inner sums go over places, outer ones over a group's channels. PyTorch's kernels compute the same
(aten/src/ATen/native/cpu/group_norm_kernel.cpp), but from x where there is z here: z loses no digits to the mean, and
takes the place of x in memory.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from edgeff.export.ir import Graph, Rows, Shape, Value
from edgeff.export.layers import affine, center, instance_norm
from edgeff.export.lowering import Call, Lowered, translates

aten = torch.ops.aten


@translates(aten.native_group_norm.default)
def _group_norm(call: Call) -> Lowered:
    graph, x, groups, epsilon = call.graph, call.tensor(0), call.argument(6), float(call.argument(7))
    weight, bias = call.optional(1), call.optional(2)
    channels, places = _sizes(x)
    grouped: Shape = (Rows(1), groups, channels * places // groups)
    if not (call.uses_output(1) or call.uses_output(2)):
        per_channel = (channels, *(1 for _ in x.shape[2:]))
        parts = (None if value is None else graph.reshape(value, per_channel) for value in (weight, bias))
        return affine(instance_norm(graph, x, grouped, epsilon), *parts), None, None
    centred, mean, scale = center(graph, graph.reshape(x, grouped), [2], epsilon)
    mean, scale = (graph.reshape(value, (Rows(1), groups)) for value in (mean, scale))
    factor = _by_channel(graph, scale, channels, weight)
    return _scaled(graph, graph.reshape(centred, x.shape), factor, bias), mean, scale


@translates(aten.native_group_norm_backward.default)
def _group_norm_backward(call: Call) -> Lowered:
    graph, gradient, x = call.graph, call.tensor(0), call.tensor(1)
    mean, scale, weight, groups = call.tensor(2), call.tensor(3), call.optional(4), call.argument(8)
    channels, places = _sizes(x)
    count = channels * places // groups
    by_group: Shape = (Rows(1), groups, count)
    flat: Shape = (Rows(1), channels, places)
    centred = graph.reshape(x, by_group) - graph.reshape(mean, (Rows(1), groups, 1))  # once more what is there
    centred = graph.reshape(centred, x.shape)
    summed = graph.reduce("ReduceSum", graph.reshape(gradient, flat), [2], keep=False)
    with_z = graph.reduce("ReduceSum", graph.reshape(gradient * centred, flat), [2], keep=False)
    dx = None
    if call.uses_output(0):
        factor = graph.reshape(_by_channel(graph, scale, channels, weight), (*flat[:2], *(1 for _ in x.shape[2:])))
        slope = _by_group(graph, with_z, groups, weight) * (scale * scale * scale * (-1.0 / count))
        level = _by_group(graph, summed, groups, weight) * (scale * (-1.0 / count))
        parts = (_by_channel(graph, value, channels, None) for value in (slope, level))
        dx = gradient * factor + _scaled(graph, centred, *parts)
    normalised = with_z * _by_channel(graph, scale, channels, None)
    return (
        dx,
        graph.reduce("ReduceSum", normalised, [0], keep=False) if call.uses_output(1) else None,
        graph.reduce("ReduceSum", summed, [0], keep=False) if call.uses_output(2) else None,
    )


def _scaled(graph: Graph, x: Value, factor: Value, shift: Value | None) -> Value:
    """Multiply x (N, C, ...) by `factor` and add `shift` (N, C) or (C,), in one pass: a BatchNormalization of N C."""
    channels, places = _sizes(x)
    apart: Shape = (1, Rows(channels), places)
    flat: Shape = (Rows(channels),)
    zeros, ones = (graph.made(number, flat, x.dtype) for number in (0.0, 1.0))
    if shift is None:
        moved = zeros
    elif shift.shape == factor.shape:
        moved = graph.reshape(shift, flat)
    else:
        moved = graph.reshape(graph.expand(shift, factor.shape), flat)
    parts = [graph.reshape(factor, flat), moved, zeros, ones]
    inputs = [graph.reshape(x, apart), *parts]
    return graph.reshape(graph.node("BatchNormalization", inputs, [(apart, x.dtype)], {"epsilon": 0.0})[0], x.shape)


def _by_channel(graph: Graph, value: Value, channels: int, weight: Value | None) -> Value:
    """What each channel has of its group's number (N, G), times the channel's weight: (N, C)."""
    groups = value.shape[1]
    assert isinstance(groups, int)
    if weight is None and groups == channels:
        return value
    size = channels // groups
    times = graph.constant(np.ones((1, size), value.dtype)) if weight is None else graph.reshape(weight, (groups, size))
    return graph.reshape(graph.reshape(value, (Rows(1), groups, 1)) * times, (Rows(1), channels))


def _by_group(graph: Graph, value: Value, groups: int, weight: Value | None) -> Value:
    """Sums over the channels of each group of (N, C), times the channel's weight: (N, G)."""
    weighted = value if weight is None else value * weight
    channels = value.shape[1]
    assert isinstance(channels, int)
    apart = graph.reshape(weighted, (Rows(1), groups, channels // groups))
    return graph.reduce("ReduceSum", apart, [2], keep=False)


def _sizes(x: Value) -> tuple[int, int]:
    channels, *spatial = (dim for dim in x.shape[1:] if isinstance(dim, int))
    return channels, math.prod(spatial)
