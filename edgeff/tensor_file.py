"""Reading safetensors files one tensor at a time from any seekable stream.

The safetensors library reads from a path, or from all the bytes at once: for weights inside a zip that is the whole
file in memory, and then once more as arrays. A device that trains inside a budget should hold one tensor, from a folder
or from a zip alike, so this reads the format itself: 8 bytes of little-endian header length, a JSON header, then the
tensors without a hole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from edgeff.errors import ArtifactError
from edgeff.json_node import HINT, Node, parse_json
from edgeff.manifest import TensorSpec

MAX_HEADER_BYTES = 16 * 2**20

DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}

_CHUNK_BYTES = 2**20
# More than numpy 1 can have; the product of many more could not even be written down.
_MOST_AXES = 32


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and where its bytes begin in the stream."""

    spec: TensorSpec
    start: int


def read_index(stream: IO[bytes], total_bytes: int, name: str) -> dict[str, StoredTensor]:
    """What a safetensors file holds, in the order of its bytes.

    Args:
        stream: At the first byte of the file.
        total_bytes: Size of the file.
        name: Of the file, for messages.

    Raises:
        ArtifactError: The file is not a safetensors file, or its parts do not fill it exactly.
    """
    header_bytes = int.from_bytes(stream.read(8), "little")
    if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, total_bytes - 8):
        raise ArtifactError(f"`{name}` is not a safetensors file: header of {header_bytes} bytes", hint=HINT)
    try:
        # The file's name as the path: messages then name file, tensor and field.
        header = replace(parse_json(stream.read(header_bytes).decode(), name), path=name).mapping()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"`{name}` is not a safetensors file: its header is not UTF-8", hint=HINT) from error
    header.pop("__metadata__", None)  # facts for people, which nothing here reads
    return _without_holes((_stored(key, node) for key, node in header.items()), 8 + header_bytes, total_bytes, name)


def _stored(key: str, node: Node) -> tuple[StoredTensor, int]:
    """A tensor with its start and end as the header gives them, counted from the end of the header."""
    fields = node.fields("dtype", "shape", "data_offsets")
    offsets = [offset.integer() for offset in fields["data_offsets"].elements()]
    if len(offsets) != 2:
        raise fields["data_offsets"].error("two offsets")
    shape = tuple(size.integer() for size in fields["shape"].elements(_MOST_AXES))
    spec = TensorSpec(key, shape, DTYPES[fields["dtype"].choice(DTYPES)])
    return StoredTensor(spec, offsets[0]), offsets[1]


def _without_holes(
    tensors: Iterable[tuple[StoredTensor, int]], begin: int, total_bytes: int, name: str
) -> dict[str, StoredTensor]:
    position = begin
    index: dict[str, StoredTensor] = {}
    for tensor, end in sorted(tensors, key=lambda item: (item[0].start, item[1])):
        if begin + tensor.start != position or end - tensor.start != tensor.spec.nbytes:
            raise ArtifactError(
                f"`{name}`: the bytes of `{tensor.spec.name}` must stand at {position - begin} to "
                f"{position - begin + tensor.spec.nbytes}, got {tensor.start} to {end}",
                hint=HINT,
            )
        index[tensor.spec.name] = StoredTensor(tensor.spec, position)
        position = begin + end
    if position != total_bytes:
        raise ArtifactError(f"`{name}` must have {position} bytes by its header, got {total_bytes}", hint=HINT)
    return index


def read_tensor(stream: IO[bytes], tensor: StoredTensor) -> np.ndarray:
    """The tensor as an array of its own, little-endian, C-contiguous.

    Raises:
        ArtifactError: The stream ends early.
    """
    array = np.empty(tensor.spec.shape, np.dtype(tensor.spec.dtype).newbyteorder("<"))
    fill_from(stream, tensor, array)
    return array


def fill_from(stream: IO[bytes], tensor: StoredTensor, array: np.ndarray) -> None:
    """Read a tensor into an array of its dtype and size that is C-contiguous.

    Raises:
        ArtifactError: The stream ends early.
    """
    stream.seek(tensor.start)
    _fill(stream, array, tensor.spec.name)


def check_values(stream: IO[bytes], tensor: StoredTensor, name: str) -> None:
    """Check that floats are finite and truth values are 0 or 1, holding one chunk at a time.

    Raises:
        ArtifactError: They are not; the message names the tensor and the file `name`.
    """
    for chunk in _chunks(stream, tensor):
        if tensor.spec.dtype.startswith("float") and not np.isfinite(chunk).all():
            raise ArtifactError(f"`{name}`: `{tensor.spec.name}` has a value that is not finite", hint=HINT)
        if tensor.spec.dtype == "bool" and chunk.view(np.uint8).max() > 1:
            raise ArtifactError(f"`{name}`: `{tensor.spec.name}` has a truth value other than 0 and 1", hint=HINT)


def _chunks(stream: IO[bytes], tensor: StoredTensor) -> Iterator[np.ndarray]:
    dtype = np.dtype(tensor.spec.dtype).newbyteorder("<")
    left = math.prod(tensor.spec.shape)
    stream.seek(tensor.start)
    while left:
        chunk = np.empty(min(left, _CHUNK_BYTES // dtype.itemsize), dtype)
        _fill(stream, chunk, tensor.spec.name)
        left -= len(chunk)
        yield chunk


def _fill(stream: IO[bytes], array: np.ndarray, name: str) -> None:
    """Fill an array's own memory from a stream.

    In chunks, because a stream inside a zip makes a copy of what it is asked for.
    """
    target = array.reshape(-1).view(np.uint8).data
    filled = 0
    while filled < len(target):
        chunk = target[filled : filled + _CHUNK_BYTES]
        count = stream.readinto(chunk)  # type: ignore[attr-defined]  # binary streams have it; IO[bytes] does not say so
        if not count:
            raise ArtifactError(f"the file ends inside `{name}`", hint=HINT)
        filled += count
