"""The files of a run: made once, replaced whole, and enough to go on after a power cut as if it had not happened.

run.json                  what the run began with; locked while a process works in the folder
checkpoint.safetensors    weights and optimiser state of what is trained, and position; previous.safetensors before it
block.<name>.safetensors  weights of a block that is finished (schedule `stage`)
features.<name>.*         what goes into a block that is being trained (schedule `stage`)
best.<n>.safetensors      the weights the guard chose so far, judged after epoch (or block) n; a checkpoint says which
best.safetensors          the same, once the run is finished
result.json               written last: a run that has it is finished

What belongs together switches in one moment, when a new `checkpoint.safetensors` takes its name: what it names was
forced to the disk before, and what it no longer names is removed after.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from edgeff import disk
from edgeff.atomic import atomic_file, write_atomically, writing
from edgeff.errors import RunError
from edgeff.lock import locked
from edgeff.plain_file import open_plain
from edgeff.runtime.arrays import Array
from edgeff.runtime.engine import Moments
from edgeff.runtime.network import Network
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.tensor_stream import peek_facts, read_all_tensors, read_facts, read_tensors_into, write_tensors
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
        best: Epoch (schedule `stage`: finished blocks) after which the best weights so far were kept.
        rate_factors: By block, what its learning rate is multiplied by since its loss was not finite; those of 1 left
            out.
        moments: How the optimiser's state stands in it: of the engine that wrote it.
    """

    manifest_sha256: str
    position: Position
    settings: Mapping[str, Any]
    guard: Mapping[str, Any] = field(default_factory=dict)
    best: int = 0
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    moments: Moments = "sums"


@dataclass(frozen=True)
class RunFolder:
    """A folder with the files of one run."""

    path: Path

    @property
    def best(self) -> Path:
        """The weights the guard chose, of a run that is finished."""
        return self.path / BEST

    def best_weights(self) -> Path:
        """The weights the guard chose so far, of a run that is finished or not.

        Raises:
            RunError: There are none yet.
        """
        if self.best.is_file():
            return self.best
        for name in (CHECKPOINT, PREVIOUS):
            with suppress(RunError):
                path = self.best_after(_parse_checkpoint(peek_facts(self.path / name), self.path / name).best)
                if path.is_file():
                    return path
        state = "has lost its weights" if (self.path / RESULT).exists() else "has no weights of a run yet"
        raise RunError(f"`{self.path}` {state}", hint="give a folder that `edgeff train-on-device` wrote")

    def best_after(self, epoch: int) -> Path:
        """The weights judged after an epoch, of a run that is not."""
        return self.path / f"best.{epoch}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process work in the folder meanwhile; a process that died holds nothing.

        Raises:
            RunError: Another process does.
        """
        with locked(self.path / RUN, what=f"the run in `{self.path}`"):
            yield

    def is_blank(self) -> bool:
        """Whether there is a folder and nothing in it: it is empty, or the power went before a run had begun in it."""
        return self.path.is_dir() and {path.name for path in self.path.iterdir()} <= {f".{RUN}.tmp"}

    def create(self, facts: Mapping[str, Any]) -> None:
        """Make the folder, if it is not there, and write what the run begins with.

        Raises:
            RunError: There is something at the path already, or it cannot be written.
        """
        if os.path.lexists(self.path) and not self.is_blank():
            go_on = "go on with it by `--resume`, or " if os.path.lexists(self.path / RUN) else ""
            raise RunError(f"`{self.path}` exists already", hint=f"{go_on}choose another folder")
        with writing(self.path):
            if not self.path.is_dir():
                disk.make_folder(self.path)
            disk.sync_folder(self.path.parent)
        _write_json(self.path / RUN, facts)

    def facts(self) -> dict[str, Any]:
        """What the run began with.

        Raises:
            RunError: There is no run, or its `run.json` cannot be read.
        """
        if not self.path.is_dir():
            raise RunError(f"there is no run to go on with at `{self.path}`", hint="begin it without `--resume`")
        if not os.path.lexists(self.path / RUN):
            raise RunError(f"`{self.path}` holds no run: it has no `{RUN}`", hint="choose another folder")
        return _read_json(self.path / RUN)

    def began_with(self) -> AdaptSettings | None:
        """Settings of the run that is here; None where there is none that can be read."""
        with suppress(RunError, LookupError, TypeError):
            return AdaptSettings.from_dict(self.facts()["settings"])
        return None

    def result(self) -> dict[str, Any] | None:
        """What the run came to; None while it is not finished.

        Raises:
            RunError: It cannot be read, or is no result.
        """
        path = self.path / RESULT
        if not os.path.lexists(path):
            return None
        found = _read_json(path)
        if "best_epoch" not in found or "guard" not in found:
            raise RunError(f"`{path}` is damaged: it is no result", hint="test the weights by `edgeff evaluate --run`")
        return found

    def check_published(self) -> None:
        """Check that the weights of the finished run are there, whole.

        Raises:
            RunError: They are not.
        """
        try:
            read_facts(self.best)
        except RunError as error:
            raise RunError(
                f"the run in `{self.path}` is finished, but its weights are lost: {error}",
                hint="begin again in another folder; check the disk",
            ) from error

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Finish the run.

        Raises:
            RunError: That cannot be written.
        """
        _write_json(self.path / RESULT, result)
        with writing(self.path):
            for path in self._bests():
                disk.remove(path)

    def write_best(self, network: Network, epoch: int) -> None:
        """Keep the network's weights as the best so far; they count once a checkpoint names them.

        Raises:
            RunError: They cannot be written; the ones before are kept.
        """
        facts = {
            "format": _WEIGHTS_FORMAT,
            "version": FORMAT_VERSION,
            "manifest_sha256": network.artifact.manifest_sha256,
            "epoch": epoch,
        }
        with atomic_file(self.best_after(epoch)) as stream:
            write_tensors(stream, network.weights(), facts)
        self._remove_bests_but(epoch)

    def check_best(self, network: Network, epoch: int) -> None:
        """Check that the weights judged after an epoch are there, whole.

        Raises:
            RunError: They are not.
        """
        path = self.best_after(epoch)
        if not path.exists() and self.best.exists():  # the run was just being finished
            path = self.best
        try:
            facts = read_facts(path)
        except RunError as error:
            hint = "begin again in another folder; check the disk"
            raise RunError(f"the best weights so far are lost: {error}", hint=hint) from error
        _check_same_artifact(str(facts.get("manifest_sha256")), network, path)
        if facts.get("epoch") != epoch:
            raise RunError(
                f"the best weights so far are lost: `{path}` has those of another epoch",
                hint="begin again in another folder",
            )

    def publish_best(self, epoch: int) -> None:
        """Give the best weights of the finished run their last name.

        Raises:
            RunError: That cannot be written, or they are lost.
        """
        with writing(self.best):
            if self.best_after(epoch).exists():
                disk.replace(self.best_after(epoch), self.best)
                disk.sync_folder(self.path)
        if not self.best.exists():
            raise RunError(f"the best weights of `{self.path}` are lost", hint="begin again in another folder")

    def _bests(self) -> list[Path]:
        return sorted(self.path.glob("best.*.safetensors"))

    def write_checkpoint(self, network: Network, checkpoint: Checkpoint, *, in_place: bool = False) -> None:
        """Write a checkpoint and keep the one before it.

        Args:
            network: What is in memory of it is written.
            checkpoint: The rest.
            in_place: Let it take the place of the newest, and keep the one before that.

        Raises:
            RunError: It cannot be written; the one before is kept.
        """
        newest = self.path / CHECKPOINT
        with atomic_file(newest) as stream:
            write_tensors(stream, network.resident(), _checkpoint_facts(checkpoint))
            disk.sync(stream)
            # Only now, with the new one safe on the disk: at every moment one of the two is whole.
            if newest.exists() and not in_place:
                disk.replace(newest, self.path / PREVIOUS)
        self._remove_bests_but(checkpoint.best)

    def _remove_bests_but(self, epoch: int) -> None:
        """Remove best weights that no checkpoint names, nor is going to."""
        kept = {self.best_after(epoch)}
        if len(self._bests()) <= len(kept):
            return
        for name in (CHECKPOINT, PREVIOUS):
            with suppress(RunError):
                kept.add(self.best_after(_parse_checkpoint(peek_facts(self.path / name), self.path / name).best))
        with writing(self.path):
            for path in self._bests():
                if path not in kept:
                    disk.remove(path)

    def load_state(self, network: Network, *, stage: int, older: bool) -> Checkpoint | None:
        """Fill a network as it was at a checkpoint of a stage, or at the beginning of that.

        Args:
            network: What is in memory of it is filled.
            stage: Blocks that are finished; of checkpoints of other stages nothing is taken.
            older: Take the checkpoint before the newest, if there is one.

        Returns:
            The checkpoint; None where the stage has none.

        Raises:
            RunError: A file cannot be read.
        """
        names = (PREVIOUS, CHECKPOINT) if older else (CHECKPOINT, PREVIOUS)
        for path in (self.path / name for name in names):
            try:
                checkpoint = read_checkpoint(path)
            except RunError:  # not there, or not whole
                continue
            if checkpoint.position.stage == stage:
                # Between stages nothing is in memory, and so nothing of it in the file.
                if checkpoint.position == Position(stage=stage):
                    network.reset()
                else:
                    _fill(network, path, checkpoint)
                return checkpoint
        network.reset()
        return None

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
            if not os.path.lexists(path):
                continue
            try:
                checkpoint = _parse_checkpoint(read_facts(path), path)
            except RunError as error:
                warnings.append(f"{error}; the checkpoint before it is used")
                continue
            _check_same_artifact(checkpoint.manifest_sha256, network, path)
            _fill(network, path, checkpoint)
            return checkpoint, warnings
        if warnings or self.lacks_checkpoints():
            raise RunError(
                f"no checkpoint in `{self.path}` is whole",
                hint="begin again in another folder; the best weights so far are in `best.*`, if they are whole",
            )
        return None, warnings

    def lacks_checkpoints(self) -> bool:
        """Whether there are weights that were judged later than any run without a checkpoint gets."""
        late = [path for path in self._bests() if path not in (self.best_after(0), self.best_after(1))]
        return bool(late) and not self.has_checkpoint()

    def has_checkpoint(self) -> bool:
        """Whether one was written, be it whole or not."""
        return any(os.path.lexists(self.path / name) for name in (CHECKPOINT, PREVIOUS))


def read_weights(path: Path, manifest_sha256: str) -> dict[str, Array]:
    """The weights of a `best.safetensors` or of a checkpoint, by `<block>.<name>`.

    Args:
        path: The file, or the folder of a run for its best weights so far.
        manifest_sha256: Of the artifact they must belong to.

    Raises:
        RunError: The file cannot be read, is damaged, or belongs to another artifact.
    """
    file = RunFolder(path).best_weights() if path.is_dir() else path
    facts = read_facts(file)
    if facts.get("manifest_sha256") != manifest_sha256:
        raise _other_artifact(file)
    # A checkpoint's optimiser state has a slash in its names, a weight has none.
    return {name: array for name, array in read_all_tensors(file).items() if not name.startswith("state/")}


def _fill(network: Network, path: Path, checkpoint: Checkpoint) -> None:
    """Fill what a network has in memory from a checkpoint; another engine's state is converted."""
    read_tensors_into(path, network.resident())
    network.convert_state(checkpoint.moments)


def _checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    position = checkpoint.position
    return {
        "format": _CHECKPOINT_FORMAT,
        "version": FORMAT_VERSION,
        "manifest_sha256": checkpoint.manifest_sha256,
        "moments": checkpoint.moments,
        "position": dataclasses.asdict(position),
        "settings": dict(checkpoint.settings),
        "guard": dict(checkpoint.guard),
        "best": checkpoint.best,
        "rate_factors": dict(checkpoint.rate_factors),
    }


def read_checkpoint(path: Path) -> Checkpoint:
    """What a checkpoint says, once every byte of it was compared with its checksum.

    Raises:
        RunError: It cannot be read, is damaged, or is none.
    """
    return _parse_checkpoint(read_facts(path), path)


def _parse_checkpoint(facts: Mapping[str, Any], path: Path) -> Checkpoint:
    if facts.get("format") != _CHECKPOINT_FORMAT or facts.get("version") != FORMAT_VERSION:
        raise RunError(f"`{path}` is not a checkpoint of version {FORMAT_VERSION}")
    try:
        found = Checkpoint(
            manifest_sha256=facts["manifest_sha256"],
            position=Position(**facts["position"]),
            settings=facts["settings"],
            guard=facts["guard"],
            best=facts["best"],
            rate_factors=facts["rate_factors"],
            # What was written before there were others are sums.
            moments=facts.get("moments", "sums"),
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"`{path}` is not a checkpoint of version {FORMAT_VERSION}: it lacks a part") from error
    counts = (*dataclasses.astuple(found.position), found.best)
    maps = (found.settings, found.guard, found.rate_factors)
    sound = all(type(count) is int and count >= 0 for count in counts) and all(isinstance(m, dict) for m in maps)
    sound = sound and found.moments in get_args(Moments)
    if not sound or not all(type(factor) is float and 0 < factor <= 1 for factor in found.rate_factors.values()):
        raise RunError(f"`{path}` is not a checkpoint of version {FORMAT_VERSION}: a part is no such thing")
    return found


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
        with open_plain(path) as stream:
            value = json.loads(stream.read())
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror or error}", hint="check its rights") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"`{path}` is damaged: it is not JSON", hint="see what is left by `edgeff fsck`") from error
    if not isinstance(value, dict):
        raise RunError(f"`{path}` is damaged: it is not a JSON object", hint="see what is left by `edgeff fsck`")
    return value
