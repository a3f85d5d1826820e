"""Files of a reference network that workers of the audits start from.

`network` writes `network.json`, the blocks as plain operators in order, and `weights.npz`; `artifact` writes edgeff's
artifact with its back-propagation baselines, `exported` one without. Runs in the workstation environment.

    .venv/bin/python benchmarks/audit_files.py network deep24 FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import reference
from torch import nn

from edgeff.errors import EdgeffError
from edgeff.goodness import PooledGoodness
from edgeff.handover import LayerNormHandover
from edgeff.model import LocalNetwork
from edgeff.projection import LearnedProjection
from edgeff.temperature import LearnedTemperature

Operator = dict[str, Any]


def write_network(name: str, folder: Path) -> None:
    """`network.json` and `weights.npz`."""
    network = reference(name)
    whole = network.regroup("whole", "last")
    description = {
        "shape": list(network.input_shape),
        "classes": len(network.classes),
        "blocks": describe(whole),
    }
    (folder / "network.json").write_text(json.dumps(description))
    np.savez(folder / "weights.npz", **{key: value.numpy() for key, value in whole.tensors().items()})


def describe(whole: LocalNetwork) -> list[list[Operator]]:
    """The operators of each block; the last has its scores, every other its hand-over.

    Raises:
        EdgeffError: An operator that has no description here.
    """
    block = whole.sequence[0]
    found, shape = [], block.input_shape
    for index, leaf in enumerate(block.leaves()):
        prefix = f"whole.layers.{index}"
        operators = list(_transform(leaf.transform, f"{prefix}.transform"))
        with torch.no_grad():
            activation = tuple(leaf.transform(torch.zeros(1, *shape)).shape[1:])
        operators += _handover(leaf.handover) if leaf.readout is None else _readout(leaf.readout, activation, prefix)
        found.append(operators)
        shape = leaf.handover_shape
    return found


def _transform(module: nn.Module, key: str) -> Iterator[Operator]:
    """An `nn.Sequential` of known layers; signals are maps of height 1."""
    if isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            yield from _transform(child, f"{key}.{name}")
        return
    weights = {"weight": f"{key}.weight", "bias": f"{key}.bias"}
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        stride, padding = _pair(module.stride, 1), _pair(module.padding, 0)
        yield {"op": "conv", **weights, "stride": stride, "padding": padding, "groups": module.groups}
    elif isinstance(module, nn.Linear):
        yield {"op": "linear", **weights}
    elif isinstance(module, nn.GroupNorm):
        yield {"op": "group_norm", **weights, "groups": module.num_groups, "eps": module.eps}
    elif isinstance(module, nn.MaxPool1d | nn.MaxPool2d):
        size = (module.kernel_size,) * (1 if isinstance(module, nn.MaxPool1d) else 2)
        yield {"op": "max_pool", "kernel": _pair(size, 1)}
    elif isinstance(module, nn.ReLU):
        yield {"op": "relu"}
    elif not isinstance(module, nn.Flatten):  # every other file already has rows (D,) there
        raise EdgeffError(f"layer `{type(module).__name__}` is not described for peers")


def _pair(values: Any, fill: int) -> list[int]:
    return [fill, *values] if len(values) == 1 else list(values)


def _handover(part: Any) -> list[Operator]:
    if not isinstance(part, LayerNormHandover):
        raise EdgeffError(f"hand-over `{part}` is not described for peers")
    return [{"op": "layer_norm", "eps": part.eps}]


def _readout(readout: Any, activation: tuple[int, ...], prefix: str) -> list[Operator]:
    known = (PooledGoodness, LearnedProjection, LearnedTemperature)
    parts = (readout.goodness, readout.projection, readout.temperature)
    if not all(isinstance(part, kind) for part, kind in zip(parts, known, strict=True)) or readout.goodness.power != 1:
        raise EdgeffError(f"readout `{readout}` is not described for peers")
    key = f"{prefix}.readout"
    cells = readout.goodness.grid(activation)
    kernel = [length // count for length, count in zip(activation[1:], cells, strict=True)]
    linear = {"op": "linear", "weight": f"{key}.projection.linear.weight", "bias": f"{key}.projection.linear.bias"}
    temperature = {"op": "temperature", "alpha": f"{key}.temperature.alpha"}
    temperature |= {"minimum": readout.temperature.minimum, "maximum": readout.temperature.maximum}
    pool = [{"op": "avg_pool", "kernel": _pair(kernel, 1)}] if kernel else []
    return [*pool, linear, temperature]


def write_artifact(name: str, folder: Path) -> None:
    """An artifact of edgeff, with the same network as one block for the baselines."""
    export(name, folder / "artifact", baselines=True)


def write_exported(name: str, folder: Path) -> None:
    """An artifact of edgeff, as users export it."""
    export(name, folder / "exported", baselines=False)


def export(name: str, target: Path, *, baselines: bool) -> None:
    """An artifact of a network."""
    from edgeff.export.writer import ExportSettings, export_network
    from edgeff.manifest import TensorSpec, TrainingDefaults
    from edgeff.preprocess import Preprocessing

    network = reference(name)
    spec = TensorSpec("x", tuple(network.input_shape))
    training = TrainingDefaults(epochs=1, replay_fraction=0.0, guard_fraction=0.0)
    settings = ExportSettings(training=training, baselines=baselines)
    export_network(network, target, preprocessing=Preprocessing(spec, (), spec), settings=settings)


WRITERS = {"network": write_network, "artifact": write_artifact, "exported": write_exported}

if __name__ == "__main__":
    try:
        WRITERS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
    except (EdgeffError, ValueError) as error:
        sys.exit(str(error))
