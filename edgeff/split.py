"""Choosing rows: orders, samples, and splits that keep what belongs together on one side.

Everything here is a pure function of labels, groups, recordings and spans; no row is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from numpy.typing import NDArray

from edgeff.dataset import Dataset, Numbers
from edgeff.errors import DataError


def _generator(*key: int) -> np.random.Generator:
    """Random numbers that two whole numbers determine: no state has to be kept to have them again."""
    return np.random.Generator(np.random.Philox(key=np.array([part % 2**64 for part in key], np.uint64)))


def batches(rows: Sized, size: int, *, seed: int | None, epoch: int = 0) -> Iterator[Numbers]:
    """Row numbers of one epoch, batch by batch; the last batch may be shorter.

    Args:
        rows: A data set, or anything else whose `len` is the number of rows.
        size: Rows of a batch.
        seed: With `epoch` it determines the order, so that any epoch can be gone through again; None for the order
            of the rows.
        epoch: Counts from 0.

    Raises:
        DataError: A size below 1.

    >>> [batch.tolist() for batch in batches(range(5), 2, seed=None)]
    [[0, 1], [2, 3], [4]]
    """
    if size < 1:
        raise DataError(f"a batch needs 1 or more rows, got {size}")
    count = len(rows)
    order = np.arange(count) if seed is None else _generator(seed, epoch).permutation(count)
    return (order[first : first + size] for first in range(0, count, size))


def sample_rows(rows: int, count: int, seed: int) -> Numbers:
    """Numbers of `count` of so many rows (all, where there are fewer), in ascending order."""
    return np.sort(_generator(seed, 0).permutation(rows)[:count])


def stratified_rows(y: Numbers, per_class: int, seed: int) -> Numbers:
    """Numbers of `per_class` rows of each class (all, where a class has fewer), in ascending order.

    Raises:
        DataError: Fewer than one row per class.
    """
    if per_class < 1:
        raise DataError(f"a stratified sample needs 1 or more rows of each class, got {per_class}")
    random = _generator(seed, 0)
    chosen = [random.permutation(np.flatnonzero(y == label))[:per_class] for label in np.unique(y)]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))


def train_validation_split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Two parts of a data set: to train on, and to choose models on.

    With groups, no group is in both parts; without, but with recordings, no recording is; with neither, each class is
    divided in the same proportion.

    Args:
        dataset: To be divided.
        fraction: Of the rows, for validation, between 0 and 1: met as closely as whole groups allow.
        seed: Determines the choice.

    Raises:
        DataError: A fraction outside 0..1, or rows that cannot be divided.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(f"the fraction of rows for validation must lie between 0 and 1, got {fraction:g}")
    together = dataset.sequence if dataset.groups is None else dataset.groups
    if together is None:
        chosen = _chosen_by_class(dataset.y, fraction, seed)
    else:
        chosen = np.isin(together, _chosen_groups(together, fraction, seed))
    if chosen.all() or not chosen.any():
        raise DataError(
            f"`{dataset.name}` cannot be divided into training and validation rows",
            hint="it needs two groups or more, or, without groups, a class with two rows or more",
        )
    return dataset.select(~chosen), dataset.select(chosen)


def _chosen_by_class(y: Numbers, fraction: float, seed: int) -> NDArray[np.bool_]:
    random = _generator(seed, 0)
    chosen = np.zeros(len(y), bool)
    for label in np.unique(y):
        own = random.permutation(np.flatnonzero(y == label))
        # A class with two rows or more is in both parts.
        count = min(max(round(fraction * len(own)), 1), len(own) - 1)
        chosen[own[:count]] = True
    return chosen


def _chosen_groups(together: Numbers, fraction: float, seed: int) -> Numbers:
    groups, counts = np.unique(together, return_counts=True)
    order = _generator(seed, 0).permutation(len(groups))
    rows = np.cumsum(counts[order])
    nearest = int(np.argmin(np.abs(rows - fraction * len(together)))) + 1
    return groups[order[: min(max(nearest, 1), len(groups) - 1)]]


def calibration_split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The earlier half of each activity to adapt on, the later half to test on, with no sample in both.

    For each recording and label: of n rows in time order the first n // 2 are to adapt on, the others to test on. Rows
    to test on that share samples with a row to adapt on are left out. Without recordings, the rows of each group and
    label are halved in their order, and as such rows are independent, none is left out.

    Raises:
        DataError: One of the parts would be empty.
    """
    adapt = np.zeros(len(dataset), bool)
    for rows in activities_in_time(dataset):
        adapt[rows[: len(rows) // 2]] = True
    test = ~adapt & ~sharing_samples(dataset, adapt)
    if not adapt.any() or not test.any():
        raise DataError(
            f"`{dataset.name}` cannot be halved: {int(adapt.sum())} rows to adapt on, {int(test.sum())} to test on",
            hint="it needs some recording with three rows or more of one label",
        )
    return dataset.select(adapt), dataset.select(test)


def activities_in_time(dataset: Dataset) -> Iterator[Numbers]:
    """Row numbers of each label of each recording (without recordings: of each group), in time order."""
    together = dataset.groups if dataset.sequence is None else dataset.sequence
    part = np.zeros(len(dataset), np.int64) if together is None else together
    start = _spans(dataset)[:, 0]
    return (rows[np.argsort(start[rows], kind="stable")] for rows in _stretches(part, dataset.y))


def sharing_samples(dataset: Dataset, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows, the chosen ones among them, share a sample with a chosen row of their recording.

    Args:
        dataset: Without recordings its rows are independent, and none shares a sample with another.
        chosen: Mask of rows, (rows,).
    """
    shared = np.zeros(len(dataset), bool)
    if dataset.sequence is not None:
        span = _spans(dataset)
        for rows in _stretches(dataset.sequence):
            shared[rows] = _share_samples(span[rows], span[rows][chosen[rows]])
    return shared


def _stretches(*keys: Numbers) -> Iterator[Numbers]:
    """Row numbers of each distinct key, ascending; the first of several keys counts most."""
    order = np.lexsort(keys[::-1])
    changes = np.zeros(max(len(order) - 1, 0), bool)
    for key in keys:
        changes |= np.diff(key[order]) != 0
    first = 0
    for change in np.flatnonzero(changes):  # one at a time: there may be as many as rows
        yield order[first : change + 1]
        first = int(change) + 1
    yield order[first:]


def _spans(dataset: Dataset) -> Numbers:
    """(rows, 2): the given spans; where unknown, places in the recording, each row reaching into the next."""
    if dataset.span is not None:
        return dataset.span
    places = np.arange(len(dataset))
    if dataset.sequence is not None:
        for rows in _stretches(dataset.sequence):
            places[rows] = np.arange(len(rows))
    return np.stack([places, places + 2], axis=1)


def _share_samples(span: Numbers, others: Numbers) -> NDArray[np.bool_]:
    """Which of the spans share a sample with any of the others."""
    if not len(others):
        return np.zeros(len(span), bool)
    others = others[np.argsort(others[:, 0])]
    reach = np.maximum.accumulate(others[:, 1])  # how far the others reach that begin at or before each
    before = np.searchsorted(others[:, 0], span[:, 1], side="left")  # others that begin before each span ends
    shared: NDArray[np.bool_] = (before > 0) & (reach[np.maximum(before, 1) - 1] > span[:, 0])
    return shared
