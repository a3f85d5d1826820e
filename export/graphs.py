"""The graphs of a block, from one trace.

Nothing in a graph tells which block it is of, so that blocks of the same layers and sizes have the same graphs, byte
for byte: an artifact holds such a graph once, and a device loads it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import nn

from edgeff.errors import ExportError
from edgeff.export import aten, group_norm, layers, pooling  # noqa: F401  (they register their translations)
from edgeff.export.dropout import dropouts
from edgeff.export.inplace import in_place_pairs, ordered_in_place
from edgeff.export.ir import Graph, Rows, Shape, Value
from edgeff.export.lowering import TRANSLATIONS, lower
from edgeff.export.order import order_for_memory
from edgeff.export.targets import for_target
from edgeff.export.tracing import TracedBlock, block_tensors, trace_block
from edgeff.manifest import GraphKind, OptimizerSpec
from edgeff.optimizer import optimizer, rates, slots
from edgeff.providers import CPU

_TORCH_DTYPES = {"float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class BlockGraphs:
    """A block's update.

    Attributes:
        models: By kind; in-place safe where they are in order.
        parameters: Trained tensors by name.
        buffers: Constant tensors that some graph reads, by name.
    """

    models: Mapping[GraphKind, onnx.ModelProto]
    parameters: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]


def compile_block(
    block: nn.Module,
    *,
    optimizer_spec: OptimizerSpec,
    input_dtype: str,
    last: bool,
    dropout: bool = False,
    target: str = CPU,
    ordered: bool = True,
) -> BlockGraphs:
    """Trace a block's update and lower it to its graphs, ready to be checked and written.

    Args:
        block: A `LocalBlock`, `ChainedBlock` or anything with their methods; float32 parameters.
        optimizer_spec: What the updates use.
        input_dtype: Of the block's input rows: `float32`, or `int64` for tokens.
        last: Leave the hand-over out: nothing follows.
        dropout: Keep the block's dropout layers on in `step` and `accumulate`, drawn from a `seed` input.
        target: Whose forms the graphs are in (`edgeff.export.targets`).
        ordered: False for graphs that are still to be rewritten; `in_order` comes after that.

    Raises:
        ExportError: The block cannot be lowered; names block and operator.
    """
    parameters, buffers = block_tensors(block)
    _check_tensors(block, parameters)
    native = frozenset(TRANSLATIONS)
    dtype = _TORCH_DTYPES[input_dtype]
    dropout = dropout and bool(dropouts(block))
    traced = trace_block(block, input_dtype=dtype, native=native, dropout=dropout)
    plain = trace_block(block, input_dtype=dtype, native=native) if dropout else traced
    shapes = _Inputs(block, parameters, buffers, input_dtype)
    models: dict[GraphKind, onnx.ModelProto] = {
        "step": _step(traced, shapes, optimizer_spec, last),
        "accumulate": _accumulate(traced, shapes, last),
        "apply": apply_model(optimizer_spec),
        "forward": _forward(plain, shapes, last),
    }
    if target == CPU and (fast := _accumulate(traced, shapes, last, fast=True)) != models["accumulate"]:
        models["fast_accumulate"] = fast
    models = {kind: for_target(model, target) for kind, model in models.items()}
    if ordered:
        models = in_order(models, block=str(block.name))
    read = {name for model in models.values() for name in (value.name for value in model.graph.input)}
    return BlockGraphs(
        models=models,
        parameters=parameters,
        buffers={name: tensor for name, tensor in buffers.items() if f"buffer.{name}" in read},
    )


def in_order(models: Mapping[GraphKind, onnx.ModelProto], *, block: str) -> dict[GraphKind, onnx.ModelProto]:
    """Copies that renew tensors in place safely, their nodes in the order that holds the fewest bytes."""
    found = {}
    for kind, model in models.items():
        found[kind] = onnx.ModelProto()
        found[kind].CopyFrom(model)
        ordered_in_place(found[kind], block=block, kind=kind)
        order_for_memory(found[kind])
    return found


def objective_model(block: nn.Module, *, input_dtype: str, last: bool, dropout: bool = False) -> onnx.ModelProto:
    """A block's forward with its loss and no gradient, for an engine that makes gradients itself.

    Args:
        block: As for `compile_block`.
        input_dtype: Of the block's input rows.
        last: Leave the hand-over out.
        dropout: Keep the block's dropout layers on, drawn from a `seed` input.

    Raises:
        ExportError: The block cannot be lowered; names block and operator.
    """
    parameters, buffers = block_tensors(block)
    dropout = dropout and bool(dropouts(block))
    native = frozenset(TRANSLATIONS)
    traced = trace_block(block, input_dtype=_TORCH_DTYPES[input_dtype], native=native, dropout=dropout)
    return _learning(traced, _Inputs(block, parameters, buffers, input_dtype), last).to_model("objective")


def in_place_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Inputs whose buffer may also be bound to their new value."""
    return tuple(source for source, _ in in_place_pairs(model))


def _check_tensors(block: nn.Module, parameters: Mapping[str, torch.Tensor]) -> None:
    if not parameters:
        raise ExportError(f"block `{block.name}` has no parameters to train", hint="join it with its neighbour")
    for name, tensor in parameters.items():
        if tensor.dtype != torch.float32:
            raise ExportError(f"block `{block.name}`: parameter `{name}` is {tensor.dtype}, needed torch.float32")


class _Inputs:
    """Declares graph inputs by role."""

    def __init__(
        self,
        block: nn.Module,
        parameters: Mapping[str, torch.Tensor],
        buffers: Mapping[str, torch.Tensor],
        input_dtype: str,
    ) -> None:
        self.block = str(block.name)
        self.parameters = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        self.buffers = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in buffers.items()}
        self.row: Shape = (Rows(1), *(int(size) for size in block.input_shape))  # type: ignore[union-attr]
        self.input_dtype = input_dtype

    def traced(self, graph: Graph) -> dict[str, Value]:
        """Everything a trace reads; the batch comes first, since other shapes are taken from it."""
        batch = {
            "x": graph.input("x", self.row, self.input_dtype),
            "y": graph.input("y", (Rows(1),), "int64"),
            "row_weight": graph.input("row_weight", (Rows(1),)),
            "seed": graph.input("seed", (), "int64"),
        }
        constant = {
            f"buffer.{name}": graph.input(f"buffer.{name}", shape, dtype)
            for name, (shape, dtype) in self.buffers.items()
        }
        return batch | self.of_parameters(graph, "parameter") | constant

    def of_parameters(self, graph: Graph, role: str) -> dict[str, Value]:
        """One input per parameter, of its shape."""
        return {f"{role}.{name}": graph.input(f"{role}.{name}", shape) for name, shape in self.parameters.items()}


def _learning_outputs(traced: TracedBlock, last: bool) -> list[str]:
    return [name for name in ("loss", "handover", "log_probabilities") if not (last and name == "handover")]


def _step(traced: TracedBlock, inputs: _Inputs, spec: OptimizerSpec, last: bool) -> onnx.ModelProto:
    graph = Graph()
    gradients = [f"gradient.{name}" for name in inputs.parameters]
    outputs = _learning_outputs(traced, last)
    found = lower(traced, graph, inputs.traced(graph), [*outputs, *gradients], block=inputs.block)
    for name in outputs:
        graph.output(name, found[name])
    _emit_updates(graph, inputs, spec, {name: found[f"gradient.{name}"] for name in inputs.parameters})
    return graph.to_model("step")


def _accumulate(traced: TracedBlock, inputs: _Inputs, last: bool, *, fast: bool = False) -> onnx.ModelProto:
    graph = Graph(fast=fast)
    gradients = [f"gradient.{name}" for name in inputs.parameters]
    outputs = _learning_outputs(traced, last)
    found = lower(traced, graph, inputs.traced(graph), [*outputs, *gradients], block=inputs.block)
    for name in outputs:
        graph.output(name, found[name])
    for name in gradients:
        # The sum has the shape in which its part comes out, so that one node makes and adds it.
        own = graph.product(found[name])
        graph.output(f"new.{name}", graph.plus(graph.input(name, own.shape), own))
    return graph.to_model("accumulate")


def apply_model(spec: OptimizerSpec) -> onnx.ModelProto:
    """The optimiser's update of any run of numbers, (N,): the runtime gives it a block's tensors piece by piece.

    So its temporaries are as small as the pieces, whatever the block, and every block has the same graph.
    """
    graph = Graph()
    roles = ["parameter", "gradient", *(f"state.{slot}" for slot in slots(spec))]
    values = {role: graph.input(role, (Rows(1),)) for role in roles}
    scalars = {name: graph.input(f"rate.{name}", ()) for name in rates(spec, 1.0, 1)}
    state = {slot: values[f"state.{slot}"] for slot in slots(spec)}
    new, new_state = optimizer(spec).update(values["parameter"], values["gradient"], state, scalars, spec.settings)
    graph.output("new.parameter", new)
    for slot, value in new_state.items():
        graph.output(f"new.state.{slot}", value)
    return graph.to_model("apply")


def _learning(traced: TracedBlock, inputs: _Inputs, last: bool) -> Graph:
    graph = Graph()
    outputs = _learning_outputs(traced, last)
    found = lower(traced, graph, inputs.traced(graph), outputs, block=inputs.block)
    for name in outputs:
        graph.output(name, found[name])
    return graph


def _forward(traced: TracedBlock, inputs: _Inputs, last: bool) -> onnx.ModelProto:
    graph = Graph()
    outputs = _learning_outputs(traced, last)[1:]
    found = lower(traced, graph, inputs.traced(graph), outputs, block=inputs.block)
    for name in outputs:
        graph.output(name, found[name])
    return graph.to_model("forward")


def _emit_updates(graph: Graph, inputs: _Inputs, spec: OptimizerSpec, gradients: Mapping[str, Value]) -> None:
    """The optimiser's formula, run on graph values: every arithmetic operator emits a node."""
    scalars = {name: graph.input(f"rate.{name}", ()) for name in rates(spec, 1.0, 1)}
    parameters = inputs.of_parameters(graph, "parameter")
    state = {slot: inputs.of_parameters(graph, f"state.{slot}") for slot in slots(spec)}
    for name, gradient in gradients.items():
        own = {slot: values[f"state.{slot}.{name}"] for slot, values in state.items()}
        new, new_state = optimizer(spec).update(parameters[f"parameter.{name}"], gradient, own, scalars, spec.settings)
        graph.output(f"new.parameter.{name}", new)
        for slot, value in new_state.items():
            graph.output(f"new.state.{slot}.{name}", value)
