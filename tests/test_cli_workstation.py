"""Pretraining and export from the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_run import CLASSES, TinyRun, edgeff, wave_arrays

from edgeff.artifact import open_artifact
from edgeff.cli_progress import ProgressLine

SMALL = ("--width", 0.25, "--epochs", 1, "--batch-size", 32, "--threads", 1)


def test_pretraining_tells_its_result_on_stdout_and_its_progress_on_stderr(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = edgeff("pretrain", "--preset", "har-cnn", "--data", tiny.own, "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        rf"{re.escape(str(out))}: best epoch 1, validation accuracy 0\.\d{{4}} \((0\.\d{{3}} ?){{4}}\)\n", result.stdout
    )
    assert re.fullmatch(r"epoch 1/1  validation accuracy 0\.\d{4}\n", result.stderr)


def test_pretraining_takes_its_shape_from_the_data_and_prints_json(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = edgeff(
        "pretrain",
        "--preset",
        "har-cnn",
        "--data",
        tiny.own,
        "--validation",
        tiny.train,
        "--out",
        out,
        *SMALL,
        "--json",
    )
    found = json.loads(result.stdout)
    assert set(found) == {"run", "best_epoch", "validation_accuracy", "readout_accuracy"}
    assert (found["run"], found["best_epoch"], len(found["readout_accuracy"])) == (str(out), 1, 4)
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["source"]["arguments"]["input_shape"] == [6, 32]
    assert recipe["split"]["validation"]["rows"] == 360


@pytest.mark.parametrize(
    ("preset", "row", "shape"),
    [
        ("image-cnn", (16, 16, 3), [3, 16, 16]),
        ("image-cnn", (16, 16), [1, 16, 16]),
        ("image-cnn", (3, 16, 16), [3, 16, 16]),
        ("mlp", (4, 8), [32]),
    ],
)
def test_channels_are_found_wherever_the_rows_have_them(
    tmp_path: Path, preset: str, row: tuple[int, ...], shape: list[int]
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 256, (30, *row)).astype(np.uint8), y=np.arange(30) % 3)
    out = tmp_path / "run"
    result = edgeff("pretrain", "--preset", preset, "--data", tmp_path / "d.npz", "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    arguments = json.loads((out / "recipe.json").read_text())["source"]["arguments"]
    assert (arguments["input_shape"], arguments["classes"]) == (shape, 3)


def test_a_network_of_ones_own_is_pretrained_and_exported(tiny: TinyRun, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "from edgeff.model import LocalBlock, LocalNetwork\n"
        "def build():\n"
        "    first = LocalBlock(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU()))\n"
        "    return LocalNetwork([first], input_shape=(6, 32), classes=('sit', 'walk', 'run'))\n"
    )
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    result = edgeff("pretrain", "--model", f"{file}:build", "--data", tiny.own, "--out", run, *SMALL)
    assert result.exit_code == 0, result.output
    file.unlink()  # the run has its own copy
    result = edgeff("export", run, "--out", artifact)
    assert result.exit_code == 0, result.output
    assert [block.name for block in open_artifact(artifact).manifest.blocks] == ["block1"]


def test_the_same_pretraining_gives_the_same_bytes_and_resuming_a_finished_one_changes_nothing(
    tiny: TinyRun, tmp_path: Path
) -> None:
    network = ("--preset", "har-cnn", "--data", tiny.own, "--width", 0.25, "--threads", 1, "--batch-size", 32)
    for name in ("whole", "again"):
        assert edgeff("pretrain", *network, "--out", tmp_path / name, "--epochs", 2).exit_code == 0
    weights = (tmp_path / "whole" / "best.safetensors").read_bytes()
    assert (tmp_path / "again" / "best.safetensors").read_bytes() == weights
    result = edgeff("pretrain", *network, "--out", tmp_path / "again", "--epochs", 2, "--resume")
    assert result.exit_code == 0
    assert (tmp_path / "again" / "best.safetensors").read_bytes() == weights


def test_export_says_how_near_to_torch_every_graph_is(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    result = edgeff("export", tiny.run, "--out", out)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.fullmatch(
        rf"{re.escape(str(out))}: 4 blocks, every graph within \d\.\de-\d\d of torch \(allowed 1e-05\)\n", result.stdout
    )


def test_export_prints_json_and_keeps_the_settings_it_was_given(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "artifact.zip"
    given = ("--batch-size", 8, "--epochs", 3, "--learning-rate", 0.01, "--optimizer", "sgd", "--momentum", 0.5)
    found = json.loads(edgeff("export", tiny.run, "--out", out, *given, "--no-replay", "--json").stdout)
    assert found["artifact"] == str(out)
    assert found["blocks"] == 4
    assert 0 < found["largest_error"] < 1e-5
    manifest = open_artifact(out).manifest
    training = manifest.training
    assert (training.batch_size, training.epochs, training.learning_rate) == (8, 3, 0.01)
    assert (manifest.optimizer.kind, manifest.optimizer.settings["momentum"]) == ("sgd", 0.5)
    assert (manifest.replay, training.replay_fraction) == (None, 0.0)
    assert manifest.classes == CLASSES


@pytest.mark.parametrize(("blocks", "count"), [("2-layer", 2), ("whole", 1)])
def test_layers_are_joined_into_blocks(tiny: TinyRun, tmp_path: Path, blocks: str, count: int) -> None:
    out = tmp_path / "artifact"
    result = edgeff("export", tiny.run, "--out", out, "--blocks", blocks)
    assert result.exit_code == 0, result.output
    assert len(open_artifact(out).manifest.blocks) == count
    result = edgeff("train-on-device", out, "--data", tiny.own, "--out", tmp_path / "run", "--epochs", 1)
    assert result.exit_code == 0, result.output


def test_a_model_without_class_names_takes_data_with_any(tmp_path: Path) -> None:
    arrays = wave_arrays(120, seed=3)
    np.savez(tmp_path / "named.npz", **arrays)
    np.savez(tmp_path / "numbered.npz", **{key: array for key, array in arrays.items() if key != "classes"})
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    edgeff("pretrain", "--preset", "har-cnn", "--data", tmp_path / "numbered.npz", "--out", run, *SMALL)
    edgeff("export", run, "--out", artifact)
    assert open_artifact(artifact).manifest.classes == ("0", "1", "2")
    assert edgeff("evaluate", artifact, "--data", tmp_path / "named.npz").exit_code == 0


def test_where_stderr_is_no_terminal_progress_is_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("edgeff.cli_progress.time.monotonic", lambda: now[0])
    with ProgressLine("train", 4) as line:
        for step in range(1, 5):
            now[0] += 4
            line.show(step, f"loss {step}")
        line.note("epoch 1")
    captured = capsys.readouterr()
    assert captured.err == "train 3/4  loss 3\nepoch 1\n"
    assert captured.out == ""


def test_in_a_terminal_progress_is_a_bar_that_is_renewed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ProgressLine("train", 4) as line:
        line.show(1, "loss 2")
        line.show(4, "loss 1")
    first, last = f"train [{'#' * 6}{'-' * 18}] 1/4  loss 2", f"train [{'#' * 24}] 4/4  loss 1"
    assert capsys.readouterr().err == f"\r{first}\x1b[K\r{last}\x1b[K\n"
