"""Back-propagation through the whole network, compiled beside its blocks so that a device can compare the two.

The whole network is one block that keeps the last block's readout alone (`LocalNetwork.regroup`): the same layers with
their hand-over normalisation, the same weights, the same runtime. Each baseline is a manifest of its own in the
artifact, `baselines/<name>.json`, over the artifact's weights file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from edgeff.baselines import BASELINE_BLOCK, CHECKPOINTED, PLAIN, baseline_file
from edgeff.blocks import LocalBlock
from edgeff.export.check import MICRO_BATCHES
from edgeff.export.checkpointing import can_be_checkpointed, checkpointed
from edgeff.export.compiled import CompiledBlock, described
from edgeff.export.graphs import BlockGraphs, compile_block, in_order
from edgeff.manifest import GRAPH_KINDS, CheckResults, FileSpec, GraphKind, GraphSpec, Manifest, TensorSpec
from edgeff.manifest_json import to_json
from edgeff.manifest_rules import referenced_files
from edgeff.model import LocalNetwork


def check_results(compiled: Sequence[CompiledBlock]) -> CheckResults:
    """What the blocks' checks found, for a manifest."""
    errors = {part.spec.name: part.check.error for part in compiled}
    return CheckResults(MICRO_BATCHES, errors, max(part.check.tolerance for part in compiled))


def baseline_files(
    network: LocalNetwork, manifest: Manifest, files: Mapping[str, bytes | Path], *, dropout: bool
) -> dict[str, bytes]:
    """Graphs and manifests of back-propagation, plain and with checkpointing, by path inside the artifact.

    Args:
        network: What the artifact is of.
        manifest: Of the artifact; its `files` are not looked at.
        files: Of the artifact.
        dropout: Keep dropout on in training graphs.

    Raises:
        ExportError: The network cannot be compiled as one, or does not pass its checks.
    """
    whole = network.regroup("whole", "last").sequence[0]
    whole.name = BASELINE_BLOCK
    graphs = compile_block(
        whole,
        optimizer_spec=manifest.optimizer,
        input_dtype=manifest.features.dtype,
        last=True,
        dropout=dropout,
        ordered=False,
    )
    found: dict[str, bytes] = {}
    variants = _variants(graphs)
    for name, models in variants.items():
        paths: dict[GraphKind, str] = {kind: f"baselines/{name}.{kind}.onnx" for kind in models}
        paths |= {kind: f"baselines/{PLAIN}.{kind}.onnx" for kind in models if models[kind] is variants[PLAIN][kind]}
        compiled = described(
            whole,
            replace(graphs, models=models),
            paths,
            optimizer=manifest.optimizer,
            input_dtype=manifest.features.dtype,
            classes=len(manifest.classes),
            last=True,
        )
        compiled = _under_the_names_of(network, compiled)
        found |= compiled.files
        found[baseline_file(name)] = _manifest(manifest, compiled, {**files, **found}).encode()
    return found


def _variants(graphs: BlockGraphs) -> dict[str, Mapping[GraphKind, onnx.ModelProto]]:
    plain = in_order(graphs.models, block=BASELINE_BLOCK)
    if not can_be_checkpointed(graphs.models["accumulate"]):
        return {PLAIN: plain}
    # Before anything waits for anything: what is computed again reads weights, and their updates have to wait for it.
    again: dict[GraphKind, onnx.ModelProto] = {
        "accumulate": checkpointed(graphs.models["accumulate"]),
        "step": checkpointed(graphs.models["step"]),
    }
    # Who checkpoints spares bytes, and the fast graph takes them.
    kept = {kind: plain[kind] for kind in GRAPH_KINDS}
    return {PLAIN: plain, CHECKPOINTED: {**kept, **in_order(again, block=BASELINE_BLOCK)}}


def _under_the_names_of(network: LocalNetwork, compiled: CompiledBlock) -> CompiledBlock:
    """Tensors and graph inputs under the names that the tensors have in the artifact's weights file."""
    prefixes = _leaf_prefixes(network)
    spec = compiled.spec

    def named(one: TensorSpec) -> TensorSpec:
        return replace(one, name=_in_file(one.name, prefixes))

    def renamed(graph: GraphSpec) -> GraphSpec:
        inputs, outputs = ([_in_file(name, prefixes) for name in names] for names in (graph.inputs, graph.outputs))
        return replace(graph, inputs=tuple(inputs), outputs=tuple(outputs))

    return replace(
        compiled,
        files={path: _renamed(content, prefixes) for path, content in compiled.files.items()},
        spec=replace(
            spec,
            parameters=tuple(map(named, spec.parameters)),
            buffers=tuple(map(named, spec.buffers)),
            graphs={kind: renamed(graph) for kind, graph in spec.graphs.items()},
        ),
    )


def _leaf_prefixes(network: LocalNetwork) -> list[str]:
    """What stands before the names of each layer's tensors in a weights file."""
    found = []
    for block in network.sequence:
        single = isinstance(block, LocalBlock)
        found += [f"{block.name}." if single else f"{block.name}.layers.{i}." for i in range(len(block.leaves()))]
    return found


# A layer's number follows the role of a graph's input or output, or begins a tensor's name.
_NUMBERED = re.compile(r"((?:new\.)?(?:parameter\.|buffer\.|gradient\.|state\.[^.]+\.)?)layers\.([0-9]+)\.")


def _in_file(name: str, prefixes: Sequence[str]) -> str:
    """A name with the layer's number in it, under that of the weights file.

    >>> _in_file("new.state.momentum.layers.1.conv.layers.0.weight", ["block1.", "block2."])
    'new.state.momentum.block2.conv.layers.0.weight'
    """
    found = _NUMBERED.match(name)
    return name if found is None else f"{found[1]}{prefixes[int(found[2])]}{name[found.end() :]}"


def _renamed(content: bytes, prefixes: Sequence[str]) -> bytes:
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    ports = {value.name for value in (*graph.input, *graph.output)}
    new = {name: _in_file(name, prefixes) for name in ports}
    for value in (*graph.input, *graph.output):
        value.name = new[value.name]
    for node in graph.node:
        for names in (node.input, node.output):
            changed = [new.get(name, name) for name in names]
            del names[:]
            names.extend(changed)
    renamed: bytes = model.SerializeToString(deterministic=True)
    return renamed


def _manifest(manifest: Manifest, compiled: CompiledBlock, files: Mapping[str, bytes | Path]) -> str:
    own = replace(
        manifest,
        blocks=(compiled.spec,),
        fusion=(1.0,),
        checks=check_results([compiled]),
        inference=replace(manifest.inference, offsets={}),
    )
    return inner_manifest(own, files)


def inner_manifest(manifest: Manifest, files: Mapping[str, bytes | Path]) -> str:
    """The text of a manifest that lies inside an artifact and lists, of the artifact's files, those it refers to."""
    read = {file for _, file in referenced_files(manifest)}
    return to_json(replace(manifest, files={file: _file_spec(files[file]) for file in sorted(read)}))


def _file_spec(source: bytes | Path) -> FileSpec:
    content = source if isinstance(source, bytes) else source.read_bytes()
    return FileSpec(len(content), hashlib.sha256(content).hexdigest())


__all__ = ["baseline_files", "check_results", "inner_manifest"]
