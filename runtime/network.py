"""An artifact's network: the blocks' arrays, in memory or read when asked for, and their graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeff.artifact import Artifact
from edgeff.errors import RunError
from edgeff.manifest import GraphKind, Manifest
from edgeff.optimizer import moment_factors
from edgeff.preprocess import Preprocessing
from edgeff.runtime.arrays import Array
from edgeff.runtime.buffers import Buffers
from edgeff.runtime.engine import Call, Engine, Graph, Moments, check_graph
from edgeff.runtime.groups import ONE_GROUP
from edgeff.runtime.memory import GRADIENT, BlockMemory, allocate_memories, allocate_memory, with_gradients
from edgeff.runtime.store import AllWeights, ArtifactStore, GivenStore, Store

_PIECE = 1 << 14
# Calls of a block that are kept bound, for parts of a micro-batch; more are bound anew each time.
_KEPT_CALLS = 16


@dataclass(frozen=True)
class Network:
    """Blocks that can run.

    Attributes:
        artifact: Where they come from.
        engine: What runs them.
        preprocessing: From raw rows to the first block's input.
        memories: Of each block, in order; None for one that is not in memory.
        store: Has the weights of those.
        runs: By role, the numbers of all blocks that are trained, one block after another, in order.
    """

    artifact: Artifact
    engine: Engine
    preprocessing: Preprocessing
    memories: tuple[BlockMemory | None, ...]
    store: Store
    runs: Mapping[str, Array] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self.artifact.manifest

    def weights(self) -> Mapping[str, Array]:
        """All parameters and buffers by their key in a weights file: the arrays themselves where they are in memory."""
        return AllWeights(self.memories, self.manifest.blocks, self.store)

    def resident(self) -> dict[str, Array]:
        """The arrays themselves of what is in memory, weights and optimiser state, by their key in a checkpoint."""
        found: dict[str, Array] = {}
        for memory in self.memories:
            if memory is not None:
                found |= {**memory.weights(), **memory.state()}
        return found

    def memory(self, block: int) -> BlockMemory:
        """A block's arrays; read for the caller, who holds them, where they are not in memory."""
        found = self.memories[block]
        if found is None:
            found = allocate_memory(self.manifest.blocks[block], trained=False)
            self.store.fill(found)
        return found

    def holding(self, block: int, *, accumulate: bool) -> Network:
        """The same network with one block in memory, to be trained, and no other."""
        memory = allocate_memory(self.manifest.blocks[block], trained=True, accumulate=accumulate)
        self.store.fill(memory)
        memories = tuple(memory if number == block else None for number in range(len(self.memories)))
        return replace(self, memories=memories, runs=memory.runs)

    def holding_nothing(self) -> Network:
        """The same network with no block in memory."""
        return replace(self, memories=(None,) * len(self.memories), runs={})

    def accumulating(self, accumulate: bool, groups: Sequence[int] = ONE_GROUP) -> Network:
        """The same arrays, with or without gradient sums, which blocks of different groups share."""
        memories, runs = with_gradients(self.memories, self.runs, accumulate, groups)
        return replace(self, memories=memories, runs=runs)

    def forget_gradients(self) -> None:
        """Give up what was summed of a batch's gradients."""
        if GRADIENT in self.runs:
            self.runs[GRADIENT].fill(0)

    def reset(self) -> None:
        """Fill what is in memory as a run begins: with the artifact's weights, and no optimiser state."""
        for memory in self.memories:
            if memory is not None:
                self.artifact.fill(memory.weights())
                for array in memory.state().values():
                    array.fill(0)

    def convert_state(self, moments: Moments) -> None:
        """Turn state that stands in memory in a form into that of the engine."""
        if moments == self.engine.moments:
            return
        factors = moment_factors(self.manifest.optimizer)
        for memory in filter(None, self.memories):
            for key, array in memory.state().items():
                factor = factors[key.split("/")[1]]
                array *= np.float32(factor if self.engine.moments == "means" else 1.0 / factor)

    def first_not_finite(self) -> str | None:
        """Name of the first block in memory that holds a weight or state which is not a finite number."""
        for memory in self.memories:
            if memory is not None and not all(map(all_finite, (memory.weights() | memory.state()).values())):
                return memory.spec.name
        return None


def open_network(
    artifact: Artifact,
    engine: Engine,
    *,
    weights: Mapping[str, Array] | None = None,
    trained: Collection[str] = (),
    accumulate: bool = False,
    groups: Sequence[int] = ONE_GROUP,
) -> Network:
    """All blocks of an artifact in memory.

    Args:
        artifact: To open.
        engine: What runs the graphs.
        weights: Parameters and buffers by `<block>.<name>`; None for the artifact's own.
        trained: Names of the blocks that get optimiser state.
        accumulate: Give those gradient sums.
        groups: Blocks of different groups share the numbers of these (`edgeff.runtime.groups`).

    Raises:
        RunError: An unknown block, or a weight is missing or does not fit.
        ArtifactError: The artifact cannot be read.
    """
    manifest = artifact.manifest
    check_block_names(manifest, trained)
    store: Store = ArtifactStore(artifact) if weights is None else GivenStore(weights)
    memories, runs = allocate_memories(manifest.blocks, trained=trained, accumulate=accumulate, groups=groups)
    if weights is None:
        # All at once: for every call the file's list of tensors is read anew.
        artifact.fill({key: array for memory in memories for key, array in memory.weights().items()})
    else:
        for memory in memories:
            store.fill(memory)
    return Network(artifact, engine, preprocessing_of(manifest), memories, store, runs)


def open_on_disk(artifact: Artifact, engine: Engine, store: Store) -> Network:
    """An artifact's network with no block in memory."""
    manifest = artifact.manifest
    return Network(artifact, engine, preprocessing_of(manifest), (None,) * len(manifest.blocks), store)


def preprocessing_of(manifest: Manifest) -> Preprocessing:
    """The steps from raw rows to the first block's input."""
    return Preprocessing(manifest.input, manifest.preprocessing, manifest.features)


def check_block_names(manifest: Manifest, names: Collection[str]) -> None:
    """Check that every name is a block's.

    Raises:
        RunError: One is not.
    """
    known = [block.name for block in manifest.blocks]
    for name in names:
        if name not in known:
            raise RunError(f"the artifact has no block `{name}`", hint=f"its blocks: {', '.join(known)}")


def all_finite(array: Array) -> bool:
    """Whether there is no NaN or Inf, a piece at a time: the answer for a large array would itself be large."""
    if array.dtype.kind != "f":
        return True
    flat = array.reshape(-1)
    return all(np.isfinite(flat[i : i + _PIECE]).all() for i in range(0, len(flat), _PIECE))


class Graphs:
    """Graphs that are loaded, each once, however many blocks share it; they are gone when nobody holds this.

    Args:
        artifact: Has the files.
        engine: Loads them.
        threads: That one operator may use; None for all of the engine's.

    Attributes:
        memory: Of the engine's device; None where graphs run in the arrays themselves.
    """

    def __init__(self, artifact: Artifact, engine: Engine, threads: int | None = None) -> None:
        self._artifact = artifact
        self._engine = engine
        self._threads = threads
        self._loaded: dict[str, Graph] = {}
        self.memory = engine.memory()

    def of(self, block: int, kind: GraphKind) -> Graph:
        """A graph of a block.

        Raises:
            EngineError: The engine refuses it, or it is not what the manifest says.
        """
        spec = self._artifact.manifest.blocks[block].graphs[kind]
        if spec.file not in self._loaded:
            # Updates run one thread to a piece: see `edgeff.runtime.apply`.
            threads = 1 if kind == "apply" else self._threads
            graph = self._engine.load(self._artifact.read(spec.file), spec.file, self.memory, threads=threads)
            check_graph(graph, spec)
            self._loaded[spec.file] = graph
        return self._loaded[spec.file]

    def settle(self) -> None:
        """Bring the network's arrays up to date with what the graphs updated, where an engine has copies of its own."""
        if self.memory is not None:
            self.memory.settle()


@dataclass(frozen=True)
class Part:
    """One run of a block's graph.

    Attributes:
        block: Its number.
        number: Of this run among those of the block for the rows under way.
        rows: Which of these rows.
        call: To be run.
    """

    block: int
    number: int
    rows: slice
    call: Call


class Chain:
    """One graph for each of some consecutive blocks, every one reading what the one before handed over.

    Args:
        network: The blocks.
        graphs: To load the chain's from.
        kinds: Kind of graph for block `first` and those after it.
        buffers: What the graphs share.
        micro_batches: Rows that run at once, for each block of the chain; None for all that the buffers hold.
        first: Block to begin with.
    """

    def __init__(
        self,
        network: Network,
        graphs: Graphs,
        kinds: Sequence[GraphKind],
        buffers: Buffers,
        *,
        micro_batches: Sequence[int] | None = None,
        first: int = 0,
    ) -> None:
        self._network = network
        self._buffers = buffers
        self._first = first
        self._sizes = micro_batches or [buffers.rows] * len(kinds)
        self._graphs = [graphs.of(block, kind) for block, kind in enumerate(kinds, first)]
        self._kept: list[dict[tuple[int, int], Call]] = [{} for _ in kinds]

    def parts(self, rows: int) -> Iterator[Part]:
        """The runs that take `rows` rows from the first block to the last, each to be run before the next is asked for.

        A block that is not in memory is read, and let go when its last run is done.
        """
        for place, size in enumerate(self._sizes):
            memory = self._network.memory(self._first + place)
            for number, start in enumerate(range(0, rows, size)):
                stop = min(start + size, rows)
                call = self._call(place, memory, start, stop)
                yield Part(self._first + place, number, slice(start, stop), call)
                if isinstance(call, _Passing):
                    call.let_go()
            del memory

    def _call(self, place: int, memory: BlockMemory, start: int, stop: int) -> Call:
        kept = self._kept[place]
        if (start, stop) in kept:
            return kept[start, stop]
        arrays = self._buffers.bound_for(self._first + place, start, stop, self._network.manifest)
        call = self._graphs[place].bind({**arrays, **memory.arrays})
        if self._network.memories[self._first + place] is None:
            return _Passing(call)
        if len(kept) < _KEPT_CALLS:
            kept[start, stop] = call
        return call


class _Passing:
    """A call that holds nothing once the next one is asked for, even while somebody still has it.

    Else the weights of a block would be there beside those of the next.
    """

    def __init__(self, call: Call) -> None:
        self._call: Call | None = call

    def run(self) -> None:
        assert self._call is not None
        self._call.run()

    def let_go(self) -> None:
        self._call = None
