"""What goes into a block that is trained alone: run through the blocks before it each time, or read from a file.

A file of features holds one row after another, in float32 as the blocks before gave them, or smaller: as float16, or as
uint8 with an offset and a scale for each row. Beside it lies what it was made from, so that features of another
artifact, of other weights or rows are never taken for these, and how many rows of it are safe on the disk: there an
interrupted file is gone on with. What stands behind them may be anything after a power cut, zeros for example.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgeff import disk
from edgeff.atomic import error_text, write_atomically, write_hint
from edgeff.errors import DataError, RunError
from edgeff.preprocess import Preprocessing
from edgeff.rows import FileRows, Index, Rows, row_index
from edgeff.runtime.arrays import Array
from edgeff.runtime.buffers import allocate_buffers
from edgeff.runtime.network import Chain, Graphs, Network
from edgeff.runtime.plan_parts import Features

_FORMAT = "edgeff-features"
_LEVELS = 255
_CHUNK_BYTES = 1 << 18
# So many bytes are forced to the disk at once, and noted: what a power cut can cost.
_SYNC_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class PreprocessedRows:
    """Raw rows as the first block takes them.

    Attributes:
        rows: Raw.
        preprocessing: What is done to them.
    """

    rows: Rows
    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, then the shape of one row."""
        return (len(self.rows), *self.preprocessing.features.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the features."""
        return np.dtype(self.preprocessing.features.dtype)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Index, /) -> Array:
        return self.preprocessing.apply(self.rows[key])


class HandedOverRows:
    """Rows as some blocks hand them over; they are run for every row that is asked for.

    Args:
        network: Its blocks' weights are read when they are not in memory.
        rows: What goes into block `first`.
        first: Block to begin with.
        stop: Block that takes the result.
        micro_batch: Rows that run at once.
    """

    def __init__(self, network: Network, rows: Rows, *, first: int, stop: int, micro_batch: int) -> None:
        self._network = network
        self._rows = rows
        self._stop = stop
        self._spec = network.manifest.blocks[stop].input
        self._buffers = allocate_buffers(network.manifest, micro_batch, {}, first=first, last=stop - 1)
        graphs = Graphs(network.artifact, network.engine)
        self._memory = graphs.memory
        self._chain = Chain(network, graphs, ["forward"] * (stop - first), self._buffers, first=first)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, then the shape of one row."""
        return (len(self._rows), *self._spec.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the hand-over."""
        return np.dtype(self._spec.dtype)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Index, /) -> Array:
        index = row_index(key, len(self))
        out = np.empty((len(index), *self._spec.shape), self._spec.dtype)
        for start in range(0, len(index), self._buffers.rows):
            part = index[start : start + self._buffers.rows]
            self._buffers.features[: len(part)] = self._rows[part]
            for run in self._chain.parts(len(part)):
                run.call.run()
            handed_over = self._buffers.handover(self._stop - 1, self._network.manifest)[: len(part)]
            if self._memory is not None:
                self._memory.fetch(handed_over)
            out[start : start + len(part)] = handed_over
        return out


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """Rows of a file in a smaller dtype, as float32.

    Attributes:
        file: (rows, numbers) float16, or (rows, 8 + numbers) uint8: offset and scale in float32, then the levels.
        row_shape: Of a row.
    """

    file: FileRows
    row_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, then the shape of one row."""
        return (len(self.file), *self.row_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, key: Index, /) -> Array:
        return decode(self.file[key], self.row_shape)


def encode(rows: Array, features: Features) -> Array:
    """Rows (n, ...) float32 as they are written: (n, numbers) float32 or float16, or (n, 8 + numbers) uint8."""
    flat = rows.reshape(len(rows), -1)
    if features == "float16":
        return np.clip(flat, -65504, 65504).astype(np.float16)
    if features != "uint8":
        return flat
    low = flat.min(axis=1, keepdims=True)
    scale = (flat.max(axis=1, keepdims=True) - low) / np.float32(_LEVELS)
    levels = np.rint((flat - low) / np.where(scale > 0, scale, np.float32(1))).astype(np.uint8)
    head = np.concatenate([low, scale], axis=1).astype("<f4").view(np.uint8)
    return np.concatenate([head, levels], axis=1)


def decode(stored: Array, row_shape: tuple[int, ...]) -> Array:
    """What `encode` wrote, as float32 (n, *row_shape)."""
    if stored.dtype == np.uint8:
        head = np.ascontiguousarray(stored[:, :8]).view("<f4")
        with np.errstate(all="ignore"):  # of a damaged file; a loss that is not finite is told of where it is met
            values = stored[:, 8:].astype(np.float32) * head[:, 1:] + head[:, :1]
    else:
        values = stored.astype(np.float32)
    return np.asarray(values, np.float32).reshape(len(stored), *row_shape)


@dataclass(frozen=True)
class FeatureFile:
    """A file of features, in the folder of a run.

    Attributes:
        path: Of the features; what they were made from stands beside it.
        features: How they are stored.
        row_shape: Of a row.
        rows: How many there are to be.
        made_from: Tells these from all others: artifact, weights of the blocks before, rows.
    """

    path: Path
    features: Features
    row_shape: tuple[int, ...]
    rows: int
    made_from: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the file."""
        return int(np.prod(self._stored_shape)) * self._stored_dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self.rows * self.row_bytes

    def fill(self, source: Rows, step: int) -> Iterator[int]:
        """Write what is not there yet, `step` rows at a time.

        Yields:
            Rows written so far.

        Raises:
            RunError: What is there was made from something else.
            OSError: It cannot be written, for want of room for example.
        """
        done, digest = self._begun()
        noted = done
        with disk.reopen(self.path) if done else disk.create(self.path) as stream:
            stream.truncate(done * self.row_bytes)
            stream.seek(0, os.SEEK_END)
            try:
                for start in range(done, self.rows, step):
                    part = np.ascontiguousarray(encode(source[start : start + step], self.features)).view(np.uint8)
                    stream.write(part.data.cast("B"))
                    digest.update(part.data.cast("B"))
                    del part  # before the next rows come
                    done = min(start + step, self.rows)
                    if (done - noted) * self.row_bytes >= _SYNC_BYTES:
                        noted = self._note(stream, done, digest)
                    yield done
            except GeneratorExit:
                self._note(stream, done, digest)
                raise
            self._note(stream, self.rows, digest)

    def _note(self, stream: BinaryIO, rows: int, digest: hashlib._Hash) -> int:
        """Force the rows to the disk, and then note that they are there."""
        disk.sync(stream)
        self._write_facts(rows, digest.hexdigest())
        return rows

    def _write_facts(self, rows: int, sha256: str) -> None:
        facts = {**self._facts, "rows": rows, "sha256": sha256}
        try:
            write_atomically(self._facts_path, json.dumps(facts).encode())
        except RunError as error:
            raise error.__cause__ if isinstance(error.__cause__, OSError) else error from error

    def is_whole(self) -> bool:
        """Whether all rows are there; they are not looked at.

        Raises:
            RunError: What is there was made from something else.
        """
        there = _is_plain(self.path) and self.path.stat().st_size == self.nbytes
        return there and self._noted()[0] == self.rows

    def read(self) -> Rows:
        """The rows, as float32.

        Raises:
            DataError: The file is not whole.
        """
        if not self.is_whole():
            raise DataError(f"`{self.path}` is not whole", hint="remove it: it is made again")
        if self.features == "float32":
            return FileRows(self.path, 0, (self.rows, *self.row_shape), self._stored_dtype)
        file = FileRows(self.path, 0, (self.rows, *self._stored_shape), self._stored_dtype)
        return QuantizedRows(file, self.row_shape)

    def remove(self) -> None:
        """Remove the file and what stands beside it."""
        for path in (self.path, self._facts_path):
            disk.remove(path)

    @property
    def _facts_path(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def _stored_dtype(self) -> np.dtype[Any]:
        return np.dtype({"float32": "<f4", "float16": "<f2", "uint8": "u1"}[self.features])

    @property
    def _stored_shape(self) -> tuple[int, ...]:
        numbers = math.prod(self.row_shape)
        return (numbers + 8,) if self.features == "uint8" else (numbers,)

    @property
    def _facts(self) -> dict[str, Any]:
        return {"format": _FORMAT, "version": 1, "features": self.features, "made_from": self.made_from}

    def _begun(self) -> tuple[int, hashlib._Hash]:
        """Rows that are there already, safe and as they were written, and the checksum of their bytes so far.

        Raises:
            RunError: They were made from something else.
        """
        rows, sha256 = self._noted() if _is_plain(self.path) else (0, "")
        digest = _digest_of(self.path, rows * self.row_bytes) if rows else hashlib.sha256()
        if rows and digest.hexdigest() != sha256:  # cut short, or rotten: made again
            rows, digest = 0, hashlib.sha256()
        if not rows:
            self.remove()
            self._write_facts(0, digest.hexdigest())
        return rows, digest

    def _noted(self) -> tuple[int, str]:
        """How many rows are noted, and their checksum; none where the note is damaged.

        Raises:
            RunError: It is of features that were made from something else.
        """
        if not _is_plain(self._facts_path):
            return 0, ""
        try:
            found = json.loads(self._facts_path.read_bytes())
            rows, sha256 = found.pop("rows"), found.pop("sha256")
            whole = found.keys() == self._facts.keys() and type(rows) is int and 0 <= rows <= self.rows
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return 0, ""
        if not whole:
            return 0, ""
        if found != self._facts:
            raise RunError(
                f"`{self.path}` holds features of another artifact, other weights or other rows",
                hint=f"remove `{self.path}` and `{self._facts_path.name}`: they are made again",
            )
        return rows, str(sha256)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _digest_of(path: Path, nbytes: int) -> hashlib._Hash:
    """Of the first bytes of a file, or of all where it is shorter."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while nbytes > 0 and (chunk := stream.read(min(nbytes, _CHUNK_BYTES))):
            digest.update(chunk)
            nbytes -= len(chunk)
    return digest


def fingerprint(*parts: str) -> str:
    """One name for several facts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def cannot_write(path: Path, error: OSError) -> str:
    """Why a file of features could not be written, in words."""
    hint = write_hint(error)
    return f"`{path}` cannot be written ({error_text(error)}{'; ' + hint if hint else ''})"
