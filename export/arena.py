"""The stretch of memory in which a graph's tensors find room as onnxruntime's arena places them.

The arena hands out pieces of one stretch, the smallest free piece that is large enough, and joins neighbours that are
free. What lies between tensors that are alive cannot always be used, so that the stretch is longer than what is alive
at once (`edgeff.export.memory`). Between two runs it is empty: where each tensor comes to lie is the same in every run.

What is free at the end is a piece like the others, and taken first where it is the smallest that is large enough. So a
graph that fits into a stretch need not fit into a longer one, and a few rows less not into what was kept for more rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from edgeff.export.memory import Tensors, last_reads, run_order, tensors_of
from edgeff.manifest import Line

# Pieces begin at multiples of this (onnxruntime's `BFCArena::kMinAllocationSize`).
GRAIN = 256
# Micro-batches at which tensors are placed: up to three rows less may need a longer stretch, for what is left beside
# grains goes with the remainder by four. Between two of them pieces fit in much the same way.
ROWS = tuple(sorted({2**power - less for power in range(8) for less in range(4) if 2**power > less}))
# For `apply`, which goes over this many numbers in a run, or what is left of them.
UPDATED_NUMBERS = (1024, 64 * 1024)
_ENDLESS = 2**62
# Lengths that a graph does not fit into are known less exactly than where its tensors lie: by this part of them
# onnxruntime was seen to need more.
_INEXACT = 1 / 16
# Nodes that are placed in looking for a shorter length: seconds for a large network. Of thousands of steps the last
# gain little, and a graph of all layers of one would take an hour for all of them.
VISITS = 400_000


def arena_line(model: onnx.ModelProto, rows: Sequence[int] = ROWS) -> Line:
    """A line in the micro-batch that is long enough at every one of `rows` and for those of them that are fewer.

    Args:
        model: With `value_info` for its inner tensors, nodes in the order of its file.
        rows: Micro-batches, ascending.
    """
    tensors = tensors_of(model)
    order = run_order(tensors.sources, tensors.ends)
    lengths = [enough(tensors, order, count) for count in rows]
    slope = max(0, -(-(lengths[-1] - lengths[0]) // max(1, rows[-1] - rows[0])))
    above = max(length - slope * count for length, count in zip(lengths, rows, strict=True))
    return Line(max(0, above), slope)


def enough(tensors: Tensors, order: Sequence[int], rows: int, visits: int = VISITS) -> int:
    """Bytes of a stretch that is long enough, as is every longer one; the shortest such, as far as `visits` go."""
    moves = _moves(tensors, order, rows)
    arena = _placed(moves, _ENDLESS)
    shortest, length = arena.length, arena.same_from
    for _ in range(visits // max(1, len(order))):
        if length <= shortest:
            break
        arena = _placed(moves, length - 1)
        if not arena.fits:
            break
        length = arena.same_from
    return shortest if length <= shortest else length + int(shortest * _INEXACT)


def stretch(tensors: Tensors, order: Sequence[int], rows: int) -> int:
    """Bytes from the beginning of an endless stretch to the end of the last piece ever used."""
    return placed(tensors, order, rows).length


def placed(tensors: Tensors, order: Sequence[int], rows: int, end: int = _ENDLESS) -> Arena:
    """A stretch of `end` bytes as a run leaves it, or as it was when something did not fit."""
    return _placed(_moves(tensors, order, rows), end)


# Of a node: the tensors that it makes with their bytes, its workspace, and the tensors that nobody needs after it.
_Move = tuple[Sequence[tuple[int, int]], int, Sequence[tuple[int, int]]]


def _moves(tensors: Tensors, order: Sequence[int], rows: int) -> list[_Move]:
    sizes = [_rounded(one.at(rows)) for one in tensors.held]
    return [
        (
            [(number, sizes[number]) for number in tensors.makes[node]],
            _rounded(tensors.workspace[node].at(rows)),
            [(number, sizes[number]) for number in ending],
        )
        for node, ending in zip(order, last_reads(tensors, order), strict=True)
    ]


def _placed(moves: Sequence[_Move], end: int) -> Arena:
    arena, lying = Arena(end), dict[int, int]()
    for makes, own, ending in moves:
        for number, size in makes:
            lying[number] = arena.take(size)
        if own:
            arena.pass_through(own)
        if not arena.fits:
            break
        for number, size in ending:
            arena.give_back(lying.pop(number), size)
    return arena


class Arena:
    """Places pieces best fit first.

    Args:
        end: Bytes of the stretch.

    Attributes:
        length: Bytes up to the end of the last piece that was ever taken.
        fits: Nothing had to be placed behind the end.
        same_from: The shortest stretch in which all pieces so far lie where they do in this one.
    """

    def __init__(self, end: int = _ENDLESS) -> None:
        self.length = 0
        self.fits = True
        self.same_from = 0
        self._end = end
        self._free = {0: end}  # begin -> bytes
        self._begins = {end: 0}  # end -> begin, of the same pieces

    def take(self, size: int) -> int:
        """Where a piece of `size` bytes comes to lie; behind the end, where no free piece is large enough."""
        begin = self._place(size)
        if begin is None:
            return self._end
        left = self._free.pop(begin) - size
        if left:
            self._free[begin + size] = left
            self._begins[begin + size + left] = begin + size
        else:
            del self._begins[begin + size]
        return begin

    def pass_through(self, size: int) -> None:
        """Take a piece and give it back at once."""
        self._place(size)

    def give_back(self, begin: int, size: int) -> None:
        """Free a piece, and join it with what is free beside it."""
        end = begin + size + self._free.pop(begin + size, 0)
        begin = self._begins.pop(begin, begin)
        self._free[begin] = end - begin
        self._begins[end] = begin

    def _place(self, size: int) -> int | None:
        """The smallest free piece that is large enough, the first of several; None where there is none."""
        found: int | None = None
        smallest = 0
        for begin, free in self._free.items():
            if free >= size and (found is None or free < smallest or (free == smallest and begin < found)):
                found, smallest = begin, free
        if found is None:
            self.fits = False
            return None
        self.same_from = max(self.same_from, self._shortest(found, size))
        self.length = max(self.length, found + size)
        return found

    def _shortest(self, begin: int, size: int) -> int:
        """The shortest stretch in which a piece of `size` bytes is taken at `begin`, as in this one."""
        last = self._begins.get(self._end, self._end)
        if begin == last:
            return begin + size
        # A shorter piece at the end would be taken first, unless it is too short.
        return last + self._free[begin] if self._end - last >= self._free[begin] else 0


def _rounded(size: int) -> int:
    return -(-size // GRAIN) * GRAIN
