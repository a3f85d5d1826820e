"""STL-10's binary files give their images the right way round, and damaged ones a `DataError`."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeff.class_names import STL10
from edgeff.data import open_dataset
from edgeff.errors import DataError
from edgeff.readers import read_file
from edgeff.rows import row_blocks

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 96, 96), np.uint8)
LABELS = np.array([1, 10, 3, 3, 7, 2], np.uint8)
NAMES = "\n".join(STL10) + "\n"


def write(folder: Path, split: str = "train", part: slice = slice(None)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # As the official files are: column by column.
    (folder / f"{split}_X.bin").write_bytes(IMAGES[part].transpose(0, 1, 3, 2).tobytes())
    (folder / f"{split}_y.bin").write_bytes(LABELS[part].tobytes())
    return folder / f"{split}_X.bin"


def error_of(call: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("folder", ["stl10", "stl10_binary", "stl10/stl10_binary"])
def test_the_known_name_has_both_splits(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder, "train", slice(0, 4))
    write(tmp_path / folder, "test", slice(4, 6))
    (tmp_path / folder / "class_names.txt").write_text(NAMES.replace("car", "auto"))
    write(tmp_path / folder, "unlabeled")
    (tmp_path / folder / "unlabeled_y.bin").unlink()

    for spec, part in (("stl10", slice(0, 4)), ("stl10:train", slice(0, 4)), ("stl10:test", slice(4, 6))):
        dataset = open_dataset(spec, data_dir=tmp_path)
        np.testing.assert_array_equal(dataset.x[:], IMAGES[part])
        assert dataset.y.tolist() == (LABELS[part].astype(int) - 1).tolist()
        assert dataset.classes == tuple(name.replace("car", "auto") for name in STL10)
        assert (dataset.name, dataset.input.shape, dataset.input.dtype) == (spec, (3, 96, 96), "uint8")
    error = error_of(lambda: open_dataset("stl10:unlabeled", data_dir=tmp_path))
    assert error.hint == "its splits: `train`, `test`"


def test_a_file_is_read_by_its_path_with_the_names_that_are_known(tmp_path: Path) -> None:
    dataset = read_file(write(tmp_path))
    assert dataset.classes == STL10
    np.testing.assert_array_equal(dataset.x[np.array([5, 0, -2])], IMAGES[[5, 0, -2]])
    assert dataset.x[1:2].flags.c_contiguous
    assert dataset.x.shape == (6, 3, 96, 96)


def test_a_pixel_is_where_the_file_has_it(tmp_path: Path) -> None:
    path = write(tmp_path, part=slice(0, 2))
    data = bytearray(2 * 27648)
    data[27648 + 2 * 9216 + 9 * 96 + 5] = 77  # image 1, blue, column 9, row 5
    path.write_bytes(data)
    assert np.argwhere(read_file(path).x[:]).tolist() == [[1, 2, 5, 9]]


def test_images_are_not_held(tmp_path: Path) -> None:
    path = write(tmp_path)
    count = 600  # 16 MB
    path.write_bytes(IMAGES.tobytes() * (count // len(IMAGES)))
    (tmp_path / "train_y.bin").write_bytes(LABELS.tobytes() * (count // len(LABELS)))
    tracemalloc.start()
    try:
        assert sum(len(block) for _, block in row_blocks(read_file(path).x)) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole, labels = path.read_bytes(), tmp_path / "train_y.bin"

    def said(x: bytes = whole, y: bytes = LABELS.tobytes()) -> str:
        path.write_bytes(x)
        labels.write_bytes(y)
        return str(error_of(lambda: read_file(path)))

    for cut in (b"", whole[:-1]):
        assert said(cut) == f"`{path}` has {len(cut):,} bytes, needed a multiple of 27,648 (3 x 96 x 96)"
    assert said(y=LABELS.tobytes()[:4]) == f"`{labels}` has 4 labels (bytes) for 6 images"
    assert said(x=whole[:27648]) == f"`{labels}` has 6 labels (bytes) for 1 images"
    assert said(y=b"\1\2\0\1\1\1") == f"`{labels}` has label 0 in row 2, needed 1..10"
    assert said(y=b"\1\2\1\1\1\x0b") == f"`{labels}` has label 11 in row 5, needed 1..10"

    write(tmp_path)
    names = tmp_path / "class_names.txt"
    names.write_text("a\nb\n")
    assert str(error_of(lambda: read_file(path))) == f"`{names}` has 2 names, needed 10: one a line"
    names.write_bytes(b"\xff")
    assert "is not a valid list of class names" in str(error_of(lambda: read_file(path)))


def test_a_file_without_its_labels_or_images_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert error_of(lambda: read_file(tmp_path / "train_y.bin")).hint == "give the file of the images: `train_X.bin`"
    (tmp_path / "train_y.bin").unlink()
    assert str(error_of(lambda: read_file(path))) == f"`{path}` has no labels beside it: needed `train_y.bin`"
    error = error_of(lambda: open_dataset(f"{tmp_path}:test", data_dir=None))
    assert str(error) == f"`{tmp_path}` has no images of the split `test`: needed `test_X.bin`"
