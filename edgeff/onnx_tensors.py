"""Constants of an ONNX file, read strictly; their data are passed over."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeff.errors import ArtifactError
from edgeff.manifest import ITEM_BYTES
from edgeff.onnx_limits import (
    DTYPES,
    MAX_AXES,
    MAX_ELEMENTS,
    MAX_NAME_BYTES,
    MAX_TYPED_BYTES,
    Numbers,
    checked_name,
    fields,
    numbers_of,
    shown_bytes,
)
from edgeff.protobuf_stream import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    FieldStream,
    Message,
    field_key,
    packed_varints,
    signed,
)

_CHUNK_BYTES = 2**20

TENSOR = Message(
    "a tensor",
    single={
        **fields(LENGTH, {8: "name", 9: "raw_data", 12: "doc_string"}),
        **fields(VARINT, {2: "data_type", 14: "data_location"}),
    },
    repeated={
        **fields(LENGTH, {1: "dims", 4: "float_data", 5: "int32_data", 7: "int64_data", 10: "double_data"}),
        **fields(VARINT, {1: "dims", 5: "int32_data", 7: "int64_data"}),
        **fields(FIXED32, {4: "float_data"}),
        **fields(FIXED64, {10: "double_data"}),
    },
    refused={3: "segment", 6: "string_data", 11: "uint64_data", 13: "external_data", 16: "metadata_props"},
)
_DATA_TYPE, _DATA_LOCATION = field_key(2, VARINT), field_key(14, VARINT)
_TENSOR_NAME, _RAW_DATA = field_key(8, LENGTH), field_key(9, LENGTH)
_DIMS, _FLOAT_DATA, _INT32_DATA, _INT64_DATA, _DOUBLE_DATA = 1, 4, 5, 7, 10
_TYPED = frozenset({_FLOAT_DATA, _INT32_DATA, _INT64_DATA, _DOUBLE_DATA})
_TYPED_FIELD: Mapping[str, int] = {
    dtype: {"float32": _FLOAT_DATA, "float64": _DOUBLE_DATA, "int64": _INT64_DATA}.get(dtype, _INT32_DATA)
    for dtype in ITEM_BYTES
}


@dataclass(frozen=True)
class OnnxTensor:
    """A constant, without its data.

    Attributes:
        name: In the graph; empty in an attribute.
        shape: Sizes, 0 or more.
        dtype: numpy's name.
        numbers: Of an int64 tensor.
    """

    name: bytes
    shape: tuple[int, ...]
    dtype: str
    numbers: Numbers


@dataclass
class _Data:
    """What was read of a tensor; its numbers as plain bytes, or field by field."""

    name: bytes = b""
    data_type: int = 0
    shape: tuple[int, ...] = ()
    raw: tuple[int, int] | None = None
    typed: dict[int, list[bytes | int]] | None = None
    typed_bytes: int = 0


def read_tensor(stream: FieldStream, start: int, end: int) -> OnnxTensor:
    """A tensor that stands at `start` to `end` of a stream; its data are passed over, not held.

    Raises:
        ArtifactError: It breaks a rule, or its data are not as long as its shape says.
    """
    found = _Data()
    for key, begin, stop in stream.fields(start, end, TENSOR):
        _take(found, stream, key, begin, stop)
    dtype = DTYPES.get(found.data_type)
    label = f"the tensor {shown_bytes(found.name)}" if found.name else "a tensor"
    if dtype is None:
        raise ArtifactError(f"{label} has the data type {found.data_type}, which is not allowed")
    elements = math.prod(found.shape)
    if elements > MAX_ELEMENTS:
        raise ArtifactError(f"{label} has {elements} elements, allowed at most {MAX_ELEMENTS}")
    if found.typed is None:
        numbers = _check_raw(stream, found.raw, dtype, elements, label)
    else:
        numbers = _check_typed(found.raw, found.typed, dtype, elements, label)
    return OnnxTensor(found.name, found.shape, dtype, numbers)


def _take(found: _Data, stream: FieldStream, key: int, begin: int, stop: int) -> None:
    """Keep one field of a tensor."""
    number = key >> 3
    if number == _DIMS:
        _take_dims(found, [begin] if key & 7 == VARINT else packed_varints(_short(stream, begin, stop)))
    elif key == _DATA_TYPE:
        found.data_type = begin
    elif key == _DATA_LOCATION and begin:
        raise ArtifactError("a tensor has its data outside of the file")
    elif key == _TENSOR_NAME:
        name = _short(stream, begin, stop)
        found.name = checked_name(name, "a tensor") if name else name
    elif key == _RAW_DATA:
        found.raw = begin, stop
    elif number in _TYPED:
        _take_typed(found, stream, key, begin, stop)


def _take_dims(found: _Data, dims: list[int]) -> None:
    found.shape += tuple(signed(dim) for dim in dims)
    if len(found.shape) > MAX_AXES:
        raise ArtifactError(f"a tensor has more than {MAX_AXES} axes")
    for dim in found.shape:
        if not 0 <= dim <= MAX_ELEMENTS:
            raise ArtifactError(f"a tensor has the size {dim}, needed 0 to {MAX_ELEMENTS}")


def _short(stream: FieldStream, begin: int, stop: int) -> bytes:
    if stop - begin > MAX_NAME_BYTES:
        raise ArtifactError(f"a tensor's name or shape has {stop - begin} bytes, allowed at most {MAX_NAME_BYTES}")
    return stream.bytes(begin, stop)


def _take_typed(found: _Data, stream: FieldStream, key: int, begin: int, stop: int) -> None:
    value: bytes | int = begin if key & 7 == VARINT else b""
    # No fewer than what holding it takes: a field may be empty.
    found.typed_bytes += 8 if key & 7 == VARINT else max(8, stop - begin)
    if found.typed_bytes > MAX_TYPED_BYTES:
        raise ArtifactError(f"a tensor has more than {MAX_TYPED_BYTES} bytes of numbers outside of `raw_data`")
    if key & 7 != VARINT:
        value = stream.bytes(begin, stop)
    found.typed = found.typed or {}
    found.typed.setdefault(key >> 3, []).append(value)


def _check_typed(
    raw: tuple[int, int] | None, typed: Mapping[int, list[bytes | int]], dtype: str, elements: int, label: str
) -> Numbers:
    field = _TYPED_FIELD[dtype]
    if raw is not None or set(typed) != {field}:
        raise ArtifactError(f"{label} has its numbers in two places, or where those of {dtype} do not stand")
    width = {_FLOAT_DATA: 4, _DOUBLE_DATA: 8}.get(field)
    if width is not None:
        sizes = [len(value) for value in typed[field] if isinstance(value, bytes)]
        size = sum(sizes)
        if size != elements * width or any(one % width for one in sizes):
            raise ArtifactError(f"{label} must have {elements * width} bytes of data, got {size}")
        return Numbers()
    values: list[int] = []
    for value in typed[field]:
        values += [value] if isinstance(value, int) else packed_varints(value)
    if len(values) != elements:
        raise ArtifactError(f"{label} must have {elements} numbers, got {len(values)}")
    return numbers_of([signed(value) for value in values])


def _check_raw(stream: FieldStream, raw: tuple[int, int] | None, dtype: str, elements: int, label: str) -> Numbers:
    begin, stop = raw or (0, 0)
    if stop - begin != elements * ITEM_BYTES[dtype]:
        raise ArtifactError(f"{label} must have {elements * ITEM_BYTES[dtype]} bytes of data, got {stop - begin}")
    if dtype == "bool":
        _check_truth_values(stream, begin, stop, label)
    return _raw_numbers(stream, begin, stop) if dtype == "int64" else Numbers()


def _check_truth_values(stream: FieldStream, begin: int, stop: int, label: str) -> None:
    for first in range(begin, stop, _CHUNK_BYTES):
        if stream.bytes(first, min(stop, first + _CHUNK_BYTES)).strip(b"\0\1"):
            raise ArtifactError(f"{label} has a truth value other than 0 and 1")


def _raw_numbers(stream: FieldStream, begin: int, stop: int) -> Numbers:
    """What int64 values say, a chunk at a time."""
    if stop - begin <= 2 * MAX_AXES * ITEM_BYTES["int64"]:
        return numbers_of([value for (value,) in struct.iter_unpack("<q", stream.bytes(begin, stop))])
    largest = 0
    for first in range(begin, stop, _CHUNK_BYTES):
        values = np.frombuffer(stream.bytes(first, min(stop, first + _CHUNK_BYTES)), "<i8")
        largest = max(largest, int(values.max()), -int(values.min()))
    return Numbers(largest, MAX_ELEMENTS + 1)
