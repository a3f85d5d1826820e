"""The studies that need much data or time, on little of both: how they say what they find matters, not what it is."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_recipe_data import cifar100
from tiny_run import TinyRun, edgeff

from edgeff.studies import adapt, coarse_fine, k_conflict, systems, torch_process
from edgeff.studies.torch_process import TorchMeasured, measure_torch
from edgeff.studies.training import Outcome, mean_rate

ONCE = ("--seeds", 1, "--epochs", 1, "--threads", 1)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_the_sweep_over_classes_tells_of_synthetic_data_where_there_are_no_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k_conflict, "SYNTHETIC_CLASSES", (2, 4))
    monkeypatch.setattr(k_conflict, "SYNTHETIC_ROWS", 200)
    monkeypatch.setattr(k_conflict, "TEST_ROWS", 100)
    monkeypatch.delenv("EDGEFF_DATA_DIR", raising=False)
    result = edgeff("study", "k-conflict", "--out", tmp_path / "out", *ONCE)
    assert result.exit_code == 0, result.output
    assert "images are left out: `cifar10` was asked for" in result.stderr
    rows = rows_of(tmp_path / "out" / "k-conflict.csv")
    assert [(row["classes"], row["method"]) for row in rows] == [
        (count, method) for count in ("2", "4") for method in ("local", "bp-deepsup", "bp")
    ]
    for row in rows:
        bp = next(one for one in rows if one["classes"] == row["classes"] and one["method"] == "bp")
        ahead = float(row["test_accuracy"]) - float(bp["test_accuracy"])
        assert float(row["ahead_of_bp"]) == pytest.approx(ahead)
    assert "On synthetic data local learning is " in result.stdout


def test_coarse_fine_and_random_labels_are_of_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar100(tmp_path)
    monkeypatch.setattr(coarse_fine, "ROWS_PER_CLASS", {"cifar100": 2})
    seen: dict[str, set[bytes]] = {}
    real = coarse_fine.prepared

    def watched(data, network, classes, method, seed, settings):  # type: ignore[no-untyped-def]
        seen.setdefault(f"{classes}-{data[0].y.tolist()}", set()).add(data[0].x[:].tobytes())
        return real(data, network, classes, method, seed, settings)

    monkeypatch.setattr(coarse_fine, "prepared", watched)
    out = tmp_path / "out"
    result = edgeff("study", "coarse-fine", "--data-dir", tmp_path, "--out", out, *ONCE)
    assert result.exit_code == 0, result.output
    rows = rows_of(out / "coarse-fine.csv")
    assert [row["classes"] for row in rows[::3]] == ["100", "20", "20"]
    assert len(seen) == 3
    assert len(set.union(*seen.values())) == 1
    assert "On cifar100, local learning less back-propagation is " in result.stdout


def test_adapting_compares_four_ways_on_the_same_people(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        f'about = "x"\n[data]\ndata = "{tiny.train}"\ntest = "{tiny.own}"\n'
        '[network]\npreset = "har-cnn"\nwidth = 0.25\n'
        "[training]\nepochs = 1\nbatch_size = 32\n"
    )
    scenarios = {
        name: adapt.Scenario(str(recipe), scenario.prepare, scenario.own_run)
        for name, scenario in adapt.SCENARIOS.items()
        if name != "new speaker"
    }
    monkeypatch.setattr(adapt, "SCENARIOS", scenarios)
    monkeypatch.setattr(adapt, "CASES", 2)
    result = edgeff("study", "adapt", "--out", tmp_path / "out", *ONCE)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out" / "adapt.csv")
    assert [row["scenario"] for row in rows[::4]] == list(scenarios)
    assert [row["method"] for row in rows[:4]] == ["none", "last block", "local", "back-propagation"]
    assert [row["runs"] for row in rows[::4]] == ["2", "2", "2", "1"]
    by_method = {row["method"]: row for row in rows[:4]}
    assert float(by_method["none"]["seconds"]) == float(by_method["none"]["forgotten"]) == 0.0
    assert all(float(by_method[name]["seconds"]) > 0.0 for name in ("last block", "local", "back-propagation"))
    assert int(by_method["last block"]["planned_bytes"]) < int(by_method["local"]["planned_bytes"])
    # One pretraining for all that train the same, and one without the class that comes later.
    runs = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert runs == ["tiny-DTG-FF-seed0", "tiny-new-class-seed0"]


@pytest.mark.parametrize("method", ["bp+accumulation+checkpointing", "local"])
def test_an_update_on_torch_is_measured_in_a_process_of_its_own(method: str) -> None:
    arguments = {"input_shape": [3, 16, 16], "classes": 3, "width": 0.1}
    found = measure_torch("vgg8", arguments, method, batch=4, micro_batch=2, threads=1)
    assert found.runtime.startswith("torch 2.")
    assert found.micro_batch == 2
    assert found.floor_bytes > 2**26
    assert found.training_bytes >= 0
    assert found.rows_per_s > 0


def test_checkpointed_and_accumulated_updates_are_those_of_the_whole_batch() -> None:
    import torch

    from edgeff.presets import preset

    x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % 3
    weights = []
    for size, again in ((6, False), (2, False), (6, True), (3, True)):
        network = preset("vgg8", input_shape=(3, 16, 16), classes=3, width=0.1).regroup("whole", "last")
        update = torch_process._update(network, size, torch_process._whole_pass(network, again))
        for _ in range(2):
            update(x, y)
        weights.append({name: value.clone() for name, value in network.tensors().items()})
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-4)


def test_the_audit_tells_whether_its_aim_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own:
        def __init__(self, method: str, size: int) -> None:
            self.runtime, self.micro_batch, self.floor_bytes = "onnxruntime 1", size, 70 << 20
            self.training_bytes = (10 if method in systems.OWN else 40) * size << 20
            self.rows_per_s = 8.0 if method in systems.OWN else 5.0

    turns: list[str] = []
    checked: list[str] = []

    def own(path: Path, method: str, *, micro_batch: int | None, budget_bytes: int | None, **told: object) -> Own:
        assert told == {"batch_size": systems.BATCH, "threads": 1, "repeats": 1, "python": str(interpreter)}
        turns.append("own")
        if micro_batch is None:
            assert (method, budget_bytes) == ("sweep", 90 << 20)
        return Own(method, micro_batch or 2)

    def torch_run(*arguments: object, micro_batch: int, device: str, **_: object) -> TorchMeasured:
        assert device == "cpu"
        turns.append("torch")
        speed = [9.0, 7.5, 6.0][len(turns) // 19]
        return TorchMeasured("torch 2", micro_batch, 200 << 20, 50 * micro_batch << 20, speed)

    monkeypatch.setattr(systems, "_artifact", lambda out, *_: out)
    monkeypatch.setattr(systems, "measure_method", own)
    monkeypatch.setattr(systems, "measure_torch", torch_run)
    monkeypatch.setattr(systems, "check_interpreter", checked.append)
    interpreter = tmp_path / "python"
    interpreter.symlink_to(sys.executable)
    result = edgeff("study", "systems", "--out", tmp_path / "out", "--seeds", 3, "--device-python", interpreter)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out" / "systems.csv")
    assert len(rows) == 19
    assert checked == [str(interpreter)]
    assert turns == 3 * (8 * ["torch"] + 11 * ["own"])  # by turns, not one row after another
    sizes = [int(row["training_bytes"]) for row in rows]
    assert sizes == sorted(sizes)
    assert [row["micro_batch"] for row in rows if row["method"] == "sweep within 90 MiB"] == ["2"]
    assert "10 MiB over its floor" in result.stdout
    assert "0.25 times that" in result.stdout
    # Of the medians: in its first round torch was the faster.
    assert "1.07 times that, in 0.20 times the bytes" in result.stdout
    assert result.stdout.rstrip().endswith("at no fewer rows per second, is met.")
    assert np.isclose(float(rows[0]["rows_per_s"]), 8.0)


def test_on_a_gpu_the_audit_runs_on_torch_alone_within_eight_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torch_run(name: str, arguments: object, method: str, *, micro_batch: int, **told: object) -> TorchMeasured:
        assert told == {"batch": systems.BATCH, "threads": 1, "device": "cuda", "limit_bytes": 8 * 10**9}
        if method == "bp":
            raise torch_process.DoesNotFit("`bp` on PyTorch does not fit: so many bytes")
        return TorchMeasured("torch 2", micro_batch, 0, (1 if method == "local" else 3) * micro_batch << 20, 9.0)

    monkeypatch.setattr(systems, "torch_device", lambda name: name)
    monkeypatch.setattr(systems, "measure_torch", torch_run)
    result = edgeff("study", "systems", "--out", tmp_path / "out", "--seeds", 1, "--device", "cuda")
    assert result.exit_code == 0, result.output
    assert "`bp` on PyTorch does not fit: so many bytes" in result.stderr
    rows = rows_of(tmp_path / "out" / "systems.csv")
    assert [row["method"] for row in rows].count("local") == 3
    assert len(rows) == 10
    assert result.stdout.rstrip().endswith("at no fewer rows per second, is met.")


def test_the_audit_says_that_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = edgeff("study", "systems", "--out", tmp_path / "out", "--device", "cuda")
    assert result.exit_code == 1
    assert "device `cuda` is asked for, and torch finds none" in result.stderr


def test_more_than_the_gpu_may_give_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"

    def ended(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=1, stderr=told, stdout="")

    monkeypatch.setattr(torch_process.subprocess, "run", ended)
    with pytest.raises(torch_process.DoesNotFit, match=r"does not fit: torch\.OutOfMemoryError: CUDA out of"):
        measure_torch("vgg8", {}, "bp", batch=1, micro_batch=1, threads=1, device="cuda", limit_bytes=1)


def test_a_local_update_on_torch_is_that_of_the_blocks_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from edgeff.learner import Learner, learn_batch
    from edgeff.presets import preset
    from edgeff.pretrain_settings import PretrainSettings

    # Plain gradient descent: AdamW's first steps would look alike whatever the gradient's size.
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, fused: torch.optim.SGD(parameters, lr=0.1))
    arguments: dict[str, Any] = {"input_shape": (3, 16, 16), "classes": 3, "width": 0.1}
    x, y = torch.randn(7, 3, 16, 16), torch.arange(7) % 3
    whole, cut = preset("vgg8", **arguments), preset("vgg8", **arguments)
    settings = PretrainSettings(optimizer="sgd", learning_rate=0.1, momentum=0.0, schedule="constant", weight_decay=0.0)
    learn_batch([Learner(block, settings, steps=1) for block in whole.sequence], x, y, step=1)
    torch_process._update(cut, 2, torch_process._local_pass(cut))(x, y)
    for name, value in whole.tensors().items():
        torch.testing.assert_close(cut.tensors()[name], value, rtol=1e-4, atol=1e-6)


def test_rates_that_are_not_known_are_left_out_of_a_mean() -> None:
    known = Outcome(0.5, 0.5, (0.5,), (1.0,), 8.0, 1, 10)
    elsewhere = replace(known, rows_per_s=None)
    assert mean_rate([known, elsewhere, replace(known, rows_per_s=4.0)]) == 6.0
    assert mean_rate([elsewhere]) is None
