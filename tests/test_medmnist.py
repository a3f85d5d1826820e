"""MedMNIST's files give the split that is asked for, and those of another form a `DataError`."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeff.data import open_dataset
from edgeff.errors import DataError
from edgeff.preprocess import fit_preprocessing
from edgeff.rows import row_blocks

RANDOM = np.random.default_rng(0)
COUNTS = {"train": 9, "val": 4, "test": 5}
LABELS = {split: (np.arange(count) % 3).astype(np.uint8)[:, None] for split, count in COUNTS.items()}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path / "cache"))


def arrays(row: tuple[int, ...] = (28, 28)) -> dict[str, np.ndarray]:
    images = {f"{split}_images": RANDOM.integers(0, 256, (n, *row), np.uint8) for split, n in COUNTS.items()}
    return {**images, **{f"{split}_labels": labels for split, labels in LABELS.items()}}


def error_of(call: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("row", [(28, 28), (28, 28, 3), (64, 64), (128, 128, 3), (224, 224)])
def test_every_split_is_read(tmp_path: Path, save: Callable[..., None], row: tuple[int, ...]) -> None:
    whole = arrays(row)
    path = tmp_path / "organamnist.npz"
    save(path, **whole)

    for spec, split in ((f"{path}", "train"), *((f"{path}:{split}", split) for split in COUNTS)):
        dataset = open_dataset(spec, data_dir=None)
        np.testing.assert_array_equal(dataset.x[:], whole[f"{split}_images"])
        np.testing.assert_array_equal(dataset.x[np.array([2, 0])], whole[f"{split}_images"][[2, 0]])
        assert dataset.y.tolist() == LABELS[split][:, 0].tolist()
        assert (dataset.name, dataset.classes, dataset.input.shape) == (spec, (), row)


def test_colour_images_become_what_a_network_takes(tmp_path: Path) -> None:
    np.savez(tmp_path / "pathmnist.npz", **arrays((28, 28, 3)))
    dataset = open_dataset(f"{tmp_path}/pathmnist.npz", data_dir=None)
    assert fit_preprocessing(dataset, (3, 28, 28)).apply(dataset.x[:2]).shape == (2, 3, 28, 28)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_not_held(tmp_path: Path, save: Callable[..., None]) -> None:
    whole = arrays()
    count = 20_000  # 16 MB
    whole["train_images"] = np.resize(whole["train_images"], (count, 28, 28))
    whole["train_labels"] = np.resize(whole["train_labels"], (count, 1))
    save(tmp_path / "a.npz", **whole)
    tracemalloc.start()
    try:
        dataset = open_dataset(f"{tmp_path}/a.npz", data_dir=None)
        assert sum(len(block) for _, block in row_blocks(dataset.x)) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    error = error_of(lambda: open_dataset(f"{tmp_path}/a.npz:validation", data_dir=None))
    assert str(error) == f"`{tmp_path}/a.npz` has no split `validation`"
    assert error.hint == "its splits: `train`, `val`, `test`"


VOLUMES = np.zeros((9, 28, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train_labels": np.zeros((9, 14), np.uint8)},
            "`train_labels` in `{}` has 14 labels for each image",
        ),
        ({"train_labels": np.zeros(9, np.uint8)}, "`train_labels` in `{}` has shape (9,), needed (9, 1)"),
        ({"train_labels": LABELS["val"]}, "`train_labels` in `{}` has shape (4, 1), needed (9, 1)"),
        ({"train_labels": np.zeros((9, 1))}, "`train_labels` in `{}` has dtype float64, needed whole numbers"),
        ({"train_labels": -np.ones((9, 1), int)}, "`{}` has label -1 in row 0, needed 0 or more"),
        (
            {"train_images": np.zeros((9, 28, 28))},
            "`train_images` in `{}` is float64 of shape (9, 28, 28), nee",
        ),
        ({"train_images": VOLUMES}, "`train_images` in `{}` is uint8 of shape (9, 28, 28, 28), needed uint8"),
        ({"train_images": VOLUMES[:, :, 0, :27]}, "`train_images` in `{}` is uint8 of shape (9, 28, 27), needed uint8"),
        ({"train_images": VOLUMES[:, 0, 0, 0]}, "`train_images` in `{}` is uint8 of shape (9,), needed uint8"),
        (
            {"train_images": np.zeros((9, 32, 32), np.uint8)},
            "`train_images` in `{}` is uint8 of shape (9, 32, 32)",
        ),
        ({"val_labels": None}, "`{}` has no array `val_labels`"),
        ({"test_images": None}, "`{}` has no array `test_images`"),
        ({"x": np.zeros(3)}, "`{}` has an array `x`, needed MedMNIST's six and no others"),
        ({"train_images": np.array([None])}, "`train_images` in `{}` holds Python objects, needed numbers"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], said: str) -> None:
    path = tmp_path / "a.npz"
    whole: dict[str, np.ndarray | None] = {**arrays(), **changes}
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})
    assert str(error_of(lambda: open_dataset(str(path), data_dir=None))).startswith(said.format(path))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays())
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a valid npz file" in str(error_of(lambda: open_dataset(str(path), data_dir=None)))
