"""Pretraining and export from the command line."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
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


def own_network(file: Path) -> str:
    """A factory whose weights are drawn as torch draws them by default."""
    file.write_text(
        "from torch import nn\n"
        "from edgeff.model import LocalBlock, LocalNetwork\n"
        "def build():\n"
        "    first = LocalBlock(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU()))\n"
        "    return LocalNetwork([first], input_shape=(6, 32), classes=('sit', 'walk', 'run'))\n"
    )
    return f"{file}:build"


def test_a_network_of_ones_own_is_pretrained_and_exported(tiny: TinyRun, tmp_path: Path) -> None:
    factory = own_network(tmp_path / "mine.py")
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    result = edgeff("pretrain", "--model", factory, "--data", tiny.own, "--out", run, *SMALL)
    assert result.exit_code == 0, result.output
    (tmp_path / "mine.py").unlink()  # the run has its own copy
    result = edgeff("export", run, "--out", artifact)
    assert result.exit_code == 0, result.output
    assert [block.name for block in open_artifact(artifact).manifest.blocks] == ["block1"]


def test_the_seed_also_draws_the_weights_of_a_network_of_ones_own(tiny: TinyRun, tmp_path: Path) -> None:
    network = ("--model", own_network(tmp_path / "mine.py"), "--data", tiny.own)

    def weights(name: str, seed: int, before: int) -> bytes:
        torch.manual_seed(before)  # whatever the process has drawn so far
        state = torch.get_rng_state()
        result = edgeff("pretrain", *network, "--out", tmp_path / name, *SMALL, "--seed", seed)
        assert result.exit_code == 0, result.output
        assert torch.equal(torch.get_rng_state(), state)  # and draws on as if nothing had happened
        return (tmp_path / name / "best.safetensors").read_bytes()

    first = weights("first", seed=1, before=10)
    assert weights("again", seed=1, before=20) == first
    assert weights("other", seed=2, before=10) != first


TOKENS = """
import torch
from torch import nn
from edgeff.model import LocalBlock, LocalNetwork

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(20, 8), nn.Conv1d(8, 12, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.conv(self.embedding(x).transpose(1, 2)))

def build():
    blocks = [LocalBlock(Words()), LocalBlock(nn.Sequential(nn.Conv1d(12, 12, 3, padding=1), nn.ReLU()))]
    return LocalNetwork(blocks, input_shape=(12,), input_dtype="int64", classes=("a", "b", "c"))
"""


def token_rows(path: Path, rows: int, *, seed: int, dtype: str) -> Path:
    """Sentences of 12 words of 20, in which the word of the label stands four times."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(3, 20, (rows, 12)), np.arange(rows) % 3
    x[np.arange(rows)[:, None], rng.permuted(np.tile(np.arange(12), (rows, 1)), axis=1)[:, :4]] = y[:, None]
    np.savez(path, x=x.astype(dtype), y=y)
    return path


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_a_network_of_token_ids_goes_from_the_command_line_to_a_device_and_back(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "words.py").write_text(TOKENS)
    train = token_rows(tmp_path / "train.npz", 150, seed=0, dtype=dtype)
    own = token_rows(tmp_path / "own.npz", 60, seed=1, dtype=dtype)
    run, artifact, adapted, model = (tmp_path / name for name in ("run", "artifact", "adapted", "model.onnx"))
    settings = ("--learning-rate", 0.01, "--epochs", 6, "--batch-size", 16, "--threads", 1)
    for command in (
        ("pretrain", "--model", f"{tmp_path}/words.py:build", "--data", train, "--out", run, *settings),
        ("export", run, "--out", artifact),
        ("train-on-device", artifact, "--data", own, "--out", adapted, "--epochs", 1, "--threads", 1),
        ("finalize", artifact, "--run", adapted, "--out", model),
    ):
        result = edgeff(*command)
        assert result.exit_code == 0, result.output
    manifest = open_artifact(artifact).manifest
    assert (manifest.input.dtype, manifest.features.dtype) == (dtype, "int64")
    found = json.loads(edgeff("evaluate", artifact, "--run", adapted, "--data", own, "--json").stdout)
    assert found["accuracy"] > 0.8  # a third by chance
    session = onnxruntime.InferenceSession(model)
    rows = np.load(own)
    _, labels = session.run(["log_probabilities", "label"], {session.get_inputs()[0].name: rows["x"]})
    assert (labels == rows["y"]).mean() == pytest.approx(found["accuracy"])


def test_rows_of_numbers_with_a_point_are_no_token_ids(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(TOKENS)
    data = token_rows(tmp_path / "train.npz", 30, seed=0, dtype="float32")
    result = edgeff("pretrain", "--model", f"{tmp_path}/words.py:build", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "turns float32 into int64, needed integers (token ids)" in result.stderr


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
