"""Running graphs on caller-owned arrays, with the workstation's onnxruntime and the device's."""

import builtins
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_artifact import CLASSES, FEATURES, Oracle, Tiny, graph_model, initial_weights, make_rows

from edgeff.errors import EngineError
from edgeff.manifest import GraphSpec
from edgeff.runtime import engine as engine_module
from edgeff.runtime.cores import fast_cores
from edgeff.runtime.engine import OnnxRuntime, check_graph

ROOT = Path(__file__).resolve().parent.parent
TINY = Tiny(blocks=1)


@pytest.fixture(scope="module")
def engine():
    return OnnxRuntime(1)


def step_arrays(rows=8, seed=3):
    x, y = make_rows(rows, seed)
    weights = initial_weights(TINY)
    arrays = {
        "x": (x - 0.25) * 2,
        "y": y,
        "row_weight": np.full(rows, 1 / rows, np.float32),
        "rate.learning_rate": np.array(0.1, np.float32),
        "loss": np.zeros((), np.float32),
        "log_probabilities": np.zeros((rows, CLASSES), np.float32),
        "buffer.shift": weights["block1.shift"],
    }
    for name in ("w", "b"):
        arrays[f"parameter.{name}"] = weights[f"block1.{name}"]
        arrays[f"state.velocity.{name}"] = np.zeros_like(weights[f"block1.{name}"])
        arrays[f"gradient.{name}"] = np.zeros_like(weights[f"block1.{name}"])
    return x, y, arrays


def content(kind):
    return graph_model(TINY, 0, kind).SerializeToString()


def test_a_step_changes_parameters_and_state_in_their_own_memory(engine):
    x, y, arrays = step_arrays()
    oracle = Oracle(TINY, initial_weights(TINY))
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    call = engine.load(content("step"), "step.onnx").bind(arrays)
    for _ in range(3):
        call.run()
        loss = oracle.update(x, y, 0.1)
        assert float(arrays["loss"]) == pytest.approx(loss["block1"], rel=1e-5)
    for name in ("w", "b"):
        np.testing.assert_allclose(arrays[f"parameter.{name}"], oracle.weights[f"block1.{name}"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            arrays[f"state.velocity.{name}"], oracle.velocity[f"block1.{name}"], rtol=1e-4, atol=1e-6
        )
    assert {name: array.ctypes.data for name, array in arrays.items()} == addresses


def test_a_step_reads_what_was_written_into_its_arrays_after_binding(engine):
    _, _, arrays = step_arrays()
    call = engine.load(content("step"), "step.onnx").bind(arrays)
    arrays["rate.learning_rate"][...] = 0.0
    before = arrays["parameter.w"].copy()
    call.run()
    np.testing.assert_array_equal(arrays["parameter.w"], before)


def test_gradients_of_micro_batches_add_up_in_place_to_the_step(engine):
    _, _, whole = step_arrays()
    engine.load(content("step"), "step.onnx").bind(whole).run()
    _, _, arrays = step_arrays()
    accumulate, apply = (engine.load(content(kind), kind) for kind in ("accumulate", "apply"))
    for first in (0, 3, 6):
        part = {
            name: array[first : first + 3] if name in ("x", "y", "row_weight", "log_probabilities") else array
            for name, array in arrays.items()
        }
        accumulate.bind(part).run()
    for name in ("w", "b"):
        roles = {f"{role}.{name}": role for role in ("parameter", "gradient", "state.velocity")}
        runs = {role: arrays[source].reshape(-1) for source, role in roles.items()}
        apply.bind({**arrays, **runs}).run()
    np.testing.assert_allclose(arrays["parameter.w"], whole["parameter.w"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(arrays["log_probabilities"], whole["log_probabilities"], rtol=1e-6)


def test_graphs_name_their_inputs_and_outputs_with_shape_and_dtype(engine):
    graph = engine.load(content("forward"), "forward.onnx")
    ports = {port.name: port for port in (*graph.inputs, *graph.outputs)}
    assert ports["x"].shape == (None, FEATURES)
    assert ports["parameter.w"].shape == (FEATURES, CLASSES)
    assert ports["log_probabilities"].dtype == "float32"


@pytest.mark.parametrize(
    ("name", "value", "needed", "got"),
    [
        ("parameter.w", np.zeros((CLASSES, FEATURES), np.float32), "float32 (6, 4)", "float32 (4, 6)"),
        ("y", np.zeros(8, np.int32), "int64 (rows)", "int32 (8)"),
        ("x", np.zeros((FEATURES, 8), np.float32).T[:, ::-1], "float32 (rows, 6)", "float32 (8, 6), not contiguous"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_by_name(engine, name, value, needed, got):
    _, _, arrays = step_arrays()
    with pytest.raises(EngineError) as caught:
        engine.load(content("step"), "blocks/step.onnx").bind({**arrays, name: value})
    assert str(caught.value) == f"`blocks/step.onnx`: `{name}` must be {needed}, got {got}"
    assert caught.value.hint


def test_a_missing_array_is_refused_by_name(engine):
    with pytest.raises(EngineError, match=r"^`step.onnx` needs an array for `parameter.w`$"):
        engine.load(content("step"), "step.onnx").bind(
            {name: array for name, array in step_arrays()[2].items() if name != "parameter.w"}
        )


def test_an_array_must_fit_the_output_that_is_written_over_it_too(engine):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Concat", ["w", "w"], ["new.w"], axis=0)],
        "grows",
        [value("w", TensorProto.FLOAT, [2])],
        [value("new.w", TensorProto.FLOAT, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with pytest.raises(EngineError, match=r"^`g`: `new.w` must be float32 \(4\), got float32 \(2\)$"):
        engine.load(model.SerializeToString(), "g").bind({"w": np.zeros(2, np.float32)})


def test_an_array_lives_as_long_as_a_call_is_bound_to_it(engine):
    _, _, arrays = step_arrays()
    held = weakref.ref(arrays["loss"])
    call = engine.load(content("step"), "step.onnx").bind(arrays)
    arrays.clear()
    assert held() is not None
    call.run()
    del call
    assert held() is None


ASKING = """
import os, sys
from edgeff.runtime.engine import OnnxRuntime
assert "onnxruntime" not in sys.modules
OnnxRuntime(1)
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(("given", "found"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")])
def test_onnxruntime_is_told_to_keep_to_itself_unless_the_user_decided(given, found):
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", ASKING], capture_output=True, text=True, check=True, env={**kept, **given}
    )
    assert done.stdout.strip() == found


def test_bytes_that_are_no_graph_are_refused_in_one_line(engine):
    with pytest.raises(EngineError, match=r"^onnxruntime [\d.]+ refused `step.onnx`: ") as caught:
        engine.load(b"not a graph", "step.onnx")
    assert "\n" not in str(caught.value)
    assert "newer onnxruntime" in caught.value.hint


def test_a_run_that_fails_is_one_line(engine):
    _, _, arrays = step_arrays()
    call = engine.load(content("forward"), "forward.onnx").bind(
        {**arrays, "log_probabilities": np.zeros((5, CLASSES), np.float32)}
    )
    with pytest.raises(EngineError, match=r"^onnxruntime failed in `forward.onnx`: ") as caught:
        call.run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (("x", "parameter.w"), ("log_probabilities",), "`f` has an unknown input `buffer.shift`"),
        (
            ("x", "parameter.w", "parameter.b", "buffer.shift", "seed"),
            ("log_probabilities",),
            "`f` lacks input `seed`",
        ),
        (
            ("x", "parameter.w", "parameter.b", "buffer.shift"),
            ("log_probabilities", "handover"),
            "`f` lacks output `handover`",
        ),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(engine, inputs, outputs, message):
    graph = engine.load(content("forward"), "f")
    with pytest.raises(EngineError) as caught:
        check_graph(graph, GraphSpec("f", inputs, outputs, 3, ()))
    assert str(caught.value) == message


def test_the_start_model_is_the_identity_it_says_it_is():
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["y"], keepdims=0),
    ]
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    graph = helper.make_graph(nodes, "reserve", [n], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert onnx.load_from_string(engine_module._ZEROS_MODEL) == model


def test_without_onnxruntime_the_message_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match=r"^no onnxruntime is installed$") as caught:
        OnnxRuntime(1)
    assert caught.value.hint == 'run `pip install "edgeff[device]"`'


def test_no_threads_are_refused():
    with pytest.raises(EngineError, match=r"^`0` threads cannot run anything, needed 1 or more$"):
        OnnxRuntime(0)


def test_threads_default_to_the_fast_cores_up_to_four():
    assert OnnxRuntime().threads == min(fast_cores(), 4)


IN_FRESH_PROCESS = """
import sys
import edgeff.runtime, edgeff.runtime.adapt, edgeff.runtime.finalize, edgeff.runtime.plan, edgeff.runtime.engine
print([name for name in ("torch", "onnx", "onnxruntime", "edgeff.export") if name in sys.modules])
"""


def test_importing_the_runtime_brings_in_neither_torch_nor_onnx_nor_onnxruntime():
    done = subprocess.run([sys.executable, "-c", IN_FRESH_PROCESS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ON_DEVICE = """
import json, sys
import numpy as np
from edgeff.runtime.engine import OnnxRuntime
found = np.load(sys.argv[2])
arrays = {name: np.array(found[name]) for name in found.files}
engine = OnnxRuntime(1)
call = engine.load(open(sys.argv[1], "rb").read(), "step.onnx").bind(arrays)
before = arrays["parameter.w"].ctypes.data
for _ in range(3):
    call.run()
assert before == arrays["parameter.w"].ctypes.data
print(json.dumps([engine.name, arrays["parameter.w"].tolist(), float(arrays["loss"])]))
"""


@pytest.mark.parametrize("python", ["device_python", "old_python"])
def test_other_onnxruntimes_make_the_same_step_in_place(request, engine, python, tmp_path):
    interpreter = request.getfixturevalue(python)
    _, _, arrays = step_arrays()
    (tmp_path / "step.onnx").write_bytes(content("step"))
    np.savez(tmp_path / "arrays.npz", **arrays)
    call = engine.load(content("step"), "step.onnx").bind(arrays)
    for _ in range(3):
        call.run()
    done = subprocess.run(
        [str(interpreter), "-c", ON_DEVICE, str(tmp_path / "step.onnx"), str(tmp_path / "arrays.npz")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    name, weight, loss = json.loads(done.stdout)
    assert name != engine.name
    np.testing.assert_allclose(weight, arrays["parameter.w"], rtol=1e-5, atol=1e-7)
    assert loss == pytest.approx(float(arrays["loss"]), rel=1e-5)
