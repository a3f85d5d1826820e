"""The whole network as one inference model, laid out so that weights can be written into it without onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgeff.export.ir import Graph, Rows, Value
from edgeff.export.lowering import TRANSLATIONS, lower
from edgeff.export.tracing import block_tensors, trace_block
from edgeff.manifest import TensorSpec

_TORCH_DTYPES = {"float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class InferenceModel:
    """A serialised model and where its weights stand.

    Attributes:
        content: The ONNX file: raw rows `x` (N, ...) in; `log_probabilities` (N, K) float32 and `label` (N,) int64 out.
        offsets: Start of each weight's little-endian bytes in `content`, by `<block>.<name>`.
    """

    content: bytes
    offsets: Mapping[str, int]


def inference_model(
    blocks: Sequence[nn.Module],
    *,
    name: str,
    raw: TensorSpec,
    steps: Sequence[Mapping[str, object]],
    features: TensorSpec,
    fusion: Sequence[float],
) -> InferenceModel:
    """Preprocessing, all blocks, fusion and label as one graph, with the blocks' weights inside.

    Args:
        blocks: In order.
        name: Of the graph.
        raw: One raw row.
        steps: Of `edgeff.preprocess`.
        features: One row after preprocessing.
        fusion: Weight of each block's log-probabilities; normalised again after the sum.
    """
    graph = Graph()
    value = preprocess(graph, graph.input("x", (Rows(1), *raw.shape), raw.dtype), steps)
    weights: dict[str, np.ndarray] = {}
    scores: list[Value] = []
    last = max((index for index, weight in enumerate(fusion) if weight), default=0)
    for index, (block, weight) in enumerate(zip(blocks[: last + 1], fusion, strict=False)):
        wanted = [*(["handover"] if index < last else []), *(["log_probabilities"] if weight else [])]
        found = _forward(graph, block, value, features.dtype if index == 0 else "float32", wanted, weights)
        value = found.get("handover", value)
        scores += [found["log_probabilities"] * float(weight)] if weight else []
    total = sum(scores[1:], scores[0])
    fused = graph.node("LogSoftmax", [total], [(total.shape, "float32")], {"axis": 1})[0]
    graph.output("log_probabilities", fused)
    label = graph.node("ArgMax", [total], [((Rows(1),), "int64")], {"axis": 1, "keepdims": 0})[0]
    graph.output("label", label)
    return _with_weights(graph.to_model(name), weights)


def _forward(
    graph: Graph, block: nn.Module, x: Value, dtype: str, wanted: Sequence[str], weights: dict[str, np.ndarray]
) -> dict[str, Value]:
    traced = trace_block(block, input_dtype=_TORCH_DTYPES[dtype], native=frozenset(TRANSLATIONS))
    parameters, buffers = block_tensors(block)
    inputs = {"x": x, "y": graph.input("y", (Rows(1),), "int64"), "row_weight": graph.input("row_weight", (Rows(1),))}
    for role, tensors in (("parameter", parameters), ("buffer", buffers)):
        for own, tensor in tensors.items():
            key = f"{block.name}.{own}"
            weights[key] = tensor.contiguous().numpy()
            inputs[f"{role}.{own}"] = graph.input(key, tuple(tensor.shape), weights[key].dtype.name)
    return lower(traced, graph, inputs, wanted, block=str(block.name))


def preprocess(graph: Graph, x: Value, steps: Sequence[Mapping[str, object]]) -> Value:
    """The steps of `edgeff.preprocess` as nodes.

    Raises:
        ValueError: An unknown kind of step.
    """
    for step in steps:
        kind = step["kind"]
        if kind == "affine":
            x = _affine(graph, graph.cast(x, "float32"), step)
        elif kind == "transpose":
            x = graph.transpose(x, [0, *(1 + axis for axis in step["axes"])])  # type: ignore[attr-defined]
        elif kind == "reshape":
            x = graph.reshape(x, (Rows(1), *step["shape"]))  # type: ignore[misc]
        elif kind == "cast":
            x = graph.cast(x, str(step["dtype"]))
        else:
            raise ValueError(f"unknown preprocessing step `{kind}`")
    return x


def _affine(graph: Graph, x: Value, step: Mapping[str, object]) -> Value:
    """(x - offset) * scale, in float32, in this order: the device computes the same bits."""
    axis = step.get("axis")
    numbers = [np.asarray(step[key], np.float32) for key in ("offset", "scale")]
    if axis is not None:
        shape = [-1 if position == int(axis) + 1 else 1 for position in range(len(x.shape))]  # type: ignore[call-overload]
        numbers = [number.reshape(shape) for number in numbers]
    offset, scale = (graph.constant(number) for number in numbers)
    return graph.elementwise("Mul", graph.elementwise("Sub", x, offset), scale)


def _with_weights(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> InferenceModel:
    """Turn weight inputs into initialisers and find where their bytes come to stand."""
    kept = [value for value in model.graph.input if value.name not in weights]
    stored = [value.name for value in model.graph.input if value.name in weights]
    tensors = {name: numpy_helper.from_array(weights[name], name) for name in stored}
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(tensors.values())
    content = model.SerializeToString(deterministic=True)
    return InferenceModel(content, {name: _offset(content, tensor) for name, tensor in tensors.items()})


def _offset(content: bytes, tensor: onnx.TensorProto) -> int:
    """Where a tensor's raw bytes start: they end its serialised form, which holds its name and so occurs once."""
    serialised = tensor.SerializeToString(deterministic=True)
    if content.count(serialised) != 1 or not serialised.endswith(tensor.raw_data):
        raise AssertionError(f"weight `{tensor.name}` cannot be located in the inference model")
    return content.index(serialised) + len(serialised) - len(tensor.raw_data)
