"""What both schedules do around an epoch: which checkpoints there are, where a run stops, what its result says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_watch import MIB, write
from tiny_artifact import make_dataset, write_tiny

from edgeff.errors import RunError
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import CHECKPOINT, RunFolder
from edgeff.runtime.control import Control
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Event, Finished, GuardResult, Replanned, Stopped
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.stops import StopConditions
from edgeff.runtime.trainer import Position, Progress, Trainer
from edgeff.runtime.update import NonFiniteLossError

SETTINGS = AdaptSettings(epochs=4, batch_size=8, learning_rate=0.1, guard_fraction=0.25, seed=3)
MakeRun = Callable[..., Adaptation]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Runs on one artifact, with a control file `control.json` beside their folder."""
    artifact = write_tiny(tmp_path / "tiny")

    def make(name: str, **more: Any) -> Adaptation:
        request = adaptation_request(artifact.manifest, SETTINGS, 48, budget_bytes=64 * MIB, schedule="sweep")
        planned, asked = plan(artifact.manifest, request), Control(tmp_path / "control.json").budget
        return Adaptation(
            artifact,
            make_dataset(48),
            SETTINGS,
            request,
            planned,
            OnnxRuntime(1),
            RunFolder(tmp_path / name),
            **{"asked_budget": asked, **more},
        )

    return make


def of_kind(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_a_run_that_is_left_while_its_bound_allows_no_checkpoint_can_be_gone_on_with(make_run: MakeRun) -> None:
    """The weights of a later epoch are the best so far: without a checkpoint nobody could tell how far it had come."""
    whole = make_run("whole")
    list(whole.run())
    cut = make_run("cut", writes_per_hour=1)
    for event in cut.run():
        if isinstance(event, GuardResult) and event.epoch == event.best_epoch == 2:
            break  # the process is gone
    assert (cut.folder.path / CHECKPOINT).exists()
    events = list(make_run("cut", writes_per_hour=1).run(resume=True))
    assert isinstance(events[-1], Finished)
    assert cut.folder.best.read_bytes() == whole.folder.best.read_bytes()


def test_after_going_back_the_best_weights_are_still_there(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite after the first epoch, and a bound that allows no second checkpoint."""
    broken = [False]
    run = make_run("run", writes_per_hour=1)
    epoch = Trainer.epoch

    def once(trainer: Trainer, start: Position) -> Any:
        for progress in epoch(trainer, start):
            if progress.position.epoch == 2 and not broken[0]:
                broken[0] = True
                raise NonFiniteLossError("block1", progress.position.step, "the loss of block `block1` is nan")
            yield progress

    monkeypatch.setattr(Trainer, "epoch", once)
    events = list(run.run())
    assert broken[0]
    assert isinstance(events[-1], Finished)
    assert run.folder.best.exists()
    assert json.loads((run.folder.path / "result.json").read_text())["rate_factors"] == {"block1": 0.5}


def test_a_run_whose_best_weights_vanished_does_not_end_as_if_it_had_them(make_run: MakeRun) -> None:
    run = make_run("run")
    events = run.run()
    for event in events:
        if isinstance(event, GuardResult) and event.epoch == SETTINGS.epochs:
            break
    for path in run.folder.path.glob("best.*"):
        path.unlink()
    with pytest.raises(RunError, match=r"the best weights of `.*run` are lost"):
        list(events)
    assert run.folder.result() is None


def test_a_stop_while_another_plan_is_made_loses_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run")
    stop = StopConditions()
    events: list[Event] = []
    for event in run.run(stop=stop):
        events.append(event)
        if isinstance(event, Progress) and event.position.step == 7:
            smallest = smallest_budget(run.artifact.manifest, run.request)
            write(tmp_path / "control.json", f'{{"budget": {smallest}}}')
        if isinstance(event, Replanned):
            stop.signals.append("SIGTERM")
    assert of_kind(events, Replanned)
    assert isinstance(events[-1], Stopped)
    assert events[-1].position.step == len(of_kind(events, Progress)) == 7
    again = list(make_run("run").run(resume=True))
    assert of_kind(again, Progress)[0].position.step == 8


def test_a_run_that_is_paused_before_it_begins_trains_nothing_and_writes_nothing(
    make_run: MakeRun, tmp_path: Path
) -> None:
    pause = tmp_path / "pause"
    stop = StopConditions(max_steps=3)
    for event in make_run("run").run(stop=stop):
        if isinstance(event, Progress):
            stop.count_step()
    checkpoint = tmp_path / "run" / CHECKPOINT
    before = (checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns)
    pause.touch()
    for _ in range(2):
        events = list(make_run("run").run(resume=True, stop=StopConditions(pause_file=pause)))
        assert not of_kind(events, Progress)
        assert events[-1].position.step == 3
    assert (checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns) == before


def test_the_result_tells_of_the_plan_and_the_budget_that_were_in_force(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run")
    budget = smallest_budget(run.artifact.manifest, run.request)
    for event in run.run():
        if isinstance(event, Progress) and event.position.step == 2:
            write(tmp_path / "control.json", f'{{"budget": {budget}}}')
        if isinstance(event, Replanned):
            changed = event.plan
    result = run.folder.result()
    assert result is not None
    assert (result["budget_bytes"], result["planned_bytes"]) == (budget, changed.planned_bytes)
    assert result["planned_bytes"] < run.plan.planned_bytes


def test_what_splitting_took_does_not_keep_a_run_from_a_smaller_budget(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run")
    smallest = smallest_budget(run.artifact.manifest, run.request)
    run = replace(run, request=replace(run.request, splitting_bytes=32 * MIB))
    write(tmp_path / "control.json", f'{{"budget": {smallest}}}')
    assert isinstance(list(run.run())[-1], Finished)
