"""The training loop: every batch passes all blocks in micro-batches, and each block that is trained updates itself.

A block hands over what its weights before the update gave, whether it updates at once (`step`) or when the batch is
complete (`accumulate`, then `apply`). The trainer yields progress and prints nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeff.errors import RunError
from edgeff.manifest import GraphKind
from edgeff.optimizer import rates
from edgeff.rows import Rows
from edgeff.runtime.buffers import Buffers, allocate_buffers
from edgeff.runtime.engine import Call
from edgeff.runtime.meter import MemoryReading, Meter
from edgeff.runtime.network import Chain, Network
from edgeff.runtime.order import MixedOrder, even_parts, graph_seed
from edgeff.runtime.plan import Plan

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        epoch: Being trained; counts from 1.
        batch: Of that epoch, the next one to train on; counts from 0.
        step: Updates made so far.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0


@dataclass(frozen=True)
class TrainingRows:
    """What is trained on.

    Attributes:
        x: Raw rows; the row numbers of `order` count them.
        y: Labels, int64 (rows,).
        order: Which rows make up which batch.
    """

    x: Rows
    y: NDArray[np.int64]
    order: MixedOrder


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a function of the step.

    Attributes:
        base: At the first step.
        schedule: `constant`, or `cosine`: half a wave, from `base` to zero.
        steps: Of the whole run.
    """

    base: float
    schedule: str
    steps: int

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise RunError(f"unknown learning-rate schedule `{self.schedule}`", hint=f"known: {', '.join(SCHEDULES)}")
        if not (math.isfinite(self.base) and self.base > 0):
            raise RunError(f"the learning rate must be above 0, got `{self.base}`")

    def at(self, step: int) -> float:
        """The rate of a step, which counts from 1.

        >>> LearningRate(0.1, "cosine", steps=4).at(3)
        0.05
        """
        return self.base * SCHEDULES[self.schedule]((step - 1) / max(self.steps, 1))


@dataclass(frozen=True)
class Progress:
    """One update.

    Attributes:
        position: After it.
        batches: Of an epoch.
        loss: Of the batch by trained block, before the update.
        rows: Of the batch.
        seconds: It took.
        learning_rate: It used.
        measured: The process's memory after it; None where nothing measures.
    """

    position: Position
    batches: int
    loss: Mapping[str, float]
    rows: int
    seconds: float
    learning_rate: float
    measured: MemoryReading | None = None

    @property
    def rows_per_s(self) -> float:
        """Rows trained on per second."""
        return self.rows / self.seconds if self.seconds else 0.0


class Trainer:
    """Trains a network as planned.

    Args:
        network: Opened with the plan's trained blocks, and with gradient sums where the plan accumulates.
        plan: Which graphs run, at what micro-batch.
        rows: What is trained on.
        learning_rate: By step.
        seed: Of dropout.
        meter: Measures after every update.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        *,
        rows: TrainingRows,
        learning_rate: LearningRate,
        seed: int,
        meter: Meter | None = None,
    ) -> None:
        self._network = network
        self._plan = plan
        self._rows = rows
        self._learning_rate = learning_rate
        self._seed = seed
        self._meter = meter

    def epoch(self, start: Position) -> Iterator[Progress]:
        """Train from a position to the end of its epoch; the graphs are loaded for just as long.

        Yields:
            After each update; between two of them the network's arrays are at rest.

        Raises:
            RunError: The loss of a block is not a finite number.
            EngineError: A graph cannot be run.
            DataError: Rows cannot be read.
        """
        sweep = _Sweep(self._network, self._plan, self._rows, self._seed)
        batches = self._rows.order.batches_per_epoch
        position = start
        for index in self._rows.order.batches(start.epoch, start.batch):
            began = time.perf_counter()
            position = replace(position, batch=position.batch + 1, step=position.step + 1)
            rate = self._learning_rate.at(position.step)
            loss = sweep.update(index, position.step, rates(self._network.manifest.optimizer, rate, position.step))
            seconds = time.perf_counter() - began
            measured = self._meter.read() if self._meter else None
            yield Progress(position, batches, loss, len(index), seconds, rate, measured)


class _Sweep:
    """The graphs of all blocks, loaded and bound, and one update with them."""

    def __init__(self, network: Network, plan: Plan, rows: TrainingRows, seed: int) -> None:
        manifest = network.manifest
        self._network = network
        self._rows = rows
        self._seed = seed
        self._trained = {block for block, part in enumerate(plan.blocks) if part.trained}
        kinds: list[GraphKind] = [part.graphs[0] for part in plan.blocks if part.graphs]
        self._takes_seed = {
            block for block, kind in enumerate(kinds) if "seed" in manifest.blocks[block].graphs[kind].inputs
        }
        self._buffers: Buffers = allocate_buffers(manifest, plan.micro_batch, rates(manifest.optimizer, 1.0, 1))
        self._chain = Chain(network, kinds, self._buffers)
        self._applies = {
            block: self._bind_apply(block) for block in self._trained if "apply" in plan.blocks[block].graphs
        }

    def _bind_apply(self, block: int) -> Call:
        arrays = {**self._network.memories[block].arrays, **self._buffers.scalars}
        return self._network.graph(block, "apply").bind(arrays)

    def update(self, index: NDArray[np.int64], step: int, scalars: Mapping[str, float]) -> dict[str, float]:
        """One batch: the loss of every trained block."""
        self._buffers.set_rates(scalars)
        loss = dict.fromkeys(sorted(self._trained), 0.0)
        for number, part in enumerate(even_parts(index, self._buffers.rows)):
            self._fill(part, batch_rows=len(index))
            self._run_blocks(len(part), step, number, loss)
        self._check_finite(loss, step)
        for block, call in self._applies.items():
            call.run()
            self._network.memories[block].zero_gradients()
        return {self._name(block): value for block, value in loss.items()}

    def _fill(self, index: NDArray[np.int64], *, batch_rows: int) -> None:
        rows = len(index)
        self._buffers.features[:rows] = self._network.preprocessing.apply(self._rows.x[index])
        self._buffers.y[:rows] = self._rows.y[index]
        # The gradients of micro-batches add up to that of the batch's mean loss.
        self._buffers.row_weight[:rows] = 1.0 / batch_rows

    def _run_blocks(self, rows: int, step: int, number: int, loss: dict[int, float]) -> None:
        scalars = self._buffers.scalars
        for block, call in enumerate(self._chain.calls(rows)):
            if block in self._takes_seed:
                scalars["seed"][...] = graph_seed(self._seed, step=step, micro_batch=number, block=block)
            call.run()
            if block in self._trained:
                loss[block] += float(scalars["loss"])

    def _check_finite(self, loss: Mapping[int, float], step: int) -> None:
        for block, value in loss.items():
            if not math.isfinite(value):
                raise RunError(
                    f"the loss of block `{self._name(block)}` is {value} at step {step}",
                    hint="lower the learning rate; the last checkpoint is kept",
                )

    def _name(self, block: int) -> str:
        return self._network.manifest.blocks[block].name
