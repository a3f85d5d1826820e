"""What onnxruntime-training needs of a network, as files of its artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from edgeff.engines import ORT_TRAINING, engine_manifest
from edgeff.export.baselines import inner_manifest
from edgeff.export.compiled import CompiledBlock
from edgeff.export.openable import check_openable
from edgeff.export.ort_training import PLAIN_HINT, TOLERANCE, training_artifacts
from edgeff.manifest import CheckResults, Manifest
from edgeff.onnx_dialects import TRAINING
from edgeff.onnx_limits import MAX_GRAPH_BYTES


def training_files(
    blocks: Sequence[nn.Module],
    compiled: Sequence[CompiledBlock],
    manifest: Manifest,
    files: Mapping[str, bytes | Path],
    *,
    dropout: bool,
) -> dict[str, bytes]:
    """Every block's training artifacts and the engine's manifest, by path inside the artifact.

    Args:
        blocks: Of the network, in order.
        compiled: The same, with their plain graphs.
        manifest: Of the artifact; its `files` are not looked at.
        files: Of the artifact.
        dropout: Keep dropout on.

    Raises:
        ExportError: A block that onnxruntime-training cannot train, or does not train as torch does.
        EngineError: onnxruntime-training is not installed.
    """
    made = [
        training_artifacts(
            block,
            one,
            spec=manifest.optimizer,
            input_dtype=one.spec.input.dtype,
            classes=len(manifest.classes),
            last=block is blocks[-1],
            dropout=dropout,
        )
        for block, one in zip(blocks, compiled, strict=True)
    ]
    found = {path: content for one in made for path, content in one.files.items()}
    graphs = {path: content for path, content in found.items() if path.endswith(".onnx")}
    check_openable(graphs, limit=MAX_GRAPH_BYTES, dialect=TRAINING, hint=PLAIN_HINT)
    errors = {one.spec.name: one.error for one in made}
    own = replace(
        manifest,
        blocks=tuple(one.spec for one in made),
        checks=CheckResults(manifest.checks.micro_batches, errors, TOLERANCE),
    )
    return {**found, engine_manifest(ORT_TRAINING): inner_manifest(own, {**files, **found}).encode()}
