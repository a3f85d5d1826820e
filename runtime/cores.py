"""The processor cores that are worth a thread."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

# Where Linux tells of each core; on ARM also how fast it is next to the fastest, which has 1024.
CPUS = Path("/sys/devices/system/cpu")
# A core below this part of the fastest one would be waited for: an operator's work is divided into equal parts.
_FAST = 0.6


def fast_cores(root: Path = CPUS, usable: Sequence[int] | None = None) -> int:
    """Physical cores that this process may use, without the slow ones of a machine that has two kinds.

    Args:
        root: Folder with a `cpu<N>` for each core; where it does not tell, every logical core counts.
        usable: Numbers of the cores that may be used; None for those of this process.
    """
    cpus = _usable_cpus() if usable is None else usable
    siblings = {cpu: _text(root / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    capacity = {cpu: _capacity(root, cpu) for cpu in cpus}
    return len({siblings[cpu] for cpu in _fastest(capacity)})


def _fastest(capacity: Mapping[int, int]) -> list[int]:
    least = _FAST * max(capacity.values())
    return [cpu for cpu, value in capacity.items() if value >= least]


def _capacity(root: Path, cpu: int) -> int:
    text = _text(root / f"cpu{cpu}/cpu_capacity")
    return int(text) if text.isdigit() else 1024


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _usable_cpus() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)
