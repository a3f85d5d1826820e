"""IDX files, the form of MNIST: a magic number that tells dtype and rank, the sizes, then the data, all big-endian."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeff.arrays import checked_rows
from edgeff.cache import COMPRESSED, hold, open_stream, plain_name, stream_parts
from edgeff.errors import DataError
from edgeff.rows import Array, FileRows, Rows, check_shape

# The third byte of the magic number, as http://yann.lecun.com/exdb/mnist/ gave it.
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IDX_NAME = re.compile(r".*idx\d(-ubyte)?")

Header = tuple[tuple[int, ...], np.dtype[Any], int]


def idx_rows(path: Path) -> Rows:
    """The array of an IDX file (plain, `.gz` or `.xz`), with its first axis as rows.

    Raises:
        DataError: Wrong magic number, or not as many bytes as the sizes claim.
    """
    with open_stream(path, "IDX file") as stream:
        shape, dtype, begin = _read_header(stream, path)
    if path.suffix not in COMPRESSED:
        return checked_rows(FileRows(path, begin, shape, dtype), "an IDX array")
    return hold(path, "idx", shape, dtype, lambda: _parts(path))


def _read_header(stream: IO[bytes], path: Path) -> Header:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not magic[3]:
        raise DataError(
            f"`{path}` begins with {magic!r}, needed the magic number of an IDX file",
            hint="MNIST's image files begin with 00 00 08 03, its label files with 00 00 08 01",
        )
    sizes = stream.read(4 * magic[3])
    shape, dtype = struct.unpack(f">{magic[3]}I", sizes), np.dtype(_TYPES[magic[2]])
    check_shape(shape, dtype)
    return shape, dtype, 4 + len(sizes)


def _parts(path: Path) -> Iterator[Array]:
    with open_stream(path, "IDX file") as stream:
        shape, dtype, _ = _read_header(stream, path)
        yield from stream_parts(stream, math.prod(shape) * dtype.itemsize)


def idx_pair(path: Path) -> tuple[Rows, Rows]:
    """Images, and the labels that lie beside them.

    Args:
        path: The images; the labels' file has `labels` in place of `images`, `idx1` in place of `idx3`.
    """
    name = plain_name(path)
    if "images" not in name:
        raise DataError(
            f"`{path}` has no labels beside it: needed a name with `images` in it", hint="give the file of the images"
        )
    label_name = re.sub(r"idx\d", "idx1", name.replace("images", "labels"))
    labels = _first_of(path.parent, label_name)
    if labels is None:
        raise DataError(
            f"`{path}` has no labels beside it: needed `{label_name}`, `{label_name}.gz` or `{label_name}.xz`"
        )
    return idx_rows(path), idx_rows(labels)


def _first_of(folder: Path, name: str) -> Path | None:
    return next((path for end in ("", *COMPRESSED) if (path := folder / (name + end)).is_file()), None)


_SPLIT_STEMS = {"train": "train-images", "test": "t10k-images"}


def idx_images(folder: Path, split: str) -> Path | None:
    """The image file of a split in a folder of MNIST's four files; None where there is none."""
    stem = _SPLIT_STEMS.get(split, "")
    found = (_first_of(folder, f"{stem}{dot}idx3-ubyte") for dot in "-.") if stem else ()
    return next((path for path in found if path), None)
