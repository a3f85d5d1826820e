"""One artifact's graphs on the oldest onnxruntime promised, the training build, and the newest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeff.export.check import make_trial, run_in_place, session
from edgeff.export.graphs import compile_block
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec

RUN = """
import sys
import numpy as np
import onnxruntime
folder = sys.argv[1]
feeds = dict(np.load(folder + "/feeds.npz"))
for kind in ("step", "accumulate", "apply", "forward"):
    run = onnxruntime.InferenceSession(f"{folder}/{kind}.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in run.get_outputs()]
    found = run.run(names, {value.name: feeds[value.name] for value in run.get_inputs()})
    np.savez(f"{folder}/{kind}.found.npz", **dict(zip(names, found)))
print(onnxruntime.__version__)
"""


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.GELU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, groups=8)
    )
    block = LocalNetwork([LocalBlock(layers)], input_shape=(4, 12, 12), classes=5).blocks[0]
    spec = optimizer_spec("adamw")
    graphs = compile_block(block, optimizer_spec=spec, input_dtype="float32", last=False)
    trial = make_trial(block, graphs, spec, "float32", 5, 6, 0)
    np.savez(tmp_path / "feeds.npz", **trial.feeds)
    here = {}
    for kind, model in graphs.models.items():
        (tmp_path / f"{kind}.onnx").write_bytes(model.SerializeToString())
        here[kind] = run_in_place(model, session(model), trial.feeds)
    return tmp_path, here


@pytest.mark.parametrize(("python", "version"), [("old_python", "1.17."), ("device_python", "1.")])
def test_other_versions_of_onnxruntime_load_the_graphs_and_give_the_same_numbers(
    python: str,
    version: str,
    written: tuple[Path, dict[str, dict[str, np.ndarray]]],
    request: pytest.FixtureRequest,
) -> None:
    folder, here = written
    command = [str(request.getfixturevalue(python)), "-c", RUN, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(version)
    for kind, expected in here.items():
        found = np.load(folder / f"{kind}.found.npz")
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * max(1e-6, np.abs(values).max()))
