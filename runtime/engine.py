"""Running graphs. The only file that imports onnxruntime, and not before an engine is made.

An engine loads a graph from its bytes and binds it to numpy arrays that the caller owns: nothing is copied in or out,
and an output bound to the array of an input is written over it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeff.errors import EngineError
from edgeff.manifest import GraphSpec
from edgeff.runtime.cores import fast_cores

Array = NDArray[Any]

# More threads than this help no model small enough to train on a device, and each costs memory in every session.
MAX_DEFAULT_THREADS = 4
_MOST_THREADS = 1024
_THREADS_HINT = "leave `--threads` out for the fast cores, at most 4"
_ERRORS_ONLY = 3
_FLOAT_BYTES = 4

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}

# An ONNX model (IR 8, opset 13): y = ReduceMax(ConstantOfShape(n)), n int64 [1], y float32 []; tests/test_engine.py
# builds the same bytes. Running it brings onnxruntime's own start-up (kernel registry, schemas, its code) into memory,
# and takes 4 n bytes at once.
_ZEROS_MODEL = (
    b'\x08\x08:l\n\x1b\n\x01n\x12\x05zeros"\x0fConstantOfShape\n&\n\x05zeros\x12\x01y"\tReduceMax*\x0f\n\x08keepdims\x18\x00'
    b"\xa0\x01\x02\x12\x07reserveZ\x0f\n\x01n\x12\n\n\x08\x08\x07\x12\x04\n\x02\x08\x01b\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00B\x04\n\x00\x10\r"
)
# Stretches are as long as what they are needed for, and go back when they are empty and that is asked for; pieces are
# divided to fit. By itself, an arena doubles and keeps.
_ARENA = {"max_mem": 0, "arena_extend_strategy": 1, "max_dead_bytes_per_chunk": 256}
# Taken beyond what is asked for: for tensors of a few bytes whose size the exporter did not know, which would otherwise
# need a stretch of their own.
ARENA_MARGIN = 64 * 1024
# onnxruntime allows one arena in a process, and it cannot be made anew.
_arena_registered = False


@dataclass(frozen=True)
class Port:
    """An input or output of a loaded graph.

    Attributes:
        name: As in the graph.
        shape: Sizes; None where the graph leaves one open (the rows).
        dtype: numpy's name.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Call(Protocol):
    """A graph bound to arrays."""

    def run(self) -> None:
        """Read the input arrays, write the output arrays.

        Raises:
            EngineError: The engine refused.
        """


class Graph(Protocol):
    """A graph that is loaded."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """In the order of the file."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """In the order of the file."""

    def bind(self, arrays: Mapping[str, Array]) -> Call:
        """Bind every input and output to an array, without copying.

        Args:
            arrays: By name; C-contiguous, of the right dtype and shape, and unchanged in place while the call is used.
                An output `new.X` that is not named is bound to the array of `X`. Names that the graph lacks are
                ignored.

        Raises:
            EngineError: An array is missing or does not fit.
        """


class Engine(Protocol):
    """What runs graphs."""

    @property
    def name(self) -> str:
        """Of the engine, with its version, for reports."""

    @property
    def threads(self) -> int:
        """Threads that one operator may use."""

    def reserve(self, size: int) -> None:
        """Keep a stretch of memory in which the graphs run that are loaded from now on, one at a time.

        Args:
            size: Bytes (`Plan.arena_bytes`); 0 gives back what is kept: each run takes what it needs from the system.
        """

    def load(self, model: bytes, name: str) -> Graph:
        """Load a graph.

        Args:
            model: The bytes of an ONNX file.
            name: Of the file, for messages.

        Raises:
            EngineError: The engine refuses it.
        """


class OnnxRuntime:
    """The engine of an ordinary onnxruntime, on the CPU.

    Args:
        threads: Threads for one operator; None for the fast physical cores this process may use, at most 4.

    Raises:
        EngineError: onnxruntime is not installed, or `threads` is below 1.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise EngineError(f"`{threads}` threads cannot run anything, needed 1 or more", hint=_THREADS_HINT)
        if threads is not None and threads > _MOST_THREADS:
            raise EngineError(f"`{threads}` threads are more than {_MOST_THREADS}", hint=_THREADS_HINT)
        self._module = _import_onnxruntime()
        self._native = _Native(self._module)
        self._threads = threads or min(fast_cores(), MAX_DEFAULT_THREADS)
        self._in_arena = False
        self._take_zeros(1)

    @property
    def name(self) -> str:
        """`onnxruntime` and its version."""
        return f"onnxruntime {self._module.__version__}"

    @property
    def threads(self) -> int:
        """Threads that one operator may use."""
        return self._threads

    def reserve(self, size: int) -> None:
        """Keep an arena for graphs; see `Engine.reserve`. What they need beyond it is added as it is needed."""
        if self._in_arena:
            self._take_zeros(1, self._native.shrinking)
        self._in_arena = size > 0
        if size:
            self._native.register_arena()
            # Taken in one piece: of several, none can use what lies free in another.
            self._take_zeros(-(-(size + ARENA_MARGIN) // _FLOAT_BYTES))

    def load(self, model: bytes, name: str) -> _Session:
        """Make a session from the bytes of an ONNX file; see `Engine.load`."""
        try:
            session = self._module.InferenceSession(model, self._options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a dozen classes that share no base of their own
            raise EngineError(
                f"{self.name} refused `{name}`: {_first_line(error)}",
                hint="install a newer onnxruntime, or export the model again",
            ) from error
        return _Session(session, self._native, name)

    def _take_zeros(self, count: int, options: Any = None) -> None:
        """Run a graph that takes so many float32 numbers for a moment."""
        arrays: dict[str, Array] = {"n": np.array([count], np.int64), "y": np.zeros((), np.float32)}
        self.load(_ZEROS_MODEL, "reserve").bind(arrays).run(options)

    def _options(self) -> Any:
        options = self._module.SessionOptions()
        # A session's own arena keeps what it ever took, twice of what is needed. Without, plain malloc with the
        # allocator's thresholds set returns everything after each run, and the system has to zero it for the next.
        options.enable_cpu_mem_arena = self._in_arena
        if self._in_arena:
            options.add_session_config_entry("session.use_env_allocators", "1")
            # Constants would lie in it for as long as their session, between the pieces of every run.
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        # A pattern packs a run's tensors into one block: measured, the same peak, less where a run ends early.
        options.enable_mem_pattern = False
        # To reuse a tensor's piece for one of the same size, it would be kept for as long as no such tensor comes.
        options.enable_mem_reuse = False
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # Waiting threads that spin take the core from the one that works, and drain a battery.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


class _Session:
    """A loaded graph of onnxruntime."""

    def __init__(self, session: Any, native: _Native, name: str) -> None:
        self._session = session
        self._native = native
        self._name = name
        self.inputs = tuple(_port(value) for value in session.get_inputs())
        self.outputs = tuple(_port(value) for value in session.get_outputs())
        self._taken_names = [port.name for port in self.inputs]
        self._given_names = [port.name for port in self.outputs]
        self._given_devices = [native.device] * len(self.outputs)

    def bind(self, arrays: Mapping[str, Array]) -> _BoundSession:
        # Vectors of values, not an `IOBinding`: that keeps every name several times, 11.7 KiB for 21 arrays where these
        # take 5.4, and a deep network has a call for each block.
        values: dict[tuple[str, tuple[int, ...]], tuple[Array, Any]] = {}
        taken = [self._value(values, arrays, port) for port in self.inputs]
        given = [self._value(values, arrays, port) for port in self.outputs]
        # From a list: of a generator's tuple the interpreter would keep the memory, and these are made for every batch.
        held = tuple([array for array, _ in values.values()])
        return _BoundSession(self, self._native.vector(taken), self._native.vector(given), held)

    def run(self, taken: Any, given: Any, options: Any = None) -> None:
        """Run on values in the order of inputs and outputs."""
        try:
            self._session.run_with_ortvaluevector(
                options or self._native.options, self._taken_names, taken, self._given_names, given, self._given_devices
            )
        except Exception as error:
            raise EngineError(f"onnxruntime failed in `{self._name}`: {_first_line(error)}") from error

    def _value(
        self, values: dict[tuple[str, tuple[int, ...]], tuple[Array, Any]], arrays: Mapping[str, Array], port: Port
    ) -> Any:
        """What stands for an array; the same for an input and the output that is written over it."""
        name = port.name if port.name in arrays else port.name.removeprefix("new.")
        array = self._array(arrays, name, port)
        key = (name, array.shape)
        if key not in values:
            values[key] = array, self._native.value(array)
        return values[key][1]

    def _array(self, arrays: Mapping[str, Array], name: str, port: Port) -> Array:
        if name not in arrays:
            raise EngineError(f"`{self._name}` needs an array for `{port.name}`")
        array = arrays[name]
        if name.startswith("gradient.") and array.size == math.prod(size or 0 for size in port.shape):
            # The sum of a weight's gradients is taken as the matrix that its parts come out as.
            array = array.reshape([size or 0 for size in port.shape])
        # The engine gets no more than an address: a wrong shape here would be a wild write there.
        fits = len(array.shape) == len(port.shape) and all(
            needed in (None, got) for needed, got in zip(port.shape, array.shape, strict=True)
        )
        if not fits or array.dtype.name != port.dtype or not array.flags.c_contiguous:
            raise EngineError(
                f"`{self._name}`: `{port.name}` must be {port.dtype} {_shown(port.shape)}, "
                f"got {array.dtype.name} {_shown(array.shape)}{'' if array.flags.c_contiguous else ', not contiguous'}",
                hint="the graph is not the one the manifest describes: export the model again",
            )
        return array


@dataclass(frozen=True)
class _BoundSession:
    session: _Session
    taken: Any
    given: Any
    held: tuple[Array, ...]  # the values have bare addresses: the arrays must not go while they live

    def run(self, options: Any = None) -> None:
        self.session.run(self.taken, self.given, options)


class _Native:
    """What of onnxruntime's compiled module stands for arrays on the CPU."""

    def __init__(self, module: Any) -> None:
        self._state = module.capi._pybind_state
        self.options, self.shrinking = module.RunOptions(), module.RunOptions()
        self.shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.device = self._state.OrtDevice(self._state.OrtDevice.cpu(), self._state.OrtDevice.default_memory(), 0)

    def value(self, array: Array) -> Any:
        """An array as the engine takes it, without a copy."""
        return self._state.OrtValue.ortvalue_from_numpy(array, self.device)

    def register_arena(self) -> None:
        """Give this process its arena, if it has none."""
        global _arena_registered
        if not _arena_registered:
            state = self._state
            place = state.OrtMemoryInfo("Cpu", state.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, state.OrtMemType.DEFAULT)
            state.create_and_register_allocator(place, state.OrtArenaCfg(_ARENA))
            _arena_registered = True

    def vector(self, values: Sequence[Any]) -> Any:
        """Several of them."""
        found = self._state.OrtValueVector()
        found.reserve(len(values))
        for value in values:
            found.push_back(value)
        return found


def check_graph(graph: Graph, spec: GraphSpec) -> None:
    """Compare a loaded graph with what the manifest says of it.

    Raises:
        EngineError: Other inputs or outputs.
    """
    for role, ports, needed in (("input", graph.inputs, spec.inputs), ("output", graph.outputs, spec.outputs)):
        got = [port.name for port in ports]
        if sorted(got) != sorted(needed):
            wrong = sorted(set(got) ^ set(needed))
            state = "lacks" if wrong[0] in needed else "has an unknown"
            raise EngineError(
                f"`{spec.file}` {state} {role} `{wrong[0]}`",
                hint="the graph is not the one the manifest describes: export the model again",
            )


def _import_onnxruntime() -> Any:
    # From 1.29 on onnxruntime tells its makers over the network how it is used, unless this stands in the environment
    # when it is loaded. Nothing of a run leaves the device; without, 2 MiB, a thread and a file are spared too.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("no onnxruntime is installed", hint='run `pip install "edgeff[device]"`') from error
    return onnxruntime


def _port(value: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return Port(value.name, shape, _DTYPES.get(value.type, value.type))


def _shown(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("rows" if size is None else str(size) for size in shape) + ")"


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")
