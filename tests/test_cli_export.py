"""Export from the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_run import CLASSES, TinyRun, edgeff, wave_arrays

from edgeff.artifact import open_artifact


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--losses", "all"), "--losses is for blocks of several layers: it needs --blocks"),
        (("--rows-together", 8), "--rows-together is for networks that compare rows; no block of this one does"),
    ],
)
def test_options_that_would_change_nothing_are_wrong_usage(
    tiny: TinyRun, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = edgeff("export", tiny.run, "--out", tmp_path / "artifact", *options)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "artifact").exists()


def test_blocks_that_no_prediction_depends_on_are_left_out(tiny: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny.run, run)
    recipe = json.loads((run / "recipe.json").read_text())
    for metrics in recipe["metrics"]:
        metrics["validation"]["readout_weights"] = [0.0, 1.0, 0.0, 0.0]
    (run / "recipe.json").write_text(json.dumps(recipe))
    told = edgeff("export", run, "--out", tmp_path / "artifact")
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[1] == "left out: `block3`, `block4`, for no prediction depends on them"
    assert [block.name for block in open_artifact(tmp_path / "artifact").manifest.blocks] == ["block1", "block2"]
    for metrics in recipe["metrics"]:
        metrics["validation"]["readout_weights"] = [0.0, 0.0, 1.0, 0.0]
    (run / "recipe.json").write_text(json.dumps(recipe))
    found = json.loads(edgeff("export", run, "--out", tmp_path / "pairs", "--blocks", "2-layer", "--json").stdout)
    assert (found["blocks"], found["left_out"]) == (2, ["block4"])
    # The readout that was chosen predicts, and not one that was not.
    assert open_artifact(tmp_path / "pairs").manifest.fusion == (0.0, 1.0)


@pytest.fixture(scope="module")
def comparing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose first and only block compares rows, and data for it."""
    folder = tmp_path_factory.mktemp("comparing")
    data, run = folder / "rows.npz", folder / "run"
    arrays = wave_arrays(90, seed=0)
    np.savez(data, x=arrays["x"][:, 0, :8], y=arrays["y"])
    (folder / "mine.py").write_text(
        "from torch import nn\n"
        "from edgeff.model import LocalBlock, LocalNetwork\n"
        "from edgeff.relation import SupervisedContrast\n"
        "def build():\n"
        "    first = LocalBlock(nn.Sequential(nn.Linear(8, 6), nn.ReLU()), relation=SupervisedContrast(size=3))\n"
        "    second = LocalBlock(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))\n"
        "    return LocalNetwork([first, second], input_shape=(8,), classes=3)\n"
    )
    given = ("--model", f"{folder / 'mine.py'}:build", "--data", data, "--epochs", 1, "--threads", 1)
    result = edgeff("pretrain", *given, "--out", run)
    assert result.exit_code == 0, result.output
    return run, data


def test_export_says_how_many_rows_are_compared_on_the_device(comparing: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = comparing
    for name, given, expected in (("default", (), [32, 1]), ("eight", ("--rows-together", 8), [8, 1])):
        result = edgeff("export", run, "--out", tmp_path / name, *given)
        assert result.exit_code == 0, result.output
        blocks = open_artifact(tmp_path / name).manifest.blocks
        assert [block.rows_together for block in blocks] == expected
    settings = ("--data", data, "--epochs", 1, "--batch-size", 20, "--threads", 1)
    train = ("train-on-device", tmp_path / "eight", *settings)
    refused = edgeff(*train, "--out", tmp_path / "cut", "--micro-batch", 5)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(
        "Error: a micro-batch of 5 rows cuts groups of 8 that are compared with one another"
    )
    assert "give it `--micro-batch 8` or a multiple, or export with another `--rows-together`" in refused.stderr
    done = edgeff(*train, "--out", tmp_path / "whole", "--micro-batch", 16)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("count", [1, 0, -8])
def test_one_row_cannot_be_compared_with_another(comparing: tuple[Path, Path], tmp_path: Path, count: int) -> None:
    result = edgeff("export", comparing[0], "--out", tmp_path / "artifact", "--rows-together", count)
    assert result.exit_code == 2
    assert "is not in the range x>=2" in result.stderr
    assert not (tmp_path / "artifact").exists()
