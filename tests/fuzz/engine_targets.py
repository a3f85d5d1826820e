"""Readers of what an artifact has for onnxruntime-training: the manifest, and graphs with operators of its own.

The graphs are checked and not run: kernels of training operators believe what goes into them, which no reader can know.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fuzz import words
from fuzz.artifact_targets import MANIFEST, remember_graphs, tiny_files, use_manifest, with_truth, write_files
from fuzz.base import Target, attempt, put

from edgeff.artifact import Artifact, open_artifact
from edgeff.engines import OPTIMIZER_MODEL, ORT_TRAINING, TRAINING_FOLDER, TRAINING_MODEL, engine_manifest
from edgeff.onnx_dialects import TRAINING
from edgeff.onnx_rules import check_onnx

ENGINE = engine_manifest(ORT_TRAINING)
BLOCK = "block1"
TRAINED, UPDATED = (f"{TRAINING_FOLDER}{BLOCK}/{name}" for name in (TRAINING_MODEL, OPTIMIZER_MODEL))
_ROWS = ("x", "y", "row_weight", "seed")
_SUM, _ADDED = "_grad.accumulation.buffer", "_grad.accumulation.out"


def _model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], described: Sequence[Any] = ()) -> bytes:
    from onnx import helper

    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), value_info=list(described))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    content: bytes = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString(deterministic=True)
    return content


def _training_model(block: dict[str, Any], classes: int) -> bytes:
    """The inputs and outputs of a block's training model, and a node of each kind that only it may have."""
    from onnx import TensorProto, helper

    def port(name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, dtype, shape)

    names = {f"parameter.{one['name']}": one["shape"] for one in block["parameters"]}
    rows = {
        "x": port("x", ["N", *block["input"]["shape"]]),
        "y": port("y", ["N"], TensorProto.INT64),
        "row_weight": port("row_weight", ["N"]),
        "seed": port("seed", [], TensorProto.INT64),
    }
    inputs = [rows[name] for name in block["graphs"]["accumulate"]["inputs"]]
    for name, shape in names.items():
        inputs += [port(name, shape), port(name + _SUM, shape)]
    inputs.append(port("lazy_reset_grad", [1], TensorProto.BOOL))
    nodes = [
        helper.make_node("ReduceSum", ["row_weight"], ["loss"], keepdims=0),
        helper.make_node("Identity", ["x"], ["log_probabilities"]),
        helper.make_node("ReluGrad", ["x", "x"], ["r"], domain="com.microsoft"),
        helper.make_node("MaxPoolGrad", ["r", "y"], ["m"], kernel_shape=[2]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("GatherGrad", ["s", "y", "m"], ["g"], domain="com.microsoft", axis=0),
    ]
    nodes += [
        helper.make_node(
            "InPlaceAccumulatorV2", [name + _SUM, name, "lazy_reset_grad"], [name + _ADDED], domain="com.microsoft"
        )
        for name in names
    ]
    outputs = [port("loss", []), port("log_probabilities", ["N", classes])]
    outputs += [port(name + _ADDED, [1], TensorProto.BOOL) for name in names]
    return _model(nodes, inputs, outputs, [port("m", ["N", *block["input"]["shape"]])])


def _update_model() -> bytes:
    from onnx import TensorProto, helper

    names = ("params", "gradients", "first_order_moments")
    inputs = [
        helper.make_tensor_value_info("learning_rate", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("step", TensorProto.INT64, [1]),
        *(helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None) for name in names),
    ]
    taken = ["learning_rate", "params", "gradients"]
    node = helper.make_node("SGDOptimizerV2", taken, ["updated"], domain="com.microsoft")
    return _model([node], inputs, [helper.make_tensor_value_info("updated", TensorProto.BOOL, [1])])


@cache
def engine_files() -> dict[str, bytes]:
    """The small artifact of one block, with an engine."""
    files = dict(tiny_files(blocks=1))
    root = json.loads(files[MANIFEST])
    inner = json.loads(files[MANIFEST])
    (block,) = inner["blocks"]
    accumulate, apply = (block["graphs"][kind] for kind in ("accumulate", "apply"))
    accumulate["inputs"] = [name for name in accumulate["inputs"] if name in _ROWS]
    accumulate["outputs"] = ["loss", "log_probabilities"]
    accumulate["file"], apply["file"], apply["inputs"], apply["outputs"] = TRAINED, UPDATED, [], []
    files |= {TRAINED: _training_model(block, len(inner["classes"])), UPDATED: _update_model()}
    listed = {file: {} for file in files if file != MANIFEST}
    return _whole({**files, MANIFEST: _text(root, listed | {ENGINE: {}}), ENGINE: _text(inner, listed)})


def _text(root: dict[str, Any], listed: dict[str, Any]) -> bytes:
    return json.dumps(root | {"files": listed}, separators=(",", ":")).encode()


def _whole(files: dict[str, bytes]) -> dict[str, bytes]:
    """With true sizes and hashes in both manifests."""
    files = {**files, ENGINE: with_truth(files[ENGINE], files)}
    return {**files, MANIFEST: with_truth(files[MANIFEST], files)}


@cache
def _with_engine(folder: Path) -> Artifact:
    """That artifact, opened: what the engine's manifest says is looked at only when the engine is asked for."""
    return open_artifact(write_files(folder / "artifact", engine_files()))


def read_engine(data: bytes, folder: Path) -> None:
    """The manifest of an engine, inside an artifact."""
    artifact = _with_engine(folder)
    put(artifact.path / ENGINE, data)
    found = attempt(lambda: artifact.for_engine(ORT_TRAINING))
    if found:
        use_manifest(found.manifest)
        attempt(found.tensors)


def read_training(data: bytes, folder: Path) -> None:
    """A graph by itself, and as each of a block's models."""
    if not attempt(lambda: check_onnx(io.BytesIO(data), len(data), TRAINED, dialect=TRAINING)):
        return
    for file in (TRAINED, UPDATED):
        files = _whole({**engine_files(), file: data})
        artifact = attempt(lambda files=files: open_artifact(write_files(folder / "artifact", files)))
        if artifact:
            attempt(lambda artifact=artifact: artifact.for_engine(ORT_TRAINING))


ENGINE_TARGETS = (
    Target("engine", read_engine, lambda: [engine_files()[ENGINE]], remember_graphs, words.MANIFEST, "json"),
    Target(
        "onnx-training",
        read_training,
        lambda: [engine_files()[file] for file in (TRAINED, UPDATED)],
        remember_graphs,
        words.TRAINING,
        "onnx",
        4096,
    ),
)
