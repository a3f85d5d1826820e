"""Other label sets for the same rows: fewer classes, or classes in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeff.dataset import Dataset
from edgeff.split import stratified_rows


def of_classes(dataset: Dataset, labels: Sequence[int], per_class: int, seed: int) -> Dataset:
    """The rows of some classes, numbered anew, with at most so many rows of each."""
    chosen = dataset.select(np.isin(dataset.y, labels))
    numbers = np.full(int(dataset.y.max()) + 1, -1, np.int64)
    numbers[list(labels)] = np.arange(len(labels))
    names = tuple(dataset.classes[label] for label in labels) if dataset.classes else ()
    renamed = replace(chosen, y=numbers[chosen.y], classes=names)
    return renamed.select(stratified_rows(renamed.y, per_class, seed))


def in_groups(dataset: Dataset, groups: Sequence[int]) -> Dataset:
    """The same rows with the group of their class as label; `groups` has a number from 0 for each class."""
    by_class = np.asarray(groups, np.int64)
    return replace(dataset, y=by_class[dataset.y], classes=())


def random_groups(groups: Sequence[int], seed: int) -> tuple[int, ...]:
    """Groups of the same sizes with other classes in them.

    >>> random_groups((0, 0, 1, 1, 1), seed=0)
    (1, 1, 1, 0, 0)
    """
    return tuple(int(group) for group in np.random.default_rng(seed).permutation(np.asarray(groups)))
