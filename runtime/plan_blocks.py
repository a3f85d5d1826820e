"""What each block takes in a plan, in bytes and in seconds, whatever the schedule. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from edgeff.manifest import BlockSpec, GraphKind, Manifest
from edgeff.runtime.cost import apply_seconds, learning_seconds, pipelined_seconds
from edgeff.runtime.engine import ARENA_MARGIN
from edgeff.runtime.memory import ALIGNMENT
from edgeff.runtime.plan_bytes import (
    APPLY_CALL_BYTES,
    APPLY_NUMBERS,
    BLOCK_BYTES,
    PROCESS_BYTES,
    WORKER_BLOCK_BYTES,
    WORKER_BYTES,
    graph_transient_bytes,
    session_bytes,
)
from edgeff.runtime.plan_parts import BlockPlan, Bytes, Phase, Request

# Graphs of each block.
Kinds = Sequence[tuple[GraphKind, ...]]


def micro_batches(batch_size: int) -> Iterator[int]:
    """The sizes that are tried, largest first.

    >>> list(micro_batches(12))
    [12, 6, 3, 1]
    """
    while batch_size > 1:
        yield batch_size
        batch_size //= 2
    yield 1


def rows_together(manifest: Manifest, trained: Collection[str] | None) -> int:
    """The most rows that a trained block compares with one another; 1 where none does."""
    return max((one.rows_together for one in manifest.blocks if trained is None or one.name in trained), default=1)


def process_bytes(manifest: Manifest, request: Request) -> int:
    """Planned bytes of the process beyond arrays and graphs."""
    return PROCESS_BYTES + request.returning_bytes + BLOCK_BYTES * len(manifest.blocks)


def threads_bytes(manifest: Manifest, workers: int, updating: int, gradient_bytes: int) -> Bytes:
    """What threads take beyond the first, and the calls that are kept bound for them and for updates.

    Args:
        manifest: Has the blocks.
        workers: Micro-batches under way at once.
        updating: Threads that update weights.
        gradient_bytes: Of these.
    """
    threads = WORKER_BYTES * (max(workers, updating) - 1)
    calls = WORKER_BLOCK_BYTES * (workers - 1) * len(manifest.blocks) + APPLY_CALL_BYTES * _pieces(gradient_bytes)
    return Bytes(process=threads + calls)


def splitting(manifest: Manifest, request: Request) -> Sequence[Phase]:
    """What comes before all else, where there are rows to split."""
    if not request.splitting_bytes:
        return ()
    return (Phase("split rows", Bytes(rows=request.splitting_bytes, process=process_bytes(manifest, request))),)


def left_for_graphs(request: Request, taken: int) -> int | None:
    """Bytes that graphs may run in beside what is taken; None for no limit."""
    if request.budget_bytes is None:
        return None
    left = request.budget_bytes - taken
    return left * 32 // 33 - ARENA_MARGIN if request.arena else left  # `arena_cost` the other way round


def block_plans(
    manifest: Manifest, request: Request, kinds: Kinds, sizes: Sequence[int], running: Kinds | None = None
) -> tuple[BlockPlan, ...]:
    """What each block does; `running`: with the graphs that run beside those that it learns by."""
    seen: set[str] = set()
    seen_forward: set[str] = set()
    found = []
    for block, graphs, runs, size in zip(manifest.blocks, kinds, running or kinds, sizes, strict=True):
        trained = is_trained(block, request)
        arrays = arrays_of(block, trained, graphs, request)
        found.append(
            BlockPlan(
                block=block.name,
                trained=trained,
                micro_batch=size,
                graphs=tuple(graphs),
                weight_bytes=arrays.weights,
                gradient_bytes=arrays.gradients,
                state_bytes=arrays.state,
                session_bytes=_new_sessions(block, runs, seen, request.operator_threads),
                transient_bytes=transient_bytes(block, runs, size, request),
                forward_session_bytes=_new_sessions(block, ("forward",), seen_forward, request.threads),
                forward_transient_bytes=forward_transient_bytes(block, min(sizes), request),
            )
        )
    return tuple(found)


def arrays_of(block: BlockSpec, trained: bool, graphs: Collection[GraphKind], request: Request) -> Bytes:
    """Weights, gradient sums and optimiser state of a block, where those graphs run."""
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


def passed_bytes(blocks: Sequence[BlockSpec], request: Request) -> int:
    """What passing a block's tensors to an engine with copies of its own takes: the file, and its reader's."""
    if not request.engine_copies:
        return 0
    return max(2 * (block.weight_bytes + block.state_bytes) for block in blocks if is_trained(block, request))


def micro_batches_of(
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
    pairs = paired(manifest, kinds)
    return [micro_batch_of(block, graphs, rows, left, whole, request, evaluated=evaluated) for block, graphs in pairs]


def micro_batch_of(
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
    if block.rows_together > 1 and is_trained(block, request):
        return min(block.rows_together, rows)
    if whole or request.micro_batch or request.uniform:
        return rows
    cap = request.block_budgets.get(block.name)
    if cap is not None:
        arrays = arrays_of(block, is_trained(block, request), graphs, request).total
        own = cap - arrays - _new_sessions(block, graphs, set(), request.operator_threads)
        left = own if left is None else min(left, own)
    sizes = [size for size in micro_batches(rows) if rows % size == 0]
    runs: Sequence[GraphKind] = (*graphs, "forward") if evaluated else graphs
    fitting = [size for size in sizes if left is None or transient_bytes(block, runs, size, request) <= left]
    if request.prefer == "memory" or not fitting:
        return sizes[-1]
    return min(fitting, key=lambda size: seconds_of_graphs(block, graphs, size, request))


def transient_bytes(block: BlockSpec, graphs: Iterable[GraphKind], micro_batch: int, request: Request) -> int:
    """The most that is alive inside one run of any of these graphs, or the stretch in which it finds room."""
    return max(
        (graph_transient_bytes(block.graphs[kind], kind, micro_batch, arena=request.arena) for kind in graphs),
        default=0,
    )


def at_once(blocks: Sequence[BlockPlan], workers: int) -> int:
    """The most that is alive inside the graphs of so many blocks at the same time, each of them once."""
    return sum(sorted((block.transient_bytes for block in blocks), reverse=True)[:workers])


def between_bytes(manifest: Manifest, blocks: Sequence[BlockPlan], workers: int) -> int:
    """What of an arena may lie unused between the tensors of graphs that run at the same time.

    How these mix nobody knows beforehand. Found in runs: at most one tensor did not fit into what was free, so that for
    each worker beyond the first there is room for one more of the largest.
    """
    pairs = zip(manifest.blocks, blocks, strict=True)
    largest = (
        spec.graphs[kind].largest_tensor_bytes(part.micro_batch)
        for spec, part in pairs
        for kind in part.graphs
        if kind != "apply"
    )
    return (workers - 1) * max(largest, default=0)


def apply_transient_bytes(manifest: Manifest, kinds: Kinds, request: Request) -> int:
    """The most that one piece of an update needs."""
    pairs = paired(manifest, kinds)
    return max(
        (transient_bytes(block, ("apply",), 1, request) for block, graphs in pairs if "apply" in graphs), default=0
    )


def forward_transient_bytes(block: BlockSpec, micro_batch: int, request: Request) -> int:
    """The same of `forward`."""
    return graph_transient_bytes(block.graphs["forward"], "forward", micro_batch, arena=request.arena)


def sessions_bytes(manifest: Manifest, used: Iterable[tuple[int, Iterable[GraphKind]]], threads: int) -> int:
    """Loaded graphs; blocks with the same file share one."""
    seen: set[str] = set()
    return sum(_new_sessions(manifest.blocks[index], graphs, seen, threads) for index, graphs in used)


def _new_sessions(block: BlockSpec, graphs: Iterable[GraphKind], seen: set[str], threads: int) -> int:
    total = 0
    for kind in graphs:
        graph = block.graphs[kind]
        # Updates run one thread to a piece: see `edgeff.runtime.apply`.
        total += 0 if graph.file in seen else session_bytes(graph, 1 if kind == "apply" else threads)
        seen.add(graph.file)
    return total


def is_trained(block: BlockSpec, request: Request) -> bool:
    """Whether a block learns."""
    return request.trained is None or block.name in request.trained


def paired(manifest: Manifest, kinds: Kinds) -> Iterator[tuple[BlockSpec, Sequence[GraphKind]]]:
    """Each block with its graphs."""
    return zip(manifest.blocks, kinds, strict=True)


def updates_of_an_epoch(request: Request) -> int:
    """How many there are."""
    return -(-request.rows // request.batch_size)


def workers_of(request: Request, rows: int) -> int:
    """Micro-batches of `rows` rows that are under way at once: no more than there are."""
    return min(request.workers or 1, -(-request.batch_size // rows))


def update_threads(gradient_bytes: int, request: Request) -> int:
    """Threads that update weights, each a piece at a time: no more than there are pieces, and one without an arena.

    Beside an arena that blocks need anyway their temporaries cost next to nothing; without, they would.
    """
    return max(1, min(request.threads, _pieces(gradient_bytes))) if request.arena else 1


def _pieces(gradient_bytes: int) -> int:
    """In which weights are updated."""
    return -(-gradient_bytes // (4 * APPLY_NUMBERS))


def seconds_of_update(
    manifest: Manifest, parts: Sequence[BlockPlan], rows: int, request: Request, threads: int
) -> float:
    """Estimate of one batch through all blocks as they are planned.

    Args:
        manifest: Has the graphs.
        parts: What each block does.
        rows: That go from block to block at once.
        request: Says how many micro-batches are under way at once.
        threads: That update weights.
    """
    pairs = list(zip(manifest.blocks, parts, strict=True))
    count = -(-request.batch_size // rows)
    workers = workers_of(request, rows)
    passing = [
        learning_seconds(
            block,
            part.graphs,
            part.micro_batch,
            request.batch_size,
            threads=request.operator_threads,
            arena=request.arena,
            workers=workers,
        )
        / count
        for block, part in pairs
    ]
    updating = sum(apply_seconds(block) for block, part in pairs if "apply" in part.graphs)
    return pipelined_seconds(passing, count, workers) + updating / threads


def seconds_of_graphs(block: BlockSpec, graphs: Sequence[GraphKind], micro_batch: int, request: Request) -> float:
    """Estimate of one batch through a block by these graphs, in micro-batches, without its update."""
    return learning_seconds(
        block, graphs, micro_batch, request.batch_size, threads=request.operator_threads, arena=request.arena
    )
