"""How far two engines and torch come apart over 50 updates of `vgg8` on real images, by AdamW and by SGD.

    EDGEFF_DATA_DIR=... .venv/bin/python benchmarks/agreement.py [--steps 50] [--batch 32] [--only sgd]

CIFAR-10 rows, float32, no dropout, constant rate; micro-batch 8 on the engines, the whole batch in torch. Prints the
largest relative difference of a block's loss at any step, for each pair.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from networks import reference

from edgeff.artifact import Artifact, open_artifact
from edgeff.data import open_dataset
from edgeff.engines import ORT_TRAINING
from edgeff.export import ExportSettings, export_network
from edgeff.learner import Learner, learn_batch
from edgeff.manifest import TensorSpec
from edgeff.preprocess import Preprocessing
from edgeff.pretrain_settings import PretrainSettings
from edgeff.runtime.adapt import engine_request
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.network import open_network, preprocessing_of
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.ort_training import OrtTraining
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.trainer import LearningRate, Position, Trainer
from edgeff.runtime.update import TrainingRows

SETTINGS = (
    PretrainSettings(optimizer="adamw", learning_rate=1e-3, schedule="constant"),
    PretrainSettings(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1e-3, schedule="constant"),
)
Losses = Sequence[dict[str, float]]


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training rows, each channel of mean 0 and deviation 1."""
    found = open_dataset("cifar10:train", data_dir=Path(os.environ["EDGEFF_DATA_DIR"]))
    x = found.x[np.arange(count)].astype(np.float32)
    mean, deviation = x.mean((0, 2, 3), keepdims=True), x.std((0, 2, 3), keepdims=True)
    return np.ascontiguousarray((x - mean) / deviation), found.y[:count].astype(np.int64)


def on_engine(
    engine: OnnxRuntime, artifact: Artifact, x: np.ndarray, y: np.ndarray, order: MixedOrder, rate: float
) -> Losses:
    manifest = artifact.manifest
    asked = {"updates": "accumulated", **engine_request(engine)}
    chosen = plan(manifest, Request(order.batch_size, schedule="sweep", micro_batch=8, **asked))
    engine.reserve(chosen.arena_bytes)
    names = [block.name for block in manifest.blocks]
    network = open_network(artifact, engine, trained=names, accumulate=not engine.keeps_gradients)
    rows = TrainingRows(PreprocessedRows(x, preprocessing_of(manifest)), y, order)
    trainer = Trainer(network, chosen, rows=rows, learning_rate=LearningRate(rate, "constant", 1), seed=0)
    return [dict(progress.loss) for progress in trainer.epoch(Position())]


def in_torch(
    network: torch.nn.Module, x: np.ndarray, y: np.ndarray, order: MixedOrder, settings: PretrainSettings
) -> Losses:
    learners = [Learner(block, settings, steps=1) for block in copy.deepcopy(network).eval().sequence]
    found = []
    for step, index in enumerate(order.batches(1), start=1):
        losses = learn_batch(learners, torch.from_numpy(x[index]), torch.from_numpy(y[index]), step=step)
        found.append({name: float(loss) for name, loss in losses.items()})
    return found


def apart(one: Losses, other: Losses) -> float:
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", choices=["adamw", "sgd"])
    given = parser.parse_args()
    x, y = images(given.steps * given.batch)
    order = MixedOrder(len(y), 0, given.batch, 0.0, seed=1)
    network, row = reference("vgg8"), TensorSpec("x", (3, 32, 32))
    for settings in (one for one in SETTINGS if given.only in (None, one.optimizer)):
        with tempfile.TemporaryDirectory() as folder:
            chosen = ExportSettings(optimizer=settings.optimizer_spec(), engine=ORT_TRAINING)
            path = export_network(
                network, Path(folder, "vgg8"), preprocessing=Preprocessing(row, (), row), settings=chosen
            )
            artifact, rate = open_artifact(path), settings.learning_rate
            losses = {
                "torch": in_torch(network, x, y, order, settings),
                "onnxruntime": on_engine(OnnxRuntime(1), artifact, x, y, order, rate),
                ORT_TRAINING: on_engine(OrtTraining(1), artifact.for_engine(ORT_TRAINING), x, y, order, rate),
            }
        found = [f"{a} to {b} {apart(losses[a], losses[b]):.1e}" for a, b in combinations(losses, 2)]
        print(f"{settings.optimizer} at rate {rate:g}: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
