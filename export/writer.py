"""`export_network`: compile, check, and only then write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn

from edgeff import __version__
from edgeff.artifact import write_artifact
from edgeff.engines import ONNXRUNTIME, ORT_TRAINING
from edgeff.errors import ExportError
from edgeff.export.baselines import baseline_files, check_results
from edgeff.export.compiled import ROWS_TOGETHER, CompiledBlock, compile_checked
from edgeff.export.inference import inference_model
from edgeff.export.openable import check_openable
from edgeff.export.ort_files import training_files
from edgeff.export.ort_training import check_trainable
from edgeff.export.targets import TARGETS
from edgeff.manifest import (
    InferenceSpec,
    Manifest,
    OptimizerSpec,
    ReplaySpec,
    TrainingDefaults,
)
from edgeff.model import LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.preprocess import Preprocessing
from edgeff.providers import CPU

WEIGHTS, INFERENCE, REPLAY = "weights.safetensors", "inference.onnx", "replay.safetensors"


@dataclass(frozen=True)
class ExportSettings:
    """How a network is exported.

    Attributes:
        optimizer: What the device updates with; its state starts at zero.
        training: Defaults of `train-on-device`.
        dropout: Keep dropout on in training graphs, drawn from a seed input.
        baselines: Let back-propagation through the whole network travel along, to be compared with.
        engine: `ort-training` lets training artifacts for onnxruntime-training travel along, beside the plain graphs.
        rows_together: Rows of a batch that a block with a relation (`edgeff.relation`) compares with one another on the
            device; other blocks are not concerned.
        target: Execution provider in whose forms the graphs are written (`edgeff.export.targets`).
        metadata: Facts that no reader needs.
    """

    optimizer: OptimizerSpec = field(default_factory=lambda: optimizer_spec("adamw"))
    training: TrainingDefaults = field(default_factory=TrainingDefaults)
    dropout: bool = False
    baselines: bool = False
    engine: str = ONNXRUNTIME
    rows_together: int = ROWS_TOGETHER
    target: str = CPU
    metadata: Mapping[str, str] = field(default_factory=dict)


def export_network(
    network: LocalNetwork,
    out: Path,
    *,
    preprocessing: Preprocessing,
    settings: ExportSettings | None = None,
    replay: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """Compile every block, check every graph against torch, and write the artifact.

    Args:
        network: Built, with the weights to start from; it is not changed.
        out: Folder, or a `.zip` file; must not exist.
        preprocessing: From raw rows to what the first block takes.
        settings: Optimiser, defaults of the device, dropout.
        replay: Raw rows (rows, ...) and labels (rows,) int64 that travel along.

    Returns:
        `out`.

    Raises:
        ExportError: A block that cannot be lowered or does not pass its checks; nothing is written then.
        EngineError: The engine that is asked for is not installed.
        ArtifactError: `out` exists or cannot be written.
    """
    settings = settings or ExportSettings()
    if settings.target not in TARGETS:
        raise ExportError(f"unknown target `{settings.target}`", hint=f"known: {', '.join(TARGETS)}")
    if settings.rows_together < 2:
        raise ExportError(f"{settings.rows_together} rows cannot be compared with one another, needed 2 or more")
    if preprocessing.features.shape != tuple(network.input_shape):
        raise ExportError(
            f"preprocessing gives rows of {preprocessing.features.shape}, needed {tuple(network.input_shape)}"
        )
    blocks: list[nn.Module] = list(network.blocks)
    check_locality(blocks)
    if settings.engine == ORT_TRAINING:
        check_trainable(settings.optimizer)
    with torch.no_grad():
        compiled = [_compile(block, network, preprocessing, settings, last=block is blocks[-1]) for block in blocks]
    weights = {
        f"{part.spec.name}.{name}": tensor.cpu().contiguous().numpy()
        for part in compiled
        for name, tensor in {**part.graphs.parameters, **part.graphs.buffers}.items()
    }
    inference = inference_model(
        blocks,
        name=network.name,
        raw=preprocessing.input,
        steps=preprocessing.steps,
        features=preprocessing.features,
        fusion=network.fusion_weights,
    )
    check_openable({INFERENCE: inference.content})
    files: dict[str, bytes | Path] = {WEIGHTS: save(weights), INFERENCE: inference.content}
    for part in compiled:
        files |= part.files
    compiled = _once(compiled, files)
    if replay is not None:
        files[REPLAY] = save({"x": np.ascontiguousarray(replay[0]), "y": replay[1].astype(np.int64)})
    manifest = Manifest(
        edgeff_version=__version__,
        name=network.name,
        input=preprocessing.input,
        preprocessing=tuple(preprocessing.steps),
        features=preprocessing.features,
        classes=tuple(network.classes),
        fusion=tuple(float(weight) for weight in network.fusion_weights),
        optimizer=settings.optimizer,
        training=settings.training,
        blocks=tuple(part.spec for part in compiled),
        weights=WEIGHTS,
        inference=InferenceSpec(INFERENCE, inference.offsets),
        replay=None if replay is None else ReplaySpec(REPLAY, len(replay[1])),
        checks=check_results(compiled),
        files={},
        metadata={**settings.metadata, **({} if settings.target == CPU else {"target": settings.target})},
    )
    if settings.baselines:
        files |= baseline_files(network, manifest, files, dropout=settings.dropout)
    if settings.engine == ORT_TRAINING:
        files |= training_files(blocks, compiled, manifest, files, dropout=settings.dropout)
    return write_artifact(manifest, files, out)


def _once(compiled: Sequence[CompiledBlock], files: dict[str, bytes | Path]) -> list[CompiledBlock]:
    """Keep one file of those with the same bytes, that of the first block, and name it in the others."""
    first: dict[bytes | Path, str] = {}
    kept: dict[str, str] = {}
    for path in [path for part in compiled for path in part.files]:
        kept[path] = first.setdefault(files[path], path)
        if kept[path] != path:
            del files[path]
    return [
        replace(
            part,
            spec=replace(
                part.spec,
                graphs={kind: replace(graph, file=kept[graph.file]) for kind, graph in part.spec.graphs.items()},
            ),
        )
        for part in compiled
    ]


def check_locality(blocks: Sequence[nn.Module]) -> None:
    """Refuse a tensor that two blocks share: training one would change the other.

    A block's graphs are traced from that block alone, so a shared tensor is the only way one could reach into another.

    Raises:
        ExportError: Names the tensor and both blocks.
    """
    owner: dict[int, str] = {}
    for block in blocks:
        for name, tensor in (*block.named_parameters(), *block.named_buffers()):
            key = tensor.untyped_storage().data_ptr()
            if tensor.numel() and owner.setdefault(key, str(block.name)) != block.name:
                raise ExportError(
                    f"`{name}` of block `{block.name}` is shared with block `{owner[key]}`",
                    hint="each block must own its weights, or its update is not local",
                )


def _compile(
    block: nn.Module, network: LocalNetwork, preprocessing: Preprocessing, settings: ExportSettings, *, last: bool
) -> CompiledBlock:
    first = block is network.blocks[0]
    return compile_checked(
        block,
        optimizer=settings.optimizer,
        input_dtype=preprocessing.features.dtype if first else "float32",
        classes=len(network.classes),
        last=last,
        dropout=settings.dropout,
        target=settings.target,
        rows_together=settings.rows_together,
    )


__all__ = ["ExportSettings", "check_locality", "export_network"]
