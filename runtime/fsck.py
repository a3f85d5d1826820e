"""What is in the folder of a run, what of it is damaged, and what can be gone on with. Reads, and changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeff.errors import EdgeffError, RunError
from edgeff.lock import is_locked
from edgeff.runtime.checkpoint import BEST, CHECKPOINT, PREVIOUS, RESULT, RUN, Checkpoint, RunFolder, read_checkpoint
from edgeff.runtime.tensor_stream import read_facts
from edgeff.runtime.trainer import Position

# `whole`: every byte was compared with its checksum, or it parses where it has none. `spare`: not needed, or made again
# where it is missing. `unknown`: of somebody else.
State = Literal["whole", "damaged", "spare", "unknown"]
# What the run comes to with `--resume`.
Next = Literal["finished", "goes on", "begins again", "lost"]

_WEIGHTS = re.compile(r"(best\.\d+|best|block\..+)\.safetensors")
_SPARE = re.compile(r"features\..+\.(bin|json)|\..+\.tmp")


@dataclass(frozen=True)
class FileState:
    """One file.

    Attributes:
        name: In the folder.
        bytes: Of it.
        state: What it is like.
        note: What it holds, or what is wrong with it.
    """

    name: str
    bytes: int
    state: State
    note: str = ""


@dataclass(frozen=True)
class RunState:
    """A folder.

    Attributes:
        path: Of it.
        files: In it, by name.
        next: What `--resume` does.
        position: It goes on from; None where it does not.
        source: File that this is in.
        in_use: A process works in it now.
        why: It is lost, in words.
    """

    path: Path
    files: tuple[FileState, ...]
    next: Next
    position: Position | None = None
    source: str = ""
    in_use: bool = False
    why: str = ""

    @property
    def damaged(self) -> tuple[FileState, ...]:
        """The files that are."""
        return tuple(file for file in self.files if file.state == "damaged")


@dataclass
class _Findings:
    facts: dict[str, Any] | None = None
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    bests: dict[str, int] = field(default_factory=dict)
    blocks: set[str] = field(default_factory=set)
    finished: bool = False


def examine(path: Path) -> RunState:
    """Look at a folder that `edgeff train-on-device` writes.

    Raises:
        RunError: There is none, or it is of something else.
    """
    if not path.is_dir():
        raise RunError(f"there is no folder `{path}`", hint="give the run folder of `edgeff train-on-device`")
    if (path / "recipe.json").exists():
        raise RunError(
            f"`{path}` is a run of `edgeff pretrain`", hint="`edgeff pretrain ... --resume` checks it and goes on"
        )
    folder, found = RunFolder(path), _Findings()
    in_use = is_locked(path / RUN)
    # What it began with comes first: all others must be of the same artifact.
    names = sorted(path.iterdir(), key=lambda one: (one.name != RUN, one.name))
    looked_at = [_look(folder, one, found) for one in names]
    # Of a run that goes on meanwhile some come and go.
    files = tuple(sorted((file for file in looked_at if file is not None), key=lambda file: file.name))
    following, source, why = _next(folder, found)
    position = found.checkpoints[source].position if source else None
    return RunState(path, files, following, position, source, in_use, why)


def _look(folder: RunFolder, path: Path, found: _Findings) -> FileState | None:
    """What a file is; None where it is gone by now."""
    try:
        size = path.lstat().st_size
    except FileNotFoundError:
        return None
    try:
        if path.is_symlink() or not path.is_file():
            raise RunError(f"`{path}` is no file")
        state, note = _state(folder, path, found)
    except EdgeffError as error:
        if not os.path.lexists(path):
            return None
        state, note = "damaged", str(error)
    return FileState(path.name, size, state, note)


def _state(folder: RunFolder, path: Path, found: _Findings) -> tuple[State, str]:
    name = path.name
    if name == RUN:
        found.facts = folder.facts()
        return "whole", "what the run began with"
    if name == RESULT:
        found.finished = folder.result() is not None
        return "whole", "the run is finished"
    if name in (CHECKPOINT, PREVIOUS):
        checkpoint = read_checkpoint(path)
        _check_artifact(checkpoint.manifest_sha256, found, path)
        found.checkpoints[name] = checkpoint
        return "whole", _place(checkpoint.position)
    if _WEIGHTS.fullmatch(name):
        facts = read_facts(path)
        _check_artifact(facts.get("manifest_sha256"), found, path)
        return "whole", _weights_note(name, facts, found)
    if _SPARE.fullmatch(name):
        return "spare", "left by an interruption" if name.endswith(".tmp") else "made again where it is missing"
    return "unknown", ""


def _weights_note(name: str, facts: Mapping[str, Any], found: _Findings) -> str:
    if name.startswith("block."):
        found.blocks.add(name)
        return "a finished block"
    epoch = facts.get("epoch")
    if type(epoch) is int:
        found.bests[name] = epoch
    return f"weights judged after round {epoch}"


def _check_artifact(manifest_sha256: object, found: _Findings, path: Path) -> None:
    if found.facts is not None and found.facts.get("manifest_sha256") != manifest_sha256:
        raise RunError(f"`{path}` belongs to another artifact than `{RUN}`")


def _next(folder: RunFolder, found: _Findings) -> tuple[Next, str, str]:
    """What `--resume` does, the checkpoint it takes, and why it cannot."""
    if folder.is_blank():
        return "begins again", "", ""
    if found.facts is None:
        return "lost", "", f"`{RUN}` is missing or damaged"
    if not found.finished and os.path.lexists(folder.path / RESULT):
        return "lost", "", f"`{RESULT}` is damaged"
    if found.finished:
        return ("finished", "", "") if BEST in found.bests else ("lost", "", f"`{BEST}` is missing or damaged")
    written = [name for name in (CHECKPOINT, PREVIOUS) if (folder.path / name).exists()]
    if folder.lacks_checkpoints():
        return "lost", "", "its checkpoints are missing"
    if not written:
        return "begins again", "", ""
    newest = next((name for name in written if name in found.checkpoints), None)
    if newest is None:
        return "lost", "", "no checkpoint is whole"
    if found.checkpoints[newest].best not in found.bests.values():
        return "lost", "", "the best weights so far are missing or damaged"
    if len(found.blocks) < found.checkpoints[newest].position.stage:
        return "lost", "", "a block that is finished is missing or damaged"
    return "goes on", newest, ""


def _place(position: Position) -> str:
    stage = f"{position.stage} blocks done, " if position.stage else ""
    return f"{stage}epoch {position.epoch}, batch {position.batch}, after step {position.step}"
