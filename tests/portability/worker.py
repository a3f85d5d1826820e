"""Trains artifacts in this environment, on edgeff's own runtime, and prints their losses: one line of JSON.

    python tests/portability/worker.py FOLDER [--provider NAME]

`FOLDER` has `cases.json` and the artifact of every case (`networks.write_cases`). Each is trained twice: by the fused
graph, and in micro-batches whose gradients are summed. Needs what a device has, and no more.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgeff.artifact import Artifact, open_artifact
from edgeff.errors import EngineError
from edgeff.preprocess import Preprocessing
from edgeff.providers import CPU
from edgeff.runtime.adapt import engine_request
from edgeff.runtime.engine import Engine, OnnxRuntime
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.network import open_network
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request, Updates
from edgeff.runtime.provider_check import check_provider
from edgeff.runtime.providers import told
from edgeff.runtime.trainer import LearningRate, Position, Trainer
from edgeff.runtime.update import TrainingRows

UPDATES: tuple[Updates, ...] = ("fused", "accumulated")


class Unavailable(Exception):
    """A provider that cannot be had; the text says why."""


@dataclass(frozen=True)
class InOrder:
    """All rows one after another, and behind the last the first: what a trainer asks of a `MixedOrder`.

    Attributes:
        rows: How many there are.
        batch_size: Rows of a batch.
        batches_per_epoch: Of the one epoch.
    """

    rows: int
    batch_size: int
    batches_per_epoch: int

    def batches(self, epoch: int, first: int = 0) -> Iterator[NDArray[np.int64]]:
        """Row numbers of each batch."""
        del epoch
        for batch in range(first, self.batches_per_epoch):
            yield np.arange(batch * self.batch_size, (batch + 1) * self.batch_size) % self.rows


def train(artifact: Artifact, engine: Engine, updates: Updates, case: Mapping[str, int]) -> list[dict[str, float]]:
    """The losses of all blocks at each update, on the artifact's replay rows and at its learning rate."""
    manifest, steps = artifact.manifest, case["steps"]
    batch_size = manifest.training.batch_size
    micro_batch = batch_size if updates == "fused" else case["micro_batch"]
    asked = {**engine_request(engine), "updates": updates}
    chosen = plan(manifest, Request(batch_size, schedule="sweep", micro_batch=micro_batch, **asked))
    check_provider(artifact, engine, chosen)
    engine.reserve(chosen.arena_bytes)
    names = [block.name for block in manifest.blocks]
    network = open_network(artifact, engine, trained=names, accumulate=updates == "accumulated")
    rate = LearningRate(manifest.training.learning_rate, "constant", steps)
    trainer = Trainer(network, chosen, rows=rows_of(artifact, steps), learning_rate=rate, seed=0)
    return [dict(progress.loss) for progress in trainer.epoch(Position())]


def rows_of(artifact: Artifact, steps: int) -> TrainingRows:
    """The replay rows, in order."""
    manifest, replay = artifact.manifest, artifact.replay()
    assert replay is not None
    x, y = replay
    preprocessing = Preprocessing(manifest.input, manifest.preprocessing, manifest.features)
    order = cast(MixedOrder, InOrder(len(y), manifest.training.batch_size, steps))
    return TrainingRows(PreprocessedRows(x, preprocessing), y, order)


def make_engine(provider: str | None) -> OnnxRuntime:
    """The engine, on one thread.

    Args:
        provider: What runs the operators; None for the processor.

    Raises:
        Unavailable: It is not there, or has no device here.
    """
    try:
        return OnnxRuntime(1, provider or CPU)
    except EngineError as error:
        raise Unavailable(str(error)) from error


def run(folder: Path, provider: str | None) -> dict[str, Any]:
    """What is printed."""
    engine = make_engine(provider)
    losses: dict[str, dict[str, Any]] = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        artifact = open_artifact(folder / name)
        losses[name] = {updates: train(artifact, engine, updates, case) for updates in UPDATES}
    placed = [told(engine.provider, engine.placements)] if engine.placements else []
    versions = [
        engine.name,
        f"numpy {np.__version__}",
        f"Python {platform.python_version()}",
        platform.machine(),
        *placed,
    ]
    return {"versions": versions, "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--provider")
    given = parser.parse_args()
    try:
        found = run(given.folder, given.provider)
    except Unavailable as reason:
        found = {"unavailable": str(reason)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
