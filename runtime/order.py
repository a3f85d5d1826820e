"""Which rows make up which batch: a function of seed, epoch and batch, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeff.errors import RunError

# Keep the orders of the two kinds of rows apart.
_OWN, _REPLAY = 0, 1


@dataclass(frozen=True)
class MixedOrder:
    """Batches of own rows with replay rows mixed in.

    An epoch passes once through the own rows. Replay rows follow one another through shuffled passes of their own, however
    many own rows there are.

    Attributes:
        own_rows: Numbered from 0.
        replay_rows: Numbered on from `own_rows`.
        batch_size: Rows of a batch; the last one of an epoch may have fewer.
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
        if not 0 <= self.replay_fraction < 1:
            raise RunError(f"the replay fraction must be from 0 to below 1, got `{self.replay_fraction}`")

    @property
    def replay_per_batch(self) -> int:
        """Replay rows of a full batch; at least one row of a batch is an own one.

        >>> MixedOrder(100, 50, batch_size=8, replay_fraction=0.25, seed=0).replay_per_batch
        2
        """
        if not self.replay_rows:
            return 0
        return min(round(self.batch_size * self.replay_fraction), self.batch_size - 1)

    @property
    def own_per_batch(self) -> int:
        """Own rows of a full batch."""
        return self.batch_size - self.replay_per_batch

    @property
    def batches_per_epoch(self) -> int:
        """Batches, the last included.

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
        own = _permutation(self.own_rows, self.seed, _OWN, epoch)
        for batch in range(first, self.batches_per_epoch):
            chosen = own[batch * self.own_per_batch : (batch + 1) * self.own_per_batch]
            yield np.concatenate([chosen, self._replay((epoch - 1) * self.batches_per_epoch + batch, len(chosen))])

    def _replay(self, step: int, own: int) -> NDArray[np.int64]:
        """Replay rows for a step (from 0): in a batch that is not full, in the same proportion."""
        count = round(self.replay_per_batch * own / self.own_per_batch)
        places = step * self.replay_per_batch + np.arange(count)
        chosen = np.empty(count, np.int64)
        for turn in np.unique(places // self.replay_rows) if count else ():
            here = places // self.replay_rows == turn
            shuffled = _permutation(self.replay_rows, self.seed, _REPLAY, int(turn))
            chosen[here] = shuffled[places[here] % self.replay_rows]
        return chosen + self.own_rows


def _permutation(rows: int, *key: int) -> NDArray[np.int64]:
    return np.random.default_rng(key).permutation(rows)


def graph_seed(seed: int, *, step: int, micro_batch: int, block: int) -> int:
    """The `seed` input of a graph: another one for each step, micro-batch and block, the same in every run.

    >>> graph_seed(7, step=1, micro_batch=0, block=0) == graph_seed(7, step=1, micro_batch=0, block=0)
    True
    >>> graph_seed(7, step=1, micro_batch=0, block=0) == graph_seed(7, step=1, micro_batch=0, block=1)
    False
    """
    state = np.random.SeedSequence((seed, step, micro_batch, block)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))  # the graph takes an int64 of at least 0
