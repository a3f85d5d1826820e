"""Prediction, with the `forward` graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeff.rows import Rows
from edgeff.runtime.arrays import Array
from edgeff.runtime.buffers import allocate_buffers
from edgeff.runtime.network import Chain, Graphs, Network

DEFAULT_MICRO_BATCH = 32


def fuse(log_probabilities: Sequence[Array], weights: Sequence[float]) -> Array:
    """The fused log-probabilities: the weighted sum of the blocks', each (rows, classes), normalised again.

    A block of weight 0 is left out: its minus infinity would become NaN.
    """
    used = [
        values if weight == 1.0 else values * np.float32(weight)
        for values, weight in zip(log_probabilities, weights, strict=True)
        if weight
    ]
    total: Array = used[0].copy()
    for values in used[1:]:
        total += values
    with np.errstate(invalid="ignore"):  # of weights that training blew up, everything is NaN
        total -= total.max(axis=1, keepdims=True)
        total -= np.log(np.exp(total).sum(axis=1, keepdims=True))
    return total


def predict(network: Network, x: Rows, *, micro_batch: int = DEFAULT_MICRO_BATCH) -> NDArray[np.float32]:
    """Fused log-probabilities.

    Args:
        network: The blocks.
        x: Raw rows.
        micro_batch: Rows that run at once.

    Returns:
        (rows, classes), as in `fuse`; the prediction is the argmax of a row.

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


def forward(network: Network, x: Rows, *, blocks: int, micro_batch: int) -> Iterator[tuple[slice, list[Array]]]:
    """Run rows through the first blocks; the graphs are loaded for just as long.

    Yields:
        Which rows, and the log-probabilities (rows, classes) of each block.
    """
    buffers = allocate_buffers(network.manifest, min(micro_batch, len(x)), {}, last=blocks - 1)
    chain = Chain(network, Graphs(network.artifact, network.engine), ["forward"] * blocks, buffers)
    for first in range(0, len(x), buffers.rows):
        place = slice(first, min(first + buffers.rows, len(x)))
        rows = place.stop - place.start
        buffers.features[:rows] = network.preprocessing.apply(x[place])
        found = []
        for part in chain.parts(rows):
            part.call.run()
            found.append(buffers.log_probabilities[:rows].copy())
        yield place, found
