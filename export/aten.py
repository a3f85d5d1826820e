"""Translations of elementwise, reduction, shape and matrix operators."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

from edgeff.export.ir import Rows, Value, broadcast
from edgeff.export.lowering import Call, Expanded, Filled, Lowered, translates

aten = torch.ops.aten

# --- elementwise ------------------------------------------------------------------------------------------------------

_UNARY = {
    aten.relu.default: "Relu",
    aten.sigmoid.default: "Sigmoid",
    aten.tanh.default: "Tanh",
    aten.exp.default: "Exp",
    aten.log.default: "Log",
    aten.sqrt.default: "Sqrt",
    aten.neg.default: "Neg",
    aten.abs.default: "Abs",
    aten.erf.default: "Erf",
    aten.sin.default: "Sin",
    aten.cos.default: "Cos",
    aten.floor.default: "Floor",
    aten.ceil.default: "Ceil",
    aten.sign.default: "Sign",
    aten.reciprocal.default: "Reciprocal",
    aten.logical_not.default: "Not",
    aten.bitwise_not.default: "Not",
}

_FOLDS = {"Neg": lambda number: -number, "Exp": math.exp, "Sqrt": math.sqrt}


@translates(*_UNARY)
def _unary(call: Call) -> Lowered:
    operator = _UNARY[call.target]
    operand = call.lowered(0)
    if isinstance(operand, Filled) and operator in _FOLDS:
        return Filled(_FOLDS[operator](operand.number), operand.shape, operand.dtype)
    if isinstance(operand, Expanded):
        return Expanded(call.graph.elementwise(operator, operand.value), operand.shape)
    return call.graph.elementwise(operator, call.tensor(0), dtype=call.dtype)


@translates(aten.rsqrt.default)
def _rsqrt(call: Call) -> Lowered:
    return call.graph.elementwise("Reciprocal", call.graph.elementwise("Sqrt", call.tensor(0)))


@translates(aten.log1p.default)
def _log1p(call: Call) -> Lowered:
    return call.graph.elementwise("Log", call.tensor(0) + 1.0)


@translates(aten.expm1.default)
def _expm1(call: Call) -> Lowered:
    return call.graph.elementwise("Exp", call.tensor(0)) - 1.0


@translates(aten.leaky_relu.default)
def _leaky_relu(call: Call) -> Lowered:
    slope = call.argument(1, "negative_slope", 0.01)
    return call.graph.elementwise("LeakyRelu", call.tensor(0), alpha=float(slope))


@translates(aten.elu.default)
def _elu(call: Call) -> Lowered:
    alpha, scale, input_scale = (float(call.argument(i, name, 1.0)) for i, name in _ELU_ARGUMENTS)
    if input_scale != 1.0:
        raise ValueError("an ELU with `input_scale` is not supported")
    return call.graph.elementwise("Elu", call.tensor(0), alpha=alpha) * scale


_ELU_ARGUMENTS = ((1, "alpha"), (2, "scale"), (3, "input_scale"))


@translates(aten.gelu.default)
def _gelu(call: Call) -> Lowered:
    x = call.tensor(0)
    if call.argument(1, "approximate", "none") == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)
        return x * 0.5 * (call.graph.elementwise("Tanh", inner) + 1.0)
    return x * ((call.graph.elementwise("Erf", x * math.sqrt(0.5)) + 1.0) * 0.5)


@translates(aten.threshold_backward.default)
def _threshold_backward(call: Call) -> Lowered:
    # Not as Where, which makes two more tensors for itself.
    passed = call.graph.elementwise("Greater", call.tensor(1), call.loose(2), dtype="bool")
    return call.elementwise("Mul", call.loose(0), call.graph.cast(passed, call.dtype))


_BINARY = {
    aten.add.Tensor: "Add",
    aten.add.Scalar: "Add",
    aten.sub.Tensor: "Sub",
    aten.sub.Scalar: "Sub",
    aten.mul.Tensor: "Mul",
    aten.mul.Scalar: "Mul",
    aten.div.Tensor: "Div",
    aten.div.Scalar: "Div",
    aten.pow.Tensor_Scalar: "Pow",
    aten.pow.Tensor_Tensor: "Pow",
    aten.maximum.default: "Max",
    aten.minimum.default: "Min",
    aten.remainder.Scalar: "Mod",
    aten.remainder.Tensor: "Mod",
}


@translates(*_BINARY)
def _binary(call: Call) -> Lowered:
    operator = _BINARY[call.target]
    left, right = call.loose(0, call.dtype), call.loose(1, call.dtype)
    alpha: Any = call.node.kwargs.get("alpha", 1)
    if alpha != 1:
        right = right * float(alpha)
    smallest = broadcast(left.shape, right.shape)
    power = call.graph.scalar_of(right) if operator == "Pow" else None
    if power is not None and power in (0.5, 2.0):
        result = left**power
    elif power == 1.0:
        result = left
    elif operator == "Mod" and call.dtype.startswith("float"):
        raise ValueError("a remainder of floating-point numbers is not supported")
    else:
        result = call.graph.elementwise(operator, left, right, dtype=call.dtype)
    return result if smallest == call.shape else Expanded(result, call.shape)


_COMPARE: dict[Any, tuple[str, bool]] = {
    aten.eq.Tensor: ("Equal", False),
    aten.eq.Scalar: ("Equal", False),
    aten.ne.Tensor: ("Equal", True),
    aten.ne.Scalar: ("Equal", True),
    aten.gt.Tensor: ("Greater", False),
    aten.gt.Scalar: ("Greater", False),
    aten.ge.Tensor: ("GreaterOrEqual", False),
    aten.ge.Scalar: ("GreaterOrEqual", False),
    aten.lt.Tensor: ("Less", False),
    aten.lt.Scalar: ("Less", False),
    aten.le.Tensor: ("LessOrEqual", False),
    aten.le.Scalar: ("LessOrEqual", False),
}


@translates(*_COMPARE)
def _compare(call: Call) -> Lowered:
    operator, inverted = _COMPARE[call.target]
    dtype = _tensor_dtype(call)
    result = call.elementwise(operator, call.loose(0, dtype), call.loose(1, dtype), dtype="bool")
    return call.graph.elementwise("Not", result) if inverted else result


def _tensor_dtype(call: Call) -> str:
    """What two operands of a comparison are compared as."""
    found = [
        lowered.dtype if isinstance(lowered, Value | Filled) else lowered.value.dtype
        for position in range(2)
        if isinstance(lowered := call.lowered(position), Value | Filled | Expanded)
    ]
    scalars = [argument for argument in call.arguments[:2] if isinstance(argument, float)]
    if scalars and not found[0].startswith("float"):
        return "float32"
    return str(np.result_type(*found))


@translates(aten.logical_and.default, aten.logical_or.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor)
def _logical(call: Call) -> Lowered:
    if call.dtype != "bool":
        raise ValueError("bit operations on numbers are not supported")
    operator = "And" if "and" in str(call.target) else "Or"
    return call.elementwise(operator, call.loose(0, "bool"), call.loose(1, "bool"))


@translates(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(call: Call) -> Lowered:
    return call.elementwise("Where", call.loose(0, "bool"), call.loose(1, call.dtype), call.loose(2, call.dtype))


@translates(aten.clamp.default, aten.hardtanh.default)
def _clamp(call: Call) -> Lowered:
    x = call.graph.cast(call.tensor(0), call.dtype)  # integers become float32 where a limit is a fraction
    low, high = call.argument(1, "min"), call.argument(2, "max")
    limits = [None if limit is None else call.graph.constant(limit, x.dtype) for limit in (low, high)]
    return call.graph.node("Clip", [x, *limits], [(x.shape, x.dtype)])[0]


@translates(aten._to_copy.default)
def _to_copy(call: Call) -> Lowered:
    operand = call.lowered(0)
    if isinstance(operand, Filled):
        return Filled(operand.number, operand.shape, call.dtype)
    return call.graph.cast(call.tensor(0), call.dtype)


@translates(
    aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default, aten.contiguous.default
)
def _same(call: Call) -> Lowered:
    return call.lowered(0)


@translates(aten.copy.default)
def _copy(call: Call) -> Lowered:
    value = call.graph.cast(call.loose(1), call.dtype)
    return value if value.shape == call.shape else Expanded(value, call.shape)


# --- constants --------------------------------------------------------------------------------------------------------


@translates(aten.full.default, aten.full_like.default, aten.new_full.default)
def _full(call: Call) -> Lowered:
    return Filled(float(call.arguments[2 if "new_full" in str(call.target) else 1]), call.shape, call.dtype)


@translates(aten.scalar_tensor.default)
def _scalar_tensor(call: Call) -> Lowered:
    return Filled(float(call.arguments[0]), (), call.dtype)


@translates(
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    # Nothing may read what an empty tensor holds, so zeros do.
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_permuted.default,
    aten.new_empty.default,
)
def _zeros(call: Call) -> Lowered:
    return Filled(0.0, call.shape, call.dtype)


@translates(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def _ones(call: Call) -> Lowered:
    return Filled(1.0, call.shape, call.dtype)


@translates(aten.arange.start_step, aten.arange.default, aten.arange.start)
def _arange(call: Call) -> Lowered:
    (length,) = call.shape
    if isinstance(length, Rows):
        one = call.graph.constant(1, "int64")
        stop = call.graph.node("Squeeze", [call.graph.rows(length.per_row)], [((), "int64")])[0]
        counted = call.graph.node("Range", [call.graph.constant(0, "int64"), stop, one], [((length,), "int64")])[0]
        return call.graph.cast(counted, call.dtype)
    only_stop = "arange.default" in str(call.target) or call.target is aten.arange.default
    start = 0 if only_stop else call.argument(0)
    step = call.argument(2, "step", 1) if call.target is aten.arange.start_step else 1
    return call.graph.constant(start + step * np.arange(length), call.dtype)


# --- reductions -------------------------------------------------------------------------------------------------------

_REDUCE = {
    aten.sum.default: "ReduceSum",
    aten.sum.dim_IntList: "ReduceSum",
    aten.mean.default: "ReduceMean",
    aten.mean.dim: "ReduceMean",
    aten.amax.default: "ReduceMax",
    aten.amin.default: "ReduceMin",
}


@translates(*_REDUCE)
def _reduce(call: Call) -> Lowered:
    x = call.tensor(0)
    axes = call.argument(1, "dim") or list(range(len(x.shape)))
    axes = [axes] if isinstance(axes, int) else axes
    x = call.graph.cast(x, call.dtype)
    return call.graph.reduce(_REDUCE[call.target], x, axes, keep=bool(call.argument(2, "keepdim", False)))


@translates(aten.argmax.default)
def _argmax(call: Call) -> Lowered:
    axis, keep = call.argument(1, "dim"), bool(call.argument(2, "keepdim", False))
    if axis is None:
        raise ValueError("argmax over all axes is not supported")
    return call.graph.node("ArgMax", [call.tensor(0)], [(call.shape, "int64")], {"axis": axis, "keepdims": int(keep)})[
        0
    ]


@translates(aten._softmax.default, aten._safe_softmax.default)
def _softmax(call: Call) -> Lowered:
    x = call.tensor(0)
    return call.graph.node("Softmax", [x], [(x.shape, x.dtype)], {"axis": call.argument(1)})[0]


@translates(aten._log_softmax.default)
def _log_softmax(call: Call) -> Lowered:
    x = call.tensor(0)
    return call.graph.node("LogSoftmax", [x], [(x.shape, x.dtype)], {"axis": call.argument(1)})[0]


# --- matrices ---------------------------------------------------------------------------------------------------------


@translates(aten.mm.default)
def _mm(call: Call) -> Lowered:
    return call.graph.gemm(call.tensor(0), call.tensor(1))


@translates(aten.addmm.default)
def _addmm(call: Call) -> Lowered:
    factors: dict[str, Any] = {"alpha": call.node.kwargs.get("alpha", 1.0), "beta": call.node.kwargs.get("beta", 1.0)}
    changed = {name: float(factor) for name, factor in factors.items() if factor != 1}
    return call.graph.gemm(call.tensor(1), call.tensor(2), call.loose(0), **changed)


@translates(aten.bmm.default)
def _bmm(call: Call) -> Lowered:
    return call.graph.node("MatMul", [call.tensor(0), call.tensor(1)], [(call.shape, call.dtype)])[0]


# --- shapes -----------------------------------------------------------------------------------------------------------


@translates(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
)
def _reshape(call: Call) -> Lowered:
    operand = call.lowered(0)
    if isinstance(operand, Filled):
        return Filled(operand.number, call.shape, operand.dtype)
    if isinstance(operand, Expanded) and all(dim == 1 for dim in operand.value.shape):
        return Expanded(call.graph.reshape(operand.value, ()), call.shape)
    return call.graph.reshape(call.tensor(0), call.shape)


@translates(aten.permute.default)
def _permute(call: Call) -> Lowered:
    rank = len(call.shape)
    return call.graph.transpose(call.tensor(0), [axis % rank for axis in call.argument(1)])


@translates(aten.t.default)
def _t(call: Call) -> Lowered:
    return call.graph.transpose(call.tensor(0), list(range(len(call.shape)))[::-1])


@translates(aten.transpose.int)
def _transpose(call: Call) -> Lowered:
    order = list(range(len(call.shape)))
    first, second = call.argument(1) % len(order), call.argument(2) % len(order)
    order[first], order[second] = order[second], order[first]
    return call.graph.transpose(call.tensor(0), order)


@translates(aten.expand.default)
def _expand(call: Call) -> Lowered:
    operand = call.lowered(0)
    if isinstance(operand, Filled):
        return Filled(operand.number, call.shape, operand.dtype)
    value = operand.value if isinstance(operand, Expanded) else call.tensor(0)
    missing = len(call.shape) - len(value.shape)
    value = call.graph.reshape(value, (*(1 for _ in range(missing)), *value.shape))
    return value if value.shape == call.shape else Expanded(value, call.shape)


@translates(aten.repeat.default)
def _repeat(call: Call) -> Lowered:
    x, times = call.tensor(0), call.argument(1)
    if not all(isinstance(count, int) for count in times):
        raise ValueError("a tensor cannot be repeated once per row")
    x = call.graph.reshape(x, (*(1 for _ in range(len(times) - len(x.shape))), *x.shape))
    if all(count == 1 for count in times):
        return x
    counts = call.graph.constant(np.array(times, np.int64))
    return call.graph.node("Tile", [x, counts], [(call.shape, call.dtype)])[0]


@translates(aten.slice.Tensor)
def _slice(call: Call) -> Lowered:
    operand = call.lowered(0)
    if isinstance(operand, Filled):
        return Filled(operand.number, call.shape, operand.dtype)
    x = call.tensor(0)
    if x.shape == call.shape:
        return x
    axis = (call.argument(1, "dim", 0) or 0) % len(x.shape)
    first, last, step = call.argument(2, "start"), call.argument(3, "end"), call.argument(4, "step", 1)
    start, stop, step = _bounds(x, axis, first, last, step)
    return call.graph.slice(x, axis, start, stop, step)


def _bounds(x: Value, axis: int, start: int | None, stop: int | None, step: int) -> tuple[int, int, int]:
    length = x.shape[axis]
    if not isinstance(length, int):
        raise ValueError("the rows of a batch cannot be cut apart")
    return (*slice(start, stop).indices(length)[:2], step)


@translates(aten.select.int)
def _select(call: Call) -> Lowered:
    x = call.tensor(0)
    axis = call.argument(1) % len(x.shape)
    length = x.shape[axis]
    if not isinstance(length, int):
        raise ValueError("the rows of a batch cannot be cut apart")
    index = call.argument(2) % length
    return call.graph.reshape(call.graph.slice(x, axis, index, index + 1), call.shape)


@translates(aten.select_backward.default)
def _select_backward(call: Call) -> Lowered:
    axis = call.argument(2) % len(call.shape)
    length = call.shape[axis]
    if not isinstance(length, int):
        raise ValueError("the rows of a batch cannot be cut apart")
    index = call.argument(3) % length
    kept = tuple(1 if a == axis else dim for a, dim in enumerate(call.shape))
    before = [index if a == axis else 0 for a in range(len(kept))]
    after = [length - 1 - index if a == axis else 0 for a in range(len(kept))]
    return call.graph.pad(call.graph.reshape(call.tensor(0), kept), before, after)


@translates(aten.slice_backward.default)
def _slice_backward(call: Call) -> Lowered:
    gradient = call.tensor(0)
    if gradient.shape == call.shape:
        return gradient
    axis = call.argument(2) % len(call.shape)
    length, kept, step = call.shape[axis], gradient.shape[axis], call.argument(5)
    if not isinstance(length, int) or not isinstance(kept, int):
        raise ValueError("the rows of a batch cannot be cut apart")
    start = slice(call.argument(3), call.argument(4)).indices(length)[0]
    gradient = _apart(call, gradient, axis, step)
    before = [start if a == axis else 0 for a in range(len(call.shape))]
    after = [length - start - ((kept - 1) * step + 1) if a == axis else 0 for a in range(len(call.shape))]
    return call.graph.pad(gradient, before, after)


def _apart(call: Call, value: Value, axis: int, step: int) -> Value:
    """Put `step - 1` zeros between the entries along an axis."""
    length = value.shape[axis]
    if step == 1 or not isinstance(length, int):
        return value
    split = (*value.shape[: axis + 1], 1, *value.shape[axis + 1 :])
    after = [step - 1 if a == axis + 1 else 0 for a in range(len(split))]
    spread = call.graph.pad(call.graph.reshape(value, split), [0] * len(split), after)
    joined = call.graph.reshape(spread, (*value.shape[:axis], length * step, *value.shape[axis + 1 :]))
    return call.graph.slice(joined, axis, 0, (length - 1) * step + 1)


@translates(aten.constant_pad_nd.default)
def _constant_pad(call: Call) -> Lowered:
    x, pads = call.tensor(0), call.argument(1)
    pairs = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)][::-1]
    pairs = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs
    if any(isinstance(dim, Rows) and any(pair) for dim, pair in zip(x.shape, pairs, strict=True)):
        raise ValueError("the rows of a batch cannot be padded")
    for axis, pair in enumerate(pairs):  # a negative pad cuts
        length = x.shape[axis]
        if min(pair) < 0 and isinstance(length, int):
            x = call.graph.slice(x, axis, max(0, -pair[0]), length - max(0, -pair[1]))
    before, after = [max(0, a) for a, _ in pairs], [max(0, b) for _, b in pairs]
    return call.graph.pad(x, before, after, float(call.argument(2, "value", 0.0)))


@translates(aten.cat.default)
def _cat(call: Call) -> Lowered:
    values = [value for value in call.tensors(0) if value.shape != (0,)]
    axis = (call.argument(1, "dim", 0) or 0) % len(call.shape)
    if any(isinstance(value.shape[axis], Rows) for value in values):
        raise ValueError("batches cannot be joined")
    return call.graph.concat(values, axis)


@translates(aten.split_with_sizes.default)
def _split(call: Call) -> Lowered:
    x, sizes = call.tensor(0), call.argument(1)
    axis = (call.argument(2, "dim", 0) or 0) % len(x.shape)
    starts = np.cumsum([0, *sizes])
    return tuple(call.graph.slice(x, axis, int(start), int(stop)) for start, stop in itertools.pairwise(starts))


@translates(aten.gather.default)
def _gather(call: Call) -> Lowered:
    return call.graph.node(
        "GatherElements", [call.tensor(0), call.tensor(2)], [(call.shape, call.dtype)], {"axis": call.argument(1)}
    )[0]


@translates(aten.scatter_add.default)
def _scatter_add(call: Call) -> Lowered:
    attributes = {"axis": call.argument(1), "reduction": "add"}
    operands = [call.tensor(0), call.tensor(2), call.tensor(3)]
    return call.graph.node("ScatterElements", operands, [(call.shape, call.dtype)], attributes)[0]


@translates(aten.index_select.default)
def _index_select(call: Call) -> Lowered:
    return call.graph.node(
        "Gather", [call.tensor(0), call.tensor(2)], [(call.shape, call.dtype)], {"axis": call.argument(1)}
    )[0]
