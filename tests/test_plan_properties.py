"""Properties that every plan has, over random manifests and requests."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from tiny_artifact import CLASSES, Tiny, make_manifest

from edgeff.errors import BudgetError
from edgeff.manifest import BlockSpec, GraphKind, GraphSpec, Line, Manifest, Moment, TensorSpec, Work
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_bytes import APPLY_NUMBERS
from edgeff.runtime.plan_parts import Plan, Request

MIB = 2**20
BYTES = st.integers(0, 300_000)


@dataclass(frozen=True)
class Asked:
    """A manifest, and what a run on it asks for, without a budget."""

    manifest: Manifest
    request: Request


@st.composite
def graphs(draw: st.DrawFn, block: BlockSpec, shared: bool) -> dict[GraphKind, GraphSpec]:
    """What each graph holds inside: one or two moments; some blocks share their graphs' files with all others."""
    found: dict[GraphKind, GraphSpec] = {}
    kinds: dict[GraphKind, GraphSpec] = dict(block.graphs)
    if draw(st.booleans()):
        kinds["fast_accumulate"] = replace(block.graphs["accumulate"], file="fast.onnx")
    for kind, graph in kinds.items():
        moments = [Moment(draw(BYTES), draw(st.integers(0, 60_000))) for _ in range(draw(st.integers(1, 2)))]
        moments.sort(key=lambda one: one.row_bytes)
        found[kind] = replace(
            graph,
            file=f"all.{kind}.onnx" if shared else graph.file,
            nodes=draw(st.integers(1, 400)),
            transient=(Moment(0, draw(st.integers(0, 24))),) if kind == "apply" else tuple(moments),
            arena=Line(0, draw(st.integers(0, 32)))
            if kind == "apply"
            else Line(draw(BYTES), draw(st.integers(0, 90_000))),
            work=Work(0, draw(st.integers(0, 10**7))),
            traffic=Line(draw(BYTES), draw(BYTES)),
        )
    return found


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    count = draw(st.integers(1, 5))
    base = make_manifest(Tiny(blocks=count, fusion=(1.0,) * count))
    widths = [draw(st.integers(1, 3000)) for _ in range(count + 1)]
    blocks = []
    for number, block in enumerate(base.blocks):
        weight = TensorSpec("w", (draw(st.integers(1, 60_000)), CLASSES))
        blocks.append(
            replace(
                block,
                input=TensorSpec("x", (widths[number],)),
                handover=block.handover and TensorSpec("handover", (widths[number + 1],)),
                parameters=(weight, block.parameters[1]),
                graphs=draw(graphs(block, draw(st.booleans()))),
            )
        )
    return replace(base, blocks=tuple(blocks))


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    manifest = draw(manifests())
    names = [block.name for block in manifest.blocks]
    batch = draw(st.integers(1, 130))
    request = Request(
        batch_size=batch,
        schedule=draw(st.sampled_from(["sweep", "stage", None])),
        trained=draw(st.none() | st.sets(st.sampled_from(names), min_size=1)),
        rows=draw(st.integers(1, 5000)),
        row_bytes=draw(BYTES),
        threads=draw(st.integers(1, 4)),
        features=draw(st.sampled_from([None, "rerun", "float32", "float16", "uint8"])),
        disk_bytes=1 << 40,
        prefer=draw(st.sampled_from(["speed", "memory"])),
        micro_batch=draw(st.none() | st.integers(1, batch)),
        returning_bytes=draw(st.sampled_from([0, 7 * MIB])),
    )
    return Asked(manifest, request)


def assert_fits(found: Plan, request: Request) -> None:
    """Every phase is inside the budget and every block inside its cap; micro-batches are parts of one another."""
    assert request.budget_bytes is not None
    assert all(phase.resident.total <= request.budget_bytes for phase in found.phases)
    assert found.training_bytes <= found.planned_bytes <= request.budget_bytes == found.budget_bytes
    for part in found.blocks:
        assert found.micro_batch % part.micro_batch == 0
        assert part.budget_bytes is not None
        assert part.planned_bytes <= part.budget_bytes <= request.block_budgets.get(part.block, request.budget_bytes)
    assert found.features == "rerun" or found.disk_bytes <= request.disk_bytes
    assert found.micro_batch <= request.batch_size


@given(asked(), st.integers(0, 8 * MIB))
@settings(deadline=None, max_examples=60)
def test_a_plan_that_is_found_fits(one: Asked, room: int) -> None:
    request = replace(one.request, budget_bytes=smallest_budget(one.manifest, one.request) + room)
    assert_fits(plan(one.manifest, request), request)


def room_for_runs(one: Asked, found: Plan) -> int:
    """The stretch that runs of graphs need: those of as many blocks as work at once, of updates, of evaluations."""
    parts = list(zip(one.manifest.blocks, found.blocks, strict=True))
    updates = [block.graphs["apply"].arena_bytes(APPLY_NUMBERS) for block, part in parts if "apply" in part.graphs]
    learning = [
        max(
            (
                block.graphs[kind].arena_bytes(APPLY_NUMBERS if kind == "apply" else part.micro_batch)
                for kind in part.graphs
            ),
            default=0,
        )
        for block, part in parts
    ]
    forward = [block.graphs["forward"].arena_bytes(found.evaluation_rows) for block, _ in parts]
    working = sum(sorted(learning, reverse=True)[: found.workers])
    return max(working, found.update_threads * max(updates, default=0), *forward)


@given(asked(), st.sampled_from([MIB, 4 * MIB, None]))
@settings(deadline=None, max_examples=80)
def test_an_arena_has_room_for_every_run_and_is_there_in_every_phase(one: Asked, room: int | None) -> None:
    budget = None if room is None else smallest_budget(one.manifest, one.request) + room
    found = plan(one.manifest, replace(one.request, budget_bytes=budget, prefer="speed"))
    event(f"arena {bool(found.arena_bytes)}")
    if not found.arena_bytes:
        return
    event(f"workers {found.workers}")
    assert found.arena_bytes == room_for_runs(one, found)
    assert max(found.workers * found.operator_threads, found.update_threads) <= one.request.threads
    count = len(one.manifest.blocks)
    for phase in found.phases:
        first = 0
        if phase.name.startswith("train "):
            first = next(number for number in range(count) if one.manifest.blocks[number].name == phase.name[6:])
        filling = 4 * found.micro_batch * math.prod(one.manifest.blocks[first].input.shape)
        assert phase.resident.activations >= found.arena_bytes * 33 // 32 + filling, phase.name


@given(asked(), st.integers(0, 16 * MIB))
@settings(deadline=None, max_examples=50)
def test_where_an_arena_is_not_allowed_there_is_none_and_the_plan_is_no_faster(one: Asked, room: int) -> None:
    request = replace(one.request, budget_bytes=smallest_budget(one.manifest, one.request) + room)
    allowed, without = (plan(one.manifest, replace(request, arena=arena)) for arena in (True, False))
    assert without.arena_bytes == 0
    if request.prefer == "speed" and allowed.schedule == without.schedule:
        assert allowed.epoch_seconds <= without.epoch_seconds
    if request.prefer == "memory":
        assert allowed.planned_bytes <= without.planned_bytes


@given(asked())
@settings(deadline=None, max_examples=50)
def test_the_smallest_budget_works_and_a_byte_less_does_not(one: Asked) -> None:
    needed = smallest_budget(one.manifest, one.request)
    assert plan(one.manifest, replace(one.request, budget_bytes=needed)).planned_bytes == needed
    with pytest.raises(BudgetError, match=f"{needed:,} bytes"):
        plan(one.manifest, replace(one.request, budget_bytes=needed - 1))


@given(asked(), st.data())
@settings(deadline=None, max_examples=50)
def test_caps_of_blocks_are_kept_too_or_the_block_is_named(one: Asked, data: Any) -> None:
    free = plan(one.manifest, one.request)
    part = data.draw(st.sampled_from(free.blocks))
    cap = data.draw(st.integers(max(1, part.planned_bytes // 2), part.planned_bytes + 1))
    request = replace(one.request, block_budgets={part.block: cap})
    needed = smallest_budget(one.manifest, request)
    if needed:
        fitting = replace(request, budget_bytes=needed)
        assert_fits(plan(one.manifest, fitting), fitting)
        with pytest.raises(BudgetError, match=f"^the run needs {needed:,} bytes(, | by schedule )"):
            plan(one.manifest, replace(request, budget_bytes=needed - 1))
    else:
        with pytest.raises(BudgetError, match=rf"^block `{part.block}` needs [\d,]+ bytes .+, its budget is {cap:,}: "):
            plan(one.manifest, request)


@given(asked(), st.integers(0, 4 * MIB), st.integers(0, 4 * MIB), st.sampled_from(["sweep", "stage"]))
@settings(deadline=None, max_examples=60)
def test_a_larger_budget_never_makes_a_plan_slower(one: Asked, first: int, more: int, schedule: Any) -> None:
    request = replace(one.request, schedule=schedule, prefer="speed")
    needed = smallest_budget(one.manifest, request)
    tight, roomy = (plan(one.manifest, replace(request, budget_bytes=needed + room)) for room in (first, first + more))
    assert roomy.epoch_seconds <= tight.epoch_seconds * (1 + 1e-9)


@given(asked(), st.integers(0, 4 * MIB))
@settings(deadline=None, max_examples=50)
def test_without_a_schedule_a_sweep_is_taken_wherever_one_fits(one: Asked, room: int) -> None:
    request = replace(one.request, schedule=None)
    budget = smallest_budget(one.manifest, request) + room
    sweep = smallest_budget(one.manifest, replace(request, schedule="sweep"))
    found = plan(one.manifest, replace(request, budget_bytes=budget))
    assert (found.schedule == "sweep") == (sweep <= budget)


@given(asked(), st.integers(0, 4 * MIB))
@settings(deadline=None, max_examples=50)
def test_the_same_request_gives_the_same_plan(one: Asked, room: int) -> None:
    request = replace(one.request, budget_bytes=smallest_budget(one.manifest, one.request) + room)
    assert plan(one.manifest, request) == plan(one.manifest, request)
