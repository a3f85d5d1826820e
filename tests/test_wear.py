"""What a run writes to its disk: as planned, and within its bound."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_artifact import make_dataset, write_tiny
from tiny_run import TinyRun, edgeff

from edgeff import disk
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.plan import plan
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.wear import WriteBound, planned_writes

SETTINGS = AdaptSettings(epochs=3, batch_size=8, learning_rate=0.01, checkpoint_steps=2, guard_fraction=0.0)


def make_run(folder: Path, name: str, schedule: str, **more: object) -> Adaptation:
    path = folder / "artifact"
    artifact = write_tiny(path) if not path.exists() else None
    from edgeff.artifact import open_artifact

    artifact = artifact or open_artifact(path)
    rows, settings = make_dataset(48), replace(SETTINGS, schedule=schedule)
    request = adaptation_request(
        artifact.manifest, settings, 48, budget_bytes=None, schedule=schedule, disk_bytes=1 << 30
    )
    made = plan(artifact.manifest, request)
    return Adaptation(artifact, rows, settings, request, made, OnnxRuntime(1), RunFolder(folder / name), **more)


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_a_run_writes_what_was_planned_but_for_headers_and_nothing_beside(tmp_path: Path, schedule: str) -> None:
    run = make_run(tmp_path, "run", schedule)
    before = disk.written_bytes()
    (*_, finished) = run.run()
    found = finished.result["disk"]
    # The result itself is written after it was counted.
    results = (run.folder.path / "result.json").stat().st_size
    assert disk.written_bytes() - before - results == pytest.approx(found["written_bytes"], abs=2000)
    headers = 2000 * 40
    assert found["most_bytes"] - found["best_bytes"] <= found["written_bytes"] <= found["most_bytes"] + headers
    checkpoint = (run.folder.path / "previous.safetensors").stat().st_size
    assert checkpoint <= found["checkpoint_bytes"] + 4000


def test_a_bound_makes_checkpoints_wait_and_changes_nothing_else(tmp_path: Path) -> None:
    free, bound = make_run(tmp_path, "free", "sweep"), make_run(tmp_path, "bound", "sweep", writes_per_hour=1)
    results = [list(run.run())[-1].result for run in (free, bound)]
    assert results[1]["disk"]["written_bytes"] < results[0]["disk"]["written_bytes"] / 2
    assert free.folder.best.read_bytes() == bound.folder.best.read_bytes()


@given(
    rate=st.integers(1, 10**6),
    sizes=st.lists(st.integers(1, 10**5), min_size=1, max_size=60),
    gaps=st.lists(st.floats(0, 600), min_size=60, max_size=60),
)
def test_in_any_time_no_more_is_allowed_than_the_bound_and_what_may_be_written_at_once(rate, sizes, gaps) -> None:
    now = [0.0]
    bound, written = WriteBound(rate, clock=lambda: now[0]), []
    for size, gap in zip(sizes, gaps, strict=False):
        now[0] += gap
        if bound.allows(size):
            bound.count(size)
            written.append((now[0], size))
    for first, (start, _) in enumerate(written):
        for last in range(first, len(written)):
            part = written[first : last + 1]
            at_once = max(rate / 12, max(size for _, size in part))
            assert sum(size for _, size in part) <= (part[-1][0] - start) * rate / 3600 + at_once + 1e-3


def test_a_checkpoint_larger_than_what_may_be_written_at_once_comes_in_its_time() -> None:
    now = [0.0]
    bound = WriteBound(3600, clock=lambda: now[0])  # a byte each second
    assert not bound.allows(1000)
    now[0] = 699.0
    assert not bound.allows(1000)
    now[0] = 701.0
    assert bound.allows(1000)


def test_the_time_between_checkpoints_follows_from_the_bound(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", "sweep")
    manifest = run.artifact.manifest
    planned = planned_writes(manifest, SETTINGS, run.plan, updates=6, bound=3600)
    assert planned.checkpoint_every_s == planned.checkpoint_bytes
    assert planned_writes(manifest, SETTINGS, run.plan, updates=6, bound=None).checkpoint_every_s == 0


def test_the_command_tells_what_was_written(tiny: TinyRun, tmp_path: Path) -> None:
    names = ("train-on-device", tiny.artifact, "--data", tiny.own, "--epochs", 1, "--threads", 1, "--json")
    found = json.loads(edgeff(*names, "--out", tmp_path / "run", "--writes-per-hour", "64MiB").stdout)["disk"]
    assert found["bound_bytes_per_hour"] == 64 * 2**20
    assert 0 < found["written_bytes"] < 64 * 2**20
    free = json.loads(edgeff(*names, "--out", tmp_path / "free", "--writes-per-hour", "0").stdout)["disk"]
    assert free["bound_bytes_per_hour"] is None
