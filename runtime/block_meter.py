"""What each block takes while it runs, measured: by how much the resident peak rises during its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeff.runtime.meter import Meter

# The first updates are measured, and then one in so many: it takes some reads of the kernel's files for every run.
_FIRST, _EVERY = 3, 200


class BlockMeter:
    """Measures the runs of blocks and keeps the largest of each.

    Args:
        meter: Of the process.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._rises: dict[int, int] = {}
        self._since: dict[int, int] = {}

    @property
    def rises(self) -> Mapping[int, int]:
        """By number of the block, the most bytes that a run of it added to what was resident before it."""
        return self._rises

    def measure(self, block: int, step: int, run: Callable[[], None]) -> None:
        """Run, and measure if `step` is one of those that are measured."""
        if step >= self._since.setdefault(block, step) + _FIRST and step % _EVERY:
            run()
            return
        self._rises[block] = max(self._rises.get(block, 0), self._meter.rise(run))

    def forget(self) -> None:
        """Begin anew, with another plan."""
        self._rises.clear()
        self._since.clear()
