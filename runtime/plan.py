"""The plan of a run: what is resident when, in bytes, before anything is loaded. Pure; nothing is measured here.

A plan is made of phases (training, evaluation, ...), each with all that is in memory while it lasts. The run takes as
much as its largest phase. Of the plans that fit a budget the fastest by `edgeff.runtime.cost` is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

from edgeff.errors import BudgetError
from edgeff.manifest import BlockSpec, GraphKind, GraphSpec, Manifest
from edgeff.runtime.buffers import buffer_bytes, filling_bytes
from edgeff.runtime.cost import disk_seconds, run_seconds, update_seconds
from edgeff.runtime.engine import ARENA_MARGIN
from edgeff.runtime.memory import ALIGNMENT
from edgeff.units import format_bytes

Schedule = Literal["sweep", "stage"]
Features = Literal["rerun", "float32", "float16", "uint8"]
Preference = Literal["speed", "memory"]
Updates = Literal["fused", "accumulated"]

MIB = 2**20
FEATURE_BYTES: Mapping[Features, int] = {"float32": 4, "float16": 2, "uint8": 1}
# How often a group of rows is there in float32 while it is read from a file of features or written to one.
READ_COPIES: Mapping[Features, float] = {"rerun": 1, "float32": 1, "float16": 1.5, "uint8": 2.25}
WRITTEN_COPIES: Mapping[Features, float] = {"float32": 1, "float16": 2.5, "uint8": 3}

# What a loaded graph takes: anonymous resident bytes (RssAnon) before and after loading and running once, in a fresh
# process with the allocator's thresholds set, over the graphs of five presets (8 to 414 nodes) with onnxruntime 1.19.2
# and 1.32, which agree. The line is near the upper edge of what was found: a step graph of 147 nodes took 716 kB, one
# of 392 nodes 1,618 kB, a forward graph of 14 nodes 106 kB. Weights are inputs, so that none are inside.
SESSION_BYTES = 96 * 1024
NODE_BYTES = 4608
# Each thread beyond the first, in each session: the same measurement with three threads.
THREAD_BYTES = 80 * 1024
# Whatever the model, found the same way: 1.6 to 2.5 MiB of program code that is read in when it first runs (kernels,
# numpy's, Python's; how much depends on what the system has cached), and 0.5 to 1.7 MiB of Python objects, of heap that
# cannot be returned, and of Python's table of names, which may double at any time: as much as was seen of both at once,
# with a guard, replay rows and checkpoints.
PROCESS_BYTES = 4 * MIB
# And for each block: views of its arrays, what the manifest says of it alone, a bound call; 21 KiB with 5 parameters.
BLOCK_BYTES = 28 * 1024
# Numbers of a block's tensors that `apply` updates in one run: its temporaries stay in a cache.
APPLY_NUMBERS = 64 * 1024


@dataclass(frozen=True)
class Bytes:
    """What is resident, by kind.

    Attributes:
        weights: Parameters and constant tensors.
        gradients: Sums of gradients.
        state: Of the optimiser.
        activations: Alive inside graphs, kernels' own buffers included, and on their way between blocks.
        graphs: Loaded graphs.
        rows: Rows and labels that are kept in memory.
        process: What the run takes whatever the model.
    """

    weights: int = 0
    gradients: int = 0
    state: int = 0
    activations: int = 0
    graphs: int = 0
    rows: int = 0
    process: int = 0

    @property
    def total(self) -> int:
        """Of all kinds."""
        return self.weights + self.gradients + self.state + self.activations + self.graphs + self.rows + self.process

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(
            self.weights + other.weights,
            self.gradients + other.gradients,
            self.state + other.state,
            self.activations + other.activations,
            self.graphs + other.graphs,
            self.rows + other.rows,
            self.process + other.process,
        )


@dataclass(frozen=True)
class Phase:
    """A part of the run, and the most that is resident in it.

    Attributes:
        name: `train`, `evaluate`, `train <block>`, `features for <block>`.
        resident: By kind.
    """

    name: str
    resident: Bytes


@dataclass(frozen=True)
class BlockPlan:
    """One block's part.

    Attributes:
        block: Its name.
        trained: It updates itself; else it only hands over.
        micro_batch: Rows that run at once.
        graphs: That run while training, in order; none for blocks behind the last trained one.
        weight_bytes: Parameters and buffers.
        gradient_bytes: Gradient sums; 0 where the micro-batch is the batch.
        state_bytes: Optimiser state.
        session_bytes: Its loaded graphs while training; those it shares with a block before it count there.
        transient_bytes: The most that is alive inside one run of a graph while training, beyond inputs and outputs.
        forward_session_bytes: The loaded `forward` graph while evaluating.
        forward_transient_bytes: The most that is alive inside one run of it.
        budget_bytes: What it may take; None for no limit.
    """

    block: str
    trained: bool
    micro_batch: int
    graphs: tuple[GraphKind, ...]
    weight_bytes: int
    gradient_bytes: int
    state_bytes: int
    session_bytes: int
    transient_bytes: int
    forward_session_bytes: int
    forward_transient_bytes: int
    budget_bytes: int | None = None

    @property
    def resident_bytes(self) -> int:
        """Its arrays while it is trained."""
        return self.weight_bytes + self.gradient_bytes + self.state_bytes

    @property
    def planned_bytes(self) -> int:
        """All that this block accounts for at the worst moment of training."""
        return self.resident_bytes + self.session_bytes + self.transient_bytes


@dataclass(frozen=True)
class Plan:
    """What a run will do, and the bytes over the floor it will take.

    Attributes:
        schedule: `sweep`: every batch passes all blocks. `stage`: one block after another, only it in memory.
        batch_size: Rows of a batch.
        micro_batch: Rows that go from block to block at once; every block's micro-batch is this or a part of it.
        budget_bytes: What it had to fit in; None for no limit.
        blocks: In order.
        phases: Of the run.
        features: For `stage`: how a block's inputs come about: by running the blocks before it again, or from files on
            disk of that dtype.
        disk_bytes: The most that these files take.
        epoch_seconds: Estimate of one pass over the rows (of all blocks), good for comparing plans only.
        written_bytes: To disk in such a pass, checkpoints left out.
        read_bytes: From disk.
        arena_bytes: Of the stretch of memory that is kept for graphs to run in; 0 where each run takes what it needs
            from the system and returns it, which holds fewer bytes and takes longer.
    """

    schedule: Schedule
    batch_size: int
    micro_batch: int
    budget_bytes: int | None
    blocks: tuple[BlockPlan, ...]
    phases: tuple[Phase, ...]
    features: Features = "rerun"
    disk_bytes: int = 0
    epoch_seconds: float = 0.0
    written_bytes: int = 0
    read_bytes: int = 0
    arena_bytes: int = 0

    @property
    def evaluation_rows(self) -> int:
        """Rows that run at once in evaluations."""
        return min(block.micro_batch for block in self.blocks) if self.schedule == "sweep" else self.micro_batch

    @property
    def planned_bytes(self) -> int:
        """The most the run takes over the floor."""
        return self.largest_phase.resident.total

    @property
    def training_bytes(self) -> int:
        """The most it takes while it trains."""
        return max(phase.resident.total for phase in self.phases if phase.name.startswith("train"))

    @property
    def largest_phase(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.resident.total)


@dataclass(frozen=True)
class Request:
    """What a plan is made for.

    Attributes:
        batch_size: Rows of a batch.
        budget_bytes: What the run may take over the floor; None for no limit.
        schedule: `sweep` or `stage`; None for `sweep` where it fits, else `stage`. They learn differently, so that
            speed alone does not decide.
        trained: Names of the blocks to train; None for all.
        rows: That an epoch passes over.
        row_bytes: Bytes of rows and labels that stay in memory.
        threads: Of the engine; each has a stack in every session.
        features: For `stage`; None for files of float32 where the disk has room, else running blocks again.
        disk_bytes: What files of features may take.
        block_budgets: Bytes that a block may take, by name.
        prefer: `speed`, or `memory` for the smallest plan.
        micro_batch: Rows that run at once, in all blocks; None for what is best.
        updates: `fused`: a batch runs at once and every weight is updated as soon as its gradient is there.
            `accumulated`: gradients are summed first. None for what is best.
        returning_bytes: Program code that was given back before the start and comes back while training.
        arena: Whether memory may be kept for graphs to run in; where it may, and fits, it is.
    """

    batch_size: int
    budget_bytes: int | None = None
    schedule: Schedule | None = None
    trained: Collection[str] | None = None
    rows: int = 1
    row_bytes: int = 0
    threads: int = 1
    features: Features | None = None
    disk_bytes: int = 0
    block_budgets: Mapping[str, int] = field(default_factory=dict)
    prefer: Preference = "speed"
    micro_batch: int | None = None
    updates: Updates | None = None
    returning_bytes: int = 0
    arena: bool = True

    def __post_init__(self) -> None:
        if self.budget_bytes is not None and self.budget_bytes <= 0:
            raise BudgetError(
                f"a budget of {self.budget_bytes} bytes holds nothing", hint="give for example `--budget 12MiB`"
            )
        if self.batch_size < 1:
            raise BudgetError(f"a batch of {self.batch_size} rows cannot be trained on, needed 1 or more")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch_size:
            raise BudgetError(
                f"a micro-batch of {self.micro_batch} rows is not from 1 to the batch's {self.batch_size}"
            )
        if self.updates == "fused" and self.micro_batch not in (None, self.batch_size):
            raise BudgetError(
                f"fused updates need the whole batch of {self.batch_size} rows at once, not {self.micro_batch}"
            )


def plan(manifest: Manifest, request: Request) -> Plan:
    """The fastest plan that fits, or the smallest one where that is preferred.

    Raises:
        BudgetError: Nothing fits; says which block needs most, its largest tensors, and the smallest budget that works.
    """
    _check_block_budgets(manifest, request)
    for schedule in _schedules(request):
        fitting = [one for one in _plans(manifest, request, schedule) if _fits(one, request)]
        if fitting:
            best = min(fitting, key=_by_memory if request.prefer == "memory" else _by_speed)
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


def session_bytes(graph: GraphSpec, threads: int = 1) -> int:
    """Planned bytes of a loaded graph."""
    return SESSION_BYTES + NODE_BYTES * graph.nodes + THREAD_BYTES * (threads - 1)


def graph_transient_bytes(graph: GraphSpec, kind: GraphKind, micro_batch: int, *, arena: bool) -> int:
    """Bytes that one run of a graph needs: those alive inside it, or the stretch in which they find room."""
    rows = APPLY_NUMBERS if kind == "apply" else micro_batch
    return graph.arena_bytes(rows) if arena else graph.transient_bytes(rows)


# --- candidates -------------------------------------------------------------------------------------------------------


def _plans(manifest: Manifest, request: Request, schedule: Schedule) -> Iterator[Plan]:
    """Everything that could be done, from which the best is chosen."""
    sizes = [request.micro_batch] if request.micro_batch else micro_batches(request.batch_size)
    for rows, one in product(sizes, with_and_without_arena(request)):
        for whole in _wholes(request, rows):
            if schedule == "sweep":
                yield _sweep(manifest, one, rows, whole)
            else:
                for features in _features(request):
                    yield _stage(manifest, one, rows, whole, features)


def _schedules(request: Request) -> Sequence[Schedule]:
    """Those that are tried, the preferred one first."""
    return (request.schedule,) if request.schedule else ("sweep", "stage")


def _wholes(request: Request, rows: int) -> Sequence[bool]:
    """Whether the batch may run at once with its update in the same graph."""
    possible = (True, False) if rows == request.batch_size else (False,)
    return possible if request.updates is None else [one for one in possible if one == (request.updates == "fused")]


def _features(request: Request) -> Sequence[Features]:
    return ("float32", "rerun") if request.features is None else (request.features,)


def _sweep(manifest: Manifest, request: Request, rows: int, whole: bool) -> Plan:
    kinds = _kinds(manifest, request, whole)
    base = Bytes(
        rows=request.row_bytes, process=process_bytes(manifest, request), activations=buffer_bytes(manifest, rows)
    )
    for block, graphs in zip(manifest.blocks, kinds, strict=True):
        base += _arrays(block, _is_trained(block, request), graphs)
    training = base + Bytes(graphs=_sessions(manifest, enumerate(kinds), request.threads))
    evaluating = base + Bytes(graphs=_sessions(manifest, enumerate([("forward",)] * len(kinds)), request.threads))
    filling = filling_bytes(manifest, rows)
    if request.arena:
        left = _left(request, max(training.total, evaluating.total) + filling)
    else:
        left = _left(request, training.total)
    sizes = _micro_batches(manifest, kinds, rows, left, whole, request)
    blocks = _block_plans(manifest, request, kinds, sizes)
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
            Phase("train", training + Bytes(activations=beside(arena, filling, inside))),
            Phase("evaluate", evaluating + Bytes(activations=beside(arena, filling, forward))),
        ),
        arena_bytes=arena,
        epoch_seconds=_updates(request) * sum(map(_update_seconds, manifest.blocks, blocks, [request] * len(blocks))),
    )


def _stage(manifest: Manifest, request: Request, rows: int, whole: bool, features: Features) -> Plan:
    base = Bytes(rows=request.row_bytes, process=process_bytes(manifest, request))
    kinds = _kinds(manifest, request, whole)
    sizes = []
    phases: list[Phase] = []
    for index, block in _numbered(manifest):
        trains = _is_trained(block, request)
        stop = index if trains and features == "rerun" else 0
        kept, running = _prefix(manifest, stop, rows, request)
        resident = base + kept + _arrays(block, trains, kinds[index])
        resident += Bytes(
            graphs=_sessions(manifest, [(index, kinds[index])], request.threads),
            activations=buffer_bytes(manifest, rows, first=index, last=index),
        )
        size = _micro_batch(block, kinds[index], rows, _left(request, resident.total), whole, request)
        sizes.append(size)
        if trains:
            # One after another: the blocks before run, what they give is copied, the block trains.
            copied = filling_bytes(manifest, rows, first=index)
            filling = Bytes(activations=round(copied * (READ_COPIES[features] if index else 1)))
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
        phases=tuple(Phase(one.name, one.resident + Bytes(activations=arena_cost(arena))) for one in phases),
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


def beside(arena: int, filling: int, inside: int) -> int:
    """The most at once of what fills the buffers and what runs after it: an arena is there all the while."""
    return arena_cost(arena) + filling if arena else max(filling, inside)


def with_and_without_arena(request: Request) -> Sequence[Request]:
    """The request for plans with an arena, where one may be kept, and for plans without."""
    return [replace(request, arena=arena) for arena in ((True, False) if request.arena else (False,))]


def arena_cost(size: int) -> int:
    """Bytes of an arena of `size` bytes with its margin and its list of pieces: a pointer for every 256 bytes."""
    return (size + ARENA_MARGIN) * 33 // 32 if size else 0


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
    manifest: Manifest, request: Request, kinds: Sequence[Sequence[GraphKind]], sizes: Sequence[int]
) -> tuple[BlockPlan, ...]:
    seen: set[str] = set()
    seen_forward: set[str] = set()
    found = []
    for block, graphs, size in zip(manifest.blocks, kinds, sizes, strict=True):
        trained = _is_trained(block, request)
        arrays = _arrays(block, trained, graphs)
        found.append(
            BlockPlan(
                block=block.name,
                trained=trained,
                micro_batch=size,
                graphs=tuple(graphs),
                weight_bytes=arrays.weights,
                gradient_bytes=arrays.gradients,
                state_bytes=arrays.state,
                session_bytes=_new_sessions(block, graphs, seen, request.threads),
                transient_bytes=_transient(block, graphs, size, request),
                forward_session_bytes=_new_sessions(block, ("forward",), seen_forward, request.threads),
                forward_transient_bytes=_forward_transient(block, min(sizes), request),
            )
        )
    return tuple(found)


def _arrays(block: BlockSpec, trained: bool, graphs: Collection[GraphKind]) -> Bytes:
    # Runs of numbers begin at multiples of `ALIGNMENT`: a parameter may be followed by padding.
    padded = sum(-(-spec.nbytes // ALIGNMENT) * ALIGNMENT for spec in block.parameters)
    own = padded if trained else block.parameter_bytes
    return Bytes(
        weights=own + block.weight_bytes - block.parameter_bytes,
        gradients=padded if "accumulate" in graphs else 0,
        state=padded * len(block.slots) if trained and graphs else 0,
    )


def _micro_batches(
    manifest: Manifest,
    kinds: Sequence[Sequence[GraphKind]],
    rows: int,
    left: int | None,
    whole: bool,
    request: Request,
) -> list[int]:
    """Of each block, where all have the same left."""
    pairs = zip(manifest.blocks, kinds, strict=True)
    return [_micro_batch(block, graphs, rows, left, whole, request) for block, graphs in pairs]


def _micro_batch(
    block: BlockSpec, graphs: Sequence[GraphKind], rows: int, left: int | None, whole: bool, request: Request
) -> int:
    """The fastest part of `rows` whose run fits into what is left; the smallest where none does."""
    if whole or request.micro_batch:
        return rows
    cap = request.block_budgets.get(block.name)
    if cap is not None:
        arrays = _arrays(block, _is_trained(block, request), graphs).total
        own = cap - arrays - sum(session_bytes(block.graphs[kind], request.threads) for kind in graphs)
        left = own if left is None else min(left, own)
    sizes = [size for size in micro_batches(rows) if rows % size == 0]
    fitting = [size for size in sizes if left is None or _transient(block, graphs, size, request) <= left]
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


def _is_trained(block: BlockSpec, request: Request) -> bool:
    return request.trained is None or block.name in request.trained


def _numbered(manifest: Manifest) -> Iterator[tuple[int, BlockSpec]]:
    return iter(enumerate(manifest.blocks))


# --- time -------------------------------------------------------------------------------------------------------------


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


# --- choice -----------------------------------------------------------------------------------------------------------


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


def _by_memory(one: Plan) -> tuple[float, int]:
    return one.planned_bytes, round(1e9 * one.epoch_seconds)


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


def _check_block_budgets(manifest: Manifest, request: Request) -> None:
    known = [block.name for block in manifest.blocks]
    for name, cap in request.block_budgets.items():
        if name not in known:
            raise BudgetError(f"there is no block `{name}` to give a budget to", hint=f"its blocks: {', '.join(known)}")
        if cap <= 0:
            raise BudgetError(f"a budget of {cap} bytes for block `{name}` holds nothing")


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
    return _over_budget(manifest, request, fitting) if fitting else _over_cap(manifest, request, on_disk)


def _over_cap(manifest: Manifest, request: Request, plans: Sequence[Plan]) -> BudgetError:
    """A block that keeps to its budget in no plan; where there is none, one that does not in the smallest plan."""

    def over(parts: Iterable[BlockPlan]) -> list[BlockPlan]:
        return [
            part for part in parts if part.planned_bytes > request.block_budgets.get(part.block, part.planned_bytes)
        ]

    smallest = [
        min(parts, key=lambda part: part.planned_bytes) for parts in zip(*(one.blocks for one in plans), strict=True)
    ]
    block = (over(smallest) or over(min(plans, key=_by_memory).blocks))[0]
    return BudgetError(
        f"block `{block.block}` needs {block.planned_bytes:,} bytes at micro-batch {block.micro_batch}, "
        f"its budget is {request.block_budgets[block.block]:,}: {_largest_tensors(manifest, block)}",
        hint=f"give it `--block-budget {block.block}={-(-block.planned_bytes // MIB)}MiB`",
    )


def _over_budget(manifest: Manifest, request: Request, plans: Sequence[Plan]) -> BudgetError:
    """What the smallest of the plans needs, and who needs most of it."""
    smallest = min(plans, key=_by_memory)
    needed, budget = smallest.planned_bytes, request.budget_bytes or 0
    block = max(
        (one for one in smallest.blocks if one.graphs), key=lambda one: one.planned_bytes, default=smallest.blocks[0]
    )
    return BudgetError(
        f"the run needs {needed:,} bytes, the budget is {budget:,}; most goes to block `{block.block}`: "
        f"{format_bytes(block.planned_bytes)} at micro-batch {block.micro_batch} ({_largest_tensors(manifest, block)})",
        hint=f"give it `--budget {-(-needed // MIB)}MiB`; the smallest budget that works is {needed:,} bytes",
    )


def _largest_tensors(manifest: Manifest, part: BlockPlan) -> str:
    """The three largest of what a block holds at its worst moment, in words."""
    block = next(one for one in manifest.blocks if one.name == part.block)
    held = [(f"weight `{spec.name}`", spec.nbytes) for spec in block.parameters]
    copies = len(block.slots) + (1 if part.gradient_bytes else 0)
    held += [(f"gradient and state of `{spec.name}`", copies * spec.nbytes) for spec in block.parameters]
    for kind in part.graphs:
        if kind != "apply":
            moment = block.graphs[kind].worst_moment(part.micro_batch)
            held += [(f"`{one.name}` of {one.operator}", one.at(part.micro_batch)) for one in moment.tensors]
    held.sort(key=lambda one: -one[1])
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in held[:3])
