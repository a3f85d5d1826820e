"""An artifact's network in memory: the blocks' arrays, and their graphs when asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgeff.artifact import Artifact
from edgeff.errors import RunError
from edgeff.manifest import GraphKind, Manifest
from edgeff.preprocess import Preprocessing
from edgeff.runtime.buffers import Buffers
from edgeff.runtime.engine import Array, Call, Engine, Graph, check_graph
from edgeff.runtime.memory import BlockMemory, allocate_memory


@dataclass(frozen=True)
class Network:
    """Blocks that can run.

    Attributes:
        artifact: Where they come from.
        engine: What runs them.
        preprocessing: From raw rows to the first block's input.
        memories: Of each block, in order.
    """

    artifact: Artifact
    engine: Engine
    preprocessing: Preprocessing
    memories: tuple[BlockMemory, ...]

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self.artifact.manifest

    def weights(self) -> dict[str, Array]:
        """The arrays themselves of all parameters and buffers, by their key in a weights file."""
        return {key: array for memory in self.memories for key, array in memory.weights().items()}

    def state(self) -> dict[str, Array]:
        """The arrays themselves of the optimiser state, by their key in a checkpoint."""
        return {key: array for memory in self.memories for key, array in memory.state().items()}

    def graph(self, block: int, kind: GraphKind) -> Graph:
        """Load a graph of a block; it is gone when nobody holds it.

        Raises:
            EngineError: The engine refuses it, or it is not what the manifest says.
        """
        spec = self.manifest.blocks[block].graphs[kind]
        graph = self.engine.load(self.artifact.read(spec.file), spec.file)
        check_graph(graph, spec)
        return graph


def open_network(
    artifact: Artifact,
    engine: Engine,
    *,
    weights: Mapping[str, Array] | None = None,
    trained: Collection[str] = (),
    accumulate: bool = False,
) -> Network:
    """Bring the blocks of an artifact into memory.

    Args:
        artifact: An open artifact.
        engine: What will run the graphs.
        weights: By key `<block>.<name>`; None for the artifact's own.
        trained: Names of blocks that get optimiser state.
        accumulate: Give trained blocks gradient sums.

    Raises:
        RunError: A weight is missing or does not fit, or `trained` names an unknown block.
        ArtifactError: The artifact cannot be read.
    """
    manifest = artifact.manifest
    check_block_names(manifest, trained)
    memories = []
    for spec in manifest.blocks:
        # Block by block: at most one block's weights are there twice.
        keys = [f"{spec.name}.{tensor.name}" for tensor in spec.parameters + spec.buffers]
        found = artifact.tensors(keys) if weights is None else weights
        memories.append(allocate_memory(spec, found, trained=spec.name in trained, accumulate=accumulate))
    preprocessing = Preprocessing(manifest.input, manifest.preprocessing, manifest.features)
    return Network(artifact, engine, preprocessing, tuple(memories))


def check_block_names(manifest: Manifest, names: Collection[str]) -> None:
    """Check that every name is a block's.

    Raises:
        RunError: One is not.
    """
    known = [block.name for block in manifest.blocks]
    for name in names:
        if name not in known:
            raise RunError(f"the artifact has no block `{name}`", hint=f"its blocks: {', '.join(known)}")


class Chain:
    """One graph for each of the first blocks, every one reading what the one before handed over.

    Args:
        network: The blocks.
        kinds: Kind of graph for block 0, 1 and so on; blocks beyond are not run.
        buffers: What the graphs share.
    """

    def __init__(self, network: Network, kinds: Sequence[GraphKind], buffers: Buffers) -> None:
        self._network = network
        self._buffers = buffers
        self._graphs = tuple(network.graph(block, kind) for block, kind in enumerate(kinds))
        self._calls: dict[int, tuple[Call, ...]] = {}

    def calls(self, rows: int) -> tuple[Call, ...]:
        """The graphs in order, bound for a micro-batch of `rows`; each leaves its results in the buffers."""
        if rows not in self._calls:
            self._calls[rows] = tuple(self._bind(block, rows) for block in range(len(self._graphs)))
        return self._calls[rows]

    def _bind(self, block: int, rows: int) -> Call:
        arrays = self._buffers.bound_for(rows, block, self._network.manifest)
        return self._graphs[block].bind({**arrays, **self._network.memories[block].arrays})
