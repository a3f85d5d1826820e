"""A block compiled, checked against torch, and described as the manifest describes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import nn

from edgeff.export.arena import ROWS, UPDATED_NUMBERS, arena_line
from edgeff.export.check import Check, check_block, compares_rows
from edgeff.export.cost import traffic_of, work_of
from edgeff.export.graphs import BlockGraphs, compile_block
from edgeff.export.inplace import hands_over_in_place
from edgeff.export.memory import transient
from edgeff.export.openable import check_openable
from edgeff.manifest import BlockSpec, GraphKind, GraphSpec, OptimizerSpec, TensorSpec
from edgeff.onnx_limits import MAX_GRAPH_BYTES
from edgeff.optimizer import slots
from edgeff.providers import CPU

# Where rows are compared with one another: enough of them that most have another of their class beside them, few enough
# for a small device.
ROWS_TOGETHER = 32


@dataclass(frozen=True)
class CompiledBlock:
    """A block that is ready to be written.

    Attributes:
        spec: For the manifest.
        graphs: What was compiled.
        check: What the comparison with torch found.
        files: The graphs' files by path inside the artifact.
    """

    spec: BlockSpec
    graphs: BlockGraphs
    check: Check
    files: Mapping[str, bytes]


def compile_checked(
    block: nn.Module,
    *,
    optimizer: OptimizerSpec,
    input_dtype: str,
    classes: int,
    last: bool,
    dropout: bool,
    target: str = CPU,
    rows_together: int = ROWS_TOGETHER,
) -> CompiledBlock:
    """Compile a block, compare it with torch, and describe it.

    Args:
        block: With `name`, `input_shape`, `handover_shape` and `describe()`.
        optimizer: What the device updates with.
        input_dtype: Of the block's input rows.
        classes: How many labels there are.
        last: Nothing follows it.
        dropout: Keep dropout on in training graphs.
        target: Whose forms the graphs are in.
        rows_together: Rows that a block with a relation compares with one another.

    Raises:
        ExportError: It cannot be lowered, or does not pass its checks.
    """
    graphs = compile_block(
        block, optimizer_spec=optimizer, input_dtype=input_dtype, last=last, dropout=dropout, target=target
    )
    paths: dict[GraphKind, str] = {kind: f"blocks/{block.name}.{kind}.onnx" for kind in graphs.models}
    return described(
        block,
        graphs,
        paths,
        optimizer=optimizer,
        input_dtype=input_dtype,
        classes=classes,
        last=last,
        rows_together=rows_together,
    )


def described(
    block: nn.Module,
    graphs: BlockGraphs,
    paths: Mapping[GraphKind, str],
    *,
    optimizer: OptimizerSpec,
    input_dtype: str,
    classes: int,
    last: bool,
    rows_together: int = ROWS_TOGETHER,
) -> CompiledBlock:
    """Compare graphs with torch and describe them.

    Args:
        block: What they were compiled from.
        graphs: The compiled ones.
        paths: Where each graph's file is to stand in the artifact.
        optimizer: What the device updates with.
        input_dtype: Of the block's input rows.
        classes: How many labels there are.
        last: Nothing follows it.
        rows_together: Rows that a block with a relation compares with one another.

    Raises:
        ExportError: They do not pass their checks, or would not open on a device.
    """
    files = {paths[kind]: serialised(model) for kind, model in graphs.models.items()}
    check_openable(files, limit=MAX_GRAPH_BYTES)
    check = check_block(block, graphs, spec=optimizer, input_dtype=input_dtype, classes=classes)
    spec = BlockSpec(
        name=str(block.name),
        input=TensorSpec("x", tuple(block.input_shape), input_dtype),  # type: ignore[arg-type]
        handover=None if last else TensorSpec("handover", tuple(block.handover_shape)),  # type: ignore[arg-type]
        parameters=_specs(graphs.parameters),
        buffers=_specs(graphs.buffers),
        slots=slots(optimizer),
        graphs={kind: graph_spec(kind, model, paths[kind]) for kind, model in graphs.models.items()},
        objective=block.describe(),  # type: ignore[operator]
        rows_together=rows_together if compares_rows(block) else 1,
        handover_in_place=not last and hands_over_in_place(graphs.models.values()),
    )
    return CompiledBlock(spec, graphs, check, files)


def _specs(tensors: Mapping[str, torch.Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    )


def graph_spec(kind: GraphKind, model: onnx.ModelProto, file: str) -> GraphSpec:
    """What a manifest says of a graph, which has `value_info` for its inner tensors."""
    return GraphSpec(
        file=file,
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
        nodes=len(model.graph.node),
        transient=transient(model),
        arena=arena_line(model, UPDATED_NUMBERS if kind == "apply" else ROWS),
        work=work_of(model),
        traffic=traffic_of(model),
    )


def serialised(model: onnx.ModelProto, *, described: Collection[str] = ()) -> bytes:
    """The file: shapes of inner tensors were for the memory model and are left out, but for those of `described`."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    kept = [value for value in model.graph.value_info if value.name in described]
    del bare.graph.value_info[:]
    bare.graph.value_info.extend(kept)
    content: bytes = bare.SerializeToString(deterministic=True)
    return content


__all__ = ["CompiledBlock", "compile_checked", "described", "graph_spec", "serialised"]
