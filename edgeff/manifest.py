"""The manifest: what an artifact says about itself, as frozen dataclasses.

The dataclasses are the vocabulary that `edgeff.export` (writes) and `edgeff.runtime` (reads) share; neither imports the
other. `docs/artifact-format.md` is the specification of the JSON form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FORMAT = "edgeff-artifact"
FORMAT_VERSION = 5

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
}

GraphKind = Literal["step", "accumulate", "apply", "forward", "fast_accumulate"]
GRAPH_KINDS: tuple[GraphKind, ...] = ("step", "accumulate", "apply", "forward")
# What a block may have beside them: another way to the same results, in less time and more bytes.
OPTIONAL_GRAPH_KINDS: tuple[GraphKind, ...] = ("fast_accumulate",)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (without the batch axis where there is one) and dtype (numpy's name) of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Bytes of one such tensor (of one row, where the batch axis is left out)."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Line:
    """Bytes as a straight line in the micro-batch: `fixed_bytes + row_bytes * rows`."""

    fixed_bytes: int
    row_bytes: int

    def at(self, rows: int) -> int:
        """Bytes at a micro-batch of `rows`."""
        return self.fixed_bytes + self.row_bytes * rows


@dataclass(frozen=True)
class Work:
    """Multiplications and additions of matrix products and convolutions, `fixed + per_row * rows`."""

    fixed: int
    per_row: int

    def at(self, rows: int) -> int:
        """At a micro-batch of `rows`."""
        return self.fixed + self.per_row * rows


@dataclass(frozen=True)
class HeldTensor:
    """A tensor that is alive inside a graph, or what a kernel takes for itself (`workspace`), and its bytes.

    Attributes:
        name: In the graph.
        operator: That makes it.
        fixed_bytes: Whatever the micro-batch.
        row_bytes: For each of its rows.
    """

    name: str
    operator: str
    fixed_bytes: int
    row_bytes: int

    def at(self, rows: int) -> int:
        """Bytes at a micro-batch of `rows`."""
        return self.fixed_bytes + self.row_bytes * rows


@dataclass(frozen=True)
class Moment(Line):
    """A node of a graph at work: the bytes alive beyond inputs and outputs.

    Attributes:
        tensors: The largest of them.
    """

    tensors: tuple[HeldTensor, ...] = ()


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file of a block.

    Attributes:
        file: Path inside the artifact.
        inputs: Graph input names in order. The prefix is the role: `x`, `y`, `row_weight`, `seed`, `rate.<name>`,
            `parameter.<name>`, `buffer.<name>`, `state.<slot>.<name>`, `gradient.<name>`.
        outputs: Graph output names in order: `loss`, `handover`, `log_probabilities`, `new.<input name>`. An output
            `new.<input>` may be bound to the buffer of `<input>`: the exporter proved it safe.
        nodes: Number of ONNX nodes.
        transient: Upper envelope of the bytes alive inside a run beyond inputs and outputs, one moment per stretch of
            micro-batch sizes: the bytes at a micro-batch are the largest over the moments. For `apply`, the numbers
            that it updates in one run stand for the rows.
        arena: Bytes of one stretch of memory in which all of this finds room, each tensor in the smallest free piece
            that it fits into.
        work: Arithmetic of a run.
        traffic: Bytes that its nodes read and write in a run, as if nothing stayed in a cache.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: int
    transient: tuple[Moment, ...]
    arena: Line = Line(0, 0)
    work: Work = Work(0, 0)
    traffic: Line = Line(0, 0)

    def worst_moment(self, rows: int) -> Moment:
        """When most is alive at a micro-batch of `rows`."""
        return max(self.transient, key=lambda moment: moment.at(rows), default=Moment(0, 0))

    def transient_bytes(self, rows: int) -> int:
        """Planned bytes alive inside one run at a micro-batch of `rows`, beyond inputs and outputs."""
        return max((line.at(rows) for line in self.transient), default=0)

    def largest_tensor_bytes(self, rows: int) -> int:
        """Of the tensors alive when most is, the largest, at a micro-batch of `rows`."""
        return max((one.at(rows) for one in self.worst_moment(rows).tensors), default=0)

    def arena_bytes(self, rows: int) -> int:
        """Planned bytes of the stretch in which one run at a micro-batch of `rows` finds room."""
        return max(self.arena.at(rows), self.transient_bytes(rows))


@dataclass(frozen=True)
class BlockSpec:
    """One block: what goes in and out, what it owns, and its graphs.

    Attributes:
        name: Unique in the artifact; letters, digits, `_`, `-`, `.`.
        input: One row that goes in (no batch axis).
        handover: One row that is passed on; None for the last block.
        parameters: Tensors that are trained. Stored in the weights file as `<block>.<name>`.
        buffers: Constant tensors. Stored in the weights file as `<block>.<name>`.
        slots: Optimiser state slots; each has a tensor of every parameter's shape, named `state.<slot>.<parameter>` and
            starting at zero.
        graphs: By kind.
        objective: What the block learns from, for people: names and settings of its parts.
        rows_together: Consecutive rows of a batch that `step` and `accumulate` are run on at once, because they are
            compared with one another; 1 where each row counts by itself and any number will do.
        handover_in_place: What any graph hands over may be written over the rows that it takes: it is no larger, and
            the exporter proved that nothing needs them any more by then.
    """

    name: str
    input: TensorSpec
    handover: TensorSpec | None
    parameters: tuple[TensorSpec, ...]
    buffers: tuple[TensorSpec, ...]
    slots: tuple[str, ...]
    graphs: Mapping[GraphKind, GraphSpec]
    objective: Mapping[str, object]
    rows_together: int = 1
    handover_in_place: bool = False

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the trained tensors; their gradients take as many again."""
        return sum(spec.nbytes for spec in self.parameters)

    @property
    def weight_bytes(self) -> int:
        """Bytes of trained and constant tensors."""
        return self.parameter_bytes + sum(spec.nbytes for spec in self.buffers)

    @property
    def state_bytes(self) -> int:
        """Bytes of optimiser state."""
        return self.parameter_bytes * len(self.slots)


@dataclass(frozen=True)
class OptimizerSpec:
    """Kind (`adamw`, `sgd`) and settings; `edgeff.optimizer` has the formulas."""

    kind: str
    settings: Mapping[str, float]


@dataclass(frozen=True)
class TrainingDefaults:
    """What `train-on-device` does when it is not told otherwise."""

    batch_size: int = 32
    epochs: int = 10
    learning_rate: float = 1e-3
    replay_fraction: float = 0.5
    guard_fraction: float = 0.25


@dataclass(frozen=True)
class InferenceSpec:
    """The whole network as one inference model, into which `finalize` writes weights.

    Attributes:
        file: ONNX file: raw rows in (preprocessing included); out `log_probabilities` (rows, classes), normalised, and
            `label` (rows,) int64.
        offsets: Where the little-endian bytes of each weight stand in the file, by its name in the weights file.
    """

    file: str
    offsets: Mapping[str, int]


@dataclass(frozen=True)
class ReplaySpec:
    """Raw rows of the pretraining data that travel along: tensors `x` and `y` of a safetensors file."""

    file: str
    rows: int


@dataclass(frozen=True)
class CheckResults:
    """What the exporter measured against torch autograd before it wrote anything.

    Attributes:
        micro_batches: The sizes tried.
        largest_error: Largest error by block, relative to each tensor's largest absolute value.
        tolerance: What it must not exceed.
    """

    micro_batches: tuple[int, ...]
    largest_error: Mapping[str, float]
    tolerance: float


@dataclass(frozen=True)
class FileSpec:
    """Size and sha256 (lower-case hex) of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything the device needs to know beforehand.

    Attributes:
        edgeff_version: The version that wrote it.
        name: Of the network.
        input: One raw row, as data readers deliver it.
        preprocessing: Steps of `edgeff.steps`, applied on the device.
        features: One row after preprocessing: what the first block takes.
        classes: Names, in the order of the labels 0..K-1.
        fusion: Weight of each block's log-probabilities in the prediction.
        optimizer: Kind and settings.
        training: Defaults of `train-on-device`.
        blocks: In order.
        weights: The safetensors file of parameters and buffers.
        inference: For `finalize`.
        replay: None when no rows travel along.
        checks: What was checked at export.
        files: Size and hash of every other file of the artifact.
        metadata: Facts that no reader needs.
    """

    edgeff_version: str
    name: str
    input: TensorSpec
    preprocessing: tuple[Mapping[str, object], ...]
    features: TensorSpec
    classes: tuple[str, ...]
    fusion: tuple[float, ...]
    optimizer: OptimizerSpec
    training: TrainingDefaults
    blocks: tuple[BlockSpec, ...]
    weights: str
    inference: InferenceSpec
    replay: ReplaySpec | None
    checks: CheckResults
    files: Mapping[str, FileSpec]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def last_predicting(self) -> BlockSpec:
        """The last block whose scores count in the prediction: whatever later ones learn changes none."""
        return self.blocks[max(number for number, weight in enumerate(self.fusion) if weight)]
