"""From a block to one flat graph of aten operators: forward, loss, and every gradient.

`torch.func` differentiates the block's own loss; `make_fx` records what that does as aten operators over fake tensors.
Nothing is computed, so tracing takes a fraction of a second whatever the model, and the batch may be any size: it is a
prime so large that a dimension is a multiple of it only if it comes from the batch. (Symbolic sizes would say the same,
but torch fixes them to a number inside `torch.func.grad` for some layers, a `Linear` over tokens among them.)
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._decomp import core_aten_decompositions
from torch._functorch import eager_transforms
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgeff.errors import ExportError
from edgeff.export.dropout import seeded_dropout
from edgeff.probe import evaluating

TRACED_ROWS = 1_000_003


@dataclass(frozen=True)
class TracedBlock:
    """A block's update as aten operators.

    Attributes:
        graph: Placeholders named by `inputs`, in order; one output node with a tuple named by `outputs`.
        inputs: `parameter.<name>`, `buffer.<name>`, `x`, `y`, `row_weight`, and `seed` when dropout is on.
        outputs: `loss`, `handover`, `log_probabilities`, `gradient.<name>`.
        constants: Tensors that the block holds without having registered them, by the name in the graph.
    """

    graph: torch.fx.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, torch.Tensor]


def block_tensors(block: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters that are trained, and constant tensors (buffers and frozen parameters), by name, detached."""
    trained = {name: p.detach() for name, p in block.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in block.named_parameters() if not p.requires_grad}
    return trained, frozen | {name: b.detach() for name, b in block.named_buffers()}


def gradients_function(block: nn.Module) -> Callable[..., dict[str, Any]]:
    """The block's local update up to the gradients, as a function of all it reads.

    Returns:
        `f(parameters, buffers, x, y, row_weight)` -> `loss` (), `handover` (N, ...), `log_probabilities` (N, K) of the
        weights given, and `gradient.<name>` of each parameter.
    """

    def gradients(
        parameters: Mapping[str, torch.Tensor],
        buffers: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        y: torch.Tensor,
        row_weight: torch.Tensor,
    ) -> dict[str, Any]:
        def local_loss(trained: dict[str, torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            handover, readings = torch.func.functional_call(block, {**trained, **buffers}, (x,))
            loss = block.loss(readings, y, row_weight)  # type: ignore[operator]
            return loss, (handover, block.log_probabilities(readings))  # type: ignore[operator]

        found, (loss, (handover, log_probabilities)) = torch.func.grad_and_value(local_loss, has_aux=True)(
            dict(parameters)
        )
        return {
            "loss": loss,
            "handover": handover,
            "log_probabilities": log_probabilities,
            **{f"gradient.{name}": value for name, value in found.items()},
        }

    return gradients


@functools.cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    """How torch makes operators of simpler ones; it goes through all of its operators to tell."""
    return dict(core_aten_decompositions())


def trace_block(
    block: nn.Module,
    *,
    input_dtype: torch.dtype,
    native: frozenset[Any],
    dropout: bool = False,
) -> TracedBlock:
    """Trace a block's forward, local loss and gradients.

    Args:
        block: A `LocalBlock` or anything with its methods.
        input_dtype: Of `x`.
        native: aten operators that the lowering knows; all others are decomposed as far as torch can.
        dropout: Leave dropout on, drawn from a `seed` input; otherwise it is off.

    Raises:
        ExportError: The block cannot be traced: its message names the block and torch's reason.
    """
    parameters, buffers = block_tensors(block)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    row = tuple(block.input_shape)  # type: ignore[arg-type]
    with mode:
        batch = (
            torch.empty((TRACED_ROWS, *row), dtype=input_dtype),
            torch.empty((TRACED_ROWS,), dtype=torch.int64),
            torch.empty((TRACED_ROWS,)),
            *((torch.empty((), dtype=torch.int64),) if dropout else ()),
        )
    arguments = (
        {name: mode.from_tensor(value) for name, value in parameters.items()},
        {name: mode.from_tensor(value) for name, value in buffers.items()},
        *batch,
    )
    outputs: list[str] = []

    def flat(*values: Any) -> tuple[torch.Tensor, ...]:
        with seeded_dropout(block, values[5]) if dropout else contextlib.nullcontext():
            found = gradients_function(block)(*values[:5])
        outputs[:] = list(found)
        return tuple(found.values())

    table = {op: rule for op, rule in _decompositions().items() if op not in native}
    try:
        with _plain_kernels(block), _first_order():
            # Operators in place become ones that are not: a change of a part of a tensor would be lost otherwise.
            pure = torch.func.functionalize(flat, remove="mutations")
            module = make_fx(pure, tracing_mode="fake", decomposition_table=table)(*arguments)
    except ExportError:
        raise
    except Exception as error:  # torch raises every kind from inside a user's forward
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"block `{block.name}` cannot be traced: {reason}",
            hint="its forward must be made of torch operators whose shapes do not depend on the data",
        ) from error
    inputs = (
        *(f"parameter.{name}" for name in parameters),
        *(f"buffer.{name}" for name in buffers),
        "x",
        "y",
        "row_weight",
        *(("seed",) if dropout else ()),
    )
    constants = {
        str(node.target): getattr(module, str(node.target)).detach().cpu()
        for node in module.graph.nodes
        if node.op == "get_attr"
    }
    return TracedBlock(graph=module.graph, inputs=inputs, outputs=tuple(outputs), constants=constants)


@contextlib.contextmanager
def _first_order() -> Iterator[None]:
    """Let `torch.func.grad` take gradients that are not to be differentiated again, for as long as a trace takes.

    It always takes differentiable ones, for which torch spells some backward operators out in many small ones.
    """
    differentiable = eager_transforms._autograd_grad
    eager_transforms._autograd_grad = lambda outputs, inputs, **_: differentiable(outputs, inputs, create_graph=False)
    try:
        yield
    finally:
        eager_transforms._autograd_grad = differentiable


@contextlib.contextmanager
def _plain_kernels(block: nn.Module) -> Iterator[None]:
    """Evaluation mode, attention as plain matrix products, no fused inference paths, for as long as a trace takes."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(block), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
