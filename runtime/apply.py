"""The update of weights once the gradients of a batch are summed: elementwise, so that blocks do not matter to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from edgeff.runtime.buffers import Buffers
from edgeff.runtime.engine import Array, Call, Graph
from edgeff.runtime.network import Graphs, Network
from edgeff.runtime.plan_bytes import APPLY_NUMBERS
from edgeff.runtime.plan_parts import BlockPlan

# Calls that are kept bound; where there are more, all are bound anew each time: they would take more memory than they
# save time.
_KEPT_CALLS = 16


class Apply:
    """Updates a run of numbers, in pieces whose temporaries are small.

    Args:
        graph: Of kind `apply`.
        runs: By role, float32 (numbers,), all of the same length: `parameter`, `gradient`, `state.<slot>`.
        buffers: Have the rates.
    """

    def __init__(self, graph: Graph, runs: Mapping[str, Array], buffers: Buffers) -> None:
        self._graph = graph
        self._runs = runs
        self._buffers = buffers
        self._starts = range(0, len(runs["parameter"]), APPLY_NUMBERS)
        self._calls = [self._bind(start) for start in self._starts] if len(self._starts) <= _KEPT_CALLS else None

    def run(self) -> None:
        """Update, and begin a new sum of gradients."""
        for call in self._calls or map(self._bind, self._starts):
            call.run()
        self._runs["gradient"].fill(0)

    def _bind(self, start: int) -> Call:
        pieces = {role: run[start : start + APPLY_NUMBERS] for role, run in self._runs.items()}
        return self._graph.bind({**pieces, **self._buffers.scalars})


def applies(
    network: Network, graphs: Graphs, trained: Sequence[tuple[int, BlockPlan]], buffers: Buffers
) -> list[Apply]:
    """The updates of the trained blocks, given by number and in order; fewer than blocks where these share a graph."""
    return [
        Apply(graphs.of(blocks[0], "apply"), _joined(network, blocks), buffers) for blocks in _alike(network, trained)
    ]


def _alike(network: Network, trained: Sequence[tuple[int, BlockPlan]]) -> list[list[int]]:
    """The blocks that are applied, those next to each other together that share a graph."""

    def file(one: tuple[int, BlockPlan]) -> str:
        block, part = one
        return network.manifest.blocks[block].graphs["apply"].file if "apply" in part.graphs else ""

    return [[block for block, _ in group] for name, group in groupby(trained, key=file) if name]


def _joined(network: Network, blocks: Sequence[int]) -> dict[str, Array]:
    """The numbers of some trained blocks next to each other, by role."""
    first, last = network.memory(blocks[0]), network.memory(blocks[-1])
    stop = last.start + len(last.runs["parameter"])
    return {role: run[first.start : stop] for role, run in network.runs.items()}
