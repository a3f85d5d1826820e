"""How long a burst is, and which settings a contender runs at: the fastest that a short search finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from audit_peers import Skipped

Settings = Mapping[str, Any]
# Rows per second at some settings and a micro-batch; raises `Skipped`.
Speed = Callable[[Settings, int], float]


@dataclass(frozen=True)
class Variant:
    """Settings to try, each with some micro-batches.

    Attributes:
        sizes: Ascending.
        settings: Of the runtime.
    """

    sizes: Sequence[int]
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What was tried: settings, micro-batch, rows per second there."""

    settings: Settings
    micro_batch: int
    rows_per_s: float


def sizes_of(batch: int, fixed: int | None = None) -> list[int]:
    """The micro-batches to try: powers of two that divide the batch, and itself; or the one that is given.

    >>> sizes_of(24)
    [1, 2, 4, 8, 24]
    >>> sizes_of(24, 32)
    [24]
    """
    if fixed is not None:
        return [min(fixed, batch)]
    return sorted({batch, *(2**power for power in range(batch.bit_length()) if batch % 2**power == 0)})


def calibrated(burst: Callable[[int], float], target_s: float) -> int:
    """How many updates take about so many seconds; at least 1. Bursts become longer until one is a fifth of that."""
    updates = 1
    while (seconds := burst(updates)) < target_s / 5:
        updates = max(updates + 1, min(10 * updates, round(updates * target_s / (2 * seconds))))
    return max(1, round(updates * target_s / seconds))


def fastest(speed: Speed, variants: Sequence[Variant]) -> Choice:
    """The fastest variant at its fastest micro-batch.

    The first variant begins at its largest micro-batch and goes down until two in a row are slower than the best. Each
    further one begins where the best is so far, and looks at the next sizes on both sides as long as that helps.

    Raises:
        Skipped: None can be had; with the reason of the first.
    """
    best: Choice | None = None
    reason: Skipped | None = None
    for variant in variants:
        start = variant.sizes[-1] if best is None else _nearest(variant.sizes, best.micro_batch)
        try:
            found = climb(speed, variant, start, patience=2 if best is None else 1)
        except Skipped as error:
            reason = reason or error
            continue
        if best is None or found.rows_per_s > best.rows_per_s:
            best = found
    if best is None:
        raise reason or Skipped("there is nothing to try")
    return best


def _nearest(sizes: Sequence[int], wanted: int) -> int:
    return min(sizes, key=lambda size: max(size, wanted) / min(size, wanted))


def refined(speed: Speed, best: Choice, changes: Sequence[Settings]) -> Choice:
    """The best choice, with each change of its settings that makes it faster."""
    for change in changes:
        settings = {**best.settings, **change}
        try:
            found = Choice(settings, best.micro_batch, speed(settings, best.micro_batch))
        except Skipped:
            continue
        if found.rows_per_s > best.rows_per_s:
            best = found
    return best


def climb(speed: Speed, variant: Variant, start: int, *, patience: int) -> Choice:
    """The fastest micro-batch from a start downwards, then upwards, each until so many in a row are not faster.

    Raises:
        Skipped: None could be had; with the reason of the start.
    """
    place = variant.sizes.index(start)
    best: Choice | None = None
    reason: Skipped | None = None
    for way in (variant.sizes[place::-1], variant.sizes[place + 1 :]):
        slower = 0
        for size in way:
            try:
                found = Choice(variant.settings, size, speed(variant.settings, size))
            except Skipped as error:
                reason, found = reason or error, Choice(variant.settings, size, 0.0)
            if found.rows_per_s > (best.rows_per_s if best else 0.0):
                best, slower = found, 0
            else:
                slower += 1
            if slower == patience:
                break
    if best is None:
        raise reason or Skipped("no micro-batch to try")
    return best
