"""From aten operators to an ONNX graph, operator by operator.

`TRANSLATIONS` maps an aten operator to a function that emits ONNX nodes. Only what the wanted outputs need is visited,
so one trace serves the `step`, `accumulate` and `forward` graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from edgeff.errors import ExportError
from edgeff.export.ir import Dim, Graph, Rows, Shape, Value, broadcast
from edgeff.export.tracing import TRACED_ROWS, TracedBlock

_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
    torch.uint8: "uint8",
}


@dataclass(frozen=True)
class Filled:
    """A tensor of one number that is not made until something needs it as a tensor."""

    number: float
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Expanded:
    """A broadcast tensor that is not made until something needs it whole."""

    value: Value
    shape: Shape


Lowered = Value | Filled | Expanded | tuple[Any, ...] | None


def dim_of(size: int) -> Dim:
    """A traced dimension: a number, or a multiple of the micro-batch.

    >>> dim_of(7), dim_of(3 * TRACED_ROWS)
    (7, Rows(per_row=3))
    """
    return Rows(size // TRACED_ROWS) if size and size % TRACED_ROWS == 0 else size


def dtype_of(dtype: torch.dtype) -> str:
    """The name that numpy has for a torch dtype."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype} is not supported")
    return _DTYPES[dtype]


@dataclass
class Call:
    """One aten operator under translation: its arguments and what is known of its result.

    Attributes:
        graph: Where nodes go.
        node: The traced node.
        values: What has been lowered so far.
        live: The traced nodes that are needed.
        arguments: Of the node.
        target: The operator.
    """

    graph: Graph
    node: Node
    values: Mapping[Node, Lowered]
    live: frozenset[Node]
    arguments: tuple[Any, ...] = field(init=False)
    target: Any = field(init=False)

    def __post_init__(self) -> None:
        self.arguments = tuple(self.node.args)
        self.target = self.node.target

    @property
    def shape(self) -> Shape:
        """Shape of the (first) result."""
        value = self.node.meta["val"]
        first = value[0] if isinstance(value, tuple | list) else value
        return tuple(dim_of(size) for size in first.shape)

    @property
    def dtype(self) -> str:
        """Element type of the (first) result, by numpy's name."""
        value = self.node.meta["val"]
        return dtype_of((value[0] if isinstance(value, tuple | list) else value).dtype)

    def shape_of(self, number: int) -> Shape:
        """Shape of the result with that number, of several."""
        return tuple(dim_of(size) for size in self.node.meta["val"][number].shape)

    def argument(self, position: int, name: str = "", default: Any = None) -> Any:
        """A plain argument (number, list, bool); a size that comes from the batch becomes `Rows`."""
        found = self.arguments[position] if position < len(self.arguments) else self.node.kwargs.get(name, default)
        return _plain(found)

    def lowered(self, position: int) -> Lowered:
        """A tensor argument as it was lowered, possibly not yet made."""
        found = self.arguments[position] if position < len(self.arguments) else None
        return self.values[found] if isinstance(found, Node) else None

    def tensor(self, position: int) -> Value:
        """A tensor argument, made whole."""
        return self.whole(self.lowered(position))

    def optional(self, position: int) -> Value | None:
        """A tensor argument that may be None."""
        return None if self.lowered(position) is None else self.tensor(position)

    def tensors(self, position: int) -> list[Value]:
        """A list of tensors."""
        return [self.whole(self.values[node]) for node in self.arguments[position]]

    def whole(self, lowered: Lowered) -> Value:
        """Make what was put off."""
        if isinstance(lowered, Filled):
            return self.graph.filled(lowered.number, lowered.shape, lowered.dtype)
        if isinstance(lowered, Expanded):
            return self.graph.expand(lowered.value, lowered.shape)
        if not isinstance(lowered, Value):
            raise ValueError("an argument is not a tensor")
        return lowered

    def loose(self, position: int, dtype: str | None = None) -> Value:
        """An argument of an elementwise operator: a tensor in as small a shape as broadcasts, or a number."""
        found = self.arguments[position]
        if not isinstance(found, Node):
            return self.graph.constant(found, dtype or self.dtype)
        lowered = self.values[found]
        if isinstance(lowered, Filled):
            return self.graph.constant(lowered.number, dtype or lowered.dtype)
        value = lowered.value if isinstance(lowered, Expanded) else self.whole(lowered)
        return self.graph.cast(value, dtype) if dtype else value

    def elementwise(self, operator: str, *operands: Value, dtype: str | None = None, **attributes: Any) -> Value:
        """An elementwise node whose result has this call's shape, even if its operands were left unexpanded."""
        wanted = self.shape
        if broadcast(*(operand.shape for operand in operands)) != wanted:
            operands = (self.graph.expand(operands[0], wanted), *operands[1:])
        return self.graph.elementwise(operator, *operands, dtype=dtype or self.dtype, **attributes)

    def uses_output(self, number: int) -> bool:
        """Whether anything that is needed reads that output of several."""
        return any(
            user in self.live and user.args[1] == number
            for user in self.node.users
            if getattr(user.target, "__name__", "") == "getitem"
        )


Translation = Callable[[Call], Lowered]
TRANSLATIONS: dict[Any, Translation] = {}


def translates(*operators: Any) -> Callable[[Translation], Translation]:
    """Register a translation for aten operators."""

    def register(function: Translation) -> Translation:
        TRANSLATIONS.update(dict.fromkeys(operators, function))
        return function

    return register


def lower(
    traced: TracedBlock, graph: Graph, inputs: Mapping[str, Value], wanted: Sequence[str], *, block: str
) -> dict[str, Value]:
    """Emit the ONNX nodes that compute the wanted outputs.

    Args:
        traced: The block's update.
        graph: Nodes go here.
        inputs: Values of the traced inputs, by name.
        wanted: Names out of `traced.outputs`.
        block: For messages.

    Returns:
        The wanted values by name.

    Raises:
        ExportError: An operator has no translation; names block and operator.
    """
    results = dict(zip(traced.outputs, next(n for n in traced.graph.nodes if n.op == "output").args[0], strict=True))
    live = _ancestors([results[name] for name in wanted])
    values: dict[Node, Lowered] = {}
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, traced.inputs, strict=True):
        values[node] = inputs[name]
    for node in traced.graph.nodes:
        if node in live and node.op == "call_function":
            values[node] = _translate(Call(graph, node, values, live), block)
        elif node in live and node.op == "get_attr":
            values[node] = graph.constant(traced.constants[str(node.target)].numpy())
    found = {}
    for name in wanted:
        call = Call(graph, results[name], values, live)
        found[name] = call.whole(values[results[name]])
    return found


def _translate(call: Call, block: str) -> Lowered:
    target = call.target
    if getattr(target, "__name__", "") == "getitem":
        source: Any = call.values[call.arguments[0]]
        return source[call.arguments[1]]  # type: ignore[no-any-return]
    if not isinstance(call.node.meta.get("val"), torch.Tensor | tuple | list):
        return None  # arithmetic on sizes: shapes come from the trace itself
    if target not in TRANSLATIONS:
        raise ExportError(
            f"block `{block}` uses operator `{_name(target)}`, which has no ONNX translation",
            hint="replace the layer, or leave its block out of training",
        )
    try:
        return TRANSLATIONS[target](call)
    except (ValueError, NotImplementedError) as error:
        raise ExportError(
            f"block `{block}`: operator `{_name(target)}` cannot be lowered: {error}",
            hint="`docs/guide.md` lists the layers that can be trained on a device",
        ) from error


def _name(target: Any) -> str:
    return str(target).removesuffix(".default")


def _ancestors(nodes: Sequence[Node]) -> frozenset[Node]:
    seen: set[Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(node.all_input_nodes)
    return frozenset(seen)


def _plain(found: Any) -> Any:
    if isinstance(found, list | tuple):
        return [_plain(item) for item in found]
    if isinstance(found, int) and not isinstance(found, bool):
        return dim_of(found)
    return found
