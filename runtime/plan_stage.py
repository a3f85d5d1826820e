"""Plans of schedule `stage`: one block's arrays in memory at a time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeff.manifest import BlockSpec, Manifest
from edgeff.runtime.buffers import buffer_bytes, filling_bytes
from edgeff.runtime.cost import disk_seconds, run_seconds
from edgeff.runtime.plan_blocks import (
    Kinds,
    apply_transient_bytes,
    arrays_of,
    block_plans,
    forward_transient_bytes,
    is_trained,
    left_for_graphs,
    micro_batch_of,
    micro_batches_of,
    passed_bytes,
    process_bytes,
    seconds_of_update,
    sessions_bytes,
    splitting,
    threads_bytes,
    transient_bytes,
    update_threads,
    updates_of_an_epoch,
)
from edgeff.runtime.plan_bytes import arena_cost
from edgeff.runtime.plan_parts import BlockPlan, Bytes, Features, Phase, Plan, Request

FEATURE_BYTES: Mapping[Features, int] = {"float32": 4, "float16": 2, "uint8": 1}
# How often a group of rows is there in float32 while it is read from a file of features or written to one.
READ_COPIES: Mapping[Features, float] = {"rerun": 1, "float32": 1, "float16": 1.5, "uint8": 2.25}
WRITTEN_COPIES: Mapping[Features, float] = {"float32": 1, "float16": 2.5, "uint8": 3}


def stage(manifest: Manifest, request: Request, rows: int, whole: bool, kinds: Kinds, features: Features) -> Plan:
    """One block learns after another, with these graphs, at so many rows from block to block."""
    base = Bytes(rows=request.row_bytes, process=process_bytes(manifest, request))
    pairs = zip(manifest.blocks, kinds, strict=True)
    summed = max(arrays_of(block, is_trained(block, request), graphs, request).gradients for block, graphs in pairs)
    updating = update_threads(summed, request)
    base += threads_bytes(manifest, 1, updating, summed)
    sizes = []
    phases: list[Phase] = []
    for index, block in enumerate(manifest.blocks):
        trains = is_trained(block, request)
        stop = index if trains and features == "rerun" else 0
        kept, running = _prefix(manifest, stop, rows, request)
        resident = base + kept + arrays_of(block, trains, kinds[index], request)
        resident += Bytes(
            graphs=sessions_bytes(manifest, [(index, kinds[index])], request.threads),
            activations=buffer_bytes(manifest, rows, first=index, last=index),
        )
        size = micro_batch_of(block, kinds[index], rows, left_for_graphs(request, resident.total), whole, request)
        sizes.append(size)
        if trains:
            # One after another: the blocks before run, what they give is copied, the block trains.
            copied = filling_bytes(manifest, rows, first=index)
            filled = round(copied * (READ_COPIES[features] if index else 1))
            filling = Bytes(activations=max(filled, passed_bytes([block], request)))
            training = Bytes(activations=0 if request.arena else transient_bytes(block, kinds[index], size, request))
            phases.append(Phase(f"train {block.name}", resident + max(running, filling, training, key=_total)))
            if features != "rerun" and index:
                kept, running = _prefix(manifest, index, rows, request)
                writing = Bytes(activations=round(copied * WRITTEN_COPIES[features]))
                phases.append(Phase(f"features for {block.name}", base + kept + max(running, writing, key=_total)))
    kept, running = _prefix(manifest, len(manifest.blocks), rows, request)
    phases.append(Phase("evaluate", base + kept + running))
    if request.arena:  # it is there in all phases
        left = left_for_graphs(request, max(one.resident.total for one in phases))
        sizes = micro_batches_of(manifest, kinds, rows, left, whole, request)
    blocks = block_plans(manifest, request, kinds, sizes)
    updates = updating * apply_transient_bytes(manifest, kinds, request)
    arena = max(_stage_arena(manifest, blocks, rows), updates) if request.arena else 0
    disk, written, read = _traffic(manifest, request, features)
    seconds = updates_of_an_epoch(request) * seconds_of_update(manifest, blocks, rows, request, updating)
    return Plan(
        schedule="stage",
        batch_size=request.batch_size,
        micro_batch=rows,
        budget_bytes=request.budget_bytes,
        blocks=blocks,
        phases=(
            *splitting(manifest, request),
            *(Phase(one.name, one.resident + Bytes(activations=arena_cost(arena))) for one in phases),
        ),
        features=features,
        disk_bytes=disk,
        epoch_seconds=seconds + disk_seconds(written, read) + _prefix_seconds(manifest, request, rows, features),
        written_bytes=written,
        read_bytes=read,
        arena_bytes=arena,
        operator_threads=request.operator_threads,
        update_threads=updating,
    )


def _stage_arena(manifest: Manifest, blocks: Sequence[BlockPlan], rows: int) -> int:
    """The stretch in which each block's training graphs find room, and forward passes of `rows` rows."""
    forward = max(block.graphs["forward"].arena_bytes(rows) for block in manifest.blocks)
    return max(forward, *(part.transient_bytes for part in blocks))


def _prefix(manifest: Manifest, stop: int, rows: int, request: Request) -> tuple[Bytes, Bytes]:
    """Running the blocks before `stop`: what is there all the while, and what there is beside it while they run."""
    before = manifest.blocks[:stop]
    if not before:
        return Bytes(), Bytes()
    graphs = sessions_bytes(manifest, enumerate([("forward",)] * stop), request.threads)
    kept = Bytes(graphs=graphs, activations=buffer_bytes(manifest, rows, last=stop - 1))
    weights = max(block.weight_bytes for block in before)  # one block at a time
    filling = filling_bytes(manifest, rows)
    inside = 0 if request.arena else max(forward_transient_bytes(block, rows, request) for block in before)
    return kept, Bytes(weights=weights, activations=max(filling, inside))


def _total(one: Bytes) -> int:
    return one.total


def _traffic(manifest: Manifest, request: Request, features: Features) -> tuple[int, int, int]:
    """Bytes of feature files at their most, and written and read in a pass over the rows for every block."""
    inputs = [index for index, block in enumerate(manifest.blocks) if index and is_trained(block, request)]
    if features == "rerun":
        weights = [block.weight_bytes for block in manifest.blocks]
        # A single block before stays loaded; more of them are read again for every group of rows.
        return 0, 0, sum(updates_of_an_epoch(request) * sum(weights[:index]) for index in inputs if index > 1)
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
    inputs = [index for index, block in enumerate(manifest.blocks) if index and is_trained(block, request)]
    if features == "rerun":
        return request.rows * sum(sum(forward[:index]) for index in inputs)
    return request.rows * sum(forward[: max(inputs, default=0)])
