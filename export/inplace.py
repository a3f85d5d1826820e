"""Proof that a weight and its new value may share one buffer, and input rows and what is handed over.

onnxruntime may run nodes in any order that respects data dependencies. Sharing is safe exactly when every node that
reads the old value is an ancestor of the node that writes the new one, or is that node itself and works element by
element. Where a reader is not an ancestor, a dependency without a value is added, so that the proof holds for every
order.

A hand-over is written over the rows that it comes from once nothing needs them: the weights' gradients are made first.
onnxruntime merges operators in a row, so that is claimed only where no merged operator could read the rows while it
writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeff.errors import ExportError
from edgeff.export.workspace import Known

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Identity"})
ROWS_IN, HANDOVER = "x", "handover"
# Bytes of a row that a hand-over must have for that to be worth a few nodes, and that an operand may have which waits.
_LARGE_BYTES = 32 * 1024
_SMALL_BYTES = 1024
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
    writer = _writer(model.graph, target)
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
            holding = _holding_point(model.graph, _writer(model.graph, target))
            _wait_for(model, target, [reader.output[0] for reader in readers], holding)
        if unsafe_readers(model, source, target):
            raise ExportError(f"block `{block}`: graph `{kind}` cannot renew `{source}` in place")
    _hand_over_late(model)


def hands_over_in_place(models: Iterable[onnx.ModelProto]) -> bool:
    """Whether what any of a block's graphs hands over may be written over the rows that it takes, being no larger."""
    found = [_hands_over_in_place(model) for model in models if _takes_rows(model)]
    return bool(found) and all(found)


def _takes_rows(model: onnx.ModelProto) -> bool:
    return any(value.name == ROWS_IN for value in model.graph.input)


def _hands_over_in_place(model: onnx.ModelProto) -> bool:
    if not _hands_over_no_more(model):
        return False
    writer = _writer(model.graph, HANDOVER)
    return not unsafe_readers(model, ROWS_IN, HANDOVER) and not _may_be_merged(model, writer)


def _hands_over_no_more(model: onnx.ModelProto) -> bool:
    given, sizes = {value.name for value in [*model.graph.input, *model.graph.output]}, Known(model)
    return {ROWS_IN, HANDOVER} <= given and sizes.line(HANDOVER).at(1) <= sizes.line(ROWS_IN).at(1)


def _hand_over_late(model: onnx.ModelProto) -> None:
    """Let a large hand-over wait until nothing needs the rows it may be written over, if that can be had for little."""
    sizes = Known(model)
    if not _hands_over_no_more(model) or sizes.line(HANDOVER).at(1) < _LARGE_BYTES:
        return
    writer = _writer(model.graph, HANDOVER)
    readers = unsafe_readers(model, ROWS_IN, HANDOVER)
    signals = _outputs_behind(model, readers, writer)
    constants = {one.name for one in model.graph.initializer}
    small = [
        place
        for place, name in enumerate(writer.input)
        if name not in constants and sizes.line(name).at(1) <= _SMALL_BYTES
    ]
    if signals and small and not _may_be_merged(model, writer):
        _wait_for(model, HANDOVER, signals, (writer, small[-1]))


def _outputs_behind(model: onnx.ModelProto, readers: Sequence[onnx.NodeProto], writer: onnx.NodeProto) -> list[str]:
    """Outputs that are there when all the readers are done, and that do not wait for the writer.

    None if some reader leads to no such output. They are small, where what a reader makes may be as large as the rows,
    and would be held until it is asked for.
    """
    nodes = list(model.graph.node)
    missing = {reader.output[0] for reader in readers}
    found = []
    for output in model.graph.output:
        node = _writer(model.graph, output.name)
        before = _ancestors(nodes, node) | {node.output[0]}
        if writer.output[0] not in before and before & missing:
            missing -= before
            found.append(output.name)
    return [] if missing else found


def _may_be_merged(model: onnx.ModelProto, writer: onnx.NodeProto) -> bool:
    """Whether onnxruntime might make one operator of the writer of the hand-over and a reader of the rows.

    It merges nodes whose results only the next one reads, and normalisations, whose first nodes are arithmetic.
    """
    readers = Counter(
        [*(out.name for out in model.graph.output), *(name for node in model.graph.node for name in node.input)]
    )
    following = {name: node for node in model.graph.node for name in node.input if readers[name] == 1}
    for node in _readers(list(model.graph.node), ROWS_IN):
        if node.op_type in _ELEMENTWISE or node.op_type.startswith("Reduce"):
            return True
        while node.output[0] in following and node is not writer:
            node = following[node.output[0]]
        if node is writer:
            return True
    return False


def _wait_for(model: onnx.ModelProto, target: str, signals: Iterable[str], holding: tuple[onnx.NodeProto, int]) -> None:
    """Let the writer of `target` wait for some tensors through their sizes, which costs no arithmetic.

    One operand, `holding`, passes through a Where whose condition (sizes are not negative) always holds.
    """
    graph = model.graph
    writer = _writer(graph, target)
    held_node, position = holding
    late = {writer.output[0], held_node.output[0]}
    nodes = list(graph.node)
    made_by = {name: node for node in nodes for name in node.output}
    made: list[onnx.NodeProto] = []
    sizes = []
    for number, signal in enumerate(signals):
        if made_by[signal].output[0] in late or late & _ancestors(nodes, made_by[signal]):
            continue  # to wait for it would be to wait for oneself
        size = f"{target}.after_{number}"
        made.append(helper.make_node("Size", [signal], [size], name=size))
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


def _writer(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """The node that makes a tensor."""
    writer: onnx.NodeProto
    (writer,) = (node for node in graph.node if name in node.output)
    return writer


def _readers(nodes: list[onnx.NodeProto], source: str) -> list[onnx.NodeProto]:
    """Nodes that read a tensor, directly, through views of it, or transposed: a product may read what is transposed."""
    names, readers = {source}, []
    for node in nodes:
        if names & set(node.input):
            readers.append(node)
            if (node.op_type in VIEWS or node.op_type == "Transpose") and node.input[0] in names:
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
