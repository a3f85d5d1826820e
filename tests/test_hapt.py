"""HAPT's windows: cut on demand, within one recording and one activity."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeff.class_names import ACTIVITIES
from edgeff.data import calibration_split, open_dataset
from edgeff.errors import DataError
from edgeff.hapt import HAPT_SPLITS, TEST_USERS
from edgeff.readers import read_folder
from edgeff.rows import SelectedRows

# Samples of each recording, whose user, and the stretches of labels in it.
RECORDINGS = [
    (1, 1, [(1, 300), (-1, 40), (4, 150)]),
    (2, 2, [(2, 128), (7, 70), (5, 400)]),
    (3, 4, [(3, 100), (6, 256)]),
    (4, 2, [(5, 200)]),
    (5, 1, [(1, 127), (2, 129)]),  # the first window misses by one sample
]


def packed(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return lzma.compress(target.getvalue(), preset=0)


def signal_and_labels() -> tuple[np.ndarray, np.ndarray]:
    labels = np.concatenate([np.full(count, label, np.int8) for _, _, runs in RECORDINGS for label, count in runs])
    signal = np.random.default_rng(0).integers(-(2**15), 2**15, (len(labels), 6), np.int16)
    return signal, labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    signal, labels = signal_and_labels()
    differences = np.ascontiguousarray(np.diff(signal.T, axis=1, prepend=np.zeros((6, 1), np.int16)))
    lines, start = ["experiment,user,start,length"], 0
    for number, user, runs in RECORDINGS:
        length = sum(count for _, count in runs)
        lines.append(f"{number},{user},{start},{length}")
        start += length
    (tmp_path / "experiments.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "labels_int8.npy.xz").write_bytes(packed(labels))
    (tmp_path / "signals_diff_int16.npy.xz").write_bytes(packed(differences))
    return tmp_path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def expected_windows() -> list[tuple[int, int, int, int, np.ndarray]]:
    """Recording, user, first sample, class and window, found the slow way."""
    signal, labels = signal_and_labels()
    found, start = [], 0
    for number, user, runs in RECORDINGS:
        length = sum(count for _, count in runs)
        for first in range(0, length - 127, 64):
            own = labels[start + first : start + first + 128]
            if len(set(own.tolist())) == 1 and 1 <= own[0] <= 6:
                window = signal[start + first : start + first + 128]
                found.append((number, user, first, int(own[0]) - 1, window))
        start += length
    return found


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
def test_windows_are_cut_within_one_recording_and_one_activity(
    folder: Path, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeff.cache.IN_MEMORY_BYTES", held_bytes)
    monkeypatch.setattr("edgeff.hapt._BLOCK_SAMPLES", 100)
    expected = expected_windows()

    dataset = open_dataset(f"{folder}:all", data_dir=None)

    assert len(dataset) == len(expected) == 13
    assert (dataset.input.shape, dataset.input.dtype, dataset.classes) == ((128, 6), "int16", ACTIVITIES)
    np.testing.assert_array_equal(dataset.x[:], [window for *_, window in expected])
    assert dataset.y.tolist() == [label for *_, label, _ in expected]
    assert dataset.groups is not None
    assert dataset.sequence is not None
    assert dataset.span is not None
    assert dataset.groups.tolist() == [user for _, user, *_ in expected]
    assert dataset.sequence.tolist() == [number for number, *_ in expected]
    assert dataset.span.tolist() == [[first, first + 128] for _, _, first, *_ in expected]


def test_windows_are_not_held_as_copies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeff.cache.IN_MEMORY_BYTES", 0)
    dataset = read_folder(folder, "all")

    assert isinstance(dataset.x, SelectedRows)
    assert dataset.x.rows.shape[1:] == (128, 6)
    np.testing.assert_array_equal(dataset.x[np.array([5, 0])], dataset.x[:][[5, 0]])


@pytest.mark.parametrize(
    ("split", "users"), [("", {1}), ("train", {1}), ("test", {2, 4}), ("user-2", {2}), ("all", {1, 2, 4})]
)
def test_splits_are_by_person(folder: Path, split: str, users: set[int]) -> None:
    groups = read_folder(folder, split).groups
    assert groups is not None
    assert set(groups.tolist()) == users


@pytest.mark.parametrize("split", ["user-3", "user-", "user-02", "users", "user-<number>"])
def test_an_unknown_split_lists_the_known_ones(folder: Path, split: str) -> None:
    with pytest.raises(DataError) as caught:
        read_folder(folder, split)
    assert str(caught.value) == f"`{folder}` has no split `{split}`"
    assert "`user-<number>`" in caught.value.hint
    assert "user-<number>" in HAPT_SPLITS


HEAD = "experiment,user,start,length\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("experiments.csv", b"", "its first line is not `experiment,user,start,length`"),
        ("experiments.csv", HEAD.encode(), "it has no recordings"),
        ("experiments.csv", (HEAD + "1,1,0\n").encode(), "row 0 has 3 columns, needed 4"),
        ("experiments.csv", (HEAD + "1,1,0,100\n2,2,0,x\n").encode(), "invalid literal for int()"),
        ("experiments.csv", (HEAD + "1,1,0,99999\n").encode(), "row 0 has samples 0..99999, but the signal has 1900"),
        ("experiments.csv", (HEAD + "1,1,-1,10\n").encode(), "row 0 has samples -1..9, but the signal has 1900"),
        ("experiments.csv", b"\xff\xfe", "can't decode byte"),
        ("labels_int8.npy.xz", packed(np.zeros(7, np.int8)), "holds int8 of shape (7,), needed int8 of (1900,)"),
        (
            "labels_int8.npy.xz",
            packed(np.zeros(1900, np.int16)),
            "holds int16 of shape (1900,), needed int8 of (1900,)",
        ),
        ("labels_int8.npy.xz", b"not xz", "is not a valid npy file"),
        (
            "signals_diff_int16.npy.xz",
            packed(np.zeros((6, 300), np.float32)),
            "holds float32 of shape (6, 300), needed",
        ),
        (
            "signals_diff_int16.npy.xz",
            packed(np.zeros((300, 6), np.int16)),
            "holds int16 of shape (300, 6), needed int16",
        ),
        ("signals_diff_int16.npy.xz", packed(np.zeros((6, 99), np.int16)), "has 99 samples, needed 128 or more"),
        ("signals_diff_int16.npy.xz", packed(np.zeros((6, 9999), np.int16))[:-50], "is not a valid npy file"),
    ],
)
def test_a_malformed_folder_is_refused(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_folder(folder, "all")
    assert message in str(caught.value)
    assert str(folder / name) in str(caught.value)


def test_the_real_set_has_the_published_windows(
    data_dir: Path, tmp_path: Path, need: Callable[[Path, str], None]
) -> None:
    need(data_dir, "hapt")
    whole = open_dataset("hapt:all", data_dir=data_dir)
    train, test = (open_dataset(f"hapt:{split}", data_dir=data_dir) for split in ("train", "test"))

    assert np.bincount(whole.y).tolist() == [1660, 1468, 1317, 1736, 1926, 1910]
    assert len(whole) == len(train) + len(test) == 10017
    assert train.groups is not None
    assert test.groups is not None
    assert set(test.groups.tolist()) == set(TEST_USERS)
    assert len(set(train.groups.tolist())) == 21
    # Standing still, the accelerometer feels gravity: 1 g is 720 counts.
    standing = whole.x[np.flatnonzero(whole.y == 4)][:, :, :3] / 720.0
    assert 0.95 < np.linalg.norm(standing.mean(axis=1), axis=1).mean() < 1.05


def test_every_person_of_the_real_set_can_be_adapted_to_and_tested(
    data_dir: Path, need: Callable[[Path, str], None]
) -> None:
    need(data_dir, "hapt")
    for user in TEST_USERS:
        adapt, test = calibration_split(open_dataset(f"hapt:user-{user}", data_dir=data_dir))
        assert set(adapt.y.tolist()) == set(test.y.tolist()) == set(range(6))


@pytest.fixture
def need() -> Callable[[Path, str], None]:
    def check(data_dir: Path, name: str) -> None:
        if not (data_dir / name).is_dir():
            pytest.skip(f"no `{name}` in {data_dir}")

    return check
