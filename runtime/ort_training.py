"""The engine of onnxruntime-training 1.19.2: each block's update by its `Module`, `Optimizer` and `CheckpointState`.

What is no update (the forward graphs of frozen blocks and of evaluations) runs as on any onnxruntime, which the package
is too. It keeps weights, gradients and moments of its own while a block is trained; `TrainingGraphs.settle` brings the
runtime's arrays up to date, and only then do these count.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeff.artifact import Artifact
from edgeff.engines import ORT_TRAINING, WHEELS
from edgeff.errors import EngineError, one_line
from edgeff.manifest import BlockSpec, GraphKind
from edgeff.providers import CPU
from edgeff.runtime.arrays import Array, Port
from edgeff.runtime.buffers import Buffers
from edgeff.runtime.engine import (
    TRAINING_PACKAGE,
    Call,
    Graph,
    OnnxRuntime,
    import_onnxruntime,
)
from edgeff.runtime.memory import BlockMemory
from edgeff.runtime.network import Graphs, Network
from edgeff.runtime.ort_checkpoint import checkpoint_bytes, read_moments
from edgeff.runtime.providers import ProviderKind

_HINT = (
    'run `pip install "onnxruntime-training-cpu==1.19.2"` in an environment without `onnxruntime`, '
    "or leave `--engine ort-training` out: any onnxruntime trains the artifact"
)


class OrtTraining(OnnxRuntime):
    """The engine of onnxruntime-training, on the CPU.

    Args:
        threads: As for `OnnxRuntime`.
        provider: None or the CPU's: there is no package for another.

    Raises:
        EngineError: onnxruntime-training is not installed, or another provider is asked for.
    """

    keeps_gradients = True
    has_copies = True
    moments = "means"

    def __init__(self, threads: int | None = None, provider: ProviderKind | None = None) -> None:
        if provider is not None and provider.name != CPU:
            raise EngineError(
                f"the engine `{ORT_TRAINING}` runs on the CPU, not on the provider `{provider.name}`",
                hint="leave `--provider` out, or `--engine`: the plain graphs run on any provider that trains",
            )
        self.api = _import_api()
        super().__init__(threads)

    @property
    def name(self) -> str:
        """`onnxruntime-training` and its version."""
        return f"onnxruntime-training {self._module.__version__}"


class TrainingGraphs(Graphs):
    """The graphs of a network whose trained blocks are updated by onnxruntime-training.

    Args:
        network: Its engine is an `OrtTraining`.
        trained: Numbers of the blocks to train.
        step: Updates made so far.
    """

    def __init__(self, network: Network, trained: Sequence[int], step: int) -> None:
        super().__init__(network.artifact, network.engine)
        engine = network.engine
        assert isinstance(engine, OrtTraining)
        self._sessions = {
            block: _BlockSession(engine, network.artifact, network.memory(block), step) for block in trained
        }

    def of(self, block: int, kind: GraphKind) -> Graph:
        """A graph of a block."""
        if kind == "accumulate":
            return self._sessions[block]
        return super().of(block, kind)

    def updates(self, blocks: Sequence[int], buffers: Buffers) -> list[BlockUpdate]:
        """The updates of some blocks."""
        return [BlockUpdate(self._sessions[block], buffers) for block in blocks]

    def settle(self) -> None:
        """Write weights and moments into the runtime's arrays."""
        for session in self._sessions.values():
            session.settle()


@dataclass(frozen=True)
class BlockUpdate:
    """The update of one block."""

    session: _BlockSession
    buffers: Buffers

    def run(self) -> None:
        """Update, and begin a new sum of gradients."""
        self.session.update(float(self.buffers.scalars["learning_rate"]))


class _BlockSession:
    """A trained block inside onnxruntime-training."""

    def __init__(self, engine: OrtTraining, artifact: Artifact, memory: BlockMemory, step: int) -> None:
        spec = memory.spec
        self._engine, self._memory = engine, memory
        self._name = spec.graphs["accumulate"].file
        files = [spec.graphs[kind].file for kind in ("accumulate", "apply")]
        api = engine.api
        content = _checkpoint_of(memory, step)
        with _passed_file(content) as checkpoint, _on_disk(artifact, files) as paths, _telling(self._name):
            self._state = api.CheckpointState.load_checkpoint(checkpoint)
            self._module = api.Module(paths[0], self._state, session_options=engine.session_options())
            self._optimizer = api.Optimizer(paths[1], self._module)
        known = _ports(spec, len(artifact.manifest.classes))
        self.inputs = tuple(known[name] for name in self._module.input_names())
        self.outputs = tuple(known[name] for name in self._module.output_names())

    def __del__(self) -> None:
        # Before the module: an optimiser that outlives it ends the process.
        self.__dict__.pop("_optimizer", None)

    def bind(self, arrays: Mapping[str, Array]) -> Call:
        """A call on the arrays of a micro-batch; see `Graph.bind`."""
        native, split = self._engine.native, len(self.inputs)
        values, held = native.values(self._name, (*self.inputs, *self.outputs), arrays)
        vector = native.vector
        return _TrainStep(self._module, vector(values[:split]), vector(values[split:]), held, self._name)

    def update(self, learning_rate: float) -> None:
        """Update the weights by what was summed, and begin a new sum."""
        with _telling(self._name):
            self._optimizer.set_learning_rate(learning_rate)
            self._optimizer.step()
            self._module.lazy_reset_grad()

    def settle(self) -> None:
        """Write weights and moments into the runtime's arrays."""
        arrays, spec = self._memory.arrays, self._memory.spec
        for tensor in spec.parameters:
            name = f"parameter.{tensor.name}"
            arrays[name][...] = self._state.parameters[name].data
        if not spec.slots:
            return
        with _telling(self._name), _passed_file(b"") as path:
            self._engine.api.CheckpointState.save_checkpoint(self._state, path, include_optimizer_state=True)
            moments = read_moments(Path(path).read_bytes())
        for tensor in spec.parameters:
            for slot, moment in zip(spec.slots, moments[f"parameter.{tensor.name}"], strict=True):
                arrays[f"state.{slot}.{tensor.name}"][...] = moment.reshape(tensor.shape)


@dataclass(frozen=True)
class _TrainStep:
    """One micro-batch: forward, loss, and gradients added to their sums."""

    module: Any
    taken: Any
    given: Any
    held: tuple[Array, ...]
    name: str

    def run(self) -> None:
        with _telling(self.name):
            self.module._model.train_step_with_ort_values(self.taken, self.given)


def _checkpoint_of(memory: BlockMemory, step: int) -> bytes:
    spec, arrays = memory.spec, memory.arrays
    names = [tensor.name for tensor in spec.parameters]
    return checkpoint_bytes(
        {f"parameter.{name}": arrays[f"parameter.{name}"] for name in names},
        {f"buffer.{tensor.name}": arrays[f"buffer.{tensor.name}"] for tensor in spec.buffers},
        {f"parameter.{name}": [arrays[f"state.{slot}.{name}"] for slot in spec.slots] for name in names},
        step=step,
    )


def _ports(spec: BlockSpec, classes: int) -> dict[str, Port]:
    found = [
        Port("x", (None, *spec.input.shape), spec.input.dtype),
        Port("y", (None,), "int64"),
        Port("row_weight", (None,), "float32"),
        Port("seed", (), "int64"),
        Port("loss", (), "float32"),
        Port("log_probabilities", (None, classes), "float32"),
    ]
    if spec.handover is not None:
        found.append(Port("handover", (None, *spec.handover.shape), spec.handover.dtype))
    return {port.name: port for port in found}


@contextmanager
def _passed_file(content: bytes) -> Iterator[str]:
    """Path of a file with this content, in memory where the system can: checkpoints are passed by path alone."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("edgeff")
        try:
            with open(handle, "wb", closefd=False) as stream:
                stream.write(content)
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint")
        path.write_bytes(content)
        yield str(path)


@contextmanager
def _on_disk(artifact: Artifact, files: Sequence[str]) -> Iterator[list[str]]:
    """Paths of an artifact's files; of a zip's they are written out for as long as they are needed."""
    lying = [artifact.path_of(file) for file in files]
    if all(lying):
        yield [str(path) for path in lying]
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [Path(folder, str(number)) for number in range(len(files))]
        for path, file in zip(found, files, strict=True):
            path.write_bytes(artifact.read(file))
        yield [str(path) for path in found]


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """Say of which graph it was that the package refused something.

    Raises:
        EngineError: It did.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # it raises a dozen classes that share no base of their own
        raise EngineError(f"onnxruntime-training failed in `{name}`: {one_line(error)}") from error


@cache
def _import_api() -> ModuleType:
    """The part of onnxruntime-training that trains.

    Its package imports PyTorch and onnx, 230 MB, for parts that are not used here; so it is gone round.

    Raises:
        EngineError: It is not installed.
    """
    found = importlib.util.find_spec("onnxruntime")
    places = list(found.submodule_search_locations or []) if found else []
    folder = next((Path(place, "training") for place in places if Path(place, "training", "api").is_dir()), None)
    if folder is None:
        raise EngineError(f"onnxruntime-training is not installed (it has wheels for {WHEELS})", hint=_HINT)
    import_onnxruntime()
    with _parent(folder):
        return importlib.import_module(f"{TRAINING_PACKAGE}.api")


@contextmanager
def _parent(folder: Path) -> Iterator[None]:
    """A package that imports nothing itself in the place of the real one.

    It goes again with all that was imported through it: whoever imports the real one finds that as it should be.
    """
    if TRAINING_PACKAGE in sys.modules:
        yield
        return
    stand_in = ModuleType(TRAINING_PACKAGE)
    stand_in.__path__ = [str(folder)]
    sys.modules[TRAINING_PACKAGE] = stand_in
    try:
        yield
    finally:
        for name in [
            name for name in sys.modules if name == TRAINING_PACKAGE or name.startswith(f"{TRAINING_PACKAGE}.")
        ]:
            del sys.modules[name]


__all__ = ["BlockUpdate", "OrtTraining", "TrainingGraphs"]
