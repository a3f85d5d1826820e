"""The budget in force: smaller plans when it is neared or lowered, an error rather than more than it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_artifact import Tiny, make_dataset, make_manifest, write_tiny

from edgeff.errors import BudgetError
from edgeff.manifest import Manifest, Moment
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.block_meter import BlockMeter
from edgeff.runtime.checkpoint import RunFolder, read_weights
from edgeff.runtime.control import Control
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Finished, Notice, Replanned
from edgeff.runtime.meter import Meter, Residency
from edgeff.runtime.plan import Plan, Request, plan, smallest_budget
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.trainer import Progress
from edgeff.runtime.watch import Watch

MIB = 2**20
FLOOR = 50 * MIB


def manifest(row_bytes: int = 200_000) -> Manifest:
    base = make_manifest(Tiny())
    blocks = [
        replace(
            block,
            graphs={
                kind: replace(graph, transient=(Moment(0, 8 if kind == "apply" else row_bytes),))
                for kind, graph in block.graphs.items()
            },
        )
        for block in base.blocks
    ]
    return replace(base, blocks=tuple(blocks))


class Process:
    """A process whose memory is what a test says."""

    def __init__(self) -> None:
        self.resident = self.peak = FLOOR

    def probe(self) -> Residency:
        return Residency(self.resident, self.peak, "VmHWM")

    def reset(self) -> bool:
        self.peak = self.resident
        return True

    def takes(self, training_bytes: int) -> None:
        self.peak = max(self.peak, FLOOR + training_bytes)


def watching(budget: int | None, asked: Callable[[], int | None] = lambda: None) -> tuple[Watch, Plan, Process]:
    request = Request(batch_size=32, budget_bytes=budget)
    process = Process()
    made = plan(manifest(), request)
    return Watch(manifest(), request, Meter(process.probe, process.reset), asked), made, process


def test_well_inside_the_budget_nothing_changes() -> None:
    watch, current, process = watching(64 * MIB)
    process.takes(32 * MIB)
    assert watch.look(current) is None


def test_near_the_budget_a_smaller_plan_is_taken_and_measured_anew() -> None:
    watch, current, process = watching(12 * MIB)
    process.takes(12 * MIB - 1000)
    change = watch.look(current)
    assert change is not None
    assert change.plan.planned_bytes <= 0.9 * current.planned_bytes
    assert change.plan.schedule == current.schedule
    assert change.reason == "training took 12 MiB of 12 MiB"
    assert watch.look(change.plan) is None  # what was before does not count against the new plan


def test_over_the_budget_with_no_smaller_plan_left_the_run_ends() -> None:
    budget = smallest_budget(manifest(), Request(batch_size=32))
    watch, current, process = watching(budget)
    process.takes(budget - 10)
    assert watch.look(current) is None  # near, but there is nothing smaller
    process.takes(budget + 1)
    with pytest.raises(BudgetError, match="no smaller plan is left"):
        watch.look(current)


def test_a_budget_that_is_lowered_brings_a_plan_that_fits_it() -> None:
    budgets = iter([None, 10 * MIB, None])
    watch, current, _ = watching(64 * MIB, lambda: next(budgets))
    assert watch.look(current) is None
    change = watch.look(current)
    assert change is not None
    assert change.plan.planned_bytes <= 10 * MIB < current.planned_bytes
    assert watch.budget_bytes == 10 * MIB
    assert watch.look(change.plan) is None


def test_a_budget_that_is_raised_brings_a_faster_plan() -> None:
    watch, current, _ = watching(smallest_budget(manifest(), Request(batch_size=32)), lambda: 64 * MIB)
    change = watch.look(current)
    assert change is not None
    assert change.plan.epoch_seconds < current.epoch_seconds


def test_a_budget_into_which_nothing_fits_is_refused() -> None:
    watch, current, _ = watching(64 * MIB, lambda: 1000)
    with pytest.raises(BudgetError, match="the run needs"):
        watch.look(current)


# --- the file ---------------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


@pytest.mark.parametrize(
    ("text", "budget"),
    [('{"budget": "12MiB"}', 12 * MIB), ('{"budget": 1000}', 1000), ('{"budget": "1 GB", "x": 1}', 10**9)],
)
def test_a_control_file_is_read_when_it_is_new_and_then_not_again(tmp_path: Path, text: str, budget: int) -> None:
    control = Control(tmp_path / "control.json")
    assert control.budget() is None
    write(control.path, text)
    assert [control.budget(), control.budget()] == [budget, None]
    write(control.path, '{"budget": 77}')
    assert [control.budget(), control.budget()] == [77, None]
    control.path.unlink()
    assert control.budget() is None


@pytest.mark.parametrize(
    "text",
    ["", "12MiB", "[]", "{}", '{"budget": "much"}', '{"budget": -1}', '{"budget": true}', '{"budget": 1.5}', "\xff"],
)
def test_nonsense_in_a_control_file_is_told_of_once(tmp_path: Path, text: str) -> None:
    control = Control(tmp_path / "control.json")
    write(control.path, text)
    with pytest.raises(ValueError, match="is not understood and is ignored; write for example"):
        control.budget()
    assert control.budget() is None


# --- in a run ---------------------------------------------------------------------------------------------------------

SETTINGS = AdaptSettings(epochs=2, batch_size=8, learning_rate=0.1, guard_fraction=0.25, seed=3)


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_a_run_goes_on_under_a_smaller_budget_to_nearly_the_same_weights(tmp_path: Path, schedule: str) -> None:
    artifact = write_tiny(tmp_path / "tiny")
    settings = replace(SETTINGS, schedule=schedule)
    found = {}
    for name in ("free", "lowered"):
        request = adaptation_request(artifact.manifest, settings, 48, budget_bytes=64 * MIB, schedule=schedule)  # type: ignore[arg-type]
        planned = plan(artifact.manifest, request)
        smallest = smallest_budget(artifact.manifest, request)
        # Nonsense comes first, then the lower budget, after the third update.
        answers = [None, None, ValueError("what?"), smallest if name == "lowered" else None]

        def asked(answers: list[object] = answers) -> int | None:
            answer = answers.pop(0) if answers else None
            if isinstance(answer, ValueError):
                raise answer
            return answer  # type: ignore[return-value]

        folder = RunFolder(tmp_path / name)
        run = Adaptation(
            artifact, make_dataset(48), settings, request, planned, OnnxRuntime(1), folder, asked_budget=asked
        )
        events = list(run.run())
        assert isinstance(events[-1], Finished)
        assert [event.text for event in events if isinstance(event, Notice)] == ["what?"]
        changes = [event for event in events if isinstance(event, Replanned)]
        assert len(changes) == (name == "lowered")
        updates = [event for event in events if isinstance(event, Progress)]
        assert len(updates) == 10 * (2 if schedule == "stage" else 1)
        if changes:
            assert changes[0].plan.planned_bytes <= smallest
            assert {event.micro_batch for event in updates} == {planned.micro_batch, changes[0].plan.micro_batch}
        found[name] = read_weights(folder.path, artifact.manifest_sha256)
    for key, array in found["free"].items():
        assert abs(found["lowered"][key] - array).max() < 1e-4


def test_what_a_block_takes_is_the_rise_of_the_peak_during_its_runs() -> None:
    process = Process()
    meter = Meter(process.probe, process.reset)
    blocks = BlockMeter(meter)
    process.takes(9 * MIB)  # before: is not the block's
    for step, size in ((1, 1), (2, 3), (3, 2), (4, 8)):
        blocks.measure(7, step, lambda size=size: process.takes(size * MIB))  # type: ignore[misc]
    assert blocks.rises == {7: 3 * MIB}  # the fourth update is not one that is measured
    assert meter.read().training_bytes == 9 * MIB  # resetting the peak hides nothing
