"""MedMNIST's `.npz` files: images and labels of three splits in one file.

Images are rows uint8 (28, 28), or (28, 28, 3) of colour; MedMNIST+ has them of 64, 128 and 224 pixels too.
"""

from __future__ import annotations

from edgeff.arrays import NpzFile, whole_numbers
from edgeff.dataset import Dataset
from edgeff.errors import DataError

MEDMNIST_SPLITS = ("train", "val", "test")
_ARRAYS = tuple(f"{split}_{part}" for split in MEDMNIST_SPLITS for part in ("images", "labels"))
_SIZES = (28, 64, 128, 224)


def is_medmnist(file: NpzFile) -> bool:
    """Whether any of MedMNIST's arrays is in the file."""
    return any(name in file.members for name in _ARRAYS)


def read_medmnist(file: NpzFile, split: str) -> Dataset:
    """One split.

    Args:
        file: With `train_images`, `train_labels`, and the same of `val` and `test`.
        split: `train`, `val` or `test`.

    Returns:
        x uint8 (images, size, size) or (images, size, size, 3), read when asked for; no class names.

    Raises:
        DataError: Other arrays, shapes or dtypes; several labels an image; volumes.
    """
    for name in _ARRAYS:
        if name not in file.members:
            raise DataError(f"`{file.path}` has no array `{name}`", hint="get MedMNIST's file again")
    unknown = sorted(set(file.members) - set(_ARRAYS))
    if unknown:
        raise DataError(f"`{file.path}` has an array `{unknown[0]}`, needed MedMNIST's six and no others")
    labels = file.rows(f"{split}_labels")
    where = f"in `{file.path}`"
    if len(labels.shape) == 2 and labels.shape[1] > 1:
        raise DataError(
            f"`{split}_labels` {where} has {labels.shape[1]} labels for each image, needed one",
            hint="sets of several labels (such as ChestMNIST) are not read: take one with a single label",
        )
    images = file.rows(f"{split}_images")
    size = images.shape[1] if len(images.shape) > 1 else 0
    row = images.shape[1:]
    if images.dtype.name != "uint8" or size not in _SIZES or row not in ((size, size), (size, size, 3)):
        raise DataError(
            f"`{split}_images` {where} is {images.dtype.name} of shape {images.shape}, needed uint8 of shape "
            "(images, size, size) or (images, size, size, 3) of size 28, 64, 128 or 224",
            hint="volumes (the sets whose names end in `3d`) are not read",
        )
    if labels.shape != (len(images), 1):
        raise DataError(f"`{split}_labels` {where} has shape {labels.shape}, needed {(len(images), 1)}")
    y = whole_numbers(labels, f"`{split}_labels` {where}").reshape(-1)
    return Dataset(file.path.name, images, y)
