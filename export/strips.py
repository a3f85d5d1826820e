"""Strips of a map, made of strips of what the map is made of, so that the whole is never laid out."""

from __future__ import annotations

import math

from edgeff.export.ir import Dim, Shape, Value

_ELEMENTWISE = ("Add", "Sub", "Mul", "Cast")


def strip(value: Value, axis: int, start: int, stop: int) -> Value:
    """What `start` to `stop` of an axis of fixed length holds, the batch being the first axis.

    Sums, products, casts and reshapes are made for the strip alone; what goes into them is cut. A mask is cut as bytes,
    before it becomes numbers.

    Raises:
        ValueError: The axis is the batch.
    """
    if not isinstance(value.shape[axis], int):
        raise ValueError("a strip cannot be cut out of the batch")
    made_by = value.graph.producers.get(value.name)
    if made_by is not None and (start, stop) != (0, value.shape[axis]):
        sources = [value.graph.values[name] for name in made_by.input]
        if made_by.op_type in _ELEMENTWISE:
            parts = [_operand(source, axis - len(value.shape) + len(source.shape), start, stop) for source in sources]
            if made_by.op_type == "Cast":
                return value.graph.cast(parts[0], value.dtype)
            return value.graph.elementwise(made_by.op_type, *parts, dtype=value.dtype)
        if made_by.op_type == "Reshape" and (found := _same_numbers(value.shape, axis, start, stop, sources[0].shape)):
            shape = (*value.shape[:axis], stop - start, *value.shape[axis + 1 :])
            return value.graph.reshape(strip(sources[0], *found), shape)
    return value.graph.slice(value, axis, start, stop)


def _operand(source: Value, axis: int, start: int, stop: int) -> Value:
    """The strip of an operand that may be broadcast along the axis."""
    return source if axis < 0 or source.shape[axis] == 1 else strip(source, axis, start, stop)


def _same_numbers(shape: Shape, axis: int, start: int, stop: int, source: Shape) -> tuple[int, int, int] | None:
    """Axis and bounds that cut the same numbers out of a tensor in its shape before a reshape, if one axis does."""
    if any(not isinstance(dim, int) for dim in source[1:]):
        return None
    before, stride = _count(shape[:axis]), _count(shape[axis + 1 :])
    for other in range(1, len(source)):
        other_stride = _count(source[other + 1 :])
        bounds = start * stride, stop * stride
        if _count(source[:other]) == before and not any(bound % other_stride for bound in bounds):
            return other, bounds[0] // other_stride, bounds[1] // other_stride
    return None


def _count(dims: tuple[Dim, ...]) -> int:
    return math.prod(dim if isinstance(dim, int) else dim.per_row for dim in dims)
