"""The beginning of a process that trains: everything that belongs to the floor is loaded, then measuring begins."""

from __future__ import annotations

# Imported for the floor alone: numpy loads the first two when they are first used, which would be counted as training.
import numpy.ma
import numpy.random  # noqa: F401

import edgeff.data
import edgeff.runtime.adapt
import edgeff.runtime.methods  # noqa: F401
from edgeff.runtime.allocator import AllocatorMode, return_free_memory, set_lean_allocator
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.meter import Meter
from edgeff.runtime.pages import return_code_pages


def start(threads: int | None, *, lean: bool = False) -> tuple[OnnxRuntime, Meter, AllocatorMode]:
    """Set the allocator, start the engine, and measure from here on.

    Args:
        threads: Of the engine; None for its default.
        lean: Give back the program code that only starting up needed. Not done unasked: how much of it goes depends on
            what other processes use of it, and some comes back while training.

    Raises:
        EngineError: No onnxruntime is installed.
    """
    allocator = set_lean_allocator()
    engine = OnnxRuntime(threads)
    return_free_memory()
    if lean and return_code_pages():
        # Started again: what starting a session needs belongs to the floor, what importing needed does not.
        engine = OnnxRuntime(threads)
    return engine, Meter(), allocator
