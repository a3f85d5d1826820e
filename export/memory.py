"""How many bytes a graph holds at once, as a function of the micro-batch.

A liveness pass over the nodes in the order in which onnxruntime runs them: a tensor lives from the node that makes it
to its last reader. Graph inputs and outputs are not counted, since the runtime owns their buffers. Views (a reshape,
say) share the bytes of what they show, and so do a Relu that onnxruntime runs inside a convolution or Gemm, and a
matrix that it reads the other way round instead of transposing it. No other operator is taken to write over its
operand: most kernels (all arithmetic among them) never do, and the others only where onnxruntime can prove two shapes
equal. What a kernel takes for itself while it runs (`edgeff.export.workspace`) is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass

import onnx

from edgeff.export.inplace import VIEWS
from edgeff.export.workspace import Known, workspace
from edgeff.manifest import HeldTensor, Line, Moment

# Tensors that are named where a graph holds most: more would say nothing new.
NAMED_TENSORS = 4
# A Relu that follows one of these becomes a part of it.
_FUSING = ("Conv", "Gemm")


@dataclass(frozen=True)
class Tensors:
    """What the nodes of a graph make, read and need; nodes and tensors go by their number.

    Attributes:
        operators: Of each node.
        sources: Of each node, the nodes whose results it reads, ascending.
        ends: Nodes whose results no node reads.
        held: The tensors that onnxruntime allocates: name, operator that makes it, bytes.
        makes: Of each node, tensors it makes.
        reads: Of each node, tensors it reads, itself or through views.
        workspace: Of each node, what its kernel takes for itself.
    """

    operators: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    held: tuple[HeldTensor, ...]
    makes: tuple[tuple[int, ...], ...]
    reads: tuple[tuple[int, ...], ...]
    workspace: tuple[Line, ...]


def transient(model: onnx.ModelProto) -> tuple[Moment, ...]:
    """Upper envelope, over the nodes of a graph, of the bytes alive while each runs.

    Args:
        model: With `value_info` for its inner tensors; a dimension is a number, `N` or `<k>*N`.

    Returns:
        The moments that no other is above of for every micro-batch, steepest last, each with its largest tensors; empty
        when nothing is held.
    """
    tensors = tensors_of(model)
    return envelope(moments(tensors, run_order(tensors.sources, tensors.ends)))


def tensors_of(model: onnx.ModelProto) -> Tensors:
    """Read a model's nodes and the sizes of its tensors."""
    nodes = list(model.graph.node)
    known = Known(model)
    inner = [value.name for value in model.graph.value_info]
    owner = _owners(model.graph)
    operator = {name: node.op_type for node in nodes for name in node.output}
    own = {name: number for number, name in enumerate(name for name in inner if owner.get(name, name) == name)}
    made_by = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    sources = [tuple(sorted({made_by[name] for name in node.input if name in made_by})) for node in nodes]
    read = {source for several in sources for source in several}
    seen = [{owner.get(name, name) for name in node.input} for node in nodes]
    return Tensors(
        operators=tuple(node.op_type for node in nodes),
        sources=tuple(sources),
        ends=tuple(index for index in range(len(nodes)) if index not in read),
        held=tuple(HeldTensor(name, operator[name], *astuple(known.line(name))) for name in own),
        makes=tuple(tuple(own[name] for name in node.output if name in own) for node in nodes),
        reads=tuple(tuple(sorted(own[name] for name in names if name in own)) for names in seen),
        workspace=tuple(workspace(node, known) for node in nodes),
    )


def moments(tensors: Tensors, order: Sequence[int]) -> Iterator[Moment]:
    """What is alive while each node runs, in an order."""
    for index, alive in zip(order, _alive(tensors, order), strict=True):
        held = [tensors.held[number] for number in alive]
        own = tensors.workspace[index]
        if own.at(1):
            held.append(HeldTensor("workspace", tensors.operators[index], own.fixed_bytes, own.row_bytes))
        total = Line(sum(one.fixed_bytes for one in held), sum(one.row_bytes for one in held))
        held.sort(key=lambda one: (-one.at(8), one.name))
        yield Moment(total.fixed_bytes, total.row_bytes, tuple(one for one in held[:NAMED_TENSORS] if one.at(1)))


def bytes_alive(tensors: Tensors, order: Sequence[int], rows: int) -> list[int]:
    """Bytes alive while each node runs, in an order, at a micro-batch of `rows`."""
    sizes = [one.at(rows) for one in tensors.held]
    own = [line.at(rows) for line in tensors.workspace]
    last = last_reads(tensors, order)
    total, found = 0, []
    for position, node in enumerate(order):
        total += sum(sizes[number] for number in tensors.makes[node])
        found.append(total + own[node])
        total -= sum(sizes[number] for number in last[position])
    return found


def _alive(tensors: Tensors, order: Sequence[int]) -> Iterator[list[int]]:
    last = last_reads(tensors, order)
    alive: dict[int, None] = {}
    for position, node in enumerate(order):
        alive |= dict.fromkeys(tensors.makes[node])
        yield list(alive)
        for number in last[position]:
            del alive[number]


def last_reads(tensors: Tensors, order: Sequence[int]) -> list[list[int]]:
    """The tensors that nobody needs after each position of an order."""
    last: dict[int, int] = {}
    for position, node in enumerate(order):
        for number in (*tensors.makes[node], *tensors.reads[node]):
            last[number] = position
    ending: list[list[int]] = [[] for _ in order]
    for number, position in last.items():
        ending[position].append(number)
    return ending


def run_order(sources: Sequence[Sequence[int]], ends: Iterable[int]) -> list[int]:
    """The nodes in the order in which onnxruntime (1.17 to 1.32) runs them one by one.

    It goes against the arrows, depth first, from the nodes whose results no node reads. Of several it always takes the
    one that stands last in the file. Its own optimisations may merge nodes first, which moves little.

    Args:
        sources: Of each node, the nodes it reads from, ascending.
        ends: The nodes to begin with, ascending.
    """
    seen = bytearray(len(sources))
    order: list[int] = []
    todo = list(ends)
    while todo:
        index = todo.pop()
        if index < 0:  # its sources are done
            order.append(~index)
        elif not seen[index]:
            seen[index] = 1
            if sources[index]:
                todo.append(~index)
                todo += sources[index]
            else:
                order.append(index)
    return order


def envelope(found: Iterable[Moment]) -> tuple[Moment, ...]:
    """The moments that no other is at least as large as for every number of rows from 1 on.

    >>> [line.row_bytes for line in envelope([Moment(10, 1), Moment(0, 2), Moment(5, 1)])]
    [1, 2]
    """
    kept: list[Moment] = []
    for moment in sorted((one for one in found if one.at(1)), key=lambda one: (-one.at(1), -one.row_bytes)):
        if not kept or moment.row_bytes > kept[-1].row_bytes:
            kept.append(moment)
    return tuple(kept)


def _owners(graph: onnx.GraphProto) -> dict[str, str]:
    """What each view shows."""
    given = {value.name for value in graph.output}
    fused, turned = _fused(graph.node, given), _turned(graph.node, given)
    owner: dict[str, str] = {}
    for node in graph.node:
        name = node.output[0]
        if name in fused and name in given:  # the caller's bytes: the node before writes into them
            owner[node.input[0]] = name
        elif name in fused or name in turned or node.op_type in VIEWS:
            owner[name] = owner.get(node.input[0], node.input[0])
    return owner


def _fused(nodes: Sequence[onnx.NodeProto], given: Collection[str]) -> set[str]:
    """Results of the Relu nodes that alone read the result before them: onnxruntime makes one node of both."""
    readers = Counter([*given, *(name for node in nodes for name in node.input)])
    alone = {node.output[0] for node in nodes if node.op_type in _FUSING and readers[node.output[0]] == 1}
    return {node.output[0] for node in nodes if node.op_type == "Relu" and node.input[0] in alone}


def _turned(nodes: Sequence[onnx.NodeProto], given: Collection[str]) -> set[str]:
    """Transposed matrices that only matrix products read: onnxruntime lets these read what is transposed."""
    others = {name for node in nodes if node.op_type != "MatMul" for name in node.input}
    return {
        node.output[0]
        for node in nodes
        if node.op_type == "Transpose" and _turns_matrices(node) and node.output[0] not in others | {*given}
    }


def _turns_matrices(node: onnx.NodeProto) -> bool:
    """Whether a Transpose swaps the last two axes and no others."""
    order = list(node.attribute[0].ints)
    last = len(order) - 1
    return order == [*range(last - 1), last, last - 1]
