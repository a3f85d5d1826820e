"""Commands that run on the device: what they print, and what their options do."""

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import safetensors.numpy
from click.testing import Result
from tiny_run import TinyRun, edgeff

Run = Callable[..., CompletedProcess[str]]


def adapt(tiny: TinyRun, out: Path, *more: object) -> Result:
    result = edgeff("train-on-device", tiny.artifact, "--data", tiny.own, "--out", out, "--epochs", 2, *more)
    assert result.exit_code == 0, result.output
    return result


def test_training_tells_its_result_on_stdout_and_its_progress_on_stderr(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = adapt(tiny, out)
    first, second = result.stdout.splitlines()
    kept = r"kept the weights of epoch [12] of 2: guard accuracy 0\.\d{4} before, 0\.\d{4} kept"
    assert re.fullmatch(rf"{re.escape(str(out))}: {kept}", first)
    size = r"[\d.]+ [KMG]?i?B"
    assert re.fullmatch(
        rf"floor {size}, training bytes measured {size}, planned {size}, budget {size}; "
        rf"\d+\.\d s, {size} written to disk",
        second,
    )
    assert re.findall(r"^epoch (\d)  guard accuracy 0\.\d{4}$", result.stderr, re.MULTILINE) == ["0", "1", "2"]
    assert {path.name for path in out.iterdir()} >= {"run.json", "best.safetensors", "result.json"}


def test_training_prints_json_with_what_was_planned_and_measured(tiny: TinyRun, tmp_path: Path) -> None:
    found = json.loads(adapt(tiny, tmp_path / "run", "--json", "--threads", 1, "--budget", "64MiB").stdout)
    assert list(found)[:4] == ["run", "floor_bytes", "budget_bytes", "training_bytes"]
    assert set(found) >= {
        *("edgeff_version", "best_epoch", "epochs", "guard", "rows", "seconds", "engine", "threads", "allocator"),
        *("planned_bytes", "plan", "measured"),
    }
    assert found["run"] == str(tmp_path / "run")
    assert found["budget_bytes"] == 64 << 20
    assert (found["epochs"], found["threads"], len(found["guard"])) == (2, 1, 3)
    assert found["planned_bytes"] <= found["budget_bytes"]
    assert found["rows"]["replay"] == 24
    assert found["rows"]["trained_on"] + found["rows"]["guard"] + found["rows"]["left_out"] == 240


def test_a_smaller_budget_makes_a_smaller_micro_batch(tiny: TinyRun, tmp_path: Path, run_device: Run) -> None:
    # In processes of their own: training is stopped where it measures more than its budget.
    def train(out: str, budget: str) -> CompletedProcess[str]:
        command = ("train-on-device", str(tiny.artifact), "--data", str(tiny.own), "--out", str(tmp_path / out))
        settings = ("--epochs", "1", "--batch-size", "192", "--threads", "1", "--budget", budget, "--json")
        return run_device("-m", "edgeff", *command, *settings)

    large = json.loads(train("large", "64MiB").stdout)
    assert large["plan"]["micro_batch"] == 192
    smallest = re.search(r"the smallest budget that works is ([\d,]+)", train("none", "1").stderr)
    assert smallest
    result = train("small", smallest[1].replace(",", ""))
    assert result.returncode == 0, result.stderr
    small = json.loads(result.stdout)
    assert small["plan"]["micro_batch"] < 192
    assert small["training_bytes"] <= small["budget_bytes"] < large["planned_bytes"]


def test_a_total_budget_counts_the_whole_process(tiny: TinyRun, tmp_path: Path, run_device: Run) -> None:
    def train(out: str, *more: str) -> CompletedProcess[str]:
        command = ("train-on-device", str(tiny.artifact), "--data", str(tiny.own), "--out", str(tmp_path / out))
        return run_device("-m", "edgeff", *command, "--epochs", "1", "--threads", "1", "--json", *more)

    found = json.loads(train("whole", "--budget", "96MiB", "--total").stdout)
    assert found["budget_bytes"] == (96 << 20) - found["floor_bytes"]
    assert found["floor_bytes"] + found["training_bytes"] == found["measured"]["peak_bytes"] <= 96 << 20
    over = json.loads(train("over", "--budget", "96MiB").stdout)
    assert over["planned_bytes"] < found["planned_bytes"]  # program code that was given back is planned to come back
    refused = train("none", "--budget", "1MiB", "--total")
    assert refused.returncode == 1
    assert re.search(
        r"the process takes [\d.]+ MiB before it trains, the budget for all of it is 1 MiB", refused.stderr
    )
    assert train("usage", "--total").returncode == 2


def test_the_budget_of_a_device_is_its_app_ram_less_the_floor(tiny: TinyRun, tmp_path: Path) -> None:
    found = json.loads(adapt(tiny, tmp_path / "a", "--device", "pi4-8gb", "--json").stdout)
    assert found["budget_bytes"] == 6_800_000_000 - found["floor_bytes"]
    found = json.loads(adapt(tiny, tmp_path / "b", "--device", "pi4-8gb", "--budget", "96MiB", "--json").stdout)
    assert found["budget_bytes"] == 96 << 20


def test_what_may_not_be_read_is_one_line(tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/locked/artifact")

    monkeypatch.setattr("edgeff.cli_train.open_artifact", denied)  # as root nothing is denied
    result = edgeff("train-on-device", tiny.artifact, "--data", tiny.own, "--out", tmp_path / "run")
    expected = "Error: `/locked/artifact`: Permission denied\n\nhint: check the path and its rights\n"
    assert (result.exit_code, result.stderr) == (1, expected)


def test_only_the_named_blocks_are_trained(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    adapt(tiny, out, "--blocks", "block3, block4", "--guard-fraction", 0)
    before = safetensors.numpy.load_file(tiny.artifact / "weights.safetensors")
    after = safetensors.numpy.load_file(out / "best.safetensors")
    changed = {key.partition(".")[0] for key, array in before.items() if array.tobytes() != after[key].tobytes()}
    assert changed == {"block3", "block4"}


def test_without_a_guard_the_last_epochs_weights_are_kept(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = adapt(tiny, out, "--guard-fraction", 0)
    assert result.stdout.splitlines()[0] == f"{out}: kept the weights of epoch 2 of 2"
    assert result.stderr == ""


def test_the_seed_decides_the_weights(tiny: TinyRun, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        adapt(tiny, tmp_path / name, "--seed", seed, "--threads", 1, "--guard-fraction", 0)
        found.append((tmp_path / name / "best.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_settings_given_are_those_the_run_has(tiny: TinyRun, tmp_path: Path) -> None:
    given = ("--batch-size", 16, "--learning-rate", 0.01, "--lr-schedule", "constant", "--replay-fraction", 0.25)
    adapt(tiny, tmp_path / "run", *given, "--guard-fraction", 0.3, "--seed", 4)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    wanted = {
        "batch_size": 16,
        "learning_rate": 0.01,
        "lr_schedule": "constant",
        "schedule": "sweep",
        "replay_fraction": 0.25,
        "seed": 4,
    }
    assert settings == settings | wanted | {"epochs": 2, "guard_fraction": 0.3, "blocks": None}


def test_rows_of_their_own_may_be_the_guard(tiny: TinyRun, tmp_path: Path) -> None:
    found = json.loads(adapt(tiny, tmp_path / "run", "--guard", tiny.train, "--json").stdout)
    assert found["rows"]["guard"] == found["guard"][0]["rows"] == 360
    assert (found["rows"]["trained_on"], found["rows"]["left_out"]) == (240, 0)
    other = edgeff(
        *("train-on-device", tiny.artifact, "--data", tiny.own, "--out", tmp_path / "run", "--guard", tiny.own),
        *("--epochs", 2, "--resume"),
    )
    assert "cannot be gone on with: its guard data differs" in other.stderr
    both = edgeff(
        *("train-on-device", tiny.artifact, "--data", tiny.own, "--out", tmp_path / "both", "--guard", tiny.train),
        *("--guard-fraction", 0.5),
    )
    assert both.exit_code == 2


def test_rows_are_known_again_by_another_path_and_others_by_the_same_are_not(tiny: TinyRun, tmp_path: Path) -> None:
    names = ("train-on-device", tiny.artifact, "--epochs", 1, "--threads", 1, "--out", tmp_path / "run")
    data = tmp_path / "rows.npz"
    data.write_bytes(tiny.own.read_bytes())
    assert edgeff(*names, "--data", data, "--max-steps", 2).exit_code == 75
    arrays = dict(np.load(tiny.own))
    np.savez(data, **{**arrays, "x": arrays["x"] // 2})
    other = edgeff(*names, "--data", data, "--resume")
    assert "cannot be gone on with: its data differs" in other.stderr
    assert edgeff(*names, "--data", tiny.own, "--resume").exit_code == 0


@pytest.mark.parametrize("command", ["train-on-device", "finalize"])
def test_nothing_is_written_into_an_artifact(tiny: TinyRun, command: str) -> None:
    data = ("--data", tiny.own) if command == "train-on-device" else ()
    result = edgeff(command, tiny.artifact, *data, "--out", tiny.artifact / "run")
    assert result.exit_code == 1
    assert "lies inside the artifact" in result.stderr
    assert not (tiny.artifact / "run").exists()


def test_a_micro_batch_beyond_the_rows_is_as_many_as_there_are(tiny: TinyRun) -> None:
    few, many = (
        json.loads(edgeff("evaluate", tiny.artifact, "--data", tiny.own, "--micro-batch", size, "--json").stdout)
        for size in (240, 10**22)
    )
    assert few["accuracy"] == many["accuracy"]


def test_bad_rows_are_refused_or_left_out_and_counted(tiny: TinyRun, tmp_path: Path) -> None:
    arrays = dict(np.load(tiny.own))
    labels = arrays["y"].copy()
    labels[[3, 50]] = 9
    np.savez(tmp_path / "bad.npz", **{**arrays, "y": labels})
    names = ("train-on-device", tiny.artifact, "--data", tmp_path / "bad.npz", "--epochs", 1, "--threads", 1)
    refused = edgeff(*names, "--out", tmp_path / "refused")
    assert refused.exit_code == 1
    assert "has label 9 in row 3, needed 0..2" in refused.stderr
    taken = edgeff(*names, "--out", tmp_path / "taken", "--skip-bad-rows", "--json")
    assert taken.exit_code == 0, taken.stderr
    assert "warning: left out 2 rows with a label that is no class" in taken.stderr
    assert json.loads(taken.stdout)["rows"]["skipped"] == {"with a label that is no class": 2}


def test_rows_of_one_class_alone_need_replay_rows(tiny: TinyRun, tmp_path: Path) -> None:
    arrays = dict(np.load(tiny.own))
    kept = {name: value if name == "classes" else value[arrays["y"] == 1] for name, value in arrays.items()}
    np.savez(tmp_path / "walk.npz", **kept)
    names = ("train-on-device", tiny.artifact, "--data", tmp_path / "walk.npz", "--epochs", 1, "--threads", 1)
    refused = edgeff(*names, "--out", tmp_path / "refused", "--replay-fraction", 0)
    assert refused.exit_code == 1
    assert "are of the class `walk`: a model learns from them to say nothing else" in refused.stderr
    assert edgeff(*names, "--out", tmp_path / "taken", "--replay-fraction", 0.5).exit_code == 0


def test_a_run_that_one_budget_made_a_stage_is_gone_on_with_as_one_under_a_larger(
    tiny: TinyRun, tmp_path: Path, run_device: Run
) -> None:
    def train(budget: str, *more: str) -> CompletedProcess[str]:
        command = ("train-on-device", str(tiny.artifact), "--data", str(tiny.own), "--out", str(tmp_path / "run"))
        settings = ("--epochs", "1", "--threads", "1", "--budget", budget, "--json")
        return run_device("-m", "edgeff", *command, *settings, *more)

    small = train("1KiB")
    fits = int(re.findall(r"([\d,]+) bytes", small.stderr)[0].replace(",", ""))
    assert train(str(fits), "--max-steps", "2").returncode == 75
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["schedule"] == "stage"
    done = train("64MiB", "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schedule"] == "stage"


def test_blocks_that_one_budget_froze_stay_frozen_under_a_larger(tiny: TinyRun, tmp_path: Path) -> None:
    names = ("train-on-device", tiny.artifact, "--data", tiny.own, "--epochs", 1, "--threads", 1, "--allow-freezing")
    out = tmp_path / "run"
    sweep = ("--schedule", "sweep", "--prefer", "memory", "--json")
    assert edgeff(*names, "--out", out, *sweep, "--blocks", "block3,block4", "--max-steps", 2).exit_code == 75
    gone_on = edgeff(*names, "--out", out, *sweep, "--resume", "--budget", "64MiB")
    assert gone_on.exit_code == 0, gone_on.stderr
    trained = {part["block"] for part in json.loads(gone_on.stdout)["plan"]["blocks"] if part["trained"]}
    assert trained == {"block3", "block4"}


def test_a_finished_run_that_is_told_of_once_more_says_the_same(tiny: TinyRun, tmp_path: Path) -> None:
    first = adapt(tiny, tmp_path / "run", "--json", "--threads", 1)
    again = adapt(tiny, tmp_path / "run", "--json", "--threads", 1, "--resume")
    assert json.loads(again.stdout) == json.loads(first.stdout)


@pytest.mark.parametrize("option", ["--out", "--data"])
def test_a_name_that_no_file_can_have_is_one_line(tiny: TinyRun, tmp_path: Path, option: str) -> None:
    given = {"--out": tmp_path / "run", "--data": tiny.own, option: tmp_path / ("x" * 300)}
    result = edgeff("train-on-device", tiny.artifact, *(part for pair in given.items() for part in pair))
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert re.search(r"^Error: [^\n]+\n\nhint: [^\n]+\n\Z", result.stderr, re.MULTILINE)


def test_evaluate_prints_accuracy_by_block(tiny: TinyRun) -> None:
    result = edgeff("evaluate", tiny.artifact, "--data", tiny.own)
    assert result.exit_code == 0
    assert result.stderr == ""
    first, second = result.stdout.splitlines()
    assert re.fullmatch(r"accuracy [01]\.\d{4} on 240 rows \(\d+ rows/s\)", first)
    assert re.fullmatch(r"by block: block1 \d\.\d{4} block2 \d\.\d{4} block3 \d\.\d{4} block4 \d\.\d{4}", second)


def test_evaluate_prints_json_that_the_micro_batch_does_not_change(tiny: TinyRun) -> None:
    found = [
        json.loads(edgeff("evaluate", tiny.artifact, "--data", tiny.own, "--micro-batch", rows, "--json").stdout)
        for rows in (7, 1000)
    ]
    assert set(found[0]) == {"accuracy", "log_loss", "per_class", "per_block", "rows", "rows_per_s"}
    assert found[0]["accuracy"] == found[1]["accuracy"]
    assert found[0]["log_loss"] == pytest.approx(found[1]["log_loss"], rel=1e-5)
    assert found[0]["rows"] == 240
    assert len(found[0]["per_class"]) == 3


def test_finalize_says_what_it_wrote_and_how_it_was_checked(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    result = edgeff("finalize", tiny.artifact, "--out", out)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.fullmatch(
        rf"{re.escape(str(out))}: [\d.]+ KiB, same labels as the artifact on 24 rows, "
        r"log-probabilities within \d\.\de-\d\d\n",
        result.stdout,
    )
    found = json.loads(edgeff("finalize", tiny.artifact, "--out", tmp_path / "again.onnx", "--json").stdout)
    assert set(found) == {"model", "bytes", "largest_error", "rows"}
    assert found["bytes"] == out.stat().st_size
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
