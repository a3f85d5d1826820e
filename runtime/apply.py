"""The update of weights once the gradients of a batch are summed: elementwise, so that blocks do not matter to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from edgeff.runtime.arrays import Array
from edgeff.runtime.buffers import Buffers
from edgeff.runtime.device_memory import DeviceMemory
from edgeff.runtime.engine import Call, Graph
from edgeff.runtime.memory import GRADIENT
from edgeff.runtime.network import Graphs, Network
from edgeff.runtime.plan_bytes import APPLY_NUMBERS
from edgeff.runtime.plan_parts import BlockPlan
from edgeff.runtime.workers import run_at_once


@dataclass(frozen=True)
class _Piece:
    call: Call
    gradient: Array

    def run(self) -> None:
        self.call.run()
        self.gradient.fill(0)


class Apply:
    """Updates a run of numbers, in pieces whose temporaries are small, some of them at once.

    Args:
        graph: Of kind `apply`.
        runs: By role, float32 (numbers,), all of the same length: `parameter`, `gradient`, `state.<slot>`.
        buffers: Have the rates.
        threads: That update, each a piece at a time.
    """

    def __init__(self, graph: Graph, runs: Mapping[str, Array], buffers: Buffers, threads: int = 1) -> None:
        pieces = []
        for start in range(0, len(runs["parameter"]), APPLY_NUMBERS):
            arrays = {role: run[start : start + APPLY_NUMBERS] for role, run in runs.items()}
            pieces.append(_Piece(graph.bind({**arrays, **buffers.scalars}), arrays[GRADIENT]))
        self._jobs = [partial(_run_all, pieces[first::threads]) for first in range(min(threads, len(pieces)))]

    def run(self) -> None:
        """Update, and begin a new sum of gradients."""
        run_at_once(self._jobs)


def _run_all(pieces: Sequence[_Piece]) -> None:
    for piece in pieces:
        piece.run()


class DeviceApply:
    """Updates a block's tensors where they lie on a device, each whole: a device cannot be given a part of one.

    Args:
        graph: Of kind `apply`.
        tensors: Of each parameter, float32 (numbers,) by role: `parameter`, `gradient`, `state.<slot>`.
        buffers: Have the rates.
        memory: Of the device.
    """

    def __init__(
        self, graph: Graph, tensors: Sequence[Mapping[str, Array]], buffers: Buffers, memory: DeviceMemory
    ) -> None:
        self._calls = [graph.bind({**one, **buffers.scalars}) for one in tensors]
        self._gradients = [one["gradient"] for one in tensors]
        self._memory = memory

    def run(self) -> None:
        """Update, and begin a new sum of gradients."""
        for call in self._calls:
            call.run()
        self._memory.clear(self._gradients)


def applies(
    network: Network, graphs: Graphs, trained: Sequence[tuple[int, BlockPlan]], buffers: Buffers, threads: int = 1
) -> Sequence[Apply | DeviceApply]:
    """The updates of a group's trained blocks, given by number and in order; fewer where these share a graph."""
    if graphs.memory is not None:
        return [
            DeviceApply(graphs.of(block, "apply"), _tensors(network, block), buffers, graphs.memory)
            for block, part in trained
            if "apply" in part.graphs
        ]
    return [
        Apply(graphs.of(blocks[0], "apply"), _joined(network, blocks), buffers, threads)
        for blocks in _alike(network, trained)
    ]


def _tensors(network: Network, block: int) -> list[dict[str, Array]]:
    """Each parameter of a block as the numbers that `apply` takes, by role."""
    memory = network.memory(block)
    roles = ["parameter", "gradient", *(f"state.{slot}" for slot in memory.spec.slots)]
    return [
        {role: memory.arrays[f"{role}.{tensor.name}"].reshape(-1) for role in roles}
        for tensor in memory.spec.parameters
    ]


def _alike(network: Network, trained: Sequence[tuple[int, BlockPlan]]) -> list[list[int]]:
    """The blocks that are applied, those next to each other together that share a graph."""

    def file(one: tuple[int, BlockPlan]) -> str:
        block, part = one
        return network.manifest.blocks[block].graphs["apply"].file if "apply" in part.graphs else ""

    return [[block for block, _ in group] for name, group in groupby(trained, key=file) if name]


def _joined(network: Network, blocks: Sequence[int]) -> dict[str, Array]:
    """The numbers of some trained blocks of a group next to each other, by role."""
    first, last = network.memory(blocks[0]), network.memory(blocks[-1])
    count = last.start + len(last.runs["parameter"]) - first.start
    starts = {role: first.gradient_start if role == GRADIENT else first.start for role in network.runs}
    return {role: run[starts[role] : starts[role] + count] for role, run in network.runs.items()}
