"""Small artifacts whose graphs are written by hand, with the same arithmetic in numpy beside them.

A block is a linear softmax classifier: scores = x w + b + shift, hand-over = tanh(scores), loss = cross-entropy.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from edgeff.artifact import open_artifact, write_artifact
from edgeff.dataset import Dataset
from edgeff.manifest import (
    BlockSpec,
    CheckResults,
    GraphSpec,
    InferenceSpec,
    Line,
    Manifest,
    Moment,
    OptimizerSpec,
    ReplaySpec,
    TensorSpec,
    TrainingDefaults,
    Work,
)
from edgeff.optimizer import slots

FEATURES, CLASSES = 6, 4
OFFSET, SCALE = 0.25, 2.0  # of the preprocessing step
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
_CONSTANTS = {
    "depth": np.array(CLASSES, np.int64),
    "off_on": np.array([0, 1], np.float32),
    "axis_0": np.array([0], np.int64),
    "axis_1": np.array([1], np.int64),
    "two": np.array(2, np.int64),
}


@dataclass(frozen=True)
class Tiny:
    """What a tiny artifact is made of."""

    blocks: int = 2
    momentum: float = 0.9
    seeded: bool = False  # an even `seed` input turns the gradient off
    replay_rows: int = 10
    fusion: tuple[float, ...] = (1.0, 0.5)
    classes: tuple[str, ...] = field(default=("a", "b", "c", "d"))

    @property
    def optimizer(self):
        return OptimizerSpec("sgd", {"momentum": self.momentum, "weight_decay": 0.0})

    @property
    def names(self):
        return [f"block{index + 1}" for index in range(self.blocks)]


# --- graphs ---


def graph_model(tiny, index, kind):
    """One of the four graphs of a block, as a model whose inputs and outputs are named by the contract."""
    last = index == tiny.blocks - 1
    nodes = [] if kind == "apply" else _forward_nodes(last)
    outputs = [] if kind == "apply" or last else ["handover"]
    outputs += [] if kind == "apply" else ["log_probabilities"]
    if kind in ("step", "accumulate"):
        nodes += _gradient_nodes(tiny)
        outputs = ["loss", *outputs]
    if kind == "apply":
        nodes, outputs = _update_nodes(tiny, "", "gradient")
    for name in ("w", "b"):
        if kind == "accumulate":
            nodes.append(_node("Add", [f"gradient.{name}", f"g_{name}"], f"new.gradient.{name}"))
            outputs.append(f"new.gradient.{name}")
        elif kind == "step":
            more, names = _update_nodes(tiny, f".{name}", f"g_{name}")
            nodes += more
            outputs += names
    return _model(tiny, index, kind, nodes, outputs)


def _node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def _forward_nodes(last):
    nodes = [
        _node("Gemm", ["x", "parameter.w", "parameter.b"], "linear"),
        _node("Add", ["linear", "buffer.shift"], "scores"),
        _node("LogSoftmax", ["scores"], "log_probabilities", axis=1),
    ]
    return nodes if last else [*nodes, _node("Tanh", ["scores"], "handover")]


def _gradient_nodes(tiny):
    nodes = [
        _node("OneHot", ["y", "depth", "off_on"], "target", axis=-1),
        _node("Mul", ["log_probabilities", "target"], "picked"),
        _node("ReduceSum", ["picked", "axis_1"], "row_log", keepdims=0),
        _node("Mul", ["row_log", "row_weight"], "weighted"),
        _node("ReduceSum", ["weighted"], "sum_log", keepdims=0),
        _node("Neg", ["sum_log"], "loss"),
        _node("Exp", ["log_probabilities"], "probabilities"),
        _node("Sub", ["probabilities", "target"], "error"),
        _node("Unsqueeze", ["row_weight", "axis_1"], "column"),
        _node("Mul", ["error", "column"], "d_plain" if tiny.seeded else "d"),
    ]
    if tiny.seeded:
        nodes += [
            _node("Mod", ["seed", "two"], "odd"),
            _node("Cast", ["odd"], "kept", to=TensorProto.FLOAT),
            _node("Mul", ["d_plain", "kept"], "d"),
        ]
    return [*nodes, _node("Gemm", ["x", "d"], "g_w", transA=1), _node("ReduceSum", ["d", "axis_0"], "g_b", keepdims=0)]


def _update_nodes(tiny, name, gradient):
    moved, outputs, nodes = gradient, [f"new.parameter{name}"], []
    if tiny.momentum:
        moved = f"new.state.velocity{name}"
        outputs.append(moved)
        momentum = _node("Constant", [], f"momentum_{name}", value_float=tiny.momentum)
        nodes = [
            momentum,
            _node("Mul", [f"state.velocity{name}", f"momentum_{name}"], f"kept_{name}"),
            _node("Add", [f"kept_{name}", gradient], moved),
        ]
    nodes.append(_node("Mul", ["rate.learning_rate", moved], f"step_{name}"))
    nodes.append(_node("Sub", [f"parameter{name}", f"step_{name}"], f"new.parameter{name}"))
    return nodes, outputs


def _model(tiny, index, kind, nodes, outputs):
    made = {name for node in nodes for name in node.output}
    read = list(dict.fromkeys(name for node in nodes for name in node.input))
    constants = {name: _CONSTANTS[name] for name in read if name in _CONSTANTS}
    inputs = [name for name in read if name not in made and name not in constants]
    graph = helper.make_graph(
        nodes,
        kind,
        [_value(tiny, index, name) for name in inputs],
        [_value(tiny, index, name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _value(tiny, index, name):
    width = FEATURES if index == 0 else CLASSES
    plain = name.removeprefix("new.")
    shapes = {
        "x": ["N", width],
        "y": ["N"],
        "row_weight": ["N"],
        "handover": ["N", CLASSES],
        "log_probabilities": ["N", CLASSES],
        "buffer.shift": [CLASSES],
        **{key: ["N"] for key in ("parameter", "gradient", "state.velocity")},
    }
    shape = shapes.get(plain, [])
    if plain.endswith(".w"):
        shape = [width, CLASSES]
    elif plain.endswith(".b"):
        shape = [CLASSES]
    dtype = "int64" if plain in ("y", "seed") else "float32"
    return helper.make_tensor_value_info(name, _TYPES[dtype], shape)


# --- the artifact ---


def initial_weights(tiny, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for index, name in enumerate(tiny.names):
        width = FEATURES if index == 0 else CLASSES
        found[f"{name}.w"] = rng.normal(size=(width, CLASSES)).astype(np.float32) * 0.3
        found[f"{name}.b"] = rng.normal(size=CLASSES).astype(np.float32) * 0.1
        found[f"{name}.shift"] = rng.normal(size=CLASSES).astype(np.float32) * 0.1
    return found


def block_spec(tiny, index):
    name = tiny.names[index]
    last = index == tiny.blocks - 1
    width = FEATURES if index == 0 else CLASSES
    graphs = {kind: _graph_spec(tiny, index, kind) for kind in ("step", "accumulate", "apply", "forward")}
    return BlockSpec(
        name=name,
        input=TensorSpec("x", (width,)),
        handover=None if last else TensorSpec("handover", (CLASSES,)),
        parameters=(TensorSpec("w", (width, CLASSES)), TensorSpec("b", (CLASSES,))),
        buffers=(TensorSpec("shift", (CLASSES,)),),
        slots=slots(tiny.optimizer),
        graphs=graphs,
        objective={"objective": "cross-entropy"},
    )


def _graph_spec(tiny, index, kind):
    model = graph_model(tiny, index, kind)
    return GraphSpec(
        file=f"blocks/{tiny.names[index]}.{kind}.onnx",
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
        nodes=len(model.graph.node),
        transient=(Moment(0, 8),) if kind == "apply" else (Moment(256, 40 * CLASSES), Moment(0, 48 * CLASSES)),
        work=Work(0, 4 * FEATURES * CLASSES),
        traffic=Line(1024, 512),
    )


def make_manifest(tiny, offsets=None):
    return Manifest(
        edgeff_version="0.1.0",
        name="tiny",
        input=TensorSpec("x", (FEATURES,)),
        preprocessing=({"kind": "affine", "offset": OFFSET, "scale": SCALE},),
        features=TensorSpec("features", (FEATURES,)),
        classes=tiny.classes,
        fusion=tiny.fusion[: tiny.blocks],
        optimizer=tiny.optimizer,
        training=TrainingDefaults(batch_size=8, epochs=3, learning_rate=0.05),
        blocks=tuple(block_spec(tiny, index) for index in range(tiny.blocks)),
        weights="weights.safetensors",
        inference=InferenceSpec("inference.onnx", offsets or {}),
        replay=ReplaySpec("replay.safetensors", tiny.replay_rows) if tiny.replay_rows else None,
        checks=CheckResults((3,), dict.fromkeys(tiny.names, 0.0), 1e-5),
        files={},
    )


def inference_content(tiny, weights):
    """The whole network in one model, and where the bytes of each weight stand in it."""
    constants = {"offset": np.array(OFFSET, np.float32), "scale": np.array(SCALE, np.float32)}
    nodes = [_node("Sub", ["x", "offset"], "centred"), _node("Mul", ["centred", "scale"], "row_0")]
    for index, name in enumerate(tiny.names):
        constants[f"fusion_{index}"] = np.array(tiny.fusion[index], np.float32)
        nodes += [
            _node("Gemm", [f"row_{index}", f"{name}.w", f"{name}.b"], f"linear_{index}"),
            _node("Add", [f"linear_{index}", f"{name}.shift"], f"scores_{index}"),
            _node("LogSoftmax", [f"scores_{index}"], f"log_{index}", axis=1),
            _node("Mul", [f"log_{index}", f"fusion_{index}"], f"part_{index}"),
            _node("Tanh", [f"scores_{index}"], f"row_{index + 1}"),
        ]
    nodes.append(_node("Sum", [f"part_{index}" for index in range(tiny.blocks)], "total"))
    nodes.append(_node("LogSoftmax", ["total"], "log_probabilities", axis=1))
    nodes.append(_node("ArgMax", ["total"], "label", axis=1, keepdims=0))
    tensors = {name: numpy_helper.from_array(array, name) for name, array in {**constants, **weights}.items()}
    graph = helper.make_graph(
        nodes,
        "inference",
        [_value(tiny, 0, "x")],
        [
            _value(tiny, 0, "log_probabilities"),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        ],
        list(tensors.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content = model.SerializeToString(deterministic=True)
    offsets = {}
    for name in weights:
        stored = tensors[name].SerializeToString(deterministic=True)
        offsets[name] = content.index(stored) + len(stored) - len(tensors[name].raw_data)
    return content, offsets


def write_tiny(path, tiny=None, *, weights=None, spoil=None):
    """Write an artifact and open it; `spoil` maps a file to bytes that it gets instead."""
    tiny = tiny or Tiny()
    weights = weights or initial_weights(tiny)
    content, offsets = inference_content(tiny, weights)
    files = {"weights.safetensors": safetensors.numpy.save(weights), "inference.onnx": content}
    if tiny.replay_rows:
        x, y = make_rows(tiny.replay_rows, seed=5)
        files["replay.safetensors"] = safetensors.numpy.save({"x": x, "y": y})
    for index in range(tiny.blocks):
        for graph in (kind for kind in ("step", "accumulate", "apply", "forward")):
            model = graph_model(tiny, index, graph)
            files[f"blocks/{tiny.names[index]}.{graph}.onnx"] = model.SerializeToString(deterministic=True)
    write_artifact(make_manifest(tiny, offsets), files | (spoil or {}), Path(path))
    return open_artifact(Path(path))


# --- rows ---


def make_rows(rows, seed=0):
    """Rows of four overlapping clouds and their labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES)) * 1.2
    y = rng.permutation(np.arange(rows) % CLASSES).astype(np.int64)
    x = (centres[y] + rng.normal(size=(rows, FEATURES))).astype(np.float32)
    return x, y


def make_dataset(rows=40, seed=1, name="demo"):
    x, y = make_rows(rows, seed)
    return Dataset(name, x, y)


# --- the same in numpy ---


class Oracle:
    """Trains the same network with numpy, in float64."""

    def __init__(self, tiny, weights):
        self.tiny = tiny
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.velocity = {name: np.zeros_like(array) for name, array in self.weights.items()}

    def scores(self, x):
        """Log-probabilities (N, K) of each block, and what each block takes."""
        rows, logs, inputs = (x.astype(np.float64) - OFFSET) * SCALE, [], []
        for name in self.tiny.names:
            inputs.append(rows)
            scores = rows @ self.weights[f"{name}.w"] + self.weights[f"{name}.b"] + self.weights[f"{name}.shift"]
            logs.append(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
            rows = np.tanh(scores)
        return logs, inputs

    def fused(self, x):
        logs, _ = self.scores(x)
        total = sum(weight * log for weight, log in zip(self.tiny.fusion, logs, strict=False))
        return total - np.log(np.exp(total).sum(axis=1, keepdims=True))

    def update(self, x, y, learning_rate, blocks=None, keep=None, factors=None):
        """One batch; returns the loss of each trained block before it.

        `keep` masks rows out of the gradient, `factors` has by block what its learning rate is multiplied by.
        """
        logs, inputs = self.scores(x)
        losses = {}
        for name, log, rows in zip(self.tiny.names, logs, inputs, strict=True):
            if blocks is not None and name not in blocks:
                continue
            target = np.eye(CLASSES)[y]
            losses[name] = -(log * target).sum() / len(y)
            d = (np.exp(log) - target) / len(y)
            d = d if keep is None else d * keep[name][:, None]
            rate = learning_rate * (factors or {}).get(name, 1.0)
            for key, gradient in ((f"{name}.w", rows.T @ d), (f"{name}.b", d.sum(axis=0))):
                self.velocity[key] = self.tiny.momentum * self.velocity[key] + gradient
                self.weights[key] = self.weights[key] - rate * self.velocity[key]
        return losses
