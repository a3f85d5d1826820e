"""A worker of the speed benchmark: edgeff's runtime on stock onnxruntime. See `speed_protocol` for what it says.

    .venv-device/bin/python benchmarks/speed_worker_own.py JOB

JOB's folder has the artifact. What is timed is the training loop as `edgeff train-on-device` runs it, without guard,
checkpoints and loading. In stages an update is one of every block, and what goes into a block is computed by the one
before and written to a file once for each update, as in a run of a single epoch: more epochs use that file again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from audit_protocol import Array, Job, rows
from speed_protocol import Ready, Taken, answers, serve

from edgeff.artifact import Artifact, open_artifact
from edgeff.errors import EdgeffError
from edgeff.providers import CPU
from edgeff.rows import Rows, row_index
from edgeff.runtime.adapt import engine_request
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.features import FeatureFile, HandedOverRows
from edgeff.runtime.methods import METHODS, artifact_of, plan_trained
from edgeff.runtime.network import Network, open_network, open_on_disk
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.provider_check import check_provider
from edgeff.runtime.start import start
from edgeff.runtime.store import ArtifactStore
from edgeff.runtime.trainer import LearningRate, Position, Trainer
from edgeff.runtime.update import TrainingRows
from edgeff.runtime.zeroth_order import ZerothOrder

MEZO_RATE = 1e-6


@dataclass(frozen=True)
class Turns(MixedOrder):
    """The rows in order, batch after batch, and from the beginning again without an end."""

    def batches(self, epoch: int, first: int = 0) -> Iterator[Array]:
        """See `MixedOrder.batches`."""
        del epoch
        count = self.own_rows // self.batch_size
        while True:
            yield np.arange(self.batch_size) + self.batch_size * (first % count)
            first += 1


@dataclass(frozen=True)
class Repeated:
    """Some rows again and again, up to a number.

    Attributes:
        rows: In memory.
        count: How many there seem to be.
    """

    rows: Array
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return (self.count, *self.rows.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows."""
        return self.rows.dtype

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any, /) -> Array:
        return self.rows[row_index(key, self.count) % len(self.rows)]


@dataclass(frozen=True)
class Training:
    """What is trained, and how.

    Attributes:
        artifact: What the method trains.
        plan: By which it does.
        engine: Started.
        x: Two batches of rows.
        y: Their labels.
    """

    artifact: Artifact
    plan: Plan
    engine: OnnxRuntime
    x: Array
    y: Array

    def trainer(self, network: Network, x: Rows, y: Array, *, only: int | None = None) -> Iterator[Any]:
        """Update after update, without an end."""
        order = Turns(len(x), 0, self.plan.batch_size, 0.0, 0)
        rate = LearningRate(self.artifact.manifest.training.learning_rate, "constant", steps=1)
        trainer = Trainer(network, self.plan, rows=TrainingRows(x, y, order), learning_rate=rate, seed=0, only=only)
        return trainer.epoch(Position())


def sweep(training: Training) -> Callable[[int], float]:
    """Bursts of updates of all blocks on each batch; back-propagation is the same with one block."""
    plan = training.plan
    network = open_network(
        training.artifact,
        training.engine,
        trained=[block.name for block in training.artifact.manifest.blocks],
        accumulate=any("apply" in part.graphs for part in plan.blocks),
        groups=plan.groups,
    )
    updates = training.trainer(network, training.x, training.y)

    def burst(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            next(updates)
        return time.perf_counter() - began

    return burst


def forward_only(training: Training) -> Callable[[int], float]:
    """Bursts of MeZO's updates."""
    trainer = ZerothOrder(open_network(training.artifact, training.engine), training.plan.micro_batch)
    batches = np.arange(len(training.x)).reshape(2, -1)
    steps = iter(range(2**62))

    def burst(count: int) -> float:
        began = time.perf_counter()
        for step, _ in zip(steps, range(count), strict=False):
            trainer.step(training.x, training.y, batches[step % 2], seed=step, rate=MEZO_RATE)
        return time.perf_counter() - began

    return burst


class Stages:
    """Bursts of updates block after block, with only one in memory at a time.

    Attributes:
        seconds: Of all bursts.
        feature_seconds: Of these, in which blocks' inputs were computed and written.
    """

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        store = ArtifactStore(training.artifact)
        self.on_disk = open_on_disk(training.artifact, training.engine, store)
        self.seconds = self.feature_seconds = 0.0

    def burst(self, count: int) -> float:
        """So many updates of every block, each on rows of its own; loading graphs and weights is not timed."""
        rows = count * self.training.plan.batch_size
        x: Rows = Repeated(self.training.x, rows)
        y = np.resize(self.training.y, rows)
        total = 0.0
        for block in range(len(self.training.plan.blocks)):
            if block:
                x, seconds = self.features(x, block)
                self.feature_seconds += seconds
                total += seconds
            total += self.update(x, y, block, count)
        self.seconds += total
        return total

    def update(self, x: Rows, y: Array, block: int, count: int) -> float:
        """Seconds for some updates of a block."""
        accumulate = "apply" in self.training.plan.blocks[block].graphs
        network = self.on_disk.holding(block, accumulate=accumulate)
        updates = self.training.trainer(network, x, y, only=block)
        return sum(next(updates).seconds for _ in range(count))

    def features(self, x: Rows, block: int) -> tuple[Rows, float]:
        """What goes into a block, from what went into the one before; and the seconds that took."""
        source = HandedOverRows(
            self.on_disk, x, first=block - 1, stop=block, micro_batch=self.training.plan.micro_batch
        )
        file = self.file(block, len(x))
        file.remove()
        began = time.perf_counter()
        for _ in file.fill(source, self.training.plan.micro_batch):
            pass
        seconds = time.perf_counter() - began
        self.file(block - 1, len(x)).remove()
        return file.read(), seconds

    def file(self, block: int, rows: int) -> FeatureFile:
        """Where the inputs of a block are."""
        shape = tuple(self.training.artifact.manifest.blocks[block].input.shape)
        return FeatureFile(self.folder / f"features.{block}.bin", "float32", shape, rows, "random rows")

    def settings(self) -> Mapping[str, Any]:
        """The part of the time that went into features, which further epochs spare."""
        return {"features_share": round(self.feature_seconds / self.seconds, 3)}


def planned(job: Job, artifact: Artifact, engine: OnnxRuntime) -> Plan:
    """The plan of a job: as fast as its micro-batch allows."""
    request = Request(
        batch_size=job.batch,
        rows=2 * job.batch,
        row_bytes=3 * 8 * 2 * job.batch,
        threads=job.threads,
        disk_bytes=2**40,
        micro_batch=job.micro_batch,
        **engine_request(engine),
    )
    return plan_trained(artifact.manifest, job.method, request)


def main(job: Job, folder: Path) -> None:
    channel = answers()
    x, y = (array.reshape(-1, *array.shape[2:]) for array in rows(job))
    engine, meter, _ = start(job.threads, provider=str(job.settings.get("device", CPU)))
    artifact = artifact_of(open_artifact(Path(job.folder) / "artifact"), job.method)
    plan = planned(job, artifact, engine)
    check_provider(artifact, engine, plan)
    engine.reserve(plan.arena_bytes)
    training = Training(artifact, plan, engine, x, y)
    settings: Callable[[], Mapping[str, Any]] = dict
    if METHODS[job.method].forward_only:
        burst = forward_only(training)
    elif plan.schedule == "stage":
        stages = Stages(training, folder)
        burst, settings = stages.burst, stages.settings
    else:
        burst = sweep(training)
    burst(1)
    ready = Ready(engine.name.removeprefix("onnxruntime "), plan.micro_batch, meter.floor_bytes)
    serve(channel, ready, burst, lambda: Taken(meter.read().training_bytes, settings()))


if __name__ == "__main__":
    asked = Job(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        try:
            main(asked, Path(scratch))
        except EdgeffError as error:
            sys.exit(str(error))
