"""3x3 convolutions with fewer multiplications: Winograd's minimal filtering, F(m x m, 3 x 3), forward and backward.

A map is cut into tiles of a x a numbers, a = m + 2, that overlap by two. For data d, filter w and result y of one tile

    y = A' [(G w G') * (B' d B)] A        dL/dw = G' [(A (dL/dy) A') * (B' d B)] G

(A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, equations 8 to 13), where the product
* is taken number by number and summed over channels, or over tiles: a matrix product for each of a^2 places, with
m^2 9 / a^2 times fewer multiplications than the convolution has: 2.25 for m = 2, 4 for m = 4. Transformed tensors are
larger than what they are made of, a^2 / m^2 times a map and a^2 / 9 times a weight, so these forms take more bytes.

Everything is a matrix product or moves whole rows of channels, which lie innermost. Padding and the tiles' overlap are
in the matrices: along an axis, all tiles of a map, or of a window of a large one, are made by one product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray

from edgeff.export.ir import Graph, Rows, Value

_KERNEL = 3
# Where the polynomials of Cook and Toom are taken, beside infinity. For m = 4 those with fractions keep one digit more
# than 0, 1, -1, 2, -2: 512 channels of random numbers come out 3e-6 off instead of 1e-5, in float32.
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.75, -0.75, 1.5, -1.5)}
# Maps from this length on are cut into tiles of 4 x 4 results. 512 channels on 8 x 8, 8 rows, take 30 ms so and 28 by
# 2 x 2, whose transformed weights take less than half the bytes.
_LONG = 16
# Tiles of a window: so many are made by one product from the numbers that they overlap on.
_TILES = 8
# Operations, of those that the convolution has, that are few enough: its matrix products are larger, and run faster.
_WORTH = 0.6


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(m x m, 3 x 3), float64: `data` (a, a) is B', `filters` (a, 3) is G, `results` (m, a) is A'."""

    data: NDArray[np.float64]
    filters: NDArray[np.float64]
    results: NDArray[np.float64]


@cache
def transforms(tile: int) -> Transforms:
    """By Cook and Toom: polynomials are multiplied by their values at some points, and at infinity.

    Args:
        tile: m, 2 or 4.
    """
    points = _POINTS[tile]
    length = tile + _KERNEL - 1
    data, filters, results = np.zeros((length, length)), np.zeros((length, _KERNEL)), np.zeros((tile, length))
    for place, point in enumerate(points):
        others = [other for other in points if other != point]
        data[place, :-1] = polynomial.polyfromroots(others)
        filters[place] = point ** np.arange(_KERNEL) / np.prod([point - other for other in others])
        results[:, place] = point ** np.arange(tile)
    data[-1] = polynomial.polyfromroots(points)
    filters[-1, -1] = results[-1, -1] = 1.0
    return Transforms(data, filters, results)


@dataclass(frozen=True)
class Axis:
    """How a map is cut along one axis: at once, or, where that would multiply with many zeros, in equal windows.

    Attributes:
        size: Of the map that goes in.
        padding: Zeros before and after it.
        tile: m.
    """

    size: int
    padding: int
    tile: int

    @property
    def kept(self) -> int:
        """Size of the result."""
        return self.size + 2 * self.padding - _KERNEL + 1

    @property
    def windows(self) -> int:
        """How many there are."""
        return -(-self.kept // (self.tile * _TILES))

    @property
    def each(self) -> int:
        """Tiles of a window."""
        return -(-self.kept // (self.tile * self.windows))

    @property
    def count(self) -> int:
        """Tiles of all windows; the last of them may lie behind the result."""
        return self.windows * self.each

    @property
    def reads(self) -> int:
        """Numbers of the map that go into a window."""
        return self.size if self.windows == 1 else self.each * self.tile + _KERNEL - 1

    @property
    def zeros(self) -> tuple[int, int]:
        """That have to be there before and after the map; with one window none, for they are in the matrix."""
        after = self.count * self.tile + _KERNEL - 1 - self.size - self.padding
        return (0, 0) if self.windows == 1 else (self.padding, after)

    def matrix(self) -> NDArray[np.float64]:
        """B' of all tiles of a window: (a tiles, reads)."""
        data = transforms(self.tile).data
        found = np.zeros((len(data), self.each, max(self.each * self.tile + _KERNEL - 1, self.padding + self.size)))
        for number in range(self.each):
            found[:, number, number * self.tile : number * self.tile + len(data)] = data
        first = self.padding if self.windows == 1 else 0
        return found[:, :, first : first + self.reads].reshape(len(data) * self.each, self.reads)

    def places(self) -> NDArray[np.int64]:
        """Where in the map with its zeros each window reads: (windows, reads)."""
        starts = np.arange(self.windows)[:, None] * (self.each * self.tile)
        return starts + np.arange(self.reads)


@dataclass(frozen=True)
class Tiles:
    """How a convolution's maps are cut.

    Attributes:
        ins: Channels that go in.
        outs: Channels that come out.
        sizes: Height and width of the map that goes in.
        padding: Zeros around it, of both axes.
        tile: m.
    """

    ins: int
    outs: int
    sizes: tuple[int, int]
    padding: tuple[int, int]
    tile: int

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Down and across."""
        down, across = (Axis(size, pad, self.tile) for size, pad in zip(self.sizes, self.padding, strict=True))
        return down, across

    @property
    def kept(self) -> tuple[int, int]:
        """Height and width of the result."""
        down, across = self.axes
        return down.kept, across.kept

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles along both axes."""
        down, across = self.axes
        return down.count, across.count

    @property
    def places(self) -> int:
        """Numbers of a transformed tile."""
        return (self.tile + _KERNEL - 1) ** 2

    def operations(self) -> int:
        """Of forward pass and weight gradient, for one row."""
        length, (down, across) = self.tile + _KERNEL - 1, self.axes
        cut = length * down.count * (across.size * down.reads + length * across.count * across.reads) * self.ins
        count = down.count * across.count
        return 2 * (cut + 2 * self.places * count * (self.ins + self.tile**2) * self.outs)


def tiles(
    ins: int,
    outs: int,
    sizes: Sequence[int],
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tiles | None:
    """How to cut a convolution's maps; None for a convolution that is better off as it is, or cannot be done so."""
    if groups != 1 or list(kernel) != [_KERNEL, _KERNEL] or {*stride, *dilation} != {1} or max(padding) >= _KERNEL:
        return None
    (height, width), (above, beside) = sizes, padding
    plain = Tiles(ins, outs, (height, width), (above, beside), tile=2)
    found = Tiles(ins, outs, (height, width), (above, beside), tile=4 if min(plain.kept) >= _LONG else 2)
    if min(found.kept) < 1:
        return None
    direct = 2 * 2 * math.prod(found.kept) * _KERNEL**2 * ins * outs
    return found if found.operations() <= _WORTH * direct else None


def convolution(graph: Graph, x: Value, weight: Value, bias: Value | None, how: Tiles) -> Value:
    """Y (N, O, H', W') of x (N, I, H, W), weight (O, I, 3, 3), bias (O,)."""
    filters = graph.transpose(_filters(graph, weight, how), [0, 2, 1])
    product = _matmul(graph, _data(graph, x, how), filters)
    return _results(graph, product, how, bias)


def weight_gradient(graph: Graph, gradient: Value, x: Value, weight: Value, how: Tiles) -> Value:
    """dL/dW as (O I, 9), from dL/dy (N, O, H', W') and x (N, I, H, W): the numbers lie as the weight's do."""
    matrices = transforms(how.tile)
    (height, width), (down, across), tile = how.kept, how.counts, how.tile
    channel_last = graph.transpose(graph.reshape(gradient, (Rows(1), how.outs, height * width)), [0, 2, 1])
    whole = graph.pad(
        graph.reshape(channel_last, (Rows(1), height, width, how.outs)),
        [0, 0, 0, 0],
        [0, down * tile - height, across * tile - width, 0],
    )
    cut = graph.reshape(whole, (Rows(1), down, tile, across, tile, how.outs))
    by_place = graph.reshape(graph.transpose(cut, [2, 4, 0, 1, 3, 5]), (tile * tile, Rows(down * across * how.outs)))
    spread = graph.constant(np.kron(matrices.results, matrices.results).T, "float32")
    moved = graph.reshape(_matmul(graph, spread, by_place), (how.places, Rows(down * across), how.outs))
    product = _matmul(graph, graph.transpose(moved, [0, 2, 1]), _data(graph, x, how))
    by_filter = graph.transpose(graph.reshape(product, (how.places, how.outs * how.ins)), [1, 0])
    back = graph.constant(np.kron(matrices.filters, matrices.filters), "float32")
    return graph.reshape(graph.gemm(by_filter, back), weight.shape)


def input_gradient(graph: Graph, gradient: Value, weight: Value, how: Tiles) -> Value:
    """dL/dx (N, I, H, W): the convolution of dL/dy (N, O, H', W') with the filters turned round.

    Args:
        graph: Nodes go here.
        gradient: dL/dy.
        weight: (O, I, 3, 3).
        how: Of the convolution itself.
    """
    above, beside = how.padding
    turned = Tiles(how.outs, how.ins, how.kept, (_KERNEL - 1 - above, _KERNEL - 1 - beside), how.tile)
    product = _matmul(graph, _data(graph, gradient, turned), _filters(graph, weight, how, turned=True))
    return _results(graph, product, turned, None)


def _data(graph: Graph, x: Value, how: Tiles) -> Value:
    """B' d B of every tile: (places, N tiles, I)."""
    (height, width), (down, across), length = how.sizes, how.axes, how.tile + _KERNEL - 1
    channel_last = graph.transpose(graph.reshape(x, (Rows(1), how.ins, height * width)), [0, 2, 1])
    (above, below), (left, right) = down.zeros, across.zeros
    whole = graph.reshape(channel_last, (Rows(1), height, width, how.ins))
    padded = graph.pad(whole, [0, above, left, 0], [0, below, right, 0])
    columns = left + width + right
    rows = graph.reshape(padded, (Rows(1), above + height + below, columns * how.ins))
    cut_down = graph.reshape(_cut(graph, rows, down), (Rows(down.windows * length * down.each), columns, how.ins))
    shape = (Rows(1), down.windows, length, down.each, across.windows, length, across.each * how.ins)
    by_place = graph.transpose(graph.reshape(_cut(graph, cut_down, across), shape), [2, 5, 0, 1, 3, 4, 6])
    return graph.reshape(by_place, (how.places, Rows(down.count * across.count), how.ins))


def _cut(graph: Graph, value: Value, axis: Axis) -> Value:
    """B' d of every tile along the middle one of three axes: (N, windows, a tiles, I), one window having no axis."""
    if axis.windows > 1:
        places = graph.constant(axis.places())
        shape = (value.shape[0], axis.windows, axis.reads, value.shape[2])
        value = graph.node("Gather", [value, places], [(shape, value.dtype)], {"axis": 1})[0]
    return _matmul(graph, graph.constant(axis.matrix(), "float32"), value)


def _filters(graph: Graph, weight: Value, how: Tiles, *, turned: bool = False) -> Value:
    """G w G' of every filter: (places, O, I); of filters turned round where that is asked for."""
    outs, ins = weight.shape[:2]
    assert isinstance(outs, int)
    assert isinstance(ins, int)
    once = transforms(how.tile).filters
    matrix = np.kron(once, once)
    flat = graph.transpose(graph.reshape(weight, (outs * ins, _KERNEL**2)), [1, 0])
    made = graph.gemm(graph.constant(matrix[:, ::-1] if turned else matrix, "float32"), flat)
    return graph.reshape(made, (how.places, outs, ins))


def _results(graph: Graph, product: Value, how: Tiles, bias: Value | None) -> Value:
    """A' m A of every tile, joined to maps: (N, O, H', W') of (places, N tiles, O)."""
    (height, width), (down, across), tile = how.kept, how.counts, how.tile
    once = transforms(tile).results
    matrix = graph.constant(np.kron(once, once), "float32")
    made = _matmul(graph, matrix, graph.reshape(product, (how.places, Rows(down * across * how.outs))))
    by_place = graph.reshape(made, (tile, tile, Rows(1), down, across, how.outs))
    joined = graph.transpose(by_place, [2, 3, 0, 4, 1, 5])
    whole = graph.reshape(joined, (Rows(1), down * tile, across * tile, how.outs))
    kept = graph.slice(graph.slice(whole, 1, 0, height), 2, 0, width)
    flat = graph.reshape(kept, (Rows(1), height * width, how.outs))
    if bias is not None:
        flat = flat + bias
    return graph.reshape(graph.transpose(flat, [0, 2, 1]), (Rows(1), how.outs, height, width))


def _matmul(graph: Graph, left: Value, right: Value) -> Value:
    """A product of matrices, of as many as either has."""
    shape = (*(right if len(right.shape) >= len(left.shape) else left).shape[:-2], left.shape[-2], right.shape[-1])
    return graph.node("MatMul", [left, right], [(shape, left.dtype)])[0]
