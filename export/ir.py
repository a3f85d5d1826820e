"""A small builder of ONNX graphs: values that know their shape, nodes emitted once.

Every dimension is a number or a multiple of the micro-batch. The builder shares equal nodes and equal constants as they
are emitted, so graphs come out lean without a pass that searches for duplicates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeff.manifest import ITEM_BYTES, Line

# So many numbers may be added up in one float32: the sum is then well inside the tolerance of `edgeff.export.check`.
ONE_SUM = 8192
OPSET = 17  # the newest that has every operator used here in one form on onnxruntime 1.17 and today's
IR_VERSION = 8

_ONNX_DTYPE = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int16": TensorProto.INT16,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


@dataclass(frozen=True)
class Rows:
    """A dimension that is a multiple of the micro-batch."""

    per_row: int

    def __str__(self) -> str:
        return "N" if self.per_row == 1 else f"{self.per_row}*N"


Dim = int | Rows
Shape = tuple[Dim, ...]


def _fixed_count(value: Value, axes: Sequence[int]) -> int:
    """How many numbers of one row some axes have."""
    return math.prod(dim for dim in (value.shape[axis] for axis in axes) if isinstance(dim, int))


def size_of(shape: Shape, dtype: str) -> Line:
    """Bytes of a tensor as a line in the micro-batch."""
    numbers = math.prod(dim if isinstance(dim, int) else dim.per_row for dim in shape) * ITEM_BYTES[dtype]
    if any(isinstance(dim, Rows) for dim in shape):
        return Line(0, numbers)
    return Line(numbers, 0)


def broadcast(*shapes: Shape) -> Shape:
    """The shape that numpy broadcasting gives.

    Raises:
        ValueError: The shapes do not go together.
    """
    rank = max(len(shape) for shape in shapes)
    out: list[Dim] = []
    for axis in range(rank):
        dims = {shape[axis - rank + len(shape)] for shape in shapes if axis - rank + len(shape) >= 0} - {1}
        if len(dims) > 1:
            raise ValueError(f"shapes do not broadcast: {shapes}")
        out.append(dims.pop() if dims else 1)
    return tuple(out)


@dataclass(frozen=True)
class Value:
    """A tensor in a graph. Arithmetic operators emit nodes, so a formula of `edgeff.optimizer` can be lowered as it is.

    Attributes:
        name: In the graph.
        shape: With the batch axis.
        dtype: numpy's name.
        graph: Where it lives.
    """

    name: str
    shape: Shape
    dtype: str
    graph: Graph = field(repr=False, compare=False)

    def _binary(self, operator: str, other: Value | float, *, swapped: bool = False) -> Value:
        right = other if isinstance(other, Value) else self.graph.constant(other, self.dtype)
        left, right = (right, self) if swapped else (self, right)
        return self.graph.elementwise(operator, left, right)

    def __add__(self, other: Value | float) -> Value:
        return self._binary("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._binary("Sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._binary("Mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._binary("Div", other)

    def __radd__(self, other: float) -> Value:
        return self._binary("Add", other, swapped=True)

    def __rsub__(self, other: float) -> Value:
        return self._binary("Sub", other, swapped=True)

    def __rmul__(self, other: float) -> Value:
        return self._binary("Mul", other, swapped=True)

    def __rtruediv__(self, other: float) -> Value:
        return self._binary("Div", other, swapped=True)

    def __pow__(self, exponent: float) -> Value:
        if exponent == 0.5:
            return self.graph.elementwise("Sqrt", self)
        if exponent == 2:
            return self * self
        return self._binary("Pow", exponent)


@dataclass
class Graph:
    """An ONNX graph under construction.

    Attributes:
        values: Every value by name.
        nodes: In the order of emission.
        constants: Initialisers by name.
        producers: The node that makes each value.
        fast: Operators take forms that need less time and more bytes, where they have any.
        inputs: Names, in order.
        outputs: Names, in order.
    """

    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    fast: bool = False
    _known: dict[tuple[Any, ...], tuple[Value, ...]] = field(default_factory=dict)

    def input(self, name: str, shape: Shape, dtype: str = "float32") -> Value:
        """Declare a graph input; asking twice gives the same value."""
        if name not in self.values:
            self.values[name] = Value(name, shape, dtype, self)
            self.inputs.append(name)
        return self.values[name]

    def constant(self, array: np.ndarray | Sequence[int] | float, dtype: str | None = None) -> Value:
        """A constant; equal constants are one.

        Raises:
            ValueError: A fraction, where `dtype` has none.
        """
        given = np.asarray(array)
        array = np.asarray(given if dtype is None else given.astype(dtype), order="C")
        if array.dtype.kind in "iu" and not np.array_equal(array, given):
            raise ValueError(f"{given} is not of dtype {array.dtype}")
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = array
            self.values[name] = Value(name, tuple(array.shape), array.dtype.name, self)
            self._known[key] = (self.values[name],)
        return self._known[key][0]

    def scalar_of(self, value: Value) -> float | None:
        """The number a value holds when it is a constant of one element, else None."""
        array = self.constants.get(value.name)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def node(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[tuple[Shape, str]],
        attributes: Mapping[str, Any] | None = None,
    ) -> tuple[Value, ...]:
        """Emit a node, or return the outputs of an equal one.

        Args:
            operator: ONNX operator of the default domain.
            inputs: Values; None for an optional input that is left out.
            outputs: Shape and dtype of each output.
            attributes: ONNX attributes.
        """
        names = [value.name if value is not None else "" for value in inputs]
        attributes = dict(attributes or {})
        key = (operator, tuple(names), repr(sorted(attributes.items())), len(outputs))
        if key not in self._known:
            made = tuple(
                Value(f"{operator.lower()}_{len(self.nodes)}{f'_{i}' if i else ''}", shape, dtype, self)
                for i, (shape, dtype) in enumerate(outputs)
            )
            self.values |= {value.name: value for value in made}
            self.nodes.append(
                helper.make_node(operator, names, [value.name for value in made], name=made[0].name, **attributes)
            )
            self.producers |= {value.name: self.nodes[-1] for value in made}
            self._known[key] = made
        return self._known[key]

    def elementwise(self, operator: str, *inputs: Value, dtype: str | None = None, **attributes: Any) -> Value:
        """Emit an element-by-element node with numpy broadcasting; constants are folded, neutral ones dropped."""
        shape = broadcast(*(value.shape for value in inputs))
        if operator in _NEUTRAL and len(inputs) == 2:
            left, right = inputs
            if operator in _FOLDED and left.name in self.constants and right.name in self.constants:
                return self.constant(_FOLDED[operator](self.constants[left.name], self.constants[right.name]))
            if self.scalar_of(right) == _NEUTRAL[operator] and left.shape == shape:
                return left
            if operator in ("Add", "Mul") and self.scalar_of(left) == _NEUTRAL[operator] and right.shape == shape:
                return right
            if operator == "Mul" and left.shape == right.shape:
                for tiled, other in ((left, right), (right, left)):
                    if tiled.name in self._tiles:
                        return self._times_tile(tiled, other)
        return self.node(operator, inputs, [(shape, dtype or inputs[-1].dtype)], attributes)[0]

    def tile(self, value: Value, window: Shape, shape: Shape) -> Value:
        """Repeat along axes of length 1, `window` long where it is not 1, and reshape.

        A product with the result does the repeating in passing, so that it is never laid out in full.
        """
        tiled = self.reshape(
            self.elementwise("Mul", value, self.constant(np.ones([int(str(size)) for size in window], value.dtype))),
            shape,
        )
        self._tiles[tiled.name] = (value, broadcast(value.shape, window))
        return tiled

    def _times_tile(self, tiled: Value, other: Value) -> Value:
        value, apart = self._tiles[tiled.name]
        return self.reshape(self.elementwise("Mul", value, self.reshape(other, apart)), tiled.shape)

    _tiles: dict[str, tuple[Value, Shape]] = field(default_factory=dict)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Reshape; at most one dimension may depend on the micro-batch."""
        if value.shape == shape:
            return value
        if sum(isinstance(dim, Rows) for dim in shape) > 1:
            raise ValueError(f"a reshape to {shape} has the batch in two axes")
        if value.name in self.constants:
            return self.constant(self.constants[value.name].reshape([dim for dim in shape if isinstance(dim, int)]))
        made_by = self.producers.get(value.name)
        if made_by is not None and made_by.op_type in _REDUCTIONS:
            reduced = self._reduction(made_by)
            if shape == tuple(dim for axis, dim in enumerate(reduced[1].shape) if axis not in reduced[2]):
                return self.reduce(*reduced, keep=False)
        target = self.constant(np.array([-1 if isinstance(dim, Rows) else dim for dim in shape], np.int64))
        source = self._reshape_source(value)
        return source if source.shape == shape else self.node("Reshape", [source, target], [(shape, value.dtype)])[0]

    def _reduction(self, node: onnx.NodeProto) -> tuple[str, Value, list[int]]:
        """The operator of a reduction, what it reduces, and along which axes."""
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        axes = attributes.get("axes") or [int(axis) for axis in self.constants[node.input[1]]]
        return node.op_type, self.values[node.input[0]], axes

    def _reshape_source(self, value: Value) -> Value:
        """Skip reshapes that only feed another reshape."""
        made_by = self.producers.get(value.name)
        if made_by is not None and made_by.op_type == "Reshape":
            return self.values[made_by.input[0]]
        return value

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Permute axes; two in a row become one, the identity none."""
        made_by = self.producers.get(value.name)
        if made_by is not None and made_by.op_type == "Transpose":
            first = list(made_by.attribute[0].ints)
            value, order = self.values[made_by.input[0]], [first[axis] for axis in order]
        if list(order) == list(range(len(order))):
            return value
        shape = tuple(value.shape[axis] for axis in order)
        return self.node("Transpose", [value], [(shape, value.dtype)], {"perm": list(order)})[0]

    def reduce(self, operator: str, value: Value, axes: Sequence[int], *, keep: bool) -> Value:
        """Reduce over axes (ReduceSum takes them as an input, the others as an attribute, at opset 17).

        Onnxruntime adds up in one float32: sums and means of many numbers are made in steps, to keep their digits.
        """
        axes = sorted(axis % len(value.shape) for axis in axes)
        if operator in ("ReduceSum", "ReduceMean") and len(axes) > 1 and _fixed_count(value, axes) > ONE_SUM:
            return self.reduce(operator, self.reduce(operator, value, axes[-1:], keep=keep), axes[:-1], keep=keep)
        shape = tuple(1 if axis in axes else dim for axis, dim in enumerate(value.shape) if keep or axis not in axes)
        if not axes:
            return value
        if operator == "ReduceSum":
            inputs = [value, self.constant(np.array(axes, np.int64))]
            return self.node(operator, inputs, [(shape, value.dtype)], {"keepdims": int(keep)})[0]
        return self.node(operator, [value], [(shape, value.dtype)], {"keepdims": int(keep), "axes": axes})[0]

    def output(self, name: str, value: Value) -> None:
        """Declare a graph output. The value keeps its own name inside; `to_model` renames it."""
        self.outputs.append(name)
        self._aliases[name] = value.name

    _aliases: dict[str, str] = field(default_factory=dict)

    def rows(self, per_row: int = 1) -> Value:
        """The micro-batch, or a multiple of it, as an int64 tensor of shape (1,)."""
        batched = next(v for v in map(self.values.__getitem__, self.inputs) if v.shape and v.shape[0] == Rows(1))
        rows = self.node("Shape", [batched], [((1,), "int64")], {"start": 0, "end": 1})[0]
        return self.elementwise("Mul", rows, self.constant(np.array([per_row], np.int64)))

    def shape_tensor(self, shape: Shape) -> Value:
        """A shape as an int64 tensor."""
        if all(isinstance(dim, int) for dim in shape):
            return self.constant(np.array(shape, np.int64))
        parts = [
            self.rows(dim.per_row) if isinstance(dim, Rows) else self.constant(np.array([dim], np.int64))
            for dim in shape
        ]
        if len(parts) == 1:
            return parts[0]
        return self.node("Concat", parts, [((len(shape),), "int64")], {"axis": 0})[0]

    def expand(self, value: Value, shape: Shape) -> Value:
        """Broadcast to a shape for real; only where no elementwise operator can do it in passing."""
        if value.shape == shape:
            return value
        return self.node("Expand", [value, self.shape_tensor(shape)], [(shape, value.dtype)])[0]

    def filled(self, number: float, shape: Shape, dtype: str) -> Value:
        """A tensor of one number."""
        numbers = [dim for dim in shape if isinstance(dim, int)]
        if len(numbers) == len(shape):
            return self.constant(np.full(numbers, number, dtype))
        return self.made(number, shape, dtype)

    def made(self, number: float, shape: Shape, dtype: str) -> Value:
        """A tensor of one number that the graph makes when it runs."""
        value = helper.make_tensor("value", _ONNX_DTYPE[dtype], [1], [number])
        return self.node("ConstantOfShape", [self.shape_tensor(shape)], [(shape, dtype)], {"value": value})[0]

    def slice(self, value: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """Cut along one axis of fixed length; bounds are already normalised."""
        length = value.shape[axis]
        if (start, stop, step) == (0, length, 1):
            return value
        shape = tuple(len(range(start, stop, step)) if a == axis else dim for a, dim in enumerate(value.shape))
        bounds = [self.constant(np.array([n], np.int64)) for n in (start, stop, axis, step)]
        return self.node("Slice", [value, *bounds], [(shape, value.dtype)])[0]

    def pad(self, value: Value, before: Sequence[int], after: Sequence[int], number: float = 0.0) -> Value:
        """Pad each axis with a number."""
        if not any(before) and not any(after):
            return value
        shape = tuple(
            dim + b + a if isinstance(dim, int) else dim for dim, b, a in zip(value.shape, before, after, strict=True)
        )
        pads = self.constant(np.array([*before, *after], np.int64))
        fill = self.constant(np.asarray(number, value.dtype))
        return self.node("Pad", [value, pads, fill], [(shape, value.dtype)])[0]

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Join along an axis of fixed length."""
        if len(values) == 1:
            return values[0]
        length = sum(dim for value in values if isinstance(dim := value.shape[axis], int))
        shape = tuple(length if a == axis else dim for a, dim in enumerate(values[0].shape))
        return self.node("Concat", list(values), [(shape, values[0].dtype)], {"axis": axis})[0]

    def gemm(self, left: Value, right: Value, bias: Value | None = None, **factors: float) -> Value:
        """Matrix product of two matrices (plus bias); transposed operands are read in place."""
        left, transpose_left = self._untransposed(left)
        right, transpose_right = self._untransposed(right)
        shape = (left.shape[1 if transpose_left else 0], right.shape[0 if transpose_right else 1])
        attributes = {"transA": int(transpose_left), "transB": int(transpose_right), **factors}
        inputs = [left, right] if bias is None else [left, right, bias]
        return self.node("Gemm", inputs, [(shape, left.dtype)], {k: v for k, v in attributes.items() if v})[0]

    def plus(self, total: Value, value: Value) -> Value:
        """A sum; where `value` is a matrix product that nothing else reads, one node makes the product and the sum."""
        made_by = self.producers.get(value.name)
        if made_by is None or made_by.op_type != "Gemm" or len(made_by.input) > 2 or total.shape != value.shape:
            return self.elementwise("Add", total, value)
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in made_by.attribute}
        inputs = [*(self.values[name] for name in made_by.input), total]
        return self.node("Gemm", inputs, [(value.shape, value.dtype)], attributes)[0]

    def product(self, value: Value) -> Value:
        """The matrix product that a value is a view of, or the value itself."""
        source = self._reshape_source(value)
        made_by = self.producers.get(source.name)
        return source if made_by is not None and made_by.op_type == "Gemm" else value

    def _untransposed(self, value: Value) -> tuple[Value, bool]:
        made_by = self.producers.get(value.name)
        if made_by is not None and made_by.op_type == "Transpose" and len(value.shape) == 2:
            return self.values[made_by.input[0]], True
        return value, False

    def cast(self, value: Value, dtype: str) -> Value:
        """Change the dtype."""
        if value.dtype == dtype:
            return value
        return self.node("Cast", [value], [(value.shape, dtype)], {"to": _ONNX_DTYPE[dtype]})[0]

    def live_nodes(self) -> list[onnx.NodeProto]:
        """The nodes that outputs need, in an order that can be run."""
        wanted = set(self._aliases.values())
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                wanted |= set(node.input)
                kept.append(node)
        return kept[::-1]

    def to_model(self, name: str) -> onnx.ModelProto:
        """The finished model: dead nodes gone, inputs that nothing reads left out, outputs under their own names."""
        nodes = _with_output_names(self.live_nodes(), self._aliases, set(self.inputs) | set(self.constants))
        used = {tensor for node in nodes for tensor in node.input}
        graph = helper.make_graph(
            nodes,
            name,
            [self._info(n, n) for n in self.inputs if n in used],
            [self._info(n, self._aliases[n]) for n in self.outputs],
            [numpy_helper.from_array(array, n) for n, array in self.constants.items() if n in used],
            value_info=[
                self._info(n, n) for node in nodes for n in node.output if n in self.values and n not in self.outputs
            ],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edgeff", ir_version=IR_VERSION
        )
        onnx.checker.check_model(model)
        return model

    def _info(self, name: str, value_name: str) -> onnx.ValueInfoProto:
        value = self.values[value_name]
        shape = [dim if isinstance(dim, int) else str(dim) for dim in value.shape]
        return helper.make_tensor_value_info(name, _ONNX_DTYPE[value.dtype], shape)


_REDUCTIONS = ("ReduceSum", "ReduceMean")
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_FOLDED: Mapping[str, Any] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


def _with_output_names(
    nodes: Iterable[onnx.NodeProto], aliases: Mapping[str, str], sources: set[str]
) -> list[onnx.NodeProto]:
    """Let the node that computes an output carry the output's name; a value with two names gets an Identity."""
    rename: dict[str, str] = {}
    extra: list[onnx.NodeProto] = []
    for output, value in aliases.items():
        if value in rename or value in sources:
            extra.append(helper.make_node("Identity", [rename.get(value, value)], [output], name=f"name_{output}"))
        else:
            rename[value] = output
    renamed = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            changed = [rename.get(name, name) for name in names]
            del names[:]
            names.extend(changed)
        renamed.append(copy)
    return renamed + extra
