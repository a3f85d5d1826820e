"""`runtime/plan.py`: pure arithmetic, checked against sums made here in another way."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_artifact import CLASSES, FEATURES, Tiny, make_manifest

from edgeff.errors import BudgetError
from edgeff.manifest import HeldTensor, Line, Manifest, Moment, Work
from edgeff.runtime.buffers import allocate_buffers, buffer_bytes, filling_bytes
from edgeff.runtime.cost import run_seconds
from edgeff.runtime.memory import allocate_memory
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_blocks import micro_batches
from edgeff.runtime.plan_bytes import APPLY_CALL_BYTES, APPLY_NUMBERS, BLOCK_BYTES, PROCESS_BYTES, session_bytes
from edgeff.runtime.plan_parts import Plan, Request

MIB = 2**20
BASE = make_manifest(Tiny(blocks=3, fusion=(1.0, 1.0, 1.0)))


def manifest_with(
    row_bytes: tuple[int, ...] = (3000, 2000, 1000), weights: tuple[int, ...] = (6, 6, 6), shared: bool = False
) -> Manifest:
    """Three blocks; `row_bytes` are alive per row inside each, `weights` are the rows of its matrix."""
    blocks = []
    for block, size, inputs in zip(BASE.blocks, row_bytes, weights, strict=True):
        tensors = (HeldTensor("relu_1", "Relu", 0, size),)
        graphs = {
            kind: replace(
                graph,
                file=f"{'all' if shared else block.name}.{kind}.onnx",
                transient=(Moment(0, 8),) if kind == "apply" else (Moment(0, size, tensors),),
            )
            for kind, graph in block.graphs.items()
        }
        parameters = (replace(block.parameters[0], shape=(inputs, CLASSES)), block.parameters[1])
        blocks.append(replace(block, graphs=graphs, parameters=parameters))
    return replace(BASE, blocks=tuple(blocks))


def with_arenas(manifest: Manifest, times: float = 1.5) -> Manifest:
    """Each graph finds room in so many times the bytes alive in it."""
    blocks = []
    for block in manifest.blocks:
        arenas = {kind: Line(0, round(times * graph.transient[0].row_bytes)) for kind, graph in block.graphs.items()}
        graphs = {kind: replace(graph, arena=arenas[kind]) for kind, graph in block.graphs.items()}
        blocks.append(replace(block, graphs=graphs))
    return replace(manifest, blocks=tuple(blocks))


def planned(manifest: Manifest, **request: Any) -> Plan:
    return plan(manifest, Request(**{"batch_size": 8, "schedule": "sweep", **request}))


def arrays_bytes(manifest: Manifest, *, accumulate: bool, blocks: tuple[int, ...] = (0, 1, 2)) -> int:
    """What a run really allocates for blocks."""
    total = 0
    for index in blocks:
        memory = allocate_memory(manifest.blocks[index], trained=True, accumulate=accumulate)
        total += sum(run.nbytes for run in memory.runs.values())
        total += sum(array.nbytes for name, array in memory.arrays.items() if name.startswith("buffer."))
    return total


# --- sweep ------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_sweep_are_the_sum_of_what_is_allocated() -> None:
    manifest = manifest_with(row_bytes=(30_000, 20_000, 10_000))
    found = planned(manifest, batch_size=64, prefer="memory", row_bytes=1000)
    assert [part.graphs for part in found.blocks] == [("accumulate", "apply")] * 3
    sessions = sum(session_bytes(block.graphs[kind]) for block in manifest.blocks for kind in ("accumulate", "apply"))
    pairs = zip((30_000, 20_000, 10_000), found.blocks, strict=True)
    inside = max(8 * APPLY_NUMBERS, *(size * part.micro_batch for size, part in pairs))
    train = next(phase for phase in found.phases if phase.name == "train").resident
    assert train.weights + train.gradients + train.state == arrays_bytes(manifest, accumulate=True)
    assert train.graphs == sessions
    assert train.activations == inside + buffer_bytes(manifest, found.micro_batch)
    assert (train.rows, train.process) == (1000, PROCESS_BYTES + 3 * BLOCK_BYTES + APPLY_CALL_BYTES)
    assert found.planned_bytes == max(phase.resident.total for phase in found.phases)


def test_where_the_batch_is_the_micro_batch_blocks_may_step_at_once_and_need_no_gradient_sums() -> None:
    found = planned(manifest_with(row_bytes=(1, 1, 1)))
    assert [part.graphs for part in found.blocks] == [("step",)] * 3
    assert found.largest_phase.resident.gradients == 0
    assert (found.schedule, found.batch_size, found.micro_batch, found.budget_bytes) == ("sweep", 8, 8, None)


def test_blocks_whose_graphs_are_the_same_load_them_once() -> None:
    alone, shared = (planned(manifest_with(shared=shared)) for shared in (False, True))
    blocks, kinds = manifest_with().blocks, alone.blocks[0].graphs
    each = [sum(session_bytes(block.graphs[kind]) for kind in kinds) for block in blocks]
    assert alone.phases[0].resident.graphs == sum(each)
    assert shared.phases[0].resident.graphs == each[0]
    assert [part.session_bytes for part in shared.blocks] == [each[0], 0, 0]


def test_buffers_are_planned_as_they_are_allocated() -> None:
    manifest = manifest_with()
    for rows in (1, 7):
        buffers = allocate_buffers(manifest, rows, {})
        arrays = (buffers.features, *buffers.handovers, buffers.y, buffers.row_weight, buffers.log_probabilities)
        assert buffer_bytes(manifest, rows) == sum(array.nbytes for array in arrays)
        assert filling_bytes(manifest, rows) == 3 * rows * 4 * FEATURES


def test_every_block_gets_the_micro_batch_that_fits_it() -> None:
    """The first block holds much for each row, the last little."""
    manifest = manifest_with(row_bytes=(MIB, MIB // 4, 64))
    base = planned(manifest, prefer="memory").planned_bytes
    found = planned(manifest, budget_bytes=base + MIB)
    sizes = [part.micro_batch for part in found.blocks]
    assert sizes[0] < sizes[1] <= found.micro_batch
    assert all(found.micro_batch % size == 0 for size in sizes)
    assert found.planned_bytes <= base + MIB


def test_blocks_that_are_not_trained_only_run_forward_and_those_behind_the_last_do_not_run() -> None:
    found = planned(manifest_with(), trained=["block2"])
    assert [part.graphs for part in found.blocks] == [("forward",), ("step",), ()]
    assert [part.state_bytes > 0 for part in found.blocks] == [False, True, False]
    assert found.blocks[2].session_bytes == found.blocks[2].transient_bytes == 0


def test_each_thread_beyond_the_first_costs_a_stack_in_every_session() -> None:
    graph = BASE.blocks[0].graphs["step"]
    assert session_bytes(graph, 3) - session_bytes(graph, 1) == 2 * 80 * 1024


# --- arena ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_memory_is_kept_for_graphs_where_the_budget_has_room_and_given_back_after_each_run_where_not(
    schedule: str,
) -> None:
    manifest = with_arenas(manifest_with(row_bytes=(200_000, 100_000, 50_000)))
    fixed = {"schedule": schedule, "micro_batch": 4}
    kept, returned = planned(manifest, **fixed), planned(manifest, **fixed, arena=False)
    assert (kept.arena_bytes, returned.arena_bytes) == (4 * 300_000, 0)
    assert kept.epoch_seconds < returned.epoch_seconds
    assert kept.planned_bytes > returned.planned_bytes
    enough = kept.planned_bytes
    assert planned(manifest, **fixed, budget_bytes=enough).arena_bytes == kept.arena_bytes
    tight = planned(manifest, **fixed, budget_bytes=enough - 1)
    assert (tight.arena_bytes, tight.planned_bytes) == (0, returned.planned_bytes)


def test_where_memory_is_preferred_none_is_kept() -> None:
    manifest = with_arenas(manifest_with(row_bytes=(100_000, 50_000, 25_000)))
    for schedule in ("sweep", "stage"):
        small, least = (planned(manifest, schedule=schedule, prefer="memory", arena=one) for one in (True, False))
        assert small == least
        assert small.arena_bytes == 0


def test_an_arena_is_there_in_every_phase_of_a_sweep_beside_what_fills_the_buffers() -> None:
    """With 64 KiB for what is not known before, and a pointer for every 256 bytes."""
    manifest = with_arenas(manifest_with(row_bytes=(100_000, 50_000, 25_000)))
    found = planned(manifest, micro_batch=4, updates="accumulated")
    arena = max(4 * 150_000, 12 * APPLY_NUMBERS)
    assert found.arena_bytes == arena
    expected = (arena + 65536) * 33 // 32 + filling_bytes(manifest, 4) + buffer_bytes(manifest, 4)
    assert [phase.resident.activations for phase in found.phases] == [expected, expected]


def test_an_arena_has_room_for_the_forward_passes_of_evaluations() -> None:
    """In a sweep they take as many rows as the smallest micro-batch of a block, in a stage as many as any."""
    manifest = with_arenas(manifest_with(row_bytes=(1000, 1000, 1000)))
    head = manifest.blocks[0]
    forward = replace(head.graphs["forward"], transient=(Moment(0, 2_000_000),), arena=Line(0, 3_000_000))
    manifest = replace(
        manifest, blocks=(replace(head, graphs=head.graphs | {"forward": forward}), *manifest.blocks[1:])
    )
    for schedule in ("sweep", "stage"):
        assert planned(manifest, schedule=schedule, micro_batch=2).arena_bytes == 6_000_000


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_where_an_arena_just_fails_to_fit_a_block_takes_a_smaller_part_and_the_others_do_not(schedule: str) -> None:
    """New memory costs much here, so that an arena is kept wherever one fits; the second block's weights are large."""
    manifest = with_arenas(manifest_with(row_bytes=(400_000, 1000, 64), weights=(6, 60_000, 6)))
    blocks = []
    for block in manifest.blocks:
        graphs = {kind: replace(one, traffic=Line(0, 4_000_000)) for kind, one in block.graphs.items()}
        graphs["forward"] = replace(graphs["forward"], transient=(Moment(0, 64),), arena=Line(0, 64))
        blocks.append(replace(block, graphs=graphs))
    manifest = replace(manifest, blocks=tuple(blocks))
    request = Request(batch_size=8, schedule=schedule, features="rerun", updates="accumulated")  # type: ignore[arg-type]
    least = smallest_budget(manifest, request)
    budgets = range(least, least + 8 * MIB, 20_000)
    found = [plan(manifest, replace(request, budget_bytes=budget)) for budget in budgets]
    assert {bool(one.arena_bytes) for one in found} == {True, False}
    assert (8, [4, 8, 8]) in [(one.micro_batch, [part.micro_batch for part in one.blocks]) for one in found]
    for tight, roomy in itertools.pairwise(found):
        assert roomy.epoch_seconds <= tight.epoch_seconds * (1 + 1e-9)


# --- stage ------------------------------------------------------------------------------------------------------------


def test_a_stage_holds_one_blocks_arrays() -> None:
    manifest = manifest_with(weights=(60_000, 100_000, 80_000))
    sweep, stage = planned(manifest, prefer="memory"), planned(manifest, schedule="stage", prefer="memory")
    largest = arrays_bytes(manifest, accumulate=False, blocks=(1,))
    train = next(phase for phase in stage.phases if phase.name == "train block2").resident
    assert train.weights + train.state + train.gradients >= largest
    before = manifest.blocks[0].weight_bytes if stage.features == "rerun" else 0
    assert train.weights + train.state + train.gradients <= largest + manifest.blocks[1].parameter_bytes + before + 256
    assert stage.planned_bytes < 0.75 * sweep.planned_bytes


def test_a_sweep_is_chosen_where_it_fits_and_a_stage_where_only_that_does() -> None:
    manifest = manifest_with(weights=(60_000, 100_000, 80_000))
    sweep = planned(manifest, prefer="memory").planned_bytes
    assert planned(manifest, schedule=None, budget_bytes=sweep).schedule == "sweep"
    assert planned(manifest, schedule=None, budget_bytes=sweep - 1).schedule == "stage"


def test_features_go_to_files_only_where_the_disk_has_room() -> None:
    manifest = manifest_with()
    needed = 1000 * (4 * CLASSES + 4 * CLASSES)  # of two neighbouring files: one is read while the next is written
    kept = planned(manifest, schedule="stage", rows=1000, features="float32", disk_bytes=needed)
    assert (kept.features, kept.disk_bytes) == ("float32", needed)
    assert kept.written_bytes == kept.read_bytes == 2 * 1000 * 4 * CLASSES
    with pytest.raises(BudgetError):
        planned(manifest, schedule="stage", rows=1000, features="float32", disk_bytes=needed - 1)
    assert planned(manifest, schedule="stage", rows=1000, disk_bytes=0).features == "rerun"
    small = planned(manifest, schedule="stage", rows=1000, features="uint8", disk_bytes=needed)
    assert small.disk_bytes == 1000 * 2 * (CLASSES + 8)


# --- budgets ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.integers(0, 200_000), st.integers(0, 2 * MIB), st.sampled_from(["sweep", "stage", None]))
def test_a_plan_fits_its_budget_and_one_byte_less_than_the_smallest_fits_nothing(
    batch_size: int, row_bytes: int, spare: int, schedule: Any
) -> None:
    manifest = manifest_with(row_bytes=(row_bytes, row_bytes // 2, 64))
    request = Request(batch_size=batch_size, schedule=schedule)
    needed = smallest_budget(manifest, request)
    found = plan(manifest, replace(request, budget_bytes=needed + spare))
    assert found.planned_bytes <= needed + spare
    assert all(1 <= part.micro_batch <= batch_size for part in found.blocks)
    with pytest.raises(BudgetError, match=f"{needed:,} bytes"):
        plan(manifest, replace(request, budget_bytes=needed - 1))


@given(st.integers(1, 64), st.integers(0, 200_000), st.integers(0, 4 * MIB), st.integers(0, 4 * MIB))
def test_more_room_never_makes_a_plan_slower(batch_size: int, row_bytes: int, first: int, more: int) -> None:
    manifest = manifest_with(row_bytes=(row_bytes, row_bytes // 2, 64))
    request = Request(batch_size=batch_size, schedule="sweep")
    needed = smallest_budget(manifest, request)
    tight, roomy = (plan(manifest, replace(request, budget_bytes=needed + room)) for room in (first, first + more))
    assert roomy.epoch_seconds <= tight.epoch_seconds * (1 + 1e-9)


def test_every_block_has_a_budget_of_its_own_that_covers_its_plan() -> None:
    manifest = manifest_with(row_bytes=(200_000, 100_000, 50_000))
    found = planned(manifest, budget_bytes=PROCESS_BYTES + 6 * MIB)
    for part in found.blocks:
        assert part.budget_bytes is not None
        assert part.planned_bytes <= part.budget_bytes <= PROCESS_BYTES + 6 * MIB


def test_a_cap_by_name_makes_that_blocks_micro_batch_smaller() -> None:
    manifest = manifest_with(row_bytes=(400_000, 400_000, 400_000))
    free = planned(manifest, budget_bytes=64 * MIB)
    cap = free.blocks[1].planned_bytes - 1
    found = planned(manifest, budget_bytes=64 * MIB, block_budgets={"block2": cap})
    assert found.blocks[1].planned_bytes <= cap == found.blocks[1].budget_bytes
    assert found.blocks[1].micro_batch < free.blocks[1].micro_batch


def test_a_budget_that_holds_nothing_names_the_block_its_largest_tensors_and_what_would_work() -> None:
    manifest = manifest_with(row_bytes=(100, 900_000, 200))
    with pytest.raises(BudgetError) as caught:
        planned(manifest, budget_bytes=MIB)
    message, needed = str(caught.value), smallest_budget(manifest, Request(batch_size=8, schedule="sweep"))
    by = " by schedule `sweep`"  # by another one it may need less
    assert message.startswith(
        f"the run needs {needed:,} bytes{by}, the budget is {MIB:,}; most goes to block `block2`: "
    )
    with pytest.raises(BudgetError, match=r"^the run needs [0-9,]+ bytes, the budget is"):
        planned(manifest, budget_bytes=MIB, schedule=None)
    assert "at micro-batch 1 (`relu_1` of Relu 879 KiB, " in message
    assert message.count(",") >= 2
    assert caught.value.hint == (
        f"give it `--budget {math.ceil(needed / MIB)}MiB`; the smallest budget that works is {needed:,} bytes"
    )
    assert planned(manifest, budget_bytes=math.ceil(needed / MIB) * MIB)


def test_a_block_that_cannot_keep_its_cap_is_named() -> None:
    message = r"^block `block1` needs [\d,]+ bytes at micro-batch \d, its budget is 1,000: `relu_1` of Relu "
    with pytest.raises(BudgetError, match=message):
        planned(manifest_with(), block_budgets={"block1": 1000})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"budget_bytes": 0}, "a budget of 0 bytes holds nothing"),
        ({"budget_bytes": -5}, "a budget of -5 bytes holds nothing"),
        ({"batch_size": 0}, "a batch of 0 rows cannot be trained on, needed 1 or more"),
        ({"block_budgets": {"blok1": 9}}, "there is no block `blok1` to give a budget to"),
        ({"block_budgets": {"block1": 0}}, "a budget of 0 bytes for block `block1` holds nothing"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        planned(manifest_with(), **request_)
    assert str(caught.value) == message


def test_preferring_memory_gives_the_smallest_plan() -> None:
    manifest = manifest_with(row_bytes=(100_000, 50_000, 100))
    small = planned(manifest, prefer="memory")
    assert small.planned_bytes == smallest_budget(manifest, Request(batch_size=8, schedule="sweep"))
    assert small.planned_bytes < planned(manifest).planned_bytes


def test_the_sizes_that_are_tried_end_with_one_row() -> None:
    assert list(micro_batches(1)) == [1]
    assert list(micro_batches(100)) == [100, 50, 25, 12, 6, 3, 1]


# --- graphs that take less time and more bytes ------------------------------------------------------------------------


def with_fast_graphs(manifest: Manifest, *, row_bytes: int, saved: float) -> Manifest:
    """The second block has another `accumulate`, which holds other bytes and spares so much of the arithmetic."""
    block = manifest.blocks[1]
    plain = replace(block.graphs["accumulate"], work=Work(0, 10**8))
    fast = replace(
        plain,
        file="fast.onnx",
        work=Work(0, round(10**8 * (1 - saved))),
        transient=(Moment(0, row_bytes),),
        arena=Line(0, row_bytes),
    )
    blocks = list(manifest.blocks)
    blocks[1] = replace(block, graphs={**block.graphs, "accumulate": plain, "fast_accumulate": fast})
    return replace(manifest, blocks=tuple(blocks))


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_a_fast_graph_is_taken_where_it_fits_and_is_faster(schedule: str) -> None:
    manifest = with_fast_graphs(manifest_with(), row_bytes=800_000, saved=0.5)
    asked = {"schedule": schedule, "updates": "accumulated", "features": "rerun"}
    tight, roomy = planned(manifest, **asked, prefer="memory"), planned(manifest, **asked)
    assert roomy.blocks[1].graphs == ("fast_accumulate", "apply")
    assert [roomy.blocks[number].graphs for number in (0, 2)] == [("accumulate", "apply")] * 2
    assert tight.blocks[1].graphs == ("accumulate", "apply")
    assert tight.planned_bytes < roomy.planned_bytes
    assert roomy.epoch_seconds < planned(manifest, **asked, fast=False).epoch_seconds
    slower = with_fast_graphs(manifest_with(), row_bytes=800_000, saved=-0.5)
    assert planned(slower, **asked).blocks[1].graphs == ("accumulate", "apply")
    assert planned(manifest, **asked, fast=False).blocks[1].graphs == ("accumulate", "apply")


def test_a_block_that_is_not_trained_or_updates_at_once_has_no_use_for_a_fast_graph() -> None:
    manifest = with_fast_graphs(manifest_with(), row_bytes=8, saved=0.5)
    assert planned(manifest, trained={"block1", "block3"}).blocks[1].graphs == ("forward",)
    assert planned(manifest, updates="fused").blocks[1].graphs == ("step",)


def test_with_a_budget_between_the_two_the_fast_graph_takes_smaller_parts() -> None:
    manifest = with_fast_graphs(manifest_with(), row_bytes=800_000, saved=0.9)
    budget = smallest_budget(manifest, Request(batch_size=8, schedule="sweep")) + 2 * MIB
    found = planned(manifest, budget_bytes=budget, updates="accumulated")
    assert found.blocks[1].graphs == ("fast_accumulate", "apply")
    assert found.blocks[1].micro_batch < found.micro_batch
    assert found.planned_bytes <= budget


def test_a_cap_by_name_counts_for_the_graph_that_is_taken() -> None:
    manifest = with_fast_graphs(manifest_with(), row_bytes=800_000, saved=0.5)
    free = planned(manifest, updates="accumulated", micro_batch=8)
    cap = free.blocks[1].planned_bytes - 1
    found = planned(manifest, updates="accumulated", micro_batch=8, block_budgets={"block2": cap})
    assert found.blocks[1].graphs == ("accumulate", "apply")
    assert found.blocks[1].planned_bytes <= cap


# --- groups -----------------------------------------------------------------------------------------------------------

# Rows of 3 numbers: 1.1, 1.1 and 2.3 MiB.
HEAVY = (100_000, 100_000, 200_000)


def drawing(manifest: Manifest, block: int) -> Manifest:
    """A block draws random numbers while it learns."""
    blocks = list(manifest.blocks)
    spec = blocks[block].graphs["accumulate"]
    graphs = {**blocks[block].graphs, "accumulate": replace(spec, inputs=(*spec.inputs, "seed"))}
    blocks[block] = replace(blocks[block], graphs=graphs)
    return replace(manifest, blocks=tuple(blocks))


def test_with_too_little_for_all_gradients_blocks_learn_in_groups_before_they_do_in_stages() -> None:
    manifest = manifest_with(weights=HEAVY)
    roomy = planned(manifest, updates="accumulated")
    assert (roomy.groups, roomy.largest_phase.resident.gradients) == (
        (0,),
        sum(part.gradient_bytes for part in roomy.blocks),
    )
    found = planned(manifest, schedule=None, updates="accumulated", budget_bytes=roomy.planned_bytes - 2 * MIB)
    assert (found.schedule, found.groups) == ("sweep", (0, 2))
    assert found.spans == [range(0, 2), range(2, 3)]
    train = next(phase for phase in found.phases if phase.name == "train").resident
    assert train.gradients == max(sum(found.blocks[block].gradient_bytes for block in span) for span in found.spans)


def test_blocks_that_run_again_are_planned_with_their_forward_graphs_and_take_their_time() -> None:
    manifest = manifest_with(weights=HEAVY)
    at_once, found = (
        planned(manifest, prefer="memory", updates="accumulated", micro_batch=2, rows=8, engine_copies=copies)
        for copies in (True, False)
    )
    assert (at_once.groups, found.groups) == ((0,), (0, 2))
    sessions = [part.session_bytes for part in found.blocks]
    kinds = [("accumulate", "apply", "forward")] * 2 + [("accumulate", "apply")]
    pairs = list(zip(manifest.blocks, kinds, strict=True))
    assert sessions == [sum(session_bytes(block.graphs[kind]) for kind in one) for block, one in pairs]
    assert [part.graphs for part in found.blocks] == [("accumulate", "apply")] * 3
    again = sum(4 * run_seconds(block.graphs["forward"], 2, arena=False) for block in manifest.blocks[:2])
    assert found.epoch_seconds == pytest.approx(at_once.epoch_seconds + again)


def test_a_block_behind_which_rows_differ_while_it_learns_is_in_the_last_group() -> None:
    """What it hands over in its own pass is not what `forward` does, by which it would run again."""
    manifest = manifest_with(weights=HEAVY)
    for block, groups in [(0, (0,)), (1, (0, 1)), (2, (0, 2))]:
        assert planned(drawing(manifest, block), prefer="memory", updates="accumulated").groups == groups
    comparing = replace(manifest, blocks=tuple(replace(block, rows_together=4) for block in manifest.blocks))
    assert planned(comparing, prefer="memory", updates="accumulated").groups == (0,)


@pytest.mark.parametrize("more", [{"engine_copies": True}, {"uniform": True}, {"updates": "fused"}])
def test_there_are_no_groups_where_gradients_are_not_the_runtimes_or_are_not_summed(more: dict[str, Any]) -> None:
    assert planned(manifest_with(weights=HEAVY), prefer="memory", **more).groups == (0,)


def test_groups_that_would_spare_little_are_not_worth_their_forward_passes() -> None:
    assert planned(manifest_with(), prefer="memory", updates="accumulated").groups == (0,)
