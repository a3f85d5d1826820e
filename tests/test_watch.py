"""The budget in force: smaller plans when it is neared or lowered, an error rather than more than it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_artifact import Tiny, make_manifest

from edgeff.errors import BudgetError
from edgeff.manifest import Manifest, Moment
from edgeff.runtime import watch as watch_module
from edgeff.runtime.block_meter import BlockMeter
from edgeff.runtime.control import Control
from edgeff.runtime.meter import Meter, Residency
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Plan, Request
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

    def __init__(self, *, resets: bool = True) -> None:
        self.resident = self.peak = FLOOR
        self.resets = resets

    def probe(self) -> Residency:
        return Residency(self.resident, self.peak, "VmHWM")

    def reset(self) -> bool:
        self.peak = self.resident if self.resets else self.peak
        return self.resets

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
    assert change.plan.budget_bytes == 12 * MIB
    watch.changed()
    assert watch.look(change.plan) is None  # what was before does not count against the new plan


def test_over_the_budget_with_no_smaller_plan_left_the_run_ends() -> None:
    budget = smallest_budget(manifest(), Request(batch_size=32))
    watch, current, process = watching(budget)
    process.takes(budget - 10)
    assert watch.look(current) is None  # near, but there is nothing smaller
    process.takes(budget + 1)
    with pytest.raises(BudgetError, match="no smaller plan is left"):
        watch.look(current)


def test_where_no_smaller_plan_is_left_it_is_not_looked_for_again_after_every_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = smallest_budget(manifest(), Request(batch_size=32))
    watch, current, process = watching(budget)
    process.takes(budget - 10)
    assert watch.look(current) is None
    monkeypatch.setattr(watch_module, "plan", None)
    assert watch.look(current) is None


def test_a_peak_that_the_kernel_does_not_forget_counts_once() -> None:
    """Some containers forbid to reset it: then it tells of a new plan only when it rises again."""
    process = Process(resets=False)
    process.takes(20 * MIB)  # before the floor: starting up
    meter = Meter(process.probe, process.reset)
    request = Request(batch_size=32, budget_bytes=12 * MIB)
    watch, current = Watch(manifest(), request, meter), plan(manifest(), request)
    assert watch.look(current) is None
    process.resident = FLOOR + 12 * MIB
    change = watch.look(current)
    assert change is not None
    process.resident = FLOOR + 2 * MIB
    watch.changed()
    assert watch.look(change.plan) is None
    process.takes(21 * MIB)
    assert watch.look(change.plan) is not None


def test_where_only_a_peak_is_known_it_counts_when_it_rises() -> None:
    process = Process(resets=False)
    meter = Meter(lambda: Residency(process.peak, process.peak, "getrusage"), process.reset)
    request = Request(batch_size=32, budget_bytes=12 * MIB)
    watch, current = Watch(manifest(), request, meter), plan(manifest(), request)
    process.takes(12 * MIB)
    change = watch.look(current)
    assert change is not None
    watch.changed()
    assert watch.look(change.plan) is None


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


@pytest.mark.parametrize("budget", [12 * MIB, 48 * MIB, 256 * MIB])
def test_once_the_budget_has_changed_no_plan_keeps_an_arena(budget: int) -> None:
    """Whichever way it changed, and whatever comes after."""
    budgets = iter([budget, None, budget + MIB])
    watch, current, _ = watching(64 * MIB, lambda: next(budgets))
    assert current.arena_bytes > 0
    first = watch.look(current)
    assert first is not None
    assert (first.plan.arena_bytes, watch.look(first.plan)) == (0, None)
    second = watch.look(first.plan)
    assert second is not None
    assert second.plan.arena_bytes == 0


def test_a_smaller_plan_for_want_of_room_keeps_no_arena() -> None:
    watch, current, process = watching(64 * MIB)
    assert current.arena_bytes > 0
    process.takes(64 * MIB - 1000)
    change = watch.look(current)
    assert change is not None
    assert change.plan.arena_bytes == 0


def test_a_budget_into_which_nothing_fits_is_refused() -> None:
    watch, current, _ = watching(64 * MIB, lambda: 1000)
    with pytest.raises(
        BudgetError, match=r"^the budget is 1,?000 B now: the run needs [\d,]+ bytes by schedule `\w+`, "
    ) as caught:
        watch.look(current)
    assert caught.value.hint.endswith(" bytes; raise it where it was lowered, and go on by `--resume`")
    assert "--budget" not in caught.value.hint  # it does not count any more
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_files_that_cannot_be_written_bring_a_plan_that_runs_blocks_again_from_then_on(schedule: str) -> None:
    request = Request(batch_size=32, budget_bytes=64 * MIB, schedule="stage", features="float32", disk_bytes=1 << 30)
    watch, current = Watch(manifest(), request, None), plan(manifest(), request)
    assert current.features == "float32"
    assert current.arena_bytes > 0
    without = watch.without_files(current).plan
    assert (without.features, without.arena_bytes) == ("rerun", 0)
    tight = replace(request, budget_bytes=smallest_budget(manifest(), request))
    assert smallest_budget(manifest(), replace(request, features="rerun")) > smallest_budget(manifest(), request)
    with pytest.raises(BudgetError):
        Watch(manifest(), tight, None).without_files(current)


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
    [
        *("", "12MiB", "7", "null", "[]", "{}", '{"budget": }', '{"budget": null}', '{"budget": "much"}', "\xff"),
        *('{"budget": 0}', '{"budget": -1}', '{"budget": "0 MiB"}', '{"budget": true}', '{"budget": 1.5}'),
        *('{"budget": [1]}', '{"budget": 1e400}', '{"budget": NaN}', f'{{"budget": {"9" * 30}}}', "[" * 4096),
        *(f'{{"budget": {"9" * 5000}}}', '{"budget": "99999999999999 GiB"}', '{"budget": "-1MiB"}'),
    ],
    ids=lambda text: text[:24],
)
def test_nonsense_in_a_control_file_is_told_of_once(tmp_path: Path, text: str) -> None:
    control = Control(tmp_path / "control.json")
    write(control.path, text)
    with pytest.raises(ValueError, match="is not understood and is ignored; write for example"):
        control.budget()
    assert control.budget() is None


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_what_is_no_file_is_told_of_once_and_not_waited_for(tmp_path: Path, what: str) -> None:
    control = Control(tmp_path / "control.json")
    control.path.mkdir() if what == "folder" else os.mkfifo(control.path)
    with pytest.raises(ValueError, match="is not understood and is ignored"):
        control.budget()
    assert control.budget() is None


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_control_file_that_cannot_be_read_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    control = Control(tmp_path / "control.json")
    write(control.path, '{"budget": 1000}')

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match="is not understood and is ignored"):
        control.budget()
    assert control.budget() is None


def test_a_control_file_that_goes_while_it_is_looked_at_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control(tmp_path / "control.json")
    write(control.path, '{"budget": 1000}')

    def gone(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "open", gone)
    assert control.budget() is None
    monkeypatch.undo()
    write(control.path, '{"budget": 2000}')
    assert control.budget() == 2000


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_what_a_block_takes_is_the_rise_of_the_peak_during_its_runs() -> None:
    process = Process()
    meter = Meter(process.probe, process.reset)
    blocks = BlockMeter(meter)
    process.takes(9 * MIB)  # before: is not the block's
    for step, size in ((1, 1), (2, 3), (3, 2), (4, 8)):
        blocks.measure(7, step, lambda size=size: process.takes(size * MIB))  # type: ignore[misc]
    assert blocks.rises == {7: 3 * MIB}  # the fourth update is not one that is measured
    assert meter.read().training_bytes == 9 * MIB  # resetting the peak hides nothing


def test_what_a_block_took_by_another_plan_is_forgotten_and_measured_anew() -> None:
    process = Process()
    blocks = BlockMeter(Meter(process.probe, process.reset))
    blocks.measure(0, 1, lambda: process.takes(8 * MIB))
    blocks.forget()
    blocks.measure(0, 77, lambda: process.takes(2 * MIB))
    assert blocks.rises == {0: 2 * MIB}
