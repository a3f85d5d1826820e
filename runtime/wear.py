"""What a run writes to its disk, planned and bounded: flash cards wear out by being written to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from edgeff.manifest import Manifest
from edgeff.runtime.plan_parts import Plan
from edgeff.runtime.settings import AdaptSettings

_HOUR_S = 3600.0
# A run may write at once what it may write in this time.
_AT_ONCE_S = 300.0


@dataclass(frozen=True)
class PlannedWrites:
    """What a run will write, headers of files left out.

    Attributes:
        checkpoint_bytes: Of the largest checkpoint.
        best_bytes: Of the best weights, which are written when they are judged to be it.
        feature_bytes: Of files of features (schedule `stage`) in all.
        most_bytes: Of the whole run, if nothing made it wait and every judgement were the best.
        bound_bytes_per_hour: For checkpoints and best weights together: a checkpoint waits until it is within it. None
            for no bound.
    """

    checkpoint_bytes: int
    best_bytes: int
    feature_bytes: int
    most_bytes: int
    bound_bytes_per_hour: int | None

    @property
    def checkpoint_every_s(self) -> float:
        """Seconds from one checkpoint to the next that the bound allows in the long run; 0 without a bound."""
        bound = self.bound_bytes_per_hour
        return self.checkpoint_bytes * _HOUR_S / bound if bound else 0.0


def planned_writes(
    manifest: Manifest, settings: AdaptSettings, plan: Plan, *, updates: int, bound: int | None
) -> PlannedWrites:
    """What a run by a plan will write.

    Args:
        manifest: Of the artifact.
        settings: Of the run.
        plan: Made for them.
        updates: Of an epoch.
        bound: Bytes per hour; None for none.
    """
    trained = [block for block, part in zip(manifest.blocks, plan.blocks, strict=True) if part.trained]
    weights = sum(block.weight_bytes for block in manifest.blocks)
    states = [block.state_bytes for block in trained]
    now_and_then = settings.epochs * updates // settings.checkpoint_steps if settings.checkpoint_steps else 0
    if plan.schedule == "stage":
        each = [block.weight_bytes + state for block, state in zip(trained, states, strict=True)]
        saved = sum(each) * (now_and_then + settings.epochs) + sum(block.weight_bytes for block in trained)
        rounds = len(trained)
    else:
        each = [weights + sum(states)]
        saved, rounds = each[0] * (now_and_then + settings.epochs), settings.epochs
    return PlannedWrites(
        checkpoint_bytes=max(each),
        best_bytes=weights,
        feature_bytes=plan.written_bytes,
        most_bytes=saved + weights * (rounds + 1) + plan.written_bytes,
        bound_bytes_per_hour=bound,
    )


class WriteBound:
    """Says whether a checkpoint may be written now.

    Args:
        bytes_per_hour: In the long run; None for no bound.
        clock: Seconds, of a clock that nobody sets.
    """

    def __init__(self, bytes_per_hour: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = None if bytes_per_hour is None else bytes_per_hour / _HOUR_S
        self._clock = clock
        self._last = clock()
        self._left = (self._rate or 0.0) * _AT_ONCE_S

    def allows(self, nbytes: int) -> bool:
        """Whether so many bytes may be written now."""
        if self._rate is None:
            return True
        now = self._clock()
        # What was not used counts for the next few minutes and not for ever; a larger checkpoint saves up for itself.
        most = max(self._rate * _AT_ONCE_S, float(nbytes))
        self._left = min(self._left + (now - self._last) * self._rate, most)
        self._last = now
        return self._left >= nbytes

    def count(self, nbytes: int) -> None:
        """So many were written."""
        self._left -= nbytes
