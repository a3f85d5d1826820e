"""Reading the run folder of `edgeff pretrain`: what `edgeff export` starts from. No pickle is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from edgeff.errors import RunError
from edgeff.fusion import LogProbabilitySum
from edgeff.manifest import TensorSpec
from edgeff.model import LocalNetwork, Source
from edgeff.preprocess import Preprocessing
from edgeff.presets import build_source
from edgeff.pretrain_settings import PretrainSettings
from edgeff.run_folder import BEST, FACTORY, FORMAT, FORMAT_VERSION, RECIPE, REPLAY, EpochMetrics


@dataclass(frozen=True)
class PretrainedRun:
    """A finished or unfinished run, as far as it went.

    Attributes:
        folder: Where it lies.
        network: With the weights and fusion of the best epoch, in evaluation mode.
        preprocessing: From raw rows to the network's input.
        settings: Of the run.
        replay_x: Raw training rows.
        replay_y: Their labels, int64.
        metrics: One entry per epoch.
        best_epoch: Which one `network` is of.
        recipe: All of `recipe.json`.
    """

    folder: Path
    network: LocalNetwork
    preprocessing: Preprocessing
    settings: PretrainSettings
    replay_x: NDArray[Any]
    replay_y: NDArray[np.int64]
    metrics: tuple[EpochMetrics, ...]
    best_epoch: int
    recipe: Mapping[str, Any]


def load_run(folder: Path, *, network: LocalNetwork | None = None) -> PretrainedRun:
    """Read a run folder. A network from a user's file is built by running `factory.py` of the folder.

    Args:
        folder: Written by `pretrain`.
        network: As given to `pretrain`, where it came neither from a preset nor from a file; its weights do not matter.

    Raises:
        RunError: No such run, a damaged file, or a network that nothing in the folder can build.
        ModelError: The weights do not fit the network.
        DataError: Preprocessing steps that were edited and no longer fit.
    """
    recipe = _read_recipe(folder)
    try:
        settings = PretrainSettings.from_dict(recipe["settings"])
        steps = recipe["preprocessing"]
        preprocessing = Preprocessing(
            input=_tensor_spec(steps["input"]), steps=tuple(steps["steps"]), features=_tensor_spec(steps["features"])
        ).validate()
        metrics = tuple(EpochMetrics.from_dict(values) for values in recipe["metrics"])
        source, best_epoch = _source_from_dict(recipe["source"], folder), int(recipe["best_epoch"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"`{folder / RECIPE}` is damaged: {type(error).__name__}: {error}") from error
    if not metrics:
        raise RunError(f"run `{folder}` has not finished its first epoch", hint="resume it")
    if not 1 <= best_epoch <= len(metrics):
        raise RunError(f"`{folder / RECIPE}` is damaged: best epoch {best_epoch} of {len(metrics)}")
    trained = settings.prepare(_network(source, network, folder)).eval()
    trained.load_tensors({key: torch.from_numpy(value) for key, value in _read_tensors(folder / BEST).items()})
    trained.fuse_readouts(LogProbabilitySum(metrics[best_epoch - 1].validation.readout_weights))
    replay = _read_tensors(folder / REPLAY, "x", "y")
    return PretrainedRun(
        folder, trained, preprocessing, settings, replay["x"], replay["y"], metrics, best_epoch, recipe
    )


def _tensor_spec(values: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(values["name"], tuple(values["shape"]), values["dtype"])


def _source_from_dict(values: Mapping[str, Any] | None, folder: Path) -> Source | None:
    if values is None:
        return None
    function = values["name"].rpartition(":")[2]
    name = f"{folder / FACTORY}:{function}" if values["kind"] == "factory" else values["name"]
    regroups = tuple((layers, losses) for layers, losses in values["regroups"])
    return Source(values["kind"], name, dict(values["arguments"]), regroups)


def _network(source: Source | None, network: LocalNetwork | None, folder: Path) -> LocalNetwork:
    if network is not None:
        return network
    if source is None:
        raise RunError(
            f"run `{folder}` does not say how its network is built",
            hint="pretrain a preset or a `path/to/file.py:function`, or give the network",
        )
    return build_source(source)


def _read_recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"`{folder}` is not a run folder: no `{RECIPE}`", hint="make one by `edgeff pretrain`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"`{path}` cannot be read: {error}") from error
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        raise RunError(f"`{path}` is not a recipe of edgeff")
    if recipe.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"`{path}` has format version {recipe.get('format_version')}, this edgeff reads {FORMAT_VERSION}",
            hint=f"it was written by edgeff {recipe.get('edgeff_version')}",
        )
    return recipe


def _read_tensors(path: Path, *needed: str) -> dict[str, NDArray[Any]]:
    try:
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise RunError(f"`{path}` cannot be read: {error}") from error
    missing = [key for key in needed if key not in tensors]
    if missing:
        raise RunError(f"`{path}` has no tensor `{missing[0]}`")
    return tensors
