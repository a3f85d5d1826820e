"""SVHN's cropped digits in their official form: MATLAB files with images `X` and labels `y`.

Images are rows uint8 (3, 32, 32): colour planes R, G, B, as CIFAR's. The files are packed: their images are inflated
once into the cache (`edgeff.matlab`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeff.class_names import DIGITS
from edgeff.dataset import Dataset, Numbers, labels_from_one
from edgeff.errors import DataError
from edgeff.matlab import MatArray, read_mat
from edgeff.rows import ColumnMajorRows

_IMAGE = (32, 32, 3)
SVHN_SPLITS = ("train", "test", "extra")


def read_svhn(path: Path) -> Dataset:
    """Images and labels of one file.

    Args:
        path: `train_32x32.mat`, `test_32x32.mat` or `extra_32x32.mat`.

    Returns:
        x uint8 (images, 3, 32, 32), read when asked for; y is the digit: the file's 10 is 0.

    Raises:
        DataError: Not MATLAB v5, other variables, shapes or dtypes, or labels outside 1..10.
    """
    arrays = read_mat(path, ("X", "y"))
    images, labels = arrays["X"], arrays["y"]
    if len(images.shape) != 4 or images.shape[:3] != _IMAGE or images.dtype != np.uint8:
        raise DataError(
            f"`X` in `{path}` is {images.dtype.name} of shape {images.shape}, needed uint8 of shape (32, 32, 3, images)"
        )
    if labels.shape != (images.shape[3], 1):
        raise DataError(f"`y` in `{path}` has shape {labels.shape}, needed {(images.shape[3], 1)}: one for each image")
    y = labels_from_one(_whole(labels), len(DIGITS), path)
    # (images, plane, column, row) in the file
    return Dataset(path.name, ColumnMajorRows(images.rows()), (y + 1) % len(DIGITS), DIGITS)


def _whole(labels: MatArray) -> Numbers:
    values = labels.rows()[:].reshape(-1)
    # What is not within int64 is no label either, and cannot be converted.
    wrong = np.flatnonzero(~((values >= 0) & (values <= 255) & (values == np.floor(values))))
    if len(wrong):
        raise DataError(
            f"`{labels.path}` has label {values[wrong[0]]} in row {wrong[0]}, needed a whole number 1..{len(DIGITS)}",
            hint="it is damaged or no official file: get it again",
        )
    return np.asarray(values, np.int64)


def _file(folder: Path, split: str) -> Path:
    return folder / f"{split}_32x32.mat"


def is_svhn_folder(folder: Path) -> bool:
    """Whether one of SVHN's files lies in the folder."""
    return any(_file(folder, split).is_file() for split in SVHN_SPLITS)


def read_svhn_folder(folder: Path, split: str) -> Dataset:
    """A split of a folder: `train`, `test` or `extra`."""
    path = _file(folder, split)
    if not path.is_file():
        raise DataError(f"`{folder}` has no images of the split `{split}`: needed `{path.name}`")
    return read_svhn(path)
