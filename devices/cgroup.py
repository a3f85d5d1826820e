"""What a control group leaves a process: containers and services see the RAM of the host but may not use it.

Both versions are read (older container hosts still mount version 1), and every level from the process's own group up to
the mount point counts: the tightest one holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeff.devices.kernel import read_text

# Version 1 writes "no limit" as the largest page-aligned number; nothing near it is meant as a limit.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True)
class MemoryLimit:
    """One level's limit and what its processes hold of it.

    Attributes:
        limit_bytes: What they may hold.
        used_bytes: What they hold, less file cache that can be dropped.
    """

    limit_bytes: int
    used_bytes: int

    @property
    def room_bytes(self) -> int:
        """What is left."""
        return max(self.limit_bytes - self.used_bytes, 0)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _groups(root: Path) -> dict[str, str]:
    """The process's group by controller of version 1, and by "" for version 2."""
    groups = {}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        groups.update(dict.fromkeys(controllers.split(","), group))
    return groups


def _levels(mount: Path, group: str) -> Iterator[Path]:
    """Folders from the group up to the mount point. Inside a container the group's path often exists only outside."""
    parts = PurePosixPath(group).parts[1:]
    if ".." in parts:
        parts = ()
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _folders(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Every folder that may limit the process, with the version of its files."""
    groups, mount = _groups(root), root / "sys/fs/cgroup"
    for unified in (mount, mount / "unified"):
        yield from ((2, folder) for folder in _levels(unified, groups.get("", "/")))
    yield from ((1, folder) for folder in _levels(mount / controller, groups.get(controller, "/")))


def _droppable_bytes(folder: Path, key: str) -> int:
    """File cache that the kernel drops before it refuses memory; `MemAvailable` counts it as available too."""
    for line in (read_text(folder / "memory.stat") or "").splitlines():
        name, _, count = line.partition(" ")
        if name == key:
            return _number(count) or 0
    return 0


def _memory_level(version: int, folder: Path) -> MemoryLimit | None:
    limit_file, used_file, cache_key = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    # Above `memory.high` a process is not refused memory, but slowed down until it does not go on.
    limits = [_number(read_text(folder / name)) for name in (limit_file, *(("memory.high",) if version == 2 else ()))]
    limit_bytes = min((limit for limit in limits if limit is not None), default=_NO_LIMIT_BYTES)
    if limit_bytes >= _NO_LIMIT_BYTES:
        return None
    used_bytes = _number(read_text(folder / used_file)) or 0
    return MemoryLimit(limit_bytes, max(used_bytes - _droppable_bytes(folder, cache_key), 0))


def memory_limit(root: Path) -> MemoryLimit | None:
    """The level that leaves the least memory; None where nothing limits it."""
    levels = (_memory_level(version, folder) for version, folder in _folders(root, "memory"))
    return min((level for level in levels if level), key=lambda level: level.room_bytes, default=None)


def _cpu_level(version: int, folder: Path) -> float | None:
    if version == 2:
        quota_text, _, period_text = (read_text(folder / "cpu.max") or "").partition(" ")
    else:
        quota_text = read_text(folder / "cpu.cfs_quota_us") or ""
        period_text = read_text(folder / "cpu.cfs_period_us") or ""
    quota, period = _number(quota_text), _number(period_text)
    return quota / period if quota and period else None


def cpu_limit(root: Path) -> float | None:
    """Processors' worth of time that the process may take; None where nothing limits it."""
    levels = (_cpu_level(version, folder) for version, folder in _folders(root, "cpu"))
    return min((level for level in levels if level), default=None)
