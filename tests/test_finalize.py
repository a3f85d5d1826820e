"""One plain inference model, written from trained weights without onnx and compared before it gets its name."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_artifact import Oracle, Tiny, inference_content, initial_weights, make_rows, write_tiny

from edgeff.errors import ArtifactError, EngineError, RunError
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.finalize import check_rows, finalize

OTHER = initial_weights(Tiny(), seed=7)


@pytest.fixture(scope="module")
def engine():
    return OnnxRuntime(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def artifact(folder):
    return write_tiny(folder / "tiny")


def run_model(engine, path, x):
    graph = engine.load(path.read_bytes(), path.name)
    found = {"log_probabilities": np.zeros((len(x), 4), np.float32), "label": np.zeros(len(x), np.int64)}
    graph.bind({"x": x, **found}).run()
    return found


@pytest.mark.parametrize("weights", [None, OTHER])
def test_the_model_predicts_what_the_network_with_these_weights_predicts(artifact, engine, tmp_path, weights):
    out = tmp_path / "model.onnx"
    made = finalize(artifact, weights, out, engine=engine)
    assert (made.path, made.bytes, made.rows) == (out, out.stat().st_size, 10)
    assert made.largest_error <= 1e-4
    x, _ = make_rows(17, seed=6)
    expected = Oracle(Tiny(), weights or artifact.tensors()).fused(x)
    found = run_model(engine, out, x)
    np.testing.assert_allclose(found["log_probabilities"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["label"], expected.argmax(axis=1))
    assert list(tmp_path.iterdir()) == [out]


def test_only_the_weights_change_in_the_template(artifact, engine, tmp_path):
    finalize(artifact, OTHER, tmp_path / "model.onnx", engine=engine)
    expected, _ = inference_content(Tiny(), OTHER)
    assert (tmp_path / "model.onnx").read_bytes() == expected
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))


def test_a_file_that_exists_is_refused(artifact, engine, tmp_path):
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    with pytest.raises(RunError, match=r"^`.*model.onnx` exists already$") as caught:
        finalize(artifact, None, out, engine=engine)
    assert caught.value.hint
    assert out.read_text() == "mine"


def test_a_template_that_does_not_fit_its_blocks_leaves_no_file(folder, engine, tmp_path):
    """The template of a network with another fusion: right in form, wrong in what it predicts."""
    content, _ = inference_content(Tiny(fusion=(1.0, 3.0)), initial_weights(Tiny()))
    artifact = write_tiny(folder / "wrong", spoil={"inference.onnx": content})
    with pytest.raises(RunError, match=r"model.onnx` would predict otherwise than the network: .* allowed 1e-04$"):
        finalize(artifact, None, tmp_path / "model.onnx", engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_numbers_leave_no_file(artifact, engine, tmp_path):
    weights = {**OTHER, "block1.w": np.full_like(OTHER["block1.w"], np.nan)}
    with pytest.raises(RunError, match="would predict otherwise"):
        finalize(artifact, weights, tmp_path / "model.onnx", engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_the_engine_refuses_leaves_no_file(folder, engine, tmp_path):
    content, _ = inference_content(Tiny(), initial_weights(Tiny()))
    model = onnx.load_from_string(content)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("unheard_of", 1))
    artifact = write_tiny(folder / "garbage", spoil={"inference.onnx": model.SerializeToString(deterministic=True)})
    with pytest.raises(EngineError, match=r"refused `model.onnx`"):
        finalize(artifact, None, tmp_path / "model.onnx", engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_a_template_with_other_outputs_is_refused(folder):
    content, _ = inference_content(Tiny(), initial_weights(Tiny()))
    model = onnx.load_from_string(content)
    del model.graph.output[1]
    with pytest.raises(ArtifactError, match=r"^`inference.onnx` lacks output `label`$"):
        write_tiny(folder / "outputs", spoil={"inference.onnx": model.SerializeToString(deterministic=True)})


def test_a_folder_that_is_not_there_is_one_line(artifact, engine, tmp_path):
    with pytest.raises(RunError, match=r"^cannot write `.*none/model.onnx`: no such file or directory$") as caught:
        finalize(artifact, None, tmp_path / "none" / "model.onnx", engine=engine)
    assert caught.value.hint == "make the folder first"


def test_without_replay_rows_random_ones_are_compared(folder, engine, tmp_path):
    artifact = write_tiny(folder / "bare", Tiny(replay_rows=0))
    assert finalize(artifact, None, tmp_path / "model.onnx", engine=engine).rows == 32
    np.testing.assert_array_equal(check_rows(artifact), check_rows(artifact))


def test_replay_rows_are_taken_from_all_over(folder):
    artifact = write_tiny(folder / "many", Tiny(replay_rows=100))
    chosen = check_rows(artifact)
    x, _ = artifact.replay()
    assert len(chosen) == 32
    np.testing.assert_array_equal(chosen[[0, -1]], x[[0, -1]])
