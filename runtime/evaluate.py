"""Prediction and its accuracy, with the `forward` graphs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeff.rows import Rows
from edgeff.runtime.buffers import allocate_buffers
from edgeff.runtime.engine import Array
from edgeff.runtime.network import Chain, Network

DEFAULT_MICRO_BATCH = 32


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
        rows_per_s: Speed.
    """

    accuracy: float
    log_loss: float | None
    per_class: tuple[float | None, ...]
    per_block: Mapping[str, float]
    rows: int
    rows_per_s: float


def fuse(log_probabilities: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted sum of the blocks' log-probabilities, each (rows, classes); its softmax is the fused distribution.

    A block of weight 0 is left out: its minus infinity would become NaN.
    """
    used = [
        values if weight == 1.0 else values * np.float32(weight)
        for values, weight in zip(log_probabilities, weights, strict=True)
        if weight
    ]
    total = used[0].copy()
    for values in used[1:]:
        total += values
    return total


def predict(network: Network, x: Rows, *, micro_batch: int = DEFAULT_MICRO_BATCH) -> NDArray[np.float32]:
    """Fused log-probabilities.

    Args:
        network: The blocks.
        x: Raw rows.
        micro_batch: Rows that run at once.

    Returns:
        (rows, classes): for each row the weighted sum over the blocks, as in `fuse`; the prediction is its argmax.

    Raises:
        DataError: Rows cannot be read.
        EngineError: A graph cannot be run.
    """
    manifest = network.manifest
    # Blocks after the last that counts add nothing.
    needed = max(block for block, weight in enumerate(manifest.fusion) if weight) + 1
    out = np.empty((len(x), len(manifest.classes)), np.float32)
    for place, found in forward(network, x, blocks=needed, micro_batch=micro_batch):
        out[place] = fuse(found, manifest.fusion[:needed])
    return out


def evaluate(network: Network, x: Rows, y: NDArray[np.int64], *, micro_batch: int = DEFAULT_MICRO_BATCH) -> Evaluation:
    """Compare predictions with labels.

    Args:
        network: The blocks.
        x: Raw rows; at least one.
        y: Labels, int64 (rows,), each 0..K-1.
        micro_batch: Rows that run at once.

    Raises:
        DataError: Rows cannot be read.
        EngineError: A graph cannot be run.
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
        loss += _log_loss(fused, y[place])
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


def forward(network: Network, x: Rows, *, blocks: int, micro_batch: int) -> Iterator[tuple[slice, list[Array]]]:
    """Run rows through the first blocks; the graphs are loaded for just as long.

    Yields:
        Which rows, and the log-probabilities (rows, classes) of each block.
    """
    buffers = allocate_buffers(network.manifest, min(micro_batch, len(x)), {})
    chain = Chain(network, ["forward"] * blocks, buffers)
    for first in range(0, len(x), buffers.rows):
        place = slice(first, min(first + buffers.rows, len(x)))
        rows = place.stop - place.start
        buffers.features[:rows] = network.preprocessing.apply(x[place])
        found = []
        for call in chain.calls(rows):
            call.run()
            found.append(buffers.log_probabilities[:rows].copy())
        yield place, found


def _right(log_probabilities: Array, y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are predicted right; one with NaN is not, whatever argmax says of it."""
    right: NDArray[np.bool_] = (log_probabilities.argmax(axis=1) == y) & ~np.isnan(log_probabilities).any(axis=1)
    return right


def _log_loss(fused: Array, y: NDArray[np.int64]) -> float:
    """Sum over the rows, in double precision."""
    values = fused.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of weights that training blew up, the loss is NaN
        top = values.max(axis=1, keepdims=True)
        log_total = top[:, 0] + np.log(np.exp(values - top).sum(axis=1))
        return float((log_total - values[np.arange(len(y)), y]).sum())


def _per_class(right: NDArray[np.bool_], y: NDArray[np.int64], classes: int) -> tuple[float | None, ...]:
    members = [y == label for label in range(classes)]
    return tuple(float(right[rows].mean()) if rows.any() else None for rows in members)
