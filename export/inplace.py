"""Proof that a weight and its new value may share one buffer.

onnxruntime may run nodes in any order that respects data dependencies. Sharing is safe exactly when every node that
reads the old value is an ancestor of the node that writes the new one, or is that node itself and works element by
element. Where a reader is not an ancestor, a dependency without a value is added, so that the proof holds for every
order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeff.errors import ExportError

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Identity"})
# Their result may be the operand's own buffer, so whoever reads it reads the operand.
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


def in_place_pairs(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """`(X, new.X)` of every output that renews an input."""
    inputs = {value.name for value in model.graph.input}
    outputs = [value.name for value in model.graph.output]
    return [(name.removeprefix("new."), name) for name in outputs if name.removeprefix("new.") in inputs]


def unsafe_readers(model: onnx.ModelProto, source: str, target: str) -> list[onnx.NodeProto]:
    """The nodes that might read `source` after `target` was written over it; none means that sharing is safe."""
    nodes = list(model.graph.node)
    (writer,) = (node for node in nodes if target in node.output)
    before = _ancestors(nodes, writer)
    unsafe = []
    for node in _readers(nodes, source):
        if node.output[0] in before:
            continue
        if node is writer and _elementwise_over(model, node, source):
            continue
        unsafe.append(node)
    return unsafe


def ordered_in_place(model: onnx.ModelProto, *, block: str, kind: str) -> None:
    """Add the dependencies that make every pair of a graph safe, in the model itself.

    Raises:
        ExportError: A pair could not be made safe (a defect: please report).
    """
    for source, target in in_place_pairs(model):
        readers = unsafe_readers(model, source, target)
        if readers:
            _wait_for(model, target, readers)
        if unsafe_readers(model, source, target):
            raise ExportError(f"block `{block}`: graph `{kind}` cannot renew `{source}` in place")


def _wait_for(model: onnx.ModelProto, target: str, readers: Iterable[onnx.NodeProto]) -> None:
    """Let the writer of `target` depend on the readers through the sizes of their results, which costs no arithmetic.

    One operand passes through a Where whose condition (sizes are not negative) always holds.
    """
    graph = model.graph
    (writer,) = (node for node in graph.node if target in node.output)
    held_node, position = _holding_point(graph, writer)
    late = {writer.output[0], held_node.output[0]}
    nodes = list(graph.node)
    made: list[onnx.NodeProto] = []
    sizes = []
    for number, reader in enumerate(readers):
        if reader.output[0] in late or late & _ancestors(nodes, reader):
            continue  # to wait for it would be to wait for oneself
        size = f"{target}.after_{number}"
        made.append(helper.make_node("Size", [reader.output[0]], [size], name=size))
        sizes.append(size)
    if not sizes:
        return
    total, condition, held = (f"{target}.{part}" for part in ("sizes", "done", "held"))
    minus_one = f"{target}.minus_one"
    graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), minus_one))
    made.append(helper.make_node("Max", sizes, [total], name=total))
    made.append(helper.make_node("Greater", [total, minus_one], [condition], name=condition))
    operand = held_node.input[position]
    made.append(helper.make_node("Where", [condition, operand, operand], [held], name=held))
    held_node.input[position] = held
    describe_as(graph, held, operand)
    ordered = _sorted([*(node for node in nodes if node is not writer), *made, writer])
    del graph.node[:]
    graph.node.extend(ordered)


def _holding_point(graph: onnx.GraphProto, writer: onnx.NodeProto) -> tuple[onnx.NodeProto, int]:
    """The operand to hold back: the rate that the update is multiplied by, for it is one number; else the update."""
    scalars = {value.name for value in graph.input if not value.type.tensor_type.shape.dim}
    for node in graph.node:
        if writer.input[-1] in node.output:
            for position, name in enumerate(node.input):
                if name in scalars:
                    return node, position
    return writer, len(writer.input) - 1


def describe_as(graph: onnx.GraphProto, name: str, other: str) -> None:
    """Give a tensor the description of another, for the memory model."""
    for value in [*graph.value_info, *graph.input]:
        if value.name == other:
            copy = graph.value_info.add()
            copy.CopyFrom(value)
            copy.name = name
            return


def _readers(nodes: list[onnx.NodeProto], source: str) -> list[onnx.NodeProto]:
    """Nodes that read a tensor, directly or through views of it."""
    names, readers = {source}, []
    for node in nodes:
        if names & set(node.input):
            readers.append(node)
            if node.op_type in VIEWS and node.input[0] in names:
                names |= set(node.output)
    return readers


def _elementwise_over(model: onnx.ModelProto, node: onnx.NodeProto, source: str) -> bool:
    """Whether the node reads `source` no later than it writes the same entry (no broadcasting of `source`)."""
    shapes = {value.name: _shape(value) for value in [*model.graph.input, *model.graph.output]}
    same = shapes.get(source) == shapes.get(node.output[0])
    # A Gemm begins with its third operand laid out in the result, and then adds the product to it there.
    added_to = node.op_type == "Gemm" and list(node.input).index(source) == 2 and list(node.input).count(source) == 1
    return same and (node.op_type in _ELEMENTWISE or added_to)


def _shape(value: onnx.ValueInfoProto) -> tuple[str, ...]:
    return tuple(dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def _ancestors(nodes: list[onnx.NodeProto], start: onnx.NodeProto) -> set[str]:
    """First outputs of all nodes that `start` depends on."""
    producers = {name: node for node in nodes for name in node.output}
    seen: set[str] = set()
    todo = [producers[name] for name in start.input if name in producers]
    while todo:
        node = todo.pop()
        if node.output[0] not in seen:
            seen.add(node.output[0])
            todo.extend(producers[name] for name in node.input if name in producers)
    return seen


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """A topological order that keeps the given one where it can."""
    producers = {name: node for node in nodes for name in node.output}
    done: set[str] = set()
    ordered: list[onnx.NodeProto] = []

    def visit(node: onnx.NodeProto) -> None:
        stack = [(node, False)]
        while stack:
            current, expanded = stack.pop()
            if current.output[0] in done:
                continue
            if expanded:
                done.add(current.output[0])
                copy = onnx.NodeProto()
                copy.CopyFrom(current)
                ordered.append(copy)
                continue
            stack.append((current, True))
            stack.extend((producers[name], False) for name in reversed(current.input) if name in producers)

    for node in nodes:
        visit(node)
    return ordered
