"""Pretraining on an NVIDIA GPU; skipped where torch finds none, as in CI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeff.dataset import Dataset
from edgeff.export import export_network
from edgeff.learner import Learner, learn_batch
from edgeff.locality import check_locality
from edgeff.preprocess import fit_preprocessing
from edgeff.presets import preset
from edgeff.pretrain import pretrain
from edgeff.pretrain_run import load_run
from edgeff.pretrain_settings import PretrainSettings
from edgeff.studies.torch_process import DoesNotFit, measure_torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU")

RULE = {"auxiliary": 16, "auxiliary_cells": 4}
ARGUMENTS = {"input_shape": [3, 32, 32], "classes": 10}


def images(count: int = 512) -> Dataset:
    """Images (16, 16, 3) of four classes, which differ in where they are bright."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, count)
    x = rng.integers(0, 120, (count, 16, 16, 3))
    for row, label in enumerate(y):
        x[row, 8 * (label // 2) : 8 * (label // 2) + 8, 8 * (label % 2) : 8 * (label % 2) + 8] += 100
    return Dataset("corners", x.astype(np.uint8), y.astype(np.int64))


def test_an_update_on_the_gpu_is_that_of_the_cpu() -> None:
    weights = []
    x, y = torch.randn(32, 3, 16, 16, dtype=torch.float64), torch.arange(32) % 4
    for device in ("cpu", "cuda"):
        network = preset("vgg8", input_shape=(3, 16, 16), classes=4, width=0.1, rule=RULE).double().to(device)
        learners = [Learner(block, PretrainSettings(), steps=10) for block in network.sequence]
        for step in range(1, 4):
            learn_batch(learners, x.to(device), y.to(device), step=step)
        weights.append({name: value.cpu() for name, value in network.tensors().items()})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_a_run_on_the_gpu_learns_resumes_is_local_and_is_exported(tmp_path: Path, mixed_precision: bool) -> None:
    data = images()
    preprocessing = fit_preprocessing(data, (3, 16, 16))
    network = preset("vgg8", input_shape=(3, 16, 16), classes=4, width=0.25, rule=RULE)
    settings = PretrainSettings(
        epochs=4,
        batch_size=64,
        batch_norm=True,
        augment="shift-flip-cutout" if not mixed_precision else "none",
        device="cuda",
        mixed_precision=mixed_precision,
    )

    class Interrupted(Exception):
        pass

    def interrupt(progress: object) -> None:
        if getattr(progress, "epoch", 0) == 3:
            raise Interrupted

    told = (network, data, data, preprocessing, settings)
    with pytest.raises(Interrupted):
        pretrain(*told, out=tmp_path / "run", progress=interrupt)
    result = pretrain(*told, out=tmp_path / "run", resume=True)
    assert len(result.history) == 4
    if mixed_precision:  # a mirrored corner is another class
        assert result.best.validation.accuracy > 0.9
    kept = load_run(tmp_path / "run").network
    for name, value in result.network.tensors().items():
        assert value.device.type == "cpu"
        assert value.is_contiguous()
        assert torch.equal(value, kept.tensors()[name])
    assert check_locality(result.network).local
    export_network(result.network, tmp_path / "artifact", preprocessing=preprocessing)


def test_bytes_on_the_gpu_are_measured_and_local_learning_needs_fewer() -> None:
    local, whole = (
        measure_torch("vgg8", ARGUMENTS, method, batch=64, micro_batch=64, threads=1, device="cuda")
        for method in ("local", "bp")
    )
    assert 0 < local.training_bytes < whole.training_bytes
    with pytest.raises(DoesNotFit, match="OutOfMemoryError"):
        measure_torch(
            "vgg8", ARGUMENTS, "bp", batch=64, micro_batch=64, threads=1, device="cuda", limit_bytes=100 * 2**20
        )
