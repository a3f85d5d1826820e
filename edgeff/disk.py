"""Every change that is made to files which must outlive a power cut: one function each, and the bytes counted.

One place, so that what a run writes to a flash card is known, and so that tests can let any single change fail, be cut
short, or be the last before the power goes.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import BinaryIO, cast

_written = 0


class RawFile(io.FileIO):
    """A file without a buffer, whose written bytes are counted."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Write some or all of the bytes; how many is returned, as for every raw file."""
        global _written
        count = super().write(data)
        _written += count or 0
        return count


def written_bytes() -> int:
    """Bytes that this process has written through this module; names and the file system's own are not counted."""
    return _written


def create(path: Path) -> BinaryIO:
    """A new, empty file to write; what was there under the name is gone."""
    return cast(BinaryIO, io.BufferedWriter(RawFile(path, "wb")))


def reopen(path: Path) -> BinaryIO:
    """A file that exists, to write on in."""
    return cast(BinaryIO, io.BufferedWriter(RawFile(path, "r+b")))


def sync(stream: BinaryIO) -> None:
    """Force what was written to a stream to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def replace(source: Path, target: Path) -> None:
    """Give a file another name; a file that had it is gone."""
    os.replace(source, target)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing."""
    path.mkdir(parents=True)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can do that."""
    if os.name == "nt":  # Windows opens no folders; its file system keeps a journal of names.
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems (network, FUSE) have no such thing and say so.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
