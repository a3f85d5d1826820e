"""A budget that changes while a run is under way: the run goes on by another plan, and nothing is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_watch import MIB, Process, write
from tiny_artifact import Tiny, make_dataset, write_tiny

from edgeff.artifact import Artifact
from edgeff.errors import BudgetError
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder, read_weights
from edgeff.runtime.control import Control
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Finished, Notice, Replanned
from edgeff.runtime.meter import Meter
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.stage_inputs import StageInputs
from edgeff.runtime.stops import StopConditions
from edgeff.runtime.trainer import Progress

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


MakeRun = Callable[..., Adaptation]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny", Tiny(blocks=3, fusion=(1.0, 0.5, 0.25)))


@pytest.fixture
def make_run(artifact: Artifact, tmp_path: Path) -> MakeRun:
    """Runs with a control file `control.json` beside their folder."""

    def make(
        name: str, mode: tuple[str, str], budget: int | None = 64 * MIB, settings: AdaptSettings = SETTINGS, **more: Any
    ) -> Adaptation:
        schedule, features = mode
        settings = replace(settings, schedule=schedule)
        request = adaptation_request(
            artifact.manifest,
            settings,
            48,
            budget_bytes=budget,
            schedule=schedule,  # type: ignore[arg-type]
            features=features or None,
            disk_bytes=1 << 30,
        )
        planned = plan(artifact.manifest, request)
        folder, asked = RunFolder(tmp_path / name), Control(tmp_path / "control.json").budget
        return Adaptation(
            artifact,
            make_dataset(48),
            settings,
            request,
            planned,
            OnnxRuntime(1),
            folder,
            **{"asked_budget": asked, **more},
        )

    return make


def smallest_of(run: Adaptation) -> int:
    return smallest_budget(run.artifact.manifest, run.request)


def weights(run: Adaptation) -> dict[str, Any]:
    return read_weights(run.folder.path, run.artifact.manifest_sha256)


def drive(run: Adaptation, acts: dict[int, Callable[[], object]], **options: Any) -> list[object]:
    """All events; what is to be done after an update is done when that many were made."""
    events, updates = [], 0
    for event in run.run(**options):
        events.append(event)
        if isinstance(event, Progress):
            updates += 1
            acts.get(updates, lambda: None)()
    return events


def stop_after(updates: int) -> tuple[StopConditions, dict[int, Callable[[], object]]]:
    """What stops a run after so many updates, and what `drive` has to do for it."""
    stop = StopConditions(max_steps=1)
    return stop, {updates: stop.count_step}


MODES = [("sweep", ""), ("stage", "rerun"), ("stage", "float32")]


class NotedEngine(OnnxRuntime):
    """Notes what it is asked to reserve, and how many graphs it had loaded by then."""

    def __init__(self) -> None:
        self.noted: list[tuple[int, int]] = []
        self.loaded = 0
        super().__init__(1)

    def reserve(self, size: int) -> None:
        self.noted.append((size, self.loaded))
        super().reserve(size)

    def load(self, model: bytes, name: str, memory: Any = None, **more: Any) -> Any:
        self.loaded += 1
        return super().load(model, name, memory, **more)


@pytest.mark.parametrize("mode", MODES)
def test_the_arena_of_a_plan_is_reserved_before_any_graph_is_loaded_and_given_back_with_the_plan(
    make_run: MakeRun, tmp_path: Path, mode: tuple[str, str]
) -> None:
    engine = NotedEngine()
    run = replace(make_run("run", mode), engine=engine)
    assert run.plan.arena_bytes > 0
    loaded: list[int] = []

    def lower() -> None:
        loaded.append(engine.loaded)
        write(tmp_path / "control.json", f'{{"budget": {smallest_of(run)}}}')

    events = drive(run, {2: lower})
    (changed,) = [event for event in events if isinstance(event, Replanned)]
    assert changed.plan.arena_bytes == 0
    assert [size for size, _ in engine.noted] == [run.plan.arena_bytes, 0]
    assert [before for _, before in engine.noted] == [0, loaded[0]]
    assert engine.loaded > loaded[0]  # the new plan's graphs come after
    assert isinstance(events[-1], Finished)


def test_where_no_features_can_be_written_the_arena_is_given_back_before_blocks_run_again(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = NotedEngine()
    run = replace(make_run("run", ("stage", "float32")), engine=engine)
    assert run.plan.arena_bytes > 0
    monkeypatch.setattr(StageInputs, "prepare", lambda *_: ["no room"])
    events = list(run.run())
    assert any(isinstance(event, Replanned) for event in events)
    assert [size for size, _ in engine.noted][:2] == [run.plan.arena_bytes, 0]


@pytest.mark.parametrize(
    ("mode", "after"), [*itertools.product(MODES, (1, 3, 5, 8)), *itertools.product(MODES[1:], (10, 12, 25))]
)
def test_a_run_whose_budget_is_lowered_ends_as_one_that_had_the_smaller_plan_from_that_update_on(
    make_run: MakeRun, tmp_path: Path, mode: tuple[str, str], after: int
) -> None:
    """The other run is stopped there and gone on with under the smaller budget: nothing but the plan differs."""
    lowered, before = (make_run(name, mode, guard) for name, guard in (("lowered", 64 * MIB), ("before", 64 * MIB)))
    low = smallest_of(lowered)
    control = tmp_path / "control.json"
    events = drive(lowered, {after: lambda: write(control, f'{{"budget": {low}}}')})
    (change,) = [event for event in events if isinstance(event, Replanned)]
    assert change.plan.planned_bytes <= low
    control.unlink()
    updates = [event for event in events if isinstance(event, Progress)]
    assert [event.micro_batch for event in updates[:after]] == [lowered.plan.micro_batch] * after
    assert {event.micro_batch for event in updates[after:]} == {change.plan.micro_batch}

    stop, acts = stop_after(after)
    first = drive(before, acts, stop=stop)
    assert len([event for event in first if isinstance(event, Progress)]) == after
    rest = drive(make_run("before", mode, low), {}, resume=True)
    assert [event.position for event in updates[after:]] == [
        event.position for event in rest if isinstance(event, Progress)
    ]
    for key, array in weights(before).items():
        np.testing.assert_allclose(weights(lowered)[key], array, rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_budget_that_is_raised_again_brings_the_faster_plan_back(
    make_run: MakeRun, tmp_path: Path, mode: tuple[str, str]
) -> None:
    run, free = make_run("run", mode), make_run("free", mode, None)
    low, control = smallest_of(run), tmp_path / "control.json"
    acts = {2: lambda: write(control, f'{{"budget": {low}}}'), 4: lambda: write(control, '{"budget": "64MiB"}')}
    events = drive(run, acts)
    assert isinstance(events[-1], Finished)
    small, large = (event.plan for event in events if isinstance(event, Replanned))
    # But for the arena: once a budget has changed none is kept.
    assert large == plan(run.artifact.manifest, replace(run.request, arena=False, splitting_bytes=0))
    sizes = [event.micro_batch for event in events if isinstance(event, Progress)]
    assert sizes[:5] == [large.micro_batch] * 2 + [small.micro_batch] * 2 + [large.micro_batch]
    control.unlink()
    drive(free, {})
    for key, array in weights(free).items():
        np.testing.assert_allclose(weights(run)[key], array, rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_budget_that_is_there_before_the_first_update_holds_for_it(
    make_run: MakeRun, tmp_path: Path, mode: tuple[str, str]
) -> None:
    run = make_run("run", mode)
    write(tmp_path / "control.json", f'{{"budget": {smallest_of(run)}}}')
    events = drive(run, {})
    assert isinstance(events[-1], Finished)
    (change,) = [event for event in events if isinstance(event, Replanned)]
    assert {event.micro_batch for event in events if isinstance(event, Progress)} == {change.plan.micro_batch}


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_budget_is_looked_at_where_an_epoch_is_a_single_batch_too(
    make_run: MakeRun, tmp_path: Path, mode: tuple[str, str]
) -> None:
    run = make_run("run", mode, settings=replace(SETTINGS, batch_size=48, epochs=3))
    events = drive(run, {1: lambda: write(tmp_path / "control.json", f'{{"budget": {smallest_of(run)}}}')})
    updates = [event for event in events if isinstance(event, Progress)]
    assert updates[0].batches == 1
    (change,) = [event for event in events if isinstance(event, Replanned)]
    assert [event.micro_batch for event in updates[1:]] == [change.plan.micro_batch] * (len(updates) - 1)


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
@pytest.mark.parametrize("after", [0, 3, 5])
def test_a_budget_that_nothing_fits_into_stops_the_run_which_goes_on_with_a_larger_one(
    make_run: MakeRun, tmp_path: Path, mode: tuple[str, str], after: int
) -> None:
    whole, run, control = make_run("whole", mode), make_run("run", mode), tmp_path / "control.json"
    drive(whole, {})
    if not after:
        write(control, '{"budget": 1000}')
    with pytest.raises(BudgetError, match="the budget is 1000 B now: the run needs"):
        drive(run, {after: lambda: write(control, '{"budget": 1000}')})
    control.unlink()
    events = drive(make_run("run", mode), {}, resume=True)
    assert isinstance(events[-1], Finished)
    updates = [event for event in events if isinstance(event, Progress)]
    assert len(updates) == 10 * (3 if mode[0] == "stage" else 1) - after
    assert run.folder.best.read_bytes() == whole.folder.best.read_bytes()


def test_nonsense_in_the_control_file_is_one_warning_for_each_change_and_the_run_goes_on(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, control = make_run("run", ("sweep", "")), tmp_path / "control.json"
    acts = {1: lambda: write(control, "what?"), 4: lambda: write(control, '{"budget": -1}'), 7: control.unlink}
    events = drive(run, acts)
    assert isinstance(events[-1], Finished)
    assert len([event for event in events if isinstance(event, Notice)]) == 2
    assert not [event for event in events if isinstance(event, Replanned)]


def test_a_run_over_its_budget_with_no_smaller_plan_left_stops_with_a_checkpoint(make_run: MakeRun) -> None:
    process = Process()
    settings = replace(SETTINGS, batch_size=16)
    free = make_run("free", ("sweep", ""), None, settings)
    meter = Meter(process.probe, process.reset)
    run = make_run("run", ("sweep", ""), smallest_of(free), settings, meter=meter)
    with pytest.raises(BudgetError, match=r"training took 64 MiB, the budget is .+; no smaller plan is left"):
        drive(run, {2: lambda: process.takes(64 * MIB)})
    rest = drive(make_run("run", ("sweep", ""), 64 * MIB, settings), {}, resume=True)
    assert [event.position.step for event in rest if isinstance(event, Progress)] == [3, 4, 5, 6]
