"""The guard: rows held out of the user's own, and the choice of the epoch whose weights are kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeff.dataset import Dataset, Numbers
from edgeff.errors import DataError, RunError
from edgeff.split import activities_in_time, sharing_samples

# Of a row while it is decided on which side it comes: its number, its span, orders and what they are sorted by.
SPLITTING_BYTES = 60


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
    held = np.zeros(len(dataset), bool)
    for activity in activities_in_time(dataset):
        # At least one stays to train on.
        count = min(int(len(activity) * fraction + 0.5), len(activity) - 1)
        held[activity[len(activity) - count :]] = True
    own, guard = rows[~held & ~sharing_samples(dataset, held)], rows[held]
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
