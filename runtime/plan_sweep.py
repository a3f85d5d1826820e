"""Plans of schedule `sweep`: all blocks in memory, learning at once or in groups. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgeff.manifest import GraphKind, Manifest
from edgeff.runtime.buffers import buffer_bytes, filling_bytes
from edgeff.runtime.groups import groupings, largest_group
from edgeff.runtime.plan_blocks import (
    Kinds,
    apply_transient_bytes,
    arrays_of,
    at_once,
    between_bytes,
    block_plans,
    is_trained,
    left_for_graphs,
    micro_batches_of,
    paired,
    passed_bytes,
    process_bytes,
    rows_together,
    seconds_of_graphs,
    seconds_of_update,
    sessions_bytes,
    splitting,
    threads_bytes,
    update_threads,
    updates_of_an_epoch,
    workers_of,
)
from edgeff.runtime.plan_bytes import beside
from edgeff.runtime.plan_parts import BlockPlan, Bytes, Phase, Plan, Request

FORWARD: Sequence[GraphKind] = ("forward",)
# Groups of blocks have to make a run smaller by this part of it, to be worth their forward passes.
_WORTH_GROUPS = 0.05


def sweeps(manifest: Manifest, request: Request, rows: int, whole: bool, kinds: Kinds) -> Iterator[Plan]:
    """All blocks at once, and in groups where those spare enough bytes."""
    workers = workers_of(request, rows)
    base = Bytes(
        rows=request.row_bytes,
        process=process_bytes(manifest, request),
        activations=workers * buffer_bytes(manifest, rows),
    )
    gradients = []
    for block, graphs in paired(manifest, kinds):
        arrays = arrays_of(block, is_trained(block, request), graphs, request)
        gradients.append(arrays.gradients)
        base += replace(arrays, gradients=0)
    updating = update_threads(sum(gradients), request)
    base += threads_bytes(manifest, workers, updating, sum(gradients))
    last_cut = _last_cut(manifest, request, kinds) if any(gradients) else 0
    for groups in groupings(gradients, last_cut, worth=round(_WORTH_GROUPS * (base.total + sum(gradients)))):
        resident = replace(base, gradients=largest_group(gradients, groups))
        yield _sweep(manifest, request, rows, whole, kinds, resident, groups, updating)


def _last_cut(manifest: Manifest, request: Request, kinds: Kinds) -> int:
    """The last block that a group may begin with: those before it hand over by `forward` what they do as they learn."""
    # What an engine or a device holds of its own cannot be shared between blocks.
    if request.engine_copies or request.uniform or rows_together(manifest, request.trained) > 1:
        return 0
    if (request.workers or 1) > 1:  # which are for speed
        return 0
    draws = (bool(graphs) and "seed" in block.graphs[graphs[0]].inputs for block, graphs in paired(manifest, kinds))
    return next((index for index, one in enumerate(draws) if one), len(kinds) - 1)


def _sweep(
    manifest: Manifest,
    request: Request,
    rows: int,
    whole: bool,
    kinds: Kinds,
    base: Bytes,
    groups: tuple[int, ...],
    updating: int,
) -> Plan:
    again = groups[-1]  # blocks before it run forward too
    running: Kinds = [
        (*dict.fromkeys((*graphs, *FORWARD)),) if index < again else graphs for index, graphs in enumerate(kinds)
    ]
    training = base + Bytes(graphs=sessions_bytes(manifest, enumerate(running), request.operator_threads))
    evaluating = base + Bytes(graphs=sessions_bytes(manifest, enumerate([("forward",)] * len(kinds)), request.threads))
    filling = max(filling_bytes(manifest, rows), passed_bytes(manifest.blocks, request))
    left = left_for_graphs(request, max(training.total, evaluating.total) + (filling if request.arena else 0))
    workers = workers_of(request, rows)
    each = None if left is None else left // workers
    sizes = micro_batches_of(manifest, running, rows, each, whole, request, evaluated=True)
    blocks = block_plans(manifest, request, kinds, sizes, running)
    passing = at_once(blocks, workers) + between_bytes(manifest, blocks, workers)
    inside = max(passing, updating * apply_transient_bytes(manifest, kinds, request))
    forward = max(block.forward_transient_bytes for block in blocks)
    arena = max(inside, forward) if request.arena else 0
    return Plan(
        schedule="sweep",
        batch_size=request.batch_size,
        micro_batch=rows,
        budget_bytes=request.budget_bytes,
        blocks=blocks,
        phases=(
            *splitting(manifest, request),
            Phase("train", training + Bytes(activations=beside(arena, filling, inside))),
            Phase("evaluate", evaluating + Bytes(activations=beside(arena, filling, forward))),
        ),
        arena_bytes=arena,
        epoch_seconds=updates_of_an_epoch(request)
        * (seconds_of_update(manifest, blocks, rows, request, updating) + _again(manifest, request, blocks, groups)),
        groups=groups,
        workers=workers,
        operator_threads=request.operator_threads,
        update_threads=updating,
    )


def _again(manifest: Manifest, request: Request, blocks: Sequence[BlockPlan], groups: Sequence[int]) -> float:
    """Seconds of an update in which blocks run forward once more, for every group behind their own."""
    total = 0.0
    for start in groups[1:]:
        pairs = zip(manifest.blocks[:start], blocks[:start], strict=True)
        total += sum(seconds_of_graphs(block, FORWARD, part.micro_batch, request) for block, part in pairs)
    return total
