"""The engine of onnxruntime-training through the command line: the same run as on any onnxruntime, and its plans."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
from click.testing import Result
from tiny_run import TinyRun, edgeff

from edgeff.artifact import Artifact, open_artifact
from edgeff.engines import ENGINES, ONNXRUNTIME, ORT_TRAINING
from edgeff.errors import BudgetError
from edgeff.runtime.adapt import engine_request
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.ort_training import OrtTraining
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Plan, Request

NAMES = {ONNXRUNTIME: f"onnxruntime {onnxruntime.__version__}", ORT_TRAINING: "onnxruntime-training 1.19.2"}
RESULTS = ("best.safetensors", "checkpoint.safetensors")
BATCH = 32


@pytest.fixture(scope="module")
def path(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small artifact with training artifacts, by the command."""
    out = tmp_path_factory.mktemp("engine") / "artifact"
    result = edgeff("export", tiny.run, "--out", out, "--engine", ORT_TRAINING)
    assert (result.exit_code, result.stderr) == (0, "")
    return out


@pytest.fixture(scope="module")
def artifact(path: Path) -> Artifact:
    return open_artifact(path)


Train = Callable[..., Result]


@pytest.fixture(scope="module")
def train(tiny: TinyRun, path: Path) -> Train:
    """Two epochs of the command, or as much as it is told, in a folder."""

    def run(out: Path, engine: str, *more: object) -> Result:
        given = ("--data", tiny.own, "--out", out, "--engine", engine, "--epochs", 2, "--batch-size", BATCH)
        return edgeff("train-on-device", path, *given, "--threads", 1, *more)

    return run


@pytest.fixture(scope="module")
def runs(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A whole run by each engine and schedule."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for engine in ENGINES:
        for schedule in ("sweep", "stage"):
            out = folder / f"{engine}-{schedule}"
            result = train(out, engine, "--schedule", schedule)
            assert result.exit_code == 0, result.stderr
            found[engine, schedule] = out
    return found


def read_result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def assert_close_weights(found: Path, expected: Path) -> None:
    one, other = (safetensors.numpy.load_file(folder / "best.safetensors") for folder in (found, expected))
    assert one.keys() == other.keys()
    for key, array in other.items():
        np.testing.assert_allclose(one[key], array, rtol=0, atol=1e-3 * np.abs(array).max() + 1e-3, err_msg=key)


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_a_run_learns_the_same_by_either_engine(runs: dict[tuple[str, str], Path], schedule: str) -> None:
    plain, own = (read_result(runs[engine, schedule]) for engine in ENGINES)
    assert (plain["engine"], own["engine"]) == (NAMES[ONNXRUNTIME], NAMES[ORT_TRAINING])
    assert plain["schedule"] == own["schedule"] == schedule
    assert plain["rows"] == own["rows"]
    assert len(own["guard"]) == len(plain["guard"]) > 2
    for found, expected in zip(own["guard"], plain["guard"], strict=True):
        assert found["log_loss"] == pytest.approx(expected["log_loss"], rel=1e-3)
        assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=1.01 / expected["rows"])
    assert own["guard"][0]["log_loss"] == plain["guard"][0]["log_loss"]
    assert own["guard"][-1]["log_loss"] < 0.95 * own["guard"][0]["log_loss"]
    assert_close_weights(*(runs[engine, schedule] for engine in ENGINES))


@pytest.mark.parametrize(("schedule", "steps"), [("sweep", 3), ("sweep", 7), ("stage", 15)])
def test_a_run_that_was_stopped_ends_in_the_same_bytes(
    train: Train, runs: dict[tuple[str, str], Path], tmp_path: Path, schedule: str, steps: int
) -> None:
    """In the midst of an epoch: of the first one, the second, and the second block's."""
    out = tmp_path / "run"
    stopped = train(out, ORT_TRAINING, "--schedule", schedule, "--max-steps", steps)
    assert stopped.exit_code == 75
    assert f"at step {steps}" in stopped.stderr
    assert not (out / "result.json").exists()
    resumed = train(out, ORT_TRAINING, "--schedule", schedule, "--resume")
    assert resumed.exit_code == 0
    assert "warning" not in resumed.stderr
    whole = runs[ORT_TRAINING, schedule]
    for file in RESULTS:
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file
    assert read_result(out)["guard"][-1]["log_loss"] == read_result(whole)["guard"][-1]["log_loss"]


@pytest.mark.parametrize(("first", "second"), [ENGINES, ENGINES[::-1]])
def test_a_run_may_go_on_by_the_other_engine_with_a_warning(
    train: Train, runs: dict[tuple[str, str], Path], tmp_path: Path, first: str, second: str
) -> None:
    out = tmp_path / "run"
    begun = train(out, first, "--schedule", "sweep", "--max-steps", 4)
    assert begun.exit_code == 75
    resumed = train(out, second, "--schedule", "sweep", "--resume")
    assert resumed.exit_code == 0
    assert (
        f"warning: the run began with engine {NAMES[first]}, now it is {NAMES[second]}: "
        "the result may differ in its last bits" in resumed.stderr.splitlines()
    )
    assert read_result(out)["engine"] == NAMES[second]
    assert_close_weights(out, runs[second, "sweep"])


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_its_run_is_evaluated_and_finalized_as_any_other(
    tiny: TinyRun, path: Path, runs: dict[tuple[str, str], Path], tmp_path: Path, schedule: str
) -> None:
    run, model = runs[ORT_TRAINING, schedule], tmp_path / "model.onnx"
    tested = edgeff("evaluate", path, "--run", run, "--data", tiny.own, "--threads", 1, "--json")
    assert tested.exit_code == 0, tested.stderr
    before = edgeff("evaluate", path, "--data", tiny.own, "--threads", 1, "--json")
    accuracy = json.loads(tested.stdout)["accuracy"]
    assert accuracy > json.loads(before.stdout)["accuracy"]
    finalized = edgeff("finalize", path, "--run", run, "--out", model)
    assert finalized.exit_code == 0, finalized.stderr
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(tiny.own) as rows:
        labels = session.run(["label"], {session.get_inputs()[0].name: rows["x"]})[0]
        assert float((labels == rows["y"]).mean()) == pytest.approx(accuracy, abs=0.005)


def test_its_checkpoint_holds_what_that_of_every_run_does(
    tiny: TinyRun, runs: dict[tuple[str, str], Path], path: Path
) -> None:
    """Weights and moments, and nothing of the package's own."""
    own, plain = (safetensors.numpy.load_file(runs[engine, "sweep"] / RESULTS[1]) for engine in ENGINES)
    assert {key: array.shape for key, array in own.items()} == {key: array.shape for key, array in plain.items()}


# --- plans ------------------------------------------------------------------------------------------------------------


def planned(artifact: Artifact, engine: OnnxRuntime, **more: Any) -> Plan:
    name = ORT_TRAINING if engine.keeps_gradients else ONNXRUNTIME
    return plan(artifact.for_engine(name).manifest, Request(BATCH, rows=200, **{**engine_request(engine), **more}))


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
@pytest.mark.parametrize("micro_batch", [None, 1, 8, BATCH])
@pytest.mark.parametrize("prefer", ["speed", "memory"])
def test_a_plan_for_it_has_neither_an_arena_nor_fused_updates(
    artifact: Artifact, schedule: str, micro_batch: int | None, prefer: str
) -> None:
    found = planned(artifact, OrtTraining(1), schedule=schedule, micro_batch=micro_batch, prefer=prefer)
    assert found.arena_bytes == 0
    assert [block.graphs for block in found.blocks] == [("accumulate", "apply")] * 4


def test_the_same_request_on_any_onnxruntime_has_both(artifact: Artifact) -> None:
    found = planned(artifact, OnnxRuntime(1), schedule="sweep", updates="fused")
    assert found.arena_bytes > 0
    assert [block.graphs for block in found.blocks] == [("step",)] * 4
    assert planned(artifact, OrtTraining(1), schedule="sweep").arena_bytes == 0


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
@pytest.mark.parametrize("micro_batch", [1, 8, BATCH])
def test_its_plan_is_larger_than_that_of_the_same_updates_on_any_onnxruntime(
    artifact: Artifact, schedule: str, micro_batch: int
) -> None:
    more = {"schedule": schedule, "micro_batch": micro_batch, "updates": "accumulated", "arena": False}
    own, plain = (planned(artifact, engine, **more) for engine in (OrtTraining(1), OnnxRuntime(1)))
    assert own.planned_bytes > plain.planned_bytes
    pairs = [pair for pair in zip(own.phases, plain.phases, strict=True) if pair[0].name.startswith("train")]
    assert pairs
    for phase, other in pairs:
        assert phase.name == other.name
        resident, without = phase.resident, other.resident
        assert resident.graphs > without.graphs
        # It has weights and moments of its own beside those of the runtime, and the only gradients.
        assert resident.weights > without.weights
        assert resident.state == 2 * without.state > 0
        assert resident.gradients == without.gradients > 0


def test_passing_weights_on_is_planned_where_it_is_the_most(artifact: Artifact) -> None:
    """Rows of a sweep at micro-batch 1 take less than the file in which tensors go from one to the other."""
    own = planned(artifact, OrtTraining(1), schedule="sweep", micro_batch=1)
    blocks = artifact.manifest.blocks
    largest = max(2 * (block.weight_bytes + block.state_bytes) for block in blocks)
    inside = max(block.transient_bytes for block in own.blocks)
    assert own.largest_phase.resident.activations >= max(largest, inside)


def test_the_smallest_budget_is_enough_and_a_byte_less_is_not(artifact: Artifact) -> None:
    manifest = artifact.for_engine(ORT_TRAINING).manifest
    asked = {"rows": 200, **engine_request(OrtTraining(1))}
    smallest = smallest_budget(manifest, Request(BATCH, **asked))
    assert plan(manifest, Request(BATCH, budget_bytes=smallest, **asked)).planned_bytes <= smallest
    with pytest.raises(BudgetError):
        plan(manifest, Request(BATCH, budget_bytes=smallest - 1, **asked))
    plain = smallest_budget(artifact.manifest, Request(BATCH, rows=200))
    assert smallest > plain


def test_a_budget_that_is_too_small_is_refused_by_block_and_bytes(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", ORT_TRAINING, "--budget", "1MiB")
    assert (result.exit_code, result.stdout) == (1, "")
    found = re.fullmatch(
        r"Error: the run needs ([\d,]+) bytes, the budget is 1,048,576; most goes to block `block(\d)`: "
        r"[\d.]+ MiB at micro-batch 1 \(.+\)\n\nhint: give it `--budget (\d+)MiB`; "
        r"the smallest budget that works is ([\d,]+) bytes\n",
        result.stderr,
    )
    assert found, result.stderr
    assert found[1] == found[4]
    assert train(tmp_path / "run", ORT_TRAINING, "--budget", f"{found[3]}MiB", "--epochs", 1).exit_code == 0


# --- where it is not installed, and what it imports -------------------------------------------------------------------


def test_a_device_without_the_package_is_told_what_is_missing(
    run_device: Callable[..., subprocess.CompletedProcess[str]], tiny: TinyRun, path: Path, tmp_path: Path
) -> None:
    given = ("train-on-device", path, "--data", tiny.own, "--out", tmp_path / "run", "--engine", ORT_TRAINING)
    done = run_device("-m", "edgeff", *map(str, given))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: onnxruntime-training is not installed (it has wheels for x86-64 Linux, Windows and macOS, "
        "Python 3.8 to 3.12)\n\n"
        'hint: run `pip install "onnxruntime-training-cpu==1.19.2"` in an environment without `onnxruntime`, '
        "or leave `--engine ort-training` out: any onnxruntime trains the artifact\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_device_without_the_package_trains_the_same_artifact_by_the_other_engine(
    run_device: Callable[..., subprocess.CompletedProcess[str]], tiny: TinyRun, path: Path, tmp_path: Path
) -> None:
    given = ("train-on-device", path, "--data", tiny.own, "--out", tmp_path / "run", "--epochs", 1)
    done = run_device("-m", "edgeff", *map(str, given))
    assert done.returncode == 0, done.stderr


IMPORTED = """
import sys
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.ort_training import OrtTraining

def heavy():
    return sorted({"torch", "onnx"} & {name.partition(".")[0] for name in sys.modules})

print(heavy())
engine = %s(1)
print(heavy())
"""
PACKAGE = """
import onnxruntime
import onnxruntime.training.api
from onnxruntime.training.api import CheckpointState, Module, Optimizer
from onnxruntime.training import artifacts
assert onnxruntime.training.api.Module is Module
assert onnxruntime.training.artifacts is artifacts
assert callable(artifacts.generate_artifacts)
assert type(engine)(1).api is engine.api
print(heavy())
"""


def fresh(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_any_engine_starts_without_pytorch_and_onnx_though_both_are_there() -> None:
    assert fresh(IMPORTED % "OnnxRuntime") == ["[]", "[]"]


def test_the_package_is_as_it_should_be_for_who_imports_it_after_the_engine_was_started() -> None:
    assert fresh(IMPORTED % "OrtTraining" + PACKAGE) == ["[]", "[]", "['onnx', 'torch']"]


# --- exporting for it by the command ----------------------------------------------------------------------------------


def test_the_command_refuses_an_optimiser_that_the_package_does_not_have(tiny: TinyRun, tmp_path: Path) -> None:
    result = edgeff(
        *("export", tiny.run, "--out", tmp_path / "artifact", "--engine", ORT_TRAINING, "--optimizer", "sgd"),
        *("--momentum", 0.9),
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: onnxruntime-training has `sgd` without momentum and without weight decay only\n\n"
        "hint: give `--momentum 0`, or `--optimizer adamw`, or leave `--engine ort-training` out: "
        "the plain graphs train it on any onnxruntime\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_commands_know_both_engines_and_no_other(tiny: TinyRun, tmp_path: Path) -> None:
    for command in (("export", tiny.run), ("train-on-device", tiny.artifact, "--data", tiny.own)):
        result = edgeff(*command, "--out", tmp_path / "out", "--engine", "tensorflow")
        assert result.exit_code == 2
        assert "'tensorflow' is not one of 'onnxruntime', 'ort-training'" in result.stderr
