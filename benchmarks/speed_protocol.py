"""What the speed benchmark and its workers say to each other: a line of JSON each, on stdin and stdout.

A worker builds its network and makes one update, in which runtimes compile and choose kernels. Then it says

    {"ready": true, "version": "2.13.0", "micro_batch": 32, "floor_bytes": 301989888}

and answers each line that it is given: `{"updates": 20}` with `{"seconds": 1.03}` for so many updates on batches that
lie in memory, `{"end": true}` with `{"training_bytes": 73400320, "settings": {}}`, after which it ends, as it does when
its stdin is closed. A worker that cannot go on ends with another status than 0, its last line on stderr says why.

Training bytes are those of `audit_protocol`: the most that was resident since the floor, which is taken after imports
with two batches in memory. Imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO


@dataclass(frozen=True)
class Ready:
    """What a worker says once its first update is done.

    Attributes:
        version: Of its runtime.
        micro_batch: Rows that go through the network at once.
        floor_bytes: Resident before there was anything of the network.
    """

    version: str
    micro_batch: int
    floor_bytes: int


@dataclass(frozen=True)
class Taken:
    """What a worker says at its end.

    Attributes:
        training_bytes: The most that was resident over the floor.
        settings: Further facts for the row.
    """

    training_bytes: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def answers() -> TextIO:
    """Stdout for answers alone: what libraries print goes to stderr from here on. Called before they are imported."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def serve(channel: TextIO, ready: Ready, burst: Callable[[int], float], taken: Callable[[], Taken]) -> None:
    """Answer until the end is asked for, or stdin is closed.

    Args:
        channel: Of `answers`.
        ready: Said first.
        burst: Makes so many updates; the seconds they took.
        taken: Called at the end.
    """
    _say(channel, {"ready": True, **asdict(ready)})
    for line in sys.stdin:
        asked = json.loads(line)
        if "updates" not in asked:
            _say(channel, asdict(taken()))
            return
        _say(channel, {"seconds": burst(asked["updates"])})


def _say(channel: TextIO, answer: Mapping[str, Any]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()
