"""Progress of long work on stderr: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click

_PLAIN_EVERY_S = 10.0


class ProgressLine:
    """One line that is renewed in place, or printed every ten seconds where stderr is not a terminal.

    Args:
        label: What is being done.
        total: Steps in all.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = max(1, total)
        self.terminal = sys.stderr.isatty()
        self._last = time.monotonic()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            click.echo("", err=True)

    def show(self, done: int, text: str) -> None:
        """Show how far it is."""
        if self.terminal:
            filled = 24 * done // self.total
            bar = "#" * filled + "-" * (24 - filled)
            click.echo(f"\r{self.label} [{bar}] {done}/{self.total}  {text}\x1b[K", err=True, nl=False)
        elif time.monotonic() - self._last >= _PLAIN_EVERY_S:
            self._last = time.monotonic()
            click.echo(f"{self.label} {done}/{self.total}  {text}", err=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        click.echo(f"\r{text}\x1b[K" if self.terminal else text, err=True)
