"""The plan of forward-only learning; what it learns is in `test_baselines.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_artifact import CLASSES, FEATURES, Tiny, make_manifest

from edgeff.errors import BudgetError
from edgeff.manifest import Line, Manifest, Moment
from edgeff.runtime.buffers import buffer_bytes, filling_bytes
from edgeff.runtime.plan_bytes import BLOCK_BYTES, PROCESS_BYTES, session_bytes
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.timeline import timeline
from edgeff.runtime.zeroth_order import plan_zeroth_order

BASE = make_manifest(Tiny(blocks=1, fusion=(1.0,)))
DIRECTIONS = 2 * 4 * FEATURES * CLASSES  # of the largest weight, drawn with its square beside it


def manifest_with(row_bytes: int, arena_bytes: int) -> Manifest:
    """One block; so many bytes are alive for each row in a forward pass, in a stretch of so many."""
    block = BASE.blocks[0]
    forward = replace(block.graphs["forward"], transient=(Moment(0, row_bytes),), arena=Line(0, arena_bytes))
    return replace(BASE, blocks=(replace(block, graphs=block.graphs | {"forward": forward}),))


def planned(manifest: Manifest, **request: Any) -> Plan:
    return plan_zeroth_order(manifest, Request(**{"batch_size": 8, **request}))


def test_without_an_arena_what_fills_the_buffers_and_what_runs_take_turns() -> None:
    manifest = manifest_with(100_000, 150_000)
    found = planned(manifest, micro_batch=4, arena=False, row_bytes=1000)
    block, resident = manifest.blocks[0], found.largest_phase.resident
    assert (found.arena_bytes, resident.rows, resident.weights) == (0, 1000, block.weight_bytes)
    assert resident.activations == 400_000 + buffer_bytes(manifest, 4)
    assert resident.graphs == session_bytes(block.graphs["forward"])
    assert resident.process == PROCESS_BYTES + BLOCK_BYTES
    assert resident.gradients == resident.state == 0
    assert [part.graphs for part in found.blocks] == [("forward",)]


def test_an_arena_is_there_beside_what_fills_the_buffers() -> None:
    manifest = manifest_with(100_000, 150_000)
    found = planned(manifest, micro_batch=4)
    assert found.arena_bytes == 600_000
    beside = max(filling_bytes(manifest, 4), DIRECTIONS)
    assert found.largest_phase.resident.activations == (600_000 + 65536) * 33 // 32 + beside + buffer_bytes(manifest, 4)


def test_an_arena_is_kept_where_the_budget_has_room_and_speed_is_preferred() -> None:
    manifest = manifest_with(100_000, 150_000)
    kept, returned = planned(manifest, micro_batch=4), planned(manifest, micro_batch=4, arena=False)
    assert kept.epoch_seconds < returned.epoch_seconds
    enough = kept.planned_bytes
    assert planned(manifest, micro_batch=4, budget_bytes=enough).arena_bytes == 600_000
    tight = planned(manifest, micro_batch=4, budget_bytes=enough - 1)
    assert (tight.arena_bytes, tight.planned_bytes) == (0, returned.planned_bytes)
    small = planned(manifest, prefer="memory")
    assert (small.arena_bytes, small.micro_batch) == (0, 1)


def test_where_nothing_fits_the_smallest_budget_that_works_is_told() -> None:
    manifest = manifest_with(100_000, 150_000)
    least = planned(manifest, prefer="memory").planned_bytes
    with pytest.raises(BudgetError) as caught:
        planned(manifest, budget_bytes=least - 1)
    assert caught.value.hint == f"the smallest budget that works is {least:,} bytes"
    assert planned(manifest, budget_bytes=least).planned_bytes == least


@given(
    row_bytes=st.integers(0, 300_000),
    more=st.integers(0, 300_000),
    batch_size=st.integers(1, 64),
    room=st.integers(0, 2**22),
    prefer=st.sampled_from(["speed", "memory"]),
)
@settings(deadline=None)
def test_a_plan_fits_and_holds_what_one_run_needs(
    row_bytes: int, more: int, batch_size: int, room: int, prefer: Any
) -> None:
    manifest = manifest_with(row_bytes, row_bytes + more)
    least = planned(manifest, batch_size=batch_size, prefer="memory").planned_bytes
    found = planned(manifest, batch_size=batch_size, prefer=prefer, budget_bytes=least + room)
    assert least <= found.planned_bytes <= least + room
    inside = found.largest_phase.resident.activations - buffer_bytes(manifest, found.micro_batch)
    assert inside >= row_bytes * found.micro_batch
    assert found.arena_bytes in (0, (row_bytes + more) * found.micro_batch)
    drawn = timeline(manifest, found, passes=2)
    assert drawn.peak_bytes <= found.planned_bytes
