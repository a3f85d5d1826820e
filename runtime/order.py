"""Which rows make up which batch.

A function of seed, epoch and batch: a resumed run sees what it would have seen, and no random state is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Here and not when first used: numpy loads it on demand, and its 2 MB belong to the floor.
from numpy.random import SeedSequence
from numpy.typing import NDArray

from edgeff.errors import RunError
from edgeff.split import batches


@dataclass(frozen=True)
class MixedOrder:
    """Batches of own rows with replay rows mixed in.

    An epoch passes once through the own rows. Replay rows follow one another through shuffled passes of their own,
    however many own rows there are.

    Attributes:
        own_rows: Numbered on from `replay_rows`.
        replay_rows: Numbered from 0.
        batch_size: Most rows of a batch. An epoch's batches are as equal as can be: a small last one would be a noisy
            step.
        replay_fraction: Part of a batch that is replay rows; 0 where there are none.
        seed: Of the shuffling.
    """

    own_rows: int
    replay_rows: int
    batch_size: int
    replay_fraction: float
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.own_rows < 1:
            raise RunError(f"`{self.own_rows}` rows in batches of `{self.batch_size}` make no batch, needed 1 or more")
        if self.seed < 0:
            raise RunError(f"the seed must be 0 or more, got `{self.seed}`")
        if not 0 <= self.replay_fraction < 1:
            raise RunError(f"the replay fraction must be from 0 to below 1, got `{self.replay_fraction}`")
        if self.replay_rows and self.replay_fraction and self.batch_size == 1:
            raise RunError(
                "a batch of 1 row has no room for replay rows beside your own",
                hint="give a larger `--batch-size`, or `--replay-fraction 0`",
            )

    @property
    def replay_per_batch(self) -> int:
        """Replay rows of a full batch: at least one, where there are to be any, and at least one row is an own one.

        >>> MixedOrder(100, 50, batch_size=8, replay_fraction=0.25, seed=0).replay_per_batch
        2
        >>> MixedOrder(100, 50, batch_size=8, replay_fraction=0.01, seed=0).replay_per_batch
        1
        """
        if not self.replay_rows or not self.replay_fraction:
            return 0
        return min(max(round(self.batch_size * self.replay_fraction), 1), self.batch_size - 1)

    @property
    def own_per_batch(self) -> int:
        """Own rows of a full batch."""
        return self.batch_size - self.replay_per_batch

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one pass through the own rows.

        >>> MixedOrder(13, 50, batch_size=8, replay_fraction=0.25, seed=0).batches_per_epoch
        3
        """
        return -(-self.own_rows // self.own_per_batch)

    def batches(self, epoch: int, first: int = 0) -> Iterator[NDArray[np.int64]]:
        """Row numbers of the batches of an epoch, from batch `first` on.

        Args:
            epoch: Counts from 1.
            first: Batch to begin with; counts from 0.
        """
        own = _shuffled(self.own_rows, self.seed, epoch)
        parts = even_parts(own, self.own_per_batch)
        for batch in range(first, self.batches_per_epoch):
            step = (epoch - 1) * self.batches_per_epoch + batch
            yield np.concatenate([self._replay(step, len(parts[batch])), parts[batch] + self.replay_rows])

    def _replay(self, step: int, own: int) -> NDArray[np.int64]:
        """Replay rows for a step (from 0), in the proportion of a full batch, and at least one where that has any."""
        count = max(round(self.replay_per_batch * own / self.own_per_batch), min(self.replay_per_batch, 1))
        places = step * self.replay_per_batch + np.arange(count)
        chosen = np.empty(count, np.int64)
        for turn in np.unique(places // self.replay_rows) if count else ():
            here = places // self.replay_rows == turn
            # Below zero, where no run's seed is: another order than that of the own rows.
            shuffled = _shuffled(self.replay_rows, -1 - self.seed, int(turn))
            chosen[here] = shuffled[places[here] % self.replay_rows]
        return chosen


def even_parts(index: NDArray[np.int64], most: int, together: int = 1) -> list[NDArray[np.int64]]:
    """Consecutive parts of at most `most`, as equal as can be.

    Args:
        index: To be cut.
        most: Rows of a part; a multiple of `together`, unless `index` is one part.
        together: Every part but the last is a multiple of so many.

    >>> [len(part) for part in even_parts(np.arange(10), 4)]
    [4, 3, 3]
    >>> [len(part) for part in even_parts(np.arange(21), 12, together=4)]
    [12, 9]
    """
    count = -(-len(index) // most)
    if together == 1:
        return np.array_split(index, count)
    size = -(-len(index) // (count * together)) * together
    return np.split(index, range(size, len(index), size))


def _shuffled(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return next(batches(range(rows), rows, seed=seed, epoch=epoch))


def graph_seed(seed: int, *, step: int, row: int, block: int) -> int:
    """The `seed` input of a graph: another one for each step, micro-batch (by its first row) and block.

    >>> graph_seed(7, step=1, row=0, block=0) == graph_seed(7, step=1, row=0, block=0)
    True
    >>> graph_seed(7, step=1, row=0, block=0) == graph_seed(7, step=1, row=0, block=1)
    False
    """
    state = SeedSequence((seed, step, row, block)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))  # the graph takes an int64 of at least 0
