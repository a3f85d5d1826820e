"""Which rows make up which batch, beyond what `test_trainer.py` shows on a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeff.errors import RunError
from edgeff.runtime.order import MixedOrder, even_parts, graph_seed


@settings(deadline=None)
@given(
    own_rows=st.integers(1, 60),
    replay_rows=st.integers(1, 20),
    batch_size=st.integers(2, 17),
    fraction=st.floats(0, 0.99),
    epoch=st.integers(1, 4),
)
def test_every_batch_has_replay_rows_in_the_proportion_of_a_full_one(
    own_rows: int, replay_rows: int, batch_size: int, fraction: float, epoch: int
) -> None:
    order = MixedOrder(own_rows, replay_rows, batch_size, fraction, seed=3)
    assert order.replay_per_batch + order.own_per_batch == batch_size
    assert order.own_per_batch >= 1
    assert abs(order.replay_per_batch - fraction * batch_size) <= 0.5 or 1 in (
        order.own_per_batch,
        order.replay_per_batch,
    )
    assert bool(order.replay_per_batch) == (fraction > 0)
    for batch in order.batches(epoch):
        replay, own = int((batch < replay_rows).sum()), int((batch >= replay_rows).sum())
        assert abs(replay - own * order.replay_per_batch / order.own_per_batch) <= 0.5 or replay == 1
        assert (replay > 0) == (fraction > 0)


def test_a_batch_of_one_row_has_no_room_for_replay_rows() -> None:
    with pytest.raises(RunError, match="a batch of 1 row has no room for replay rows") as refused:
        MixedOrder(50, 20, 1, 0.5, seed=0)
    assert "--replay-fraction 0" in refused.value.hint
    for order in (MixedOrder(50, 20, 1, 0.0, seed=0), MixedOrder(50, 0, 1, 0.5, seed=0)):
        assert [len(batch) for batch in order.batches(1)] == [1] * 50


@settings(deadline=None)
@given(
    batches=st.integers(1, 6),
    own=st.integers(1, 5),
    replay=st.integers(1, 5),
    kept=st.integers(1, 12),
    seed=st.integers(0),
)
def test_where_all_batches_are_full_no_replay_row_comes_again_before_all_others_have(
    batches: int, own: int, replay: int, kept: int, seed: int
) -> None:
    size = own + replay
    order = MixedOrder(batches * own, kept, size, replay / size, seed)
    drawn = np.concatenate([batch[batch < kept] for epoch in (1, 2, 3) for batch in order.batches(epoch)])
    assert len(drawn) == 3 * batches * replay
    for first in range(0, len(drawn), kept):
        one_pass = drawn[first : first + kept].tolist()
        assert len(set(one_pass)) == len(one_pass)


@settings(deadline=None)
@given(count=st.integers(1, 80), most=st.integers(1, 30))
def test_even_parts_are_as_few_and_as_equal_as_can_be(count: int, most: int) -> None:
    parts = even_parts(np.arange(count), most)
    sizes = [len(part) for part in parts]
    assert np.concatenate(parts).tolist() == list(range(count))
    assert len(parts) == -(-count // most)
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


def test_a_run_that_is_gone_on_with_after_an_upgrade_finds_the_order_it_began_with() -> None:
    order = MixedOrder(own_rows=7, replay_rows=5, batch_size=4, replay_fraction=0.5, seed=11)
    assert [batch.tolist() for batch in order.batches(2)] == [[2, 3, 11, 8], [2, 3, 6, 9], [1, 4, 7, 5], [0, 10]]
    assert graph_seed(11, step=3, row=1, block=2) == 7766977862063547888
