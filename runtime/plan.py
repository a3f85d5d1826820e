"""The plan of a run: what is resident when, in bytes, before anything is loaded. Pure; nothing is measured here.

A plan is made of phases (training, evaluation, ...), each with all that is in memory while it lasts. The run takes as
much as its largest phase. Of the plans that fit a budget the fastest by `edgeff.runtime.cost` is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from edgeff.errors import BudgetError
from edgeff.manifest import BlockSpec, GraphKind, Manifest
from edgeff.runtime.plan_blocks import (
    Kinds,
    is_trained,
    micro_batches,
    rows_together,
    seconds_of_graphs,
    transient_bytes,
)
from edgeff.runtime.plan_parts import BlockPlan, Features, Plan, Request, Schedule
from edgeff.runtime.plan_refusals import by_memory, check_block_budgets, over_budget, over_cap
from edgeff.runtime.plan_stage import stage
from edgeff.runtime.plan_sweep import sweeps

# Does the work of `accumulate` in less time.
FAST: GraphKind = "fast_accumulate"


def plan(manifest: Manifest, request: Request) -> Plan:
    """The fastest plan that fits, or the smallest one where that is preferred.

    Raises:
        BudgetError: Nothing fits; says which block needs most, its largest tensors, and the smallest budget that works.
    """
    check_block_budgets(manifest, request)
    for schedule in _schedules(request):
        fitting = [one for one in _plans(manifest, request, schedule) if _fits(one, request)]
        if fitting:
            best = min(fitting, key=by_memory if request.prefer == "memory" else _by_speed)
            return _with_block_budgets(best, request)
    raise _nothing_fits(manifest, request)


def smallest_budget(manifest: Manifest, request: Request) -> int:
    """The smallest budget for which `plan` finds a plan, whatever budget the request names."""
    free = replace(request, budget_bytes=None, prefer="memory")
    found = [one for schedule in _schedules(request) for one in _plans(manifest, free, schedule) if _fits(one, free)]
    return min((one.planned_bytes for one in found), default=0)


def _plans(manifest: Manifest, request: Request, schedule: Schedule) -> Iterator[Plan]:
    """Everything that could be done, from which the best is chosen."""
    ways = [way for one in with_and_without_arena(request) for way in _divided(one, schedule)]
    for rows, one in product(_passing_sizes(manifest, request), ways):
        for whole in _wholes(manifest, request, rows):
            for kinds in _choices_of_graphs(manifest, one, rows, whole):
                if schedule == "sweep":
                    yield from sweeps(manifest, one, rows, whole, kinds)
                else:
                    for features in _features(request):
                        yield stage(manifest, one, rows, whole, kinds, features)


def _passing_sizes(manifest: Manifest, request: Request) -> Iterable[int]:
    """Rows that may go from block to block at once: where rows are compared, whole groups of them.

    Raises:
        BudgetError: Another micro-batch is asked for.
    """
    together = min(rows_together(manifest, request.trained), request.batch_size)
    fixed = request.micro_batch
    if together == 1:
        return [fixed] if fixed else micro_batches(request.batch_size)
    whole_batch = fixed == request.batch_size and not request.uniform
    if fixed and not whole_batch and (fixed != together if request.uniform else fixed % together):
        raise BudgetError(
            f"a micro-batch of {fixed} rows cuts groups of {together} that are compared with one another",
            hint=f"give it `--micro-batch {together}`"
            + ("" if request.uniform else " or a multiple")
            + ", or export with another `--rows-together`",
        )
    if request.updates == "fused" and together < request.batch_size:
        raise BudgetError(
            f"fused updates need the whole batch of {request.batch_size} rows at once, and {together} are compared "
            "with one another",
            hint=f"give it `--batch-size {together}`",
        )
    if request.uniform:
        return [together]
    if fixed:
        return [fixed]
    groups = micro_batches(request.batch_size // together)
    return dict.fromkeys((request.batch_size, *(together * count for count in groups)))


def _schedules(request: Request) -> Sequence[Schedule]:
    """Those that are tried, the preferred one first."""
    return (request.schedule,) if request.schedule else ("sweep", "stage")


def _wholes(manifest: Manifest, request: Request, rows: int) -> Sequence[bool]:
    """Whether the batch may run at once with its update in the same graph."""
    together = rows_together(manifest, request.trained)
    possible = (True, False) if rows == request.batch_size and (together == 1 or rows <= together) else (False,)
    return possible if request.updates is None else [one for one in possible if one == (request.updates == "fused")]


def _features(request: Request) -> Sequence[Features]:
    return ("float32", "rerun") if request.features is None else (request.features,)


def with_and_without_arena(request: Request) -> Sequence[Request]:
    """The request for plans with an arena, where one may be kept, and for plans without."""
    return [replace(request, arena=arena) for arena in ((True, False) if request.arena else (False,))]


def _divided(request: Request, schedule: Schedule) -> Sequence[Request]:
    """The request for each way to divide the threads: between micro-batches, and within an operator.

    Micro-batches under way at once cannot share a stretch of memory unless it is kept for all of them, and a single
    block that learns takes one at a time. One thread for all takes the fewest bytes, and for small operators the least
    time.
    """
    one_by_one = not request.arena or schedule == "stage"
    if request.workers and not one_by_one:
        return [request]
    counts = [1] if one_by_one else [count for count in range(1, request.threads + 1) if request.threads % count == 0]
    alone = [replace(request, workers=1, operators=1)] if request.threads > 1 and not request.operators else []
    return [*(replace(request, workers=count) for count in counts), *alone]


def _graphs(trained: bool, whole: bool) -> tuple[GraphKind, ...]:
    if not trained:
        return ("forward",)
    return ("step",) if whole else ("accumulate", "apply")


def _kinds(manifest: Manifest, request: Request, whole: bool) -> list[tuple[GraphKind, ...]]:
    """Graphs of each block while training: none behind the last that is trained."""
    trained = [is_trained(block, request) for block in manifest.blocks]
    last = max((index for index, one in enumerate(trained) if one), default=-1)
    return [_graphs(one, whole) if index <= last else () for index, one in enumerate(trained)]


def _choices_of_graphs(manifest: Manifest, request: Request, rows: int, whole: bool) -> Iterator[Kinds]:
    """Graphs of each block: none of the fast ones, then those that take least inside, up to all that spare time."""
    plain = _kinds(manifest, request, whole)
    yield plain
    given_back = replace(request, arena=False)  # the same choices with an arena, which then takes no fewer bytes
    fast = {
        index: transient_bytes(block, [FAST], 1, given_back)
        for index, block in enumerate(manifest.blocks)
        if request.fast and _spares_time(block, plain[index], rows, given_back)
    }
    for most in sorted(set(fast.values())):
        yield [_fast(kinds) if fast.get(index, most + 1) <= most else kinds for index, kinds in enumerate(plain)]


def _spares_time(block: BlockSpec, graphs: Sequence[GraphKind], rows: int, request: Request) -> bool:
    """Whether a block has a fast graph for the work of one of these, and is faster by it where all bytes are there."""
    if "accumulate" not in graphs or FAST not in block.graphs:
        return False
    request = replace(request, arena=True)
    sizes = [size for size in micro_batches(rows) if rows % size == 0]
    taken, fast = (
        min(seconds_of_graphs(block, one, size, request) for size in sizes) for one in (graphs, _fast(graphs))
    )
    return fast < taken


def _fast(graphs: Sequence[GraphKind]) -> tuple[GraphKind, ...]:
    return tuple(FAST if kind == "accumulate" else kind for kind in graphs)


def _fits(one: Plan, request: Request) -> bool:
    for block in one.blocks:
        cap = request.block_budgets.get(block.block)
        if cap is not None and block.planned_bytes > cap:
            return False
    if one.features != "rerun" and one.disk_bytes > request.disk_bytes:
        return False
    return request.budget_bytes is None or one.planned_bytes <= request.budget_bytes


def _by_speed(one: Plan) -> tuple[float, int]:
    return one.epoch_seconds, one.planned_bytes


def _with_block_budgets(chosen: Plan, request: Request) -> Plan:
    """Give every block what the whole leaves it: its arrays and graphs, and the room that graphs run in by turns."""
    if chosen.budget_bytes is None:
        budgets = [request.block_budgets.get(block.block) for block in chosen.blocks]
    else:
        room = chosen.budget_bytes - chosen.training_bytes
        budgets = [
            min(
                block.planned_bytes + room + _slack(chosen, block),
                request.block_budgets.get(block.block, chosen.budget_bytes),
            )
            for block in chosen.blocks
        ]
    pairs = zip(chosen.blocks, budgets, strict=True)
    return replace(chosen, blocks=tuple(replace(block, budget_bytes=budget) for block, budget in pairs))


def _slack(chosen: Plan, block: BlockPlan) -> int:
    """By how much the run of a block may grow before it is the largest."""
    if chosen.schedule == "stage":
        return 0
    return max(one.transient_bytes for one in chosen.blocks) - block.transient_bytes


def _nothing_fits(manifest: Manifest, request: Request) -> BudgetError:
    free = replace(request, budget_bytes=None, prefer="memory")
    plans = [one for schedule in _schedules(request) for one in _plans(manifest, free, schedule)]
    on_disk = [one for one in plans if one.features == "rerun" or one.disk_bytes <= request.disk_bytes]
    if not on_disk:
        needed = min(one.disk_bytes for one in plans)
        return BudgetError(
            f"files of features take {needed:,} bytes on disk, {request.disk_bytes:,} may be used",
            hint="give `--features rerun` to run blocks again instead, or `--features uint8` for smaller files",
        )
    fitting = [one for one in on_disk if _fits(one, free)]
    return over_budget(manifest, request, fitting) if fitting else over_cap(manifest, request, on_disk)
