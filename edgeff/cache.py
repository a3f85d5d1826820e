"""Compressed files, unpacked once.

Rows are read from uncompressed files only (`edgeff.rows`). What comes compressed, or needs decoding, is streamed once
into a cache folder and read from there. Every way in which a file can be broken ends here as one `DataError`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import lzma
import math
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from edgeff.errors import DataError
from edgeff.rows import Array, FileRows, Rows
from edgeff.units import format_bytes

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Below this, decoded rows are simply held: a cache file would cost more than it saves.
IN_MEMORY_BYTES = 1 << 20
CHUNK_BYTES = 1 << 18
# xz packs zeros about 7,000 to 1, gzip 1,032 to 1: a header that claims more than this is not telling the truth.
LARGEST_RATIO = 1 << 14
COMPRESSED = (".gz", ".xz")
# What unpacking an xz file may take; `xz -9` needs 65 MiB.
_XZ_BYTES = 1 << 27

# Changes when the same source would be decoded to other bytes.
_CACHE_VERSION = 1

# What the standard library and numpy raise on files that are cut short, edited or something else altogether.
_BROKEN = (
    EOFError,
    MemoryError,
    NotImplementedError,  # zipfile: a compression it does not know
    OverflowError,
    RuntimeError,  # zipfile: encrypted; ast: nested too deep
    ValueError,
    csv.Error,
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

Parts = Callable[[], Iterable[Array]]


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn whatever reading a broken file raises into a `DataError`.

    Args:
        path: Named in the message.
        form: What the file should be, such as "xz file".
    """
    try:
        yield
    except gzip.BadGzipFile as error:
        raise _broken(path, form, error) from error
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {error.strerror or error}", hint="check the path and its permissions"
        ) from error
    except _BROKEN as error:
        raise _broken(path, form, error) from error


def _broken(path: Path, form: str, error: BaseException) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"`{path}` is not a valid {form}: {reason.rstrip('.')}",
        hint="it is cut short, damaged or something else: get it again, or check its name",
    )


def plain_name(path: Path) -> str:
    """A file's name without `.gz` or `.xz`.

    >>> plain_name(Path("a/signals.npy.xz"))
    'signals.npy'
    """
    return path.stem if path.suffix in COMPRESSED else path.name


@contextmanager
def open_stream(path: Path, form: str) -> Iterator[IO[bytes]]:
    """A file's content from its beginning, unpacked on the way where the name ends in `.gz` or `.xz`.

    Raises:
        DataError: The file is missing, or something inside the `with` met broken content.
    """
    with reading(path, form):
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                yield cast("IO[bytes]", stream)
        elif path.suffix == ".xz":
            with path.open("rb") as packed, io.BufferedReader(_XzReader(packed)) as stream:
                yield cast("IO[bytes]", stream)
        else:
            with path.open("rb") as stream:
                yield stream


class _XzReader(io.RawIOBase):
    """The content of an xz file.

    `lzma.open` gives the decoder as much memory as a few bytes of the file ask for, up to 4 GiB.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._decoder = _xz_decoder()
        self._ahead = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Unpack some bytes into a buffer; 0 at the end."""
        target = memoryview(buffer)
        unpacked = b""
        while not unpacked:
            if self._decoder.eof and not self._begin_stream():
                return 0
            unpacked = self._decoder.decompress(self._more(), len(target))
        target[: len(unpacked)] = unpacked
        return len(unpacked)

    def _more(self) -> bytes:
        if not self._decoder.needs_input:
            return b""
        data, self._ahead = self._ahead or self._packed.read(CHUNK_BYTES), b""
        if not data:
            raise EOFError("it ends inside its compressed data")
        return data

    def _begin_stream(self) -> bool:
        """Whether another stream follows the one that ended; zeros may stand between."""
        ahead = self._decoder.unused_data
        while not (ahead := ahead.lstrip(b"\0")):
            ahead = self._packed.read(CHUNK_BYTES)
            if not ahead:
                return False
        self._decoder, self._ahead = _xz_decoder(), ahead
        return True


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_BYTES)


def stream_parts(stream: IO[bytes], nbytes: int) -> Iterator[Array]:
    """The next `nbytes` of a stream in chunks, after which it must end.

    Raises:
        EOFError: It ends early, or goes on.
    """
    left = nbytes
    while left:
        chunk = stream.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise EOFError(f"needed {nbytes:,} bytes of data, got {nbytes - left:,}")
        left -= len(chunk)
        yield np.frombuffer(chunk, np.uint8)
    if stream.read(1):
        raise EOFError(f"needed {nbytes:,} bytes of data, got more")


def cache_folder() -> Path:
    """Where unpacked files lie: `EDGEFF_CACHE_DIR`, else `edgeff` in `XDG_CACHE_HOME` or `~/.cache`."""
    named = os.environ.get("EDGEFF_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeff"


def hold(source: Path, form: str, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Parts) -> Rows:
    """Decoded rows: in memory when small, else in the cache folder, where they are looked for first.

    Args:
        source: The file they are decoded from. Its absolute path, size and time of change are the cache key.
        form: Name of the decoding, so that one source can have several.
        shape: Rows first.
        dtype: With its byte order.
        parts: Called when the rows have to be decoded; its arrays, one after the other, are their bytes.

    Raises:
        DataError: The cache folder cannot be written, or the parts are not of that many bytes.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    _check_claim(source, nbytes)
    if nbytes < IN_MEMORY_BYTES:
        target = io.BytesIO()
        _write_parts(target, parts, source, nbytes)
        whole = np.frombuffer(target.getvalue(), dtype) if nbytes else np.empty(0, dtype)
        return whole.reshape(shape).astype(dtype.newbyteorder("="))
    header = _npy_header(shape, dtype)
    path = _entry(source, form)
    if not _is_whole(path, header, nbytes):
        with writing_cache(path, len(header) + nbytes) as file:
            file.write(header)
            _write_parts(file, parts, source, nbytes)
    return FileRows(path, len(header), shape, dtype)


def _check_claim(source: Path, nbytes: int) -> None:
    with reading(source, "file"):
        got = source.stat().st_size
    if nbytes > got * LARGEST_RATIO:
        raise DataError(
            f"`{source}` claims to hold {nbytes:,} bytes of rows, which its {got:,} bytes cannot",
            hint="its header is damaged: get it again",
        )


@contextmanager
def unpacked(path: Path, form: str, nbytes: int) -> Iterator[Path]:
    """The uncompressed content of a file as a temporary file, for decoders that need to read it out of order.

    Args:
        path: The file.
        form: What it should be.
        nbytes: What its content should come to; no more is written to the disk.

    Raises:
        DataError: The content is broken, or goes on after that.
    """
    with cache_errors(), tempfile.TemporaryDirectory(prefix="unpack-", dir=_made(cache_folder())) as folder:
        target = Path(folder) / plain_name(path)
        with target.open("wb") as file:
            file.writelines(_chunks(path, form, nbytes))
        yield target


def _chunks(path: Path, form: str, nbytes: int) -> Iterator[bytes]:
    # A generator of its own, so that a full disk is not taken for a source that cannot be read.
    with open_stream(path, form) as stream:
        left = nbytes
        while chunk := stream.read(CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise EOFError(f"needed {nbytes:,} bytes, got more")
            yield chunk


@contextmanager
def writing_cache(path: Path, nbytes: int) -> Iterator[IO[bytes]]:
    """A file to be written next to `path`, which it replaces once it is whole and on the disk."""
    with cache_errors():
        free = shutil.disk_usage(_made(path.parent)).free
        if free < nbytes:
            raise DataError(
                f"the cache folder `{path.parent}` has {format_bytes(free)} free, needed {format_bytes(nbytes)}",
                hint="free some space, or set `EDGEFF_CACHE_DIR` to a folder on another disk",
            )
        handle, name = tempfile.mkstemp(prefix="part-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def cache_errors() -> Iterator[None]:
    """Say which folder cannot be used, and what to set instead."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the cache folder `{cache_folder()}` cannot be used: {error.strerror or error}",
            hint="set `EDGEFF_CACHE_DIR` to a folder that can be written",
        ) from error


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _entry(source: Path, form: str) -> Path:
    with reading(source, "file"):
        absolute = source.resolve(strict=True)
        facts = absolute.stat()
    key = "\0".join((str(_CACHE_VERSION), str(absolute), str(facts.st_size), str(facts.st_mtime_ns), form))
    return cache_folder() / f"{source.name.split('.')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    target = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        target, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return target.getvalue()


def _is_whole(path: Path, header: bytes, nbytes: int) -> bool:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == len(header) + nbytes and file.read(len(header)) == header
    except OSError:
        return False


def _write_parts(target: IO[bytes], parts: Parts, source: Path, nbytes: int) -> None:
    done = 0
    for part in parts():
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        done += len(data)
        if done <= nbytes:
            target.write(data.data)
    if done != nbytes:
        raise DataError(f"`{source}` holds {done:,} bytes of rows, needed {nbytes:,}")
