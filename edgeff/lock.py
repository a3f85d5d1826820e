"""A lock on a file that only a living process can hold: it goes with the process, however that ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeff.errors import RunError

# What a file system says that knows no locks, as some network ones: there the run goes on without.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_HELD = frozenset({errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK})
# Far behind the content, which Windows would else let nobody read.
_WINDOWS_OFFSET = 1 << 30


@contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock of a file that exists; its content stays as it is.

    Args:
        path: The file.
        what: It stands for, in messages.

    Raises:
        RunError: Another process holds it, or the file cannot be opened.
    """
    try:
        # Without waiting: to open a pipe would take forever.
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror or error}") from error
    try:
        if not _take(handle):
            raise RunError(
                f"{what} is in use by another process", hint="wait until it ends, or stop it; it writes a checkpoint"
            )
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file."""
    if not os.access(path, os.R_OK):
        return False
    try:
        with locked(path, what="it"):
            return False
    except RunError:
        return True


def _take(handle: int) -> bool:
    """Take the lock; False where another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, _WINDOWS_OFFSET, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True
