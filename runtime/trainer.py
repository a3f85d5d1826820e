"""The training loop: every batch passes some consecutive blocks, and each of them that is trained updates itself.

These are all blocks (`sweep`), or a single one whose inputs come from elsewhere (`stage`). What an update is:
`edgeff.runtime.update`. The trainer yields progress and prints nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from edgeff.errors import RunError
from edgeff.runtime.block_meter import BlockMeter
from edgeff.runtime.device_memory import Copies
from edgeff.runtime.meter import MemoryReading, Meter
from edgeff.runtime.network import Network
from edgeff.runtime.plan_parts import Plan
from edgeff.runtime.stops import Interrupted, Stop, never
from edgeff.runtime.update import TrainingRows, Update, sums_gradients

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
        stage: Blocks that are finished; 0 where all are trained together.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    stage: int = 0


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
        micro_batch: Rows that went from block to block at once.
        seconds: It took.
        learning_rate: It used.
        measured: The process's memory after it; None where nothing measures.
        copies: Made between the runtime's memory and a device's.
    """

    position: Position
    batches: int
    loss: Mapping[str, float]
    rows: int
    micro_batch: int
    seconds: float
    learning_rate: float
    measured: MemoryReading | None = None
    copies: Copies = field(default_factory=Copies)

    @property
    def rows_per_s(self) -> float:
        """Rows trained on per second."""
        return self.rows / self.seconds if self.seconds else 0.0


class Trainer:
    """Trains some consecutive blocks of a network as planned.

    Args:
        network: Has these blocks in memory, with gradient sums where the plan accumulates.
        plan: Which graphs run, at what micro-batch.
        rows: What is trained on.
        learning_rate: By step.
        seed: Of dropout.
        meter: Measures after every update.
        block_meter: Measures blocks one by one.
        only: Number of the one block to train; None for all.
        stop: Asked between the micro-batches of a batch, which is left where there is a reason, and none of the blocks
            has learnt from it.
        rate_factors: By block, what its learning rate is multiplied by; looked at when an epoch is begun.
        stage: Blocks that are finished.
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
        block_meter: BlockMeter | None = None,
        only: int | None = None,
        stop: Stop = never,
        rate_factors: Mapping[str, float] | None = None,
        stage: int = 0,
    ) -> None:
        self._network = network
        self._plan = plan
        self._rows = rows
        self._learning_rate = learning_rate
        self._seed = seed
        self._meter = meter
        self._block_meter = block_meter
        self._only = only
        self._stop = stop
        self._rate_factors = {} if rate_factors is None else rate_factors
        self.stage = stage
        self._update: Update | None = None

    @property
    def network(self) -> Network:
        """What is trained."""
        return self._network

    def settled(self) -> Network:
        """What is trained, with its arrays up to date in the midst of an epoch too."""
        if self._update is not None:
            self._update.settle()
        return self._network

    def change_plan(self, plan: Plan) -> None:
        """Go on by another plan, from the next epoch that is begun; the schedule must be the same."""
        if plan.groups != self._plan.groups:  # let the old sums go first: there may be no room for both
            self._network = self._network.accumulating(False)
        self._plan = plan
        self._network = self._network.accumulating(sums_gradients(self._network.engine, plan.blocks), plan.groups)

    def epoch(self, start: Position) -> Iterator[Progress]:
        """Train from a position to the end of its epoch; the graphs are loaded for just as long.

        Yields:
            After each update; between two of them the arrays of `settled` are at rest.

        Raises:
            NonFiniteLossError: The loss of a block is not a finite number.
            Interrupted: There was a reason to stop inside a batch: the arrays are as they were before it.
            EngineError: A graph cannot be run.
            DataError: Rows cannot be read.
        """
        if start.batch >= self._rows.order.batches_per_epoch:
            return
        self._update = Update(
            self._network,
            self._plan,
            self._rows,
            self._seed,
            self._only,
            self._block_meter,
            self._rate_factors,
            self._stop,
            start.step,
        )
        try:
            yield from self._updates(self._update, start)
        except (GeneratorExit, Interrupted):
            self.settled()
            raise
        finally:
            self._update = None

    def _updates(self, update: Update, start: Position) -> Iterator[Progress]:
        batches = self._rows.order.batches_per_epoch
        position = start
        for index in self._rows.order.batches(start.epoch, start.batch):
            began = time.perf_counter()
            position = replace(position, batch=position.batch + 1, step=position.step + 1)
            rate = self._learning_rate.at(position.step)
            before = self._network.engine.copies
            loss = update.run(index, position.step, rate)
            seconds = time.perf_counter() - began
            measured = self._meter.read() if self._meter else None
            copies = self._network.engine.copies - before
            yield Progress(position, batches, loss, len(index), self._plan.micro_batch, seconds, rate, measured, copies)
        update.settle()
