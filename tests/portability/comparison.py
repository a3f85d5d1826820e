"""Losses of two runs over the same rows, compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# Of each update, the loss of every block by its name.
Losses = Sequence[Mapping[str, float]]
# Another library sums in another order, and twenty updates carry that on.
TOLERANCE = 1e-4


def largest_difference(expected: Losses, got: Losses) -> float:
    """The largest difference of two losses, relative to the one that was expected; Inf where one is not a number.

    Raises:
        ValueError: Another number of updates, or other blocks.

    >>> largest_difference([{"a": 2.0}], [{"a": 2.5}])
    0.25
    """
    if len(got) != len(expected):
        raise ValueError(f"{len(got)} updates, needed {len(expected)}")
    largest = 0.0
    for step, (needed, found) in enumerate(zip(expected, got, strict=True), start=1):
        if found.keys() != needed.keys():
            raise ValueError(f"update {step} has losses of {', '.join(found)}, needed {', '.join(needed)}")
        largest = max(largest, *(_relative(needed[block], found[block]) for block in needed))
    return largest


def _relative(expected: float, got: float) -> float:
    difference = abs(got - expected) / abs(expected) if expected else abs(got)
    return difference if math.isfinite(difference) else math.inf  # NaN is larger than nothing
