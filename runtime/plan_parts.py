"""What a plan is made of, and what it is made for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeff.errors import BudgetError
from edgeff.manifest import GraphKind
from edgeff.runtime.groups import ONE_GROUP, spans

Schedule = Literal["sweep", "stage"]
Features = Literal["rerun", "float32", "float16", "uint8"]
Preference = Literal["speed", "memory"]
Updates = Literal["fused", "accumulated"]


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
        name: `split rows`, `train`, `evaluate`, `train <block>`, `features for <block>`.
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
        gradient_bytes: Gradient sums, which are there while its group learns; 0 where the micro-batch is the batch.
        state_bytes: Optimiser state.
        session_bytes: Its loaded graphs while training, `forward` among them where a group behind it makes it run
            again; those it shares with a block before it count there.
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
        groups: For `sweep`: the block that each group of blocks begins with (`edgeff.runtime.groups`).
        workers: Micro-batches under way at once while training, each in a thread of its own
            (`edgeff.runtime.workers`).
        operator_threads: Threads that one operator may use while training.
        update_threads: Threads that update weights when a batch's gradients are summed.
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
    groups: tuple[int, ...] = ONE_GROUP
    workers: int = 1
    operator_threads: int = 1
    update_threads: int = 1

    @property
    def spans(self) -> list[range]:
        """The blocks of each group."""
        return spans(self.groups, len(self.blocks))

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
        splitting_bytes: Bytes of labels and row numbers while the rows are split, before a network is in memory.
        threads: That may work at once; each has a stack in every session where it works on operators.
        workers: Micro-batches that may be under way at once, each with its part of the threads; None for what is best.
            Only where memory is kept for graphs to run in.
        operators: Threads that one operator may use while training; None for its micro-batch's part of all.
        features: For `stage`; None for files of float32 where the disk has room, else running blocks again.
        disk_bytes: What files of features may take.
        block_budgets: Bytes that a block may take, by name.
        prefer: `speed`, or `memory` for the smallest plan.
        micro_batch: Rows that run at once, in all blocks; None for what is best.
        updates: `fused`: a batch runs at once and every weight is updated as soon as its gradient is there.
            `accumulated`: gradients are summed first. None for what is best.
        returning_bytes: Program code that was given back before the start and comes back while training.
        arena: Whether memory may be kept for graphs to run in; where it may, and fits, it is.
        engine_copies: The engine has weights and optimiser state of its own beside the runtime's, and passes them on in
            a file.
        fast: Whether graphs may be taken that need less time and more bytes, where a block has any.
        uniform: Every block runs all the rows at once that go from block to block: on a device whose memory cannot be
            taken in parts.
    """

    batch_size: int
    budget_bytes: int | None = None
    schedule: Schedule | None = None
    trained: Collection[str] | None = None
    rows: int = 1
    row_bytes: int = 0
    splitting_bytes: int = 0
    threads: int = 1
    workers: int | None = None
    operators: int | None = None
    features: Features | None = None
    disk_bytes: int = 0
    block_budgets: Mapping[str, int] = field(default_factory=dict)
    prefer: Preference = "speed"
    micro_batch: int | None = None
    updates: Updates | None = None
    returning_bytes: int = 0
    arena: bool = True
    engine_copies: bool = False
    fast: bool = True
    uniform: bool = False

    @property
    def operator_threads(self) -> int:
        """Threads that one operator may use while training."""
        return self.operators or max(1, self.threads // (self.workers or 1))

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
