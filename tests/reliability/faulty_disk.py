"""A disk that fails, is cut short, or is the last thing before the power goes: faults in any single change of a file.

Every change that a run makes goes through `edgeff.disk`; here each is counted, and one of them is made to fail.
"""

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeff import disk

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS}
# `kill` comes before the change, `kill-half` in the middle of a write and after everything else; `short` writes half of
# what it is asked to write and says so, which is no error.
KINDS = ("kill", "kill-half", "short", *ERRORS)
OPERATIONS = ("write", "sync", "replace", "remove", "make_folder", "sync_folder")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class FaultyDisk:
    """Lets the change number `at` (from 0) fail as `kind` says, and all that follow it up to `until`.

    Attributes:
        at: Number of the change; None for none.
        kind: One of `KINDS`.
        length: How many changes fail, one after another.
        log: What was changed, in order: operation and name of the file.
    """

    at: int | None = None
    kind: str = "kill"
    length: int = 1
    log: list[tuple[str, str]] = field(default_factory=list)
    injected: int = 0

    def install(self, patch: Callable[[object, str, object], None] = setattr) -> None:
        """Put it in place of the real one."""
        real_write = disk.RawFile.write
        faulty = self

        def write(raw, data):
            return faulty._write(lambda part: real_write(raw, part), data, os.path.basename(str(raw.name)))

        patch(disk.RawFile, "write", write)
        for name in OPERATIONS[1:]:
            patch(disk, name, self._faulty(name, getattr(disk, name)))

    def _hit(self, operation: str, name: str) -> bool:
        number = len(self.log)
        self.log.append((operation, name))
        hit = self.at is not None and self.at <= number < self.at + self.length
        self.injected += hit
        return hit

    def _write(self, write, data, name):
        if not self._hit("write", name):
            return write(data)
        if self.kind == "kill":
            _kill()
        half = memoryview(data).cast("B")[: max(1, len(data) // 2)]
        if self.kind == "kill-half":
            write(half)
            _kill()
        if self.kind == "short":
            return write(half)
        raise OSError(ERRORS[self.kind], os.strerror(ERRORS[self.kind]))

    def _faulty(self, operation, real):
        def change(*arguments):
            if not self._hit(operation, os.path.basename(str(getattr(arguments[0], "name", arguments[0])))):
                return real(*arguments)
            if self.kind == "kill":
                _kill()
            if self.kind in ERRORS:
                raise OSError(ERRORS[self.kind], os.strerror(ERRORS[self.kind]))
            result = real(*arguments)
            if self.kind == "kill-half":
                _kill()
            return result

        return change
