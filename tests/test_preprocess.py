"""Preprocessing: the steps do what they say, to the same bits as ONNX, and fit a data set to a model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.manifest import ITEM_BYTES, TensorSpec
from edgeff.preprocess import Preprocessing, fit_preprocessing, layout_steps
from edgeff.steps import row_after

Step = Mapping[str, Any]


def preprocessing(shape: Sequence[int], dtype: str, *steps: Step) -> Preprocessing:
    spec = TensorSpec("x", tuple(shape), dtype)
    after, after_dtype = row_after(spec, steps)
    return Preprocessing(spec, steps, TensorSpec("features", after, after_dtype)).validate()


def by_hand(x: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """The same, row by row and value by value, in another way than the module computes it."""
    for step in steps:
        if step["kind"] == "affine":
            out = np.empty(x.shape, np.float32)
            for place in np.ndindex(x.shape):
                key = place[step["axis"] + 1] if "axis" in step else None
                offset, scale = (step[part] if key is None else step[part][key] for part in ("offset", "scale"))
                out[place] = (np.float32(x[place]) - np.float32(offset)) * np.float32(scale)
            x = out
        elif step["kind"] == "transpose":
            x = np.stack([np.transpose(row, step["axes"]) for row in x]) if len(x) else x
        elif step["kind"] == "reshape":
            x = np.array([row.flatten().reshape(step["shape"]) for row in x], x.dtype)
        else:
            x = x.astype(step["dtype"])
    return x


NUMBERS = st.floats(-1e6, 1e6, width=32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Preprocessing, np.ndarray]:
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    dtype = draw(st.sampled_from([*ITEM_BYTES]))
    row, steps = shape, []
    for kind in draw(st.lists(st.sampled_from(["affine", "transpose", "reshape"]), max_size=4)):
        if kind == "affine":
            axis = draw(st.none() | st.integers(0, len(row) - 1))
            of = NUMBERS if axis is None else st.lists(NUMBERS, min_size=row[axis], max_size=row[axis])
            along = {} if axis is None else {"axis": axis}
            steps.append({"kind": kind, "offset": draw(of), "scale": draw(of), **along})
        elif kind == "transpose":
            axes = list(draw(st.permutations(range(len(row)))))
            steps.append({"kind": kind, "axes": axes})
            row = tuple(row[axis] for axis in axes)
        else:
            row = draw(st.sampled_from([row, (math.prod(row),), (1, *row), tuple(reversed(row))]))
            steps.append({"kind": kind, "shape": list(row)})
    if dtype != "float32" and not any(step["kind"] == "affine" for step in steps):
        steps.append({"kind": "cast", "dtype": "float32"})
    count = draw(st.integers(1, 4))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(-(2**31), 2**31, (count, *shape))
    x = values.astype(dtype) if np.dtype(dtype).kind != "f" else (values / 1e6).astype(dtype)
    return preprocessing(shape, dtype, *steps), x


@given(case=cases())
def test_steps_do_what_they_say_bit_for_bit(case: tuple[Preprocessing, np.ndarray]) -> None:
    steps, x = case
    before = x.copy()

    features = steps.apply(x)

    expected = by_hand(x, steps.steps)
    assert features.tobytes() == expected.tobytes()
    assert features.dtype.name == steps.features.dtype == "float32"
    assert features.shape == (len(x), *steps.features.shape) == expected.shape
    assert features.flags.c_contiguous
    np.testing.assert_array_equal(x, before)


@given(case=cases())
def test_steps_survive_json(case: tuple[Preprocessing, np.ndarray]) -> None:
    steps, x = case
    again = Preprocessing(steps.input, tuple(json.loads(json.dumps(steps.steps))), steps.features).validate()
    assert again.apply(x).tobytes() == steps.apply(x).tobytes()


def test_onnxruntime_computes_the_same_bits() -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    helper, number = onnx.helper, onnx.numpy_helper.from_array
    offset, scale = [3.7, -1e-3, 255.1], [0.013, 7.77, 1e-6]
    steps = preprocessing(
        (5, 7, 3),
        "uint8",
        {"kind": "affine", "offset": offset, "scale": scale, "axis": 2},
        {"kind": "transpose", "axes": [2, 0, 1]},
        {"kind": "reshape", "shape": [3, 35]},
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["a", "offset"], ["b"]),
        helper.make_node("Mul", ["b", "scale"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["d", "shape"], ["y"]),
    ]
    constants = {"offset": np.float32(offset), "scale": np.float32(scale), "shape": np.array([-1, 3, 35])}
    graph = helper.make_graph(
        nodes,
        "steps",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["n", 5, 7, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3, 35])],
        [number(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).integers(0, 256, (64, 5, 7, 3), np.uint8)

    (got,) = session.run(None, {"x": x})

    assert got.tobytes() == steps.apply(x).tobytes()


def test_token_ids_stay_integers() -> None:
    steps = preprocessing((2, 4), "int32", {"kind": "cast", "dtype": "int64"}, {"kind": "reshape", "shape": [8]})
    features = steps.apply(np.arange(16, dtype=np.int32).reshape(2, 2, 4))

    assert features.dtype == np.int64
    assert features.tolist() == [list(range(8)), list(range(8, 16))]


def test_without_steps_the_rows_pass_uncopied() -> None:
    x = np.ones((3, 2), np.float32)
    assert np.shares_memory(preprocessing((2,), "float32").apply(x), x)


# --- validate ---

AFFINE = {"kind": "affine", "offset": 0, "scale": 1}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({}, "preprocessing step 0 is of kind None, needed one of affine, transpose, reshape, cast"),
        ({"kind": "scale"}, "preprocessing step 0 is of kind 'scale', needed one of affine, transpose, reshape, cast"),
        ({"kind": ["affine"]}, "is of kind ['affine'], needed one of affine, transpose, reshape, cast"),
        ({"kind": "affine", "offset": 0}, "(`affine`) has keys `kind`, `offset`, needed `kind`, `offset`, `scale`"),
        ({**AFFINE, "eps": 1}, "has keys `kind`, `offset`, `scale`, `eps`, needed `kind`, `offset`, `scale`"),
        ({"kind": "cast", "dtype": "float32", "axis": 0}, "has keys `kind`, `dtype`, `axis`, needed `kind`, `dtype`"),
        ({**AFFINE, "axis": 2}, "has axis 2, needed 0..1 for a row of (2, 3)"),
        ({**AFFINE, "axis": True}, "has axis True, needed 0..1"),
        ({**AFFINE, "axis": None}, "has axis None, needed 0..1"),
        ({**AFFINE, "axis": 1}, "`offset` is 0, needed a list of 3 numbers, one for each place along `axis`"),
        ({**AFFINE, "axis": 1, "offset": [1, 2]}, "`offset` is 2 numbers, needed a list of 3 numbers"),
        ({**AFFINE, "scale": [1.0]}, "`scale` has [1.0], needed a finite number"),
        ({**AFFINE, "scale": float("nan")}, "`scale` has nan, needed a finite number"),
        ({**AFFINE, "scale": 1e300}, "`scale` has 1e+300, needed a finite number"),
        ({**AFFINE, "scale": "1"}, "`scale` has '1', needed a finite number"),
        ({**AFFINE, "scale": False}, "`scale` has False, needed a finite number"),
        ({"kind": "transpose", "axes": [0, 0]}, "has axes [0, 0], needed an order of 0..1 for a row of (2, 3)"),
        ({"kind": "transpose", "axes": [1, 0, 2]}, "has axes [1, 0, 2], needed an order of 0..1"),
        ({"kind": "transpose", "axes": 1}, "has axes 1, needed an order of 0..1"),
        ({"kind": "reshape", "shape": [7]}, "has shape [7], needed one of 6 values as the row of (2, 3)"),
        ({"kind": "reshape", "shape": [-1]}, "has shape [-1], needed one of 6 values"),
        ({"kind": "reshape", "shape": [-2, -3]}, "has shape [-2, -3], needed one of 6 values"),
        ({"kind": "cast", "dtype": "int32"}, "has dtype 'int32', needed `float32` or `int64`"),
        ({"kind": "cast", "dtype": "int64"}, "turns float32 into int64, needed integers (token ids)"),
    ],
)
def test_a_malformed_step_is_refused(step: Step, message: str) -> None:
    with pytest.raises(DataError) as caught:
        row_after(TensorSpec("x", (2, 3), "float32"), [step])
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "float64", "float16", "bool"])
def test_features_must_be_float32_or_int64(dtype: str) -> None:
    with pytest.raises(DataError) as caught:
        row_after(TensorSpec("x", (2,), dtype), [{"kind": "reshape", "shape": [1, 2]}])
    assert str(caught.value) == f"the preprocessing steps give {dtype}, needed float32 or int64"
    with pytest.raises(DataError, match="raw rows have dtype `complex64`, needed one of bool"):
        row_after(TensorSpec("x", (2,), "complex64"), [])


@pytest.mark.parametrize("features", [TensorSpec("f", (3, 2)), TensorSpec("f", (2, 3), "int64")])
def test_steps_that_lead_elsewhere_are_refused(features: TensorSpec) -> None:
    wrong = Preprocessing(TensorSpec("x", (2, 3), "uint8"), (AFFINE,), features)
    for use in (wrong.validate, lambda: wrong.apply(np.zeros((1, 2, 3), np.uint8))):
        with pytest.raises(DataError) as caught:
            use()
        assert str(caught.value) == (
            f"the preprocessing steps give rows of (2, 3) float32, needed {features.shape} {features.dtype}"
        )


# --- raw rows ---


@pytest.mark.parametrize(
    ("needed", "x", "message"),
    [
        ("uint8", np.zeros((4, 3), np.uint8), "raw rows have shape (3,) and dtype uint8, needed (2,) and uint8"),
        ("uint8", np.zeros((4, 2), np.int8), "raw rows have shape (2,) and dtype int8, needed (2,) and uint8"),
        ("int16", np.zeros((4, 2), np.int32), "raw rows have shape (2,) and dtype int32, needed (2,) and int16"),
        ("float32", np.zeros((4, 2), np.int16), "raw rows have shape (2,) and dtype int16, needed (2,) and float32"),
        ("int16", np.zeros((4, 2), np.float32), "raw rows have shape (2,) and dtype float32, needed (2,) and int16"),
        ("float32", np.float32(1), "raw rows have shape () and dtype float32, needed (2,) and float32"),
    ],
)
def test_rows_of_another_form_are_refused(needed: str, x: np.ndarray, message: str) -> None:
    steps = preprocessing((2,), needed, AFFINE)
    for use in (steps.check_raw, steps.apply):
        with pytest.raises(DataError) as caught:
            use(np.asarray(x))
        assert str(caught.value) == message


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_dtypes_stand_for_one_another(dtype: str) -> None:
    for needed in ("float16", "float32", "float64"):
        steps = preprocessing((2,), needed, AFFINE)
        x = np.array([[0.5, -2.0]], dtype)
        steps.check_raw(x)
        assert steps.apply(x).tolist() == [[0.5, -2.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_float32_cannot_hold_are_refused_by_row(bad: float) -> None:
    steps = preprocessing((2,), "float32", AFFINE)
    x = np.zeros((5, 2))
    x[3, 1] = bad
    for numbers, row in ((None, 3), (np.arange(100, 105), 103)):
        with pytest.raises(DataError) as caught:
            steps.check_raw(x, numbers=numbers)
        assert str(caught.value) == f"row {row} has NaN, Inf or a number that float32 cannot hold"
    steps.check_raw(np.zeros((0, 2)))


# --- fitting ---


def dataset_of(x: np.ndarray) -> Dataset:
    return Dataset("test", x, np.zeros(len(x), np.int64))


@pytest.mark.parametrize(
    ("raw", "features", "steps"),
    [
        ((6, 128), (6, 128), []),
        ((128, 6), (6, 128), [{"kind": "transpose", "axes": [1, 0]}]),
        ((32, 32, 3), (3, 32, 32), [{"kind": "transpose", "axes": [2, 0, 1]}]),
        ((28, 28), (1, 28, 28), [{"kind": "reshape", "shape": [1, 28, 28]}]),
        ((28, 28, 1), (1, 28, 28), [{"kind": "reshape", "shape": [1, 28, 28]}]),
        ((140,), (1, 140), [{"kind": "reshape", "shape": [1, 140]}]),
        ((), (1,), [{"kind": "reshape", "shape": [1]}]),
        ((3, 32, 32), (3072,), [{"kind": "reshape", "shape": [3072]}]),
        (
            (128, 6),
            (6, 1, 128),
            [{"kind": "transpose", "axes": [1, 0]}, {"kind": "reshape", "shape": [6, 1, 128]}],
        ),
    ],
)
def test_rows_are_laid_out_by_matching_shapes(
    raw: tuple[int, ...], features: tuple[int, ...], steps: list[Step]
) -> None:
    assert list(layout_steps(raw, features)) == steps
    assert row_after(TensorSpec("x", raw), steps) == (features, "float32")


@pytest.mark.parametrize("features", [(3, 128), (12, 64), (767,), (6, 128, 2)])
def test_shapes_that_no_layout_joins_are_named(features: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        layout_steps((128, 6), features)
    assert str(caught.value) == f"rows of shape (128, 6) cannot be laid out as {features}"
    assert caught.value.hint.startswith("needed the same axes in some order")


@pytest.mark.parametrize(
    ("raw", "features", "axis"),
    [
        ((128, 6), (6, 128), 1),
        ((49, 40), (40, 49), 1),
        ((7, 12), (12, 7), 1),
        ((32, 32, 3), (3, 32, 32), 2),
        ((3, 32, 32), (3, 32, 32), 0),
        ((3, 32, 32), (3072,), 0),
        ((128, 6), (128, 6), 1),
        ((28, 28), (1, 28, 28), None),
        ((1, 28, 28), (1, 28, 28), None),
        ((8, 8), (1, 8, 8), None),
        ((1, 128, 6), (6, 128), 2),
        ((1, 6, 128), (6, 128), 1),
        ((128, 6, 1), (128, 6), 1),
        ((128, 1, 6), (6, 1, 128), 2),
        ((140,), (1, 140), None),
        ((13,), (13,), 0),
        ((), (1,), None),
    ],
)
def test_the_channels_are_found_by_layout_or_by_length(
    raw: tuple[int, ...], features: tuple[int, ...], axis: int | None
) -> None:
    fitted = fit_preprocessing(dataset_of(np.random.default_rng(0).standard_normal((5, *raw))), features)
    assert fitted.steps[0].get("axis") == axis


@pytest.mark.parametrize("dtype", ["int16", "float64", "uint8"])
def test_each_channel_is_standardised(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 16, 3)) * [1, 10, 30] + [5, 100, 128]).astype(dtype)

    features = fit_preprocessing(dataset_of(x), (3, 16)).apply(x)

    assert features.shape == (200, 3, 16)
    np.testing.assert_allclose(features.mean(axis=(0, 2), dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(axis=(0, 2), dtype=np.float64), 1, atol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 12345.678, 1e-40])
def test_a_constant_channel_is_centred_and_not_scaled(constant: float) -> None:
    x = np.random.default_rng(0).standard_normal((50, 2, 8))
    x[:, 0] = constant

    fitted = fit_preprocessing(dataset_of(x), (2, 8))

    assert fitted.steps[0]["scale"][0] == 1.0  # type: ignore[index]
    np.testing.assert_allclose(fitted.apply(x)[:, 0], 0, atol=1e-2)


def test_the_statistics_are_those_of_a_seeded_sample() -> None:
    x = np.random.default_rng(0).standard_normal((1000, 2, 8)).astype(np.float32)

    def steps(rows: int, seed: int) -> object:
        return fit_preprocessing(dataset_of(x), (2, 8), rows=rows, seed=seed).steps

    assert steps(50, 0) == steps(50, 0) != steps(50, 1)
    assert steps(1000, 0) == steps(5000, 1)


def test_a_given_axis_is_taken() -> None:
    data = dataset_of(np.random.default_rng(0).standard_normal((9, 20, 30)))

    assert fit_preprocessing(data, (20, 30), axis=0).steps[0]["axis"] == 0
    assert "axis" not in fit_preprocessing(data, (30, 20), axis=None).steps[0]
    with pytest.raises(DataError, match=r"rows of \(20, 30\) have no axis 2"):
        fit_preprocessing(data, (20, 30), axis=2)


def test_token_ids_are_cast_and_not_standardised() -> None:
    data = dataset_of(np.arange(12, dtype=np.uint8).reshape(3, 4))
    fitted = fit_preprocessing(data, (4,), dtype="int64")

    assert fitted.steps == ({"kind": "cast", "dtype": "int64"},)
    assert fitted.apply(data.x[:]).tolist() == data.x[:].tolist()


def test_missing_values_in_the_sample_are_refused_by_row() -> None:
    x = np.zeros((300, 4, 50), np.float32)
    x[217, 2, 1] = np.nan
    with pytest.raises(DataError) as caught:
        fit_preprocessing(dataset_of(x), (4, 50))
    assert str(caught.value) == "`test` has NaN or Inf in row 217"
