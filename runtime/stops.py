"""Reasons to stop a run before its end: a signal, time, a number of updates, a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# A reason in words to stop now; empty to go on. Asked between micro-batches.
Stop = Callable[[], str]


class Interrupted(Exception):
    """Work was left where nothing is lost by it, because there is a reason to stop."""


def never() -> str:
    """No reason."""
    return ""


@dataclass
class StopConditions:
    """When to stop. Call it for the reason.

    Attributes:
        max_seconds: From now on, by a clock that nobody sets; None for no limit.
        max_steps: Updates from now on, counted by `count_step`; None for no limit.
        pause_file: Stop while there is such a file; None for none.
        signals: Names of signals that were received; others append to it.
    """

    max_seconds: float | None = None
    max_steps: int | None = None
    pause_file: Path | None = None
    signals: list[str] = field(default_factory=list)
    _began: float = field(default_factory=lambda: time.monotonic())
    _steps: int = 0

    def count_step(self) -> None:
        """An update was made."""
        self._steps += 1

    def __call__(self) -> str:
        """The reason to stop, or nothing."""
        if self.signals:
            return f"by {self.signals[0]}"
        if self.max_steps is not None and self._steps >= self.max_steps:
            return f"after the {self.max_steps} updates asked for"
        if self.max_seconds is not None and time.monotonic() - self._began >= self.max_seconds:
            return f"after the {self.max_seconds:g} s asked for"
        if self.pause_file is not None and os.path.lexists(self.pause_file):
            return f"because `{self.pause_file}` is there"
        return ""
