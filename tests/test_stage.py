"""The stage schedule: blocks trained one after another, each alone in memory, give what that gives in numpy."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_artifact import Oracle, Tiny, make_dataset, make_rows, write_tiny

from edgeff.artifact import Artifact
from edgeff.atomic import error_text
from edgeff.errors import BudgetError, RunError
from edgeff.runtime import features as features_module
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder, read_weights
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Finished, GuardResult, Notice, Replanned, Stopped
from edgeff.runtime.features import encode
from edgeff.runtime.mixture import prepare_rows
from edgeff.runtime.network import open_network, open_on_disk
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Features, Plan, Request
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.stage_inputs import StageInputs
from edgeff.runtime.store import BlockFiles
from edgeff.runtime.trainer import LearningRate, Progress

TINY = Tiny(blocks=3, fusion=(1.0, 0.5, 0.25))
SETTINGS = AdaptSettings(
    epochs=2,
    batch_size=8,
    learning_rate=0.1,
    replay_fraction=0.25,
    guard_fraction=0.0,
    checkpoint_steps=2,
    seed=5,
    schedule="stage",
)
MakeRun = Callable[..., Adaptation]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny", TINY)


@pytest.fixture
def make_run(artifact: Artifact, tmp_path: Path) -> MakeRun:
    def make(
        name: str = "run",
        features: str = "rerun",
        settings: AdaptSettings = SETTINGS,
        budget: int | None = None,
        **more: Any,
    ) -> Adaptation:
        request = adaptation_request(
            artifact.manifest,
            settings,
            48,
            budget_bytes=budget,
            schedule="stage",
            features=features,
            disk_bytes=1 << 30,
            **more,
        )
        planned = plan(artifact.manifest, request)
        folder = RunFolder(tmp_path / name)
        return Adaptation(artifact, make_dataset(48), settings, request, planned, OnnxRuntime(1), folder)

    return make


def one_after_another(artifact: Artifact, run: Adaptation) -> dict[str, np.ndarray]:
    """The same in numpy: all epochs of the first block, then all of the second, and so on."""
    rows = prepare_rows(artifact, run.dataset, run.settings).training
    x, oracle = rows.x.rows, Oracle(TINY, artifact.tensors())  # type: ignore[attr-defined]
    steps = run.settings.epochs * rows.order.batches_per_epoch
    rate = LearningRate(run.settings.learning_rate, run.settings.lr_schedule, steps)
    for name in run.settings.blocks or TINY.names:
        step = 0
        for epoch in range(1, run.settings.epochs + 1):
            for index in rows.order.batches(epoch):
                step += 1
                oracle.update(x[index], rows.y[index], rate.at(step), [name])
    return oracle.weights


def kept(run: Adaptation) -> dict[str, np.ndarray]:
    return read_weights(run.folder.path, run.artifact.manifest_sha256)


def of_kind(events: Sequence[object], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def plan_of(artifact: Artifact, features: Any = "float32") -> Plan:
    request = Request(batch_size=4, schedule="stage", features=features, disk_bytes=1 << 30)
    return plan(artifact.manifest, request)


def stop_after(count: int) -> Callable[[], bool]:
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return "by a test" if len(asked) >= count else ""

    return stop


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 2e-4) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance / 100, err_msg=name)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("features", ["rerun", "float32"])
def test_stages_are_the_blocks_trained_one_after_another(
    make_run: MakeRun, artifact: Artifact, features: str, micro_batch: int | None
) -> None:
    run = make_run(features=features, micro_batch=micro_batch)
    events = list(run.run())
    assert_close(kept(run), one_after_another(artifact, run))
    assert [list(event.loss) for event in of_kind(events, Progress)] == [
        [name] for name in TINY.names for _ in range(16)
    ]
    assert isinstance(events[-1], Finished)
    assert list(run.folder.path.glob("features.*")) == []


def test_only_the_blocks_asked_for_have_a_stage(make_run: MakeRun, artifact: Artifact) -> None:
    settings = replace(SETTINGS, blocks=("block1", "block3"))
    for features in ("rerun", "float32"):
        run = make_run(features, features, settings)
        list(run.run())
        assert_close(kept(run), one_after_another(artifact, run))
        np.testing.assert_array_equal(kept(run)["block2.w"], artifact.tensors()["block2.w"])


def test_the_guard_judges_before_and_after_every_block(make_run: MakeRun) -> None:
    run = make_run(settings=replace(SETTINGS, guard_fraction=0.25))
    events = list(run.run())
    assert [event.epoch for event in of_kind(events, GuardResult)] == [0, 1, 2, 3]
    accuracies = [event.evaluation.accuracy for event in of_kind(events, GuardResult)]
    assert events[-1].result["best_epoch"] == accuracies.index(max(accuracies))


@pytest.mark.parametrize("features", ["rerun", "float32"])
@pytest.mark.parametrize("count", [1, 5, 8, 16, 17, 30])
def test_a_run_that_was_stopped_ends_byte_for_byte_as_one_that_was_not(
    make_run: MakeRun, features: str, count: int
) -> None:
    whole, parts = make_run("whole", features), make_run("parts", features)
    list(whole.run())
    before = list(parts.run(stop=stop_after(count)))
    assert isinstance(before[-1], Stopped)
    after = list(parts.run(resume=True))
    assert isinstance(after[-1], Finished)
    assert len(of_kind([*before, *after], Progress)) == 48
    assert whole.folder.best.read_bytes() == parts.folder.best.read_bytes()


def test_a_run_left_at_any_moment_goes_on_as_if_it_had_not_been(make_run: MakeRun) -> None:
    whole = make_run("whole", "float32")
    list(whole.run())
    run, resume = make_run("left", "float32"), False
    for steps in (3, 14, 9, 20, 1):
        for number, _ in enumerate(event for event in run.run(resume=resume) if isinstance(event, Progress)):
            if number == steps:
                break
        resume = True
    list(run.run(resume=True))
    assert whole.folder.best.read_bytes() == run.folder.best.read_bytes()


@pytest.mark.parametrize("features", ["float32", "float16", "uint8"])
def test_features_that_were_interrupted_go_on_from_the_file_before_not_from_the_rows(
    make_run: MakeRun, features: str
) -> None:
    whole, parts = (make_run(name, features, micro_batch=4) for name in ("whole", "parts"))
    list(whole.run())
    begun = parts.folder.path / "features.block3.bin"
    before = list(parts.run(stop=lambda: "by a test" if begun.exists() else ""))
    assert isinstance(before[-1], Stopped)
    assert 0 < begun.stat().st_size < (parts.folder.path / "features.block2.bin").stat().st_size
    assert isinstance(list(parts.run(resume=True))[-1], Finished)
    assert whole.folder.best.read_bytes() == parts.folder.best.read_bytes()


def test_features_are_known_again_where_the_rows_have_another_name(make_run: MakeRun) -> None:
    run = make_run("run", "float32")
    for event in run.run():
        if isinstance(event, Progress) and event.position.stage == 1:
            break
    moved = replace(run, dataset=replace(run.dataset, name="elsewhere/rows.npz"))
    assert isinstance(list(moved.run(resume=True))[-1], Finished)


@pytest.mark.parametrize(("features", "tolerance"), [("float16", 2e-3), ("uint8", 0.1)])
def test_smaller_features_give_nearly_the_same(make_run: MakeRun, features: str, tolerance: float) -> None:
    exact, rounded = make_run("exact", "float32"), make_run(features, features)
    for run in (exact, rounded):
        list(run.run())
    largest = 0.0
    for name, array in kept(exact).items():
        difference = np.abs(kept(rounded)[name] - array).max()
        assert difference <= tolerance * np.abs(array).max()
        largest = max(largest, difference)
    assert largest > 0.0


# --- what may go wrong ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_of_once_and_the_blocks_before_are_run_again(
    make_run: MakeRun, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 100, 0))
    run = make_run(features="float32")
    events = list(run.run())
    (notice,) = of_kind(events, Notice)
    assert "cannot be written" in notice.text
    assert "the blocks before `block2` are run again instead" in notice.text
    (change,) = of_kind(events, Replanned)
    assert change.plan.features == "rerun"
    assert change.reason == "features cannot be kept in files"
    assert_close(kept(run), one_after_another(artifact, run))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("writes", [1, 3, 9])
def test_a_disk_that_fills_up_while_features_are_written_leaves_no_part_of_them(
    make_run: MakeRun, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, writes: int, code: int
) -> None:
    """The third block's file fails in the middle too: that of the second, which is whole, goes with it."""
    left: list[list[str]] = []
    rows_before = (count for count in range(10**6))

    def encode_some(rows: np.ndarray, features: Features) -> np.ndarray:
        if next(rows_before) == writes:
            left.append(sorted(path.name for path in run.folder.path.glob("features.*.bin")))
            raise OSError(code, os.strerror(code))
        return encode(rows, features)

    monkeypatch.setattr(features_module, "encode", encode_some)
    run = make_run(features="float32", micro_batch=8)  # 48 rows: six parts for each file
    events = list(run.run())
    assert left == [["features.block2.bin"] if writes < 6 else ["features.block2.bin", "features.block3.bin"]]
    (notice,) = of_kind(events, Notice)
    assert f"cannot be written ({error_text(OSError(code, os.strerror(code)))}" in notice.text
    assert_close(kept(run), one_after_another(artifact, run))
    assert list(run.folder.path.glob("features.*")) == []


def test_where_running_blocks_again_does_not_fit_the_budget_a_full_disk_ends_the_run(
    make_run: MakeRun, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_run("whole", "float32")
    list(whole.run())
    tight = smallest_budget(artifact.manifest, whole.request)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 100, 0))
    with pytest.raises(BudgetError, match="the run needs") as caught:
        list(make_run("run", "float32", budget=tight).run())
    assert "the smallest budget that works is" in caught.value.hint
    monkeypatch.undo()
    events = list(make_run("run", "float32", budget=tight).run(resume=True))
    assert isinstance(events[-1], Finished)
    assert len(of_kind(events, Progress)) == 32  # the first block was done
    assert_close(kept(make_run("run", "float32")), kept(whole))


def test_features_that_were_made_from_something_else_are_refused(make_run: MakeRun) -> None:
    run = make_run(features="float32")
    list(run.run(stop=stop_after(20)))
    facts = run.folder.path / "features.block2.json"
    facts.write_text(facts.read_text().replace('"made_from": "', '"made_from": "0'))
    with pytest.raises(RunError, match="holds features of another artifact, other weights or other rows") as caught:
        list(run.run(resume=True))
    assert "remove" in caught.value.hint


@pytest.mark.parametrize("other", ["rows", "weights", "artifact", "features"])
def test_a_file_is_refused_where_anything_that_made_it_is_another(
    artifact: Artifact, tmp_path: Path, other: str
) -> None:
    def made(rows: str = "rows", features: str = "float32", source: Artifact = artifact) -> StageInputs:
        inputs = StageInputs(tmp_path, source, files, rows)
        network = open_on_disk(source, OnnxRuntime(1), files)
        assert inputs.prepare(network, x, 2, plan_of(source, features)) == []
        return inputs

    x, files = make_rows(12)[0], BlockFiles(tmp_path, artifact)
    first = made().of(open_on_disk(artifact, OnnxRuntime(1), files), x, 2, plan_of(artifact))[:]
    made()  # the same again is taken as it is
    assert first.shape == (12, 4)
    if other == "weights":
        files.write(open_network(artifact, OnnxRuntime(1), trained=["block1"]).memory(0))
    another = write_tiny(tmp_path / "another", replace(TINY, replay_rows=3)) if other == "artifact" else artifact
    with pytest.raises(RunError, match="holds features of another artifact, other weights or other rows"):
        made(
            "other rows" if other == "rows" else "rows",
            "float16" if other == "features" else "float32",
            another,
        )


@pytest.mark.parametrize("gone", [".bin", ".json"])
def test_features_of_which_a_part_is_missing_are_made_again(make_run: MakeRun, gone: str) -> None:
    whole, run = make_run("whole", "float32"), make_run("run", "float32")
    list(whole.run())
    list(run.run(stop=stop_after(20)))
    (run.folder.path / f"features.block2{gone}").unlink()
    list(run.run(resume=True))
    assert whole.folder.best.read_bytes() == run.folder.best.read_bytes()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def as_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("end", [".json", ".bin"])
@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b'{"format"'), flip, as_a_pipe])
def test_features_that_are_damaged_are_made_again(make_run: MakeRun, spoil: Callable[[Path], object], end: str) -> None:
    whole, run = make_run("whole", "float32"), make_run("run", "float32")
    list(whole.run())
    list(run.run(stop=stop_after(20)))
    if spoil is flip and end == ".json":
        facts = run.folder.path / "features.block2.json"
        facts.write_text(facts.read_text().replace('"sha256": "', '"sha256": "0'))
    else:
        spoil(run.folder.path / f"features.block2{end}")
    list(run.run(resume=True))
    assert whole.folder.best.read_bytes() == run.folder.best.read_bytes()


def test_features_that_are_cut_short_are_completed(make_run: MakeRun) -> None:
    whole, run = make_run("whole", "float32"), make_run("run", "float32")
    list(whole.run())
    list(run.run(stop=stop_after(20)))
    file = run.folder.path / "features.block2.bin"
    file.write_bytes(file.read_bytes()[:100])
    list(run.run(resume=True))
    assert whole.folder.best.read_bytes() == run.folder.best.read_bytes()
