"""From pretraining to a plain inference model, each step where it belongs: torch here, the rest without torch."""

import json
import signal
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_run import TinyRun, edgeff, wave_arrays

from edgeff.artifact import open_artifact
from edgeff.data import open_dataset
from edgeff.pretrain_run import load_run
from edgeff.runtime.checkpoint import read_weights
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.mixture import prepare_rows
from edgeff.runtime.network import open_network
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.predict import predict
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.trainer import LearningRate, Position, Progress, Trainer
from edgeff.split import stratified_rows

Run = Callable[..., CompletedProcess[str]]


def on_device(run_device: Run, *arguments: object) -> dict[str, object]:
    """Run a command in the device environment and read the JSON that it prints."""
    result = run_device("-m", "edgeff", *map(str, arguments), "--json")
    assert result.returncode == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout)
    return found


def labels_of(model: Path, x: np.ndarray) -> np.ndarray:
    """What an ordinary onnxruntime makes of an inference model and raw rows."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["label"], {session.get_inputs()[0].name: x})[0])


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_the_device_environment_has_neither_torch_nor_onnx(run_device: Run, module: str) -> None:
    result = run_device("-c", f"import {module}")
    assert result.returncode != 0
    assert f"No module named '{module}'" in result.stderr


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_an_artifact_is_trained_tested_and_finalized_on_a_device(
    tiny: TinyRun, tmp_path: Path, run_device: Run, form: str
) -> None:
    artifact = tiny.artifact
    if form == "zip":
        artifact = tmp_path / "artifact.zip"
        assert edgeff("export", tiny.run, "--out", artifact).exit_code == 0
        assert zipfile.is_zipfile(artifact)
    run, model = tmp_path / "run", tmp_path / "model.onnx"
    before = on_device(run_device, "evaluate", artifact, "--data", tiny.own)
    trained = on_device(
        run_device, "train-on-device", artifact, "--data", tiny.own, "--out", run, "--epochs", 4, "--threads", 1
    )
    after = on_device(run_device, "evaluate", artifact, "--data", tiny.own, "--run", run)
    final = on_device(run_device, "finalize", artifact, "--run", run, "--out", model)

    assert trained["best_epoch"] >= 1  # type: ignore[operator]
    assert after["accuracy"] > before["accuracy"] + 0.05  # type: ignore[operator]
    assert final["largest_error"] <= 1e-4  # type: ignore[operator]
    rows = open_dataset(str(tiny.own), data_dir=None)
    labels = labels_of(model, np.asarray(rows.x[:]))
    opened = open_artifact(artifact)
    network = open_network(opened, OnnxRuntime(1), weights=read_weights(run, opened.manifest_sha256))
    assert labels.tolist() == predict(network, rows.x).argmax(axis=1).tolist()
    assert float((labels == rows.y).mean()) == after["accuracy"]


def test_folder_and_zip_train_to_the_same_bytes(tiny: TinyRun, tmp_path: Path) -> None:
    packed = tmp_path / "artifact.zip"
    assert edgeff("export", tiny.run, "--out", packed).exit_code == 0
    found = []
    for name, artifact in (("a", tiny.artifact), ("b", packed)):
        out = tmp_path / name
        command = ("train-on-device", artifact, "--data", tiny.own, "--out", out, "--epochs", 1, "--threads", 1)
        assert edgeff(*command).exit_code == 0
        found.append((out / "best.safetensors").read_bytes())
    assert found[0] == found[1]


def test_training_that_does_not_help_keeps_what_was_there(tiny: TinyRun, tmp_path: Path) -> None:
    arrays = wave_arrays(120, seed=5)
    arrays["y"] = np.random.default_rng(0).permutation(arrays["y"])  # labels that say nothing
    np.savez(tmp_path / "noise.npz", **arrays)
    out = tmp_path / "run"
    settings = ("--epochs", 2, "--learning-rate", 0.5, "--replay-fraction", 0)
    result = edgeff(
        "train-on-device", tiny.artifact, "--data", tmp_path / "noise.npz", "--out", out, *settings, "--json"
    )
    found = json.loads(result.stdout)
    best = found["best_epoch"]
    accuracies = [each["accuracy"] for each in found["guard"]]
    assert accuracies[best] == max(accuracies)
    assert best == accuracies.index(max(accuracies))


def test_sigterm_leaves_a_checkpoint_and_resuming_ends_as_if_nothing_had_happened(
    tiny: TinyRun, tmp_path: Path, device_python: Path
) -> None:
    def command(out: Path, *more: str) -> list[str]:
        arguments = ["train-on-device", str(tiny.artifact), "--data", str(tiny.own), "--out", str(out), *more]
        return [str(device_python), "-m", "edgeff", *arguments, "--epochs", "40", "--threads", "1", "--seed", "3"]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(whole), cwd="/", check=True, capture_output=True, timeout=60)

    process = subprocess.Popen(command(cut), cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # blocks until it is well under way: no sleep, no guess
        if line.startswith("epoch 2 "):
            break
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert stdout == ""
    assert "Error: stopped by SIGTERM, at step " in stderr
    assert "nothing is lost\n\nhint: go on by `edgeff train-on-device ... --out " in stderr
    assert (cut / "checkpoint.safetensors").exists()
    assert not (cut / "result.json").exists()

    subprocess.run(command(cut, "--resume"), cwd="/", check=True, capture_output=True, timeout=60)
    assert (cut / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, cut)]
    assert results[0]["best_epoch"] == results[1]["best_epoch"]
    speed = {"rows_per_s": None}
    assert [{**each, **speed} for each in results[0]["guard"]] == [{**each, **speed} for each in results[1]["guard"]]


def test_resuming_a_finished_run_changes_nothing(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("train-on-device", tiny.artifact, "--data", tiny.own, "--out", out, "--epochs", 1)
    assert edgeff(*command).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert edgeff(*command, "--resume").exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# --- the same twenty steps in torch ---

STEPS, BATCH, RATE = 20, 48, 2e-3


def on_runtime(
    tiny: TinyRun, micro_batch: int
) -> tuple[list[dict[str, float]], dict[str, np.ndarray], list[np.ndarray]]:
    """Twenty updates of every block: losses, weights, and which rows made up the batches."""
    artifact = open_artifact(tiny.artifact)
    settings = AdaptSettings(
        epochs=4, batch_size=BATCH, learning_rate=RATE, lr_schedule="constant", guard_fraction=0.0, seed=11
    )
    rows = prepare_rows(artifact, open_dataset(str(tiny.own), data_dir=None), settings)
    request = Request(batch_size=BATCH, schedule="sweep")
    if micro_batch < BATCH:
        request = replace(request, budget_bytes=smallest_budget(artifact.manifest, request))
    planned = plan(artifact.manifest, request)
    accumulates = micro_batch < BATCH
    assert (planned.micro_batch < BATCH) == accumulates
    if not accumulates:
        steps = tuple(replace(part, graphs=("step",), micro_batch=BATCH) for part in planned.blocks)
        planned = replace(planned, blocks=steps)
    names = [block.name for block in artifact.manifest.blocks]
    network = open_network(artifact, OnnxRuntime(1), trained=names, accumulate=accumulates)
    trainer = Trainer(
        network, planned, rows=rows.training, learning_rate=LearningRate(RATE, "constant", STEPS), seed=settings.seed
    )
    order = rows.training.order
    assert order.batches_per_epoch * settings.epochs == STEPS
    progress: list[Progress] = []
    for epoch in range(1, settings.epochs + 1):
        progress += trainer.epoch(Position(epoch=epoch, step=len(progress)))
    weights = {key: array.copy() for key, array in network.weights().items()}
    batches = [index for epoch in range(1, settings.epochs + 1) for index in order.batches(epoch)]
    return [dict(each.loss) for each in progress], weights, batches


def in_torch(tiny: TinyRun, batches: list[np.ndarray]) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The same with autograd and `torch.optim.AdamW`, one for each block, the hand-over detached."""
    run = load_run(tiny.run)
    own = open_dataset(str(tiny.own), data_dir=None)
    settings = open_artifact(tiny.artifact).manifest.optimizer.settings
    blocks = list(run.network.blocks)
    optimizers = [
        torch.optim.AdamW(
            block.parameters(),
            lr=RATE,
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["epsilon"],
            weight_decay=settings["weight_decay"],
        )
        for block in blocks
    ]
    losses = []
    for index in batches:
        x = torch.from_numpy(run.preprocessing.apply(np.asarray(own.x[index])))
        y = torch.from_numpy(own.y[index])
        row_weight = torch.full((len(index),), 1.0 / len(index))
        found = {}
        for block, optimizer in zip(blocks, optimizers, strict=True):
            handover, scores = block(x)
            loss = block.loss(scores, y, row_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found[block.name] = float(loss.detach())
            x = handover.detach()
        losses.append(found)
    return losses, {key: tensor.detach().numpy() for key, tensor in run.network.tensors().items()}


@pytest.mark.parametrize("micro_batch", [BATCH, 1], ids=["step", "accumulate-and-apply"])
def test_twenty_steps_on_the_runtime_follow_twenty_steps_in_torch(tiny: TinyRun, micro_batch: int) -> None:
    losses, weights, batches = on_runtime(tiny, micro_batch)
    expected_losses, expected = in_torch(tiny, batches)
    assert len(losses) == STEPS
    for got, needed in zip(losses, expected_losses, strict=True):
        assert got == pytest.approx(needed, rel=1e-4)
    assert weights.keys() == expected.keys()
    began = open_artifact(tiny.artifact).tensors()
    for key, needed_weights in expected.items():
        np.testing.assert_allclose(weights[key], needed_weights, rtol=1e-4, atol=1e-4, err_msg=key)
        # The comparison would say nothing of weights that stayed where they were.
        assert np.abs(needed_weights - began[key]).max() > 1e-3, key


# --- real data ---


def test_fashion_mnist_from_few_rows_to_a_better_model(data_dir: Path, tmp_path: Path, run_device: Run) -> None:
    if not (data_dir / "fashion-mnist").is_dir():
        pytest.skip(f"no Fashion-MNIST in {data_dir}")
    train = open_dataset("fashion-mnist:train", data_dir=data_dir)
    chosen = stratified_rows(train.y, 200, seed=0)
    test = open_dataset("fashion-mnist:test", data_dir=data_dir)
    parts = {
        "few": train.select(chosen[::4]),
        "more": train.select(np.delete(chosen, np.s_[::4])),
        "test": test.select(stratified_rows(test.y, 50, seed=0)),
    }
    for name, part in parts.items():
        np.savez(tmp_path / f"{name}.npz", x=part.x[:], y=part.y, classes=np.array(part.classes))
    network = ("--preset", "image-cnn", "--width", 0.25)
    settings = ("--epochs", 2, "--batch-size", 32, "--replay-rows", 100, "--threads", 1)
    run, artifact, adapted = tmp_path / "run", tmp_path / "artifact", tmp_path / "adapted"
    result = edgeff("pretrain", *network, "--data", tmp_path / "few.npz", "--out", run, *settings)
    assert result.exit_code == 0, result.stderr
    result = edgeff("export", run, "--out", artifact)
    assert result.exit_code == 0, result.stderr

    held_out = ("--data", tmp_path / "test.npz")
    before = on_device(run_device, "evaluate", artifact, *held_out)
    adapting = ("--epochs", 2, "--learning-rate", 2e-3, "--threads", 1)
    on_device(run_device, "train-on-device", artifact, "--data", tmp_path / "more.npz", "--out", adapted, *adapting)
    after = on_device(run_device, "evaluate", artifact, *held_out, "--run", adapted)
    assert after["accuracy"] > before["accuracy"] + 0.03, (before, after)  # type: ignore[operator]

    model = tmp_path / "model.onnx"
    on_device(run_device, "finalize", artifact, "--run", adapted, "--out", model)
    labels = labels_of(model, np.asarray(parts["test"].x[:]))
    assert float((labels == parts["test"].y).mean()) == after["accuracy"]
