"""Gradient checkpointing as a rewriting of a graph: activations are computed again where the backward pass needs them.

The forward pass is cut into segments at tensors that everything behind them passes through. Of a segment only what
goes into it is kept; its inner tensors are computed a second time from that, once the gradient has come back to the
segment's end (Chen et al. 2016, arXiv 1604.06174). The last segment needs no second time.

What is computed again reads its segment's input through a reshape to the sizes of the gradient that it waits for. So no
runtime can begin too early, and none can take the second computation for the first and merge them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeff.errors import ExportError
from edgeff.export.inplace import describe_as
from edgeff.export.memory import bytes_alive, run_order, tensors_of
from edgeff.export.order import ROWS, order_for_memory

# Numbers of segments that are tried, beside one for every cut.
_SEGMENTS = (2, 3, 4, 5, 6, 8, 12, 16)
_LOSS, _ROWS_INPUT = "loss", "x"


@dataclass(frozen=True)
class _Passes:
    """The two passes of a graph; nodes go by the name of their first output.

    Attributes:
        forward: Nodes that `x` goes into and that lead to the loss, in order.
        cuts: Tensors that all of the forward pass behind them passes through, in order.
    """

    forward: tuple[onnx.NodeProto, ...]
    cuts: tuple[str, ...]


def checkpointed(model: onnx.ModelProto, rows: int = ROWS) -> onnx.ModelProto:
    """The same graph with the number of segments that holds the fewest bytes.

    Args:
        model: Has the outputs `loss` and gradients, and `value_info` for its inner tensors. Nothing in it waits for
            anything yet: its nodes are put in order, and its updates in place made safe, afterwards.
        rows: Micro-batch at which bytes are compared.

    Raises:
        ExportError: There is nowhere to cut.
    """
    passes = _passes(model)
    if not passes.cuts:
        raise ExportError("a network of one piece has nothing to checkpoint", hint="leave `--baselines` out")
    found = [_segmented(model, passes, cuts) for cuts in _choices(model, passes)]
    for one in found:
        order_for_memory(one, rows, visits=0)
    return min(found, key=lambda one: peak_bytes(one, rows))


def can_be_checkpointed(model: onnx.ModelProto) -> bool:
    """Whether there is a place to cut the forward pass."""
    return bool(_passes(model).cuts)


def peak_bytes(model: onnx.ModelProto, rows: int) -> int:
    """Most bytes alive at once in a run as the nodes stand."""
    tensors = tensors_of(model)
    return max(bytes_alive(tensors, run_order(tensors.sources, tensors.ends), rows), default=0)


def _passes(model: onnx.ModelProto) -> _Passes:
    nodes = list(model.graph.node)
    behind: set[str] = {_ROWS_INPUT}
    for node in nodes:
        if node.op_type != "Shape" and behind & set(node.input):  # what is made of sizes alone is no part of the pass
            behind |= set(node.output)
    needed = {_LOSS}
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
    forward = tuple(node for node in nodes if behind & set(node.output) and needed & set(node.output))
    return _Passes(forward, tuple(_cuts(forward)))


def _cuts(forward: Sequence[onnx.NodeProto]) -> Iterator[str]:
    """Tensors that are alone in leading on."""
    last_use = {name: place for place, node in enumerate(forward) for name in node.input}
    made = {_ROWS_INPUT} | {name for node in forward for name in node.output}
    open_now = {_ROWS_INPUT}
    for place, node in enumerate(forward):
        open_now |= {name for name in node.output if name in last_use}
        open_now = {name for name in open_now if last_use[name] > place and name in made}
        if len(open_now) == 1 and (only := next(iter(open_now))) in node.output:
            yield only


def _choices(model: onnx.ModelProto, passes: _Passes) -> list[tuple[str, ...]]:
    """Sets of cuts that part the forward pass into segments of about the same bytes."""
    tensors = tensors_of(model)
    size = {one.name: one.at(ROWS) for one in tensors.held}
    before: dict[str, int] = {}
    total = 0
    for node in passes.forward:
        total += sum(size.get(name, 0) for name in node.output)
        before |= dict.fromkeys(node.output, total)
    # A cut is worth keeping where it is no larger than what lies around it; of neighbours the smallest will do.
    counts = sorted({*_SEGMENTS, len(passes.cuts) + 1})
    chosen = {
        tuple(
            dict.fromkeys(
                min(passes.cuts, key=lambda cut: abs(before[cut] - total * part / count)) for part in range(1, count)
            )
        )
        for count in counts
        if count <= len(passes.cuts) + 1
    }
    return sorted(chosen, key=lambda cuts: (len(cuts), cuts))


def _segmented(model: onnx.ModelProto, passes: _Passes, cuts: Sequence[str]) -> onnx.ModelProto:
    """Compute what lies before each cut again, for the backward pass."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    segment = _segments(passes, cuts)
    starts = (_ROWS_INPUT, *cuts)
    for number in range(len(cuts)):
        inner = {name for name, own in segment.items() if own == number and name not in cuts}
        _recompute(made, passes, inner, starts[number], number)
    return made


def _segments(passes: _Passes, cuts: Sequence[str]) -> dict[str, int]:
    """The segment of each tensor of the forward pass."""
    found: dict[str, int] = {}
    number = 0
    for node in passes.forward:
        found |= dict.fromkeys(node.output, number)
        if number < len(cuts) and cuts[number] in node.output:
            number += 1
    return found


def _recompute(model: onnx.ModelProto, passes: _Passes, inner: set[str], start: str, number: int) -> None:
    """Let the backward pass read copies of some tensors of the forward pass, made anew from the segment's start."""
    graph = model.graph
    forward = {node.output[0] for node in passes.forward}
    readers = [node for node in graph.node if node.output[0] not in forward and inner & set(node.input)]
    if not readers:
        return
    gradient = _arriving(graph, forward, readers)
    renamed = {name: _again(name) for name in inner}
    made: list[onnx.NodeProto] = []
    if gradient is not None:
        renamed[start] = f"{start}.again_{number}"
        made += _delayed(graph, start, gradient, renamed[start])
    needed = _needed(passes, inner, {name for node in readers for name in node.input})
    made += [_copy(node, renamed) for node in needed]
    for node in needed:
        for name in node.output:
            describe_as(graph, _again(name), name)
    for node in readers:
        names = [renamed.get(name, name) if name in inner else name for name in node.input]
        del node.input[:]
        node.input.extend(names)
    _put_in_order(graph, made)


def _arriving(graph: onnx.GraphProto, forward: set[str], readers: Iterable[onnx.NodeProto]) -> str | None:
    """A tensor with rows that the backward pass has made before it needs any of the segment."""
    late = {node.output[0] for node in readers}
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.value_info
    }
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.output[0] in late or any(name in made and made[name].output[0] in late for name in node.input):
            late.add(node.output[0])
    for node in graph.node:
        if node.output[0] not in late or node.output[0] in forward:
            continue
        for name in node.input:
            ready = name in made and made[name].output[0] not in late and made[name].output[0] not in forward
            if ready and len(shapes.get(name, ())) > 1 and shapes[name][0] == "N":
                return str(name)
    return None


def _delayed(graph: onnx.GraphProto, start: str, gradient: str, name: str) -> list[onnx.NodeProto]:
    """A view of a tensor that exists only once the gradient does."""
    described = next(value for value in (*graph.value_info, *graph.input) if value.name == start)
    sizes = [dim.dim_value for dim in described.type.tensor_type.shape.dim][1:]
    graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{name}.sizes"))
    describe_as(graph, name, start)
    return [
        helper.make_node("Shape", [gradient], [f"{name}.rows"], name=f"{name}.rows", start=0, end=1),
        helper.make_node("Concat", [f"{name}.rows", f"{name}.sizes"], [f"{name}.shape"], name=f"{name}.shape", axis=0),
        helper.make_node("Reshape", [start, f"{name}.shape"], [name], name=name),
    ]


def _needed(passes: _Passes, inner: set[str], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes of a segment that some tensors come from, in order."""
    wanted, found = set(wanted), []
    for node in reversed(passes.forward):
        if wanted & inner & set(node.output):
            found.append(node)
            wanted |= set(node.input)
    return found[::-1]


def _again(name: str) -> str:
    return f"{name}.again"


def _copy(node: onnx.NodeProto, renamed: Mapping[str, str]) -> onnx.NodeProto:
    """The same node on other inputs; also of a tensor that is kept, where its node makes another one beside it."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = _again(node.name)
    for names, changed in (
        (copy.input, [renamed.get(name, name) for name in node.input]),
        (copy.output, [_again(name) for name in node.output]),
    ):
        del names[:]
        names.extend(changed)
    return copy


def _put_in_order(graph: onnx.GraphProto, more: Sequence[onnx.NodeProto]) -> None:
    """Add nodes where everything that they read is there."""
    waiting = [*graph.node, *more]
    ready = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    ordered: list[onnx.NodeProto] = []
    while waiting:
        rest = []
        for node in waiting:
            if set(node.input) <= ready:
                ordered.append(node)
                ready |= set(node.output)
            else:
                rest.append(node)
        assert len(rest) < len(waiting), "a graph has no cycles"
        waiting = rest
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


__all__ = ["can_be_checkpointed", "checkpointed", "peak_bytes"]
