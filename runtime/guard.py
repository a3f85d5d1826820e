"""The guard: rows held out of the user's own, and the choice of the epoch whose weights are kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeff.dataset import Dataset
from edgeff.errors import DataError, RunError

Numbers = NDArray[np.int64]


def guard_split(dataset: Dataset, fraction: float) -> tuple[Numbers, Numbers]:
    """Hold out the last part of every label of every recording.

    The rows held out follow one another in time, and training rows that overlap one of them are left out of both, so
    that no sample is trained on and tested on.

    Args:
        dataset: The user's rows.
        fraction: Of them to hold out; 0 for none.

    Returns:
        Numbers of the training rows and of the guard rows, in rising order.

    Raises:
        RunError: The fraction is not from 0 to below 1.
        DataError: Too few rows to hold some out and keep some.
    """
    if not 0 <= fraction < 1:
        raise RunError(f"the guard fraction must be from 0 to below 1, got `{fraction}`")
    rows = np.arange(len(dataset), dtype=np.int64)
    if fraction == 0:
        return rows, rows[:0]
    span = _spans(dataset)
    held = _tails(dataset, span[:, 0], fraction)
    own = rows[~held & ~_overlapping(dataset, span, held)]
    guard = rows[held]
    if not len(own) or not len(guard):
        raise DataError(
            f"`{dataset.name}` has {len(dataset)} rows, too few to hold some out as a guard: "
            "needed at least 2 of one label that do not overlap",
            hint="give more rows, or do without by `--guard-fraction 0`",
        )
    return own, guard


def best_epoch(accuracies: Sequence[float]) -> int:
    """The epoch with the highest guard accuracy; of equals the earliest. Epoch 0 is the network as it came.

    >>> best_epoch([0.5, 0.75, 0.75])
    1
    """
    return max(range(len(accuracies)), key=lambda epoch: (accuracies[epoch], -epoch))


def _tails(dataset: Dataset, start: Numbers, fraction: float) -> NDArray[np.bool_]:
    """Which rows are the last part in time of their label in their recording (without recordings: in their group)."""
    held = np.zeros(len(dataset), bool)
    together = dataset.groups if dataset.sequence is None else dataset.sequence
    part = np.zeros(len(dataset), np.int64) if together is None else together
    for key in np.unique(np.stack([part, dataset.y]), axis=1).T:
        members = np.flatnonzero((part == key[0]) & (dataset.y == key[1]))
        in_time = members[np.argsort(start[members], kind="stable")]
        # At least one stays to train on.
        count = min(int(len(members) * fraction + 0.5), len(members) - 1)
        held[in_time[len(members) - count :]] = True
    return held


def _overlapping(dataset: Dataset, span: Numbers, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows share a sample with a row that is held out; none where rows are independent."""
    found = np.zeros(len(held), bool)
    if dataset.sequence is None:
        return found
    for recording in np.unique(dataset.sequence):
        members = np.flatnonzero(dataset.sequence == recording)
        guards = span[members[held[members]]]
        if len(guards):
            found[members] = _meets(span[members], guards)
    return found


def _spans(dataset: Dataset) -> Numbers:
    """(rows, 2): the given spans; where unknown, each row reaches into the next of its recording."""
    if dataset.span is not None:
        return dataset.span
    place = np.arange(len(dataset), dtype=np.int64)
    for recording in () if dataset.sequence is None else np.unique(dataset.sequence):
        members = np.flatnonzero(dataset.sequence == recording)
        place[members] = np.arange(len(members))
    return np.stack([place, place + 2], axis=1)


def _meets(span: Numbers, others: Numbers) -> NDArray[np.bool_]:
    """Which stretches [start, end) share a point with one of the others."""
    others = others[np.argsort(others[:, 0], kind="stable")]
    furthest = np.maximum.accumulate(others[:, 1])
    # Of the others that begin before this one ends: does the one that reaches furthest reach into this one?
    begun = np.searchsorted(others[:, 0], span[:, 1], side="left")
    meets: NDArray[np.bool_] = (begun > 0) & (furthest[np.maximum(begun, 1) - 1] > span[:, 0])
    return meets
