"""A small network exported for onnxruntime-training too, and copies of its artifact with something changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from edgeff.engines import ORT_TRAINING, engine_manifest
from edgeff.export import ExportSettings, export_network
from edgeff.manifest import OptimizerSpec, TensorSpec, TrainingDefaults
from edgeff.manifest_rules import MANIFEST_FILE
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.preprocess import Preprocessing

SHAPE, CLASSES, ROWS = (1, 6, 6), 3, 24
ENGINE_FILE = engine_manifest(ORT_TRAINING)
ADAMW = optimizer_spec("adamw")
Change = Callable[[dict[str, Any]], Any]


def small_network() -> LocalNetwork:
    """Two blocks: one that is pooled, and one with a constant tensor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [
            LocalBlock(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))),
            LocalBlock(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh()), projection="fixed"),
        ]
        return LocalNetwork(blocks, input_shape=SHAPE, classes=CLASSES, name="small")


def small_rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows of three classes that can be told apart."""
    draw = np.random.default_rng(0)
    y = np.arange(ROWS) % CLASSES
    x = draw.standard_normal((ROWS, *SHAPE)) + np.linspace(-1, 1, CLASSES)[y].reshape(-1, 1, 1, 1)
    return x.astype(np.float32), y


def export_small(out: Path, *, engine: str = ORT_TRAINING, optimizer: OptimizerSpec = ADAMW) -> Path:
    """Export it; the same bytes at every call."""
    row = TensorSpec("x", SHAPE)
    training = TrainingDefaults(batch_size=6, epochs=1, replay_fraction=0.0, guard_fraction=0.25)
    settings = ExportSettings(optimizer=optimizer, training=training, engine=engine)
    return export_network(small_network(), out, preprocessing=Preprocessing(row, (), row), settings=settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact that is a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edited(
    artifact: Path,
    folder: Path,
    *,
    files: Mapping[str, bytes] | None = None,
    manifest: Change | None = None,
    engine: Change | None = None,
) -> Path:
    """A copy with other files, whose manifests know them, and with other manifests."""
    files = files or {}
    shutil.copytree(artifact, folder)
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    if ENGINE_FILE not in files:
        _rewrite(folder, ENGINE_FILE, set(files), engine)
    _rewrite(folder, MANIFEST_FILE, {*files, ENGINE_FILE}, manifest)
    return folder


def _rewrite(folder: Path, file: str, changed: set[str], change: Change | None) -> None:
    document = json.loads((folder / file).read_text(encoding="utf-8"))
    for one in changed:
        data = (folder / one).read_bytes()
        document["files"][one] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if change is not None:
        change(document)
    (folder / file).write_text(json.dumps(document), encoding="utf-8")


def changed_model(artifact: Path, file: str, change: Callable[[onnx.GraphProto], Any]) -> bytes:
    """An ONNX file of an artifact with another graph."""
    model = onnx.load(artifact / file)
    change(model.graph)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
