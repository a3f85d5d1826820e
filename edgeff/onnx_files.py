"""The ONNX files of an artifact against its manifest: each keeps the rules, and graphs have the ports they are said to.

So a shape that does not fit is refused before anything is allocated by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from edgeff.container import Container
from edgeff.engines import TRAINING_FOLDER
from edgeff.errors import ArtifactError
from edgeff.json_node import HINT
from edgeff.manifest import BlockSpec, GraphKind, GraphSpec, Manifest, TensorSpec
from edgeff.onnx_dialects import PLAIN, TRAINING
from edgeff.onnx_limits import MAX_FILE_BYTES, MAX_GRAPH_BYTES
from edgeff.onnx_nodes import KnownAttributes
from edgeff.onnx_ports import OnnxPort
from edgeff.onnx_rules import GraphPorts, check_onnx

SUFFIX = ".onnx"


def check_onnx_files(container: Container, manifest: Manifest) -> None:
    """Check every ONNX file that a manifest lists or refers to, each once.

    Raises:
        ArtifactError: One breaks a rule, or does not have the inputs and outputs that the manifest says.
    """
    graphs = {graph.file for block in manifest.blocks for graph in block.graphs.values()}
    listed = {file for file in manifest.files if file.lower().endswith(SUFFIX)}
    found: dict[str, GraphPorts] = {}
    known: KnownAttributes = {}
    for file in sorted(graphs | listed | {manifest.inference.file}):
        size = manifest.files[file].bytes
        with container.open(file) as stream:
            limit = MAX_GRAPH_BYTES if file in graphs else MAX_FILE_BYTES
            # What the plain engine is given keeps to the plain rules wherever it lies.
            own = file in graphs or file == manifest.inference.file
            dialect = TRAINING if file.startswith(TRAINING_FOLDER) and not own else PLAIN
            found[file] = check_onnx(stream, size, file, limit=limit, known=known, dialect=dialect)
    for block in manifest.blocks:
        for kind, graph in block.graphs.items():
            _check_graph(graph, found[graph.file], ports_of(block, kind, len(manifest.classes)))
    _check_inference(manifest, found[manifest.inference.file])


def ports_of(block: BlockSpec, kind: GraphKind, classes: int) -> dict[str, OnnxPort]:
    """What a graph's inputs and results look like, by name."""
    if kind == "apply":
        runs = ("parameter", "gradient", *(f"state.{slot}" for slot in block.slots))
        return {name: OnnxPort(name, (None,), "float32") for name in runs}
    ports = [
        _rows("x", block.input),
        OnnxPort("y", (None,), "int64"),
        OnnxPort("row_weight", (None,), "float32"),
        OnnxPort("seed", (), "int64"),
        OnnxPort("loss", (), "float32"),
        OnnxPort("log_probabilities", (None, classes), "float32"),
        *([_rows("handover", block.handover)] if block.handover else []),
        *_tensor_ports(block),
    ]
    return {port.name: port for port in ports}


def _rows(name: str, spec: TensorSpec) -> OnnxPort:
    return OnnxPort(name, (None, *spec.shape), spec.dtype)


def _tensor_ports(block: BlockSpec) -> Iterator[OnnxPort]:
    for buffer in block.buffers:
        yield OnnxPort(f"buffer.{buffer.name}", buffer.shape, buffer.dtype)
    for spec in block.parameters:
        for role in ("parameter", "gradient", *(f"state.{slot}" for slot in block.slots)):
            yield OnnxPort(f"{role}.{spec.name}", spec.shape, spec.dtype)


def _check_graph(graph: GraphSpec, found: GraphPorts, needed: Mapping[str, OnnxPort]) -> None:
    _check_names(graph.file, "input", found.inputs, graph.inputs)
    _check_names(graph.file, "output", found.outputs, graph.outputs)
    for port in (*found.inputs, *found.outputs):
        source = port.name.removeprefix("new.")
        # Rates, which are numbers, are of the optimiser: the manifest does not list them.
        check_port(graph.file, port, needed.get(source, OnnxPort(source, (), "float32")))


def _check_names(file: str, what: str, ports: Sequence[OnnxPort], needed: Sequence[str]) -> None:
    got = [port.name for port in ports]
    if got == list(needed):
        return
    wrong = sorted(set(got) ^ set(needed))
    if not wrong:
        raise ArtifactError(f"`{file}` has its {what}s in another order than the manifest", hint=HINT)
    state = "lacks" if wrong[0] in needed else "has an unknown"
    raise ArtifactError(f"`{file}` {state} {what} `{wrong[0]}`", hint=HINT)


def check_port(file: str, port: OnnxPort, needed: OnnxPort) -> None:
    """Check an input or output of a file.

    Raises:
        ArtifactError: Its shape or data type is another than is needed.
    """
    same = port.shape == needed.shape
    if needed.name.startswith("gradient."):
        # A sum of gradients may be the matrix that its parts come out as.
        same = None not in port.shape and math.prod(_sizes(port)) == math.prod(_sizes(needed))
    if not same or port.dtype != needed.dtype:
        raise ArtifactError(f"`{file}`: `{port.name}` must be {_shown(needed)}, got {_shown(port)}", hint=HINT)


def _sizes(port: OnnxPort) -> list[int]:
    return [size for size in port.shape if size is not None]


def _shown(port: OnnxPort) -> str:
    return f"{port.dtype} [{', '.join('rows' if size is None else str(size) for size in port.shape)}]"


def _check_inference(manifest: Manifest, found: GraphPorts) -> None:
    """The template takes raw rows, under any name, and gives the prediction."""
    file = manifest.inference.file
    outputs = {
        "label": OnnxPort("label", (None,), "int64"),
        "log_probabilities": OnnxPort("log_probabilities", (None, len(manifest.classes)), "float32"),
    }
    if len(found.inputs) != 1:
        raise ArtifactError(f"`{file}` must have one input, got {len(found.inputs)}", hint=HINT)
    check_port(file, found.inputs[0], _rows("x", manifest.input))
    given = sorted(found.outputs, key=lambda port: port.name)
    _check_names(file, "output", given, list(outputs))
    for port in given:
        check_port(file, port, outputs[port.name])
