"""The guard where recordings are awkward: gaps, windows of unequal length, labels that change inside an overlap.

`test_adapt.py` has the plain cases, with a run around them.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import dataset_of, recordings, samples

from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.runtime.guard import SPLITTING_BYTES, best_epoch, guard_split
from edgeff.split import activities_in_time


def windows(y: list[int], spans: list[list[int]] | None = None) -> Dataset:
    """One recording; half-overlapping windows, or those given."""
    places = np.array(spans or [[2 * place, 2 * place + 4] for place in range(len(y))], np.int64)
    return dataset_of(np.array(y, np.int64), sequence=np.zeros(len(y), np.int64), span=places)


@settings(deadline=None)
@given(dataset=recordings(), fraction=st.floats(0.05, 0.95))
def test_the_guard_is_the_rounded_last_part_of_each_activity_and_only_overlap_is_left_out(
    dataset: Dataset, fraction: float
) -> None:
    try:
        own, guard = guard_split(dataset, fraction)
    except DataError:
        return
    assert own.tolist() == sorted(set(own.tolist()))
    assert guard.tolist() == sorted(set(guard.tolist()))
    for rows in activities_in_time(dataset):
        count = min(int(len(rows) * fraction + 0.5), len(rows) - 1)
        assert set(rows[len(rows) - count :].tolist()) == set(rows.tolist()) & set(guard.tolist())
    held = samples(dataset.select(guard))
    assert not samples(dataset.select(own)) & held
    for row in set(range(len(dataset))) - set(own.tolist()) - set(guard.tolist()):
        assert samples(dataset.select(np.array([row]))) & held


def test_a_row_of_another_label_that_overlaps_the_guard_is_left_out_too() -> None:
    own, guard = guard_split(windows([0, 0, 0, 0, 1, 1, 1, 1]), 0.25)
    assert guard.tolist() == [3, 7]
    assert own.tolist() == [0, 1, 5]  # 2 and 4 overlap row 3, 6 overlaps row 7


def test_a_long_window_that_reaches_into_the_guard_is_left_out_however_early_it_begins() -> None:
    own, guard = guard_split(windows([0] * 4, [[0, 9], [1, 2], [3, 4], [8, 10]]), 0.25)
    assert guard.tolist() == [3]
    assert own.tolist() == [1, 2]


def test_a_window_that_ends_where_the_guard_begins_is_trained_on() -> None:
    own, guard = guard_split(windows([0] * 3, [[0, 4], [4, 8], [8, 12]]), 0.34)
    assert (own.tolist(), guard.tolist()) == ([0, 1], [2])


def test_rows_that_are_no_windows_of_a_recording_are_independent_whatever_their_spans() -> None:
    dataset = dataset_of(np.zeros(4, np.int64), span=np.array([[0, 9]] * 4))
    own, guard = guard_split(dataset, 0.25)
    assert (own.tolist(), guard.tolist()) == ([0, 1, 2], [3])


def test_a_recording_that_would_leave_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match=r"^`test` has 2 rows, too few to hold some out as a guard: ") as caught:
        guard_split(windows([0, 0]), 0.5)
    assert caught.value.hint == "give more rows, or do without by `--guard-fraction 0`"


@pytest.mark.parametrize("known", ["", "sequence", "groups", "all"])
def test_splitting_takes_no_more_than_is_planned_for_it(known: str) -> None:
    rows = 20_000
    place = np.arange(rows)
    given = {
        "sequence": place // 2 if known in ("sequence", "all") else None,
        "groups": place // 500 if known in ("groups", "all") else None,
        "span": np.stack([place, place + 2], axis=1) if known == "all" else None,
    }
    dataset = Dataset("many", np.zeros((rows, 1)), np.random.default_rng(0).integers(0, 5, rows), **given)
    tracemalloc.start()
    guard_split(dataset, 0.25)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows * SPLITTING_BYTES / 2 < peak < rows * SPLITTING_BYTES * 1.02


def test_a_fraction_too_small_for_one_row_is_refused_and_not_taken_for_none() -> None:
    with pytest.raises(DataError, match="too few to hold some out"):
        guard_split(windows([0, 0, 0, 0]), 0.01)


def test_the_network_as_it_came_wins_a_draw() -> None:
    assert best_epoch([0.8, 0.8, 0.7]) == 0
    assert best_epoch([0.8]) == 0
