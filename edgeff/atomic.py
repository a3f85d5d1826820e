"""Writing a file so that a power cut leaves the old one or the new one, never a part of either."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgeff import disk
from edgeff.errors import RunError

_HINTS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EROFS: "the file system is read-only; write to another folder",
    errno.EACCES: "you may not write there; choose another folder or change its rights",
    errno.EPERM: "you may not write there; choose another folder or change its rights",
    errno.ENOENT: "make the folder first",
    errno.EIO: "the disk or card may be failing; what was there before is untouched",
}


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; see `atomic_file`.

    Raises:
        RunError: It cannot be written; what was at `path` is untouched.
    """
    with atomic_file(path) as stream:
        stream.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A stream to write a file through, which takes its name only when the block ends without an error.

    The bytes go to `.<name>.tmp` in the same folder, are forced to the disk, and then renamed over `path`; the folder
    is forced to the disk too, without which the new name may be lost with the power. For one writer at a time. After a
    power cut at most that one temporary file is left, and the next write takes its place.

    Raises:
        RunError: It cannot be written; what was at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with disk.create(temporary) as stream:
                yield stream
                disk.sync(stream)
            disk.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        disk.sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses into an error that names the path.

    Raises:
        RunError: The system refused.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write `{path}`: {error_text(error)}", hint=write_hint(error)) from error


def error_text(error: OSError) -> str:
    """What the system says, in lower case as part of a sentence, without a full stop."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def write_hint(error: OSError) -> str:
    """What to do when the system refused to write; empty where nobody can know."""
    return _HINTS.get(error.errno or 0, "")


def _remove(temporary: Path) -> None:
    """Remove a temporary file if it can be: the error on the way is the one to report."""
    try:
        disk.remove(temporary)
    except OSError:
        return
