"""Everything of `docs/reliability.md` in its long form: `make test-reliability`. Prints what was done and what failed.

Kills, power cuts and failing disks run one after another on one core; beside them, on another, the readers are fuzzed
and a long run is made.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import pytest
from cut_check import check_cuts
from faulty_disk import ERRORS, FaultyDisk
from kills import Kills, Tally, files_of
from small_run import CHECKPOINT_STEPS, small_run
from tiny_artifact import make_rows, write_tiny

from edgeff.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = ("sweep", "stage")
_MOST_GROWTH = 1 << 20
# What it began with, two checkpoints, the best weights of each and those that were just judged.
_MOST_FILES = 6


@dataclass
class Summary:
    """What was done."""

    kills: int = 0
    resumes: int = 0
    steps_repeated: int = 0
    most_steps_repeated_at_once: int = 0
    faults_injected: int = 0
    power_cuts: int = 0
    power_cuts_gone_on_with: int = 0
    updates_of_the_long_run: int = 0
    inputs_fuzzed: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def kill(shop: Path, python: Path, kills: int, summary: Summary) -> None:
    """Kill runs of both schedules."""
    tally = Tally()
    for schedule in SCHEDULES:
        Kills(python, shop / "artifact", shop / "rows.npz", shop).torment(schedule, 40, kills // 2, 7, tally)
        print(f"  {schedule}: {tally.kills} kills, {tally.resumes} resumes so far", flush=True)
    summary.kills, summary.resumes = tally.kills, tally.resumes
    summary.steps_repeated, summary.most_steps_repeated_at_once = tally.steps_repeated, tally.most_repeated
    summary.faults_injected += tally.faults
    summary.failures += tally.failures


def cut(shop: Path, summary: Summary) -> None:
    """Cut the power everywhere in a run of both schedules."""
    for schedule in SCHEDULES:
        folder = shop / f"cuts-{schedule}"
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            paths = (shop / "artifact", shop / "rows.npz", folder)
            found = check_cuts(*paths, schedule, epochs=3, part=1.0, resumed_every=5, seed=0, patch=patch)
        summary.power_cuts += found.states
        summary.power_cuts_gone_on_with += found.resumed
        summary.failures += found.failures
        print(f"  {schedule}: {found.states} cuts, {found.resumed} gone on with", flush=True)


def fail(shop: Path, summary: Summary) -> None:
    """Let every change of a run's files fail once in every way."""
    for schedule in SCHEDULES:
        whole = _small(shop, f"fail-whole-{schedule}", schedule)
        with pytest.MonkeyPatch.context() as patch:
            healthy = FaultyDisk()
            healthy.install(patch.setattr)
            list(whole.run())
        expected = files_of(whole.folder.path)
        for kind in (*ERRORS, "short"):
            for at in range(len(healthy.log)):
                run = _small(shop, f"fail-{schedule}-{kind}-{at}", schedule)
                summary.faults_injected += _fail_once(run, FaultyDisk(at, kind))
                list(run.run(resume=run.folder.path.exists()))
                if files_of(run.folder.path) != expected:
                    summary.failures.append(f"{schedule}: {kind} in change {at}: other bytes")
        print(f"  {schedule}: {len(healthy.log)} changes, each failed in {len(ERRORS) + 1} ways", flush=True)


def _small(shop: Path, name: str, schedule: str):
    return small_run(shop / "artifact", shop / "rows.npz", shop / name, schedule, 2)


def _fail_once(run, faulty: FaultyDisk) -> int:
    with pytest.MonkeyPatch.context() as patch:
        faulty.install(patch.setattr)
        with suppress(RunError):  # said in one line; the run is gone on with
            list(run.run())
    return faulty.injected


def long_run(shop: Path, python: Path, updates: int, summary: Summary) -> None:
    """Train for long, with a clock that jumps."""
    program = Path(__file__).parent / "long_run.py"
    command = [str(one) for one in (python, program, shop / "artifact", shop / "long", updates)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    early, late = found["early"], found["late"]
    summary.updates_of_the_long_run = found["updates"]
    if late["resident_bytes"] - early["resident_bytes"] > _MOST_GROWTH:
        summary.failures.append(f"long run: grew from {early['resident_bytes']:,} to {late['resident_bytes']:,} bytes")
    for key in ("threads", "files"):
        if late[key] > early[key]:
            summary.failures.append(f"long run: {key} grew from {early[key]} to {late[key]}")
    if late["disk_files"] > _MOST_FILES:
        summary.failures.append(f"long run: {late['disk_files']} files, at most {_MOST_FILES} were expected")
    print(f"  long run: {found['updates']:,} updates in {found['seconds']:.0f} s, {early} -> {late}", flush=True)


def fuzz(shop: Path, seconds: int, summary: Summary) -> None:
    """Fuzz every reader of files."""
    command = [sys.executable, str(ROOT / "tests/fuzz/run.py"), "--seconds", str(seconds), "--json"]
    done = subprocess.run([*command, "--work", str(shop / "fuzz")], capture_output=True, text=True, cwd=ROOT)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    summary.inputs_fuzzed = sum(result["inputs"] for result in results)
    for result in results:
        summary.failures += [f"fuzz {result['target']}: {name}" for name in result["findings"]]
        if result["failed"]:
            summary.failures.append(f"fuzz {result['target']}: {result['failed']}")
    print(f"  fuzz: {summary.inputs_fuzzed:,} inputs for {len(results)} readers", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device-python", type=Path, default=ROOT / ".venv-device/bin/python")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--fuzz-seconds", type=int, default=10, help="For each reader.")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()  # a run collects garbage at every turn: what is loaded here need not be looked at each time
    summary, began = Summary(), time.perf_counter()
    python = options.device_python.absolute()  # not resolved: a link to the interpreter is what makes the environment
    # In memory where that can be: a process that is killed leaves the same there, and a thousand runs wait for no disk.
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="edgeff-reliability-", dir=place) as name, ThreadPoolExecutor(1) as beside:
        shop = Path(name)
        write_tiny(shop / "artifact")
        x, y = make_rows(48, seed=3)
        np.savez(shop / "rows.npz", x=x, y=y)
        waited = [
            beside.submit(long_run, shop, python, options.updates, summary),
            beside.submit(fuzz, shop, options.fuzz_seconds, summary),
        ]
        kill(shop, python, options.kills, summary)
        cut(shop, summary)
        fail(shop, summary)
        for one in waited:
            one.result()
    summary.seconds = time.perf_counter() - began
    if summary.kills < options.kills:
        summary.failures.append(f"{summary.kills} kills, {options.kills} were wanted")
    if summary.most_steps_repeated_at_once > CHECKPOINT_STEPS:
        summary.failures.append("more updates were made again than stated")
    _print(summary)
    sys.exit(bool(summary.failures))


def _print(summary: Summary) -> None:
    for key, value in vars(summary).items():
        if key != "failures":
            print(f"{key.replace('_', ' ')}: {value:,.0f}")
    print(f"failures: {len(summary.failures)}")
    for failure in summary.failures:
        print(f"  {failure}")


if __name__ == "__main__":
    main()
