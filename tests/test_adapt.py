"""Adapting to a user's rows: guard, replay, choice of the epoch, stopping and going on."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_artifact import CLASSES, FEATURES, Oracle, Tiny, make_dataset, make_manifest, make_rows, write_tiny

import edgeff.runtime.adapt as adapt_module
from edgeff.checked_rows import check_rows
from edgeff.dataset import Dataset
from edgeff.errors import BudgetError, DataError, RunError
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.allocator import AllocatorMode
from edgeff.runtime.checkpoint import RunFolder, read_weights
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.evaluate import evaluate
from edgeff.runtime.events import Finished, GuardResult, Notice, Stopped
from edgeff.runtime.guard import SPLITTING_BYTES, best_epoch, guard_split
from edgeff.runtime.meter import Meter
from edgeff.runtime.mixture import prepare_rows
from edgeff.runtime.network import open_network
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.run import Run
from edgeff.runtime.settings import AdaptSettings, default_settings
from edgeff.runtime.stops import StopConditions
from edgeff.runtime.trainer import LearningRate, Position, Progress, Trainer
from edgeff.runtime.update import NonFiniteLossError

SETTINGS = AdaptSettings(epochs=3, batch_size=8, learning_rate=0.1, replay_fraction=0.25, checkpoint_steps=2, seed=5)


@pytest.fixture(scope="module")
def engine():
    return OnnxRuntime(1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny")


@pytest.fixture
def make_run(artifact, engine, tmp_path):
    def make(name="run", settings=SETTINGS, dataset=None, budget=None, source=artifact):
        rows = dataset or make_dataset(48)
        request = adaptation_request(source.manifest, settings, len(rows), budget_bytes=budget, schedule="sweep")
        planned = plan(source.manifest, request)
        return Adaptation(source, rows, settings, request, planned, engine, RunFolder(tmp_path / name))

    return make


def kinds(events):
    return [type(event).__name__ for event in events]


def of_kind(events, kind):
    return [event for event in events if isinstance(event, kind)]


def best_bytes(run):
    return run.folder.best.read_bytes()


def stop_after(count):
    asked = []

    def stop():
        asked.append(None)
        return "by a test" if len(asked) >= count else ""

    return stop


# --- a run ---


def test_a_run_judges_before_training_and_after_every_epoch_and_finishes(make_run):
    events = list(make_run().run())
    epoch = ["Progress"] * 6 + ["GuardResult"]
    assert kinds(events) == ["GuardResult", *epoch * 3, "Finished"]
    assert [event.epoch for event in of_kind(events, GuardResult)] == [0, 1, 2, 3]


def test_the_weights_kept_are_those_of_the_best_epoch(make_run, artifact, engine):
    run = make_run()
    events = list(run.run())
    guards = of_kind(events, GuardResult)
    accuracies = [guard.evaluation.accuracy for guard in guards]
    result = events[-1].result
    assert max(accuracies) > accuracies[0]  # or there is nothing to see here
    assert result["best_epoch"] == accuracies.index(max(accuracies)) == guards[-1].best_epoch
    network = open_network(artifact, engine, weights=read_weights(run.folder.path, artifact.manifest_sha256))
    guard = prepare_rows(artifact, run.dataset, SETTINGS).guard
    assert evaluate(network, guard.x, guard.y).accuracy == max(accuracies)


def test_where_training_does_not_help_the_weights_it_came_with_are_kept(make_run, artifact):
    x, y = make_rows(48, seed=1)
    run = make_run(dataset=Dataset("noise", x, np.roll(y, 1)), settings=replace(SETTINGS, learning_rate=1e-9))
    result = list(run.run())[-1].result
    assert result["best_epoch"] == 0
    kept = read_weights(run.folder.path, artifact.manifest_sha256)
    for name, array in artifact.tensors().items():
        np.testing.assert_array_equal(kept[name], array)


def test_the_run_folder_holds_what_the_documentation_says(make_run, artifact):
    run = make_run()
    events = list(run.run())
    names = {"run.json", "checkpoint.safetensors", "previous.safetensors", "best.safetensors", "result.json"}
    assert {path.name for path in run.folder.path.iterdir()} == names
    facts = json.loads((run.folder.path / "run.json").read_text())
    assert facts["manifest_sha256"] == artifact.manifest_sha256
    assert AdaptSettings.from_dict(facts["settings"]) == SETTINGS
    assert json.loads((run.folder.path / "result.json").read_text()) == json.loads(json.dumps(events[-1].result))


def test_the_result_counts_rows_and_measures(make_run):
    run = replace(make_run(), meter=Meter(), allocator=AllocatorMode("glibc, thresholds 65536", lean=True))
    events = list(run.run())
    result = events[-1].result
    assert result["rows"] == {"trained_on": 36, "replay": 10, "guard": 12, "left_out": 0, "skipped": {}}
    assert result["planned_bytes"] == run.plan.planned_bytes
    assert result["measured"]["peak_bytes"] > 0
    assert result["allocator"] == "glibc, thresholds 65536"
    assert len(result["guard"]) == 4
    assert all(progress.measured for progress in of_kind(events, Progress))


def test_without_a_guard_the_last_epoch_is_kept(make_run, artifact):
    run = make_run(settings=replace(SETTINGS, guard_fraction=0.0))
    events = list(run.run())
    assert not of_kind(events, GuardResult)
    assert events[-1].result["best_epoch"] == 3
    assert events[-1].result["guard"] == []
    kept = read_weights(run.folder.path, artifact.manifest_sha256)
    last = read_weights(run.folder.path / "checkpoint.safetensors", artifact.manifest_sha256)
    assert kept.keys() == last.keys()
    assert all(np.array_equal(kept[name], last[name]) for name in kept)


def test_blocks_that_are_not_trained_do_not_change(make_run, artifact):
    run = make_run(settings=replace(SETTINGS, blocks=("block2",), guard_fraction=0.0))
    list(run.run())
    kept, before = read_weights(run.folder.path, artifact.manifest_sha256), artifact.tensors()
    np.testing.assert_array_equal(kept["block1.w"], before["block1.w"])
    assert np.abs(kept["block2.w"] - before["block2.w"]).max() > 1e-3


def test_a_budget_changes_the_micro_batch_and_hardly_the_weights(make_run, artifact):
    request = adaptation_request(artifact.manifest, SETTINGS, 48, budget_bytes=None, schedule="sweep")
    needed = smallest_budget(artifact.manifest, request)
    free, tight = make_run("free"), make_run("tight", budget=needed)
    assert free.plan.planned_bytes >= tight.plan.planned_bytes
    for run in (free, tight):
        list(run.run())
    kept = [read_weights(run.folder.path, artifact.manifest_sha256) for run in (free, tight)]
    for name in kept[0]:
        np.testing.assert_allclose(kept[0][name], kept[1][name], rtol=1e-3, atol=1e-5)


def test_a_budget_that_cannot_hold_is_refused_before_anything_is_written(make_run, tmp_path):
    with pytest.raises(BudgetError, match="needs"):
        make_run(budget=1000)
    assert list(tmp_path.iterdir()) == []


# --- losses that are not finite ---


def test_a_rate_that_is_far_too_high_is_halved_three_times_and_then_the_run_ends(make_run, artifact, engine):
    run = make_run(settings=replace(SETTINGS, learning_rate=1e38, checkpoint_steps=1))
    events = []
    with pytest.raises(RunError, match=r"^the loss of block `block1` is (inf|nan) at step \d$") as caught:
        events.extend(run.run())
    assert "lower the learning rate" in caught.value.hint
    checkpoint, _ = run.folder.load_checkpoint(open_network(artifact, engine, trained=["block1", "block2"]))
    assert checkpoint.rate_factors["block1"] == 1 / 8
    run.folder.check_best(open_network(artifact, engine), checkpoint.best)


class BrokenOnce:
    """Rows of which one is NaN the first few times it is read, as by a sensor or a cable that comes and goes."""

    def __init__(self, x, row, times):
        self._x, self._row, self._left = x, row, times
        self.shape, self.dtype = x.shape, x.dtype

    def __len__(self):
        return len(self._x)

    def __getitem__(self, key):
        found = self._x[key].copy()
        numbers = np.arange(len(self._x))[key]
        if self._row in numbers and self._left:
            self._left -= 1
            found[numbers == self._row] = np.nan
        return found


def broken_run(make_run, monkeypatch, times, name="run", **settings):
    """A run whose training meets NaN `times` times in a row."""
    run = make_run(name, settings=replace(SETTINGS, replay_fraction=0.0, **settings))
    rows = prepare_rows(run.artifact, run.dataset, run.settings)
    training = replace(rows.training, x=BrokenOnce(rows.training.x[:], 5, times))
    monkeypatch.setattr(adapt_module, "prepare_rows", lambda *_: replace(rows, training=training))
    return run


def test_a_run_goes_back_to_its_checkpoint_and_on_with_half_the_rate_for_the_block(make_run, monkeypatch):
    run = broken_run(make_run, monkeypatch, times=1)
    events = list(run.run())
    (notice,) = of_kind(events, Notice)
    assert re.fullmatch(
        r"the loss of block `block1` is nan at step \d: back to step \d, and on with 0.5 of the learning rate "
        r"for `block1`",
        notice.text,
    )
    assert events[-1].result["rate_factors"] == {"block1": 0.5}
    assert all(np.isfinite(list(event.loss.values())).all() for event in of_kind(events, Progress))
    assert [event.epoch for event in of_kind(events, GuardResult)] == [0, 1, 2, 3]


def test_half_the_rate_for_a_block_is_what_the_formulas_give(make_run, monkeypatch, artifact):
    """From the first step on: all of the run is at half the rate for one block."""
    run = broken_run(make_run, monkeypatch, times=1, batch_size=64, guard_fraction=0.0, epochs=2)
    events = list(run.run())
    assert [event.position.step for event in of_kind(events, Progress)] == [1, 2]
    oracle = Oracle(Tiny(), artifact.tensors())
    x, y = run.dataset.x, run.dataset.y
    for step in (1, 2):
        oracle.update(x, y, LearningRate(0.1, "cosine", steps=2).at(step), factors={"block1": 0.5})
    kept = read_weights(run.folder.path, artifact.manifest_sha256)
    for name, array in oracle.weights.items():
        np.testing.assert_allclose(kept[name], array, rtol=1e-4, atol=1e-6)


def test_a_run_that_went_back_and_was_stopped_goes_on_byte_for_byte(make_run, monkeypatch):
    whole = broken_run(make_run, monkeypatch, times=1, name="whole")
    list(whole.run())
    parts = broken_run(make_run, monkeypatch, times=1, name="parts")
    before = list(parts.run(stop=stop_after(9)))
    assert of_kind(before, Notice)
    assert isinstance(before[-1], Stopped)
    broken_run(make_run, monkeypatch, times=0, name="parts")
    list(parts.run(resume=True))
    for name in ("best.safetensors", "checkpoint.safetensors"):
        assert (whole.folder.path / name).read_bytes() == (parts.folder.path / name).read_bytes()


def test_where_the_newest_checkpoint_is_no_better_the_one_before_is_gone_back_to(make_run, monkeypatch):
    run = broken_run(make_run, monkeypatch, times=2, checkpoint_steps=1)
    notices = [event.text for event in of_kind(list(run.run()), Notice)]
    steps = [int(re.search(r"back to step (\d+)", text)[1]) for text in notices]
    assert steps[1] == steps[0] - 1
    assert "0.25 of the learning rate" in notices[1]


def test_a_run_without_a_checkpoint_goes_back_to_its_beginning_and_judges_anew(make_run, monkeypatch):
    """As where the bound on what is written holds checkpoints back."""
    run = broken_run(make_run, monkeypatch, times=0, checkpoint_steps=0)
    monkeypatch.setattr(Run, "_save_if_allowed", lambda *_: None)
    spoilt, real = [], Trainer.epoch

    def spoil(trainer, start):
        for progress in real(trainer, start):
            if progress.position.epoch == 3 and not spoilt:
                spoilt.append(progress)
                raise NonFiniteLossError("block1", progress.position.step, "a loss")
            yield progress

    monkeypatch.setattr(Trainer, "epoch", spoil)
    events = list(run.run())
    assert "back to step 0" in of_kind(events, Notice)[0].text
    assert [event.epoch for event in of_kind(events, GuardResult)] == [0, 1, 2, 1, 2, 3]
    assert len(events[-1].result["guard"]) == 4
    assert [path.name for path in run.folder.path.glob("best*")] == ["best.safetensors"]


def test_weights_that_are_not_finite_never_reach_a_checkpoint_or_the_guard(make_run, artifact, engine, monkeypatch):
    run = make_run(settings=replace(SETTINGS, checkpoint_steps=1))
    spoilt = []

    def spoil(trainer, start):
        for progress in real(trainer, start):
            if progress.position.step == 6 and not spoilt:  # the last update before the guard
                spoilt.append(progress)
                trainer.network.memories[1].arrays["parameter.w"][0, 0] = np.inf
            yield progress

    real = Trainer.epoch
    monkeypatch.setattr(Trainer, "epoch", spoil)
    events = list(run.run())
    (notice,) = of_kind(events, Notice)
    assert notice.text.startswith("a weight of block `block2` is not finite at step 6: back to step 5")
    network = open_network(artifact, engine, weights=read_weights(run.folder.path, artifact.manifest_sha256))
    assert network.first_not_finite() is None


# --- stopping and going on ---


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 12, 15])
def test_a_run_that_was_stopped_and_gone_on_with_is_the_same_byte_for_byte(make_run, count):
    whole, parts = make_run("whole"), make_run("parts")
    list(whole.run())
    before = list(parts.run(stop=stop_after(count)))
    assert isinstance(before[-1], Stopped)
    after = list(parts.run(resume=True))
    assert isinstance(after[-1], Finished)
    assert len(of_kind([*before, *after], Progress)) == 18
    for name in ("best.safetensors", "checkpoint.safetensors"):
        assert (whole.folder.path / name).read_bytes() == (parts.folder.path / name).read_bytes()


def test_a_run_with_micro_batches_goes_on_byte_for_byte_too(make_run, artifact):
    def with_micro_batches(name):
        run = make_run(name)
        parts = tuple(replace(part, graphs=("accumulate", "apply"), micro_batch=3) for part in run.plan.blocks)
        return replace(run, plan=replace(run.plan, micro_batch=3, blocks=parts))

    whole, parts = with_micro_batches("whole"), with_micro_batches("parts")
    list(whole.run())
    list(parts.run(stop=stop_after(3)))
    list(parts.run(resume=True))
    assert best_bytes(whole) == best_bytes(parts)


def run_updates(run, updates, **options):
    """The events of a run that is stopped after so many updates."""
    stop, events = StopConditions(max_steps=updates), []
    for event in run.run(stop=stop, **options):
        events.append(event)
        if isinstance(event, Progress):
            stop.count_step()
    return events


def test_a_stop_says_where_and_why_and_the_checkpoint_is_there(make_run):
    run = make_run()
    reason = "after the 3 updates asked for"
    assert run_updates(run, 3)[-1] == Stopped(Position(1, 3, 3), reason)
    events = run_updates(run, 3, resume=True)
    # Stopped at the end of the epoch, before it is judged: that comes first when the run goes on.
    assert events[-1] == Stopped(Position(1, 6, 6), reason)
    assert not of_kind(events, GuardResult)
    events = run_updates(run, 3, resume=True)
    assert of_kind(events, GuardResult)[0].epoch == 1
    assert events[-1] == Stopped(Position(2, 3, 9), reason)


def test_a_stop_while_the_guard_judges_for_the_first_time_begins_again(make_run):
    run = make_run()
    assert list(run.run(stop=lambda: "at once")) == [Stopped(Position(), "at once")]
    assert kinds(run.run(resume=True)).count("Progress") == 18


@pytest.mark.parametrize("after", range(1, 40, 3))
def test_a_stop_between_two_micro_batches_leaves_the_batch_as_if_it_had_not_begun(make_run, after):
    def in_micro_batches(name):
        run = make_run(name)
        parts = tuple(replace(part, graphs=("accumulate", "apply"), micro_batch=3) for part in run.plan.blocks)
        return replace(run, plan=replace(run.plan, micro_batch=3, blocks=parts))

    whole, parts = in_micro_batches("whole"), in_micro_batches("parts")
    list(whole.run())
    stopped = list(parts.run(stop=stop_after(after)))[-1]
    assert isinstance(stopped, Stopped)
    found = list(parts.run(resume=True))
    assert of_kind(found, Progress)[0].position.step == stopped.position.step + 1
    for name in ("best.safetensors", "checkpoint.safetensors"):
        assert (whole.folder.path / name).read_bytes() == (parts.folder.path / name).read_bytes()


def test_a_run_can_be_stopped_by_leaving_it(make_run):
    run = make_run()
    for event in run.run():
        if isinstance(event, Progress) and event.position.step == 5:
            break
    events = list(run.run(resume=True))
    assert of_kind(events, Progress)[0].position == Position(1, 5, 5)  # the checkpoint after step 4
    assert isinstance(events[-1], Finished)


def test_a_run_that_has_no_checkpoint_yet_begins_again(make_run):
    run = make_run()
    next(run.run())
    assert not (run.folder.path / "checkpoint.safetensors").exists()
    events = list(run.run(resume=True))
    assert kinds(events).count("Progress") == 18


def test_a_finished_run_is_told_again_and_not_run_again(make_run):
    run = make_run()
    result = list(run.run())[-1].result
    (event,) = run.run(resume=True)
    assert event.result == json.loads(json.dumps(result))


def test_a_folder_in_use_is_refused(make_run):
    run = make_run()
    list(run.run())
    with pytest.raises(RunError, match=r"^`.*run` exists already$"):
        list(run.run())


def test_another_setting_data_or_artifact_cannot_go_on(make_run, engine, tmp_path):
    run = make_run()
    list(run.run(stop=stop_after(1)))
    other = write_tiny(tmp_path / "other", Tiny(fusion=(0.5, 1.0)))
    for changed, what in (
        (make_run(settings=replace(SETTINGS, learning_rate=0.2)), "setting `learning_rate` was 0.1, and now it is 0.2"),
        (make_run(dataset=make_dataset(47)), "data differs"),
        (make_run(source=other), "artifact differs"),
    ):
        with pytest.raises(RunError, match=rf"^`.*run` cannot be gone on with: its {what}$") as caught:
            list(changed.run(resume=True))
        assert caught.value.hint


def test_another_micro_batch_may_go_on_with_a_notice(make_run):
    run = make_run()
    list(run.run(stop=stop_after(1)))
    parts = tuple(replace(part, graphs=("accumulate", "apply")) for part in run.plan.blocks)
    lowered = replace(run, plan=replace(run.plan, micro_batch=4, blocks=parts))
    events = list(lowered.run(resume=True))
    assert of_kind(events, Notice) == [
        Notice("the run began with micro-batch 8, now it is 4: the result may differ in its last bits")
    ]
    assert isinstance(events[-1], Finished)


def test_a_damaged_checkpoint_is_told_of_and_the_run_ends_as_it_would_have(make_run):
    whole, run = make_run("whole"), make_run()
    list(whole.run())
    run_updates(run, 5)
    (run.folder.path / "checkpoint.safetensors").write_bytes(b"")
    events = list(run.run(resume=True))
    assert "is damaged" in of_kind(events, Notice)[0].text
    assert of_kind(events, Progress)[0].position.step == 5
    assert best_bytes(whole) == best_bytes(run)


# --- settings ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "a run of 0 epochs trains nothing, needed 1 or more"),
        ({"checkpoint_steps": -1}, "`-1` updates between checkpoints make no sense, needed 0 or more"),
        ({"blocks": ()}, "no block is to be trained, needed 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(RunError) as caught:
        replace(SETTINGS, **change)
    assert str(caught.value) == message


def test_settings_come_back_from_json():
    settings = replace(SETTINGS, blocks=("block1",))
    assert AdaptSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


def test_defaults_are_the_artifacts_and_ask_for_no_replay_that_is_not_there():
    with_rows, without = (default_settings(make_manifest(Tiny(replay_rows=rows))) for rows in (10, 0))
    assert (with_rows.epochs, with_rows.batch_size, with_rows.learning_rate) == (3, 8, 0.05)
    assert (with_rows.replay_fraction, without.replay_fraction) == (0.5, 0.0)


def test_a_plan_counts_the_rows_that_stay_in_memory(artifact):
    without = plan(artifact.manifest, Request(budget_bytes=None, batch_size=8))
    request = adaptation_request(artifact.manifest, SETTINGS, 48, budget_bytes=None)
    found = plan(artifact.manifest, request)
    # Of 58 rows three numbers each, and of the user's 48 the labels, with those of the guard once more.
    held = 10 * 4 * FEATURES + 24 * 58 + int(8 * 48 * (1 + SETTINGS.guard_fraction))
    assert found.planned_bytes - without.planned_bytes == request.row_bytes == held


def test_a_plan_counts_what_splitting_many_rows_takes(artifact):
    rows, known = 1_000_000, 40_000_000
    request = adaptation_request(artifact.manifest, SETTINGS, rows, budget_bytes=None, known_bytes=known)
    found = plan(artifact.manifest, request)
    assert found.largest_phase.name == "split rows"
    assert found.largest_phase.resident.rows == known + SPLITTING_BYTES * rows
    with pytest.raises(BudgetError):
        plan(artifact.manifest, replace(request, budget_bytes=found.planned_bytes - 1))


def test_a_plan_for_an_unknown_block_is_refused(artifact):
    with pytest.raises(RunError, match=r"^the artifact has no block `head`$"):
        adaptation_request(artifact.manifest, replace(SETTINGS, blocks=("head",)), 48, budget_bytes=None)


def test_blocks_that_no_prediction_depends_on_are_not_trained_alone(artifact):
    names = [block.name for block in artifact.manifest.blocks]
    weights = (*(1.0 for _ in names[:-1]), 0.0)
    silent = replace(artifact.manifest, fusion=weights)
    assert artifact.manifest.last_predicting.name == names[-1]
    assert silent.last_predicting.name == names[-2]
    message = (
        f"^training `{names[-1]}` would change no prediction: `{names[-2]}` is the last block that takes part in it$"
    )
    with pytest.raises(RunError, match=message):
        adaptation_request(silent, replace(SETTINGS, blocks=(names[-1],)), 48, budget_bytes=None)
    for chosen in ((names[-2],), (names[-2], names[-1])):
        assert adaptation_request(silent, replace(SETTINGS, blocks=chosen), 48, budget_bytes=None).trained == chosen


# --- rows ---


def test_a_batch_is_replay_rows_and_own_rows_in_proportion(artifact):
    dataset = make_dataset(48)
    rows = prepare_rows(artifact, dataset, SETTINGS).training
    replay = artifact.replay()
    for index in rows.order.batches(1):
        assert (index < 10).sum() == 2
        from_replay = index[index < 10]
        np.testing.assert_array_equal(rows.x.rows[from_replay], replay[0][from_replay])
        np.testing.assert_array_equal(rows.y[from_replay], replay[1][from_replay])
    own, _ = guard_split(dataset, 0.25)
    np.testing.assert_array_equal(rows.x.rows[10:], dataset.x[own])
    np.testing.assert_array_equal(rows.y[10:], dataset.y[own])


def test_replay_rows_that_the_artifact_lacks_are_refused(tmp_path):
    artifact = write_tiny(tmp_path / "bare", Tiny(replay_rows=0))
    with pytest.raises(DataError, match=r"has no replay rows, 0.25 of each batch was to be such$") as caught:
        prepare_rows(artifact, make_dataset(), SETTINGS)
    assert "`--replay-fraction 0`" in caught.value.hint


def bad_rows(change):
    x, y = make_rows(12)
    parts = {"name": "rows", "x": x, "y": y}
    change(parts)
    return Dataset(**parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(y=np.full(12, 4)), "`rows` has label 4 in row 0, needed 0..3"),
        (lambda p: p.update(y=np.full(12, -1)), "`rows` has label -1 in row 0, needed 0..3"),
        (
            lambda p: p.update(classes=("d", "c", "b", "a")),
            "`rows` has the classes `d`, `c`, `b`, `a`, needed `a`, `b`, `c`, `d`",
        ),
        (lambda p: p["x"].__setitem__((7, 0), np.nan), "row 7 has NaN"),
        (lambda p: p.update(x=p["x"][:, 1:]), "raw rows have shape (5,) and dtype float32"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_refused_before_training(change, message):
    with pytest.raises(DataError) as caught:
        check_rows(make_manifest(Tiny()), bad_rows(change))
    assert str(caught.value).startswith(message)


def test_rows_with_the_models_own_class_names_fit():
    check_rows(make_manifest(Tiny()), bad_rows(lambda p: p.update(classes=("a", "b", "c", "d"))))


# --- guard ---


def recordings(lengths, labels=1, overlap=True, rng=0):
    """Rows of several recordings, each with `labels` labels one after the other; half-overlapping windows."""
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    place = np.concatenate([np.arange(length) for length in lengths])
    y = np.concatenate([np.arange(length) * labels // max(length, 1) for length in lengths]).astype(np.int64)
    span = np.stack([place * 2, place * 2 + (4 if overlap else 2)], axis=1)
    return Dataset("windows", np.zeros((len(y), 2), np.float32), y, sequence=sequence, span=span)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    labels=st.integers(1, 3),
    fraction=st.floats(0.05, 0.9),
    known_span=st.booleans(),
)
def test_no_sample_is_trained_on_and_tested_on(lengths, labels, fraction, known_span):
    dataset = recordings(lengths, labels)
    given_data = dataset if known_span else replace(dataset, span=None)
    try:
        own, guard = guard_split(given_data, fraction)
    except DataError:
        return
    samples = [
        {(int(dataset.sequence[row]), sample) for row in rows for sample in range(*dataset.span[row])}
        for rows in (own, guard)
    ]
    assert not samples[0] & samples[1]
    assert len(own)
    assert len(guard)


@given(rows=st.integers(2, 200), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_rows_without_recordings_are_split_by_label_and_none_is_lost(rows, fraction, seed):
    dataset = make_dataset(rows, seed)
    try:
        own, guard = guard_split(dataset, fraction)
    except DataError:
        return
    assert sorted([*own, *guard]) == list(range(rows))
    for label in range(CLASSES):
        count, held = (dataset.y == label).sum(), (dataset.y[guard] == label).sum()
        assert held == min(int(count * fraction + 0.5), max(count - 1, 0))
        assert not held or guard[dataset.y[guard] == label].min() > own[dataset.y[own] == label].max()


def test_the_guard_is_the_last_part_of_each_label_of_each_recording():
    own, guard = guard_split(recordings([8, 4], labels=2, overlap=False), 0.25)
    assert guard.tolist() == [3, 7, 9, 11]
    assert own.tolist() == [0, 1, 2, 4, 5, 6, 8, 10]


def test_training_rows_that_overlap_the_guard_are_in_neither():
    own, guard = guard_split(recordings([8]), 0.25)
    assert guard.tolist() == [6, 7]
    assert own.tolist() == [0, 1, 2, 3, 4]


def test_rows_are_taken_in_time_order_whatever_their_place_in_the_file():
    dataset = recordings([8], overlap=False)
    order = np.array([7, 6, 5, 4, 3, 2, 1, 0])
    own, guard = guard_split(dataset.select(order), 0.25)
    assert guard.tolist() == [0, 1]
    assert own.tolist() == [2, 3, 4, 5, 6, 7]


def test_groups_stand_in_for_recordings():
    x, y = np.zeros((8, 2), np.float32), np.zeros(8, np.int64)
    _, guard = guard_split(Dataset("people", x, y, groups=np.array([0, 1] * 4)), 0.25)
    assert guard.tolist() == [6, 7]


def test_a_fraction_of_zero_holds_nothing_out():
    own, guard = guard_split(make_dataset(9), 0.0)
    assert (len(own), len(guard)) == (9, 0)


def test_too_few_rows_for_a_guard_are_refused():
    with pytest.raises(DataError, match=r"^`demo` has 4 rows, too few to hold some out as a guard: ") as caught:
        guard_split(make_dataset(4), 0.25)  # one row of each label
    assert "`--guard-fraction 0`" in caught.value.hint


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_guard_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(RunError, match=rf"^the guard fraction must be from 0 to below 1, got `{fraction}`$"):
        guard_split(make_dataset(9), fraction)


@given(st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_size=1, max_size=8))
def test_the_best_epoch_is_the_earliest_of_the_most_accurate(accuracies):
    assert best_epoch(accuracies) == accuracies.index(max(accuracies))
