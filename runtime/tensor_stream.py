"""Writing tensors to a safetensors file without copying them, with a checksum, and reading them into arrays that exist.

The safetensors library makes a copy of everything it writes. On a device that is as much memory again as the whole
training state, at the worst moment. The files are ordinary safetensors files, which the library reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeff.errors import EdgeffError, RunError
from edgeff.plain_file import open_plain
from edgeff.runtime.arrays import Array
from edgeff.tensor_file import DTYPES, StoredTensor, read_index

_CODES = {name: code for code, name in DTYPES.items()}
# safetensors' metadata are strings by name; the facts are one string of JSON.
_FACTS, _CHECKSUM = "edgeff", "sha256"
_CHUNK_BYTES = 64 * 1024


def write_tensors(stream: IO[bytes], tensors: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
    """Write a safetensors file.

    Args:
        stream: Where to.
        tensors: C-contiguous arrays by name; they are written from where they lie.
        facts: JSON-able.
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    entries: dict[str, Any] = {}
    position = 0
    for name, array in tensors.items():
        entries[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    digest = _begin_digest(text, entries)
    for array in tensors.values():
        digest.update(_bytes_of(array))
    header = json.dumps({"__metadata__": {_FACTS: text, _CHECKSUM: digest.hexdigest()}, **entries}).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors begin at a multiple of 8 bytes
    stream.write(len(header).to_bytes(8, "little"))
    stream.write(header)
    for array in tensors.values():
        stream.write(_bytes_of(array))


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a file, once every byte of it was compared with its checksum.

    Raises:
        RunError: The file is not there, damaged, or not one that `write_tensors` wrote.
    """
    try:
        with open_plain(path) as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(header_bytes, path.stat().st_size)))
            metadata = header.pop("__metadata__")
            digest = _begin_digest(metadata[_FACTS], header)
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
            if digest.hexdigest() != metadata[_CHECKSUM]:
                raise RunError(f"`{path}` is damaged: its checksum does not fit")
            facts = json.loads(metadata[_FACTS])
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise RunError(f"`{path}` is damaged: it is no file that edgeff wrote") from error
    if not isinstance(facts, dict):
        raise RunError(f"`{path}` is damaged: it is no file that edgeff wrote")
    return facts


def peek_facts(path: Path) -> dict[str, Any]:
    """The facts of a file from its header alone, without a look at the tensors' bytes.

    Raises:
        RunError: The file is not there, or has no such header.
    """
    try:
        with open_plain(path) as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            facts = json.loads(json.loads(stream.read(min(header_bytes, path.stat().st_size)))["__metadata__"][_FACTS])
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise RunError(f"`{path}` is damaged: it is no file that edgeff wrote") from error
    if not isinstance(facts, dict):
        raise RunError(f"`{path}` is damaged: it is no file that edgeff wrote")
    return facts


def read_tensors_into(path: Path, arrays: Mapping[str, Array]) -> None:
    """Fill arrays from the tensors of the same names.

    Raises:
        RunError: A tensor is missing, does not fit, or the file cannot be read; the arrays may be partly filled then.
    """
    try:
        with open_plain(path) as stream:
            index = read_index(stream, path.stat().st_size, path.name)
            for name, array in arrays.items():
                _read_into(stream, _stored(index, name, array, path), array)
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror or error}") from error
    except RunError:
        raise
    except EdgeffError as error:
        raise RunError(f"`{path}` is damaged: {error}") from error


def read_all_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a file as arrays of their own.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        with open_plain(path) as stream:
            index = read_index(stream, path.stat().st_size, path.name)
        arrays = {name: np.empty(stored.spec.shape, stored.spec.dtype) for name, stored in index.items()}
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror or error}") from error
    except EdgeffError as error:
        raise RunError(f"`{path}` is damaged: {error}") from error
    read_tensors_into(path, arrays)
    return arrays


def _begin_digest(facts: str, entries: Mapping[str, Any]) -> hashlib._Hash:
    """The checksum of all but the tensors' bytes, which follow."""
    return hashlib.sha256(json.dumps([facts, entries]).encode())


def _stored(index: Mapping[str, StoredTensor], name: str, array: Array, path: Path) -> StoredTensor:
    if name not in index:
        raise RunError(f"`{path}` lacks the tensor `{name}`")
    spec = index[name].spec
    if spec.shape != array.shape or spec.dtype != array.dtype.name:
        raise RunError(
            f"`{name}` in `{path}` must be {array.dtype.name} {list(array.shape)}, got {spec.dtype} {list(spec.shape)}"
        )
    return index[name]


def _read_into(stream: IO[bytes], stored: StoredTensor, array: Array) -> None:
    stream.seek(stored.start)
    count = stream.readinto(_bytes_of(array))  # type: ignore[attr-defined]  # binary streams have it
    if count != array.nbytes:
        raise RunError(f"the file ends inside `{stored.spec.name}`")


def _bytes_of(array: Array) -> memoryview:
    """The array's own bytes; not a copy."""
    return array.reshape(-1).view(np.uint8).data
