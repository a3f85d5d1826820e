"""From a path to a data set: which reader a file or folder is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeff.arrays import npy_rows, open_npz, read_labels, whole_numbers
from edgeff.cache import COMPRESSED, open_stream, plain_name, reading
from edgeff.cifar import cifar_folder, read_cifar_binary, read_cifar_folder, read_cifar_pickle
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.hapt import HAPT_SPLITS, is_hapt_folder, read_hapt
from edgeff.idx import IDX_NAME, idx_images, idx_pair
from edgeff.image_folder import (
    IMAGE_SPLITS,
    TINY_SPLITS,
    is_class_folder,
    is_split_folder,
    is_tiny_imagenet,
    read_class_folder,
    read_split_folder,
    read_tiny_imagenet,
)
from edgeff.medmnist import MEDMNIST_SPLITS, is_medmnist, read_medmnist
from edgeff.series import SERIES_SUFFIXES, half_of, read_series
from edgeff.speech import SPEECH_SPLITS, is_speech_folder, read_speech
from edgeff.stl10 import STL10_NAME, read_stl10, read_stl10_folder, stl10_folder
from edgeff.svhn import SVHN_SPLITS, is_svhn_folder, read_svhn, read_svhn_folder

# Arrays that a data set of one's own may have beside `x`; the first is needed.
_COLUMNS = ("y", "groups", "sequence", "span")
_FORMS = (
    "`.npz`, `x.npy` with `y.npy` beside it, IDX, CIFAR `.bin` or pickles, STL-10 `.bin`, "
    "SVHN `.mat`, MedMNIST `.npz`, UCR `.tsv`, UEA `.ts`, "
    "a folder of one of the known data sets, or a folder of a folder of images for each class"
)
_NAME_FILE_BYTES = 1 << 20


# --- arrays of one's own ---


def read_npz(path: Path, split: str = "") -> Dataset:
    """Arrays `x` and `y`, and optionally `classes`, `groups`, `sequence` and `span`, of a `.npz` file; or MedMNIST's.

    Args:
        path: The file.
        split: Of MedMNIST's; empty for `train`.
    """
    file = open_npz(path)
    if is_medmnist(file):
        _check_split(path, split, MEDMNIST_SPLITS)
        return read_medmnist(file, split or "train")
    _no_split(path, split)
    for key in ("x", "y"):
        if key not in file.members:
            raise DataError(f"`{path}` has no array `{key}`", hint="write it with `np.savez(path, x=rows, y=labels)`")
    unknown = sorted(set(file.members) - {"x", "classes", *_COLUMNS})
    if unknown:
        raise DataError(
            f"`{path}` has an array `{unknown[0]}`, needed none but `x`, `y`, `classes`, `groups`, `sequence`, `span`"
        )
    columns = {key: whole_numbers(file.rows(key), f"`{key}` in `{path}`") for key in _COLUMNS if key in file.members}
    classes = file.names("classes") if "classes" in file.members else ()
    return Dataset(name=path.name, x=file.rows("x"), classes=classes, **columns)


def read_npy_pair(path: Path) -> Dataset:
    """`x.npy` with `y.npy` beside it, and optionally `groups`, `sequence` and `span` likewise, and `classes.txt`.

    Args:
        path: The file of the rows: `x.npy`, or with more in its name, as `x_train.npy` or `train-x.npy`.
    """
    beside = {key: _beside(path, key) for key in _COLUMNS}
    if beside["y"] is None:
        raise DataError(
            f"`{path}` has no labels beside it",
            hint="call the rows `x.npy` and the labels `y.npy` (or `x_train.npy` and `y_train.npy`), in one folder",
        )
    columns = {key: read_labels(found) for key, found in beside.items() if found}
    names = path.parent / "classes.txt"
    return Dataset(name=path.name, x=npy_rows(path), classes=_class_names(names) if names.is_file() else (), **columns)


def _beside(path: Path, key: str) -> Path | None:
    """The file whose name has `key` where `path` has `x`."""
    stem = plain_name(path).removesuffix(".npy")
    for mark in "_-":
        words = stem.split(mark)
        if "x" in words:
            name = mark.join(key if word == "x" else word for word in words) + ".npy"
            return next((p for end in ("", *COMPRESSED) if (p := path.parent / (name + end)).is_file()), None)
    return None


def _class_names(path: Path) -> tuple[str, ...]:
    with open_stream(path, "list of class names") as stream:
        text = stream.read(_NAME_FILE_BYTES).decode("utf-8-sig")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _read_idx(path: Path) -> Dataset:
    images, labels = idx_pair(path)
    return Dataset(name=path.name, x=images, y=whole_numbers(labels, f"the labels of `{path}`"))


# --- files ---


def read_file(path: Path, split: str = "", *, length: int | None = None) -> Dataset:
    """The data set of one file.

    Args:
        path: The file.
        split: Of a file that has several; empty for the training half.
        length: For time series: samples of a row (`edgeff.series.read_series`).

    Raises:
        DataError: A form that is not known, no such split, or malformed.
    """
    name = plain_name(path)
    if path.suffix == ".npz":
        return read_npz(path, split)
    _no_split(path, split)
    if name.endswith(SERIES_SUFFIXES):
        return read_series(path, length=length)
    return _reader_of(path, name)(path)


def _reader_of(path: Path, name: str) -> Callable[[Path], Dataset]:
    if name.endswith(".npy"):
        return read_npy_pair
    if IDX_NAME.fullmatch(name):
        return _read_idx
    if path.suffix == ".bin":
        return read_stl10 if STL10_NAME.fullmatch(name) else read_cifar_binary
    if path.suffix == ".mat":
        return read_svhn
    return _sniffed(path)


def _no_split(path: Path, split: str) -> None:
    if split:
        raise DataError(f"`{path}` is a file and has no split `{split}`", hint="give the path alone")


def _check_split(path: Path, split: str, splits: tuple[str, ...]) -> None:
    if split and split not in splits and not (split.startswith("user-") and "user-<number>" in splits):
        listed = ", ".join(f"`{each}`" for each in splits) or "none"
        raise DataError(f"`{path}` has no split `{split}`", hint=f"its splits: {listed}")


def _sniffed(path: Path) -> Callable[[Path], Dataset]:
    """The reader of a file whose name tells nothing, by how it begins."""
    with open_stream(path, "data file") as stream:
        begin = stream.read(4)
    if begin[:3] == b"\0\0\x08":
        return _read_idx
    if begin[:1] == b"\x80":
        return read_cifar_pickle
    raise DataError(f"`{path}` is in no form that edgeff reads: it begins with {begin!r}", hint=f"it reads {_FORMS}")


# --- folders ---


@dataclass(frozen=True)
class FolderForm:
    """A kind of folder.

    Attributes:
        find: The folder to read where it is of this kind, else None.
        splits: Names of the splits; empty for a folder without. The first is the default.
        read: `(folder, split, length)` to data set; where `sized`, `(folder, split, size)`.
        sized: Images that are resized when they are read.
    """

    find: Callable[[Path], Path | None]
    splits: tuple[str, ...]
    read: Callable[[Path, str, int | None], Dataset]
    sized: bool = False


def _if(test: Callable[[Path], bool]) -> Callable[[Path], Path | None]:
    return lambda folder: folder if test(folder) else None


def _idx_folder(folder: Path, split: str, _: int | None) -> Dataset:
    images = idx_images(folder, split)
    if images is None:
        raise DataError(f"`{folder}` has no images of the split `{split}`")
    return _read_idx(images)


def _series_folder(folder: Path, split: str, length: int | None) -> Dataset:
    half = half_of(folder, split.upper())
    if half is None:
        raise DataError(f"`{folder}` has no single file whose name ends in `_{split.upper()}`")
    return read_series(half, length=length)


def _npy_in(folder: Path) -> Path | None:
    return next((p for end in ("", *COMPRESSED) if (p := folder / f"x.npy{end}").is_file()), None)


def _hapt_folder(folder: Path, split: str, _: int | None) -> Dataset:
    return read_hapt(folder, split)


def _speech_folder(folder: Path, split: str, _: int | None) -> Dataset:
    return read_speech(folder, split)


def _cifar_folder(folder: Path, split: str, _: int | None) -> Dataset:
    return read_cifar_folder(folder, split)


def _stl10_folder(folder: Path, split: str, _: int | None) -> Dataset:
    return read_stl10_folder(folder, split)


def _svhn_folder(folder: Path, split: str, _: int | None) -> Dataset:
    return read_svhn_folder(folder, split)


def _class_folder(folder: Path, _split: str, size: int | None) -> Dataset:
    return read_class_folder(folder, size)


def _own_folder(file: Path, _split: str, _length: int | None) -> Dataset:
    return read_npy_pair(file)


def _has_images(folder: Path) -> bool:
    return any(idx_images(folder, half) for half in _HALVES)


def _has_series(folder: Path) -> bool:
    return any(half_of(folder, half.upper()) for half in _HALVES)


_HALVES = ("train", "test")
FOLDER_FORMS = (
    FolderForm(_if(is_hapt_folder), HAPT_SPLITS, _hapt_folder),
    FolderForm(_if(is_speech_folder), SPEECH_SPLITS, _speech_folder),
    FolderForm(cifar_folder, _HALVES, _cifar_folder),
    FolderForm(stl10_folder, _HALVES, _stl10_folder),
    FolderForm(_if(is_svhn_folder), SVHN_SPLITS, _svhn_folder),
    FolderForm(_if(_has_images), _HALVES, _idx_folder),
    FolderForm(_if(_has_series), _HALVES, _series_folder),
    FolderForm(_npy_in, (), _own_folder),
    FolderForm(_if(is_tiny_imagenet), TINY_SPLITS, read_tiny_imagenet, sized=True),
    FolderForm(_if(is_split_folder), IMAGE_SPLITS, read_split_folder, sized=True),
    FolderForm(_if(is_class_folder), (), _class_folder, sized=True),
)


def has_form(folder: Path) -> bool:
    """Whether a folder is of one of `FOLDER_FORMS`."""
    return _form_of(folder) is not None


def _form_of(folder: Path) -> tuple[FolderForm, Path] | None:
    with reading(folder, "folder"):
        return next(((form, at) for form in FOLDER_FORMS if (at := form.find(folder))), None)


def read_folder(folder: Path, split: str, *, length: int | None = None, size: int | None = None) -> Dataset:
    """The data set of a folder.

    Args:
        folder: Of one of `FOLDER_FORMS`.
        split: Empty for the first of the form's splits.
        length: For time series: samples of a row.
        size: For folders of images: side of a row in pixels (`edgeff.image_folder.read_class_folder`).

    Raises:
        DataError: No such form or split, malformed, or a size where there are no files of images.
    """
    found = _form_of(folder)
    if found is None:
        raise DataError(f"`{folder}` is a folder in no form that edgeff reads", hint=f"it reads {_FORMS}")
    form, at = found
    _check_split(folder, split, form.splits)
    if size is not None and not form.sized:
        raise DataError(
            f"`{folder}` takes no size `@{size}`",
            hint="only images that lie as JPEG or PNG files in folders are resized",
        )
    return form.read(at, split or next(iter(form.splits), ""), size if form.sized else length)
