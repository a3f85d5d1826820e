"""Writing the run folder of `edgeff pretrain`; `edgeff.pretrain_run` reads it.

    recipe.json          how the network was made and trained, and what was measured in each epoch
    best.safetensors     parameters and buffers of the best epoch, as `<block>.<name>`
    replay.safetensors   raw training rows `x` and labels `y`, as even over the classes as they allow
    checkpoint.pt        the state after the last epoch, for resuming only
    factory.py           the user's file, where the network came from one: reading the run runs it

Every file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray

from edgeff import __version__
from edgeff.atomic import atomic_file, write_atomically
from edgeff.errors import RunError
from edgeff.learner import Evaluation
from edgeff.lock import locked
from edgeff.model import LocalNetwork, Source
from edgeff.pretrain_settings import PretrainSettings

if TYPE_CHECKING:
    from edgeff.dataset import Dataset
    from edgeff.preprocess import Preprocessing

FORMAT = "edgeff-run"
FORMAT_VERSION = 2
RECIPE, BEST, REPLAY, CHECKPOINT, FACTORY = (
    "recipe.json",
    "best.safetensors",
    "replay.safetensors",
    "checkpoint.pt",
    "factory.py",
)
# What may differ between the parts of a run that is resumed: it decides where the work is done, not what is computed.
_FREE_SETTINGS = ("device", "threads")


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch gave.

    Attributes:
        epoch: From 1.
        train_loss: Mean over the epoch's rows, by block, each of the weights before its step.
        validation: Of the weights after the epoch.
    """

    epoch: int
    train_loss: Mapping[str, float]
    validation: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochMetrics:
        """From `as_dict`, or from the JSON of it."""
        measured = values["validation"]
        lists = {key: tuple(measured[key]) for key in ("readout_accuracy", "readout_weights")}
        return cls(int(values["epoch"]), dict(values["train_loss"]), Evaluation(**{**measured, **lists}))


@dataclass(frozen=True)
class RunFolder:
    """Writes a run.

    Attributes:
        path: The folder; made where it is missing.
        network: As it was given, before the settings' mode regrouped it.
        prepared: As it is trained.
        settings: Of the run.
        preprocessing: From raw rows to the network's input.
        train: Raw rows.
        validation: Raw rows.
    """

    path: Path
    network: LocalNetwork
    prepared: LocalNetwork
    settings: PretrainSettings
    preprocessing: Preprocessing
    train: Dataset
    validation: Dataset

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[dict[str, Any] | None]:
        """Begin a run, or read the checkpoint of the one to go on with; no other process may work in it meanwhile.

        Raises:
            RunError: The folder holds a run and `resume` is False; it cannot be written; its checkpoint is damaged or
                of another run; another process works in it.
        """
        # Of the files of a run the only one that is never replaced.
        what = f"the run in `{self.path}`"
        if (self.path / REPLAY).exists():
            with locked(self.path / REPLAY, what=what):
                pass
        checkpoint = self._open(resume=resume)
        with locked(self.path / REPLAY, what=what):
            yield checkpoint

    def _open(self, *, resume: bool) -> dict[str, Any] | None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise RunError(f"`{path}` is not a folder", hint="choose another run folder")
        if (path / RECIPE).exists() and not resume:
            raise RunError(f"`{path}` holds a run already", hint="resume it, or choose another folder")
        if (path / CHECKPOINT).exists():
            return self._read_checkpoint()
        self._begin()
        return None

    def _begin(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            source = self.network.source
            if source is not None and source.kind == "factory":
                shutil.copyfile(source.name.rpartition(":")[0], self.path / FACTORY)
        except OSError as error:
            raise RunError(f"cannot write into `{self.path}`: {error.strerror or error}") from error
        index = rows_even_over_classes(self.train.y, self.settings.replay_rows, seed=self.settings.seed)
        replay = {"x": np.ascontiguousarray(self.train.x[index]), "y": self.train.y[index].astype(np.int64)}
        write_atomically(self.path / REPLAY, safetensors.numpy.save(replay))
        self._write_recipe({"history": [], "best_epoch": 0})

    def save(self, state: Mapping[str, Any], *, better: bool) -> None:
        """Write what an epoch changed, the checkpoint last.

        Args:
            state: `history`, `best_epoch`, `best` (tensors by name), and what resuming needs.
            better: Whether this epoch is the best so far.

        Raises:
            RunError: A file cannot be written.
        """
        if better:
            write_atomically(self.path / BEST, safetensors.torch.save(state["best"]))
        self._write_recipe(state)
        with atomic_file(self.path / CHECKPOINT) as stream:
            torch.save({**state, "identity": self.identity()}, stream)

    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be resumed, by a name for people."""
        settings = {key: one for key, one in self.settings.as_dict().items() if key not in _FREE_SETTINGS}
        return {
            **{f"setting {key}": one for key, one in settings.items()},
            "network": json.dumps(self.network.describe()),
            "preprocessing": json.dumps(preprocessing_as_dict(self.preprocessing)),
            "number of training rows": len(self.train.x),
            "number of validation rows": len(self.validation.x),
            "model file": self._model_file(),
        }

    def _model_file(self) -> str | None:
        """What tells the file that the network comes from; None for a preset."""
        source = self.network.source
        if source is None or source.kind != "factory":
            return None
        return _digest(Path(source.name.rpartition(":")[0]))

    def _read_checkpoint(self) -> dict[str, Any]:
        path = self.path / CHECKPOINT
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            identity = state.pop("identity")
        except (OSError, RuntimeError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
            raise RunError(
                f"`{path}` cannot be read: it is damaged or not of edgeff", hint="start a new run"
            ) from error
        # A checkpoint of before there was a setting was made by what is its default now.
        defaults: dict[str, Any] = {f"setting {key}": one for key, one in PretrainSettings().as_dict().items()}
        defaults["model file"] = _digest(self.path / FACTORY)
        for name, own in self.identity().items():
            if (began := identity.get(name, defaults.get(name))) != own:
                plain = name.startswith("setting ")
                values = f": it was {json.dumps(began)}, and now it is {json.dumps(own)}" if plain else ""
                raise RunError(
                    f"`{self.path}` cannot be resumed: its {name} differs{values}",
                    hint="resume with what the run began with",
                )
        return state

    def _write_recipe(self, state: Mapping[str, Any]) -> None:
        recipe = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "edgeff_version": __version__,
            "source": _source_as_dict(self.network.source),
            "settings": self.settings.as_dict(),
            "preprocessing": preprocessing_as_dict(self.preprocessing),
            "network": self.prepared.describe(),
            "split": {"train": _describe_split(self.train), "validation": _describe_split(self.validation)},
            "best_epoch": state["best_epoch"],
            "metrics": state["history"],
        }
        text = json.dumps(recipe, indent=2, allow_nan=False) + "\n"
        write_atomically(self.path / RECIPE, text.encode())


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def rows_even_over_classes(y: NDArray[np.int64], rows: int, *, seed: int) -> NDArray[np.int64]:
    """Row numbers of a sample that is as even over the classes as they allow, in rising order.

    >>> y = np.array([0] * 90 + [1] * 9 + [2])
    >>> np.bincount(y[rows_even_over_classes(y, 13, seed=0)])
    array([6, 6, 1])
    """
    rng = np.random.default_rng([seed, 0])
    shuffled = rng.permutation(len(y))
    # The n-th row of its class, for each shuffled row: taking the smallest numbers first goes round the classes.
    order = np.argsort(y[shuffled], kind="stable")
    counts = np.unique(y, return_counts=True)[1]
    turn = np.empty(len(y), dtype=np.int64)
    turn[order] = np.concatenate([np.arange(count) for count in counts]) if len(y) else []
    chosen = shuffled[np.argsort(turn, kind="stable")[:rows]]
    return np.sort(chosen)


def preprocessing_as_dict(preprocessing: Preprocessing) -> dict[str, Any]:
    """JSON-able."""
    return {
        "input": asdict(preprocessing.input),
        "steps": [dict(step) for step in preprocessing.steps],
        "features": asdict(preprocessing.features),
    }


def _describe_split(dataset: Dataset) -> dict[str, Any]:
    labels, counts = np.unique(dataset.y, return_counts=True)
    groups = [] if dataset.groups is None else np.unique(dataset.groups).tolist()
    per_class = {str(label): int(count) for label, count in zip(labels, counts, strict=True)}
    return {"name": dataset.name, "rows": len(dataset.x), "rows_per_class": per_class, "groups": groups}


def _source_as_dict(source: Source | None) -> dict[str, Any] | None:
    if source is not None and source.kind == "factory":
        source = replace(source, name=f"{FACTORY}:{source.name.rpartition(':')[2]}")
    return None if source is None else asdict(source)
