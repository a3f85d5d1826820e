"""Training for long takes what training for a moment takes: resident bytes, files and threads do not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from tiny_artifact import Tiny, write_tiny

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the kernel's figures of a process"
)

DEVICE = ROOT / ".venv-device" / "bin" / "python"
PYTHON = str(DEVICE) if DEVICE.exists() else sys.executable

# Trains as `train-on-device` does, with a meter, checkpoints, a guard and a control file, and notes what the process
# has after some updates. Arguments: artifact, folder of the run, schedule, features, micro-batch, bytes that each
# update loses.
TRAIN = """
import json, os, sys
from pathlib import Path

import numpy as np
import numpy.ma, numpy.random
from edgeff.artifact import open_artifact
from edgeff.dataset import Dataset
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.allocator import set_lean_allocator
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.control import Control
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Progress
from edgeff.runtime.meter import Meter, residency
from edgeff.runtime.plan import plan
from edgeff.runtime.settings import AdaptSettings

artifact, out, schedule, features, micro_batch, leak = sys.argv[1:]
set_lean_allocator()
engine = OnnxRuntime(1)
meter = Meter()
artifact = open_artifact(Path(artifact))
blocks = ("block2",) if schedule == "stage" else None  # all updates in one stage
settings = AdaptSettings(
    epochs=20, batch_size=8, learning_rate=0.01, replay_fraction=0.25, guard_fraction=0.1, checkpoint_steps=100,
    schedule=schedule, blocks=blocks,
)
y = np.arange(800, dtype=np.int64) % 4
rows = Dataset("drift", np.random.default_rng(0).normal(size=(800, 6)).astype(np.float32), y)
request = adaptation_request(
    artifact.manifest, settings, 800, budget_bytes=64 << 20, schedule=schedule, features=features,
    disk_bytes=1 << 30, micro_batch=int(micro_batch),
)
control = Control(Path(out + ".json"))
run = Adaptation(
    artifact, rows, settings, request, plan(artifact.manifest, request), engine, RunFolder(Path(out)), meter,
    asked_budget=control.budget,
)
done, seen, lost = 0, {}, []
for event in run.run():
    if not isinstance(event, Progress):
        continue
    done += 1
    lost.append(bytes(int(leak)))
    if done % 60 == 30:
        seen[done] = [residency().resident_bytes, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]
print(json.dumps({"seen": list(seen.items()), "updates": done}))
"""


def grown(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    artifact = write_tiny(tmp_path / "tiny", Tiny(blocks=3, fusion=(1.0, 0.5, 0.25)))
    command = [PYTHON, "-c", TRAIN, str(artifact.path), str(tmp_path / "run"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def assert_nothing_grows(found: dict[str, Any]) -> None:
    """From the 200th update to the 2,000th."""
    assert found["updates"] > 2000
    seen = dict(found["seen"])
    early, late = (next(seen[updates] for updates in seen if updates >= least) for least in (200, 2000))
    assert late[0] - early[0] < 256 * 1024
    assert late[1:] == early[1:]


@pytest.mark.parametrize(
    ("schedule", "features", "micro_batch"),
    [("sweep", "rerun", "8"), ("sweep", "rerun", "3"), ("stage", "rerun", "8"), ("stage", "float32", "3")],
)
def test_over_two_thousand_updates_nothing_grows(
    tmp_path: Path, schedule: str, features: str, micro_batch: str
) -> None:
    assert_nothing_grows(grown(tmp_path, schedule, features, micro_batch, "0"))


def test_a_run_that_loses_as_little_as_two_hundred_bytes_with_every_update_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        assert_nothing_grows(grown(tmp_path, "sweep", "rerun", "8", "200"))
