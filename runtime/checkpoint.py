"""The files of a run: made once, replaced whole, and enough to go on after a power cut as if it had not happened.

run.json                  what the run began with
checkpoint.safetensors    weights and optimiser state of what is trained, and position; previous.safetensors before it
block.<name>.safetensors  weights of a block that is finished (schedule `stage`)
features.<name>.*         what goes into a block that is being trained (schedule `stage`)
best.safetensors          the weights the guard chose so far
result.json               written last: a run that has it is finished
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeff.atomic import atomic_file, error_text, sync_folder, sync_stream, write_atomically, write_hint
from edgeff.errors import RunError
from edgeff.runtime.engine import Array
from edgeff.runtime.network import Network
from edgeff.runtime.tensor_stream import read_all_tensors, read_facts, read_tensors_into, write_tensors
from edgeff.runtime.trainer import Position

RUN, CHECKPOINT, PREVIOUS, BEST, RESULT = (
    "run.json",
    "checkpoint.safetensors",
    "previous.safetensors",
    "best.safetensors",
    "result.json",
)
FORMAT_VERSION = 1
_CHECKPOINT_FORMAT, _WEIGHTS_FORMAT = "edgeff-checkpoint", "edgeff-weights"


@dataclass(frozen=True)
class Checkpoint:
    """Everything of a run that is not an array.

    Attributes:
        manifest_sha256: Of the artifact it belongs to.
        position: How far it has come.
        settings: The run's, JSON-able.
        guard: What the guard has seen so far, JSON-able.
    """

    manifest_sha256: str
    position: Position
    settings: Mapping[str, Any]
    guard: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFolder:
    """A folder with the files of one run."""

    path: Path

    @property
    def best(self) -> Path:
        """The weights the guard chose."""
        return self.path / BEST

    def create(self, facts: Mapping[str, Any]) -> None:
        """Make the folder and write what the run begins with.

        Raises:
            RunError: There is something at the path already, or it cannot be written.
        """
        if os.path.lexists(self.path):
            raise RunError(
                f"`{self.path}` exists already", hint="go on with it by `--resume`, or choose another folder"
            )
        try:
            self.path.mkdir(parents=True)
            sync_folder(self.path.parent)
        except OSError as error:
            raise RunError(f"cannot write `{self.path}`: {error_text(error)}", hint=write_hint(error)) from error
        _write_json(self.path / RUN, facts)

    def facts(self) -> dict[str, Any]:
        """What the run began with.

        Raises:
            RunError: There is no run, or its `run.json` cannot be read.
        """
        if not self.path.is_dir():
            raise RunError(f"there is no run to go on with at `{self.path}`", hint="begin it without `--resume`")
        return _read_json(self.path / RUN)

    def result(self) -> dict[str, Any] | None:
        """What the run came to; None while it is not finished."""
        return _read_json(self.path / RESULT) if (self.path / RESULT).exists() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Finish the run."""
        _write_json(self.path / RESULT, result)

    def write_best(self, network: Network, epoch: int) -> None:
        """Keep the network's weights as the best so far.

        Raises:
            RunError: They cannot be written; the ones before are kept.
        """
        facts = {
            "format": _WEIGHTS_FORMAT,
            "version": FORMAT_VERSION,
            "manifest_sha256": network.artifact.manifest_sha256,
            "epoch": epoch,
        }
        with atomic_file(self.best) as stream:
            write_tensors(stream, network.weights(), facts)

    def write_checkpoint(self, network: Network, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and keep the one before it.

        Raises:
            RunError: It cannot be written; the one before is kept.
        """
        newest = self.path / CHECKPOINT
        with atomic_file(newest) as stream:
            write_tensors(stream, network.resident(), _checkpoint_facts(checkpoint))
            sync_stream(stream)
            # Only now, with the new one safe on the disk: at every moment one of the two is whole.
            if newest.exists():
                os.replace(newest, self.path / PREVIOUS)

    def load_checkpoint(self, network: Network) -> tuple[Checkpoint | None, list[str]]:
        """Find the newest checkpoint that is whole, and fill what a network has in memory from it.

        Returns:
            The checkpoint, None when none was written yet; and warnings about one that had to be passed over.

        Raises:
            RunError: It belongs to another artifact, or all that were written are damaged.
        """
        warnings: list[str] = []
        for name in (CHECKPOINT, PREVIOUS):
            path = self.path / name
            if not path.exists():
                continue
            try:
                checkpoint = _parse_checkpoint(read_facts(path), path)
            except RunError as error:
                warnings.append(f"{error}; the checkpoint before it is used")
                continue
            _check_same_artifact(checkpoint.manifest_sha256, network, path)
            read_tensors_into(path, network.resident())
            return checkpoint, warnings
        if warnings:
            raise RunError(
                f"no checkpoint in `{self.path}` is whole", hint="begin again in another folder; check the disk"
            )
        return None, warnings


def read_weights(path: Path, manifest_sha256: str) -> dict[str, Array]:
    """The weights of a `best.safetensors` or of a checkpoint, by `<block>.<name>`.

    Args:
        path: The file, or the folder of a run for its best weights.
        manifest_sha256: Of the artifact they must belong to.

    Raises:
        RunError: The file cannot be read, is damaged, or belongs to another artifact.
    """
    file = path / BEST if path.is_dir() else path
    facts = read_facts(file)
    if facts.get("manifest_sha256") != manifest_sha256:
        raise _other_artifact(file)
    # A checkpoint's optimiser state has a slash in its names, a weight has none.
    return {name: array for name, array in read_all_tensors(file).items() if not name.startswith("state/")}


def _checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    position = checkpoint.position
    return {
        "format": _CHECKPOINT_FORMAT,
        "version": FORMAT_VERSION,
        "manifest_sha256": checkpoint.manifest_sha256,
        "position": dataclasses.asdict(position),
        "settings": dict(checkpoint.settings),
        "guard": dict(checkpoint.guard),
    }


def _parse_checkpoint(facts: Mapping[str, Any], path: Path) -> Checkpoint:
    if facts.get("format") != _CHECKPOINT_FORMAT or facts.get("version") != FORMAT_VERSION:
        raise RunError(f"`{path}` is not a checkpoint of version {FORMAT_VERSION}")
    return Checkpoint(
        manifest_sha256=facts["manifest_sha256"],
        position=Position(**facts["position"]),
        settings=facts["settings"],
        guard=facts["guard"],
    )


def _check_same_artifact(manifest_sha256: str, network: Network, path: Path) -> None:
    if manifest_sha256 != network.artifact.manifest_sha256:
        raise _other_artifact(path)


def _other_artifact(path: Path) -> RunError:
    return RunError(
        f"`{path}` belongs to another artifact", hint="give the artifact that the run began with (see its `run.json`)"
    )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"`{path}` is damaged: it is not JSON") from error
    if not isinstance(value, dict):
        raise RunError(f"`{path}` is damaged: it is not a JSON object")
    return value
