"""A file by which a run is told, while it runs, what it may take: `{"budget": "12MiB"}`."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from edgeff.errors import EdgeffError
from edgeff.units import parse_bytes

_LONGEST = 4096
# More than any machine has, and as much as the system's own counters hold.
_MOST_BYTES = 2**63 - 1


@dataclass
class Control:
    """Watches the file; it need not be there.

    Attributes:
        path: Of the file. Write it whole (a new file, renamed to this name): half a line is nonsense.
    """

    path: Path
    _seen: tuple[int, int, int] = field(default=(0, 0, 0))

    def budget(self) -> int | None:
        """The bytes it asks for, if the file is new or changed; None otherwise.

        Raises:
            ValueError: It holds something else, or cannot be read; said once for each change.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        now = (status.st_mtime_ns, status.st_size, status.st_ino)
        if now == self._seen:
            return None
        self._seen = now
        try:
            # A pipe would let the run wait for who writes into it.
            budget = _budget_in(self._content()) if stat.S_ISREG(status.st_mode) else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, EdgeffError) as error:
            raise self._nonsense() from error
        if budget is None:
            raise self._nonsense()
        return budget

    def _content(self) -> bytes:
        with self.path.open("rb") as stream:
            return stream.read(_LONGEST)

    def _nonsense(self) -> ValueError:
        return ValueError(f'`{self.path}` is not understood and is ignored; write for example {{"budget": "12MiB"}}')


def _budget_in(content: bytes) -> int | None:
    """The bytes that a file's content asks for; None where that is no budget."""
    text = json.loads(content)["budget"]
    budget = parse_bytes(text) if isinstance(text, str) else text
    if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget <= _MOST_BYTES:
        return None
    return budget
