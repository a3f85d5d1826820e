"""Measuring a method on random rows: to the end, whatever it takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tiny_artifact import write_tiny

from edgeff.errors import RunError
from edgeff.runtime.measure import check_interpreter

# Plans without what a process takes are too low; their own bytes are then the budget.
MEASURED_WITH_A_PLAN_THAT_IS_TOO_LOW = """
import dataclasses, json, sys
from pathlib import Path
import edgeff.runtime.plan_blocks as plan_blocks
plan_blocks.PROCESS_BYTES = 0
from edgeff.artifact import open_artifact
from edgeff.runtime.measured_run import measure_here
from edgeff.runtime.methods import plan_trained
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.start import start

engine, meter, allocator = start(1)
path = Path(sys.argv[1])
request = Request(batch_size=8, rows=24, row_bytes=24 * 24, disk_bytes=2**40, micro_batch=8)
needed = plan_trained(open_artifact(path).manifest, "sweep", request).planned_bytes
request = dataclasses.replace(request, budget_bytes=needed)
found = measure_here(path, "sweep", request, engine=engine, meter=meter, allocator=allocator)
print(json.dumps([found.training_bytes, needed]))
"""


def test_a_plan_that_is_too_low_is_measured_all_the_same(
    tmp_path: Path, run_device: Callable[..., CompletedProcess[str]]
) -> None:
    """Ended as a run that takes more than its budget, nobody would learn by how much."""
    artifact = write_tiny(tmp_path / "tiny")
    done = run_device("-c", MEASURED_WITH_A_PLAN_THAT_IS_TOO_LOW, str(artifact.path))
    assert done.returncode == 0, done.stderr
    measured, budget = json.loads(done.stdout)
    assert measured > budget


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (None, "cannot be run: Permission denied"),
        ("import sys; sys.exit('no')", "cannot measure: no"),
        ("import no_such_module", "cannot measure: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_an_interpreter_that_cannot_measure_is_told_of(tmp_path: Path, program: str | None, message: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o644 if program is None else 0o755)
    with pytest.raises(RunError) as caught:
        check_interpreter(str(python))
    assert str(caught.value).endswith(message)


def test_this_interpreter_can_measure() -> None:
    check_interpreter(sys.executable)
