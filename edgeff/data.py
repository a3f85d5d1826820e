"""Data sets by name or path: the front door to the readers, splits and batches.

>>> known_datasets()[:3]
('mnist', 'fashion-mnist', 'cifar10')
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeff.class_names import DIGITS, FASHION
from edgeff.dataset import Dataset
from edgeff.errors import DataError, did_you_mean
from edgeff.readers import has_form, read_file, read_folder
from edgeff.rows import FileRows, Rows
from edgeff.split import batches, calibration_split, stratified_rows, train_validation_split

__all__ = [
    "Dataset",
    "FileRows",
    "Rows",
    "batches",
    "calibration_split",
    "known_datasets",
    "open_dataset",
    "stratified_rows",
    "train_validation_split",
]


@dataclass(frozen=True)
class _Known:
    """Folders to look for under the data folder, and class names that the files do not give."""

    folders: tuple[str, ...]
    classes: tuple[str, ...] = ()


_KNOWN: Mapping[str, _Known] = {
    "mnist": _Known(("mnist", "MNIST/raw"), DIGITS),
    "fashion-mnist": _Known(("fashion-mnist", "FashionMNIST/raw"), FASHION),
    "cifar10": _Known(("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py")),
    "cifar100": _Known(("cifar100", "cifar-100-binary", "cifar-100-python")),
    "stl10": _Known(("stl10", "stl10_binary")),
    "svhn": _Known(("svhn", "SVHN")),
    "tiny-imagenet": _Known(("tiny-imagenet", "tiny-imagenet-200")),
    "ecg5000": _Known(("ecg5000", "ECG5000")),
    "basicmotions": _Known(("basicmotions", "BasicMotions")),
    "japanese-vowels": _Known(("japanese-vowels", "JapaneseVowels")),
    "hapt": _Known(("hapt",)),
    "speech-commands": _Known(("speech-commands", "speech-commands-v2-test")),
}


def known_datasets() -> tuple[str, ...]:
    """Names that `open_dataset` knows."""
    return tuple(_KNOWN)


def open_dataset(spec: str, *, data_dir: Path | None, length: int | None = None, checked: bool = True) -> Dataset:
    """Open a data set; its rows are read when they are asked for.

    Args:
        spec: A known name (`mnist`), a path, or either with a split (`mnist:test`, `hapt:user-7`, `my/hapt:train`);
            without one, the training half. A known name goes before a path; write `./mnist` for the path. For a folder
            of images a size in pixels may follow (`pictures:val@64`).
        data_dir: Where the folders of the known data sets lie; None for the environment's `EDGEFF_DATA_DIR`.
        length: For time series: samples of a row; longer ones lose their end, shorter ones are padded with zeros.
        checked: Refuse labels that are no class, and NaN and Inf. False leaves that to the caller
            (`edgeff.checked_rows`).

    Returns:
        The data set.

    Raises:
        DataError: Nothing of that name, or malformed.
    """
    if length is not None and length < 1:
        raise DataError(f"the length of a row must be 1 or more, got {length}")
    name, split, size = _taken_apart(spec)
    found = (
        _open_known(name, split, data_dir, length, size) if name in _KNOWN else _open_path(name, split, length, size)
    )
    dataset = replace(found, name=spec)
    return dataset.check().check_values() if checked else dataset


def _taken_apart(spec: str) -> tuple[str, str, int | None]:
    """What is opened, its split, and the size of images; an `@` may also be part of a path."""
    sized = re.fullmatch(r"(.+)@([0-9]{1,9})", spec, re.DOTALL)
    if sized and not _is_there(spec):
        name, split = _name_and_split(sized[1])
        if _is_there(name):
            return name, split, int(sized[2])
    return *_name_and_split(spec), None


def _is_there(name: str) -> bool:
    return name in _KNOWN or os.path.exists(name)


def _name_and_split(spec: str) -> tuple[str, str]:
    """What is opened, and its split; the colon may also be part of a path."""
    head, colon, tail = spec.rpartition(":")
    if not colon or _is_there(spec):
        return spec, ""
    return (head, tail) if _is_there(head) else (spec, "")


def _open_path(name: str, split: str, length: int | None, size: int | None) -> Dataset:
    # `os.path` says no where `Path.exists` would raise: a name too long for a file, or with a null byte.
    if not os.path.exists(name):
        raise _unknown(name)
    path = Path(name)
    if path.is_dir():
        return read_folder(path, split, length=length, size=size)
    if not path.is_file():
        raise DataError(f"`{path}` is neither a file nor a folder", hint="pipes and devices are not read")
    if size is not None:
        raise DataError(f"`{path}` is a file and takes no size `@{size}`", hint="folders of images do")
    return read_file(path, split, length=length)


def _open_known(name: str, split: str, data_dir: Path | None, length: int | None, size: int | None) -> Dataset:
    root = _data_folder(name, data_dir)
    known = _KNOWN[name]
    there = [root / each for each in known.folders if (root / each).is_dir()]
    if not there:
        raise DataError(
            f"`{name}` is not in `{root}`: needed a folder `{known.folders[0]}` in it",
            hint="docs/data.md says which files belong there",
        )
    # Of an empty folder and one that has the data, the latter is meant.
    folder = next((each for each in there if has_form(each)), there[0])
    dataset = read_folder(folder, split, length=length, size=size)
    return replace(dataset, classes=known.classes or dataset.classes)


def _data_folder(name: str, data_dir: Path | None) -> Path:
    given = data_dir or os.environ.get("EDGEFF_DATA_DIR")
    if not given:
        raise DataError(
            f"`{name}` was asked for, but not where data sets lie",
            hint="give `--data-dir FOLDER` or set `EDGEFF_DATA_DIR`; for files of your own give their path",
        )
    root = Path(given)
    if not root.is_dir():
        raise DataError(f"the data folder `{root}` does not exist", hint="check `--data-dir` or `EDGEFF_DATA_DIR`")
    return root


def _unknown(spec: str) -> DataError:
    hint = did_you_mean(spec.split(":")[0].lower(), _KNOWN)
    return DataError(f"`{spec}` is neither a file nor a known data set", hint=hint)
