"""Running graphs. The only file that imports onnxruntime, and not before an engine is made.

An engine loads a graph from its bytes and binds it to numpy arrays that the caller owns: nothing is copied in or out,
and an output bound to the array of an input is written over it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from edgeff.errors import EngineError, one_line
from edgeff.manifest import GraphSpec
from edgeff.providers import CPU
from edgeff.runtime.arrays import Array, Port, fitting
from edgeff.runtime.cores import fast_cores
from edgeff.runtime.device_memory import Copies, DeviceCall, DeviceMemory
from edgeff.runtime.providers import (
    KINDS,
    RECORD,
    Placement,
    ProviderKind,
    check_started,
    choose,
    load_libraries,
    placement_of,
    plugin_devices,
)

# More threads than this help no model small enough to train on a device, and each costs memory in every session.
MAX_DEFAULT_THREADS = 4
_MOST_THREADS = 1024
_THREADS_HINT = "leave `--threads` out for the fast cores, at most 4"
_ERRORS_ONLY = 3
# Lays maps out in blocks of channels for pooling on x86, by a copy of each that nobody planned and no time gained.
_LAYOUT_PASS = "NchwcTransformer"
TRAINING_PACKAGE = "onnxruntime.training"
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


Moments = Literal["sums", "means"]


class Engine(Protocol):
    """What runs graphs."""

    @property
    def name(self) -> str:
        """Of the engine, with its version, for reports."""

    @property
    def threads(self) -> int:
        """Threads that may work at once."""

    @property
    def provider(self) -> ProviderKind:
        """What runs operators."""

    @property
    def placements(self) -> Mapping[str, Placement | None]:
        """Of the graphs loaded so far, by name; empty on the CPU, where there is nothing to tell."""

    @property
    def copies(self) -> Copies:
        """Made so far between the runtime's memory and a device's."""

    @property
    def keeps_gradients(self) -> bool:
        """Whether sums of gradients are its own business, rather than arrays of the runtime."""

    @property
    def has_copies(self) -> bool:
        """Whether it has copies of weights and state beside the runtime's arrays."""

    @property
    def moments(self) -> Moments:
        """How the state of AdamW stands in the runtime's arrays: as sums, or as means like in its paper."""

    def memory(self) -> DeviceMemory | None:
        """Memory of a device, for graphs that run one after another; None where they run in the runtime's arrays."""

    def reserve(self, size: int) -> None:
        """Keep a stretch of memory in which the graphs run that are loaded from now on.

        Args:
            size: Bytes (`Plan.arena_bytes`); 0 gives back what is kept: each run takes what it needs from the system.
        """

    def load(self, model: bytes, name: str, memory: DeviceMemory | None = None, *, threads: int | None = None) -> Graph:
        """Load a graph.

        Args:
            model: The bytes of an ONNX file.
            name: Of the file, for messages.
            memory: What `memory` gave, shared by graphs that read what others wrote.
            threads: That one operator may use; None for all of the engine's.

        Raises:
            EngineError: The engine refuses it.
        """


class OnnxRuntime:
    """The engine of an ordinary onnxruntime.

    Args:
        threads: Threads that may work at once; None for the fast physical cores this process may use, at most 4.
        provider: What runs operators.

    Attributes:
        provider: What runs operators.
        placements: Of the graphs loaded so far, by name; empty on the CPU, where there is nothing to tell.
        copies: Made between the runtime's memory and a device's.

    Raises:
        EngineError: onnxruntime is not installed, or `threads` is below 1.
    """

    # Whether sums of gradients are its own business, rather than arrays of the runtime.
    keeps_gradients = False
    # How the state of AdamW stands in the runtime's arrays.
    moments: Moments = "sums"

    def __init__(self, threads: int | None = None, provider: str | ProviderKind = CPU) -> None:
        if threads is not None and threads < 1:
            raise EngineError(f"`{threads}` threads cannot run anything, needed 1 or more", hint=_THREADS_HINT)
        if threads is not None and threads > _MOST_THREADS:
            raise EngineError(f"`{threads}` threads are more than {_MOST_THREADS}", hint=_THREADS_HINT)
        self._module = import_onnxruntime()
        self.native = Native(self._module)
        self._threads = threads or min(fast_cores(), MAX_DEFAULT_THREADS)
        self._in_arena = False
        self.provider = KINDS[CPU]
        self.placements: dict[str, Placement | None] = {}
        self.copies = Copies()
        self._devices: list[Any] = []
        self._take_zeros(1)
        self.provider = choose(provider, self._module) if isinstance(provider, str) else provider
        self._devices = plugin_devices(self.provider, self._module)
        load_libraries(self.provider, self._module)
        if self.provider.name != CPU and not self._devices:
            self._open(_ZEROS_MODEL, "start", None)  # refused now, where the provider does not start

    @property
    def name(self) -> str:
        """`onnxruntime` and its version."""
        return f"onnxruntime {self._module.__version__}"

    @property
    def threads(self) -> int:
        """Threads that may work at once."""
        return self._threads

    def reserve(self, size: int) -> None:
        """Keep an arena for graphs; see `Engine.reserve`. What they need beyond it is added as it is needed."""
        if self._in_arena:
            self._take_zeros(1, self.native.shrinking)
        self._in_arena = size > 0
        if size:
            self.native.register_arena()
            # Taken in one piece: of several, none can use what lies free in another.
            self._take_zeros(-(-(size + ARENA_MARGIN) // _FLOAT_BYTES))

    @property
    def has_copies(self) -> bool:
        """Whether a device, or what new values are written to first, has weights beside the runtime's arrays."""
        return self.provider.memory != CPU or not self.provider.in_place

    def memory(self) -> DeviceMemory | None:
        """Memory of the provider's device; see `Engine.memory`."""
        return None if self.provider.memory == CPU else DeviceMemory(self._module, self.provider.memory, self._count)

    def _count(self, copies: Copies) -> None:
        self.copies += copies

    def load(
        self, model: bytes, name: str, memory: DeviceMemory | None = None, *, threads: int | None = None
    ) -> _Session:
        """Make a session from the bytes of an ONNX file; see `Engine.load`."""
        opened = self._open(model, name, memory, threads)
        if self.provider.name != CPU:
            self.placements[name] = placement_of(opened.session)
        return opened

    def _open(self, model: bytes, name: str, memory: DeviceMemory | None, threads: int | None = None) -> _Session:
        options = self.session_options()
        options.intra_op_num_threads = threads or self._threads
        providers: list[str] | None = list(dict.fromkeys((self.provider.full, KINDS[CPU].full)))
        if self._devices:
            options.add_provider_for_devices(self._devices, {})
            providers = None
        if self.provider.name != CPU:
            options.add_session_config_entry(RECORD, "1")
        try:
            session = self._module.InferenceSession(
                model, options, providers=providers, disabled_optimizers=[_LAYOUT_PASS]
            )
        except Exception as error:  # onnxruntime raises a dozen classes that share no base of their own
            raise EngineError(
                f"{self.name} refused `{name}`: {one_line(error)}",
                hint="install a newer onnxruntime, or export the model again",
            ) from error
        if not self._devices:  # which were found to be there
            check_started(self.provider, session)
        if memory is not None:
            return _DeviceSession(session, self.native, name, memory)
        kind = _Session if self.provider.in_place else _ApartSession
        return kind(session, self.native, name)

    def _take_zeros(self, count: int, options: Any = None) -> None:
        """Run a graph that takes so many float32 numbers for a moment."""
        arrays: dict[str, Array] = {"n": np.array([count], np.int64), "y": np.zeros((), np.float32)}
        self._open(_ZEROS_MODEL, "reserve", None).bound(arrays).run(options)

    def session_options(self) -> Any:
        """Of a session, as the engine's settings are now."""
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

    def __init__(self, session: Any, native: Native, name: str) -> None:
        self.session = session
        self._native = native
        self._name = name
        self.inputs = tuple(_port(value) for value in session.get_inputs())
        self.outputs = tuple(_port(value) for value in session.get_outputs())
        self._taken_names = [port.name for port in self.inputs]
        self._given_names = [port.name for port in self.outputs]
        self._given_devices = [native.device] * len(self.outputs)

    def bind(self, arrays: Mapping[str, Array]) -> Call:
        return self.bound(arrays)

    def bound(self, arrays: Mapping[str, Array]) -> _BoundSession:
        """A call on arrays; each output is written where it belongs at once."""
        # Vectors of values, not an `IOBinding`: that keeps every name several times, 11.7 KiB for 21 arrays where these
        # take 5.4, and a deep network has a call for each block.
        values, held = self._native.values(self._name, (*self.inputs, *self.outputs), arrays)
        vector, split = self._native.vector, len(self.inputs)
        return _BoundSession(self, vector(values[:split]), vector(values[split:]), held)

    def run(self, taken: Any, given: Any, options: Any = None) -> None:
        """Run on values in the order of inputs and outputs."""
        try:
            self.session.run_with_ortvaluevector(
                options or self._native.options, self._taken_names, taken, self._given_names, given, self._given_devices
            )
        except Exception as error:
            raise EngineError(f"onnxruntime failed in `{self._name}`: {one_line(error)}") from error


class _DeviceSession(_Session):
    """A loaded graph that runs on a device with memory of its own."""

    def __init__(self, session: Any, native: Native, name: str, memory: DeviceMemory) -> None:
        super().__init__(session, native, name)
        self._memory = memory

    def bind(self, arrays: Mapping[str, Array]) -> Call:
        return DeviceCall(self.session, self._name, self.inputs, self.outputs, arrays, self._memory)


class _ApartSession(_Session):
    """A loaded graph whose new values are written beside the old ones, and over them once it has run."""

    def bind(self, arrays: Mapping[str, Array]) -> Call:
        renewed = {}
        for port in self.outputs:
            name = port.name if port.name in arrays else port.name.removeprefix("new.")
            if name != port.name or self._over_rows(name, arrays):
                old = fitting(self._name, port, name, arrays)
                renewed[port.name] = (old, np.empty_like(old))
        beside = {name: new for name, (_, new) in renewed.items()}
        return _RenewingCall(self.bound({**arrays, **beside}), tuple(renewed.values()))

    def _over_rows(self, name: str, arrays: Mapping[str, Array]) -> bool:
        """Whether what is handed over takes the place of the rows that it comes from."""
        return name == "handover" and "x" in arrays and np.may_share_memory(arrays[name], arrays["x"])


@dataclass(frozen=True)
class _RenewingCall:
    call: Call
    renewed: tuple[tuple[Array, Array], ...]

    def run(self) -> None:
        self.call.run()
        for old, new in self.renewed:
            old[...] = new


@dataclass(frozen=True)
class _BoundSession:
    session: _Session
    taken: Any
    given: Any
    held: tuple[Array, ...]  # the values have bare addresses: the arrays must not go while they live

    def run(self, options: Any = None) -> None:
        self.session.run(self.taken, self.given, options)


class Native:
    """What of onnxruntime's compiled module stands for arrays on the CPU."""

    def __init__(self, module: Any) -> None:
        self._state = module.capi._pybind_state
        self.options, self.shrinking = module.RunOptions(), module.RunOptions()
        self.shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.device = self._state.OrtDevice(self._state.OrtDevice.cpu(), self._state.OrtDevice.default_memory(), 0)

    def values(
        self, graph: str, ports: Sequence[Port], arrays: Mapping[str, Array]
    ) -> tuple[list[Any], tuple[Array, ...]]:
        """The arrays of some ports as the engine takes them, without a copy, and those that they must not outlive.

        An input and the output that is written over it have the same value.

        Raises:
            EngineError: An array is missing or does not fit.
        """
        made: dict[tuple[str, tuple[int, ...]], tuple[Array, Any]] = {}
        values = []
        for port in ports:
            name = port.name if port.name in arrays else port.name.removeprefix("new.")
            array = fitting(graph, port, name, arrays)
            key = (name, array.shape)
            if key not in made:
                made[key] = array, self._state.OrtValue.ortvalue_from_numpy(array, self.device)
            values.append(made[key][1])
        # From a list: of a generator's tuple the interpreter would keep the memory, and these are made for every batch.
        return values, tuple([array for array, _ in made.values()])

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


def import_onnxruntime() -> Any:
    """The package, quiet towards the network, and without what it would import of others.

    Raises:
        EngineError: It is not installed.
    """
    # From 1.29 on onnxruntime tells its makers over the network how it is used, unless this stands in the environment
    # when it is loaded. Nothing of a run leaves the device; without, 2 MiB, a thread and a file are spared too.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # The training build looks there first, for what needs PyTorch and is not used here: 230 MiB where that is.
    hidden = "onnxruntime" not in sys.modules and TRAINING_PACKAGE not in sys.modules
    if hidden:
        sys.modules[TRAINING_PACKAGE] = None  # type: ignore[assignment]
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("no onnxruntime is installed", hint='run `pip install "edgeff[device]"`') from error
    finally:
        if hidden:
            del sys.modules[TRAINING_PACKAGE]
    return onnxruntime


def _port(value: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return Port(value.name, shape, _DTYPES.get(value.type, value.type))
