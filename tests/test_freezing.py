"""Where a budget does not do for all blocks, the last ones that fit are trained, if that is allowed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_artifact import Tiny, make_manifest, make_rows, write_tiny

from edgeff.artifact import Artifact
from edgeff.cli import main
from edgeff.errors import BudgetError
from edgeff.manifest import Manifest, TensorSpec
from edgeff.runtime.checkpoint import read_weights
from edgeff.runtime.freezing import frozen_blocks, plan_freezing, trained_blocks
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Request

MIB = 2**20
NAMES = ("block1", "block2", "block3", "block4")


def heavy(megabytes: int = 1) -> Manifest:
    """Four blocks of as many MiB of weights, each with as much of gradients and state beside them."""
    base = make_manifest(Tiny(blocks=4, fusion=(1.0,) * 4))
    weight = TensorSpec("w", (megabytes * MIB // 4,))
    return replace(
        base, blocks=tuple(replace(block, parameters=(weight, block.parameters[1])) for block in base.blocks)
    )


def needed(manifest: Manifest, trained: tuple[str, ...], **more: object) -> int:
    return smallest_budget(manifest, Request(8, trained=trained, **more))  # type: ignore[arg-type]


def test_all_blocks_are_trained_where_that_fits() -> None:
    manifest = heavy()
    request = Request(8, budget_bytes=needed(manifest, NAMES))
    assert plan_freezing(manifest, request) == replace(plan(manifest, replace(request, trained=NAMES)))
    assert frozen_blocks(plan_freezing(manifest, request), request) == ()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_of_the_last_blocks_are_trained_as_fit(count: int) -> None:
    manifest, last = heavy(), NAMES[-count:]
    budget = needed(manifest, last, schedule="sweep")
    request = Request(8, budget_bytes=budget, schedule="sweep")
    found = plan_freezing(manifest, request)
    assert trained_blocks(found) == last
    assert frozen_blocks(found, request) == NAMES[:-count]
    assert found.planned_bytes <= budget
    assert [part.graphs for part in found.blocks[:-count]] == [("forward",)] * (4 - count)


def test_stages_that_train_more_blocks_come_before_a_sweep_that_trains_fewer() -> None:
    manifest = heavy(4)
    request = Request(8, budget_bytes=needed(manifest, NAMES, schedule="stage"))
    assert request.budget_bytes < needed(manifest, NAMES[1:], schedule="sweep")  # type: ignore[operator]
    found = plan_freezing(manifest, request)
    assert (found.schedule, trained_blocks(found)) == ("stage", NAMES)


def test_only_blocks_that_may_be_trained_are() -> None:
    manifest = heavy()
    budget = needed(manifest, ("block3",), schedule="sweep")
    request = Request(8, budget_bytes=budget, schedule="sweep", trained=("block2", "block3"))
    found = plan_freezing(manifest, request)
    assert trained_blocks(found) == ("block3",)
    assert frozen_blocks(found, request) == ("block2",)


def test_where_not_even_one_fits_it_says_what_the_last_one_needs() -> None:
    manifest = heavy()
    smallest = min(needed(manifest, ("block4",), schedule=schedule) for schedule in ("sweep", "stage"))
    with pytest.raises(BudgetError) as refused:
        plan_freezing(manifest, Request(8, budget_bytes=1000))
    assert f"the smallest budget that works is {smallest:,} bytes" in str(refused.value.hint)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny", Tiny(blocks=3, fusion=(1.0, 0.5, 0.25)))


def test_the_command_says_which_blocks_stay_as_they_are_and_leaves_them_alone(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = make_rows(60)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    words = [
        "train-on-device",
        str(artifact.path),
        "--data",
        str(tmp_path / "rows.npz"),
        "--out",
        str(tmp_path / "run"),
    ]
    words += ["--budget", "64MiB", "--epochs", "1", "--guard-fraction", "0", "--threads", "1", "--json"]

    def last_alone(manifest: Manifest, request: Request) -> object:
        return plan(manifest, replace(request, trained=("block3",)))

    monkeypatch.setattr("edgeff.runtime.freezing.plan_freezing", last_alone)
    done = CliRunner().invoke(main, [*words, "--allow-freezing"])
    assert done.exit_code == 0, done.output
    assert "the budget does not do for all blocks: block1, block2 stay as they are" in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["blocks"] == ["block3"]
    before, after = artifact.tensors(), read_weights(tmp_path / "run", artifact.manifest_sha256)
    changed = {key.partition(".")[0] for key in before if not np.array_equal(before[key], after[key])}
    assert changed == {"block3"}
