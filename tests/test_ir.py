"""The builder of graphs: what it knows of shapes and dtypes is what onnxruntime gives, and it emits nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import CASES, SEED, Runner, compiled, rows_for, starting_feeds

from edgeff.export.ir import IR_VERSION, OPSET, Dim, Graph, Rows, Shape, Value, broadcast, size_of
from edgeff.manifest import Line

ROWS = 5
X = np.random.default_rng(0).uniform(0.5, 2.0, (ROWS, 2, 6)).astype(np.float32)


def started() -> tuple[Graph, Value]:
    graph = Graph()
    return graph, graph.input("x", (Rows(1), 2, 6))


def model_of(graph: Graph, **outputs: Value) -> onnx.ModelProto:
    for name, value in outputs.items():
        graph.output(name, value)
    return graph.to_model("test")


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def shape_at(shape: Shape, rows: int) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else dim.per_row * rows for dim in shape)


# --- shapes -----------------------------------------------------------------------------------------------------------

dims = st.sampled_from([1, 2, 3, Rows(1), Rows(2)])


@given(st.lists(st.lists(dims, max_size=4).map(tuple), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_shapes_broadcast_as_in_numpy_whatever_the_micro_batch(shapes: list[tuple[Dim, ...]]) -> None:
    rows = 1009  # no dimension is this by chance, and four such axes are an array that numpy can imagine
    try:
        expected = np.broadcast_shapes(*(shape_at(shape, rows) for shape in shapes))
    except ValueError:
        with pytest.raises(ValueError, match="shapes do not broadcast"):
            broadcast(*shapes)
    else:
        assert shape_at(broadcast(*shapes), rows) == expected


def test_the_micro_batch_is_not_taken_for_a_number_it_happens_to_be() -> None:
    with pytest.raises(ValueError, match="do not broadcast"):
        broadcast((Rows(1),), (5,))
    assert broadcast((Rows(3), 1), (7,)) == (Rows(3), 7)


@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from([None, 1, 4]), st.sampled_from(["float32", "bool"]))
def test_bytes_of_a_tensor_are_those_of_numpy(fixed: list[int], per_row: int | None, dtype: str) -> None:
    shape: Shape = (*fixed, *([] if per_row is None else [Rows(per_row)]))
    for rows in (1, 7):
        assert size_of(shape, dtype).at(rows) == np.zeros(shape_at(shape, rows), dtype).nbytes


def test_what_grows_with_the_micro_batch_is_told_from_what_does_not() -> None:
    assert size_of((Rows(2), 3), "int64") == Line(0, 48)
    assert size_of((2, 3), "int64") == Line(48, 0)
    assert size_of((), "float32") == Line(4, 0)
    assert [str(Rows(1)), str(Rows(12))] == ["N", "12*N"]


# --- every building stone against numpy -------------------------------------------------------------------------------

Emit = Callable[[Graph, Value], Value]
STONES: dict[str, tuple[Emit, Callable[[np.ndarray], np.ndarray]]] = {
    "arithmetic": (lambda g, x: (1 - x) * 2 / (x + 3) - x, lambda x: (1 - x) * 2 / (x + 3) - x),
    "arithmetic from the left": (lambda g, x: 2 * (1 / x) + (3 + x), lambda x: 2 * (1 / x) + (3 + x)),
    "powers": (lambda g, x: x**0.5 + x**2 + x**3, lambda x: x**0.5 + x**2 + x**3),
    "reshape": (lambda g, x: g.reshape(x, (Rows(1), 12)), lambda x: x.reshape(-1, 12)),
    "reshape into the rows": (lambda g, x: g.reshape(x, (Rows(2), 6)), lambda x: x.reshape(-1, 6)),
    "transpose": (lambda g, x: g.transpose(x, [2, 0, 1]), lambda x: x.transpose(2, 0, 1)),
    "sum": (lambda g, x: g.reduce("ReduceSum", x, [0, -1], keep=False), lambda x: x.sum((0, 2))),
    "mean": (lambda g, x: g.reduce("ReduceMean", x, [1], keep=True), lambda x: x.mean(1, keepdims=True)),
    "no axes": (lambda g, x: g.reduce("ReduceMax", x, [], keep=False), lambda x: x),
    "slice": (lambda g, x: g.slice(x, 2, 1, 6, 2), lambda x: x[:, :, 1:6:2]),
    "pad": (
        lambda g, x: g.pad(x, [0, 1, 0], [0, 0, 2], 7.0),
        lambda x: np.pad(x, ((0, 0), (1, 0), (0, 2)), constant_values=7.0),
    ),
    "concat": (lambda g, x: g.concat([x, x * 2, x], 1), lambda x: np.concatenate([x, x * 2, x], 1)),
    "expand": (lambda g, x: g.expand(g.slice(x, 2, 0, 1), (Rows(1), 2, 4)), lambda x: np.repeat(x[:, :, :1], 4, 2)),
    "expand to the rows": (
        lambda g, x: g.expand(g.constant([1.5], "float32"), (Rows(3), 2)),
        lambda x: np.full((3 * len(x), 2), 1.5, np.float32),
    ),
    "a number for each entry": (
        lambda g, x: g.filled(2.5, (Rows(2), 3), "float32"),
        lambda x: np.full((2 * len(x), 3), 2.5, np.float32),
    ),
    "the rows": (lambda g, x: g.rows(4), lambda x: np.array([4 * len(x)])),
    "cast": (lambda g, x: g.cast(x, "int64"), lambda x: x.astype(np.int64)),
    "compare": (lambda g, x: g.elementwise("Greater", x, g.constant(1, "float32"), dtype="bool"), lambda x: x > 1),
    "where": (
        lambda g, x: g.elementwise("Where", g.constant([True, False] * 3), x, x * 9),
        lambda x: np.where([True, False] * 3, x, x * 9),
    ),
}


@pytest.mark.parametrize("name", STONES)
def test_a_stone_gives_what_numpy_gives_in_the_shape_and_dtype_it_declares(name: str) -> None:
    emit, expect = STONES[name]
    graph, x = started()
    value = emit(graph, x)
    graph.output("kept", x)
    found = Runner(model_of(graph, y=value))({"x": X})["y"]
    np.testing.assert_allclose(found, expect(X), rtol=1e-6)
    assert (found.shape, found.dtype.name) == (shape_at(value.shape, ROWS), value.dtype)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean"])
def test_many_numbers_are_added_up_in_steps_that_keep_their_digits(operator: str, keep: bool) -> None:
    graph = Graph()
    x = graph.input("x", (Rows(1), 16, 120, 1000), "float32")
    value = graph.reduce(operator, x, [1, 2, 3], keep=keep)
    # All alike and near 1: what one float32 sum of two millions drops, it drops to the same side.
    given = np.full((2, 16, 120, 1000), 1.1, np.float32) + np.random.default_rng(0).random(
        (2, 16, 120, 1000), np.float32
    )
    found = Runner(model_of(graph, y=value))({"x": given})["y"]
    exact = (np.sum if operator == "ReduceSum" else np.mean)(given.astype(np.float64), axis=(1, 2, 3), keepdims=keep)
    np.testing.assert_allclose(found, exact, rtol=1e-6)  # in one step 4e-6
    assert [node.op_type for node in model_of(graph, y=value).graph.node].count(operator) == 2
    few = Graph()
    small = few.reduce(operator, few.input("x", (Rows(1), 8, 1024), "float32"), [0, 1, 2], keep=keep)
    assert [node.op_type for node in model_of(few, y=small).graph.node].count(operator) == 1


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_a_matrix_product_reads_transposed_operands_in_place(left: bool, right: bool) -> None:
    graph = Graph()
    a, b = graph.input("a", (3, Rows(1)) if left else (Rows(1), 3)), graph.input("b", (4, 3) if right else (3, 4))
    flipped = [graph.transpose(v, [1, 0]) if flip else v for v, flip in ((a, left), (b, right))]
    product = graph.gemm(flipped[0], flipped[1], graph.constant(np.arange(4, dtype=np.float32)), alpha=0.5)
    model = model_of(graph, y=product)
    assert operators(model) == ["Gemm"]
    draw = np.random.default_rng(0)
    feeds = {"a": draw.random((5, 3), np.float32), "b": draw.random((3, 4), np.float32)}
    expected = 0.5 * feeds["a"] @ feeds["b"] + np.arange(4)
    feeds = {"a": feeds["a"].T if left else feeds["a"], "b": feeds["b"].T if right else feeds["b"]}
    np.testing.assert_allclose(Runner(model)(feeds)["y"], expected, rtol=1e-6)
    assert shape_at(product.shape, 5) == (5, 4)


@pytest.mark.parametrize(
    "name", ["transformer", "embedding with padding", "max pool overlapping", "dropout", "conv 3d"]
)
def test_every_tensor_of_a_compiled_block_has_the_shape_and_dtype_declared(name: str) -> None:
    case = CASES[name]
    graphs = compiled(case.block(), input_dtype=case.input_dtype, dropout=case.dropout)
    model = graphs.models["step"]
    declared = [*model.graph.value_info, *model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(declared)
    run = Runner(model, optimized=False)
    for rows in (1, 4):
        x, y, row_weight = rows_for(case, rows)
        feeds = starting_feeds(graphs)
        found = run({**feeds, "x": x, "y": y, "row_weight": row_weight, "seed": np.int64(SEED)})
        assert len(found) > 40
        for value in declared:
            tensor = value.type.tensor_type
            factors = [(dim.dim_param.removesuffix("N").removesuffix("*") or "1", dim) for dim in tensor.shape.dim]
            shape = tuple(int(factor) * rows if dim.dim_param else dim.dim_value for factor, dim in factors)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            assert (value.name, found[value.name].shape, found[value.name].dtype) == (value.name, shape, dtype)


# --- nothing twice, nothing in vain -----------------------------------------------------------------------------------


def test_equal_nodes_and_equal_constants_are_one() -> None:
    graph, x = started()
    assert x * 2 + 1 == x * 2.0 + 1
    assert len(graph.nodes) == 2
    assert graph.constant([1, 2]) == graph.constant(np.array([1, 2]))
    assert graph.input("x", (9,)) == x


def test_nodes_and_constants_that_differ_in_one_thing_are_two() -> None:
    graph, x = started()
    assert graph.reduce("ReduceSum", x, [1], keep=True) != graph.reduce("ReduceSum", x, [1], keep=False)
    assert graph.cast(x, "int64") != graph.cast(x, "int32")
    assert graph.made(0.0, (Rows(1),), "float32") != graph.made(1.0, (Rows(1),), "float32")
    alike = [
        graph.constant(1),
        graph.constant(1.0),
        graph.constant(1, "float32"),
        graph.constant([1]),
        graph.constant([[1]]),
    ]
    assert len({value.name for value in alike}) == 5


def test_arithmetic_on_constants_is_done_beforehand() -> None:
    graph = Graph()
    three = graph.constant([1.0, 2.0], "float32") * 2 + 1
    assert graph.nodes == []
    np.testing.assert_array_equal(graph.constants[three.name], np.array([3, 5], np.float32))
    assert graph.constants[three.name].dtype == np.float32


@pytest.mark.parametrize(
    "formula", [lambda x: x + 0, lambda x: x - 0, lambda x: x * 1, lambda x: x / 1, lambda x: 1 * (0 + x)]
)
def test_what_changes_nothing_is_left_out(formula: Callable[[Value], Value]) -> None:
    graph, x = started()
    assert formula(x) is x
    assert graph.nodes == []


@pytest.mark.parametrize(
    "formula",
    [lambda x: 0 - x, lambda x: 1 / x, lambda x: x * 0, lambda x: x + x.graph.constant([[[[0.0]]]], "float32")],
)
def test_what_looks_neutral_and_is_not_is_kept(formula: Callable[[Value], Value]) -> None:
    graph, x = started()
    assert formula(x) != x
    assert len(graph.nodes) == 1


@pytest.mark.parametrize(
    ("emit", "expected"),
    [
        (lambda g, x: g.reshape(x, (Rows(1), 2, 6)), []),
        (lambda g, x: g.reshape(g.reshape(x, (Rows(2), 6)), (Rows(1), 12)), ["Reshape"]),
        (lambda g, x: g.reshape(g.reshape(x, (Rows(2), 6)), (Rows(1), 2, 6)), []),
        (lambda g, x: g.transpose(g.transpose(x, [1, 0, 2]), [2, 0, 1]), ["Transpose"]),
        (lambda g, x: g.transpose(g.transpose(x, [1, 2, 0]), [2, 0, 1]), []),
        (
            lambda g, x: g.expand(
                g.cast(g.concat([g.pad(g.slice(x, 1, 0, 2), [0] * 3, [0] * 3)], 0), "float32"), x.shape
            ),
            [],
        ),
    ],
)
def test_views_of_views_are_one_and_views_of_nothing_none(emit: Emit, expected: Sequence[str]) -> None:
    graph, x = started()
    value = emit(graph, x)
    model = model_of(graph, y=value + 1)
    assert operators(model) == [*expected, "Add"]


def test_a_composed_transpose_moves_the_axes_as_both_did() -> None:
    graph, x = started()
    value = graph.transpose(graph.transpose(x, [1, 0, 2]), [2, 0, 1])
    found = Runner(model_of(graph, y=value))({"x": X})["y"]
    np.testing.assert_array_equal(found, X.transpose(1, 0, 2).transpose(2, 0, 1))


def test_nodes_inputs_and_constants_that_no_output_needs_are_left_out() -> None:
    graph, x = started()
    unread = graph.input("unread", (3,))
    _ = unread + graph.constant([5.0, 6.0, 7.0], "float32")
    model = model_of(graph, y=x + 1)
    assert operators(model) == ["Add"]
    assert [value.name for value in model.graph.input] == ["x"]
    assert len(model.graph.initializer) == 1


def test_an_output_has_its_own_name_and_one_value_may_have_two() -> None:
    graph, x = started()
    doubled = x * 2
    model = model_of(graph, first=doubled, second=doubled, third=doubled + 1, same=x, seven=graph.constant(7.0))
    assert operators(model).count("Mul") == 1
    found = Runner(model)({"x": X})
    np.testing.assert_array_equal(found["first"], X * 2)
    np.testing.assert_array_equal(found["second"], X * 2)
    np.testing.assert_array_equal(found["third"], X * 2 + 1)
    np.testing.assert_array_equal(found["same"], X)
    assert found["seven"] == 7.0


def test_a_model_is_of_the_opset_that_is_promised_and_has_no_date() -> None:
    graph, x = started()
    model = model_of(graph, y=x + 1)
    assert (OPSET, IR_VERSION) == (17, 8)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    other, again = started()
    assert model_of(other, y=again + 1).SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


# --- dtypes and errors ------------------------------------------------------------------------------------------------


def test_a_number_in_a_formula_takes_the_dtype_of_the_tensor() -> None:
    graph, x = started()
    counts = graph.input("counts", (Rows(1),), "int64")
    assert (x * 0.1).dtype == "float32"
    assert (counts * 2).dtype == "int64"
    assert {array.dtype.name for array in graph.constants.values()} == {"float32", "int64"}


def test_a_fraction_is_not_cut_off_to_an_integer_in_silence() -> None:
    graph = Graph()
    counts = graph.input("counts", (Rows(1),), "int64")
    with pytest.raises(ValueError, match=r"0\.5 is not of dtype int64"):
        counts + 0.5
    assert graph.constants == {}


def test_a_reshape_with_the_batch_in_two_axes_is_refused() -> None:
    graph, x = started()
    with pytest.raises(ValueError, match="has the batch in two axes"):
        graph.reshape(x, (Rows(1), Rows(1)))


def test_an_operator_over_shapes_that_do_not_go_together_is_refused() -> None:
    graph, x = started()
    with pytest.raises(ValueError, match="do not broadcast"):
        x + graph.input("other", (Rows(1), 5))


def test_a_node_that_onnx_does_not_know_makes_no_model() -> None:
    graph, x = started()
    (value,) = graph.node("Reluu", [x], [(x.shape, x.dtype)])
    with pytest.raises(onnx.checker.ValidationError, match="Reluu"):
        model_of(graph, y=value)


def test_only_a_constant_of_one_element_counts_as_a_number() -> None:
    graph, x = started()
    assert graph.scalar_of(graph.constant([[2.5]])) == 2.5
    assert graph.scalar_of(graph.constant([1.0, 1.0])) is None
    assert graph.scalar_of(x) is None
