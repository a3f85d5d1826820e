"""Stopping a run before its end: by time, by updates, by a file, by a signal; on the command line too."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_run import TinyRun, edgeff

from edgeff.runtime import stops as stops_module
from edgeff.runtime.stops import StopConditions

ARGUMENTS = ("--epochs", 2, "--threads", 1)


def train(tiny: TinyRun, out: Path, *more: object):
    return edgeff("train-on-device", tiny.artifact, "--data", tiny.own, "--out", out, *ARGUMENTS, *more)


# --- conditions ---


def test_without_conditions_there_is_never_a_reason() -> None:
    assert StopConditions()() == ""


def test_time_is_counted_by_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the wall clock may jump"))
    stop = StopConditions(max_seconds=5)
    now[0] += 4.9
    assert stop() == ""
    now[0] += 0.2
    assert stop() == "after the 5 s asked for"


def test_updates_are_counted_by_the_caller() -> None:
    stop = StopConditions(max_steps=2)
    stop.count_step()
    assert stop() == ""
    stop.count_step()
    assert stop() == "after the 2 updates asked for"


def test_a_file_stops_for_as_long_as_it_is_there(tmp_path: Path) -> None:
    file = tmp_path / "pause"
    stop = StopConditions(pause_file=file)
    assert stop() == ""
    file.touch()
    assert stop() == f"because `{file}` is there"
    file.unlink()
    file.symlink_to("nowhere")  # whatever has the name counts
    assert stop()
    file.unlink()
    assert stop() == ""


def test_a_signal_comes_before_all_else() -> None:
    stop = StopConditions(max_steps=1, signals=["SIGTERM"])
    stop.count_step()
    assert stop() == "by SIGTERM"
    assert stops_module.never() == ""


# --- commands ---


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_a_run_in_slices_ends_as_one_that_was_never_stopped(tiny: TinyRun, tmp_path: Path, schedule: str) -> None:
    whole, sliced = tmp_path / "whole", tmp_path / "sliced"
    assert train(tiny, whole, "--schedule", schedule).exit_code == 0
    codes = []
    for slice_number in range(60):
        more = ["--resume"] if slice_number else []
        result = train(tiny, sliced, "--schedule", schedule, "--max-steps", 3, *more)
        codes.append(result.exit_code)
        if result.exit_code != 75:
            break
        last = result.stderr.splitlines()
        assert any(line.startswith("Error: stopped after the 3 updates asked for, at step ") for line in last)
        assert last[-1] == f"hint: go on by `edgeff train-on-device ... --out {sliced} --resume`"
        assert result.stdout == ""
    assert codes[-1] == 0
    assert set(codes[:-1]) == {75}
    assert len(codes) > 3
    for name in ("best.safetensors", "checkpoint.safetensors"):
        assert (whole / name).read_bytes() == (sliced / name).read_bytes()


def test_a_run_does_not_begin_while_the_pause_file_is_there(tiny: TinyRun, tmp_path: Path) -> None:
    pause = tmp_path / "pause"
    pause.touch()
    result = train(tiny, tmp_path / "run", "--pause-file", pause)
    assert result.exit_code == 75
    assert f"Error: stopped because `{pause}` is there, at step 0: nothing is lost" in result.stderr
    pause.unlink()
    assert train(tiny, tmp_path / "run", "--pause-file", pause, "--resume").exit_code == 0


def test_a_run_stops_within_the_time_it_is_given(tiny: TinyRun, tmp_path: Path) -> None:
    result = train(tiny, tmp_path / "run", "--epochs", 100_000, "--max-seconds", 1.5)
    assert result.exit_code == 75
    assert "Error: stopped after the 1.5 s asked for, at step " in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-seconds", "0"), ("--max-seconds", "nan"), ("--max-steps", "0"), ("--writes-per-hour", "-1")],
)
def test_limits_that_make_no_sense_are_refused(tiny: TinyRun, tmp_path: Path, option: str, value: str) -> None:
    assert train(tiny, tmp_path / "run", option, value).exit_code in (1, 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["open_artifact", "plan_run"])
def test_a_signal_while_a_run_is_prepared_is_a_stop_as_well(
    tiny: TinyRun, tmp_path: Path, device_python: Path, kind: signal.Signals, place: str
) -> None:
    program = f"""
import os, sys
import edgeff.cli_train as module
original = module.{place}
def with_signal(*arguments, **named):
    os.kill(os.getpid(), {int(kind)})
    return original(*arguments, **named)
module.{place} = with_signal
from edgeff.cli import main
main(sys.argv[1:])
"""
    out = tmp_path / "run"
    names = ("train-on-device", tiny.artifact, "--data", tiny.own, "--out", out, *ARGUMENTS)
    done = subprocess.run(
        [str(device_python), "-c", program, *map(str, names)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 75, done.stderr
    assert f"Error: stopped by {kind.name}, before the run went on" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_process_with_a_checkpoint(
    tiny: TinyRun, tmp_path: Path, device_python: Path, kind: signal.Signals
) -> None:
    out = tmp_path / "run"
    names = ("train-on-device", tiny.artifact, "--data", tiny.own, "--out", out, *ARGUMENTS, "--epochs", 100_000)
    command = [str(device_python), "-m", "edgeff", *map(str, names)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not (out / "checkpoint.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        # Nobody else may work in the folder meanwhile.
        other = train(tiny, out, "--epochs", 100_000, "--resume")
        assert other.exit_code == 1
        assert f"Error: the run in `{out}` is in use by another process" in other.stderr
        process.send_signal(kind)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"Error: stopped by {kind.name}, at step " in stderr
    found = json.loads(edgeff("fsck", out, "--json").stdout)
    assert found["next"] == "goes on"
    assert not found["in_use"]
