"""Opening a file that has to be one: no link, pipe or device, which may be somebody else's or never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from edgeff.errors import RunError


def open_plain(path: Path) -> BinaryIO:
    """A stream of the bytes of a regular file.

    Raises:
        RunError: It is something else, or cannot be opened.
    """
    # Without waiting: to open a pipe that nobody writes into would take forever.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RunError(f"`{path}` is no file", hint="a run folder holds files: no links, folders or pipes")
        handle = os.open(path, flags)
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror or error}", hint="see `edgeff fsck`") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RunError(f"`{path}` is no file", hint="a run folder holds files: no links, folders or pipes")
    return os.fdopen(handle, "rb")
