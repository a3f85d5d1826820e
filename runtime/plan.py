"""The plan of a run: what is resident when, in bytes, before anything is loaded. Pure; nothing is measured here."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from edgeff.errors import BudgetError
from edgeff.manifest import BlockSpec, GraphKind, GraphSpec, Manifest
from edgeff.runtime.buffers import buffer_bytes
from edgeff.units import format_bytes

Schedule = Literal["sweep", "stage"]

MIB = 2**20

# What a loaded graph takes: anonymous resident bytes (RssAnon) before and after loading and running once, in a fresh
# process with the allocator's thresholds set, over the graphs of five presets (8 to 414 nodes) with onnxruntime 1.19.2
# and 1.32, which agree. The line is near the upper edge of what was found: a step graph of 147 nodes took 716 kB, one
# of 392 nodes 1,618 kB, a forward graph of 14 nodes 106 kB. Weights are inputs, so that none are inside.
SESSION_BYTES = 96 * 1024
NODE_BYTES = 4608
# Each thread beyond the first, in each session: the same measurement with three threads.
THREAD_BYTES = 80 * 1024
# Whatever the model, found the same way: 2 MiB of program code that is read in when kernels first run; the rest are
# Python objects, file buffers (an artifact is hashed in chunks of 1 MiB) and what the heap cannot return.
PROCESS_BYTES = 9 * MIB // 2


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
        session_bytes: The loaded graphs while training.
        transient_bytes: The most that is alive inside one run of a graph while training, beyond inputs and outputs.
        forward_session_bytes: The loaded `forward` graph while evaluating.
        forward_transient_bytes: The most that is alive inside one run of it.
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

    @property
    def resident_bytes(self) -> int:
        """Arrays that stay from the first step to the last."""
        return self.weight_bytes + self.gradient_bytes + self.state_bytes

    @property
    def planned_bytes(self) -> int:
        """All that this block accounts for at the worst moment of training."""
        return self.resident_bytes + self.session_bytes + self.transient_bytes


@dataclass(frozen=True)
class Plan:
    """What a run will do, and the bytes over the floor it will take.

    Attributes:
        schedule: `sweep`: every batch passes all blocks.
        batch_size: Rows of a batch.
        micro_batch: Rows that run at once; the same for all blocks.
        budget_bytes: What it had to fit in; None for no limit.
        blocks: In order.
        buffer_bytes: A micro-batch of rows on its way through the blocks.
        row_bytes: Rows that are kept in memory: replay rows, labels.
        process_bytes: What the run takes whatever the model.
    """

    schedule: Schedule
    batch_size: int
    micro_batch: int
    budget_bytes: int | None
    blocks: tuple[BlockPlan, ...]
    buffer_bytes: int
    row_bytes: int
    process_bytes: int

    @property
    def resident_bytes(self) -> int:
        """What is there throughout: weights, gradients, optimiser state, buffers, rows, the process's own."""
        blocks = sum(block.resident_bytes for block in self.blocks)
        return blocks + self.buffer_bytes + self.row_bytes + self.process_bytes

    @property
    def training_bytes(self) -> int:
        """At the worst moment of a training step."""
        sessions = sum(block.session_bytes for block in self.blocks)
        return self.resident_bytes + sessions + max(block.transient_bytes for block in self.blocks)

    @property
    def evaluation_bytes(self) -> int:
        """At the worst moment of an evaluation between epochs."""
        sessions = sum(block.forward_session_bytes for block in self.blocks)
        return self.resident_bytes + sessions + max(block.forward_transient_bytes for block in self.blocks)

    @property
    def planned_bytes(self) -> int:
        """The most the run takes over the floor."""
        return max(self.training_bytes, self.evaluation_bytes)


def plan(
    manifest: Manifest,
    *,
    budget_bytes: int | None,
    batch_size: int,
    trained: Collection[str] | None = None,
    row_bytes: int = 0,
    threads: int = 1,
    kind: Schedule = "sweep",
) -> Plan:
    """The plan with the largest micro-batch that fits: the batch, or a half, a quarter and so on of it.

    Args:
        manifest: Of the artifact.
        budget_bytes: What the run may take over the floor; None for no limit.
        batch_size: Rows of a batch.
        trained: Names of the blocks to train; None for all.
        row_bytes: Bytes of rows that stay in memory.
        threads: Of the engine; each has a stack in every session.
        kind: Of schedule.

    Raises:
        BudgetError: Nothing fits, the budget is not above 0, the batch has no rows, or the schedule is not there yet.
    """
    if budget_bytes is not None and budget_bytes <= 0:
        raise BudgetError(f"a budget of {budget_bytes} bytes holds nothing", hint="give for example `--budget 12MiB`")
    if batch_size < 1:
        raise BudgetError(f"a batch of {batch_size} rows cannot be trained on, needed 1 or more")
    if kind != "sweep":
        raise BudgetError(f"schedule `{kind}` is not available", hint="use `sweep`")
    names = _trained_names(manifest, trained)
    candidates = [
        _plan_at(manifest, micro_batch, budget_bytes, batch_size, names, row_bytes, threads)
        for micro_batch in micro_batches(batch_size)
    ]
    for candidate in candidates:
        if budget_bytes is None or candidate.planned_bytes <= budget_bytes:
            return candidate
    raise _nothing_fits(candidates, budget_bytes or 0)


def smallest_budget(
    manifest: Manifest,
    *,
    batch_size: int,
    trained: Collection[str] | None = None,
    row_bytes: int = 0,
    threads: int = 1,
) -> int:
    """The smallest budget for which `plan` finds a plan; its arguments are those of `plan`."""
    names = _trained_names(manifest, trained)
    return min(
        _plan_at(manifest, micro_batch, None, batch_size, names, row_bytes, threads).planned_bytes
        for micro_batch in micro_batches(batch_size)
    )


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


def _plan_at(
    manifest: Manifest,
    micro_batch: int,
    budget_bytes: int | None,
    batch_size: int,
    trained: frozenset[str],
    row_bytes: int,
    threads: int,
) -> Plan:
    last = max((index for index, block in enumerate(manifest.blocks) if block.name in trained), default=-1)
    blocks = []
    for index, block in enumerate(manifest.blocks):
        updates = block.name in trained
        graphs = _graphs(updates, whole_batch=micro_batch == batch_size) if index <= last else ()
        blocks.append(_plan_block(block, updates, micro_batch, graphs, threads))
    return Plan(
        schedule="sweep",
        batch_size=batch_size,
        micro_batch=micro_batch,
        budget_bytes=budget_bytes,
        blocks=tuple(blocks),
        buffer_bytes=buffer_bytes(manifest, micro_batch),
        row_bytes=row_bytes,
        process_bytes=PROCESS_BYTES,
    )


def _trained_names(manifest: Manifest, trained: Collection[str] | None) -> frozenset[str]:
    return frozenset(block.name for block in manifest.blocks) if trained is None else frozenset(trained)


def _graphs(trained: bool, *, whole_batch: bool) -> tuple[GraphKind, ...]:
    if not trained:
        return ("forward",)
    return ("step",) if whole_batch else ("accumulate", "apply")


def _plan_block(
    block: BlockSpec, trained: bool, micro_batch: int, graphs: tuple[GraphKind, ...], threads: int
) -> BlockPlan:
    used = [block.graphs[kind] for kind in graphs]
    forward = block.graphs["forward"]
    return BlockPlan(
        block=block.name,
        trained=trained,
        micro_batch=micro_batch,
        graphs=graphs,
        weight_bytes=block.weight_bytes,
        gradient_bytes=block.parameter_bytes if "accumulate" in graphs else 0,
        state_bytes=block.state_bytes if trained else 0,
        session_bytes=sum(session_bytes(graph, threads) for graph in used),
        transient_bytes=max((graph.transient_bytes(micro_batch) for graph in used), default=0),
        forward_session_bytes=session_bytes(forward, threads),
        forward_transient_bytes=forward.transient_bytes(micro_batch),
    )


def _nothing_fits(candidates: list[Plan], budget_bytes: int) -> BudgetError:
    smallest = min(candidates, key=lambda candidate: candidate.planned_bytes)
    last = candidates[-1]
    largest = max(last.blocks, key=lambda block: block.planned_bytes)
    needed = smallest.planned_bytes
    return BudgetError(
        f"the run needs {needed:,} bytes, the budget is {budget_bytes:,}; most goes to block `{largest.block}`: "
        f"{format_bytes(largest.planned_bytes)} at micro-batch {last.micro_batch}",
        hint=f"give it `--budget {-(-needed // MIB)}MiB`; the smallest budget that works is {needed:,} bytes",
    )
