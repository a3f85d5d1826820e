"""Time series as text: the UCR archive's `.tsv` and the UEA archive's `.ts`.

A file is gone through twice, once for labels and lengths and once for values, so that it never has to be held whole.
The other half of a pair (`_TRAIN`, `_TEST`) that lies beside it has a say in the classes and the length: both halves
then give the same labels and the same row shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from edgeff.cache import COMPRESSED, hold, open_stream, plain_name
from edgeff.dataset import Dataset
from edgeff.rows import Array

SERIES_SUFFIXES = (".tsv", ".ts")
_HALVES = {"_TRAIN": "_TEST", "_TEST": "_TRAIN"}
_LINE_BYTES = 1 << 24
_FORM = {".tsv": "UCR file", ".ts": "UEA file"}


@dataclass(frozen=True)
class _Record:
    """One line of data: number of the row, label, and the text of each channel."""

    row: int
    label: str
    channels: list[str]


@dataclass(frozen=True)
class _Scan:
    """What the first pass found: the labels of the rows, channels (0: rows have no channel axis) and longest length."""

    labels: tuple[str, ...]
    classes: frozenset[str]
    channels: int
    length: int


def read_series(path: Path, *, length: int | None = None) -> Dataset:
    """Read one half of a UCR or UEA problem.

    Args:
        path: `.tsv` or `.ts`, plain, `.gz` or `.xz`.
        length: Samples of a row: longer series lose their end, shorter ones are padded with zeros. None takes the
            longest of the file and of its other half.

    Returns:
        Rows float32 (length,) from `.tsv`, (channels, length) from `.ts`; labels in the sorted order of their names.

    Raises:
        DataError: Malformed, or values that are missing or not finite, by row number.
    """
    scan, other = _scan(path), _other_half(path)
    scans = (scan, _scan(other)) if other else (scan,)
    length = length or max(each.length for each in scans)
    classes = sorted_names(frozenset[str]().union(*(each.classes for each in scans)))
    numbers = {name: number for number, name in enumerate(classes)}
    shape = (len(scan.labels), *((scan.channels,) if scan.channels else ()), length)
    x = hold(path, f"series-{length}", shape, np.dtype("<f4"), lambda: _values(path, length))
    y = np.array([numbers[label] for label in scan.labels], np.int64)
    return Dataset(name=path.name, x=x, y=y, classes=classes)


def sorted_names(names: frozenset[str]) -> tuple[str, ...]:
    """Names in order: by value where all are numbers, else by alphabet.

    >>> sorted_names(frozenset({"10", "9", "-1"}))
    ('-1', '9', '10')
    >>> sorted_names(frozenset({"walking", "10"}))
    ('10', 'walking')
    """
    try:
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(names))


def half_of(folder: Path, half: str) -> Path | None:
    """The file of one half (`TRAIN`, `TEST`) of the only problem in a folder; None unless there is exactly one."""
    ends = tuple(f"_{half}{suffix}{packed}" for suffix in SERIES_SUFFIXES for packed in ("", *COMPRESSED))
    found = [path for path in sorted(folder.iterdir()) if path.name.endswith(ends)]
    return found[0] if len(found) == 1 else None


def _other_half(path: Path) -> Path | None:
    stem, suffix = plain_name(path).rsplit(".", 1)
    for end, other in _HALVES.items():
        if stem.endswith(end):
            name = f"{stem.removesuffix(end)}{other}.{suffix}"
            return next((p for packed in ("", *COMPRESSED) if (p := path.parent / (name + packed)).is_file()), None)
    return None


def _suffix(path: Path) -> str:
    return "." + plain_name(path).rsplit(".", 1)[-1]


def _lines(stream: IO[bytes]) -> Iterator[str]:
    while line := stream.readline(_LINE_BYTES + 1):
        if len(line) > _LINE_BYTES:
            raise ValueError(f"a line is longer than {_LINE_BYTES:,} bytes")
        # A tab at the end stands before a missing value; some editors put a byte order mark before the first line.
        text = line.decode("utf-8").removeprefix("\ufeff").strip(" \r\n")
        if text:
            yield text


def _label(text: str) -> str:
    """A label's name: whole numbers lose the zeros behind the point that some archives write.

    >>> _label(" 1.0000000e+00"), _label("walking")
    ('1', 'walking')
    """
    try:
        value = float(text)
    except ValueError:
        return text.strip()
    return str(int(value)) if value.is_integer() else text.strip()


def _label_of(row: int, text: str) -> str:
    label = _label(text)
    if label.lower() in ("", "?", "nan"):
        raise ValueError(f"row {row} has no label: `{text.strip()}`")
    return label


# --- the two forms, each as records ---


def _ucr_records(stream: IO[bytes]) -> Iterator[_Record]:
    for row, line in enumerate(_lines(stream)):
        label, tab, values = line.partition("\t")
        if not tab:
            raise ValueError(f"row {row} has no tab, needed a label, then values, separated by tabs")
        yield _Record(row, _label_of(row, label), [values])


def _uea_records(stream: IO[bytes]) -> Iterator[_Record]:
    for row, line in enumerate(_lines(stream)):
        *channels, label = line.split(":")
        if not channels:
            raise ValueError(f"row {row} has no colon, needed channels and a label, separated by colons")
        yield _Record(row, _label_of(row, label), channels)


def _uea_classes(stream: IO[bytes]) -> frozenset[str]:
    """Read the header up to `@data` and return the class names it gives."""
    names: frozenset[str] = frozenset()
    for line in _lines(stream):
        key, *words = line.split()
        match key.lower(), [word.lower() for word in words[:1]]:
            case "@data", _:
                return names
            case "@timestamps", ["true"]:
                raise ValueError("its series have time stamps, needed evenly spaced samples")
            case ("@classlabel", ["false"]) | ("@targetlabel", _):
                raise ValueError("its series have no class labels")
            case "@classlabel", _:
                names = frozenset(_label(word) for word in words[1:])
            case head, _ if not head.startswith(("@", "#")):
                raise ValueError(f"`{key[:40]}` is in its header, needed only lines that begin with `@` or `#`")
    raise EOFError("it ends before the line `@data`")


def _scan(path: Path) -> _Scan:
    separator = "\t" if _suffix(path) == ".tsv" else ","
    labels: list[str] = []
    channels = longest = 0
    with open_stream(path, _FORM[_suffix(path)]) as stream:
        named = _uea_classes(stream) if separator == "," else frozenset()
        for record in _uea_records(stream) if separator == "," else _ucr_records(stream):
            length = _length(record, separator)
            channels = channels or len(record.channels)
            if len(record.channels) != channels:
                raise ValueError(f"row {record.row} has {len(record.channels)} channels, needed {channels} as in row 0")
            if separator == "\t" and longest not in (0, length):
                raise ValueError(f"row {record.row} has {length} values, needed {longest} as in row 0")
            if named and record.label not in named:
                raise ValueError(f"row {record.row} has label `{record.label}`, which its header does not name")
            labels.append(record.label)
            longest = max(longest, length)
        if not labels:
            raise EOFError("it has no rows")
    return _Scan(tuple(labels), named or frozenset(labels), channels if separator == "," else 0, longest)


def _length(record: _Record, separator: str) -> int:
    lengths = {text.count(separator) + 1 for text in record.channels}
    if len(lengths) != 1:
        raise ValueError(f"row {record.row} has channels of {min(lengths)} to {max(lengths)} samples, needed the same")
    return lengths.pop()


def _values(path: Path, length: int) -> Iterator[Array]:
    separator = "\t" if _suffix(path) == ".tsv" else ","
    with open_stream(path, _FORM[_suffix(path)]) as stream:
        if separator == ",":
            _uea_classes(stream)
        for record in _uea_records(stream) if separator == "," else _ucr_records(stream):
            out = np.zeros((len(record.channels), length), "<f4")
            for channel, text in enumerate(record.channels):
                values = _numbers(text.split(separator), record.row)[:length]
                out[channel, : len(values)] = values
            yield out


def _numbers(texts: list[str], row: int) -> Array:
    try:
        values = np.array(texts, dtype=np.float64)
    except ValueError as error:
        wrong = next((text.strip() for text in texts if not _is_number(text)), "")
        missing = wrong in ("", "?")
        raise ValueError(
            f"row {row} has a missing value" if missing else f"row {row} holds `{wrong[:40]}`, needed numbers"
        ) from error
    # The bound is float32's: beyond it a value would turn into Inf.
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise ValueError(f"row {row} has a missing value (NaN) or Inf")
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
