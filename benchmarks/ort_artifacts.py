"""Training artifacts for onnxruntime-training, of a whole network with the last block's scores.

Runs in `.venv-bench-ort`, on the files that `audit_files.py network` wrote:

    .venv-bench-ort/bin/python benchmarks/ort_artifacts.py FOLDER MICRO_BATCH

The graph is the best that we could give it: a fixed number of rows (its gradient of average pooling is wrong without),
layer normalisation as one operator, GroupNorm by it (which it can differentiate), equal constants stored once, and the
gradient of ReLU from its output, so that its input need not be kept.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from audit_protocol import map_shape
from onnx import TensorProto, helper, numpy_helper
from torch_stub import install

install()
from onnxruntime.training import artifacts  # noqa: E402

# The newest that onnxruntime 1.19.2 reads.
_IR_VERSION, _OPSET = 10, 17
Operator = Mapping[str, Any]


class Graph:
    """A forward graph under construction.

    Attributes:
        weights: By name, from the network's file.
        shape: Of a row of the latest activation; signals are maps of height 1.
    """

    def __init__(self, weights: Mapping[str, Any], shape: Sequence[int]) -> None:
        self.weights = weights
        self.shape = tuple(shape)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.trained: list[str] = []

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Append a node; its first output. The gradients of some take further ones."""
        names = [f"t{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def constant(self, values: Any, dtype: str) -> str:
        """A constant of its own: two gradients of one name would clash, wanted or not (see `share_constants`)."""
        name = f"constant{len(self.initializers)}"
        self.initializers[name] = numpy_helper.from_array(np.asarray(values, dtype), name)
        return name

    def parameter(self, name: str, shape: Sequence[int] | None = None) -> str:
        """A trained tensor."""
        array = self.weights[name]
        self.initializers[name] = numpy_helper.from_array(array if shape is None else array.reshape(shape), name)
        self.trained.append(name)
        return name

    def normalised(self, x: str, shape: Sequence[int], eps: float) -> str:
        """Layer normalisation over the last axes, of this shape, without parameters."""
        # Its gradient asks for both, and they cannot be smaller.
        ones, zeros = (self.constant(np.full(shape, value), "float32") for value in (1, 0))
        return self.node("LayerNormalization", x, ones, zeros, outputs=3, axis=-len(shape), epsilon=eps)


def conv(graph: Graph, x: str, operator: Operator) -> str:
    shape = graph.weights[operator["weight"]].shape
    kernel = shape[2:] if len(shape) == 4 else (1, shape[2])
    pads = [*operator["padding"], *operator["padding"]]
    weight = graph.parameter(operator["weight"], (*shape[:2], *kernel))
    spatial = [
        (length + 2 * pad - size) // stride + 1
        for length, pad, size, stride in zip(
            graph.shape[1:], operator["padding"], kernel, operator["stride"], strict=True
        )
    ]
    graph.shape = (shape[0], *spatial)
    bias = graph.parameter(operator["bias"])
    settings = {"kernel_shape": kernel, "pads": pads, "strides": operator["stride"], "group": operator["groups"]}
    return graph.node("Conv", x, weight, bias, **settings)


def linear(graph: Graph, x: str, operator: Operator) -> str:
    weight, bias = graph.parameter(operator["weight"]), graph.parameter(operator["bias"])
    if len(graph.shape) > 1:
        x = graph.node("Flatten", x)
    graph.shape = (graph.weights[operator["weight"]].shape[0],)
    return graph.node("Gemm", x, weight, bias, transB=1)


def group_norm(graph: Graph, x: str, operator: Operator) -> str:
    groups, channels = operator["groups"], graph.shape[0]
    size = math.prod(graph.shape) // groups
    grouped = graph.node("Reshape", x, graph.constant([0, groups, size], "int64"))
    normal = graph.normalised(grouped, (size,), operator["eps"])
    normal = graph.node("Reshape", normal, graph.constant([0, *graph.shape], "int64"))
    weight, bias = (graph.parameter(operator[key], (channels, 1, 1)) for key in ("weight", "bias"))
    return graph.node("Add", graph.node("Mul", normal, weight), bias)


def pool(kind: str, outputs: int) -> Callable[[Graph, str, Operator], str]:
    def build(graph: Graph, x: str, operator: Operator) -> str:
        kernel = operator["kernel"]
        spatial = [length // size for length, size in zip(graph.shape[1:], kernel, strict=True)]
        graph.shape = (graph.shape[0], *spatial)
        if math.prod(kernel) == 1:
            return x
        return graph.node(kind, x, outputs=outputs, kernel_shape=kernel, strides=kernel)

    return build


def temperature(graph: Graph, x: str, operator: Operator) -> str:
    span = graph.constant(operator["maximum"] - operator["minimum"], "float32")
    share = graph.node("Sigmoid", graph.parameter(operator["alpha"]))
    value = graph.node("Add", graph.node("Mul", share, span), graph.constant(operator["minimum"], "float32"))
    return graph.node("Div", x, value)


OPERATORS: Mapping[str, Callable[[Graph, str, Operator], str]] = {
    "conv": conv,
    "linear": linear,
    "group_norm": group_norm,
    "layer_norm": lambda graph, x, operator: graph.normalised(x, graph.shape, operator["eps"]),
    "max_pool": pool("MaxPool", 2),
    "avg_pool": pool("AveragePool", 1),
    "relu": lambda graph, x, operator: graph.node("Relu", x),
    "temperature": temperature,
}


def forward_model(
    network: Mapping[str, Any], weights: Mapping[str, Any], rows: int
) -> tuple[onnx.ModelProto, list[str]]:
    """Rows to scores, and the names of what is trained."""
    shape = map_shape(network["shape"])
    graph = Graph(weights, shape)
    x = "x"
    for operator in (operator for block in network["blocks"] for operator in block):
        x = OPERATORS[operator["op"]](graph, x, operator)
    x = graph.node("Identity", x)
    graph.nodes[-1].output[0] = "scores"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, *shape])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, network["classes"]])]
    made = helper.make_graph(graph.nodes, "whole", inputs, outputs, list(graph.initializers.values()))
    opset = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(made, opset_imports=opset, ir_version=_IR_VERSION), graph.trained


def improve(path: Path) -> None:
    """Store equal constants once: each layer normalisation has ones and zeros as large as a row. Free ReLU's inputs."""
    model = onnx.load(path)
    first: dict[object, str] = {}
    renamed: dict[str, str] = {}
    for tensor in list(model.graph.initializer):
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        renamed[tensor.name] = first.setdefault(key, tensor.name)
        if renamed[tensor.name] != tensor.name:
            model.graph.initializer.remove(tensor)
    rectified = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Relu"}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if node.op_type == "ReluGrad":
            node.input[1] = rectified.get(node.input[1], node.input[1])
    onnx.save(model, path)


def main(folder: Path, rows: int) -> None:
    network, target = json.loads((folder / "network.json").read_text()), folder / f"ort-{rows}"
    model, trained = forward_model(network, np.load(folder / "weights.npz"), rows)
    onnx.checker.check_model(model)
    target.mkdir()
    artifacts.generate_artifacts(
        model,
        requires_grad=trained,
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.AdamW,
        artifact_directory=str(target),
    )
    improve(target / "training_model.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
