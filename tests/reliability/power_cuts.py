"""What a disk may hold after the power went: every prefix of a run's writes, torn and in another order.

A run's changes of files are recorded. A file's bytes are sure to be on the disk once the file was forced there, and a
name once its folder was; of what was done since, a cut leaves any part: of names any of the changes, in any choice, of
bytes none, all, half, or zeros in their place. Each such state must open as what was saved last or before that.
"""

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgeff import disk

# Of more changes of names that are not forced to the disk, not every choice is tried but so many at random.
_MOST_CHOICES = 16
_TORN = ("none", "all", "half", "zeros")


@dataclass
class Recorder:
    """Records every change of files while the real ones are made too.

    Attributes:
        changes: In order; `(operation, name, ...)`. Files are told apart by a number, as names change.
        marks: What the caller noted, by how many changes had been made.
    """

    changes: list[tuple] = field(default_factory=list)
    marks: list[tuple[int, object]] = field(default_factory=list)

    def install(self, patch) -> None:
        """Put it in place of the real disk."""
        real_write, real_truncate, changes = disk.RawFile.write, disk.RawFile.truncate, self.changes

        def write(raw, data):
            changes.append(("write", Path(raw.name).name, raw.tell(), bytes(data)))
            return real_write(raw, data)

        def truncate(raw, size=None):
            changes.append(("truncate", Path(raw.name).name, raw.tell() if size is None else size))
            return real_truncate(raw, size)

        patch(disk.RawFile, "write", write)
        patch(disk.RawFile, "truncate", truncate)
        for name in ("create", "sync", "replace", "remove", "sync_folder"):
            patch(disk, name, self._recording(name, getattr(disk, name)))

    def mark(self, note: object) -> None:
        """Note something at this point."""
        self.marks.append((len(self.changes), note))

    def _recording(self, operation, real):
        def change(*arguments):
            result = real(*arguments)
            names = [Path(getattr(argument, "name", argument)).name for argument in arguments]
            self.changes.append((operation, *names))
            return result

        return change


@dataclass
class _File:
    safe: bytes = b""
    now: bytearray = field(default_factory=bytearray)


class Disk:
    """What is in memory of a disk and what is safe on it, change by change."""

    def __init__(self) -> None:
        self.now: dict[str, _File] = {}  # by name, as a process sees it
        self.safe: dict[str, _File] = {}
        self.pending: list[tuple] = []  # changes of names since the folder was forced to the disk

    def apply(self, change: tuple) -> None:
        """Make one change."""
        operation, name, *rest = change
        if operation == "create":
            self.now[name] = _File()
            self.pending.append(("create", name, self.now[name]))
        elif operation == "write":
            offset, data = rest
            content = self.now[name].now
            content.extend(b"\0" * max(0, offset - len(content)))
            content[offset : offset + len(data)] = data
        elif operation == "truncate":
            del self.now[name].now[rest[0] :]
        elif operation == "sync":
            self.now[name].safe = bytes(self.now[name].now)
        elif operation == "replace":
            self.now[rest[0]] = self.now.pop(name)
            self.pending.append(("replace", name, rest[0], self.now[rest[0]]))
        elif operation == "remove":
            if self.now.pop(name, None):
                self.pending.append(("remove", name))
        elif operation == "sync_folder":
            self.safe, self.pending = dict(self.now), []

    def cuts(self, rng: random.Random) -> Iterator[dict[str, bytes]]:
        """What may be found when the power comes back: content by name."""
        for chosen in self._choices(rng):
            names = dict(self.safe)
            for change in chosen:
                _apply_name(names, change)
            torn = any(file.safe != bytes(file.now) for file in names.values())
            for how in _TORN if torn else ("all",):
                yield {name: _torn(file, how) for name, file in names.items()}

    def _choices(self, rng: random.Random) -> Iterator[list[tuple]]:
        count = len(self.pending)
        every = list(itertools.product((False, True), repeat=min(count, 12)))
        picked = every if len(every) <= _MOST_CHOICES else [every[0], every[-1], *rng.sample(every, _MOST_CHOICES - 2)]
        for choice in picked:
            yield [change for change, kept in zip(self.pending, choice, strict=False) if kept]


def _apply_name(names: dict[str, _File], change: tuple) -> None:
    """Do to the names on the disk what one change that reached it does, whatever of those before it did."""
    operation, name, *rest = change
    if operation == "create":
        names[name] = rest[0]
    elif operation == "replace":
        # The new name is there with the file; the old one is gone with it.
        if names.get(name) is rest[1]:
            del names[name]
        names[rest[0]] = rest[1]
    else:
        names.pop(name, None)


def _torn(file: _File, how: str) -> bytes:
    new = bytes(file.now)
    if how == "all" or new == file.safe:
        return new
    if how == "none":
        return file.safe
    if how == "half":
        return new[: len(new) // 2]
    # The length came, the bytes did not.
    return file.safe[: len(new)] + b"\0" * max(0, len(new) - len(file.safe))


def states(recorder: Recorder, seed: int, part: float = 1.0) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Every state that a cut may leave, with the number of changes that had been made; `part` of them at random."""
    rng, found = random.Random(seed), Disk()
    for number, change in enumerate(recorder.changes):
        found.apply(change)
        for content in found.cuts(rng):
            if rng.random() < part:
                yield number + 1, content


def write_state(folder: Path, content: dict[str, bytes]) -> None:
    """Make a folder hold just these files."""
    folder.mkdir(exist_ok=True)
    for name in os.listdir(folder):
        if name not in content:
            (folder / name).unlink()
    for name, data in content.items():
        (folder / name).write_bytes(data)
