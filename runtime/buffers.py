"""The arrays that pass through the blocks: one set, made for the largest micro-batch and used for every smaller one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeff.manifest import Manifest, TensorSpec
from edgeff.runtime.engine import Array


@dataclass(frozen=True)
class Buffers:
    """Preallocated arrays for up to `rows` rows.

    Attributes:
        rows: The largest micro-batch.
        features: (rows, *features) what the first block takes.
        handovers: Two stretches of bytes: a block reads from one and hands over into the other.
        y: (rows,) int64.
        row_weight: (rows,) float32.
        log_probabilities: (rows, classes) of the block that ran last.
        scalars: `loss` of the block that ran last, `seed`, and every `rate.<name>`; each of shape ().
    """

    rows: int
    features: Array
    handovers: tuple[Array, Array]
    y: Array
    row_weight: Array
    log_probabilities: Array
    scalars: Mapping[str, Array]

    def bound_for(self, rows: int, block: int, manifest: Manifest) -> dict[str, Array]:
        """The arrays that the graphs of a block take, for a micro-batch of `rows`."""
        spec = manifest.blocks[block]
        found = {
            "x": self.features[:rows] if block == 0 else self._handover(block - 1, rows, spec.input),
            "y": self.y[:rows],
            "row_weight": self.row_weight[:rows],
            "log_probabilities": self.log_probabilities[:rows],
            **self.scalars,
        }
        if spec.handover is not None:
            found["handover"] = self._handover(block, rows, spec.handover)
        return found

    def _handover(self, block: int, rows: int, spec: TensorSpec) -> Array:
        """The rows that a block hands over."""
        used = self.handovers[block % 2][: rows * spec.nbytes]
        return used.view(spec.dtype).reshape(rows, *spec.shape)

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Write the scalars of a step."""
        for name, value in rates.items():
            self.scalars[f"rate.{name}"][...] = value


def allocate_buffers(manifest: Manifest, rows: int, rates: Mapping[str, float]) -> Buffers:
    """Buffers for the blocks of a manifest.

    Args:
        manifest: Gives all shapes.
        rows: The largest micro-batch.
        rates: Names (and first values) of the optimiser's scalars.
    """
    scalars: dict[str, Array] = {f"rate.{name}": np.array(value, np.float32) for name, value in rates.items()}
    scalars |= {"loss": np.zeros((), np.float32), "seed": np.zeros((), np.int64)}
    first, second = handover_bytes(manifest, rows)
    return Buffers(
        rows=rows,
        features=np.zeros((rows, *manifest.features.shape), manifest.features.dtype),
        handovers=(np.zeros(first, np.uint8), np.zeros(second, np.uint8)),
        y=np.zeros(rows, np.int64),
        row_weight=np.zeros(rows, np.float32),
        log_probabilities=np.zeros((rows, len(manifest.classes)), np.float32),
        scalars=scalars,
    )


def handover_bytes(manifest: Manifest, rows: int) -> tuple[int, int]:
    """Bytes of the two hand-over buffers: blocks with an even number write the first, the others the second."""
    sizes = [block.handover.nbytes if block.handover else 0 for block in manifest.blocks]
    return rows * max(sizes[0::2], default=0), rows * max(sizes[1::2], default=0)


def buffer_bytes(manifest: Manifest, rows: int) -> int:
    """Bytes that `allocate_buffers` takes, and that a micro-batch takes on its way into them.

    For a moment a micro-batch is there four times: as raw rows, as these in float32 (two arrays while a step writes one
    from the other), and as features in their buffer.
    """
    widest = max(manifest.features.nbytes, 4 * math.prod(manifest.input.shape))
    per_row = manifest.input.nbytes + 2 * widest + manifest.features.nbytes + 4 * len(manifest.classes) + 8 + 4
    return rows * per_row + sum(handover_bytes(manifest, rows))
