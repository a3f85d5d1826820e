"""What tests share: where data and environments are, and small artifacts made once."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_run import TinyRun, make_tiny_run

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
    # torch writes its structured trace as log records; collecting them takes longer than the work they tell of.
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)


@pytest.fixture(scope="session", autouse=True)
def _frozen_modules(_one_thread: None) -> None:
    """A run collects garbage at every turn: with torch loaded that takes 0.1 s, unless that is left out of it."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A pretrained run and its artifact, made by commands; about five seconds, once in each worker."""
    return make_tiny_run(tmp_path_factory.mktemp("tiny"))
