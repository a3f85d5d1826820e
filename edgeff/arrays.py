"""numpy's `.npy` and `.npz` files as rows.

The header is read here rather than by numpy: what it claims is checked against the size of the file before anything is
allocated, and where the data begin is what `FileRows` needs to know. Objects (pickles) are never read.
"""

from __future__ import annotations

import ast
import math
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeff.cache import COMPRESSED, hold, open_stream, reading, stream_parts
from edgeff.errors import DataError
from edgeff.manifest import ITEM_BYTES
from edgeff.rows import Array, FileRows, Rows, check_shape, is_row_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Version 1.0 of the format has 2 bytes of header length; numpy itself refuses headers longer than this.
_HEADER_BYTES = 10_000
_NAME_BYTES = 1 << 20


@dataclass(frozen=True)
class NpyHeader:
    """What stands before the data of a `.npy` file.

    Attributes:
        shape: Of the array.
        dtype: With its byte order.
        nbytes: Length of the header itself: the data begin here.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int

    @property
    def data_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: IO[bytes], name: str) -> NpyHeader:
    """Read the header at the beginning of a stream and leave the stream at the data.

    Raises:
        DataError: Not a `.npy`, objects, Fortran order, or a dtype that neither rows nor columns can have (text, and
            whole numbers of any size, are let through).
        EOFError: It ends inside the header.
        ValueError: A header that does not parse.
    """
    lead = _exactly(stream, 8)
    if lead[:6] != b"\x93NUMPY" or lead[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise DataError(f"{name} is not an `.npy` of version 1.0 or 2.0: it begins with {lead!r}", hint=_SAVE_AGAIN)
    wide = lead[6] == 2
    length = int(struct.unpack("<I" if wide else "<H", _exactly(stream, 4 if wide else 2))[0])
    if length > _HEADER_BYTES:
        raise ValueError(f"its header claims {length:,} bytes, at most {_HEADER_BYTES:,} are read")
    shape, dtype, fortran = _parse_header(_exactly(stream, length).decode("latin1"))
    if dtype.hasobject:
        raise DataError(f"{name} holds Python objects, needed numbers, or text for names", hint=_SAVE_AGAIN)
    if fortran:
        raise DataError(f"{name} is in Fortran order, needed C order (rows one after the other)", hint=_SAVE_AGAIN)
    if not is_row_dtype(dtype) and dtype.kind not in "Uu":
        raise DataError(f"{name} has dtype {dtype.name}, needed one of {', '.join(ITEM_BYTES)}", hint=_SAVE_AGAIN)
    check_shape(shape, dtype)
    return NpyHeader(shape, dtype, 8 + (4 if wide else 2) + length)


_SAVE_AGAIN = (
    "write it with `np.save(path, np.ascontiguousarray(array))`, with an array of numbers (names: of dtype `str`)"
)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError(f"needed {count:,} more bytes of its header, got {len(data):,}")
    return data


def _parse_header(text: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own about escapes, where bytes of the header were changed
            header = ast.literal_eval(text.strip())
        shape, descr, fortran = header["shape"], header["descr"], header["fortran_order"]
        dtype = np.dtype(descr)
    except (SyntaxError, TypeError, KeyError) as error:
        raise ValueError("its header is not that of an array") from error
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"its header claims the shape {shape!r}")
    return shape, dtype, bool(fortran)


def checked_rows(rows: FileRows, form: str) -> FileRows:
    """The rows, once the file is exactly as long as they need.

    Raises:
        DataError: The file is shorter or longer.
    """
    with reading(rows.path, form):
        got = rows.path.stat().st_size
    if got != rows.end:
        raise DataError(
            f"`{rows.path}` has {got:,} bytes, needed {rows.end:,} for {form} of shape {rows.shape}",
            hint="it is cut short or damaged: get it again",
        )
    return rows


def npy_rows(path: Path) -> Rows:
    """The array of a `.npy`, `.npy.gz` or `.npy.xz` file, with its first axis as rows."""
    with open_stream(path, "npy file") as stream:
        header = _row_header(stream, f"`{path}`")
    if path.suffix not in COMPRESSED:
        return checked_rows(FileRows(path, header.nbytes, header.shape, header.dtype), "an array")
    return hold(path, "npy", header.shape, header.dtype, lambda: _npy_parts(lambda: open_stream(path, "npy file")))


def whole_numbers(rows: Rows, name: str) -> NDArray[np.int64]:
    """A small column of whole numbers (labels, groups), read whole.

    Args:
        rows: (rows,), or (rows, n), of an integer dtype.
        name: For the message.
    """
    if rows.dtype.kind not in "iu":
        raise DataError(f"{name} has dtype {rows.dtype.name}, needed whole numbers (an integer dtype)")
    values = np.asarray(rows[:])
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        raise DataError(f"{name} has {values.max()}, which is more than 64 bits with a sign hold")
    return values.astype(np.int64, copy=False)


def read_labels(path: Path) -> NDArray[np.int64]:
    """The whole numbers of a `.npy` file."""
    return whole_numbers(npy_rows(path), f"`{path}`")


def _row_header(stream: IO[bytes], name: str) -> NpyHeader:
    header = read_npy_header(stream, name)
    if not header.shape or header.dtype.kind == "U":
        raise DataError(f"{name} holds a {header.dtype.name} array of shape {header.shape}, needed rows of numbers")
    return header


def _npy_parts(opened: Callable[[], AbstractContextManager[IO[bytes]]]) -> Iterable[Array]:
    with opened() as stream:
        header = read_npy_header(stream, "it")
        yield from stream_parts(stream, header.data_bytes)


def _texts(data: bytes, header: NpyHeader) -> tuple[str, ...]:
    """The elements of an array of text.

    Raises:
        ValueError: They hold a number that is no character.
    """
    # numpy keeps four bytes for each character and makes texts of them unseen.
    codes = np.frombuffer(data, header.dtype.byteorder + "u4")
    if ((codes > sys.maxunicode) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise ValueError("its text holds what is no character")
    text: NDArray[np.str_] = np.frombuffer(data, header.dtype)
    return tuple(str(name) for name in text)


@dataclass(frozen=True)
class NpzFile:
    """The arrays of a `.npz` file by name (without `.npy`)."""

    path: Path
    members: dict[str, zipfile.ZipInfo]

    def rows(self, key: str) -> Rows:
        """One array with its first axis as rows; read in place where it is stored without compression."""
        info = self.members[key]
        with self._opened(info) as stream:
            header = _row_header(stream, self._name(key))
        if info.file_size != header.nbytes + header.data_bytes:
            raise DataError(
                f"{self._name(key)} has {info.file_size:,} bytes, needed {header.nbytes + header.data_bytes:,}",
                hint="the file is damaged: write it again with `np.savez`",
            )
        if info.compress_type == zipfile.ZIP_STORED:
            rows = FileRows(self.path, self._offset(info) + header.nbytes, header.shape, header.dtype)
            return self._inside(rows, key)
        parts = lambda: _npy_parts(lambda: self._opened(info))  # noqa: E731 (called once, by `hold`)
        return hold(self.path, f"npz-{key}", header.shape, header.dtype, parts)

    def names(self, key: str) -> tuple[str, ...]:
        """A one-dimensional array of text."""
        info = self.members[key]
        with self._opened(info) as stream:
            header = read_npy_header(stream, self._name(key))
            if header.dtype.kind != "U" or len(header.shape) != 1 or header.data_bytes > _NAME_BYTES:
                raise DataError(
                    f"{self._name(key)} is a {header.dtype.name} array of shape {header.shape}, "
                    "needed a one-dimensional array of text",
                    hint='write it as `np.array(["first name", "second name"])`',
                )
            return _texts(_exactly(stream, header.data_bytes), header)

    @contextmanager
    def _opened(self, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
        with reading(self.path, "npz file"), zipfile.ZipFile(self.path) as archive, archive.open(info) as stream:
            yield stream

    def _offset(self, info: zipfile.ZipInfo) -> int:
        # Where a member's data begin only its local header tells: 30 bytes, then two texts of the lengths given there.
        with reading(self.path, "npz file"), self.path.open("rb") as file:
            file.seek(info.header_offset + 26)
            name_bytes, extra_bytes = struct.unpack("<HH", _exactly(file, 4))
        return info.header_offset + 30 + int(name_bytes) + int(extra_bytes)

    def _inside(self, rows: FileRows, key: str) -> FileRows:
        got = self.path.stat().st_size
        if rows.end > got:
            raise DataError(
                f"{self._name(key)} ends at byte {rows.end:,}, but the file has {got:,}",
                hint="the file is damaged: write it again with `np.savez`",
            )
        return rows

    def _name(self, key: str) -> str:
        return f"`{key}` in `{self.path}`"


def open_npz(path: Path) -> NpzFile:
    """The directory of a `.npz` file.

    Raises:
        DataError: Not a zip of `.npy` members.
    """
    with reading(path, "npz file"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    odd = [info.filename for info in members if not info.filename.endswith(".npy")]
    if odd:
        raise DataError(f"`{path}` holds `{odd[0]}`, needed `.npy` members only", hint="write it with `np.savez`")
    # numpy writes no others, and what an LZMA member says it needs to be unpacked may be all the memory there is.
    packed = [info.filename for info in members if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    if packed:
        raise DataError(
            f"`{path}` holds `{packed[0]}` in a compression other than deflate",
            hint="write it with `np.savez_compressed`",
        )
    return NpzFile(path, {info.filename.removesuffix(".npy"): info for info in members})
