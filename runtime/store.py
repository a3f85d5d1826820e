"""Where a block's weights are when they are not in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeff import disk
from edgeff.artifact import Artifact
from edgeff.atomic import atomic_file, writing
from edgeff.errors import RunError
from edgeff.manifest import BlockSpec
from edgeff.runtime.arrays import Array
from edgeff.runtime.memory import BlockMemory, allocate_memory, copy_weights
from edgeff.runtime.tensor_stream import read_facts, read_tensors_into, write_tensors

_FORMAT = "edgeff-block"


class Store(Protocol):
    """Gives the weights of blocks."""

    def fill(self, memory: BlockMemory) -> None:
        """Read the weights of a block into its arrays.

        Raises:
            ArtifactError: The artifact cannot be read.
            RunError: A file of the run cannot be read.
        """


@dataclass(frozen=True)
class ArtifactStore:
    """The weights that an artifact came with."""

    artifact: Artifact

    def fill(self, memory: BlockMemory) -> None:
        """See `Store.fill`."""
        self.artifact.fill(memory.weights())


@dataclass(frozen=True)
class GivenStore:
    """Weights that are in memory anyway."""

    weights: Mapping[str, Array]

    def fill(self, memory: BlockMemory) -> None:
        """See `Store.fill`."""
        copy_weights(memory, self.weights)


@dataclass(frozen=True)
class BlockFiles:
    """Blocks that a run has finished, a file each; the others are as the artifact has them.

    Attributes:
        folder: Of the run.
        artifact: What is trained.
    """

    folder: Path
    artifact: Artifact

    def fill(self, memory: BlockMemory) -> None:
        """See `Store.fill`."""
        path = self.path(memory.spec)
        if path.exists():
            self._check(path)
            read_tensors_into(path, memory.weights())
        else:
            self.artifact.fill(memory.weights())

    def require(self, block: BlockSpec) -> None:
        """Check that the file of a block that is finished is there, whole.

        Raises:
            RunError: It is not: the weights that the artifact came with must not be taken for it.
        """
        try:
            self._check(self.path(block))
        except RunError as error:
            hint = "begin again in another folder; check the disk"
            raise RunError(f"what block `{block.name}` had learnt is lost: {error}", hint=hint) from error

    def write(self, memory: BlockMemory) -> None:
        """Keep the weights of a block that is finished.

        Raises:
            RunError: They cannot be written.
        """
        facts = {"format": _FORMAT, "version": 1, "manifest_sha256": self.artifact.manifest_sha256}
        with atomic_file(self.path(memory.spec)) as stream:
            write_tensors(stream, memory.weights(), facts)

    def forget(self, block: BlockSpec) -> None:
        """Take a block as the artifact has it again.

        Raises:
            RunError: Its file cannot be removed.
        """
        with writing(self.path(block)):
            disk.remove(self.path(block))

    def path(self, block: BlockSpec) -> Path:
        """The file of a block; block names are made of letters, digits, `_`, `-` and `.`."""
        return self.folder / f"block.{block.name}.safetensors"

    def _check(self, path: Path) -> None:
        facts = read_facts(path)
        if facts.get("format") != _FORMAT or facts.get("manifest_sha256") != self.artifact.manifest_sha256:
            raise RunError(f"`{path}` is not of this run", hint="give the artifact that the run began with")


class AllWeights(Mapping[str, Array]):
    """The weights of all blocks by key `<block>.<name>`: those in memory, and others read when they are asked for.

    Args:
        memories: Of each block; None for one that is not in memory.
        blocks: In order.
        store: Has the others.
    """

    def __init__(self, memories: tuple[BlockMemory | None, ...], blocks: tuple[BlockSpec, ...], store: Store) -> None:
        self._store = store
        self._resident = {memory.spec.name: memory for memory in memories if memory is not None}
        self._owner = {
            f"{block.name}.{tensor.name}": block for block in blocks for tensor in block.parameters + block.buffers
        }
        self._last: BlockMemory | None = None

    def __getitem__(self, key: str) -> Array:
        block = self._owner[key]
        if block.name in self._resident:
            return self._resident[block.name].weights()[key]
        if self._last is None or self._last.spec.name != block.name:
            self._last = None  # before the next one comes: one block at a time
            self._last = allocate_memory(block, trained=False)
            self._store.fill(self._last)
        return self._last.weights()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def __len__(self) -> int:
        return len(self._owner)
