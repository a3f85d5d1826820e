"""Giving back the program code that only starting up needed.

Importing Python modules and starting onnxruntime reads many pages of shared libraries once. They count as resident
until the system wants them back. They are copies of what is on the disk, so that they can be given back without loss;
what is needed again comes back by itself.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

# What comes back of it while training, at most: the growth of RssFile over runs of the reference networks.
RETURNING_CODE_BYTES = 7 * 2**20

_MAPS = Path("/proc/self/maps")
_MADV_PAGEOUT = 21  # Linux 5.4 and later; on another system the call fails and nothing happens


def return_code_pages() -> bool:
    """Give back what is resident of files that are mapped read-only; returns whether the system took any."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        mappings = list(file_mappings(_MAPS.read_text()))
    except (OSError, AttributeError, TypeError):
        return False
    taken = [madvise(start, end - start, _MADV_PAGEOUT) == 0 for start, end in mappings]
    return any(taken)


def file_mappings(maps: str) -> Iterator[tuple[int, int]]:
    r"""Addresses of the read-only mappings of files, out of the text of `/proc/self/maps`.

    >>> list(file_mappings("1000-3000 r-xp 0 08:01 77 /lib/libc.so\n4000-5000 rw-p 0 00:00 0 [heap]\n"))
    [(4096, 12288)]
    """
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/") and fields[1].startswith("r") and "w" not in fields[1]:
            start, _, end = fields[0].partition("-")
            yield int(start, 16), int(end, 16)
