"""Rows that are read when they are asked for.

A training process has to stay inside a byte budget, so a data set is not held in memory: `FileRows` reads rows from an
uncompressed file straight into the array it returns. Memory maps are not used, because mapped pages count as resident
bytes of the process; what the kernel keeps of a file that is read in the ordinary way does not.
"""

from __future__ import annotations

import io
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeff.errors import DataError
from edgeff.manifest import ITEM_BYTES

_MOST_AXES = 32
# Of rows on their way from one array to another.
_COPIED_BYTES = 1 << 16
Array = NDArray[Any]
Index = slice | Array


class Rows(Protocol):
    """What a data set's features look like: an array whose first axis can be sliced or indexed by integers.

    `numpy.ndarray` fulfils it. What indexing returns is an array of the same dtype in native byte order.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, then the shape of one row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the arrays that indexing returns."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


def is_row_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether rows may have this dtype: one of `edgeff.manifest.ITEM_BYTES`, in either byte order."""
    return dtype.fields is None and dtype.newbyteorder("=").name in ITEM_BYTES


def check_shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check that rows of this shape, which a file claims, can be indexed and asked for.

    Raises:
        ValueError: More axes or bytes than numpy can count, or any number of rows that hold nothing.
    """
    # The axes that numpy 1 can have. For it an axis of 0 does not make the others smaller.
    if len(shape) > _MOST_AXES or math.prod(max(size, 1) for size in shape) * dtype.itemsize > sys.maxsize:
        raise ValueError(f"its header claims {len(shape)} axes of together more values than there can be")
    if 0 in shape[1:]:
        raise ValueError(f"its header claims rows that hold nothing: shape {shape}")


def row_index(key: Index, rows: int) -> NDArray[np.int64]:
    """A slice, integer array or boolean mask as row numbers, negative ones counted from the end.

    Raises:
        IndexError: A row number out of range.

    >>> row_index(slice(None, None, 2), 5)
    array([0, 2, 4])
    >>> row_index(np.array([-1, 0]), 5)
    array([4, 0])
    """
    if isinstance(key, slice):
        return np.arange(*key.indices(rows), dtype=np.int64)
    index = np.asarray(key)
    if index.ndim != 1 or index.dtype.kind not in "iub" or (index.dtype.kind == "b" and len(index) != rows):
        raise IndexError(f"rows are taken by a slice or a one-dimensional integer array, got {index.dtype.name}")
    index = np.flatnonzero(index) if index.dtype.kind == "b" else index.astype(np.int64, copy=False)
    if len(index) and not (-rows <= int(index.min()) and int(index.max()) < rows):
        raise IndexError(f"row numbers must lie in 0..{rows - 1}, got {int(index.min())}..{int(index.max())}")
    return np.where(index < 0, index + rows, index)


@dataclass(frozen=True)
class FileRows:
    """Rows of one uncompressed file.

    The file is opened for each read: there is nothing to close, and rows can be used from any thread or process.

    Attributes:
        path: The file.
        offset: Byte where row 0 begins.
        shape: Rows first, then the shape of one row.
        stored: Dtype in the file, with its byte order.
        stride: Bytes from the beginning of a row to that of the next; 0 for rows that follow one another. More than a
            row's bytes skips what lies between (labels); less makes rows overlap (windows over a signal).
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    stride: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the arrays that indexing returns, in native byte order."""
        return self.stored.newbyteorder("=")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.stored.itemsize

    @property
    def end(self) -> int:
        """Byte after the last row."""
        rows = self.shape[0]  # not `len`, which cannot tell what a damaged header may claim
        return self.offset + ((rows - 1) * (self.stride or self.row_bytes) + self.row_bytes if rows else 0)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Index, /) -> Array:
        index = row_index(key, len(self))
        out = np.empty((len(index), *self.shape[1:]), self.stored)
        try:
            # Unbuffered: the bytes go from the kernel into `out`, with no copy between.
            with self.path.open("rb", buffering=0) as file:
                self._fill(file, index, out.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise DataError(f"`{self.path}` cannot be read: {error.strerror or error}") from error
        return out.astype(self.dtype, copy=False)

    def _fill(self, file: io.FileIO, index: NDArray[np.int64], out: memoryview) -> None:
        stride = self.stride or self.row_bytes
        for position, count in _runs(index, whole=stride == self.row_bytes):
            row = int(index[position])
            file.seek(self.offset + row * stride)
            _read_into(file, out[position * self.row_bytes : (position + count) * self.row_bytes], row)


def _runs(index: NDArray[np.int64], *, whole: bool) -> Iterator[tuple[int, int]]:
    """Positions and lengths of stretches of consecutive row numbers: one read serves each."""
    breaks = np.flatnonzero(np.diff(index) != 1) + 1 if whole else np.arange(1, len(index))
    edges = [0, *breaks.tolist(), len(index)] if len(index) else []
    for first, past in itertools.pairwise(edges):
        yield first, past - first


def _read_into(file: io.FileIO, target: memoryview, row: int) -> None:
    done = 0
    while done < len(target):
        got = file.readinto(target[done:])
        if not got:
            raise DataError(
                f"`{file.name}` ends inside the rows read from row {row} on: "
                f"needed {len(target):,} bytes, got {done:,}",
                hint="the file became shorter after it was opened; start again",
            )
        done += got


@dataclass(frozen=True, eq=False)
class SelectedRows:
    """Rows of other rows, by number; nothing is copied until rows are asked for."""

    rows: Rows
    index: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, then the shape of one row."""
        return (len(self.index), *self.rows.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows underneath."""
        return self.rows.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Index, /) -> Array:
        return np.asarray(self.rows[self.index[row_index(key, len(self))]])


@dataclass(frozen=True, eq=False)
class JoinedRows:
    """Rows of several files as one; all parts have the same row shape and dtype."""

    parts: tuple[Rows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, then the shape of one row."""
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every part."""
        return self.parts[0].dtype

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, key: Index, /) -> Array:
        index = row_index(key, len(self))
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        first = 0
        for part in self.parts:
            here = np.flatnonzero((index >= first) & (index < first + len(part)))
            _copy_rows(part, index[here] - first, out, here)
            first += len(part)
        return out


@dataclass(frozen=True, eq=False)
class CastRows:
    """Rows in another dtype."""

    rows: Rows
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, then the shape of one row."""
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Index, /) -> Array:
        index = row_index(key, len(self))
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        _copy_rows(self.rows, index, out, np.arange(len(index)))
        return out


def _copy_rows(rows: Rows, numbers: Array, out: Array, places: Array) -> None:
    """Write some rows to places of an array, a few at a time: no more are there twice."""
    step = _rows_of(rows, _COPIED_BYTES)
    for first in range(0, len(numbers), step):
        out[places[first : first + step]] = rows[numbers[first : first + step]]


@dataclass(frozen=True, eq=False)
class ColumnMajorRows:
    """Images whose planes are stored column by column, shown row by row: the last two axes change places."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, then the shape of one row."""
        shape = self.rows.shape
        return (*shape[:-2], shape[-1], shape[-2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows underneath."""
        return self.rows.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Index, /) -> Array:
        return np.ascontiguousarray(np.swapaxes(self.rows[key], -1, -2))


def cast_rows(rows: Rows, dtype: np.dtype[Any]) -> Rows:
    """Rows in a dtype; themselves, if it is theirs."""
    return rows if rows.dtype == dtype else CastRows(rows, dtype)


def select_rows(rows: Rows, index: Array) -> SelectedRows:
    """The rows of the given numbers, in that order, without reading them."""
    numbers = row_index(index, len(rows))
    # Selections of selections are flattened: each level would cost an index array per read.
    if isinstance(rows, SelectedRows):
        return SelectedRows(rows.rows, rows.index[numbers])
    return SelectedRows(rows, numbers)


def window_rows(signal: Rows, length: int) -> Rows:
    """Every window of a signal as a row, without copying: row `i` is `signal[i : i + length]`.

    Args:
        signal: (samples, channels); a `FileRows` of adjoining rows, or an array.
        length: Samples of one window, at most those of the signal.

    Returns:
        (samples - length + 1, length, channels).
    """
    windows = len(signal) - length + 1
    if isinstance(signal, FileRows):
        return replace(signal, shape=(windows, length, *signal.shape[1:]), stride=signal.row_bytes)
    view = np.lib.stride_tricks.sliding_window_view(signal[:], length, axis=0)  # (windows, channels, length)
    return np.moveaxis(view, -1, 1)


def row_blocks(rows: Rows, block_bytes: int = 1 << 18) -> Iterator[tuple[int, Array]]:
    """All rows in order, in blocks of about `block_bytes`: (number of the first row, rows)."""
    step = _rows_of(rows, block_bytes)
    for first in range(0, len(rows), step):
        yield first, rows[first : first + step]


def _rows_of(rows: Rows, nbytes: int) -> int:
    """How many rows make so many bytes; at least one."""
    return max(1, nbytes // max(1, math.prod(rows.shape[1:]) * rows.dtype.itemsize))
