"""The stretch of memory in which a graph's tensors find room as onnxruntime's arena places them.

The arena hands out pieces of one stretch, the smallest free piece that is large enough, and joins neighbours that are
free. What lies between tensors that are alive cannot always be used, so that the stretch is longer than what is alive
at once (`edgeff.export.memory`). Between two runs it is empty: where each tensor comes to lie is the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from edgeff.export.memory import Tensors, last_reads, run_order, tensors_of
from edgeff.manifest import Line

# Pieces begin at multiples of this (onnxruntime's `BFCArena::kMinAllocationSize`).
GRAIN = 256
# Micro-batches at which tensors are placed; between two of them the pieces fit in the same way.
ROWS = tuple(2**power for power in range(8))
# For `apply`, which goes over this many numbers in a run, or what is left of them.
UPDATED_NUMBERS = (1024, 64 * 1024)
_ENDLESS = 2**62


def arena_line(model: onnx.ModelProto, rows: Sequence[int] = ROWS) -> Line:
    """A line in the micro-batch that is above the stretch at every one of `rows`.

    Args:
        model: With `value_info` for its inner tensors, nodes in the order of its file.
        rows: Micro-batches, ascending.
    """
    tensors = tensors_of(model)
    order = run_order(tensors.sources, tensors.ends)
    lengths = [stretch(tensors, order, count) for count in rows]
    slope = max(0, -(-(lengths[-1] - lengths[0]) // max(1, rows[-1] - rows[0])))
    above = max(length - slope * count for length, count in zip(lengths, rows, strict=True))
    return Line(max(0, above), slope)


def stretch(tensors: Tensors, order: Sequence[int], rows: int) -> int:
    """Bytes from the beginning of the stretch to the end of the last piece ever used."""
    sizes = [_rounded(one.at(rows)) for one in tensors.held]
    arena, lying = Arena(), dict[int, int]()
    for node, ending in zip(order, last_reads(tensors, order), strict=True):
        for number in tensors.makes[node]:
            lying[number] = arena.take(sizes[number])
        own = _rounded(tensors.workspace[node].at(rows))
        if own:
            arena.give_back(arena.take(own), own)
        for number in ending:
            arena.give_back(lying.pop(number), sizes[number])
    return arena.length


class Arena:
    """Places pieces best fit first.

    Attributes:
        length: Bytes up to the end of the last piece that was ever taken.
    """

    def __init__(self) -> None:
        self.length = 0
        self._free = {0: _ENDLESS}  # begin -> bytes

    def take(self, size: int) -> int:
        """Where a piece of `size` bytes comes to lie."""
        begin = min((begin for begin, free in self._free.items() if free >= size), key=lambda b: (self._free[b], b))
        left = self._free.pop(begin) - size
        if left:
            self._free[begin + size] = left
        self.length = max(self.length, begin + size)
        return begin

    def give_back(self, begin: int, size: int) -> None:
        """Free a piece, and join it with what is free beside it."""
        size += self._free.pop(begin + size, 0)
        before = next((other for other, free in self._free.items() if other + free == begin), None)
        if before is None:
            self._free[begin] = size
        else:
            self._free[before] += size


def _rounded(size: int) -> int:
    return -(-size // GRAIN) * GRAIN
