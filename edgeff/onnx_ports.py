"""Inputs and outputs of an ONNX file, read strictly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from edgeff.errors import ArtifactError
from edgeff.onnx_limits import DTYPES, MAX_AXES, MAX_ELEMENTS, checked_name, fields
from edgeff.protobuf_stream import LENGTH, VARINT, Message, field_key, read_message, signed

VALUE = Message(
    "a description of a tensor",
    single=fields(LENGTH, {1: "name", 2: "type", 3: "doc_string"}),
    refused={4: "metadata_props"},
)
TYPE = Message(
    "a type",
    single=fields(LENGTH, {1: "tensor_type"}),
    refused={
        4: "sequence_type",
        5: "map_type",
        6: "denotation",
        7: "opaque_type",
        8: "sparse_tensor_type",
        9: "optional_type",
    },
)
TENSOR_TYPE = Message("a tensor type", single={field_key(1, VARINT): "elem_type", field_key(2, LENGTH): "shape"})
SHAPE = Message("a shape", single={}, repeated=fields(LENGTH, {1: "dim"}))
DIMENSION = Message(
    "a dimension",
    single={field_key(1, VARINT): "dim_value", field_key(2, LENGTH): "dim_param"},
    refused={3: "denotation"},
)
_FIRST = field_key(1, LENGTH)
_SECOND = field_key(2, LENGTH)
_FIRST_NUMBER = field_key(1, VARINT)
# A sequence of float32 tensors, as onnx writes it (with and without an empty shape), and what stands for its dtype.
_SEQUENCES = (bytes.fromhex("22060a040a020801"), bytes.fromhex("22080a060a0408011200"))
SEQUENCE = "sequence of float32"


@dataclass(frozen=True)
class OnnxPort:
    """An input or output of a graph.

    Attributes:
        name: In the graph.
        shape: Sizes, 1 or more; None for the rows, which only the first axis may be.
        dtype: numpy's name.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def read_port(data: bytes, *, sequences: bool = False) -> OnnxPort:
    """An input or output of at most `MAX_VALUE_BYTES`.

    Args:
        data: The message.
        sequences: It may be a sequence of tensors, whose number and shapes are open.

    Raises:
        ArtifactError: It breaks a rule.
    """
    found = read_message(data, VALUE)
    name = checked_name(found.get(_FIRST, [b""])[0], "an input or output").decode("ascii")
    kind = found.get(_SECOND, [b""])[0]
    if sequences and kind in _SEQUENCES:
        return OnnxPort(name, (None,), SEQUENCE)
    try:
        return OnnxPort(name, *_shape_and_dtype(kind))
    except ArtifactError as error:
        raise ArtifactError(f"`{name}` {error}") from error


@lru_cache(maxsize=1024)  # a graph has few kinds of them
def _shape_and_dtype(data: bytes) -> tuple[tuple[int | None, ...], str]:
    kind = read_message(data, TYPE)
    tensor = read_message(kind.get(_FIRST, [b""])[0], TENSOR_TYPE)
    dtype = DTYPES.get(tensor.get(_FIRST_NUMBER, [0])[0])
    if dtype is None or _SECOND not in tensor:
        raise ArtifactError("must have a shape and an allowed data type")
    dims = read_message(tensor[_SECOND][0], SHAPE).get(_FIRST, [])
    if len(dims) > MAX_AXES:
        raise ArtifactError(f"has {len(dims)} axes, allowed at most {MAX_AXES}")
    shape = tuple(_size(dim, first=axis == 0) for axis, dim in enumerate(dims))
    elements = math.prod(size for size in shape if size is not None)
    if elements > MAX_ELEMENTS:
        raise ArtifactError(f"has {elements} elements, allowed at most {MAX_ELEMENTS}")
    return shape, dtype


def _size(data: bytes, *, first: bool) -> int | None:
    """A size, or None for the rows."""
    found = read_message(data, DIMENSION)
    if _FIRST_NUMBER not in found:
        if not first:
            raise ArtifactError("has an open size after its first axis")
        return None
    size = signed(found[_FIRST_NUMBER][0])
    if len(found) > 1 or not 1 <= size <= MAX_ELEMENTS:
        raise ArtifactError(f"has the size {size}, needed one number from 1 to {MAX_ELEMENTS}")
    return size
