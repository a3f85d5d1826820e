"""One update: a batch passes the blocks in micro-batches, and each of them that is trained learns from it.

A block hands over what its weights before the update gave, whether it updates at once (`step`) or when the batch is
complete (`accumulate`, then `apply`). Where a plan has groups of blocks (`edgeff.runtime.groups`), the batch passes
once for each of them, the last group first. Where it has workers (`edgeff.runtime.workers`), they take micro-batches by
turns, each in arrays of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate as running_sums
from itertools import groupby
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from edgeff.errors import RunError
from edgeff.optimizer import rates
from edgeff.rows import Rows
from edgeff.runtime.apply import Apply, DeviceApply, applies
from edgeff.runtime.block_meter import BlockMeter
from edgeff.runtime.buffers import Buffers, allocate_buffers
from edgeff.runtime.engine import Engine
from edgeff.runtime.network import Chain, Graphs, Network, Part
from edgeff.runtime.order import MixedOrder, even_parts, graph_seed
from edgeff.runtime.ort_training import BlockUpdate, OrtTraining, TrainingGraphs
from edgeff.runtime.plan_blocks import rows_together
from edgeff.runtime.plan_parts import BlockPlan, Plan
from edgeff.runtime.stops import Interrupted, Stop
from edgeff.runtime.workers import Turns, run_at_once


class NonFiniteLossError(RunError):
    """The loss of a block is not a finite number, or its weights are not.

    Attributes:
        block: Its name.
        step: The update at which it was seen.
    """

    def __init__(self, block: str, step: int, what: str) -> None:
        super().__init__(
            f"{what} at step {step}", hint="lower the learning rate, and look at the rows; the last checkpoint is kept"
        )
        self.block = block
        self.step = step


@dataclass(frozen=True)
class TrainingRows:
    """What is trained on.

    Attributes:
        x: Rows as the first of the blocks takes them; the row numbers of `order` count them.
        y: Labels, int64 (rows,).
        order: Which rows make up which batch.
    """

    x: Rows
    y: NDArray[np.int64]
    order: MixedOrder


@dataclass(frozen=True)
class _Pass:
    """One pass of a batch, in which some blocks learn.

    Attributes:
        learning: The numbers of these.
        chains: What runs, of each worker: before the first of them, blocks only hand over.
        applies: Updates their weights when the batch has passed, each with what the learning rate is multiplied by.
    """

    learning: frozenset[int]
    chains: tuple[Chain, ...]
    applies: tuple[tuple[float, Apply | DeviceApply | BlockUpdate], ...]


class Update:
    """The graphs of the blocks, loaded and bound, and one update with them.

    Args:
        network: Has the blocks in memory.
        plan: Which graphs run, at what micro-batch.
        rows: What is trained on.
        seed: Of dropout.
        only: Number of the one block to train; None for all.
        block_meter: Measures blocks one by one.
        rate_factors: By block, what its learning rate is multiplied by.
        stop: Asked between the micro-batches of a batch.
        step: Updates made so far.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        rows: TrainingRows,
        seed: int,
        only: int | None,
        block_meter: BlockMeter | None,
        rate_factors: Mapping[str, float],
        stop: Stop,
        step: int,
    ) -> None:
        manifest = network.manifest
        self._network = network
        self._rows = rows
        self._seed = seed
        # What is resident rises by what any of several workers does: then no block is measured by itself.
        self._meter = block_meter if plan.workers == 1 else None
        self._stop = stop
        self._factors = {number: rate_factors.get(block.name, 1.0) for number, block in enumerate(manifest.blocks)}
        self._one_rate = not rate_factors
        first, last = (0, len(plan.blocks) - 1) if only is None else (only, only)
        parts = {block: plan.blocks[block] for block in range(first, last + 1) if plan.blocks[block].graphs}
        self._trained = [block for block, part in parts.items() if part.trained]
        self._together = rows_together(manifest, [manifest.blocks[block].name for block in self._trained])
        self._takes_seed = {
            block for block, part in parts.items() if "seed" in manifest.blocks[block].graphs[part.graphs[0]].inputs
        }
        self._buffers: tuple[Buffers, ...] = tuple(
            allocate_buffers(manifest, plan.micro_batch, rates(manifest.optimizer, 1.0, 1), first=first, last=only)
            for _ in range(plan.workers)
        )
        self._reading = Lock()
        self._graphs = _open_graphs(network, self._trained, step, plan.operator_threads)
        self._update_threads = plan.update_threads
        groups = plan.spans if only is None else [range(only, only + 1)]
        self._passes = [self._pass(parts, group, first) for group in reversed(groups)]

    def _pass(self, parts: Mapping[int, BlockPlan], group: range, first: int) -> _Pass:
        running = [block for block in parts if block < group.stop]
        chains = tuple(
            Chain(
                self._network,
                self._graphs,
                [parts[block].graphs[0] if block in group else "forward" for block in running],
                buffers,
                micro_batches=[parts[block].micro_batch for block in running],
                first=first,
            )
            for buffers in self._buffers
        )
        learning = [(block, parts[block]) for block in running if block in group and parts[block].trained]
        applies = tuple(
            (factor, apply)
            for factor, alike in groupby(learning, key=lambda one: self._factors[one[0]])
            for apply in _updates_of(self._network, self._graphs, list(alike), self._buffers[0], self._update_threads)
        )
        return _Pass(frozenset(block for block, _ in learning), chains, applies)

    def settle(self) -> None:
        """Bring the network's arrays up to date."""
        self._graphs.settle()

    def run(self, index: NDArray[np.int64], step: int, rate: float) -> dict[str, float]:
        """One batch: the loss of every trained block, by name.

        Args:
            index: Row numbers.
            step: Of this update; counts from 1.
            rate: Of learning.

        Raises:
            NonFiniteLossError: A loss is not a finite number.
            Interrupted: There was a reason to stop; no block has learnt from the batch.
            EngineError: A graph cannot be run.
            DataError: Rows cannot be read.
        """
        for buffers in self._buffers:
            self._set_rate(buffers, rate, step)
        loss = dict.fromkeys(self._trained, 0.0)
        for number, one in enumerate(self._passes):
            self._run_pass(one, index, step, rate, loss, may_stop=number == 0)
            self._check_finite({block: loss[block] for block in one.learning}, step)
            for factor, apply in one.applies:
                self._set_rate_of(self._buffers[0], factor * rate, step)
                apply.run()
        return {self._name(block): value for block, value in loss.items()}

    def _run_pass(
        self, one: _Pass, index: NDArray[np.int64], step: int, rate: float, loss: dict[int, float], *, may_stop: bool
    ) -> None:
        parts = even_parts(index, self._buffers[0].rows, self._together)
        starts = list(running_sums(map(len, parts), initial=0))
        turns, workers = Turns(), min(len(self._buffers), len(parts))

        def work(worker: int) -> None:
            for number in range(worker, len(parts), workers):
                if number and not worker and may_stop and self._stop():
                    raise Interrupted
                with self._reading:
                    self._fill(self._buffers[worker], parts[number], batch_rows=len(index))
                runs = one.chains[worker].parts(len(parts[number]))
                for block, of_block in groupby(runs, key=lambda run: run.block):
                    with turns.turn(block, number):
                        for run in of_block:
                            self._learn(one, worker, run, rate, step, starts[number], loss)

        try:
            run_at_once([partial(work, worker) for worker in range(workers)], turns.abandon)
        except Interrupted:
            self._network.forget_gradients()
            raise

    def _learn(
        self, one: _Pass, worker: int, run: Part, rate: float, step: int, row: int, loss: dict[int, float]
    ) -> None:
        buffers = self._buffers[worker]
        self._set_rate_of(buffers, self._factors[run.block] * rate, step)
        if run.block in self._takes_seed:
            first = row + run.rows.start
            buffers.scalars["seed"][...] = graph_seed(self._seed, step=step, row=first, block=run.block)
        self._run(run, step)
        if run.block in one.learning:
            loss[run.block] += float(buffers.scalars["loss"])

    def _set_rate(self, buffers: Buffers, rate: float, step: int) -> None:
        buffers.set_rates(rates(self._network.manifest.optimizer, rate, step))
        buffers.scalars["learning_rate"][...] = rate

    def _set_rate_of(self, buffers: Buffers, rate: float, step: int) -> None:
        """Set the rate of a block, unless it is that of all."""
        if not self._one_rate:
            self._set_rate(buffers, rate, step)

    def _fill(self, buffers: Buffers, index: NDArray[np.int64], *, batch_rows: int) -> None:
        rows = len(index)
        buffers.features[:rows] = self._rows.x[index]
        buffers.y[:rows] = self._rows.y[index]
        # The gradients of micro-batches add up to that of the batch's mean loss.
        buffers.row_weight[:rows] = 1.0 / batch_rows

    def _run(self, run: Part, step: int) -> None:
        if self._meter:
            self._meter.measure(run.block, step, run.call.run)
        else:
            run.call.run()

    def _check_finite(self, loss: Mapping[int, float], step: int) -> None:
        for block, value in loss.items():
            if not math.isfinite(value):
                name = self._name(block)
                raise NonFiniteLossError(name, step, f"the loss of block `{name}` is {value}")

    def _name(self, block: int) -> str:
        return self._network.manifest.blocks[block].name


def sums_gradients(engine: Engine, parts: Sequence[BlockPlan]) -> bool:
    """Whether a plan needs arrays for sums of gradients."""
    return not engine.keeps_gradients and any("apply" in part.graphs for part in parts)


def _open_graphs(network: Network, trained: Sequence[int], step: int, threads: int) -> Graphs:
    if isinstance(network.engine, OrtTraining):
        return TrainingGraphs(network, trained, step)
    return Graphs(network.artifact, network.engine, threads)


def _updates_of(
    network: Network, graphs: Graphs, trained: Sequence[tuple[int, BlockPlan]], buffers: Buffers, threads: int
) -> Sequence[Apply | DeviceApply | BlockUpdate]:
    """What updates some blocks once a batch's gradients are summed."""
    if isinstance(graphs, TrainingGraphs):
        return graphs.updates([block for block, _ in trained], buffers)
    return applies(network, graphs, trained, buffers, threads)
