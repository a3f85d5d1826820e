"""What a method takes on this machine: a few updates on random rows in a fresh process, measured by the kernel.

    python -m edgeff.runtime.measure ARTIFACT --method sweep --batch 128 --micro-batch 4

prints one measurement as JSON. `measure_method` runs this several times and gives the median.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeff.errors import EdgeffError, RunError

# Updates of a measurement; the first, in which graphs are loaded, does not count for the speed.
UPDATES = 3
REPEATS = 3


@dataclass(frozen=True)
class MeasuredBlock:
    """One block of a measured run.

    Attributes:
        block: Its name.
        planned_bytes: Its arrays and the most that is alive inside one run of its graphs.
        measured_bytes: Its arrays, and by how much its runs raised the resident peak; None where not measured.
        budget_bytes: What it may take; None for no limit.
    """

    block: str
    planned_bytes: int
    measured_bytes: int | None
    budget_bytes: int | None


@dataclass(frozen=True)
class Measured:
    """What a method took.

    Attributes:
        method: As in `edgeff.runtime.methods.METHODS`.
        runtime: Name and version of what ran the graphs.
        batch: Rows of a batch.
        micro_batch: Rows that went through at once.
        floor_bytes: Resident before the artifact was opened.
        training_bytes: Most resident since then, over the floor.
        planned_bytes: The plan of it.
        rows_per_s: Rows that the whole network learns from in a second: in stages, every block has seen them then.
        blocks: One by one.
    """

    method: str
    runtime: str
    batch: int
    micro_batch: int
    floor_bytes: int
    training_bytes: int
    planned_bytes: int
    rows_per_s: float
    blocks: tuple[MeasuredBlock, ...] = ()


def measure_method(
    path: Path,
    method: str,
    *,
    batch_size: int,
    budget_bytes: int | None = None,
    micro_batch: int | None = None,
    prefer: str = "speed",
    threads: int = 1,
    repeats: int = REPEATS,
    python: str = sys.executable,
) -> Measured:
    """The run with the median of training bytes, of several in fresh processes; the speed is the median of all.

    Args:
        path: Artifact.
        method: As in `edgeff.runtime.methods.METHODS`.
        batch_size: Rows of a batch.
        budget_bytes: What training may take over the floor; None for no limit.
        micro_batch: Rows that run at once; None for what the planner chooses.
        prefer: `speed` or `memory`, of the planner.
        threads: Of the engine.
        repeats: Processes.
        python: Interpreter of an environment that has edgeff and an onnxruntime.

    Raises:
        EdgeffError: A process failed; its own message.
    """
    command = [python, "-m", "edgeff.runtime.measure", str(path), "--method", method, "--batch", str(batch_size)]
    command += ["--prefer", prefer, "--threads", str(threads)]
    command += ["--budget", str(budget_bytes)] if budget_bytes is not None else []
    command += ["--micro-batch", str(micro_batch)] if micro_batch is not None else []
    runs = sorted((_measured(command) for _ in range(repeats)), key=lambda run: run.training_bytes)
    speeds = sorted(run.rows_per_s for run in runs)
    floors = sorted(run.floor_bytes for run in runs)
    middle = len(runs) // 2
    return dataclasses.replace(runs[middle], rows_per_s=speeds[middle], floor_bytes=floors[middle])


def check_interpreter(python: str) -> None:
    """See that an interpreter can measure, before anything is made for it.

    Raises:
        RunError: It does not run, or has no edgeff or onnxruntime.
    """
    _run([python, "-c", "import edgeff.runtime.measured_run, onnxruntime"], f"`{python}` cannot measure")


def _measured(command: Sequence[str]) -> Measured:
    found = json.loads(_run(command, "a measurement failed"))
    return Measured(**{**found, "blocks": tuple(MeasuredBlock(**block) for block in found["blocks"])})


def _run(command: Sequence[str], otherwise: str) -> str:
    """What a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise RunError(f"`{command[0]}` cannot be run: {error.strerror}", hint="give a Python interpreter") from error
    if done.returncode:
        reason = (done.stderr.strip() or f"ended with code {done.returncode}").splitlines()
        told = done.returncode == 1 and not reason[0].startswith("Traceback")
        raise RunError(f"{otherwise}: {reason[0] if told else reason[-1]}")
    return done.stdout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--method", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--budget", type=int)
    parser.add_argument("--prefer", choices=("speed", "memory"), default="speed")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Measure this process and print the result as JSON."""
    given = _arguments()
    try:
        from edgeff.runtime.measured_run import measure_here
        from edgeff.runtime.plan_parts import Request
        from edgeff.runtime.start import start

        engine, meter, allocator = start(given.threads)
        request = Request(
            batch_size=given.batch,
            budget_bytes=given.budget,
            rows=UPDATES * given.batch,
            row_bytes=3 * 8 * UPDATES * given.batch,
            threads=given.threads,
            disk_bytes=2**40,
            prefer=given.prefer,
            micro_batch=given.micro_batch,
        )
        found = measure_here(given.artifact, given.method, request, engine=engine, meter=meter, allocator=allocator)
    except EdgeffError as error:
        print(f"{error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
