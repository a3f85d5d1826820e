"""How well a network predicts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeff.rows import Rows
from edgeff.runtime.arrays import Array
from edgeff.runtime.network import Network
from edgeff.runtime.predict import DEFAULT_MICRO_BATCH, forward, fuse
from edgeff.runtime.stops import Interrupted, Stop, never


@dataclass(frozen=True)
class Evaluation:
    """How well a network predicts.

    Attributes:
        accuracy: Part of the rows whose fused prediction is right.
        log_loss: Mean over the rows of minus the log-probability of the right class under the fused prediction; None
            where it is not finite.
        per_class: Accuracy on the rows of each class; None for a class without rows.
        per_block: Accuracy of each block by itself.
        rows: Evaluated.
        rows_per_s: Speed; 0 where it was read from a checkpoint, which holds no times.
    """

    accuracy: float
    log_loss: float | None
    per_class: tuple[float | None, ...]
    per_block: Mapping[str, float]
    rows: int
    rows_per_s: float = 0.0


def evaluate(
    network: Network,
    x: Rows,
    y: NDArray[np.int64],
    *,
    micro_batch: int = DEFAULT_MICRO_BATCH,
    stop: Stop = never,
) -> Evaluation:
    """Compare predictions with labels.

    Args:
        network: The blocks.
        x: Raw rows; at least one.
        y: Labels, int64 (rows,), each 0..K-1.
        micro_batch: Rows that run at once.
        stop: Asked after each.

    Raises:
        DataError: Rows cannot be read.
        EngineError: A graph cannot be run.
        Interrupted: There was a reason to stop.
    """
    manifest = network.manifest
    began = time.perf_counter()
    right = np.zeros(len(y), bool)
    right_by_block = np.zeros(len(manifest.blocks), np.int64)
    loss = 0.0
    for place, found in forward(network, x, blocks=len(manifest.blocks), micro_batch=micro_batch):
        fused = fuse(found, manifest.fusion)
        right[place] = _right(fused, y[place])
        right_by_block += [int(_right(values, y[place]).sum()) for values in found]
        if stop():
            raise Interrupted
        loss -= float(fused[np.arange(len(fused)), y[place]].sum(dtype=np.float64))
    seconds = time.perf_counter() - began
    names = [block.name for block in manifest.blocks]
    return Evaluation(
        accuracy=float(right.mean()),
        log_loss=loss / len(y) if math.isfinite(loss) else None,
        per_class=_per_class(right, y, len(manifest.classes)),
        per_block=dict(zip(names, (right_by_block / len(y)).tolist(), strict=True)),
        rows=len(y),
        rows_per_s=len(y) / seconds if seconds else 0.0,
    )


def _right(log_probabilities: Array, y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are predicted right; one with NaN is not, whatever argmax says of it."""
    right: NDArray[np.bool_] = (log_probabilities.argmax(axis=1) == y) & ~np.isnan(log_probabilities).any(axis=1)
    return right


def _per_class(right: NDArray[np.bool_], y: NDArray[np.int64], classes: int) -> tuple[float | None, ...]:
    members = [y == label for label in range(classes)]
    return tuple(float(right[rows].mean()) if rows.any() else None for rows in members)
