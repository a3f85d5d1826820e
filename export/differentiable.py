"""A forward graph in operators whose gradients onnxruntime-training 1.19.2 has, and has right.

Its gradient builder knows fewer operators than onnxruntime runs, and the gradient of an average pool that it makes ends
the process where the number of rows is open. The nodes that a gradient passes are therefore written in others; each
rule gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from edgeff.errors import ExportError
from edgeff.export.rewriting import Rewriting, Rule, attributes_of


def differentiable(model: onnx.ModelProto, trained: Collection[str], *, loss: str, block: str) -> onnx.ModelProto:
    """Rewrite what stands between trained tensors and the loss.

    Args:
        model: With `value_info` for its inner tensors.
        trained: Inputs whose gradients are wanted.
        loss: Output that they are taken of.
        block: Its name, for messages.

    Raises:
        ExportError: An operator has a form that no rule covers.
    """
    passed = _passed(model.graph.node, trained, loss)
    try:
        return Rewriting(model, "differentiable").apply(_RULES, passed.__contains__)
    except _NoGradient as error:
        raise ExportError(
            f"block `{block}`: onnxruntime-training has no gradient for {error}",
            hint="leave `--engine ort-training` out: the plain graphs train it on any onnxruntime",
        ) from error


class _NoGradient(Exception):
    """Of an operator in a form that no rule covers."""

    def __init__(self, node: onnx.NodeProto, form: str) -> None:
        super().__init__(f"`{node.op_type}` {form}")


def _passed(nodes: Sequence[onnx.NodeProto], trained: Collection[str], loss: str) -> set[int]:
    """Nodes that the loss depends on and that depend on a trained tensor."""
    wanted, behind = {loss}, set()
    for index in range(len(nodes) - 1, -1, -1):
        if wanted.intersection(nodes[index].output):
            behind.add(index)
            wanted.update(nodes[index].input)
    moved, found = set(trained), set()
    for index, node in enumerate(nodes):
        if moved.intersection(node.input):
            moved.update(node.output)
            found.add(index)
    return found & behind


def _average_pool(rewriting: Rewriting, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Means over the windows, where these stand side by side."""
    attributes = attributes_of(node)
    channels, *lengths = rewriting.sizes(node.input[0])
    kernel, pads = attributes["kernel_shape"], attributes.get("pads", [0])
    side_by_side = kernel == attributes.get("strides") and not any(pads)
    if not side_by_side or any(length % size for length, size in zip(lengths, kernel, strict=True)):
        raise _NoGradient(node, "with windows that overlap, are padded or leave a rest")
    windows = [size for length, own in zip(lengths, kernel, strict=True) for size in (length // own, own)]
    apart = rewriting.tensor([rewriting.shape(node.input[0])[0], channels, *windows])
    yield helper.make_node(
        "Reshape", [node.input[0], rewriting.constant([-1, channels, *windows], "int64")], [apart], name=apart
    )
    axes = [3 + 2 * axis for axis in range(len(kernel))]
    yield helper.make_node("ReduceMean", [apart], list(node.output), name=node.name, axes=axes, keepdims=0)


def _instance_normalization(rewriting: Rewriting, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A layer normalisation over the last axis: scale and bias are the plain ones wherever the exporter writes it."""
    sizes = rewriting.sizes(node.input[0])
    scale, bias = (rewriting.values(name) for name in node.input[1:])
    if len(sizes) != 2 or scale is None or bias is None or (scale != 1).any() or bias.any():
        raise _NoGradient(node, "with a scale, or over more than one axis")
    # The gradient reads mean and deviation, and needs scale and bias in full.
    names = [rewriting.constant(np.full(sizes[-1:], value), "float32") for value in (1.0, 0.0)]
    rows = rewriting.shape(node.input[0])[0]
    inner = [rewriting.tensor([rows, sizes[0], 1]) for _ in range(2)]
    epsilon = attributes_of(node)["epsilon"]
    yield helper.make_node(
        "LayerNormalization",
        [node.input[0], *names],
        [*node.output, *inner],
        name=node.name,
        axis=-1,
        epsilon=epsilon,
    )


def _layer_normalization(rewriting: Rewriting, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """With the mean and deviation that the gradient reads."""
    shape, first = rewriting.shape(node.input[0]), int(attributes_of(node)["axis"])
    inner = [rewriting.tensor([*shape[:first], *(1 for _ in shape[first:])]) for _ in range(2)]
    found = onnx.NodeProto()
    found.CopyFrom(node)
    found.output.extend(inner)
    yield found


def _reduce_sum_square(rewriting: Rewriting, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    attributes = attributes_of(node)
    square = rewriting.tensor(rewriting.shape(node.input[0]))
    yield helper.make_node("Mul", [node.input[0], node.input[0]], [square], name=square)
    axes = rewriting.constant(attributes["axes"], "int64")
    keepdims = attributes.get("keepdims", 1)
    yield helper.make_node("ReduceSum", [square, axes], list(node.output), name=node.name, keepdims=keepdims)


def _reciprocal(rewriting: Rewriting, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    one = rewriting.constant(1.0, "float32")
    yield helper.make_node("Div", [one, node.input[0]], list(node.output), name=node.name)


_RULES: Mapping[str, Rule] = {
    "AveragePool": _average_pool,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "ReduceSumSquare": _reduce_sum_square,
    "Reciprocal": _reciprocal,
}
