"""onnxruntime-training's checkpoint: a FlatBuffers file with tensors, moments and the number of updates made.

Its interface gives moments out and takes them in through such a file alone. Fields are those of onnxruntime's
`ort_training_checkpoint.fbs` and `ort.fbs` at 1.19.2, by their number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeff.errors import EngineError
from edgeff.runtime.arrays import Array

_IDENTIFIER, _VERSION, _GROUP = b"ODTC", 2, "group0"
# TensorDataType; those that the package reads.
_DTYPES: Mapping[str, int] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float64": 11,
}
_OFFSET_BYTES, _ALIGNMENT = 4, 16


def checkpoint_bytes(
    trained: Mapping[str, Array],
    frozen: Mapping[str, Array],
    moments: Mapping[str, Sequence[Array]],
    *,
    step: int,
) -> bytes:
    """A checkpoint.

    Args:
        trained: Parameters by name.
        frozen: Constant tensors by name.
        moments: Of each parameter, in the optimiser's order; empty for an optimiser without.
        step: Updates made.

    Raises:
        EngineError: A tensor is of a dtype that the package does not read.
    """
    import flatbuffers

    numbers = sum(array.nbytes for array in (*trained.values(), *(one for some in moments.values() for one in some)))
    builder = flatbuffers.Builder(numbers + 4096)
    # Without moments there must be no group either: the package asks it for some.
    states = [
        _table(
            builder,
            [
                (0, _text(builder, name)),
                (1, _vector(builder, [_tensor(builder, f"momentum{i}", one) for i, one in enumerate(own)])),
            ],
        )
        for name, own in moments.items()
        if own
    ]
    group = [_group(builder, _text(builder, _GROUP), _vector(builder, states), step)] if states else []
    groups = _vector(builder, group)
    module = _table(
        builder,
        [
            (0, _vector(builder, [_tensor(builder, name, array) for name, array in trained.items()])),
            (1, _vector(builder, [_tensor(builder, name, array) for name, array in frozen.items()])),
        ],
        fields=4,
    )
    builder.StartObject(4)
    builder.PrependInt32Slot(0, _VERSION, 0)
    builder.PrependUOffsetTRelativeSlot(1, module, 0)
    builder.PrependUOffsetTRelativeSlot(2, groups, 0)
    builder.Finish(builder.EndObject(), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def read_moments(content: bytes) -> dict[str, list[Array]]:
    """Each parameter's moments, in the optimiser's order: views of the content, float32 (numbers,).

    Raises:
        EngineError: It is no checkpoint of that version.
    """
    try:
        root = _root(content)
        if content[4:8] != _IDENTIFIER or _version(root) != _VERSION:
            raise ValueError("it is none of that version")
        return {
            _name(state): [_numbers(moment) for moment in _tables(state, 1)]
            for group in _tables(root, 2)
            for state in _tables(group, 3)
        }
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise EngineError(
            "onnxruntime-training wrote a checkpoint of another form", hint="install version 1.19.2"
        ) from error


def _tensor(builder: Any, name: str, array: Array) -> int:
    if array.dtype.name not in _DTYPES:
        raise EngineError(
            f"onnxruntime-training reads no {array.dtype.name}, which `{name}` is",
            hint="leave `--engine ort-training` out: any onnxruntime trains the artifact",
        )
    title = _text(builder, name)
    dims = builder.CreateNumpyVector(np.array(array.shape, np.int64))
    # As bytes, aligned as its readers align them.
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    builder.StartVector(1, len(raw), _ALIGNMENT)
    builder.head = builder.Head() - len(raw)
    builder.Bytes[builder.Head() : builder.Head() + len(raw)] = raw.tobytes()
    data = builder.EndVector()
    builder.StartObject(7)
    builder.PrependUOffsetTRelativeSlot(0, title, 0)
    builder.PrependUOffsetTRelativeSlot(2, dims, 0)
    builder.PrependInt32Slot(3, _DTYPES[array.dtype.name], 0)
    builder.PrependUOffsetTRelativeSlot(4, data, 0)
    return int(builder.EndObject())


def _group(builder: Any, name: int, states: int, step: int) -> int:
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependInt64Slot(1, step, 0)
    builder.PrependUOffsetTRelativeSlot(3, states, 0)
    return int(builder.EndObject())


def _table(builder: Any, offsets: Iterable[tuple[int, int]], *, fields: int = 2) -> int:
    found = list(offsets)
    builder.StartObject(fields)
    for slot, offset in found:
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(_OFFSET_BYTES, len(offsets), _OFFSET_BYTES)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _text(builder: Any, text: str) -> int:
    return int(builder.CreateString(text))


def _root(content: bytes) -> Any:
    from flatbuffers import encode, packer
    from flatbuffers.table import Table

    return Table(content, encode.Get(packer.uoffset, content, 0))


def _place(table: Any, slot: int) -> int:
    """Where a field stands, from the table's own place; 0 where it is left out."""
    return int(table.Offset(4 + 2 * slot))


def _needed(table: Any, slot: int) -> int:
    """The same of a field that must be there."""
    place = _place(table, slot)
    if not place:
        raise ValueError("a field is left out")
    return place


def _tables(table: Any, slot: int) -> list[Any]:
    from flatbuffers.table import Table

    place = _place(table, slot)
    if not place:
        return []
    start, count = table.Vector(place), table.VectorLen(place)
    # Where there are fewer than it says, looking for the first that is not there fails.
    return [Table(table.Bytes, table.Indirect(start + _OFFSET_BYTES * i)) for i in range(count)]


def _version(root: Any) -> int:
    from flatbuffers.number_types import Int32Flags

    return int(root.Get(Int32Flags, root.Pos + _needed(root, 0)))


def _name(table: Any) -> str:
    return bytes(_bytes(table, 0)).decode()


def _numbers(tensor: Any) -> Array:
    return np.frombuffer(_bytes(tensor, 4), np.float32)


def _bytes(table: Any, slot: int) -> memoryview:
    """Those of a text or a list of bytes."""
    place = _needed(table, slot)
    start, size = table.Vector(place), table.VectorLen(place)
    if start + size > len(table.Bytes):
        raise ValueError("it ends inside a field")
    return memoryview(table.Bytes)[start : start + size]
