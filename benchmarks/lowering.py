"""Two ways from a block's update to ONNX: edgeff's own table of operators, and torch.onnx after torch.export.

Prints seconds and nodes of both for a block of the README's kind, without and with GroupNorm. The way through
torch.onnx needs rules for the backward operators that it does not know; here these are placeholders of one node each
that compute nothing useful, so its numbers are a lower bound. It needs `onnxscript`, which edgeff itself does not:
`pip install onnxscript`.

Run `.venv/bin/python benchmarks/lowering.py`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from edgeff.export.graphs import compile_block
from edgeff.export.tracing import block_tensors, gradients_function
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer, optimizer_spec, rates, slots

SPEC = optimizer_spec("adamw")
ROWS = 8


def readme_block(*, norm: bool) -> LocalBlock:
    """Convolution, GroupNorm if wanted, ReLU and max-pooling with a learned readout, for rows (24, 64)."""
    normalised = [nn.GroupNorm(4, 32)] if norm else []
    layers = nn.Sequential(nn.Conv1d(24, 32, 5, padding=2), *normalised, nn.ReLU(), nn.MaxPool1d(2))
    network = LocalNetwork([LocalBlock(layers), LocalBlock(nn.Identity())], input_shape=(24, 64), classes=6)
    return network.sequence[0].leaves()[0]


def own_table(block: LocalBlock) -> Mapping[str, int]:
    """Nodes of the four graphs that edgeff writes."""
    graphs = compile_block(block, optimizer_spec=SPEC, input_dtype="float32", last=False)
    return {kind: len(model.graph.node) for kind, model in graphs.models.items()}


def torch_onnx(block: LocalBlock) -> Mapping[str, int]:
    """Nodes of the `step` graph alone, by torch.export and torch.onnx."""
    parameters, buffers = block_tensors(block)
    names, state_slots = list(parameters), slots(SPEC)
    state = [torch.zeros_like(parameters[name]) for name in names for _ in state_slots]
    scalars = {name: torch.tensor(value) for name, value in rates(SPEC, 1e-3, 1).items()}
    local = gradients_function(block)

    def step(weights: list[Tensor], state: list[Tensor], scalars: list[Tensor], x: Tensor, y: Tensor, w: Tensor) -> Any:
        found = local(dict(zip(names, weights, strict=True)), buffers, x, y, w)
        by_name = dict(zip(rates(SPEC, 1e-3, 1), scalars, strict=True))
        out = [found["loss"], found["handover"], found["log_probabilities"]]
        for place, name in enumerate(names):
            first = place * len(state_slots)
            own = dict(zip(state_slots, state[first : first + len(state_slots)], strict=True))
            new, renewed = optimizer(SPEC).update(
                weights[place], found[f"gradient.{name}"], own, by_name, SPEC.settings
            )
            out += [new, *renewed.values()]
        return tuple(out)

    batch = (torch.randn(ROWS, *block.input_shape), torch.zeros(ROWS, dtype=torch.int64), torch.full((ROWS,), 1 / ROWS))
    arguments = (list(parameters.values()), state, list(scalars.values()), *batch)
    flat = make_fx(step, tracing_mode="symbolic")(*arguments)
    rows = torch.export.Dim("rows")
    still = tuple([None] * len(group) for group in arguments[:3])
    program = torch.export.export(flat, arguments, dynamic_shapes=(*still, {0: rows}, {0: rows}, {0: rows}))
    program = program.run_decompositions()
    exported = torch.onnx.export(program, dynamo=True, custom_translation_table=_placeholders(), verbose=False)
    assert exported is not None
    return {"step": len(list(exported.model.graph))}


def _placeholders() -> dict[Any, Callable[..., Any]]:
    """Stand-ins for the backward operators that torch.onnx has no translation for."""
    from onnxscript import opset18 as op

    aten = torch.ops.aten

    def convolution(grad: Any, x: Any, weight: Any, *_: Any, **__: Any) -> Any:
        return op.Identity(x), op.Identity(weight), op.ReduceSum(grad)

    def pool(grad: Any, x: Any, *_: Any, **__: Any) -> Any:
        return op.Identity(x)

    def group_norm(grad: Any, x: Any, mean: Any, rstd: Any, weight: Any, *_: Any, **__: Any) -> Any:
        return op.Identity(x), op.Identity(weight), op.Identity(weight)

    return {
        aten.convolution_backward.default: convolution,
        aten.max_pool2d_with_indices_backward.default: pool,
        aten.avg_pool2d_backward.default: pool,
        aten.native_group_norm_backward.default: group_norm,
    }


def timed(run: Callable[[LocalBlock], Mapping[str, int]], block: LocalBlock) -> tuple[float, Mapping[str, int]]:
    """Seconds of the second run (the first fills caches), and its nodes."""
    seconds, nodes = 0.0, {}
    for _ in range(2):
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = dict(run(block))
        seconds = time.perf_counter() - began
    return seconds, nodes


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for title, norm in (("convolution, ReLU, max-pooling", False), ("the same with GroupNorm", True)):
        print(f"{title}, adamw, torch {torch.__version__}")
        for name, run in {"own table": own_table, "torch.onnx": torch_onnx}.items():
            try:
                seconds, nodes = timed(run, readme_block(norm=norm))
            except ModuleNotFoundError as error:
                sys.exit(f"{name}: `{error.name}` is not installed")
            told = ", ".join(f"{kind} {count}" for kind, count in nodes.items())
            print(f"  {name}: {seconds:.2f} s for {len(nodes)} graph{'s' * (len(nodes) > 1)}; nodes: {told}")


if __name__ == "__main__":
    main()
