"""Groups of blocks that learn from a batch one after another, so that only one group's gradients are summed at a time.

No gradient crosses a block's edge, so what a block learns from a batch depends on the weights before it alone. The last
group learns first: the blocks before it run forward, and are as they were when it is their turn. The result is that of
all blocks at once; what it costs are forward passes, one more over a block for every group behind its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# All blocks at once.
ONE_GROUP = (0,)


def spans(groups: Sequence[int], count: int) -> list[range]:
    """The blocks of each group.

    Args:
        groups: The block that each begins with, the first of all first.
        count: Of all blocks.

    >>> spans((0, 2), 5)
    [range(0, 2), range(2, 5)]
    """
    return [range(start, stop) for start, stop in zip(groups, (*groups[1:], count), strict=True)]


def largest_group(sizes: Sequence[int], groups: Sequence[int]) -> int:
    """The most that one group adds up to.

    >>> largest_group([3, 1, 2, 2], (0, 1))
    5
    """
    return max(sum(sizes[block] for block in span) for span in spans(groups, len(sizes)))


def groupings(sizes: Sequence[int], last_cut: int, worth: int) -> Iterator[tuple[int, ...]]:
    """Ways to group blocks, from all at once to the smallest largest group, each worth its forward passes.

    Of those whose largest group is as small, the one with the fewest forward passes: each group begins as early as it
    can.

    Args:
        sizes: Of each block.
        last_cut: The last block that a group may begin with.
        worth: By how much the largest group of each way must be smaller than that of the one before.

    Yields:
        The block that each group begins with.

    >>> list(groupings([2, 2, 4, 4], last_cut=3, worth=4))
    [(0,), (0, 2), (0, 2, 3)]
    """
    found: tuple[int, ...] | None = ONE_GROUP
    while found is not None:
        yield found
        found = _within(sizes, last_cut, largest_group(sizes, found) - max(1, worth))


def _within(sizes: Sequence[int], last_cut: int, most: int) -> tuple[int, ...] | None:
    """The fewest groups of at most that size, each beginning as early as it can; None where one block is larger."""
    starts: list[int] = []
    size = sum(sizes[last_cut:])
    for block in range(last_cut, 0, -1):
        if size + sizes[block - 1] > most:
            starts.append(block)
            size = 0
        size += sizes[block - 1]
    groups = (0, *reversed(starts))
    return groups if largest_group(sizes, groups) <= most else None
