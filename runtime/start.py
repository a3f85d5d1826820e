"""The beginning of a process that trains: everything that belongs to the floor is loaded, then measuring begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Imported for the floor alone: numpy loads the first two when they are first used, which would be counted as training.
import numpy.ma
import numpy.random  # noqa: F401

import edgeff.data
import edgeff.runtime.adapt
import edgeff.runtime.methods  # noqa: F401
from edgeff.engines import ONNXRUNTIME, ORT_TRAINING
from edgeff.errors import EngineError
from edgeff.providers import AUTO, CPU
from edgeff.runtime.allocator import AllocatorMode, return_free_memory, set_lean_allocator
from edgeff.runtime.engine import OnnxRuntime, import_onnxruntime
from edgeff.runtime.meter import Meter
from edgeff.runtime.ort_training import OrtTraining
from edgeff.runtime.pages import return_code_pages
from edgeff.runtime.providers import KINDS, available, choose


def start(
    threads: int | None,
    *,
    engine: str = ONNXRUNTIME,
    provider: str = CPU,
    profile: Callable[[], Sequence[tuple[str, str]]] = tuple,
    lean: bool = False,
) -> tuple[OnnxRuntime, Meter, AllocatorMode]:
    """Set the allocator, start the engine, and measure from here on.

    Args:
        threads: Of the engine; None for its default.
        engine: What updates blocks (`edgeff.engines`).
        provider: Name of what runs operators, or `auto` (`edgeff.runtime.providers`).
        profile: Gives the device's providers, for `auto`; asked only where there is something to choose.
        lean: Give back the program code that only starting up needed. Not done unasked: how much of it goes depends on
            what other processes use of it, and some comes back while training.

    Raises:
        EngineError: No onnxruntime is installed, or not the one that the engine needs; there is no such provider.
    """
    allocator = set_lean_allocator()
    kind = OrtTraining if engine == ORT_TRAINING else OnnxRuntime
    module = import_onnxruntime()
    # An engine for updates of its own runs on the CPU: there, what the device has besides does not matter.
    choosing = provider == AUTO and engine == ONNXRUNTIME and len(available(module)) > 1
    chosen = choose(provider, module, profile() if choosing else ())
    try:
        started = kind(threads, chosen)
    except EngineError:
        if not choosing or chosen.name == CPU:
            raise
        chosen = KINDS[CPU]  # nobody asked for that provider by name
        started = kind(threads, chosen)
    return_free_memory()
    if lean and return_code_pages():
        # Started again: what starting a session needs belongs to the floor, what importing needed does not.
        started = kind(threads, chosen)
    return started, Meter(), allocator
