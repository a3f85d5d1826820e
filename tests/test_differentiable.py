"""Graphs in operators that onnxruntime-training has gradients for: the same numbers, and refusals by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from layer_cases import Runner, difference
from onnx import TensorProto, helper, numpy_helper

from edgeff.errors import ExportError
from edgeff.export.differentiable import differentiable

ROWS = 4
PLAIN_ENGINE = "leave `--engine ort-training` out: the plain graphs train it on any onnxruntime"


def node(kind: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), list(outputs), **attributes)


def model_of(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int], constants: dict[str, Any] | None = None, *, rows: str = "N"
) -> onnx.ModelProto:
    """`t` is `x` times the trained `w`; `r`, which the nodes make, is summed to `loss`."""
    every = [node("Mul", ["x", "w"], "t"), *nodes, node("Mul", ["r", "r"], "rr")]
    every.append(node("ReduceSum", ["rr"], "loss", keepdims=0))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, *shape]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [1] * (len(shape) + 1)),
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in ("loss", "r")]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(every, "test", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def rewritten(model: onnx.ModelProto, *trained: str) -> onnx.ModelProto:
    found = differentiable(model, trained or ("w",), loss="loss", block="block7")
    onnx.checker.check_model(found)
    return found


def kinds(model: onnx.ModelProto) -> list[str]:
    return [one.op_type for one in model.graph.node]


def numbers(model: onnx.ModelProto, shape: Sequence[int], rows: int = ROWS) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    feeds = {
        "x": draw.uniform(0.5, 2.0, (rows, *shape)).astype(np.float32),
        "w": np.full([1] * (len(shape) + 1), 1.5, np.float32),
    }
    return Runner(model, optimized=False)(feeds)


def assert_same_numbers(before: onnx.ModelProto, after: onnx.ModelProto, shape: Sequence[int], rows: int) -> None:
    expected, found = (numbers(model, shape, rows) for model in (before, after))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert difference(found[name], value) < 1e-5, name


def pool(**attributes: Any) -> onnx.NodeProto:
    return node("AveragePool", ["t"], "r", **attributes)


ONES, ZEROS = np.ones(6, np.float32), np.zeros(6, np.float32)
UNIT = {"scale": ONES, "shift": ZEROS}


def layer_norm(axis: int) -> onnx.NodeProto:
    return node("LayerNormalization", ["t", "scale", "shift"], "r", axis=axis, epsilon=1e-3)


SCALES = {"scale": np.arange(1, 13, dtype=np.float32), "shift": np.linspace(-1, 1, 12, dtype=np.float32)}
# The nodes before, the shape of a row, constants, and the operators that take their place.
SAME: dict[str, tuple[onnx.NodeProto, tuple[int, ...], dict[str, Any], list[str]]] = {
    "pool of a signal": (pool(kernel_shape=[4], strides=[4]), (3, 8), {}, ["Reshape", "ReduceMean"]),
    "pool of an image": (pool(kernel_shape=[2, 3], strides=[2, 3]), (3, 4, 9), {}, ["Reshape", "ReduceMean"]),
    "pool of a volume": (pool(kernel_shape=[2, 1, 3], strides=[2, 1, 3]), (2, 4, 3, 6), {}, ["Reshape", "ReduceMean"]),
    "pool of everything": (pool(kernel_shape=[5, 4], strides=[5, 4]), (2, 5, 4), {}, ["Reshape", "ReduceMean"]),
    "pool without pads": (
        pool(kernel_shape=[2], strides=[2], pads=[0, 0], ceil_mode=1, count_include_pad=1),
        (2, 6),
        {},
        ["Reshape", "ReduceMean"],
    ),
    "instance norm": (
        node("InstanceNormalization", ["t", "scale", "shift"], "r", epsilon=1e-3),
        (6, 20),
        UNIT,
        ["LayerNormalization"],
    ),
    "layer norm of the last axis": (layer_norm(2), (5, 12), SCALES, ["LayerNormalization"]),
    "layer norm of a whole row": (
        layer_norm(1),
        (3, 4),
        {name: value.reshape(3, 4) for name, value in SCALES.items()},
        ["LayerNormalization"],
    ),
    "sum of squares": (node("ReduceSumSquare", ["t"], "r", axes=[1, 2], keepdims=1), (3, 4), {}, ["Mul", "ReduceSum"]),
    "sum of squares without its axis": (
        node("ReduceSumSquare", ["t"], "r", axes=[-1], keepdims=0),
        (3, 4),
        {},
        ["Mul", "ReduceSum"],
    ),
    "sum of squares as it is written by default": (
        node("ReduceSumSquare", ["t"], "r", axes=[1]),
        (3, 4),
        {},
        ["Mul", "ReduceSum"],
    ),
    "reciprocal": (node("Reciprocal", ["t"], "r"), (3, 4), {}, ["Div"]),
}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("case", SAME)
def test_what_takes_an_operators_place_gives_the_same_numbers(case: str, rows: int) -> None:
    before, shape, constants, operators = SAME[case]
    model = model_of([before], shape, constants)
    after = rewritten(model)
    assert kinds(after) == ["Mul", *operators, "Mul", "ReduceSum"]
    assert_same_numbers(model, after, shape, rows)


@pytest.mark.parametrize("case", ["layer norm of the last axis", "sum of squares", "instance norm"])
def test_rows_may_be_several_to_each_of_the_batch(case: str) -> None:
    before, shape, constants, _ = SAME[case]
    model = model_of([before], shape, constants, rows="7*N")
    after = rewritten(model)
    assert_same_numbers(model, after, shape, 14)
    new = {value.name for value in after.graph.value_info} - {value.name for value in model.graph.value_info}
    dims = [value.type.tensor_type.shape.dim[0].dim_param for value in after.graph.value_info if value.name in new]
    assert dims == ["7*N"] * len(new) != []


@pytest.mark.parametrize(
    ("case", "axes"), [("layer norm of the last axis", (2,)), ("layer norm of a whole row", (1, 2))]
)
def test_a_layer_norm_gives_mean_and_deviation_to_its_gradient(case: str, axes: tuple[int, ...]) -> None:
    before, shape, constants, _ = SAME[case]
    after = rewritten(model_of([before], shape, constants))
    norm = next(one for one in after.graph.node if one.op_type == "LayerNormalization")
    mean, deviation = norm.output[1:]
    described = {value.name: value for value in after.graph.value_info}
    for name in ("t", mean, deviation):
        after.graph.output.append(onnx.ValueInfoProto(name=name))
    found = numbers(after, shape)
    t = found["t"].astype(np.float64)
    np.testing.assert_allclose(found[mean], t.mean(axes, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(found[deviation], 1 / np.sqrt(t.var(axes, keepdims=True) + 1e-3), rtol=1e-5)
    for name in (mean, deviation):
        dims = [dim.dim_value or dim.dim_param for dim in described[name].type.tensor_type.shape.dim]
        assert dims == ["N", *found[name].shape[1:]]


def test_several_rewritten_nodes_do_not_get_in_each_others_way() -> None:
    nodes = [
        node("AveragePool", ["t"], "a", kernel_shape=[2], strides=[2]),
        node("Reciprocal", ["a"], "b"),
        node("AveragePool", ["b"], "c", kernel_shape=[3], strides=[3]),
        node("Reciprocal", ["c"], "r"),
    ]
    model = model_of(nodes, (2, 12))
    after = rewritten(model)
    names = [name for one in after.graph.node for name in one.output]
    assert len(names) == len(set(names))
    assert {"AveragePool", "Reciprocal"}.isdisjoint(kinds(after))
    assert_same_numbers(model, after, (2, 12), ROWS)


def test_the_model_that_is_given_stays_as_it_is() -> None:
    model = model_of([pool(kernel_shape=[2], strides=[2])], (2, 6))
    before = model.SerializeToString()
    rewritten(model)
    assert model.SerializeToString() == before


POOL_REFUSED = "`AveragePool` with windows that overlap, are padded or leave a rest"
NORM_REFUSED = "`InstanceNormalization` with a scale, or over more than one axis"


def instance_norm(scale: str = "scale", shift: str = "shift") -> onnx.NodeProto:
    return node("InstanceNormalization", ["t", scale, shift], "r", epsilon=1e-3)


REFUSED: dict[str, tuple[onnx.NodeProto, tuple[int, ...], dict[str, Any], str]] = {
    "windows that overlap": (pool(kernel_shape=[3], strides=[1]), (2, 9), {}, POOL_REFUSED),
    "windows that overlap along one axis": (
        pool(kernel_shape=[2, 2], strides=[2, 1]),
        (2, 4, 4),
        {},
        POOL_REFUSED,
    ),
    "windows with gaps": (pool(kernel_shape=[2], strides=[3]), (2, 9), {}, POOL_REFUSED),
    "windows one by one": (pool(kernel_shape=[2]), (2, 9), {}, POOL_REFUSED),
    "padded windows": (pool(kernel_shape=[2], strides=[2], pads=[1, 1]), (2, 8), {}, POOL_REFUSED),
    "windows that leave a rest": (pool(kernel_shape=[2], strides=[2]), (2, 9), {}, POOL_REFUSED),
    "windows that leave a rest along one axis": (
        pool(kernel_shape=[2, 2], strides=[2, 2]),
        (2, 4, 5),
        {},
        POOL_REFUSED,
    ),
    "a scale": (instance_norm(), (6, 5), UNIT | {"scale": 2 * ONES}, NORM_REFUSED),
    "a shift": (instance_norm(), (6, 5), UNIT | {"shift": ZEROS + 1}, NORM_REFUSED),
    "maps": (instance_norm(), (6, 5, 4), UNIT, NORM_REFUSED),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_form_that_no_rule_covers_is_refused_by_block_and_operator(case: str) -> None:
    before, shape, constants, what = REFUSED[case]
    with pytest.raises(ExportError) as refused:
        rewritten(model_of([before], shape, constants))
    assert str(refused.value) == f"block `block7`: onnxruntime-training has no gradient for {what}"
    assert refused.value.hint == PLAIN_ENGINE


def test_a_scale_that_is_computed_is_refused() -> None:
    nodes = [node("Identity", ["scale"], "computed"), instance_norm("computed")]
    with pytest.raises(ExportError, match="`InstanceNormalization` with a scale"):
        rewritten(model_of(nodes, (6, 5), UNIT))


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_depends_on_nothing_trained_is_left_alone(case: str) -> None:
    before, shape, constants, _ = REFUSED[case]
    fixed = onnx.NodeProto()
    fixed.CopyFrom(before)
    fixed.input[0], fixed.output[0] = "x", "f"
    model = model_of([fixed, node("Relu", ["t"], "r")], shape, constants)
    assert list(rewritten(model).graph.node) == list(model.graph.node)


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_the_loss_does_not_depend_on_is_left_alone(case: str) -> None:
    before, shape, constants, _ = REFUSED[case]
    passed_on = onnx.NodeProto()
    passed_on.CopyFrom(before)
    passed_on.output[0] = "handover"
    model = model_of([node("Relu", ["t"], "r"), passed_on], shape, constants)
    assert list(rewritten(model).graph.node) == list(model.graph.node)


def test_other_operators_are_left_alone() -> None:
    model = model_of([node("Sigmoid", ["t"], "r")], (2, 6))
    assert list(rewritten(model).graph.node) == list(model.graph.node)


def test_a_gradient_of_an_input_counts_where_it_is_asked_for() -> None:
    model = model_of([pool(kernel_shape=[2], strides=[2])], (2, 6))
    assert "AveragePool" not in kinds(rewritten(model, "x"))
    assert "AveragePool" in kinds(rewritten(model, "nothing"))
