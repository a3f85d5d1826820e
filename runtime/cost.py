"""What training costs in time, roughly: good for choosing between plans of one run, not for promises.

A run of a graph costs a fixed time, its arithmetic, and its traffic: faster where all that it touches stays in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgeff.manifest import BlockSpec, GraphKind, GraphSpec

# Of the order of a small ARM or x86 core; only their proportions matter.
RUN_SECONDS = 40e-6
NODE_SECONDS = 2.5e-6
# More where an operator's work is divided: the other threads sleep until they are called.
DIVIDED_NODE_SECONDS = 8e-6
# For a block to go from one worker to the next, who may have to be woken.
TURN_SECONDS = 250e-6
# How much longer work takes beside that of other cores, which share caches and memory: 1.05 to 1.3 was found.
BESIDE_OTHERS = 1.1
OPERATIONS_PER_SECOND = 2e10
CACHED_BYTES_PER_SECOND = 2e10
BYTES_PER_SECOND = 6e9
CACHE_BYTES = 4 * 2**20
# Of an SD card.
WRITTEN_BYTES_PER_SECOND = 2e7
READ_BYTES_PER_SECOND = 8e7
# Of what a run's nodes write, where the system gives memory for it anew: each page is zeroed and mapped once more.
NEW_BYTES_PER_SECOND = 1.2e9
_WRITTEN = 1 / 3


def run_seconds(graph: GraphSpec, rows: int, *, threads: int = 1, arena: bool = True, workers: int = 1) -> float:
    """One run of a graph.

    Args:
        graph: To run.
        rows: Its micro-batch.
        threads: That one operator may use.
        arena: It runs in memory that is kept between runs.
        workers: Graphs that run at the same time: what is in no cache then comes to each more slowly, though not by as
            much, for one core alone does not use all of a memory's speed.
    """
    arithmetic = graph.work.at(rows) / (OPERATIONS_PER_SECOND * threads)
    cached = graph.transient_bytes(rows) <= CACHE_BYTES
    speed = CACHED_BYTES_PER_SECOND if cached else BYTES_PER_SECOND / math.sqrt(workers)
    traffic = graph.traffic.at(rows)
    new = 0 if arena else _WRITTEN * traffic / NEW_BYTES_PER_SECOND
    node = NODE_SECONDS + (DIVIDED_NODE_SECONDS if threads > 1 else 0)
    return RUN_SECONDS + node * graph.nodes + arithmetic + traffic / speed + new


def learning_seconds(
    block: BlockSpec,
    graphs: Iterable[GraphKind],
    micro_batch: int,
    rows: int,
    *,
    threads: int = 1,
    arena: bool = True,
    workers: int = 1,
) -> float:
    """Some rows through a block, in micro-batches, without an update after it; for the rest see `run_seconds`."""
    runs = -(-rows // micro_batch)
    return sum(
        runs * run_seconds(block.graphs[kind], micro_batch, threads=threads, arena=arena, workers=workers)
        for kind in graphs
        if kind != "apply"
    )


def apply_seconds(block: BlockSpec) -> float:
    """The update of a block's weights by one thread, in pieces whose temporaries stay in a cache."""
    traffic = block.graphs["apply"].traffic.at(block.parameter_bytes // 4)
    return RUN_SECONDS + traffic / CACHED_BYTES_PER_SECOND


def pipelined_seconds(blocks: Sequence[float], micro_batches: int, workers: int) -> float:
    """A batch through all blocks, some micro-batches under way at once, of which each block takes one at a time.

    A worker comes back to the first block when it is through with the last, or when the slowest block has let the
    others pass.

    Args:
        blocks: Seconds of one micro-batch in each.
        micro_batches: Of the batch.
        workers: How many are under way at once.

    >>> pipelined_seconds([1.0, 1.0, 2.0], 4, 1), round(pipelined_seconds([1.0, 1.0, 2.0], 4, 2))
    (16.0, 11)
    """
    together = min(workers, micro_batches)
    if together == 1:
        return micro_batches * sum(blocks)
    each = [BESIDE_OTHERS * seconds + TURN_SECONDS for seconds in blocks]
    slowest, (rounds, place) = max(each), divmod(micro_batches - 1, together)
    return rounds * max(sum(each), together * slowest) + place * slowest + sum(each)


def disk_seconds(written_bytes: int, read_bytes: int) -> float:
    """Writing and reading files."""
    return written_bytes / WRITTEN_BYTES_PER_SECOND + read_bytes / READ_BYTES_PER_SECOND
