"""The networks that come with edgeff: each opens, fits its recipe, and says where it is from."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import BinaryIO

import pytest
from tiny_run import edgeff

from edgeff.artifact import open_artifact
from edgeff.errors import ArtifactError
from edgeff.recipe import read_recipe
from edgeff.zoo_index import FOLDER, zoo_model, zoo_models

NAMES = list(zoo_models())


def test_every_file_is_in_the_index_and_every_entry_has_its_file() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.zip"))
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_what_its_entry_says(name: str) -> None:
    model = zoo_model(name)
    recipe = read_recipe(model.recipe)
    assert recipe.options["preset"] == model.preset
    manifest = open_artifact(model.path).manifest
    assert manifest.name == model.preset
    assert len(manifest.blocks) > 1
    assert 0.5 < model.test_accuracy <= 1.0
    assert model.path.stat().st_size < 4 * 2**20
    assert model.licence


def test_the_list_is_for_people_and_for_programs() -> None:
    lines = edgeff("zoo").stdout.splitlines()
    assert lines[0].split("  ")[0] == "name"
    assert [line.split("  ")[0] for line in lines[2:]] == NAMES
    found = json.loads(edgeff("zoo", "--json").stdout)
    assert [model["name"] for model in found] == NAMES
    assert all(model["commands"][0].startswith("edgeff pretrain --recipe ") for model in found)


def test_a_network_is_told_of_and_copied(tmp_path: Path) -> None:
    name, out = NAMES[0], tmp_path / "mine.zip"
    told = edgeff("zoo", name).stdout
    assert f"made by        edgeff pretrain --recipe {zoo_model(name).recipe} --seed" in told
    copied = edgeff("zoo", name, "--out", out)
    assert copied.stdout.startswith(f"{out}: ")
    assert out.read_bytes() == zoo_model(name).path.read_bytes()
    again = edgeff("zoo", name, "--out", out)
    assert (again.exit_code, again.stderr.splitlines()[0]) == (1, f"Error: `{out}` exists already")


def test_a_copy_that_is_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: BinaryIO, target: BinaryIO) -> None:
        target.write(source.read(1000))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgeff.zoo_index.shutil.copyfileobj", full)
    result = edgeff("zoo", NAMES[0], "--out", tmp_path / "mine.zip")
    assert (result.exit_code, "no space left on device" in result.stderr.lower()) == (1, True)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path) -> None:
    unknown = edgeff("zoo", NAMES[0][:-1])
    assert unknown.exit_code == 1
    assert f"hint: did you mean `{NAMES[0]}`?" in unknown.stderr
    folder = edgeff("zoo", NAMES[0], "--out", tmp_path / "mine")
    assert (folder.exit_code, "is no name for a zip file" in folder.stderr) == (1, True)
    nowhere = edgeff("zoo", NAMES[0], "--out", tmp_path / "no" / "mine.zip")
    assert (nowhere.exit_code, "no such file or directory" in nowhere.stderr) == (1, True)
    assert edgeff("zoo", "--out", tmp_path / "mine.zip").exit_code == 2


def test_a_damaged_index_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgeff.zoo_index.FOLDER", tmp_path)
    with pytest.raises(ArtifactError, match="is damaged: FileNotFoundError"):
        zoo_models()
    (tmp_path / "index.toml").write_text('[one]\ntask = "x"\n')
    with pytest.raises(ArtifactError, match="is damaged: KeyError"):
        zoo_models()
