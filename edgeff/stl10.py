"""STL-10's official binary files: images `train_X.bin`, labels `train_y.bin`, names `class_names.txt`.

Images are rows uint8 (3, 96, 96): colour planes R, G, B. In the file each plane is stored column by column.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from edgeff.cache import reading
from edgeff.class_names import STL10
from edgeff.dataset import Dataset, Numbers, labels_from_one
from edgeff.errors import DataError
from edgeff.rows import ColumnMajorRows, FileRows

_IMAGE = (3, 96, 96)
_IMAGE_BYTES = 27_648
_NAME_FILE_BYTES = 1 << 12
STL10_NAME = re.compile(r".*_[Xy]\.bin")
_INNER = ("", "stl10_binary")
_GET_AGAIN = "it is cut short or is no file of STL-10's binary version: get it again"


def read_stl10(path: Path) -> Dataset:
    """Images, the labels that lie beside them, and the class names where `class_names.txt` does too.

    Args:
        path: `train_X.bin` or `test_X.bin`.

    Returns:
        x uint8 (images, 3, 96, 96), read when asked for; labels 1..10 of the file become 0..9.

    Raises:
        DataError: No labels beside it, files whose sizes do not fit, or labels outside 1..10.
    """
    if path.name.endswith("_y.bin"):
        raise DataError(f"`{path}` holds labels", hint=f"give the file of the images: `{path.name[:-5]}X.bin`")
    labels = path.with_name(f"{path.name[:-5]}y.bin")
    if not labels.is_file():
        raise DataError(
            f"`{path}` has no labels beside it: needed `{labels.name}`", hint="`unlabeled_X.bin` cannot be learned from"
        )
    got = _size(path)
    if not got or got % _IMAGE_BYTES:
        raise DataError(f"`{path}` has {got:,} bytes, needed a multiple of 27,648 (3 x 96 x 96)", hint=_GET_AGAIN)
    images = got // _IMAGE_BYTES
    x = ColumnMajorRows(FileRows(path, 0, (images, *_IMAGE), np.dtype(np.uint8)))
    return Dataset(path.name, x, _read_labels(labels, images), _class_names(path.with_name("class_names.txt")))


def _size(path: Path) -> int:
    with reading(path, "STL-10 file"):
        return path.stat().st_size


def _read_labels(path: Path, images: int) -> Numbers:
    got = _size(path)
    if got != images:
        raise DataError(f"`{path}` has {got:,} labels (bytes) for {images:,} images", hint=_GET_AGAIN)
    y = FileRows(path, 0, (images,), np.dtype(np.uint8))[:].astype(np.int64)
    return labels_from_one(y, len(STL10), path)


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return STL10
    with reading(path, "list of class names"), path.open("rb") as stream:
        text = stream.read(_NAME_FILE_BYTES).decode("utf-8-sig")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != len(STL10):
        raise DataError(f"`{path}` has {len(names)} names, needed {len(STL10)}: one a line", hint=_GET_AGAIN)
    return names


def stl10_folder(folder: Path) -> Path | None:
    """The folder itself, or `stl10_binary` in it, where STL-10's images lie; else None."""
    for inner in _INNER:
        if any((folder / inner / f"{split}_X.bin").is_file() for split in ("train", "test")):
            return folder / inner
    return None


def read_stl10_folder(folder: Path, split: str) -> Dataset:
    """A split (`train`, `test`) of a folder that `stl10_folder` returned."""
    path = folder / f"{split}_X.bin"
    if not path.is_file():
        raise DataError(f"`{folder}` has no images of the split `{split}`: needed `{path.name}`")
    return read_stl10(path)
