"""What training costs in time, roughly: good for choosing between plans of one run, not for promises.

A run of a graph costs a fixed time, its arithmetic, and its traffic: faster where all that it touches stays in a cache.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgeff.manifest import BlockSpec, GraphKind, GraphSpec

# Of the order of a small ARM or x86 core; only their proportions matter.
RUN_SECONDS = 40e-6
NODE_SECONDS = 2.5e-6
OPERATIONS_PER_SECOND = 2e10
CACHED_BYTES_PER_SECOND = 2e10
BYTES_PER_SECOND = 6e9
CACHE_BYTES = 4 * 2**20
# Of an SD card.
WRITTEN_BYTES_PER_SECOND = 2e7
READ_BYTES_PER_SECOND = 8e7
# Of what a run's nodes write, where the system gives memory for it anew: each page is zeroed and mapped once more.
NEW_BYTES_PER_SECOND = 4e9
_WRITTEN = 1 / 3


def run_seconds(graph: GraphSpec, rows: int, *, threads: int = 1, arena: bool = True) -> float:
    """One run of a graph.

    Args:
        graph: To run.
        rows: Its micro-batch.
        threads: Of the engine.
        arena: It runs in memory that is kept between runs.
    """
    arithmetic = graph.work.at(rows) / (OPERATIONS_PER_SECOND * threads)
    speed = CACHED_BYTES_PER_SECOND if graph.transient_bytes(rows) <= CACHE_BYTES else BYTES_PER_SECOND
    traffic = graph.traffic.at(rows)
    new = 0 if arena else _WRITTEN * traffic / NEW_BYTES_PER_SECOND
    return RUN_SECONDS + NODE_SECONDS * graph.nodes + arithmetic + traffic / speed + new


def update_seconds(
    block: BlockSpec,
    graphs: Iterable[GraphKind],
    micro_batch: int,
    batch_size: int,
    *,
    threads: int = 1,
    arena: bool = True,
) -> float:
    """One batch through a block, in micro-batches, with its update; for the rest see `run_seconds`."""
    total = 0.0
    for kind in graphs:
        graph = block.graphs[kind]
        if kind == "apply":
            # In pieces, whose temporaries stay in a cache.
            total += RUN_SECONDS + graph.traffic.at(block.parameter_bytes // 4) / CACHED_BYTES_PER_SECOND
        else:
            total += -(-batch_size // micro_batch) * run_seconds(graph, micro_batch, threads=threads, arena=arena)
    return total


def disk_seconds(written_bytes: int, read_bytes: int) -> float:
    """Writing and reading files."""
    return written_bytes / WRITTEN_BYTES_PER_SECOND + read_bytes / READ_BYTES_PER_SECOND
