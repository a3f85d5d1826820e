"""Numeric arrays of MATLAB v5 files (`.mat`), read without scipy.

Such a file is a header of 128 bytes and one element for each variable, mostly packed by zlib. What an element claims is
checked against the file before anything is allocated; a packed array is inflated in chunks, once, into the cache
(`edgeff.cache.hold`). Structures, cells, text, sparse and complex arrays are not read.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from edgeff.cache import CHUNK_BYTES, hold, reading
from edgeff.errors import DataError
from edgeff.rows import Array, FileRows, Rows, check_shape

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_HEADER_BYTES = 128
# Types of elements, and of the numbers in them.
_MATRIX, _COMPRESSED, _INT8, _INT32, _UINT32 = 14, 15, 1, 5, 6
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Classes of arrays: double, single, int8 to uint64. Wide numbers may be stored as narrower ones.
_NUMERIC = range(6, 16)
_COMPLEX = 0x08
_MOST_AXES = 32
# MATLAB's own limit of a name.
_NAME_BYTES = 63
_FORM = "MATLAB v5 file"


@dataclass(frozen=True)
class MatArray:
    """One variable of a file; nothing but its header was read.

    Attributes:
        path: The file.
        name: Of the variable.
        shape: As MATLAB shows it; the first axis is the fastest in the file.
        dtype: Of the numbers in the file, with their byte order.
        begin: Byte of the file where the element begins, after its tag.
        packed: Bytes of its zlib stream; 0 where it is not packed.
        offset: Where the numbers begin in the element, unpacked.
        end: Where the element ends, unpacked; numbers are padded to 8 bytes.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begin: int
    packed: int
    offset: int
    end: int

    def rows(self) -> Rows:
        """The array with its axes in reverse order, so that MATLAB's last axis counts the rows.

        Returns:
            `shape[::-1]`; in place where the file is not packed, else from the cache.

        Raises:
            DataError: Packed data that are damaged, or shorter or longer than the array.
        """
        shape = self.shape[::-1]
        if not self.packed:
            return FileRows(self.path, self.begin + self.offset, shape, self.dtype)
        return hold(self.path, f"mat-{self.name}", shape, self.dtype, self._parts)

    def _parts(self) -> Iterator[Array]:
        with reading(self.path, _FORM), self.path.open("rb") as file:
            file.seek(self.begin)
            content = _Content(_inflated(file, self.packed))
            content.take(self.offset)
            left = math.prod(self.shape) * self.dtype.itemsize
            while left:
                chunk = content.take(min(left, CHUNK_BYTES))
                left -= len(chunk)
                yield np.frombuffer(chunk, np.uint8)
            content.take(self.end - content.at)
            content.check_end()


class _Inflater(io.RawIOBase):
    """The content of a zlib stream that fills exactly the next `nbytes` of a file."""

    def __init__(self, packed: IO[bytes], nbytes: int) -> None:
        self._packed = packed
        self._left = nbytes
        self._decoder = zlib.decompressobj()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Inflate some bytes into a buffer; 0 at the end."""
        target = memoryview(buffer)
        while not self._decoder.eof:
            data = self._decoder.unconsumed_tail or self._more()
            inflated = self._decoder.decompress(data, len(target))
            if inflated:
                target[: len(inflated)] = inflated
                return len(inflated)
            if not data and not self._decoder.eof:
                raise EOFError("it ends inside its compressed data")
        if self._left or self._decoder.unused_data:
            raise ValueError("bytes follow its compressed data")
        return 0

    def _more(self) -> bytes:
        data = self._packed.read(min(self._left, CHUNK_BYTES))
        self._left -= len(data)
        return data


def _inflated(file: IO[bytes], nbytes: int) -> IO[bytes]:
    return io.BufferedReader(_Inflater(file, nbytes))


class _Content:
    """A stream from its beginning, and how far it was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next bytes, exactly so many."""
        data = self._stream.read(count)
        if len(data) != count:
            raise EOFError(f"needed {count:,} more bytes, got {len(data):,}")
        self.at += count
        return data

    def check_end(self) -> None:
        """Check that nothing follows; reaching the end checks zlib's sum over the content."""
        if self._stream.read(1):
            raise ValueError("an element holds more than its array")


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, MatArray]:
    """The variables of a file that holds numeric arrays of exactly these names, in any order.

    Args:
        path: The file.
        names: Of the variables.

    Returns:
        By name; no numbers were read yet.

    Raises:
        DataError: Not MATLAB v5, other variables or no such ones, or sizes that do not fit the file.
    """
    found: dict[str, MatArray] = {}
    with reading(path, _FORM), path.open("rb") as file:
        order = _read_order(file.read(_HEADER_BYTES), path)
        size, begin = os.fstat(file.fileno()).st_size, _HEADER_BYTES
        while begin < size:
            file.seek(begin)
            kind, nbytes = struct.unpack(f"{order}2I", _Content(file).take(8))
            begin += 8
            if nbytes > size - begin:
                raise EOFError(f"a variable claims {nbytes:,} bytes, of which the file has {size - begin:,}")
            array = _read_array(file, path, order, kind, nbytes)
            if array.name not in names or array.name in found:
                raise DataError(
                    f"`{path}` has a variable `{array.name}`, needed {_listed(names)} and no others, each once"
                )
            found[array.name] = array
            begin += nbytes
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"`{path}` has no variable `{missing[0]}`, needed {_listed(names)}", hint=_GET_AGAIN)
    return found


_GET_AGAIN = "it is cut short or is another file: get it again"


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _read_order(header: bytes, path: Path) -> str:
    """`<` or `>`, the byte order that the header tells."""
    order = {b"IM": "<", b"MI": ">"}.get(header[126:], "")
    version = struct.unpack(f"{order}H", header[124:126])[0] if order else 0
    if version == 0x0200:
        raise DataError(
            f"`{path}` is a MATLAB v7.3 file, needed v5 to v7", hint="in MATLAB: `save(name, 'X', 'y', '-v7')`"
        )
    if version != 0x0100:
        raise DataError(
            f"`{path}` begins with {header[:8]!r} and has no header of a MATLAB v5 file",
            hint="it is cut short, damaged or something else: get it again",
        )
    return order


def _read_array(file: IO[bytes], path: Path, order: str, kind: int, nbytes: int) -> MatArray:
    """The array of the element whose content the file is at."""
    if kind not in (_MATRIX, _COMPRESSED):
        raise ValueError(f"its variables have type {kind}, needed {_MATRIX} or {_COMPRESSED}")
    begin, packed, inner = file.tell(), 0, nbytes
    content = _Content(file)
    if kind == _COMPRESSED:
        packed, content = nbytes, _Content(_inflated(file, nbytes))
        kind, inner = struct.unpack(f"{order}2I", content.take(8))
        if kind != _MATRIX:
            raise ValueError(f"a packed variable has type {kind}, needed {_MATRIX}")
    end = content.at + inner
    shape = _read_shape(content, order)
    name = _small(content, order, _INT8, _NAME_BYTES).decode("ascii")
    code, data_bytes, small = _read_tag(content, order)
    if code not in _DTYPES:
        raise ValueError(f"`{name}` has numbers of type {code}, which is none of numbers")
    dtype = np.dtype(order + _DTYPES[code])
    needed = math.prod(shape) * dtype.itemsize
    # After a small element's tag of 4 bytes come 4 bytes of numbers, after another's numbers come zeros up to 8.
    padded = 4 if small else -(-data_bytes // 8) * 8
    if data_bytes != needed or end - content.at not in (data_bytes, padded):
        raise ValueError(
            f"`{name}` of shape {shape} and dtype {dtype.name} needs {needed:,} bytes, "
            f"its header claims {data_bytes:,} in an element with {end - content.at:,} left"
        )
    check_shape(shape[::-1], dtype)
    return MatArray(path, name, shape, dtype, begin, packed, content.at, end)


def _read_shape(content: _Content, order: str) -> tuple[int, ...]:
    flags, _ = struct.unpack(f"{order}2I", _small(content, order, _UINT32, 8, exact=True))
    if flags & 0xFF not in _NUMERIC or (flags >> 8) & _COMPLEX:
        raise ValueError(f"a variable has class {flags & 0xFF}, or is complex; needed an array of real numbers")
    sizes = _small(content, order, _INT32, 4 * _MOST_AXES)
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"its header claims the shape {shape}")
    return shape


def _read_tag(content: _Content, order: str) -> tuple[int, int, bool]:
    """Type of an element, its bytes, and whether they stand in the tag of 8 bytes itself."""
    (word,) = struct.unpack(f"{order}I", content.take(4))
    if word >> 16:
        if word >> 16 > 4:
            raise ValueError(f"a small element claims {word >> 16:,} bytes")
        return word & 0xFFFF, word >> 16, True
    return word, struct.unpack(f"{order}I", content.take(4))[0], False


def _small(content: _Content, order: str, needed: int, most: int, *, exact: bool = False) -> bytes:
    """What an element before the numbers holds."""
    kind, nbytes, small = _read_tag(content, order)
    if kind != needed or nbytes > most or (exact and nbytes != most):
        raise ValueError(f"its header has an element of type {kind} and {nbytes:,} bytes")
    return content.take(4 if small else -(-nbytes // 8) * 8)[:nbytes]
