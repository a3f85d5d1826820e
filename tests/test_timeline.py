"""One update as runs of graphs: their order, their bytes, their time, and how they are drawn when there are many."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_cases import golden

from edgeff.manifest import GraphSpec, Line, Manifest, Moment, Work
from edgeff.runtime.buffers import filling_bytes
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_bytes import arena_cost
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.timeline import Bar, Timeline, timeline

BATCH = 8


def graph(kind: str, fixed: int, per_row: int) -> GraphSpec:
    return GraphSpec(
        file=f"{kind}.onnx",
        inputs=(),
        outputs=(),
        nodes=10,
        transient=(Moment(fixed, per_row),),
        arena=Line(fixed, per_row + per_row // 2),
        work=Work(0, 1_000_000),
        traffic=Line(0, 4096),
    )


def network(blocks: int = 2) -> Manifest:
    """Blocks alike but for their activations: each holds a little more than the one before."""
    manifest = golden()
    head = manifest.blocks[0]
    made = []
    for number in range(1, blocks + 1):
        rows = {"step": 4000, "accumulate": 4000, "forward": 1000, "apply": 0}
        graphs = {kind: graph(f"{number}.{kind}", 0 if size else 512, size * number) for kind, size in rows.items()}
        made.append(
            replace(head, name=f"b{number}", handover=None if number == blocks else head.handover, graphs=graphs)
        )
    # Behind the first block everything has the shape of its hand-over.
    assert head.handover is not None
    made = [made[0], *(replace(one, input=head.handover) for one in made[1:])]
    return replace(manifest, blocks=tuple(made), fusion=(1.0,) * blocks)


def planned(manifest: Manifest, schedule: str = "sweep", micro_batch: int = 2, **more: object) -> Plan:
    request = Request(BATCH, schedule=schedule, micro_batch=micro_batch, rows=BATCH, **more)  # type: ignore[arg-type]
    return plan(manifest, request)


def names(line: Timeline) -> list[str]:
    return [f"{bar.first} {bar.graph}" for stretch in line.stretches for bar in stretch.bars]


def bars(line: Timeline) -> list[Bar]:
    return [bar for stretch in line.stretches for bar in stretch.bars]


def test_a_sweep_takes_every_micro_batch_through_all_blocks_and_then_updates_them() -> None:
    manifest = network()
    line = timeline(manifest, planned(manifest, micro_batch=4))
    cycle = ["b1 accumulate", "b2 accumulate"]
    assert names(line) == [*cycle, *cycle, "b1 apply", "b2 apply"]
    assert [bar.rows for bar in bars(line)] == [4, 4, 4, 4, 0, 0]
    assert (line.runs, line.micro_batches, line.collapsed) == (6, 2, False)


def test_a_micro_batch_that_is_the_batch_is_one_step_of_each_block() -> None:
    manifest = network()
    whole = plan(manifest, Request(BATCH, schedule="sweep", rows=BATCH))
    assert whole.blocks[0].graphs == ("step",)
    assert names(timeline(manifest, whole)) == ["b1 step", "b2 step"]


def test_in_stages_one_block_follows_the_other_after_running_those_before_it_again() -> None:
    manifest = network()
    line = timeline(manifest, planned(manifest, "stage", micro_batch=4))
    assert [stretch.phase for stretch in line.stretches] == ["train b1", "train b2"]
    again = ["b1 forward", "b2 accumulate"]
    assert names(line) == ["b1 accumulate"] * 2 + ["b1 apply", *again, *again, "b2 apply"]


def test_with_files_of_features_nothing_is_run_again() -> None:
    manifest = network()
    line = timeline(manifest, planned(manifest, "stage", micro_batch=4, features="float32", disk_bytes=10**9))
    assert "b1 forward" not in names(line)


def test_blocks_that_are_not_trained_run_forward_and_those_behind_the_last_trained_one_not_at_all() -> None:
    manifest = network(3)
    line = timeline(manifest, planned(manifest, micro_batch=8, trained=["b2"]))
    assert names(line) in (["b1 forward", "b2 step"], ["b1 forward", "b2 accumulate", "b2 apply"])


def test_a_block_with_a_smaller_micro_batch_runs_on_parts() -> None:
    manifest = network()
    made = planned(manifest, micro_batch=4)
    made = replace(made, blocks=(made.blocks[0], replace(made.blocks[1], micro_batch=2)))
    cycle = ["b1 accumulate", "b2 accumulate", "b2 accumulate"]
    line = timeline(manifest, made)
    assert names(line)[:6] == cycle * 2
    assert [bar.rows for bar in bars(line)][:3] == [4, 2, 2]


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_the_highest_moment_of_a_sweep_without_an_arena_is_what_the_plan_says_of_training(micro_batch: int) -> None:
    manifest = network()
    made = planned(manifest, micro_batch=micro_batch, arena=False)
    assert timeline(manifest, made).peak_bytes == made.training_bytes


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_of_an_arena_only_what_runs_use_is_drawn(schedule: str, micro_batch: int) -> None:
    manifest = network()
    made = planned(manifest, schedule, micro_batch=micro_batch)
    assert made.arena_bytes == 12_000 * micro_batch
    totals = {phase.name: phase.resident.total for phase in made.phases}
    for number, stretch in enumerate(timeline(manifest, made).stretches):
        filling = filling_bytes(manifest, micro_batch, first=number if made.features == "float32" else 0)
        assert stretch.resident.total == totals[stretch.phase] - arena_cost(made.arena_bytes) - filling
        largest = max(bar.bytes for bar in stretch.bars)
        assert stretch.peak_bytes == stretch.resident.total + largest < totals[stretch.phase]


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_no_moment_of_a_stage_is_above_the_plan_of_its_phase(micro_batch: int) -> None:
    manifest = network()
    made = planned(manifest, "stage", micro_batch=micro_batch, arena=False)
    totals = {phase.name: phase.resident.total for phase in made.phases}
    for stretch in timeline(manifest, made).stretches:
        assert stretch.resident.total < stretch.peak_bytes <= totals[stretch.phase]


@pytest.mark.parametrize("arena", [True, False])
def test_what_a_run_holds_is_not_counted_as_resident_too(arena: bool) -> None:
    manifest = network()
    made = planned(manifest, micro_batch=4, arena=arena)
    stretch = timeline(manifest, made).stretches[0]
    assert [bar.bytes for bar in stretch.bars[:2]] == [16_000, 32_000]
    largest = next(phase for phase in made.phases if phase.name == "train").resident
    inside = arena_cost(48_000) + filling_bytes(manifest, 4) if arena else 32_000
    assert stretch.resident.activations == largest.activations - inside
    assert stretch.resident.weights == largest.weights


@pytest.mark.parametrize("arena", [True, False])
def test_all_runs_together_take_as_long_as_the_plan_says_of_one_batch(arena: bool) -> None:
    manifest = network()
    made = planned(manifest, micro_batch=2, arena=arena)
    assert bool(made.arena_bytes) == arena
    assert timeline(manifest, made).seconds == pytest.approx(made.epoch_seconds)


def test_in_groups_the_blocks_before_run_forward_and_each_group_is_updated_when_its_pass_is_done() -> None:
    made = replace(planned(network(3), micro_batch=4), groups=(0, 2))
    line = timeline(network(3), made)
    assert [stretch.phase for stretch in line.stretches] == ["train b3", "train b1 to b2"]
    first, second = ([f"{bar.first} {bar.graph}" for bar in stretch.bars] for stretch in line.stretches)
    assert first == 2 * ["b1 forward", "b2 forward", "b3 accumulate"] + ["b3 apply"]
    assert second == 2 * ["b1 accumulate", "b2 accumulate"] + ["b1 apply", "b2 apply"]
    assert line.peak_bytes <= made.training_bytes


def test_of_micro_batches_under_way_at_once_each_run_has_the_largest_others_beside_it() -> None:
    manifest = network(3)
    many_nodes = [
        replace(one, graphs={kind: replace(graph, nodes=2000) for kind, graph in one.graphs.items()})
        for one in manifest.blocks
    ]
    manifest = replace(manifest, blocks=tuple(many_nodes))
    made = planned(manifest, micro_batch=2, threads=2, workers=2, updates="accumulated")
    assert made.workers == 2
    line = timeline(manifest, made)
    alone = timeline(manifest, planned(manifest, micro_batch=2, workers=1, updates="accumulated"))
    assert names(line) == names(alone)
    beside = {"b1": 3, "b2": 3, "b3": 2}  # what each of the others holds grows with its number
    runs = zip(bars(line), bars(alone), strict=True)
    for bar, by_itself in runs:
        if bar.graph == "apply":
            assert bar == by_itself  # of so few numbers one thread updates all
            continue
        others = max(part.transient_bytes for part in made.blocks if part.block == f"b{beside[bar.first]}")
        assert bar.bytes == by_itself.bytes + others
        assert bar.seconds == pytest.approx(by_itself.seconds / 2)
    train = next(phase for phase in made.phases if phase.name == "train")
    assert max(stretch.peak_bytes for stretch in line.stretches) <= train.resident.total


def test_rows_that_do_not_divide_evenly_are_shared_out() -> None:
    manifest = network(1)
    made = replace(planned(manifest, micro_batch=4), batch_size=10)
    assert [bar.rows for bar in bars(timeline(manifest, made)) if bar.graph == "accumulate"] == [4, 3, 3]


def test_forward_only_learning_passes_the_batch_twice() -> None:
    manifest = network(1)
    made = planned(manifest, micro_batch=4)
    forward = replace(made, blocks=(replace(made.blocks[0], graphs=("forward",)),))
    line = timeline(manifest, forward, passes=2)
    assert names(line) == ["b1 forward"] * 4
    assert line.micro_batches == 2


# --- many runs ---


def test_too_many_micro_batches_are_drawn_as_the_first_the_last_and_one_bar_between() -> None:
    manifest = network()
    every = timeline(manifest, planned(manifest, micro_batch=1))
    line = timeline(manifest, planned(manifest, micro_batch=1), max_bars=10)
    cycle = ["b1 accumulate", "b2 accumulate"]
    assert names(line) == [*cycle, "b1 accumulate", *cycle, "b1 apply", "b2 apply"]
    middle = bars(line)[2]
    assert (middle.last, middle.micro_batches, middle.runs, middle.bytes) == ("b2", 6, 12, 8000)
    assert line.collapsed
    assert line.runs == every.runs == 18
    assert line.seconds == pytest.approx(every.seconds)
    assert line.peak_bytes == every.peak_bytes


@pytest.mark.parametrize("max_bars", [1, 3, 7, 20, 60])
@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_however_few_bars_there_may_be_nothing_is_lost(schedule: str, max_bars: int) -> None:
    manifest = network(5)
    made = planned(manifest, schedule, micro_batch=1)
    every, few = timeline(manifest, made, max_bars=10_000), timeline(manifest, made, max_bars=max_bars)
    assert sum(bar.runs for bar in bars(few)) == every.runs == few.runs == len(bars(every))
    assert len(bars(few)) <= max(max_bars, len(few.stretches))
    assert few.seconds == pytest.approx(every.seconds)
    assert few.peak_bytes == every.peak_bytes


def test_runs_of_one_block_next_to_each_other_are_joined_first() -> None:
    manifest = network()
    made = planned(manifest, micro_batch=8)
    parts = tuple(replace(block, micro_batch=1) for block in made.blocks)
    line = timeline(manifest, replace(made, blocks=parts), max_bars=6)
    first = bars(line)[0]
    assert (first.first, first.last, first.runs, first.rows, first.micro_batches) == ("b1", "b1", 8, 1, 0)


def test_forward_runs_of_several_blocks_are_joined_before_anything_else_is() -> None:
    manifest = network(4)
    line = timeline(manifest, planned(manifest, "stage", micro_batch=8), max_bars=9)
    first = line.stretches[3].bars[0]
    assert (first.first, first.last, first.graph) == ("b1", "b3", "forward")
