"""The manifest and the graphs that an artifact has for an engine of its own, against those of the artifact.

They are checked when that engine is asked for: no other reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeff.container import Container
from edgeff.engines import OPTIMIZER_MODEL, TRAINING_FOLDER, TRAINING_MODEL
from edgeff.errors import ArtifactError
from edgeff.json_node import HINT
from edgeff.manifest import BlockSpec, GraphSpec, Manifest
from edgeff.manifest_rules import MANIFEST_FILE
from edgeff.onnx_dialects import TRAINING
from edgeff.onnx_files import check_port, ports_of
from edgeff.onnx_limits import MAX_GRAPH_BYTES
from edgeff.onnx_ports import SEQUENCE, OnnxPort
from edgeff.onnx_rules import GraphPorts, check_onnx

# What onnxruntime-training calls a parameter's sum of gradients, and what it gives back when it has added to it.
_SUM, _ADDED = "_grad.accumulation.buffer", "_grad.accumulation.out"
_FLAG = OnnxPort("lazy_reset_grad", (1,), "bool")


def check_engine(file: str, engine: Manifest, manifest: Manifest, container: Container) -> None:
    """Check an engine's manifest against the artifact's, and its graphs against both.

    Raises:
        ArtifactError: They differ in more than the graphs of the update, or a graph is not what it is said to be.
    """
    for path, spec in engine.files.items():
        if manifest.files.get(path) != spec:
            raise ArtifactError(f"`{file}` lists `{path}` otherwise than `{MANIFEST_FILE}`", hint=HINT)
    if _without_updates(engine) != _without_updates(manifest):
        raise ArtifactError(f"`{file}` differs from `{MANIFEST_FILE}` in more than the graphs of updates", hint=HINT)
    for block in engine.blocks:
        _check_block(block, engine, container)


def _without_updates(manifest: Manifest) -> Manifest:
    blocks = tuple(
        replace(block, graphs={kind: block.graphs[kind] for kind in ("step", "forward")}, handover_in_place=False)
        for block in manifest.blocks
    )
    checks = replace(manifest.checks, largest_error={}, tolerance=0.0)
    return replace(manifest, blocks=blocks, checks=checks, files={})


def _check_block(block: BlockSpec, manifest: Manifest, container: Container) -> None:
    folder = f"{TRAINING_FOLDER}{block.name}/"
    for kind, name in (("accumulate", TRAINING_MODEL), ("apply", OPTIMIZER_MODEL)):
        got = block.graphs[kind].file  # type: ignore[index]
        if got != folder + name:
            raise ArtifactError(
                f"the `{kind}` graph of block `{block.name}` must be `{folder}{name}`, got `{got}`", hint=HINT
            )
    training, update = (_ports(block.graphs[kind].file, manifest, container) for kind in ("accumulate", "apply"))
    _check_training(block, len(manifest.classes), training)
    _check_update(block, update)


def _ports(file: str, manifest: Manifest, container: Container) -> GraphPorts:
    with container.open(file) as stream:
        return check_onnx(stream, manifest.files[file].bytes, file, limit=MAX_GRAPH_BYTES, dialect=TRAINING)


def _check_training(block: BlockSpec, classes: int, found: GraphPorts) -> None:
    """A training model takes rows, the block's tensors and the sums of their gradients, and gives results."""
    spec = block.graphs["accumulate"]
    tensors = [OnnxPort(f"parameter.{one.name}", one.shape, one.dtype) for one in block.parameters]
    sums = [OnnxPort(one.name + _SUM, one.shape, one.dtype) for one in tensors]
    added = [OnnxPort(one.name + _ADDED, (1,), "bool") for one in tensors]
    constants = [OnnxPort(f"buffer.{one.name}", one.shape, one.dtype) for one in block.buffers]
    rows = ports_of(block, "accumulate", classes)
    taken, given = ([_of_rows(rows, name, spec) for name in names] for names in (spec.inputs, spec.outputs))
    _check_side(spec.file, "input", found.inputs, [*taken, *tensors, *sums, _FLAG], may=constants)
    _check_side(spec.file, "output", found.outputs, [*given, *added])


def _of_rows(rows: Mapping[str, OnnxPort], name: str, spec: GraphSpec) -> OnnxPort:
    """A port that is not one of a tensor: those of a training model have other names, and no manifest lists them."""
    if name not in rows or "." in name:
        raise ArtifactError(f"`{spec.file}` is said to have `{name}`, which no training model has", hint=HINT)
    return rows[name]


def _check_update(block: BlockSpec, found: GraphPorts) -> None:
    """An optimizer model takes its inputs by their order."""
    moments = ("first_order_moments", "second_order_moments")[: max(1, len(block.slots))]
    sequences = [OnnxPort(name, (None,), SEQUENCE) for name in ("params", "gradients", *moments)]
    needed = [OnnxPort("learning_rate", (1,), "float32"), OnnxPort("step", (1,), "int64"), *sequences]
    file = block.graphs["apply"].file
    _check_side(file, "input", found.inputs, needed)
    _check_side(file, "output", found.outputs, [OnnxPort("updated", (1,), "bool")])
    if [port.name for port in found.inputs] != [port.name for port in needed]:
        raise ArtifactError(f"`{file}` must take {', '.join(port.name for port in needed)}, in this order", hint=HINT)


def _check_side(
    file: str, what: str, found: Sequence[OnnxPort], needed: Sequence[OnnxPort], *, may: Sequence[OnnxPort] = ()
) -> None:
    """Check that there are those needed, and beside them none but those that may be."""
    known = {port.name: port for port in (*needed, *may)}
    names = {port.name for port in found}
    for port in needed:
        if port.name not in names:
            raise ArtifactError(f"`{file}` lacks {what} `{port.name}`", hint=HINT)
    for port in found:
        if port.name not in known:
            raise ArtifactError(f"`{file}` has an unknown {what} `{port.name}`", hint=HINT)
        check_port(file, port, known[port.name])
