"""Data sets by name and path: what is found, what is checked, what is said when there is nothing."""

from __future__ import annotations

import doctest
import gzip
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeff.class_names import DIGITS, FASHION
from edgeff.data import Dataset, batches, known_datasets, open_dataset
from edgeff.errors import DataError
from edgeff.preprocess import fit_preprocessing

ROOT = Path(__file__).resolve().parent.parent
X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2])
GOOD = Dataset("good", X, Y, ("a", "b", "c"), groups=Y, sequence=Y, span=np.stack([Y, Y + 1], axis=1))


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _environment(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(shared_cache))
    monkeypatch.delenv("EDGEFF_DATA_DIR", raising=False)


def error_of(call: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    return caught.value


def write_mnist(folder: Path) -> None:
    folder.mkdir(parents=True)
    for stem, rows in (("train", 4), ("t10k", 3)):
        images = bytes([0, 0, 8, 3, 0, 0, 0, rows, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes(range(4 * rows))
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        labels = bytes([0, 0, 8, 1, 0, 0, 0, rows]) + bytes(range(rows))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


# --- names and paths ---


@pytest.mark.parametrize(("spec", "rows"), [("mnist", 4), ("mnist:train", 4), ("mnist:test", 3)])
@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
def test_a_known_name_is_found_in_the_data_folder(
    tmp_path: Path, folder: str, spec: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / folder)

    dataset = open_dataset(spec, data_dir=tmp_path)

    assert (dataset.name, len(dataset), dataset.classes) == (spec, rows, DIGITS)
    monkeypatch.setenv("EDGEFF_DATA_DIR", str(tmp_path))
    assert len(open_dataset(spec, data_dir=None)) == rows


def test_an_empty_folder_of_the_name_does_not_hide_the_one_that_has_the_data(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    assert "is a folder in no form" in str(error_of(lambda: open_dataset("mnist", data_dir=tmp_path)))
    write_mnist(tmp_path / "MNIST" / "raw")
    assert len(open_dataset("mnist", data_dir=tmp_path)) == 4


@pytest.mark.parametrize(
    ("names", "classes", "same"),
    [
        ((), ("a", "b"), True),
        (("a", "b"), ("a", "b"), True),
        (("b", "a"), ("a", "b"), False),
        (("still", "moving"), ("0", "1"), True),
        (("still", "moving", "turning"), ("0", "1"), False),
        (("still",), ("0", "1"), False),
        (("0", "1"), ("0", "1"), True),
        (("0", "2"), ("0", "1"), False),  # 2 would be taken for 1
        (("0", "2"), ("0", "1", "2"), False),
        (("-1", "1"), ("0", "1"), False),
        (("0", "1"), ("a", "b"), False),
    ],
)
def test_names_tell_whether_labels_stand_for_the_classes_of_a_network(
    names: tuple[str, ...], classes: tuple[str, ...], same: bool
) -> None:
    assert replace(GOOD, classes=names).is_named_as(classes) == same


def test_a_folder_may_be_given_with_a_split(tmp_path: Path) -> None:
    write_mnist(tmp_path / "my:mnist")

    assert len(open_dataset(f"{tmp_path}/my:mnist", data_dir=None)) == 4
    test = open_dataset(f"{tmp_path}/my:mnist:test", data_dir=None)
    assert (len(test), test.classes, test.name) == (3, (), f"{tmp_path}/my:mnist:test")


def test_a_file_is_opened_by_its_path(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=X, y=Y)
    dataset = open_dataset(str(tmp_path / "mine.npz"), data_dir=None)
    assert dataset.input.shape == (2,)

    error = error_of(lambda: open_dataset(f"{tmp_path}/mine.npz:test", data_dir=None))
    assert str(error) == f"`{tmp_path}/mine.npz` is a file and has no split `test`"


def test_a_series_takes_the_length_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\t1\t2\t3\n")
    assert open_dataset(str(tmp_path / "a.tsv"), data_dir=None, length=2).x[:].tolist() == [[1.0, 2.0]]
    error = error_of(lambda: open_dataset(str(tmp_path / "a.tsv"), data_dir=None, length=0))
    assert str(error) == "the length of a row must be 1 or more, got 0"


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("minst", "did you mean `mnist`?"),
        ("minst:test", "did you mean `mnist`?"),
        ("CIFAR-10", "did you mean `cifar10` or `cifar100`?"),
        ("what.npz", ""),
        ("", ""),
        (":", ""),
        ("\0", ""),
        ("x" * 1000, ""),
    ],
)
def test_what_is_neither_name_nor_path_gets_near_names_or_all_known_ones(spec: str, near: str, tmp_path: Path) -> None:
    error = error_of(lambda: open_dataset(spec, data_dir=tmp_path))
    shown = spec.replace("\0", r"\x00")
    assert str(error) == f"`{shown}` is neither a file nor a known data set"
    assert error.hint == (near or f"known: {', '.join(known_datasets())}")


def test_a_known_name_without_a_data_folder_says_how_to_give_one(tmp_path: Path) -> None:
    error = error_of(lambda: open_dataset("mnist:test", data_dir=None))
    assert str(error) == "`mnist` was asked for, but not where data sets lie"
    assert error.hint == ("give `--data-dir FOLDER` or set `EDGEFF_DATA_DIR`; for files of your own give their path")
    error = error_of(lambda: open_dataset("mnist", data_dir=tmp_path))
    assert str(error) == f"`mnist` is not in `{tmp_path}`: needed a folder `mnist` in it"
    error = error_of(lambda: open_dataset("mnist", data_dir=tmp_path / "none"))
    assert str(error) == f"the data folder `{tmp_path / 'none'}` does not exist"


def test_a_split_that_a_known_data_set_does_not_have_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    for split in ("dev", "user-1"):
        error = error_of(lambda split=split: open_dataset(f"mnist:{split}", data_dir=tmp_path))  # type: ignore[misc]
        assert str(error) == f"`{tmp_path / 'mnist'}` has no split `{split}`"
        assert error.hint == "its splits: `train`, `test`"


def test_float_rows_are_looked_through_when_they_are_opened(tmp_path: Path) -> None:
    x = np.zeros((3000, 100), np.float32)
    x[2345, 6] = np.inf
    np.savez(tmp_path / "mine.npz", x=x, y=np.zeros(3000, np.uint8))

    error = error_of(lambda: open_dataset(str(tmp_path / "mine.npz"), data_dir=None))

    assert str(error) == f"`{tmp_path / 'mine.npz'}` has NaN or Inf in row 2345"


# --- Dataset ---


def test_a_data_set_whose_parts_fit_passes_the_check() -> None:
    assert GOOD.check() is GOOD
    assert GOOD.check_values() is GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[:0], "y": Y[:0]}, "`good` has no rows: shape (0, 2) with 0 labels"),
        ({"x": X[:, :0]}, "`good` has no rows: shape (6, 0) with 6 labels"),
        ({"x": X.astype(object)}, "`good` has rows of dtype object, needed one of bool, uint8"),
        ({"x": X.astype(np.uint32)}, "`good` has rows of dtype uint32, needed one of bool, uint8"),
        ({"x": X[:5]}, "`good` has labels of shape (6,) and dtype int64, needed (5,) and int64: one for each row"),
        ({"y": Y.astype(np.int32)}, "`good` has labels of shape (6,) and dtype int32, needed (6,) and int64: one for"),
        ({"groups": Y[:4]}, "`good` has groups of shape (4,) and dtype int64, needed (6,) and int64: one for each row"),
        ({"sequence": Y[:, None]}, "`good` has sequence of shape (6, 1) and dtype int64, needed (6,) and int64"),
        ({"span": Y}, "`good` has span of shape (6,) and dtype int64, needed (6, 2) and int64: one for each row"),
        ({"y": Y + 1}, "`good` has label 3 in row 2, needed 0..2"),
        ({"y": Y + 2}, "`good` has label 3 in row 1, needed 0..2"),
        ({"y": Y - 1}, "`good` has label -1 in row 0, needed 0..2"),
        ({"y": Y - 1, "classes": ()}, "`good` has label -1 in row 0, needed 0 or more"),
        ({"classes": ("a", "b\nc", "d")}, "`good` has the class name 'b\\nc', needed text without control characters"),
        ({"classes": ("a", "", "d")}, "`good` has the class name '', needed text"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    error = error_of(lambda: replace(GOOD, **change).check())  # type: ignore[arg-type]
    assert str(error).startswith(message)


def test_labels_that_count_from_one_are_told_from_wrong_ones() -> None:
    assert replace(GOOD, y=Y + 1).counts_from_one
    assert "subtract 1 from all of them" in error_of(lambda: replace(GOOD, y=Y + 1).check()).hint
    for y in (Y, Y + 2, np.where(Y == 0, 5, Y)):
        assert not replace(GOOD, y=y).counts_from_one
    assert not replace(GOOD, y=Y + 1, classes=()).counts_from_one
    assert "`train-on-device --skip-bad-rows`" in error_of(lambda: replace(GOOD, y=Y + 2).check()).hint


@pytest.mark.parametrize("index", [np.array([4, 0, 0]), np.array([True, False, True, False, False, False])])
def test_a_selection_takes_every_part_along(index: np.ndarray) -> None:
    chosen = GOOD.select(index, name="chosen").check()

    assert (chosen.name, chosen.classes, chosen.input) == ("chosen", GOOD.classes, GOOD.input)
    for part in ("x", "y", "groups", "sequence", "span"):
        np.testing.assert_array_equal(getattr(chosen, part)[:], getattr(GOOD, part)[index])
    bare = Dataset("bare", X, Y).select(index)
    assert (bare.name, bare.groups, bare.sequence, bare.span) == ("bare", None, None, None)


# --- documentation, and the real data sets ---


def test_the_examples_in_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testfile(str(ROOT / "docs" / "data.md"), module_relative=False, encoding="utf-8")
    assert results.failed == 0
    assert results.attempted > 15


def test_reading_data_imports_no_torch_onnx_or_onnxruntime() -> None:
    code = (
        "import sys, edgeff.data, edgeff.preprocess; print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Rows, one row's shape, dtype, rows per class (test half) and class names, as the data sets' descriptions give them.
REAL = {
    "mnist": ((28, 28), "uint8", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], DIGITS),
    "fashion-mnist": ((28, 28), "uint8", [1000] * 10, FASHION),
    "ecg5000": ((140,), "float32", [2627, 1590, 86, 175, 22], tuple("12345")),
    "basicmotions": ((6, 100), "float32", [10] * 4, ("Badminton", "Running", "Standing", "Walking")),
    "japanese-vowels": ((12, 29), "float32", [31, 35, 88, 44, 29, 24, 40, 50, 29], tuple("123456789")),
}
TRAIN_ROWS = {"mnist": 60000, "fashion-mnist": 60000, "ecg5000": 500, "basicmotions": 40, "japanese-vowels": 270}


@pytest.mark.parametrize("name", REAL)
def test_the_real_test_halves_are_complete(data_dir: Path, name: str) -> None:
    if not (data_dir / name).is_dir():
        pytest.skip(f"no `{name}` in {data_dir}")
    shape, dtype, counts, classes = REAL[name]

    dataset = open_dataset(f"{name}:test", data_dir=data_dir)

    assert (dataset.input.shape, dataset.input.dtype, dataset.classes) == (shape, dtype, classes)
    assert np.bincount(dataset.y).tolist() == counts


@pytest.mark.parametrize("name", ["mnist", "ecg5000", "basicmotions", "japanese-vowels"])
def test_the_real_training_halves_are_complete(data_dir: Path, name: str) -> None:
    if not (data_dir / name).is_dir():
        pytest.skip(f"no `{name}` in {data_dir}")
    dataset = open_dataset(name, data_dir=data_dir)
    assert len(dataset) == TRAIN_ROWS[name]
    assert (dataset.input.shape, dataset.classes) == (REAL[name][0], REAL[name][3])


def test_the_real_mnist_has_its_published_mean_and_deviation(data_dir: Path) -> None:
    if not (data_dir / "mnist").is_dir():
        pytest.skip(f"no `mnist` in {data_dir}")
    dataset = open_dataset("mnist", data_dir=data_dir)

    (affine, _) = fit_preprocessing(dataset, (1, 28, 28), rows=60000).steps

    assert affine["offset"] == pytest.approx(0.1306605 * 255, abs=0.01)
    assert 1 / affine["scale"] == pytest.approx(0.3081078 * 255, abs=0.01)  # type: ignore[operator]


def test_an_epoch_over_a_file_reads_every_row_once(data_dir: Path) -> None:
    if not (data_dir / "basicmotions").is_dir():
        pytest.skip(f"no `basicmotions` in {data_dir}")
    dataset = open_dataset("basicmotions", data_dir=data_dir)
    total = sum(dataset.x[rows].sum(dtype=np.float64) for rows in batches(dataset, 7, seed=0, epoch=3))
    assert total == pytest.approx(dataset.x[:].sum(dtype=np.float64))
