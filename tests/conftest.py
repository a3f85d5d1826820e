"""What tests share: where data and environments are, and small artifacts made once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two workers share two cores: a thread pool each would only make them wait for one another."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; a test that needs one is skipped where there is none."""
    folder = Path(os.environ.get("EDGEFF_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: set EDGEFF_DATA_DIR ({folder} is not there)")
    return folder


@pytest.fixture(scope="session")
def device_python() -> Path:
    """The interpreter of the device environment: numpy and onnxruntime, no torch, no onnx."""
    python = ROOT / ".venv-device" / "bin" / "python"
    if not python.exists():
        pytest.skip("no device environment: run `make test`, which makes .venv-device")
    return python


@pytest.fixture(scope="session")
def old_python() -> Path:
    """An interpreter with onnxruntime 1.17."""
    python = ROOT / ".venv-ort117" / "bin" / "python"
    if not python.exists():
        pytest.skip("no environment with onnxruntime 1.17: run `make test`, which makes .venv-ort117")
    return python


@pytest.fixture(scope="session")
def run_device(device_python: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python <arguments>` in the device environment, outside the repository."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [str(device_python), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120, **options)  # type: ignore[call-overload, no-any-return]

    return run


@dataclass(frozen=True)
class Tiny:
    """One small network, its data and its artifact, made by the commands that a user gives.

    Three kinds of waves, seen by six sensors for 32 samples: int16 rows, with groups and recordings. Pretraining is
    short on purpose, so that training on the device has something left to learn. Tests read these files and write none.
    """

    train: Path
    own: Path
    run: Path
    artifact: Path


def wave_arrays(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` file: int16 rows (rows, 6, 32) of three classes, told apart by their frequency."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    phase = rng.uniform(0.0, 2.0 * np.pi, (rows, 6, 1))
    waves = np.sin(2.0 * np.pi * (1 + 2 * y)[:, None, None] * np.arange(32) / 32 + phase)
    x = np.round(1000 * (waves + 0.3 * rng.standard_normal((rows, 6, 32)))).astype(np.int16)
    order = rng.permutation(rows)
    columns = {"groups": np.arange(rows) // 40, "sequence": np.arange(rows) // 20}
    return {"x": x[order], "y": y[order], "classes": np.array(["sit", "walk", "run"]), **columns}


def edgeff(*arguments: object) -> Result:
    """Run a command in this process."""
    from edgeff.cli import main

    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A pretrained run and its artifact; about five seconds, once in each worker."""
    folder = tmp_path_factory.mktemp("tiny")
    made = Tiny(folder / "train.npz", folder / "own.npz", folder / "run", folder / "artifact")
    np.savez(made.train, **wave_arrays(360, seed=0))
    np.savez(made.own, **wave_arrays(240, seed=1))
    network = ("--preset", "har-cnn", "--width", 0.25, "--input-shape", "6,32")
    settings = ("--epochs", 2, "--batch-size", 32, "--replay-rows", 24, "--threads", 1)
    for arguments in (
        ("pretrain", *network, "--data", made.train, "--out", made.run, *settings),
        ("export", made.run, "--out", made.artifact),
    ):
        result = edgeff(*arguments)
        assert result.exit_code == 0, result.output
    return made
