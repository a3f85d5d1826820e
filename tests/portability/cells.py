"""What is tried: each cell trains the same cases somewhere else, and gives their losses."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portability.comparison import Losses
from portability.emulation import emulated
from portability.environments import NODE_EXAMPLE, ROOT, Skipped, install_node_modules, python_of, telling

from edgeff.providers import CPU

# Kept between runs, and ignored by git.
KEPT = ROOT / ".portability"
_WORKER = Path(__file__).with_name("worker.py")
# Emulation, the slowest, takes one minute.
_TIMEOUT_S = 900


class Failed(Exception):
    """A cell that ended by an error; the text says by which."""


@dataclass(frozen=True)
class Found:
    """What a cell gives.

    Attributes:
        versions: Of what it ran on.
        losses: By case and way of updating.
    """

    versions: Sequence[str]
    losses: Mapping[str, Mapping[str, Losses]]


@dataclass(frozen=True)
class Cell:
    """One place to train in.

    Attributes:
        name: For people, and for `--only`.
        run: Trains the cases of a folder; raises `Skipped` or `Failed`.
        target: In whose forms these are written.
    """

    name: str
    run: Callable[[Path], Found]
    target: str = CPU


def on_python(environment: str, provider: str | None = None) -> Callable[[Path], Found]:
    """A cell of edgeff's own runtime in an environment of the Makefile."""

    def run(folder: Path) -> Found:
        command = [str(python_of(environment)), str(_WORKER), str(folder)]
        return _worked([*command, "--provider", provider] if provider else command)

    return run


def on_cuda(folder: Path) -> Found:
    """A cell that makes its environment, of gigabytes, only where it is of use."""
    if not shutil.which("nvidia-smi"):
        raise Skipped("no `nvidia-smi` here, so no GPU of NVIDIA")
    return on_python(".venv-cuda", "cuda")(folder)


def on_aarch64(folder: Path) -> Found:
    """A cell with the wheel for aarch64 on an emulated processor."""
    if platform.machine() == "aarch64":
        raise Skipped("this machine is aarch64 itself: the other cells are the same, on a real one")
    linux = emulated(KEPT / "aarch64")
    found = _worked(linux.command(str(_WORKER), str(folder)), env=linux.environment())
    return Found([*found.versions, "emulated by qemu"], found.losses)


def on_node(folder: Path) -> Found:
    """A cell without any of edgeff's Python: the example for node, which knows the fused update."""
    install_node_modules()
    losses = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        lines = _output(["node", str(NODE_EXAMPLE / "train.mjs"), str(folder / name), "--steps", str(case["steps"])])
        losses[name] = {"fused": [json.loads(line)["loss"] for line in lines]}
    package = json.loads((NODE_EXAMPLE / "node_modules/onnxruntime-node/package.json").read_text())
    (version,) = _output(["node", "--version"])
    return Found([f"onnxruntime-node {package['version']}", f"node {version}", platform.machine()], losses)


def _worked(command: Sequence[str], **options: Any) -> Found:
    found = json.loads(_output(command, **options)[-1])
    if "unavailable" in found:
        raise Skipped(found["unavailable"])
    return Found(**found)


def _output(command: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """The lines that a program prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"took more than {_TIMEOUT_S} s") from error
    if done.returncode:
        raise Failed(f"ended with {done.returncode}: {telling(done.stderr)}")
    return done.stdout.splitlines()


CELLS = (
    Cell("oldest onnxruntime", on_python(".venv-ort117")),
    Cell("onnxruntime-training-cpu", on_python(".venv")),
    Cell("newest onnxruntime", on_python(".venv-device")),
    Cell("onnxruntime-openvino", on_python(".venv-openvino")),
    Cell("OpenVINO provider", on_python(".venv-openvino", "openvino")),
    Cell("WebGPU provider", on_python(".venv-webgpu", "webgpu"), target="webgpu"),
    Cell("CUDA provider", on_cuda),
    Cell("onnxruntime-node", on_node),
    Cell("aarch64", on_aarch64),
)
