"""A few updates of a method on random rows, in this process, measured from its start."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeff.artifact import Artifact, open_artifact
from edgeff.dataset import Dataset
from edgeff.manifest import Manifest
from edgeff.rows import row_index
from edgeff.runtime.adapt import Adaptation
from edgeff.runtime.allocator import AllocatorMode
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Finished
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.measure import UPDATES, Measured, MeasuredBlock
from edgeff.runtime.meter import Meter
from edgeff.runtime.methods import METHODS, artifact_of, plan_trained, request_for
from edgeff.runtime.network import open_network
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.trainer import Progress
from edgeff.runtime.zeroth_order import ZerothOrder

# A prime count: no two rows or channels are alike.
_DRAWN = np.random.default_rng(0).standard_normal(4093, np.float32)


@dataclass(frozen=True)
class RandomRows:
    """Rows that are made when they are asked for, out of a few random numbers; the same numbers give the same rows.

    Drawing as many would take a tenth of the time that a small network learns from them.

    Attributes:
        shape: Rows first, then the shape of one row.
        dtype: Of the rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        index = row_index(key, len(self))
        first = int(index[0]) % len(_DRAWN) if len(index) else 0
        drawn = np.resize(np.roll(_DRAWN, first), (len(index), *self.shape[1:]))
        return drawn if self.dtype == np.float32 else (drawn > 0).astype(self.dtype)


def measure_here(
    path: Path, method: str, request: Request, *, engine: OnnxRuntime, meter: Meter, allocator: AllocatorMode
) -> Measured:
    """Train, and measure this process.

    Args:
        path: Artifact.
        method: As in `edgeff.runtime.methods.METHODS`.
        request: What a plan is made for; its rows are how many are trained on.
        engine: Started before the meter.
        meter: Its floor is from before the artifact is opened.
        allocator: How the C allocator was set.

    Raises:
        EdgeffError: Nothing fits, or it cannot be trained.
    """
    opened = open_artifact(path)
    trained = artifact_of(opened, method)
    plan = plan_trained(trained.manifest, method, request)
    wanted = request_for(trained.manifest, method, request)
    del opened
    blocks: tuple[MeasuredBlock, ...] = ()
    if METHODS[method].forward_only:
        speed = _forward_only(trained, plan, engine)
    else:
        speed, blocks = _adapted(trained, wanted, plan, engine, meter, allocator)
    reading = meter.read()
    return Measured(
        method=method,
        runtime=engine.name,
        batch=request.batch_size,
        micro_batch=plan.micro_batch,
        floor_bytes=reading.floor_bytes,
        training_bytes=reading.training_bytes,
        planned_bytes=plan.planned_bytes,
        rows_per_s=speed,
        blocks=blocks,
    )


def _adapted(
    artifact: Artifact, request: Request, plan: Plan, engine: OnnxRuntime, meter: Meter, allocator: AllocatorMode
) -> tuple[float, tuple[MeasuredBlock, ...]]:
    """One epoch of some updates, all of a run but its guard."""
    settings = _settings(artifact.manifest, request, plan)
    x, y = _random_rows(artifact.manifest, request.rows)
    seconds: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as parent:
        folder = RunFolder(Path(parent, "run"))
        dataset = Dataset("random rows", x, y)
        # To the end, whatever it takes: that a plan was too low is what is to be found out.
        free = replace(request, budget_bytes=None)
        run = Adaptation(artifact, dataset, settings, free, plan, engine, folder, meter, allocator)
        for event in run.run():
            if isinstance(event, Progress):
                seconds.setdefault(event.position.stage, []).append(event.seconds)
            elif isinstance(event, Finished):
                blocks = tuple(MeasuredBlock(**block) for block in event.result["blocks"])
    return request.batch_size / sum(map(_typical, seconds.values())), blocks


def _settings(manifest: Manifest, request: Request, plan: Plan) -> Any:

    return AdaptSettings(
        epochs=1,
        batch_size=request.batch_size,
        learning_rate=manifest.training.learning_rate,
        guard_fraction=0.0,
        blocks=None if request.trained is None else tuple(request.trained),
        schedule=plan.schedule,
        feature_dtype=plan.features if plan.features in ("float16", "uint8") else "float32",
    )


def _forward_only(artifact: Artifact, plan: Plan, engine: OnnxRuntime) -> float:
    """Rows per second."""
    engine.reserve(plan.arena_bytes)
    network = open_network(artifact, engine)
    trainer = ZerothOrder(network, plan.micro_batch)
    x, y = _random_rows(artifact.manifest, plan.batch_size)
    rows = PreprocessedRows(x, network.preprocessing)
    index, seconds = np.arange(plan.batch_size), []
    for step in range(UPDATES):
        began = time.perf_counter()
        trainer.step(rows, y, index, seed=step, rate=1e-6)
        seconds.append(time.perf_counter() - began)
    return plan.batch_size / _typical(seconds)


def _typical(seconds: Sequence[float]) -> float:
    """The median of all updates but the first, which has to load."""
    later = sorted(seconds[1:] or seconds)
    return later[len(later) // 2]


def _random_rows(manifest: Manifest, rows: int) -> tuple[RandomRows, NDArray[np.int64]]:
    x = RandomRows((rows, *manifest.input.shape), np.dtype(manifest.input.dtype))
    return x, np.arange(rows, dtype=np.int64) % len(manifest.classes)
