"""The plan of a run: what is resident when, in bytes, before anything is loaded. Pure; nothing is measured here.

A plan is made of phases (training, evaluation, ...), each with all that is in memory while it lasts. The run takes as
much as its largest phase. Of the plans that fit a budget the fastest by `edgeff.runtime.cost` is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from edgeff.errors import BudgetError
from edgeff.manifest import BlockSpec, GraphKind, Manifest
from edgeff.runtime.buffers import buffer_bytes, filling_bytes
from edgeff.runtime.cost import disk_seconds, run_seconds, update_seconds
from edgeff.runtime.engine import ARENA_MARGIN
from edgeff.runtime.groups import groupings, largest_group
from edgeff.runtime.memory import ALIGNMENT
from edgeff.runtime.plan_bytes import (
    BLOCK_BYTES,
    PROCESS_BYTES,
    arena_cost,
    beside,
    graph_transient_bytes,
    session_bytes,
)
from edgeff.runtime.plan_parts import BlockPlan, Bytes, Features, Phase, Plan, Request, Schedule
from edgeff.runtime.plan_refusals import by_memory, check_block_budgets, over_budget, over_cap

# Does the work of `accumulate` in less time.
FAST: GraphKind = "fast_accumulate"
FORWARD: Sequence[GraphKind] = ("forward",)
# Groups of blocks have to make a run smaller by this part of it, to be worth their forward passes.
_WORTH_GROUPS = 0.05
Kinds = Sequence[tuple[GraphKind, ...]]

FEATURE_BYTES: Mapping[Features, int] = {"float32": 4, "float16": 2, "uint8": 1}
# How often a group of rows is there in float32 while it is read from a file of features or written to one.
READ_COPIES: Mapping[Features, float] = {"rerun": 1, "float32": 1, "float16": 1.5, "uint8": 2.25}
WRITTEN_COPIES: Mapping[Features, float] = {"float32": 1, "float16": 2.5, "uint8": 3}


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


def micro_batches(batch_size: int) -> Iterator[int]:
    """The sizes that are tried, largest first.

    >>> list(micro_batches(12))
    [12, 6, 3, 1]
    """
    while batch_size > 1:
        yield batch_size
        batch_size //= 2
    yield 1


def _plans(manifest: Manifest, request: Request, schedule: Schedule) -> Iterator[Plan]:
    """Everything that could be done, from which the best is chosen."""
    for rows, one in product(_passing_sizes(manifest, request), with_and_without_arena(request)):
        for whole in _wholes(manifest, request, rows):
            for kinds in _choices_of_graphs(manifest, one, rows, whole):
                if schedule == "sweep":
                    yield from _sweeps(manifest, one, rows, whole, kinds)
                else:
                    for features in _features(request):
                        yield _stage(manifest, one, rows, whole, kinds, features)


def rows_together(manifest: Manifest, trained: Collection[str] | None) -> int:
    """The most rows that a trained block compares with one another; 1 where none does."""
    return max((one.rows_together for one in manifest.blocks if trained is None or one.name in trained), default=1)


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


def _sweeps(manifest: Manifest, request: Request, rows: int, whole: bool, kinds: Kinds) -> Iterator[Plan]:
    """All blocks at once, and in groups where those spare enough bytes."""
    base = Bytes(
        rows=request.row_bytes, process=process_bytes(manifest, request), activations=buffer_bytes(manifest, rows)
    )
    gradients = []
    for block, graphs in _paired(manifest, kinds):
        arrays = _arrays(block, _is_trained(block, request), graphs, request)
        gradients.append(arrays.gradients)
        base += replace(arrays, gradients=0)
    last_cut = _last_cut(manifest, request, kinds) if any(gradients) else 0
    for groups in groupings(gradients, last_cut, worth=round(_WORTH_GROUPS * (base.total + sum(gradients)))):
        resident = replace(base, gradients=largest_group(gradients, groups))
        yield _sweep(manifest, request, rows, whole, kinds, resident, groups)


def _last_cut(manifest: Manifest, request: Request, kinds: Kinds) -> int:
    """The last block that a group may begin with: those before it hand over by `forward` what they do as they learn."""
    # What an engine or a device holds of its own cannot be shared between blocks.
    if request.engine_copies or request.uniform or rows_together(manifest, request.trained) > 1:
        return 0
    draws = (bool(graphs) and "seed" in block.graphs[graphs[0]].inputs for block, graphs in _paired(manifest, kinds))
    return next((index for index, one in enumerate(draws) if one), len(kinds) - 1)


def _sweep(
    manifest: Manifest,
    request: Request,
    rows: int,
    whole: bool,
    kinds: Kinds,
    base: Bytes,
    groups: tuple[int, ...],
) -> Plan:
    passing = groups[-1]  # blocks before it run forward too
    running: Kinds = [
        (*dict.fromkeys((*graphs, *FORWARD)),) if index < passing else graphs for index, graphs in enumerate(kinds)
    ]
    training = base + Bytes(graphs=_sessions(manifest, enumerate(running), request.threads))
    evaluating = base + Bytes(graphs=_sessions(manifest, enumerate([("forward",)] * len(kinds)), request.threads))
    filling = max(filling_bytes(manifest, rows), _passed_bytes(manifest.blocks, request))
    left = _left(request, max(training.total, evaluating.total) + (filling if request.arena else 0))
    sizes = _micro_batches(manifest, running, rows, left, whole, request, evaluated=True)
    blocks = _block_plans(manifest, request, kinds, sizes, running)
    inside = max(block.transient_bytes for block in blocks)
    forward = max(block.forward_transient_bytes for block in blocks)
    arena = max(inside, forward) if request.arena else 0
    return Plan(
        schedule="sweep",
        batch_size=request.batch_size,
        micro_batch=rows,
        budget_bytes=request.budget_bytes,
        blocks=blocks,
        phases=(
            *_splitting(manifest, request),
            Phase("train", training + Bytes(activations=beside(arena, filling, inside))),
            Phase("evaluate", evaluating + Bytes(activations=beside(arena, filling, forward))),
        ),
        arena_bytes=arena,
        epoch_seconds=_updates(request) * _seconds_in_groups(manifest, request, blocks, groups),
        groups=groups,
    )


def _seconds_in_groups(
    manifest: Manifest, request: Request, blocks: Sequence[BlockPlan], groups: Sequence[int]
) -> float:
    """One update: every block learns once, and runs forward once for every group behind its own."""
    total = sum(map(_update_seconds, manifest.blocks, blocks, [request] * len(blocks)))
    for start in groups[1:]:
        pairs = zip(manifest.blocks[:start], blocks[:start], strict=True)
        total += sum(_seconds(block, FORWARD, part.micro_batch, request) for block, part in pairs)
    return total


def _splitting(manifest: Manifest, request: Request) -> Sequence[Phase]:
    """What comes before all else, where there are rows to split."""
    if not request.splitting_bytes:
        return ()
    return (Phase("split rows", Bytes(rows=request.splitting_bytes, process=process_bytes(manifest, request))),)


def _stage(manifest: Manifest, request: Request, rows: int, whole: bool, kinds: Kinds, features: Features) -> Plan:
    base = Bytes(rows=request.row_bytes, process=process_bytes(manifest, request))
    sizes = []
    phases: list[Phase] = []
    for index, block in _numbered(manifest):
        trains = _is_trained(block, request)
        stop = index if trains and features == "rerun" else 0
        kept, running = _prefix(manifest, stop, rows, request)
        resident = base + kept + _arrays(block, trains, kinds[index], request)
        resident += Bytes(
            graphs=_sessions(manifest, [(index, kinds[index])], request.threads),
            activations=buffer_bytes(manifest, rows, first=index, last=index),
        )
        size = _micro_batch(block, kinds[index], rows, _left(request, resident.total), whole, request)
        sizes.append(size)
        if trains:
            # One after another: the blocks before run, what they give is copied, the block trains.
            copied = filling_bytes(manifest, rows, first=index)
            filled = round(copied * (READ_COPIES[features] if index else 1))
            filling = Bytes(activations=max(filled, _passed_bytes([block], request)))
            training = Bytes(activations=0 if request.arena else _transient(block, kinds[index], size, request))
            phases.append(Phase(f"train {block.name}", resident + max(running, filling, training, key=_total)))
            if features != "rerun" and index:
                kept, running = _prefix(manifest, index, rows, request)
                writing = Bytes(activations=round(copied * WRITTEN_COPIES[features]))
                phases.append(Phase(f"features for {block.name}", base + kept + max(running, writing, key=_total)))
    kept, running = _prefix(manifest, len(manifest.blocks), rows, request)
    phases.append(Phase("evaluate", base + kept + running))
    if request.arena:  # it is there in all phases
        left = _left(request, max(one.resident.total for one in phases))
        sizes = _micro_batches(manifest, kinds, rows, left, whole, request)
    blocks = _block_plans(manifest, request, kinds, sizes)
    arena = _stage_arena(manifest, blocks, rows) if request.arena else 0
    disk, written, read = _traffic(manifest, request, features)
    seconds = _updates(request) * sum(map(_update_seconds, manifest.blocks, blocks, [request] * len(blocks)))
    return Plan(
        schedule="stage",
        batch_size=request.batch_size,
        micro_batch=rows,
        budget_bytes=request.budget_bytes,
        blocks=blocks,
        phases=(
            *_splitting(manifest, request),
            *(Phase(one.name, one.resident + Bytes(activations=arena_cost(arena))) for one in phases),
        ),
        features=features,
        disk_bytes=disk,
        epoch_seconds=seconds + disk_seconds(written, read) + _prefix_seconds(manifest, request, rows, features),
        written_bytes=written,
        read_bytes=read,
        arena_bytes=arena,
    )


def _stage_arena(manifest: Manifest, blocks: Sequence[BlockPlan], rows: int) -> int:
    """The stretch in which each block's training graphs find room, and forward passes of `rows` rows."""
    forward = max(block.graphs["forward"].arena_bytes(rows) for block in manifest.blocks)
    return max(forward, *(part.transient_bytes for part in blocks))


def with_and_without_arena(request: Request) -> Sequence[Request]:
    """The request for plans with an arena, where one may be kept, and for plans without."""
    return [replace(request, arena=arena) for arena in ((True, False) if request.arena else (False,))]


def _left(request: Request, taken: int) -> int | None:
    """Bytes that graphs may run in beside what is taken; None for no limit."""
    if request.budget_bytes is None:
        return None
    left = request.budget_bytes - taken
    return left * 32 // 33 - ARENA_MARGIN if request.arena else left  # `arena_cost` the other way round


def _prefix(manifest: Manifest, stop: int, rows: int, request: Request) -> tuple[Bytes, Bytes]:
    """Running the blocks before `stop`: what is there all the while, and what there is beside it while they run."""
    before = manifest.blocks[:stop]
    if not before:
        return Bytes(), Bytes()
    graphs = _sessions(manifest, enumerate([("forward",)] * stop), request.threads)
    kept = Bytes(graphs=graphs, activations=buffer_bytes(manifest, rows, last=stop - 1))
    weights = max(block.weight_bytes for block in before)  # one block at a time
    filling = filling_bytes(manifest, rows)
    inside = 0 if request.arena else max(_forward_transient(block, rows, request) for block in before)
    return kept, Bytes(weights=weights, activations=max(filling, inside))


def _total(one: Bytes) -> int:
    return one.total


def _block_plans(
    manifest: Manifest, request: Request, kinds: Kinds, sizes: Sequence[int], running: Kinds | None = None
) -> tuple[BlockPlan, ...]:
    """What each block does; `running`: with the graphs that run beside those that it learns by."""
    seen: set[str] = set()
    seen_forward: set[str] = set()
    found = []
    for block, graphs, runs, size in zip(manifest.blocks, kinds, running or kinds, sizes, strict=True):
        trained = _is_trained(block, request)
        arrays = _arrays(block, trained, graphs, request)
        found.append(
            BlockPlan(
                block=block.name,
                trained=trained,
                micro_batch=size,
                graphs=tuple(graphs),
                weight_bytes=arrays.weights,
                gradient_bytes=arrays.gradients,
                state_bytes=arrays.state,
                session_bytes=_new_sessions(block, runs, seen, request.threads),
                transient_bytes=_transient(block, runs, size, request),
                forward_session_bytes=_new_sessions(block, ("forward",), seen_forward, request.threads),
                forward_transient_bytes=_forward_transient(block, min(sizes), request),
            )
        )
    return tuple(found)


def _arrays(block: BlockSpec, trained: bool, graphs: Collection[GraphKind], request: Request) -> Bytes:
    # Runs of numbers begin at multiples of `ALIGNMENT`: a parameter may be followed by padding.
    padded = sum(-(-spec.nbytes // ALIGNMENT) * ALIGNMENT for spec in block.parameters)
    own = padded if trained else block.parameter_bytes
    state = padded * len(block.slots) if trained and graphs else 0
    copied = request.engine_copies and trained and bool(graphs)
    return Bytes(
        weights=own + block.weight_bytes - block.parameter_bytes + copied * block.weight_bytes,
        gradients=padded if "apply" in graphs else 0,
        state=state + copied * state,
    )


def _passed_bytes(blocks: Sequence[BlockSpec], request: Request) -> int:
    """What passing a block's tensors to an engine with copies of its own takes: the file, and its reader's."""
    if not request.engine_copies:
        return 0
    return max(2 * (block.weight_bytes + block.state_bytes) for block in blocks if _is_trained(block, request))


def _micro_batches(
    manifest: Manifest,
    kinds: Kinds,
    rows: int,
    left: int | None,
    whole: bool,
    request: Request,
    *,
    evaluated: bool = False,
) -> list[int]:
    """Of each block, where all have the same left."""
    pairs = _paired(manifest, kinds)
    return [_micro_batch(block, graphs, rows, left, whole, request, evaluated=evaluated) for block, graphs in pairs]


def _micro_batch(
    block: BlockSpec,
    graphs: Sequence[GraphKind],
    rows: int,
    left: int | None,
    whole: bool,
    request: Request,
    *,
    evaluated: bool = False,
) -> int:
    """The fastest part of `rows` whose run fits into what is left; the smallest where none does.

    `evaluated`: a forward pass of as many rows has to fit as well.
    """
    if block.rows_together > 1 and _is_trained(block, request):
        return min(block.rows_together, rows)
    if whole or request.micro_batch or request.uniform:
        return rows
    cap = request.block_budgets.get(block.name)
    if cap is not None:
        arrays = _arrays(block, _is_trained(block, request), graphs, request).total
        own = cap - arrays - sum(session_bytes(block.graphs[kind], request.threads) for kind in graphs)
        left = own if left is None else min(left, own)
    sizes = [size for size in micro_batches(rows) if rows % size == 0]
    runs: Sequence[GraphKind] = (*graphs, "forward") if evaluated else graphs
    fitting = [size for size in sizes if left is None or _transient(block, runs, size, request) <= left]
    if request.prefer == "memory" or not fitting:
        return sizes[-1]
    return min(fitting, key=lambda size: _seconds(block, graphs, size, request))


def _transient(block: BlockSpec, graphs: Iterable[GraphKind], micro_batch: int, request: Request) -> int:
    return max(
        (graph_transient_bytes(block.graphs[kind], kind, micro_batch, arena=request.arena) for kind in graphs),
        default=0,
    )


def _forward_transient(block: BlockSpec, micro_batch: int, request: Request) -> int:
    return graph_transient_bytes(block.graphs["forward"], "forward", micro_batch, arena=request.arena)


def _sessions(manifest: Manifest, used: Iterable[tuple[int, Iterable[GraphKind]]], threads: int) -> int:
    """Loaded graphs; blocks with the same file share one."""
    seen: set[str] = set()
    return sum(_new_sessions(manifest.blocks[index], graphs, seen, threads) for index, graphs in used)


def _new_sessions(block: BlockSpec, graphs: Iterable[GraphKind], seen: set[str], threads: int) -> int:
    total = 0
    for kind in graphs:
        graph = block.graphs[kind]
        total += 0 if graph.file in seen else session_bytes(graph, threads)
        seen.add(graph.file)
    return total


def _graphs(trained: bool, whole: bool) -> tuple[GraphKind, ...]:
    if not trained:
        return ("forward",)
    return ("step",) if whole else ("accumulate", "apply")


def process_bytes(manifest: Manifest, request: Request) -> int:
    """Planned bytes of the process beyond arrays and graphs."""
    return PROCESS_BYTES + request.returning_bytes + BLOCK_BYTES * len(manifest.blocks)


def _kinds(manifest: Manifest, request: Request, whole: bool) -> list[tuple[GraphKind, ...]]:
    """Graphs of each block while training: none behind the last that is trained."""
    trained = [_is_trained(block, request) for block in manifest.blocks]
    last = max((index for index, one in enumerate(trained) if one), default=-1)
    return [_graphs(one, whole) if index <= last else () for index, one in enumerate(trained)]


def _choices_of_graphs(manifest: Manifest, request: Request, rows: int, whole: bool) -> Iterator[Kinds]:
    """Graphs of each block: none of the fast ones, then those that take least inside, up to all that spare time."""
    plain = _kinds(manifest, request, whole)
    yield plain
    given_back = replace(request, arena=False)  # the same choices with an arena, which then takes no fewer bytes
    fast = {
        index: _transient(block, [FAST], 1, given_back)
        for index, block in _numbered(manifest)
        if request.fast and _spares_time(block, plain[index], rows, given_back)
    }
    for most in sorted(set(fast.values())):
        yield [_fast(kinds) if fast.get(index, most + 1) <= most else kinds for index, kinds in enumerate(plain)]


def _spares_time(block: BlockSpec, graphs: Sequence[GraphKind], rows: int, request: Request) -> bool:
    """Whether a block has a fast graph for the work of one of these, and is faster by it where all bytes are there."""
    if "accumulate" not in graphs or FAST not in block.graphs:
        return False
    sizes = [size for size in micro_batches(rows) if rows % size == 0]
    taken, fast = (min(_seconds(block, one, size, request) for size in sizes) for one in (graphs, _fast(graphs)))
    return fast < taken


def _fast(graphs: Sequence[GraphKind]) -> tuple[GraphKind, ...]:
    return tuple(FAST if kind == "accumulate" else kind for kind in graphs)


def _is_trained(block: BlockSpec, request: Request) -> bool:
    return request.trained is None or block.name in request.trained


def _numbered(manifest: Manifest) -> Iterator[tuple[int, BlockSpec]]:
    return iter(enumerate(manifest.blocks))


def _paired(manifest: Manifest, kinds: Kinds) -> Iterator[tuple[BlockSpec, Sequence[GraphKind]]]:
    return zip(manifest.blocks, kinds, strict=True)


def _updates(request: Request) -> int:
    return -(-request.rows // request.batch_size)


def _update_seconds(block: BlockSpec, part: BlockPlan, request: Request) -> float:
    return _seconds(block, part.graphs, part.micro_batch, request)


def _seconds(block: BlockSpec, graphs: Sequence[GraphKind], micro_batch: int, request: Request) -> float:
    return update_seconds(block, graphs, micro_batch, request.batch_size, threads=request.threads, arena=request.arena)


def _traffic(manifest: Manifest, request: Request, features: Features) -> tuple[int, int, int]:
    """Bytes of feature files at their most, and written and read in a pass over the rows for every block."""
    inputs = [index for index, block in _numbered(manifest) if index and _is_trained(block, request)]
    if features == "rerun":
        weights = [block.weight_bytes for block in manifest.blocks]
        # A single block before stays loaded; more of them are read again for every group of rows.
        return 0, 0, sum(_updates(request) * sum(weights[:index]) for index in inputs if index > 1)
    sizes = [_file_bytes(manifest.blocks[index], features) * request.rows for index in inputs]
    pairs = [first + second for first, second in zip([0, *sizes], sizes, strict=False)]
    return max(pairs, default=0), sum(sizes), sum(sizes)


def _file_bytes(block: BlockSpec, features: Features) -> int:
    """Of one row's features; quantised ones have their offset and scale with them."""
    count = block.input.nbytes // 4
    return count * FEATURE_BYTES[features] + (8 if features == "uint8" else 0)


def _prefix_seconds(manifest: Manifest, request: Request, rows: int, features: Features) -> float:
    """Running the blocks before each trained one: once for every row and epoch, or once to write a file."""
    graphs = [block.graphs["forward"] for block in manifest.blocks]
    forward = [run_seconds(graph, rows, threads=request.threads, arena=request.arena) / rows for graph in graphs]
    inputs = [index for index, block in _numbered(manifest) if index and _is_trained(block, request)]
    if features == "rerun":
        return request.rows * sum(sum(forward[:index]) for index in inputs)
    return request.rows * sum(forward[: max(inputs, default=0)])


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
