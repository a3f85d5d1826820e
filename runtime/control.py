"""A file by which a run is told, while it runs, what it may take: `{"budget": "12MiB"}`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from edgeff.errors import EdgeffError
from edgeff.units import parse_bytes

_LARGEST = 4096


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
            ValueError: It holds something else; said once for each change.
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
            with self.path.open("rb") as stream:
                asked = json.loads(stream.read(_LARGEST))
            text = asked["budget"]
            budget = parse_bytes(text) if isinstance(text, str) else text
        except (OSError, ValueError, KeyError, TypeError, EdgeffError) as error:
            raise self._nonsense() from error
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
            raise self._nonsense()
        return budget

    def _nonsense(self) -> ValueError:
        return ValueError(f'`{self.path}` is not understood and is ignored; write for example {{"budget": "12MiB"}}')
