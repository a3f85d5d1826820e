"""How many bytes a graph holds at once, as a function of the micro-batch.

A liveness pass over the nodes in order: a tensor lives from the node that makes it to its last reader. Graph inputs and
outputs are not counted, since the runtime owns their buffers. Views (a reshape, say) share the bytes of what they show,
and an elementwise operator writes over an operand that dies there, as onnxruntime does.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto

from edgeff.export.inplace import VIEWS
from edgeff.export.ir import Rows, Shape, size_of
from edgeff.manifest import Line

_IN_PLACE = frozenset(
    {
        "Abs", "Add", "Cast", "Clip", "Div", "Exp", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Reciprocal",
        "Relu", "ScatterElements", "ScatterND", "Sigmoid", "Softmax", "Sqrt", "Sub", "Tanh", "Where",
    }
)  # fmt: skip
_DTYPE: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
}


def transient_bytes(model: onnx.ModelProto) -> tuple[Line, ...]:
    """Upper envelope, over the nodes of a graph, of the bytes alive while each runs.

    Args:
        model: With `value_info` for its inner tensors; a dimension is a number, `N` or `<k>*N`.

    Returns:
        The lines that no other line is above of for every micro-batch, steepest last; empty when nothing is held.
    """
    graph = model.graph
    sizes = {value.name: size_of(*_described(value)) for value in graph.value_info}
    owner = _owners(graph.node)
    last_read = {owner.get(name, name): index for index, node in enumerate(graph.node) for name in node.input}
    alive: dict[str, Line] = {}
    moments = []
    for index, node in enumerate(graph.node):
        made = {name: sizes[name] for name in node.output if name in sizes and owner.get(name, name) == name}
        dying = [name for name in alive if last_read.get(name, -1) == index and name in node.input]
        moments.append(_sum([*alive.values(), *made.values()], minus=_overwritten(node, made, dying, alive)))
        alive |= made
        for name in [name for name in alive if last_read.get(name, -1) <= index]:
            del alive[name]
    return envelope(moments)


def envelope(lines: Iterable[Line]) -> tuple[Line, ...]:
    """The lines that are largest for some number of rows of at least 1.

    >>> envelope([Line(10, 1), Line(0, 2), Line(5, 1)])
    (Line(fixed_bytes=10, row_bytes=1), Line(fixed_bytes=0, row_bytes=2))
    """
    kept: list[Line] = []
    for line in sorted({line for line in lines if line.at(1)}, key=lambda line: (-line.at(1), -line.row_bytes)):
        if not kept or line.row_bytes > kept[-1].row_bytes:
            kept.append(line)
    return tuple(kept)


def _owners(nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """What each view shows."""
    owner: dict[str, str] = {}
    for node in nodes:
        if node.op_type in VIEWS:
            owner[node.output[0]] = owner.get(node.input[0], node.input[0])
    return owner


def _overwritten(node: onnx.NodeProto, made: dict[str, Line], dying: list[str], alive: dict[str, Line]) -> Line:
    """The operand whose bytes the result takes over."""
    if node.op_type not in _IN_PLACE:
        return Line(0, 0)
    return next((alive[name] for name in dying if alive[name] in made.values()), Line(0, 0))


def _sum(lines: Iterable[Line], *, minus: Line) -> Line:
    lines = list(lines)
    return Line(
        sum(line.fixed_bytes for line in lines) - minus.fixed_bytes,
        sum(line.row_bytes for line in lines) - minus.row_bytes,
    )


def _described(value: onnx.ValueInfoProto) -> tuple[Shape, str]:
    tensor = value.type.tensor_type
    return tuple(_dim(dim) for dim in tensor.shape.dim), _DTYPE[tensor.elem_type]


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | Rows:
    if not dim.dim_param:
        return int(dim.dim_value)
    factor, _, _ = dim.dim_param.rpartition("*")
    return Rows(int(factor or 1))
