"""Orders and splits: reproducible, and nothing that belongs together is torn apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import dataset_of, recordings, samples

from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.split import (
    activities_in_time,
    batches,
    calibration_split,
    sample_rows,
    sharing_samples,
    stratified_rows,
    train_validation_split,
)

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda values: np.array(values, np.int64))


def numbers(dataset: Dataset) -> list[int]:
    return dataset.x[:].reshape(-1).tolist()  # type: ignore[no-any-return]


@settings(deadline=None)
@given(
    rows=st.integers(0, 50), size=st.integers(1, 60), seed=st.none() | st.integers(-5, 2**70), epoch=st.integers(0, 9)
)
def test_the_batches_of_an_epoch_hold_every_row_once(rows: int, size: int, seed: int | None, epoch: int) -> None:
    parts = list(batches(range(rows), size, seed=seed, epoch=epoch))

    together = np.concatenate([*parts, np.zeros(0, np.int64)])
    assert sorted(together.tolist()) == list(range(rows))
    assert all(len(part) == size for part in parts[:-1])
    assert seed is not None or together.tolist() == list(range(rows))
    assert all(part.dtype == np.int64 for part in parts)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(list(batches(range(100), 7, seed=seed, epoch=epoch))).tolist()  # type: ignore[no-any-return]

    assert order(3, 5) == order(3, 5)
    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(each) for each in orders}) == 9


def test_a_batch_of_no_rows_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        batches(range(3), 0, seed=None)
    assert str(caught.value) == "a batch needs 1 or more rows, got 0"


@settings(deadline=None)
@given(y=labels, per_class=st.integers(1, 9), seed=st.integers(0, 3))
def test_a_stratified_sample_has_as_many_of_each_class(y: np.ndarray, per_class: int, seed: int) -> None:
    rows = stratified_rows(y, per_class, seed)

    assert rows.tolist() == sorted(set(rows.tolist()))
    for label in np.unique(y):
        assert (y[rows] == label).sum() == min(per_class, (y == label).sum())
    assert rows.tolist() == stratified_rows(y, per_class, seed).tolist()


def test_other_seeds_choose_other_rows() -> None:
    y = np.zeros(1000, np.int64)
    assert stratified_rows(y, 10, 0).tolist() != stratified_rows(y, 10, 1).tolist()
    assert sample_rows(1000, 10, 0).tolist() != sample_rows(1000, 10, 1).tolist()
    assert sample_rows(3, 10, 0).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="a stratified sample needs 1 or more rows of each class, got 0"):
        stratified_rows(y, 0, 0)


@settings(deadline=None)
@given(y=labels, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 3), data=st.data())
def test_no_group_is_in_both_parts(y: np.ndarray, fraction: float, seed: int, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["groups", "sequence"]))
    groups = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(y), max_size=len(y))), np.int64)
    dataset = dataset_of(y, **{kind: groups})
    if len(np.unique(groups)) == 1:
        with pytest.raises(DataError, match="`test` cannot be divided into training and validation rows"):
            train_validation_split(dataset, fraction, seed)
        return

    train, validation = train_validation_split(dataset, fraction, seed)

    assert sorted(numbers(train) + numbers(validation)) == list(range(len(y)))
    assert not set(groups[numbers(train)].tolist()) & set(groups[numbers(validation)].tolist())
    # No choice along the same order of groups would have come nearer by a whole largest group.
    largest = np.bincount(groups).max()
    assert abs(len(validation) - fraction * len(y)) <= largest
    assert len(train)
    assert len(validation)


@settings(deadline=None)
@given(y=labels, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 3))
def test_without_groups_each_class_is_divided_alike(y: np.ndarray, fraction: float, seed: int) -> None:
    dataset = dataset_of(y)
    counts = np.bincount(y)
    if counts.max() == 1:
        with pytest.raises(DataError):
            train_validation_split(dataset, fraction, seed)
        return

    train, validation = train_validation_split(dataset, fraction, seed)

    assert sorted(numbers(train) + numbers(validation)) == list(range(len(y)))
    for label, count in enumerate(counts):
        in_validation = int((validation.y == label).sum())
        assert abs(in_validation - fraction * count) <= 1 or count <= 1
        assert count < 2 or 0 < in_validation < count
    again = train_validation_split(dataset, fraction, seed)
    assert (numbers(train), numbers(validation)) == (numbers(again[0]), numbers(again[1]))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=f"must lie between 0 and 1, got {fraction:g}"):
        train_validation_split(dataset_of(np.zeros(4, np.int64)), fraction, 0)


# --- calibration ---


@settings(deadline=None)
@given(dataset=recordings())
def test_no_sample_is_both_adapted_on_and_tested_on(dataset: Dataset) -> None:
    adapt, test = calibration_split(dataset)
    assert not samples(adapt) & samples(test)


@settings(deadline=None)
@given(dataset=recordings())
def test_each_activity_is_adapted_on_in_its_earlier_half_and_tested_on_later(dataset: Dataset) -> None:
    adapt, test = calibration_split(dataset)
    assert dataset.sequence is not None
    assert dataset.span is not None
    start = dataset.span[:, 0]
    adapted, tested = np.array(numbers(adapt)), np.array(numbers(test))
    for recording in np.unique(dataset.sequence):
        for label in range(3):
            own = np.flatnonzero((dataset.sequence == recording) & (dataset.y == label))
            early, late = np.intersect1d(own, adapted), np.intersect1d(own, tested)
            assert len(early) == len(own) // 2
            assert not len(early) or not len(late) or start[early].max() < start[late].min()


@settings(deadline=None)
@given(dataset=recordings())
def test_only_windows_that_share_samples_are_left_out(dataset: Dataset) -> None:
    adapt, test = calibration_split(dataset)
    left_out = sorted(set(range(len(dataset))) - set(numbers(adapt)) - set(numbers(test)))
    for row in left_out:
        assert samples(dataset.select(np.array([row]))) & samples(adapt)


def test_half_overlapping_windows_lose_one_between_the_halves() -> None:
    span = np.array([[64 * k, 64 * k + 128] for k in range(7)])
    adapt, test = calibration_split(dataset_of(np.zeros(7, np.int64), sequence=np.zeros(7, np.int64), span=span))

    assert (numbers(adapt), numbers(test)) == ([0, 1, 2], [4, 5, 6])


def test_a_long_early_window_counts_even_behind_a_short_one() -> None:
    span = np.array([[0, 10], [1, 2], [8, 9], [12, 13]])
    adapt, test = calibration_split(dataset_of(np.zeros(4, np.int64), sequence=np.zeros(4, np.int64), span=span))

    assert (numbers(adapt), numbers(test)) == ([0, 1], [3])


def test_without_spans_each_row_is_taken_to_overlap_its_neighbours() -> None:
    sequence = np.array([1, 1, 1, 1, 2, 2, 2])
    adapt, test = calibration_split(dataset_of(np.zeros(7, np.int64), sequence=sequence))

    assert (numbers(adapt), numbers(test)) == ([0, 1, 4], [3, 6])


def test_without_recordings_independent_rows_are_halved_by_group_and_label() -> None:
    y, groups = np.array([0, 0, 0, 1, 1, 0, 0]), np.array([1, 1, 1, 1, 1, 2, 2])
    adapt, test = calibration_split(dataset_of(y, groups=groups))

    assert (numbers(adapt), numbers(test)) == ([0, 3, 5], [1, 2, 4, 6])


@pytest.mark.parametrize(("rows", "got"), [(1, "0 rows to adapt on, 1"), (2, "1 rows to adapt on, 0")])
def test_rows_that_cannot_be_halved_are_refused(rows: int, got: str) -> None:
    with pytest.raises(DataError) as caught:
        calibration_split(dataset_of(np.zeros(rows, np.int64), sequence=np.zeros(rows, np.int64)))
    assert str(caught.value) == f"`test` cannot be halved: {got} to test on"
    assert caught.value.hint == "it needs some recording with three rows or more of one label"


# --- what the splits are made of ---


@settings(deadline=None)
@given(dataset=recordings())
def test_every_row_is_in_the_activity_of_its_recording_and_label_in_time_order(dataset: Dataset) -> None:
    assert dataset.sequence is not None
    assert dataset.span is not None
    parts = list(activities_in_time(dataset))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(dataset)))
    keys = [set(zip(dataset.sequence[rows].tolist(), dataset.y[rows].tolist(), strict=True)) for rows in parts]
    assert all(len(key) == 1 for key in keys)
    assert len(set.union(*keys)) == len(parts)
    assert all((np.diff(dataset.span[rows, 0]) >= 0).all() for rows in parts)


@settings(deadline=None)
@given(dataset=recordings(), data=st.data())
def test_rows_share_samples_with_what_was_chosen_as_sets_of_samples_say(dataset: Dataset, data: st.DataObject) -> None:
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(dataset), max_size=len(dataset))))
    taken = samples(dataset.select(chosen))
    expected = [bool(samples(dataset.select(np.array([row]))) & taken) for row in range(len(dataset))]
    assert sharing_samples(dataset, chosen).tolist() == expected


def test_rows_without_recordings_share_nothing_whatever_their_spans() -> None:
    dataset = dataset_of(np.zeros(3, np.int64), span=np.array([[0, 9], [0, 9], [0, 9]]))
    assert not sharing_samples(dataset, np.array([True, False, False])).any()
