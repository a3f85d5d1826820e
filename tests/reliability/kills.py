"""Kills a training run again and again, at any change of its files and at any time, and lets its disk fail.

However often that happens, the run ends with the same bytes as one that nothing happened to, and no more than the
stated number of updates is made again each time.
"""

import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from faulty_disk import ERRORS
from small_run import CHECKPOINT_STEPS

ROOT = Path(__file__).resolve().parents[2]
# All that a run leaves, but for times.
COMPARED = ("best.safetensors", "checkpoint.safetensors", "previous.safetensors")
# A life makes few changes before it is killed, so that there are many lives in a run: up to this many.
_MOST_CHANGES = 70


@dataclass
class Tally:
    """What was done to runs and what came of it."""

    kills: int = 0
    resumes: int = 0
    steps_repeated: int = 0
    most_repeated: int = 0
    faults: int = 0
    lives_refused: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kills:
    """Runs small runs as processes.

    Attributes:
        python: With what a device has.
        artifact: To be trained.
        rows: `.npz`.
        folder: For the runs.
    """

    python: Path
    artifact: Path
    rows: Path
    folder: Path

    def whole(self, schedule: str, epochs: int) -> dict[str, bytes]:
        """What an uninterrupted run leaves."""
        run = self.folder / f"whole-{schedule}-{epochs}"
        if not run.exists():
            subprocess.run(self._command(run, schedule, epochs, "begin"), check=True, cwd=ROOT, capture_output=True)
        return files_of(run)

    def torment(self, schedule: str, epochs: int, kills: int, seed: int, tally: Tally) -> None:
        """Kill one run `kills` times, or let its disk fail, begin again where it is finished before, and compare."""
        rng = random.Random(seed)
        whole, left, number = self.whole(schedule, epochs), kills, 0
        while left > 0:
            run = self.folder / f"killed-{schedule}-{seed}-{number}"
            left -= self._one_run(run, schedule, epochs, left, rng, tally)
            number += 1
            if files_of(run) != whole:
                tally.failures.append(f"{run.name}: other bytes than without interruptions")

    def _one_run(self, run: Path, schedule: str, epochs: int, kills: int, rng: random.Random, tally: Tally) -> int:
        """Take one run to its end; returns how often it was killed."""
        killed, reached = 0, (0, 0)
        while not (run / "result.json").exists():
            fault = _fault(rng) if killed < kills else []
            steps, killed_now, out = self._life(run, schedule, epochs, fault, rng)
            tally.resumes += mode_of(run) == "resume" and bool(steps)
            repeated = _repeated(steps, reached)
            tally.steps_repeated += repeated
            tally.most_repeated = max(tally.most_repeated, repeated)
            if repeated > CHECKPOINT_STEPS:
                tally.failures.append(f"{run.name}: {repeated} updates made again, at most {CHECKPOINT_STEPS} stated")
            reached = max([reached, *steps])
            killed += killed_now
            tally.kills += killed_now
            tally.faults += _injected(out)
            tally.lives_refused += "error " in out
            if not fault and not (run / "result.json").exists():
                tally.failures.append(f"{run.name}: did not end: {out[-300:]}")
                return kills
        return killed

    def _life(self, run, schedule, epochs, fault, rng):
        """One process: its updates as (stage, step), whether it was killed, and what it printed."""
        command = [*self._command(run, schedule, epochs, mode_of(run)), *fault]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        ) as process:
            if fault and fault[0] == "":  # not in a change of a file, but at any moment
                lines = [process.stdout.readline() for _ in range(rng.randrange(12))]
                time.sleep(rng.random() * 0.01)
                process.kill()
            else:
                lines = []
            out = "".join(lines) + process.stdout.read()
        words = [line.split() for line in out.splitlines() if line.startswith("step ")]
        if process.returncode not in (0, -9):
            raise RuntimeError(f"a run ended with {process.returncode}: {out[-2000:]}")
        # The last line may have been cut by the kill.
        steps = [(int(word[1]), int(word[2])) for word in words if len(word) == 3]
        return steps, process.returncode == -9, out

    def _command(self, run, schedule, epochs, mode):
        program = Path(__file__).parent / "small_run.py"
        names = (self.python, program, self.artifact, self.rows, run, schedule, epochs, mode)
        return [str(name) for name in names]


def mode_of(run: Path) -> str:
    """How a run is started."""
    return "resume" if run.exists() else "begin"


def files_of(run: Path) -> dict[str, bytes]:
    """The files that count."""
    return {name: (run / name).read_bytes() for name in COMPARED if (run / name).exists()}


def _fault(rng: random.Random) -> list[str]:
    kind = rng.choice(["any", "kill", "kill", "kill-half", "kill-half", "short", *ERRORS])
    if kind == "any":
        return [""]
    length = rng.choice([1, 1, 3]) if kind in ERRORS else 1
    return [str(rng.randrange(_MOST_CHANGES)), kind, str(length)]


def _repeated(steps, reached):
    return sum(step <= reached for step in steps)


def _injected(out: str) -> int:
    last = out.splitlines()[-1].split() if out else []
    return int(last[3]) if len(last) == 4 and last[0] == "changes" else 0
