"""Forward-only training of a whole network: MeZO (Malladi et al. 2023, arXiv 2305.17333, algorithm 1).

Two forward passes with all weights moved by plus and minus `epsilon` times a random direction z give the loss's slope
along z; the weights go down that slope. z is drawn again from its seed wherever it is needed, so that nothing is kept
beside weights and one forward pass. It learns little from scratch; it stands here to be compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeff.errors import BudgetError
from edgeff.manifest import Manifest
from edgeff.rows import Rows
from edgeff.runtime.buffers import Buffers, allocate_buffers, buffer_bytes, filling_bytes
from edgeff.runtime.cost import run_seconds
from edgeff.runtime.network import Chain, Graphs, Network
from edgeff.runtime.order import even_parts
from edgeff.runtime.plan import with_and_without_arena
from edgeff.runtime.plan_blocks import micro_batches, process_bytes
from edgeff.runtime.plan_bytes import beside, graph_transient_bytes, session_bytes
from edgeff.runtime.plan_parts import BlockPlan, Bytes, Phase, Plan, Request
from edgeff.units import format_bytes

# Numbers of a direction that are drawn at once: they stay in a cache.
_DRAWN = 64 * 1024
# Seconds for drawing a number and adding it, of the order of a small core.
_DRAW_SECONDS = 1e-8


@dataclass(frozen=True)
class Slope:
    """One update.

    Attributes:
        loss: Mean of the losses on both sides.
        slope: Of the loss along the direction.
    """

    loss: float
    slope: float


class ZerothOrder:
    """Trains the one block of a network by forward passes.

    Args:
        network: With its block in memory.
        micro_batch: Rows that run at once.
        epsilon: How far the weights are moved to each side.
    """

    def __init__(self, network: Network, micro_batch: int, *, epsilon: float = 1e-3) -> None:
        self._parameters = [
            network.memory(0).arrays[f"parameter.{spec.name}"] for spec in network.manifest.blocks[0].parameters
        ]
        self._epsilon = epsilon
        self._buffers: Buffers = allocate_buffers(network.manifest, micro_batch, {})
        self._chain = Chain(network, Graphs(network.artifact, network.engine), ["forward"], self._buffers)

    def step(self, x: Rows, y: NDArray[np.int64], index: NDArray[np.int64], *, seed: int, rate: float) -> Slope:
        """Update the weights in place on the rows x[index], labels y[index] int64 (rows,).

        Args:
            x: Rows as the network takes them.
            y: Labels of all of them.
            index: Of the batch, int64 (rows,).
            seed: Of this step's direction.
            rate: Learning rate.
        """
        self._move(seed, self._epsilon)
        above = self._loss(x, y, index)
        self._move(seed, -2 * self._epsilon)
        below = self._loss(x, y, index)
        slope = (above - below) / (2 * self._epsilon)
        self._move(seed, self._epsilon - rate * slope)
        return Slope((above + below) / 2, slope)

    def _loss(self, x: Rows, y: NDArray[np.int64], index: NDArray[np.int64]) -> float:
        """Mean cross-entropy of a batch."""
        total = 0.0
        for part in even_parts(index, self._buffers.rows):
            self._buffers.features[: len(part)] = x[part]
            for run in self._chain.parts(len(part)):
                run.call.run()
            found = self._buffers.log_probabilities[: len(part)]
            total -= float(found[np.arange(len(part)), y[part]].sum(dtype=np.float64))
        return total / len(index)

    def _move(self, seed: int, distance: float) -> None:
        """Add `distance` times the direction to the weights."""
        draw = np.random.default_rng(seed)
        for numbers in self._pieces():
            numbers += np.float32(distance) * draw.standard_normal(len(numbers), np.float32)

    def _pieces(self) -> Iterator[NDArray[np.float32]]:
        for parameter in self._parameters:
            flat = parameter.reshape(-1)
            for start in range(0, len(flat), _DRAWN):
                yield flat[start : start + _DRAWN]


def plan_zeroth_order(manifest: Manifest, request: Request) -> Plan:
    """The fastest plan that fits, or the smallest one where that is preferred.

    Raises:
        BudgetError: Nothing fits.
    """
    sizes = [request.micro_batch] if request.micro_batch else list(micro_batches(request.batch_size))
    plans = [_plan(manifest, one, size) for size in sizes for one in with_and_without_arena(request)]
    budget = request.budget_bytes
    fitting = [one for one in plans if budget is None or one.planned_bytes <= budget]
    if not fitting:
        needed = min(one.planned_bytes for one in plans)
        raise BudgetError(
            f"forward passes need {format_bytes(needed)}, the budget is {format_bytes(budget or 0)}",
            hint=f"the smallest budget that works is {needed:,} bytes",
        )
    by_memory = request.prefer == "memory"
    return min(fitting, key=lambda one: one.planned_bytes if by_memory else one.epoch_seconds)


def _plan(manifest: Manifest, request: Request, rows: int) -> Plan:
    (block,) = manifest.blocks
    forward = block.graphs["forward"]
    sessions = session_bytes(forward, request.threads)
    drawn = 2 * 4 * min(_DRAWN, max(spec.nbytes // 4 for spec in block.parameters))
    needed = graph_transient_bytes(forward, "forward", rows, arena=request.arena)
    inside = beside(needed if request.arena else 0, max(filling_bytes(manifest, rows), drawn), needed)
    resident = Bytes(
        weights=block.weight_bytes,
        activations=buffer_bytes(manifest, rows) + inside,
        graphs=sessions,
        rows=request.row_bytes,
        process=process_bytes(manifest, request),
    )
    runs = 2 * -(-request.batch_size // rows)
    seconds = runs * run_seconds(forward, rows, threads=request.threads, arena=request.arena)
    seconds += 3 * _DRAW_SECONDS * block.parameter_bytes / 4
    return Plan(
        schedule="sweep",
        batch_size=request.batch_size,
        micro_batch=rows,
        budget_bytes=request.budget_bytes,
        blocks=(
            BlockPlan(
                block=block.name,
                trained=True,
                micro_batch=rows,
                graphs=("forward",),
                weight_bytes=block.weight_bytes,
                gradient_bytes=0,
                state_bytes=0,
                session_bytes=sessions,
                transient_bytes=inside,
                forward_session_bytes=sessions,
                forward_transient_bytes=inside,
            ),
        ),
        phases=(Phase("train", resident),),
        epoch_seconds=-(-request.rows // request.batch_size) * seconds,
        arena_bytes=needed if request.arena else 0,
    )
