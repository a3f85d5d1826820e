"""Rows that fit a model, rows that are refused, and rows that are left out and counted."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_artifact import CLASSES, FEATURES, Tiny, make_dataset, make_manifest

from edgeff.checked_rows import check_rows
from edgeff.dataset import Dataset
from edgeff.errors import DataError

MANIFEST = make_manifest(Tiny())


def with_bad(rows=20, nan=(), labels=()):
    dataset = make_dataset(rows)
    x, y = dataset.x.copy(), dataset.y.copy()
    x[list(nan), 1] = np.nan
    y[list(labels)] = CLASSES + 5
    return replace(dataset, x=x, y=y)


def test_good_rows_are_all_taken_with_the_models_class_names():
    found = check_rows(MANIFEST, make_dataset(20), skip=True)
    assert (len(found.dataset), found.skipped, found.constant, found.notices()) == (20, {}, False, [])
    assert found.dataset.classes == MANIFEST.classes


@given(bad=st.sets(st.integers(0, 19), max_size=9), data=st.data())
def test_bad_rows_are_left_out_and_counted_and_the_others_kept_in_order(bad, data):
    labels = data.draw(st.sets(st.sampled_from(sorted(bad)))) if bad else set()
    rows = with_bad(nan=bad - labels, labels=labels)
    found = check_rows(MANIFEST, rows, skip=True)
    kept = sorted(set(range(20)) - bad)
    np.testing.assert_array_equal(found.dataset.x[:], rows.x[kept])
    np.testing.assert_array_equal(found.dataset.y, rows.y[kept])
    assert sum(found.skipped.values()) == len(bad)


def test_what_was_left_out_is_said_in_words():
    notices = check_rows(MANIFEST, with_bad(nan=[3, 4], labels=[7]), skip=True).notices()
    assert notices == [
        "left out 1 rows with a label that is no class",
        "left out 2 rows with NaN, Inf or a number that float32 cannot hold",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (with_bad(nan=[3]), "row 3 has NaN, Inf or a number that float32 cannot hold"),
        (with_bad(labels=[5]), "`demo` has label 9 in row 5, needed 0..3"),
    ],
)
def test_unless_asked_to_skip_a_bad_row_is_refused_by_number(rows, message):
    with pytest.raises(DataError) as caught:
        check_rows(MANIFEST, rows)
    assert str(caught.value) == message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (with_bad(nan=range(11)), "`demo` has 11 of 20 rows with NaN, Inf or a number that float32 cannot hold"),
        (with_bad(labels=range(20)), "`demo` has 20 of 20 rows with a label that is no class"),
    ],
)
def test_of_more_than_half_bad_rows_none_is_taken(rows, message):
    with pytest.raises(DataError) as caught:
        check_rows(MANIFEST, rows, skip=True)
    assert str(caught.value) == message
    assert "look at where the data come from" in caught.value.hint


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("x", "classes"),
    [
        (np.zeros((8, FEATURES + 1), np.float32), ()),
        (np.zeros((8, FEATURES), np.int16), ()),
        (np.zeros((8, FEATURES), np.float32), ("d", "c", "b", "a")),
    ],
)
def test_other_data_are_refused_whatever_is_asked_for(x, classes, skip):
    with pytest.raises(DataError):
        check_rows(MANIFEST, Dataset("other", x, np.arange(8) % CLASSES, classes), skip=skip)


def test_labels_that_count_from_one_are_all_wrong_and_not_left_out_in_part():
    rows = make_dataset(20)
    with pytest.raises(DataError, match=f"has label {CLASSES} in row"):
        check_rows(MANIFEST, replace(rows, y=rows.y + 1), skip=True)


def test_labels_that_only_look_like_the_models_are_refused():
    numbered = replace(MANIFEST, classes=tuple(map(str, range(CLASSES))))
    rows = make_dataset(20)
    names = tuple(str(label) for label in range(1, CLASSES + 1))  # a file without the label 0
    with pytest.raises(DataError, match="has the classes `1`, `2`, `3`, `4`, needed `0`, `1`, `2`, `3`"):
        check_rows(numbered, replace(rows, classes=names))
    assert check_rows(numbered, replace(rows, classes=("a", "b", "c", "d"))).dataset.classes == numbered.classes


def test_rows_that_are_all_the_same_are_told_of():
    rows = Dataset("still", np.ones((40_000, FEATURES), np.float32), np.arange(40_000) % CLASSES)  # several blocks
    (notice,) = check_rows(MANIFEST, rows).notices()
    assert notice == "all 40,000 rows are the same: there is nothing in them to learn from"
    rows.x[39_999, 0] = 2
    assert not check_rows(MANIFEST, rows).constant
