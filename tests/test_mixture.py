"""`runtime/mixture.py`: rows that are checked, held out and mixed, beyond what `test_adapt.py` shows on a run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_artifact import FEATURES, Tiny, make_dataset, make_manifest, make_rows, write_tiny

from edgeff.artifact import Artifact
from edgeff.checked_rows import check_rows
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.runtime.mixture import described, prepare_rows
from edgeff.runtime.settings import AdaptSettings

SETTINGS = AdaptSettings(epochs=1, batch_size=8, learning_rate=0.1, replay_fraction=0.25)
MANIFEST = make_manifest(Tiny())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny")


class Counted:
    """Rows that note how often each was read."""

    def __init__(self, x: np.ndarray) -> None:
        self._x = x
        self.shape, self.dtype = x.shape, x.dtype
        self.reads = np.zeros(len(x), int)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, key: Any) -> np.ndarray:
        self.reads[key] += 1
        return self._x[key]


def rows_of(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


# --- splitting and mixing ---


def test_a_row_is_trained_on_or_held_out_and_never_both(artifact: Artifact) -> None:
    dataset = make_dataset(48)
    prepared = prepare_rows(artifact, dataset, replace(SETTINGS, guard_fraction=0.5))
    own, guard = prepared.training.x.rows[10:], prepared.guard.x[:]
    assert len(guard) == 24
    assert rows_of(own) | rows_of(guard) == rows_of(dataset.x)
    assert not rows_of(own) & rows_of(guard)
    assert prepared.guard.name == dataset.name
    labels = {row.tobytes(): int(label) for row, label in zip(dataset.x, dataset.y, strict=True)}
    for x, y in ((own, prepared.training.y[10:]), (guard, prepared.guard.y)):
        assert [labels[row.tobytes()] for row in x] == y.tolist()


def test_a_row_that_overlaps_the_guard_is_neither_trained_on_nor_held_out(artifact: Artifact) -> None:
    x, _ = make_rows(8)
    dataset = Dataset("windows", x, np.zeros(8, np.int64), sequence=np.zeros(8, np.int64))
    prepared = prepare_rows(artifact, dataset, SETTINGS)
    assert rows_of(prepared.guard.x[:]) == rows_of(x[6:])
    assert rows_of(prepared.training.x.rows[10:]) == rows_of(x[:5])
    assert prepared.training.order.own_rows == 5


def test_without_replay_the_artifacts_rows_are_not_even_read(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Artifact, "replay", lambda self: pytest.fail("replay rows were read"))
    training = prepare_rows(artifact, make_dataset(48), replace(SETTINGS, replay_fraction=0.0)).training
    assert (len(training.x), len(training.y), training.order.replay_rows) == (36, 36, 0)
    assert sorted(np.concatenate(list(training.order.batches(1))).tolist()) == list(range(36))


def test_own_rows_take_the_dtype_of_the_replay_rows(artifact: Artifact) -> None:
    dataset = make_dataset(48)
    finer = replace(dataset, x=dataset.x.astype(np.float64))
    training = prepare_rows(artifact, finer, SETTINGS).training
    assert training.x[[0, 20]].dtype == np.float32
    np.testing.assert_array_equal(training.x[10:], prepare_rows(artifact, dataset, SETTINGS).training.x[10:])


def test_the_order_is_that_of_the_settings(artifact: Artifact) -> None:
    order = prepare_rows(artifact, make_dataset(48), replace(SETTINGS, seed=7, batch_size=6)).training.order
    assert (order.own_rows, order.replay_rows, order.batch_size) == (36, 10, 6)
    assert (order.replay_fraction, order.seed) == (0.25, 7)


def test_rows_are_checked_before_they_are_split(artifact: Artifact) -> None:
    dataset = make_dataset(48)
    dataset.x[47, 0] = np.inf  # it would be held out
    with pytest.raises(DataError, match="row 47 has NaN, Inf"):
        prepare_rows(artifact, dataset, SETTINGS)


def test_preparing_reads_own_rows_once_for_the_check_and_no_more(artifact: Artifact) -> None:
    dataset = make_dataset(48)
    counted = Counted(dataset.x)
    prepare_rows(artifact, replace(dataset, x=counted), SETTINGS)
    assert counted.reads.tolist() == [1] * 48


# --- checks ---


def test_every_row_is_looked_at_however_many_blocks_of_rows_there_are() -> None:
    x = np.zeros((30_000, FEATURES), np.float32)  # 720 kB: three blocks of 256 KiB
    x[29_999, 3] = np.nan
    counted = Counted(x)
    with pytest.raises(DataError, match=r"^row 29999 has NaN"):
        check_rows(MANIFEST, Dataset("long", counted, np.zeros(len(x), np.int64)))
    assert counted.reads.tolist() == [1] * len(x)


def test_a_model_with_numbers_for_names_takes_rows_with_any_names() -> None:
    dataset = replace(make_dataset(12), classes=("w", "x", "y", "z"))
    check_rows(replace(MANIFEST, classes=("0", "1", "2", "3")), dataset)
    with pytest.raises(DataError) as caught:
        check_rows(MANIFEST, dataset)
    assert str(caught.value) == "`demo` has the classes `w`, `x`, `y`, `z`, needed `a`, `b`, `c`, `d`"
    assert caught.value.hint == "give data with the classes that the model was pretrained on, in its order"


def test_of_many_class_names_the_first_five_are_told() -> None:
    dataset = replace(make_dataset(12), classes=tuple("hgfedcb"))
    with pytest.raises(DataError, match=r"has the classes `h`, `g`, `f`, `e`, `d`, \.\.\., needed `a`, `b`"):
        check_rows(MANIFEST, dataset)


def test_fewer_labels_than_the_model_has_classes_are_fine() -> None:
    x, _ = make_rows(6)
    check_rows(MANIFEST, Dataset("one class", x, np.full(6, 3)))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float64", ""),
        ("float16", ""),
        ("int16", "raw rows have shape (6,) and dtype int16, needed (6,) and float32"),
    ],
)
def test_floats_stand_for_one_another_and_integers_do_not(dtype: str, message: str) -> None:
    x, y = make_rows(12)
    dataset = Dataset("rows", x.astype(dtype), y)
    if not message:
        check_rows(MANIFEST, dataset)
        return
    with pytest.raises(DataError) as caught:
        check_rows(MANIFEST, dataset)
    assert str(caught.value) == message


def test_no_rows_are_refused() -> None:
    empty = Dataset("empty", np.zeros((0, FEATURES), np.float32), np.zeros(0, np.int64))
    with pytest.raises(DataError, match=r"^`empty` has no rows"):
        check_rows(MANIFEST, empty)


def test_an_artifact_without_replay_rows_can_be_adapted_without(tmp_path: Path) -> None:
    bare = write_tiny(tmp_path / "bare", Tiny(replay_rows=0))
    assert len(prepare_rows(bare, make_dataset(48), replace(SETTINGS, replay_fraction=0.0)).training.x) == 36


def test_rows_are_told_from_others_by_some_of_them_read_one_by_one() -> None:
    class Single(Counted):
        def __getitem__(self, key: Any) -> np.ndarray:
            found: np.ndarray = super().__getitem__(key)
            assert len(found) == 1
            return found

    dataset = make_dataset(rows=100)
    told = described(replace(dataset, x=Single(dataset.x)))
    some = np.ascontiguousarray(dataset.x[np.linspace(0, 99, 64).astype(int)])
    assert told["sample_sha256"] == hashlib.sha256(some.tobytes()).hexdigest()
    changed = dataset.x.copy()
    changed[99] += 1
    assert described(replace(dataset, x=changed))["sample_sha256"] != told["sample_sha256"]
