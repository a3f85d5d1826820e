"""How many bytes a graph holds at once, as a function of the micro-batch.

A liveness pass over the nodes in the order in which onnxruntime runs them: a tensor lives from the node that makes it
to its last reader. Graph inputs and outputs are not counted, since the runtime owns their buffers. Views (a reshape,
say) share the bytes of what they show. No operator is taken to write over its operand: most kernels (all arithmetic
among them) never do, and the others only where onnxruntime can prove two shapes equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import TensorProto

from edgeff.export.inplace import VIEWS
from edgeff.export.ir import Rows, Shape, size_of
from edgeff.manifest import Line

# Tensors of the output's size that a kernel makes for itself: Where computes both of its choices first.
_TEMPORARIES = {"Where": 2}
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
    nodes = run_order(model.graph.node)
    inner = {value.name: size_of(*_described(value)) for value in model.graph.value_info}
    sizes = inner | {value.name: size_of(*_described(value)) for value in model.graph.output}
    owner = _owners(nodes)
    last_read = {owner.get(name, name): index for index, node in enumerate(nodes) for name in node.input}
    alive: dict[str, Line] = {}
    moments = []
    for index, node in enumerate(nodes):
        alive |= {name: inner[name] for name in node.output if name in inner and owner.get(name, name) == name}
        own = [sizes[name] for name in node.output if name in sizes] * _TEMPORARIES.get(node.op_type, 0)
        moments.append(_sum([*alive.values(), *own]))
        for name in [name for name in alive if last_read.get(name, -1) <= index]:
            del alive[name]
    return envelope(moments)


def run_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes in the order in which onnxruntime (1.17 to 1.32) runs them one by one.

    It goes against the arrows, depth first, from the nodes whose results no node reads. Of several it always takes the
    one that stands last in the file. Its own optimisations may merge nodes first, which moves little.
    """
    made_by = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    sources = [sorted({made_by[name] for name in node.input if name in made_by}) for node in nodes]
    read = {source for own in sources for source in own}
    ends = [index for index in range(len(nodes)) if index not in read]
    return [nodes[index] for index in _depth_first(sources, ends)]


def _depth_first(sources: Sequence[Sequence[int]], ends: Iterable[int]) -> Iterator[int]:
    """Each number after its sources."""
    seen: set[int] = set()
    todo = [(index, False) for index in ends]
    while todo:
        index, sources_done = todo.pop()
        if sources_done:
            yield index
        elif index not in seen:
            seen.add(index)
            todo.append((index, True))
            todo.extend((source, False) for source in sources[index])


def envelope(lines: Iterable[Line]) -> tuple[Line, ...]:
    """The lines that no other line is at least as large as for every number of rows from 1 on.

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


def _sum(lines: Sequence[Line]) -> Line:
    return Line(sum(line.fixed_bytes for line in lines), sum(line.row_bytes for line in lines))


def _described(value: onnx.ValueInfoProto) -> tuple[Shape, str]:
    tensor = value.type.tensor_type
    return tuple(_dim(dim) for dim in tensor.shape.dim), _DTYPE[tensor.elem_type]


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | Rows:
    if not dim.dim_param:
        return int(dim.dim_value)
    factor, _, _ = dim.dim_param.rpartition("*")
    return Rows(int(factor or 1))
