"""The pretrained networks that come with edgeff: artifacts in `zoo/`, and what is known of each."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from edgeff.atomic import atomic_file
from edgeff.errors import ArtifactError, did_you_mean

FOLDER = Path(__file__).parent / "zoo"
INDEX = "index.toml"


@dataclass(frozen=True)
class ZooModel:
    """One network.

    Attributes:
        name: Of the artifact, without `.zip`.
        task: What it does, for people.
        preset: Its network.
        recipe: That it was trained by.
        seed: Of the run.
        date: On which it was trained.
        validation_accuracy: What its epoch and fusion were chosen by, 0..1.
        test_accuracy: Looked at once, 0..1.
        test: What it was tested on.
        data: That it was trained on.
        licence: Of the data, some rows of which travel along unless it says otherwise.
        edgeff_version: That trained it.
        replay: Rows of the data travel along.
    """

    name: str
    task: str
    preset: str
    recipe: str
    seed: int
    date: str
    validation_accuracy: float
    test_accuracy: float
    test: str
    data: str
    licence: str
    edgeff_version: str
    replay: bool

    @property
    def path(self) -> Path:
        """Its artifact."""
        return FOLDER / f"{self.name}.zip"

    @property
    def commands(self) -> tuple[str, str]:
        """What makes it again."""
        run = f"runs/{self.name}"
        return (
            f"edgeff pretrain --recipe {self.recipe} --seed {self.seed} --threads 1 --data-dir DATA --out {run}",
            f"edgeff export {run} --out {self.name}.zip{'' if self.replay else ' --no-replay'}",
        )


def zoo_models() -> Mapping[str, ZooModel]:
    """All networks by name, in the order of the index.

    Raises:
        ArtifactError: The index is damaged.
    """
    try:
        table = tomllib.loads((FOLDER / INDEX).read_text(encoding="utf-8"))
        keys = {one.name for one in fields(ZooModel)} - {"name"}
        return {name: ZooModel(name=name, **{key: entry[key] for key in keys}) for name, entry in table.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"`{FOLDER / INDEX}` is damaged: {type(error).__name__}: {error}", hint="install edgeff once more"
        ) from error


def zoo_model(name: str) -> ZooModel:
    """A network by its name.

    Raises:
        ArtifactError: There is none; says which name is nearest.
    """
    known = zoo_models()
    if name not in known:
        raise ArtifactError(f"there is no network `{name}` in the zoo", hint=did_you_mean(name, known, most=1))
    return known[name]


def copy_model(model: ZooModel, out: Path) -> None:
    """Write a network's artifact to a place of one's own: a `.zip` file.

    Raises:
        ArtifactError: The place is taken, or its name does not end in `.zip`.
        RunError: It cannot be written.
    """
    if out.suffix != ".zip":
        raise ArtifactError(f"`{out}` is no name for a zip file", hint=f"write for example `--out {model.name}.zip`")
    if os.path.lexists(out):
        raise ArtifactError(f"`{out}` exists already", hint="remove it, or write to another place")
    with atomic_file(out) as target, model.path.open("rb") as source:
        shutil.copyfileobj(source, target)
