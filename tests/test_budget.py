"""A run given a budget never exceeds it: the kernel refuses more than that, and the run does not notice.

Each run is a fresh process of the device environment (of this one where there is none). Its launcher waits for the
moment at which the floor is taken, and then lets the kernel give the process no more than the budget on top.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny_artifact import make_rows, write_tiny
from torch import nn

from edgeff.artifact import Artifact, open_artifact
from edgeff.export.writer import ExportSettings, export_network
from edgeff.manifest import TensorSpec, TrainingDefaults
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.preprocess import Preprocessing
from edgeff.presets import preset
from edgeff.runtime.adapt import adaptation_request
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.settings import default_settings
from edgeff.units import format_bytes

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's limits are Linux's")

MIB = 2**20
BATCH = 64
DEVICE = ROOT / ".venv-device" / "bin" / "python"
PYTHON = str(DEVICE) if DEVICE.exists() else sys.executable

# Making the meter takes the floor. From then on private writable memory may grow by so many bytes; or the process joins
# a control group, which counts what it touches from then on. Arguments: bytes, the group (empty for none), edgeff's.
LAUNCHER = """
import os, resource, sys
from pathlib import Path
from edgeff.runtime import meter

class LimitedMeter(meter.Meter):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        over, group = int(sys.argv[1]), sys.argv[2]
        if group:
            Path(group, "cgroup.procs").write_text(str(os.getpid()))
            return
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        most = 1024 * int(fields["VmData"].split()[0]) + over
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

meter.Meter = LimitedMeter
from edgeff.cli import main
main(sys.argv[3:], prog_name="edgeff")
"""


@dataclass(frozen=True)
class Network:
    """An artifact and rows for it."""

    artifact: Artifact
    data: Path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Network]:
    folder = tmp_path_factory.mktemp("networks")
    return {"tiny": tiny_network(folder), "har-cnn": preset_network(folder)}


def tiny_network(folder: Path) -> Network:
    x, y = make_rows(200)
    np.savez(folder / "tiny.npz", x=x, y=y)
    return Network(write_tiny(folder / "tiny"), folder / "tiny.npz")


def preset_network(folder: Path) -> Network:
    """`har-cnn` with random weights and random rows."""
    torch.manual_seed(0)
    network = preset("har-cnn")
    spec = TensorSpec("x", tuple(network.input_shape))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((240, *spec.shape), dtype=np.float32), np.arange(240) % 6
    np.savez(folder / "har.npz", x=x[40:], y=y[40:])
    path = export_network(
        network,
        folder / "har",
        preprocessing=Preprocessing(spec, (), spec),
        settings=ExportSettings(training=TrainingDefaults(epochs=2, replay_fraction=0.2, guard_fraction=0.25)),
        replay=(x[:40], y[:40]),
    )
    return Network(open_artifact(path), folder / "har.npz")


def wide_network(folder: Path) -> Network:
    """Three layers of 700 numbers, whose weights and state are nearly all that they take."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(700, 700), nn.ReLU()) for _ in range(3)]
    network = LocalNetwork([LocalBlock(layer) for layer in layers], input_shape=(700,), classes=3)
    spec = TensorSpec("x", (700,))
    x, y = np.random.default_rng(0).standard_normal((96, 700), dtype=np.float32), np.arange(96) % 3
    np.savez(folder / "wide.npz", x=x, y=y)
    path = export_network(network, folder / "wide", preprocessing=Preprocessing(spec, (), spec))
    return Network(open_artifact(path), folder / "wide.npz")


def request_of(network: Network, mode: tuple[str, str]) -> Request:
    """What the command below asks of the planner, but for the budget."""
    manifest = network.artifact.manifest
    schedule, features = mode
    return adaptation_request(
        manifest,
        replace(default_settings(manifest), batch_size=BATCH),
        len(np.load(network.data)["y"]),
        budget_bytes=None,
        schedule=schedule,
        features=None if features == "auto" else features,
        disk_bytes=1 << 40,
    )


def smallest(network: Network, mode: tuple[str, str]) -> int:
    """The smallest budget that works for it."""
    return smallest_budget(network.artifact.manifest, request_of(network, mode))


def train(
    network: Network,
    out: Path,
    mode: tuple[str, str],
    budget: int,
    *more: str,
    limit: int,
    group: Path | str = "",
    threads: int = 1,
) -> CompletedProcess[str]:
    schedule, features = mode
    command = [PYTHON, "-c", LAUNCHER, str(limit), str(group), "train-on-device", str(network.artifact.path), *more]
    command += ["--data", str(network.data), "--out", str(out), "--budget", str(budget), "--schedule", schedule]
    command += ["--features", features, "--batch-size", str(BATCH), "--epochs", "2"]
    command += ["--threads", str(threads), "--json"]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)


MODES = [("sweep", "auto"), ("stage", "rerun"), ("stage", "float32")]
ROOMS = {"smallest": 0, "a little more": MIB // 2, "more": 3 * MIB, "plenty": 64 * MIB}


@pytest.mark.parametrize("room", ROOMS.values(), ids=list(ROOMS))
@pytest.mark.parametrize("mode", MODES, ids=" ".join)
@pytest.mark.parametrize("name", ["tiny", "har-cnn"])
def test_a_run_does_with_its_budget_and_the_kernel_gives_no_more(
    networks: Mapping[str, Network], tmp_path: Path, name: str, mode: tuple[str, str], room: int
) -> None:
    budget = smallest(networks[name], mode) + room
    done = train(networks[name], tmp_path / "run", mode, budget, limit=budget)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["measured"]["source"] == "VmHWM"
    assert found["training_bytes"] <= budget
    assert found["planned_bytes"] <= budget == found["budget_bytes"]


def test_a_sweep_in_groups_of_blocks_does_with_less_than_all_gradients(tmp_path: Path) -> None:
    wide, mode = wide_network(tmp_path), ("sweep", "auto")
    budget = smallest(wide, mode)
    done = train(wide, tmp_path / "run", mode, budget, limit=budget)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plan"]["groups"] == [0, 1, 2]
    assert found["training_bytes"] <= budget == found["budget_bytes"]
    assert {block["block"] for block in found["blocks"]} == {"block1", "block2", "block3"}


def test_two_micro_batches_under_way_at_once_do_with_what_is_planned(
    networks: Mapping[str, Network], tmp_path: Path
) -> None:
    network, mode = networks["har-cnn"], ("sweep", "auto")
    two = replace(request_of(network, mode), threads=2, workers=2)
    budget = plan(network.artifact.manifest, two).planned_bytes
    # Not by a limit on writable memory: of a thread's stack that counts what is never touched.
    done = train(network, tmp_path / "run", mode, budget, limit=1 << 40, threads=2)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plan"]["workers"] == 2
    assert found["training_bytes"] <= found["planned_bytes"] <= budget


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
@pytest.mark.parametrize("name", ["tiny", "har-cnn"])
def test_the_same_run_fails_where_the_kernel_gives_far_less(
    networks: Mapping[str, Network], tmp_path: Path, name: str, mode: tuple[str, str]
) -> None:
    budget = smallest(networks[name], mode) + ROOMS["more"]
    done = train(networks[name], tmp_path / "run", mode, budget, limit=budget // 16)
    assert done.returncode != 0
    assert "emory" in done.stderr or "bad_alloc" in done.stderr
    assert not (tmp_path / "run" / "result.json").exists()


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group whose processes may touch so many bytes; a test is skipped where none can be made."""
    for parent, setting in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent, f"edgeff-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / setting).exists():
                (group / setting).write_text(str(limit))
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("no memory control group can be made here: it takes root, and the memory controller")


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
@pytest.mark.parametrize("name", ["tiny", "har-cnn"])
def test_a_run_does_with_its_budget_in_a_memory_control_group_and_is_killed_in_a_far_smaller_one(
    networks: Mapping[str, Network], tmp_path: Path, name: str, mode: tuple[str, str]
) -> None:
    """The group counts pages that are touched, those that come back after they were given back before the floor too."""
    budget = smallest(networks[name], mode)
    with memory_group(budget) as group:
        done = train(networks[name], tmp_path / "run", mode, budget, limit=0, group=group)
    assert done.returncode == 0, done.stderr
    with memory_group(budget // 16) as group:
        done = train(networks[name], tmp_path / "killed", mode, budget, limit=0, group=group)
    assert done.returncode == -signal.SIGKILL


# --- a block's part ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_block_takes_no_more_than_its_cap(
    networks: Mapping[str, Network], tmp_path: Path, mode: tuple[str, str]
) -> None:
    """What its arrays take and what its runs raise the peak by; pages of code that are read in may come on top."""
    network, budget = networks["har-cnn"], 64 * MIB
    request = request_of(network, mode)
    free, least = (plan(network.artifact.manifest, replace(request, prefer=one)) for one in ("speed", "memory"))
    largest, small = max(zip(free.blocks, least.blocks, strict=True), key=lambda pair: pair[0].planned_bytes)
    cap = (largest.planned_bytes + small.planned_bytes) // 2
    done = train(network, tmp_path / "run", mode, budget, "--block-budget", f"{largest.block}={cap}", limit=budget)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (part,) = [one for one in found["plan"]["blocks"] if one["block"] == largest.block]
    (measured,) = [one for one in found["blocks"] if one["block"] == largest.block]
    assert part["micro_batch"] < largest.micro_batch
    assert measured["budget_bytes"] == cap
    assert measured["planned_bytes"] + part["session_bytes"] <= cap
    assert measured["measured_bytes"] + part["session_bytes"] <= cap + MIB // 2
    assert measured["measured_bytes"] < largest.resident_bytes + largest.transient_bytes


# --- the budget changes while it runs ---------------------------------------------------------------------------------

# Lowers the budget after the second update by the control file, and with it what the kernel gives; raises both again
# four updates later. Prints what the run said. Arguments: artifact, rows, folder of the run, schedule, features, bytes.
LOWER_AND_RAISE = """
import json, resource, sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy.ma, numpy.random
from edgeff.artifact import open_artifact
from edgeff.data import open_dataset
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.allocator import return_free_memory, set_lean_allocator
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.control import Control
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Progress, Replanned
from edgeff.runtime.meter import Meter, residency
from edgeff.runtime.plan import plan
from edgeff.runtime.settings import default_settings
from edgeff.units import format_bytes

artifact_, data, out, schedule, features, low = sys.argv[1:]
low = int(low)
control = Control(Path(out + ".json"))

def data_bytes():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["VmData"].split()[0])

def ask(budget):
    control.path.write_text(json.dumps({"budget": budget}))

set_lean_allocator()
engine = OnnxRuntime(1)
return_free_memory()
meter, at_floor = Meter(), data_bytes()
artifact = open_artifact(Path(artifact_))
rows = open_dataset(data, data_dir=None)
settings = replace(default_settings(artifact.manifest), batch_size=64, epochs=5, schedule=schedule)
request = adaptation_request(
    artifact.manifest, settings, len(rows), budget_bytes=64 << 20, schedule=schedule,
    features=None if features == "auto" else features, disk_bytes=1 << 40,
)
run = Adaptation(
    artifact, rows, settings, request, plan(artifact.manifest, request), engine, RunFolder(Path(out)), meter,
    asked_budget=control.budget,
)
done, changed, taken, sizes = 0, [], [], []
for event in run.run():
    if isinstance(event, Replanned):
        changed.append([done, event.reason, event.plan.planned_bytes, event.plan.micro_batch])
        soft = at_floor + low if len(changed) == 1 else -1
        resource.setrlimit(resource.RLIMIT_DATA, (soft, -1))
    if isinstance(event, Progress):
        done += 1
        sizes.append(event.micro_batch)
        taken.append(meter.recent().training_bytes)
        if done == 2:
            ask(low)
        if done == 6:
            ask(64 << 20)
print(json.dumps({"changed": changed, "taken": taken, "sizes": sizes, "first": run.plan.micro_batch}))
"""


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_lowered_budget_is_kept_from_the_next_update_on_and_a_raised_one_brings_the_faster_plan_back(
    networks: Mapping[str, Network], tmp_path: Path, mode: tuple[str, str]
) -> None:
    network, low = networks["har-cnn"], smallest(networks["har-cnn"], mode)
    paths = (network.artifact.path, network.data, tmp_path / "run")
    command = [PYTHON, "-c", LOWER_AND_RAISE, *map(str, paths), *mode, str(low)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (lowered, why, planned, small), (raised, _, _, large) = found["changed"]
    assert (lowered, raised) == (2, 6)
    assert why == f"the budget is {format_bytes(low)} now"
    assert planned <= low
    assert small < large == found["first"]
    assert found["sizes"][:7] == [large] * 2 + [small] * 4 + [large]
    assert max(found["taken"][2:6]) <= low < max(found["taken"][:2])
