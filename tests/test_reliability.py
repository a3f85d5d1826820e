"""Nothing is lost: power cuts, kills and failing disks, in short; `make test-reliability` has the long form."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
sys.path.insert(0, str(Path(__file__).parent / "reliability"))
from cut_check import check_cuts
from faulty_disk import ERRORS, KINDS, FaultyDisk
from kills import Kills, Tally, files_of
from power_cuts import Recorder
from small_run import CHECKPOINT_STEPS, small_run
from tiny_artifact import make_rows, write_tiny

from edgeff import disk
from edgeff.errors import RunError
from edgeff.optimizer import optimizer_spec, rates
from edgeff.runtime.order import MixedOrder, graph_seed

HERE = Path(__file__).parent
SCHEDULES = ("sweep", "stage")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A folder with an artifact and rows."""
    folder = tmp_path_factory.mktemp("reliability")
    write_tiny(folder / "artifact")
    x, y = make_rows(48, seed=3)
    np.savez(folder / "rows.npz", x=x, y=y)
    return folder


def run_in(shop: Path, folder: Path, schedule: str, epochs: int = 2):
    return small_run(shop / "artifact", shop / "rows.npz", folder, schedule, epochs)


@pytest.fixture(scope="module")
def whole(shop: Path) -> dict[str, tuple[dict[str, bytes], int]]:
    """By schedule, what an uninterrupted run leaves, and in how many changes of files."""
    found = {}
    for schedule in SCHEDULES:
        with pytest.MonkeyPatch.context() as patch:
            faulty, run = FaultyDisk(), run_in(shop, shop / f"whole-{schedule}", schedule)
            faulty.install(patch.setattr)
            list(run.run())
        found[schedule] = files_of(run.folder.path), len(faulty.log)
    return found


# --- the power goes ---


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_whatever_part_of_the_writes_reached_the_disk_it_opens_as_what_was_saved_last_or_before(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    found = check_cuts(
        shop / "artifact",
        shop / "rows.npz",
        tmp_path,
        schedule,
        epochs=2,
        part=0.4,
        resumed_every=12,
        seed=1,
        patch=monkeypatch,
    )
    assert found.failures == ()
    assert found.states > 60
    assert found.resumed > 3


@pytest.mark.parametrize("forgotten", ["sync", "sync_folder"])
def test_a_run_that_does_not_force_its_files_or_names_to_the_disk_is_noticed(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The check itself is checked: it must fail where the disk is not told to write."""

    class Forgetful(Recorder):
        def _recording(self, operation, real):
            return real if operation == forgotten else super()._recording(operation, real)

    monkeypatch.setattr("cut_check.Recorder", Forgetful)
    paths = (shop / "artifact", shop / "rows.npz", tmp_path)
    found = check_cuts(*paths, "sweep", epochs=1, part=1.0, resumed_every=10**9, seed=1, patch=monkeypatch)
    assert found.failures


# --- the disk fails ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [*ERRORS, "short"])
def test_a_disk_that_fails_once_in_any_change_costs_nothing(
    shop: Path, tmp_path: Path, whole, kind: str, schedule: str
) -> None:
    expected, changes = whole[schedule]
    for at in range(KINDS.index(kind), changes, 5 if kind == "EIO" else 17):
        run = run_in(shop, tmp_path / f"{kind}-{at}", schedule)
        error = with_fault(run, FaultyDisk(at, kind))
        assert error is None or re.match(r"`?.*(cannot (be )?(write|written|read))", error), error
        assert error is None or kind != "short"
        list(run.run(resume=run.folder.path.exists()))
        assert files_of(run.folder.path) == expected, f"{kind} in change {at}"


def with_fault(run, faulty: FaultyDisk) -> str | None:
    """What a run says that ends by a fault; None where it goes on."""
    with pytest.MonkeyPatch.context() as patch:
        faulty.install(patch.setattr)
        try:
            list(run.run())
        except RunError as error:
            return str(error)
    return None


def test_a_disk_that_stays_full_ends_the_run_with_one_line_and_what_was_saved_is_there(
    shop: Path, tmp_path: Path, whole
) -> None:
    expected, changes = whole["sweep"]
    run = run_in(shop, tmp_path / "run", "sweep")
    with pytest.MonkeyPatch.context() as patch:
        FaultyDisk(changes // 2, "ENOSPC", length=10**6).install(patch.setattr)
        with pytest.raises(RunError) as caught:
            list(run.run())
        assert str(caught.value).endswith("no space left on device")
        assert caught.value.hint == "free some space, or write to another disk"
        with pytest.raises(RunError):
            list(run.run(resume=True))
    list(run.run(resume=True))
    assert files_of(run.folder.path) == expected


def test_every_kind_of_fault_is_tried() -> None:
    assert {"kill", "kill-half", "short", "ENOSPC", "EIO", "EROFS"} == set(KINDS)


def test_every_change_of_a_run_s_files_goes_through_one_module() -> None:
    """Or the faults above would miss it, and its bytes would not be counted."""
    direct = re.compile(
        r"os\.(replace|rename|remove|unlink|fsync|open)\b|\.unlink\(|\.mkdir\(|\.rename\(|write_(text|bytes)\("
    )
    opened = re.compile(r"open\([^)]*[\"'](w|a|x|r\+)b?\+?[\"']")
    for path in sorted((HERE.parent / "runtime").glob("*.py")):
        if path.name in ("finalize.py", "pages.py", "meter.py", "ort_training.py"):  # no files of a run
            continue
        source = path.read_text()
        assert not direct.search(source), path.name
        assert not opened.search(source), path.name
    assert disk.written_bytes() >= 0


# --- the process is killed ---


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_was_not(
    shop: Path, tmp_path: Path, device_python: Path, schedule: str
) -> None:
    tally = Tally()
    kills = Kills(device_python, shop / "artifact", shop / "rows.npz", tmp_path)
    kills.torment(schedule, epochs=8, kills=8, seed=2, tally=tally)
    assert tally.failures == []
    assert tally.kills >= 8
    assert tally.most_repeated <= CHECKPOINT_STEPS


# --- long runs ---


def test_nothing_grows_and_a_clock_that_jumps_does_no_harm(shop: Path, tmp_path: Path, device_python: Path) -> None:
    found = long_run(device_python, shop, tmp_path / "run", 5000)
    assert found["updates"] == 5000
    assert found["late"]["resident_bytes"] - found["early"]["resident_bytes"] < 2**20
    for key in ("threads", "files"):
        assert found["late"][key] <= found["early"][key]
    assert found["late"]["disk_files"] <= 6


def long_run(python: Path, shop: Path, out: Path, updates: int) -> dict:
    command = [python, HERE / "reliability" / "long_run.py", shop / "artifact", out, updates]
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, check=True, cwd=HERE.parent)
    return json.loads(done.stdout)


@pytest.mark.parametrize("step", [2**31, 2**40, 2**60])
def test_counters_do_not_overflow(step: int) -> None:
    assert 0 <= graph_seed(7, step=step, row=0, block=0) < 2**63
    for spec in (optimizer_spec("adamw"), optimizer_spec("sgd")):
        assert all(np.isfinite(np.float32(value)) for value in rates(spec, 1e-3, step).values())
    order = MixedOrder(own_rows=13, replay_rows=7, batch_size=8, replay_fraction=0.25, seed=0)
    (first, *_) = order.batches(step // order.batches_per_epoch)
    assert len(first) <= 8


def test_two_runs_side_by_side_do_not_disturb_each_other(
    shop: Path, tmp_path: Path, device_python: Path, whole
) -> None:
    program = HERE / "reliability" / "small_run.py"
    names = [
        (device_python, program, shop / "artifact", shop / "rows.npz", tmp_path / n, "sweep", 2, "begin") for n in "ab"
    ]
    running = [
        subprocess.Popen([str(one) for one in command], stdout=subprocess.PIPE, cwd=HERE.parent) for command in names
    ]
    for process in running:
        process.communicate(timeout=120)
        assert process.returncode == 0
    for name in "ab":
        assert files_of(tmp_path / name) == whole["sweep"][0]
