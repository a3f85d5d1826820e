"""The C allocator's settings, which move the measured peak more than the planner can.

With glibc's defaults, activations of a run stay in the heap after they are freed and the next run finds them in the
wrong
places: the resident peak of one and the same step graph was between 5 and 16 activations over five runs. With a fixed
    limit
above which each block of memory is its own mapping, it was 4.0 in every run, which is what the graph holds at once.
"""

from __future__ import annotations

import ctypes
import gc
import os
from dataclasses import dataclass
from functools import cache

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# Setting either also stops glibc from raising them by itself as blocks are freed.
THRESHOLD_BYTES = 65536
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@dataclass(frozen=True)
class AllocatorMode:
    """What the allocator was set to, for the report of a run.

    Attributes:
        name: `glibc, thresholds 65536`, `glibc, from the environment` or `system default`.
        lean: Freed memory goes back to the system at once, so that planned and measured bytes can agree.
    """

    name: str
    lean: bool


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  (looking the symbol up tells glibc from musl and others)
    except (OSError, TypeError, AttributeError):  # TypeError: Windows has no such handle
        return None
    return library


def set_lean_allocator() -> AllocatorMode:
    """Give large blocks back to the system as soon as they are freed, where the C library is glibc.

    Settings that the user made in the environment are left alone.
    """
    library = _glibc()
    if library is None:
        return AllocatorMode("system default", lean=False)
    if any(name in os.environ for name in _VARIABLES):
        return AllocatorMode("glibc, from the environment", lean=all(name in os.environ for name in _VARIABLES))
    done = [library.mallopt(option, THRESHOLD_BYTES) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)]
    if not all(done):
        return AllocatorMode("system default", lean=False)
    return AllocatorMode(f"glibc, thresholds {THRESHOLD_BYTES}", lean=True)


def return_free_memory() -> None:
    """Give freed small blocks back too: a closed onnxruntime session leaves nothing but those.

    Python keeps freed tuples for later, in lists that grow by some with every epoch; collecting empties them.
    """
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
