"""The arrays that pass through the blocks: one set, made for the most rows at once and used for every part of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeff.manifest import Manifest, TensorSpec
from edgeff.runtime.arrays import Array


@dataclass(frozen=True)
class Buffers:
    """Preallocated arrays for up to `rows` rows.

    Attributes:
        rows: The most rows that go from block to block at once.
        first: Block that they are for, and those after it.
        features: (rows, *input) what that block takes.
        handovers: Two stretches of bytes: a block reads from one and hands over into the other, or into the same where
            it may.
        stretches: Which of them block `first` and those after it hand over into.
        y: (rows,) int64.
        row_weight: (rows,) float32.
        log_probabilities: (rows, classes) of the block that ran last.
        scalars: `loss` of the block that ran last, `seed`, and every `rate.<name>`; each of shape ().
    """

    rows: int
    first: int
    features: Array
    handovers: tuple[Array, Array]
    stretches: tuple[int, ...]
    y: Array
    row_weight: Array
    log_probabilities: Array
    scalars: Mapping[str, Array]

    def bound_for(self, block: int, start: int, stop: int, manifest: Manifest) -> dict[str, Array]:
        """The arrays that the graphs of a block take, for the rows from `start` to `stop`."""
        spec = manifest.blocks[block]
        taken = self.features if block == self.first else self._handover(block - 1, spec.input)
        found = {
            "x": taken[start:stop],
            "y": self.y[start:stop],
            "row_weight": self.row_weight[start:stop],
            "log_probabilities": self.log_probabilities[start:stop],
            **self.scalars,
        }
        if spec.handover is not None:
            found["handover"] = self.handover(block, manifest)[start:stop]
        return found

    def handover(self, block: int, manifest: Manifest) -> Array:
        """(rows, *handover) what a block hands over, for as many rows as there can be."""
        spec = manifest.blocks[block].handover
        assert spec is not None
        return self._handover(block, spec)

    def _handover(self, block: int, spec: TensorSpec) -> Array:
        used = self.handovers[self.stretches[block - self.first]][: self.rows * spec.nbytes]
        return used.view(spec.dtype).reshape(self.rows, *spec.shape)

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Write the scalars of a step."""
        with np.errstate(over="ignore"):  # a rate beyond float32 is Inf, and so is what comes of it
            for name, value in rates.items():
                self.scalars[f"rate.{name}"][...] = value


def allocate_buffers(
    manifest: Manifest, rows: int, rates: Mapping[str, float], *, first: int = 0, last: int | None = None
) -> Buffers:
    """Buffers for some consecutive blocks of a manifest.

    Args:
        manifest: Gives all shapes.
        rows: The most rows that go from block to block at once.
        rates: Names (and first values) of the optimiser's scalars.
        first: Block to begin with.
        last: Block to end with; None for the last there is.
    """
    scalars: dict[str, Array] = {f"rate.{name}": np.array(value, np.float32) for name, value in rates.items()}
    scalars |= {name: np.zeros((), np.float32) for name in ("loss", "learning_rate")}
    scalars["seed"] = np.zeros((), np.int64)
    one, other = _handover_bytes(manifest, rows, first, last)
    taken = manifest.blocks[first].input
    return Buffers(
        rows=rows,
        first=first,
        features=np.zeros((rows, *taken.shape), taken.dtype),
        handovers=(np.zeros(one, np.uint8), np.zeros(other, np.uint8)),
        stretches=_stretches(manifest, first, last),
        y=np.zeros(rows, np.int64),
        row_weight=np.zeros(rows, np.float32),
        log_probabilities=np.zeros((rows, len(manifest.classes)), np.float32),
        scalars=scalars,
    )


def _stretches(manifest: Manifest, first: int, last: int | None) -> tuple[int, ...]:
    """Which of two stretches each block hands over into, so that none writes over rows that it still needs."""
    found = [0]
    for block in manifest.blocks[first + 1 : None if last is None else last + 1]:
        found.append(found[-1] if block.handover_in_place else 1 - found[-1])
    return tuple(found)


def _handover_bytes(manifest: Manifest, rows: int, first: int, last: int | None) -> tuple[int, int]:
    """Bytes of the two stretches that rows are handed over in."""
    sizes = [0, 0]
    for block, which in zip(manifest.blocks[first:], _stretches(manifest, first, last), strict=False):
        if block.handover is not None:
            sizes[which] = max(sizes[which], rows * block.handover.nbytes)
    return sizes[0], sizes[1]


def buffer_bytes(manifest: Manifest, rows: int, *, first: int = 0, last: int | None = None) -> int:
    """Bytes that `allocate_buffers` takes."""
    per_row = manifest.blocks[first].input.nbytes + 4 * len(manifest.classes) + 8 + 4
    return rows * per_row + sum(_handover_bytes(manifest, rows, first, last))


def filling_bytes(manifest: Manifest, rows: int, *, first: int = 0) -> int:
    """Bytes that rows take on their way into the buffers, before any graph runs.

    Raw rows are there as they are and in float32, twice while a step writes one array from another. What goes into
    another block than the first comes from a file or another chain, in one array.
    """
    if first:
        return rows * manifest.blocks[first].input.nbytes
    widest = max(manifest.features.nbytes, 4 * math.prod(manifest.input.shape))
    return rows * (manifest.input.nbytes + (2 * widest if manifest.preprocessing else 0))
