"""Studies from the command line on tiny data: tables, pictures, paragraphs, and runs that are not repeated."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import TinyRun, edgeff

from edgeff.class_names import CIFAR100, CIFAR100_COARSE
from edgeff.dataset import Dataset
from edgeff.recipe import Recipe
from edgeff.studies.adapt import DRIFT_GAIN, drifted
from edgeff.studies.compare import local_name
from edgeff.studies.findings import Findings, shown
from edgeff.studies.k_conflict import SYNTHETIC_ROWS, TEST_ROWS, teacher_data
from edgeff.studies.label_sets import in_groups, of_classes, random_groups
from edgeff.studies.picture import Panel, picture

ONCE = ("--seeds", 1, "--epochs", 1, "--threads", 1)


@pytest.fixture
def recipe(tiny: TinyRun, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""about = "A few waves."
[data]
data = "{tiny.train}"
test = "{tiny.own}"
[network]
preset = "har-cnn"
width = 0.25
[training]
epochs = 2
batch_size = 32
"""
    )
    return path


def table_of(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / f"{name}.csv").read_text())))


def test_a_comparison_has_a_row_for_every_method_and_says_how_far_apart_they_are(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pairs = tmp_path / "pairs.toml"
    pairs.write_text(recipe.read_text() + 'layers = "2-layer"\n')
    result = edgeff("study", "compare", "--recipe", recipe, "--recipe", pairs, "--out", out, *ONCE)
    assert result.exit_code == 0, result.output
    rows = table_of(out, "compare-tiny")
    assert [row["method"] for row in rows] == ["DTG-FF", "DTG-FF, 2-layer", "bp-deepsup", "bp"]
    assert {row["epochs"] for row in rows} == {"1"}
    local, _, deep, whole = rows
    assert local["parameters"] == deep["parameters"]
    assert int(whole["parameters"]) < int(deep["parameters"])
    assert all(int(row["planned_bytes"]) > 0 and float(row["rows_per_s"]) > 0 for row in rows)
    # One block at a time needs less where there are several, and is the same where there is one.
    assert [int(row["stage_bytes"]) < int(row["planned_bytes"]) for row in rows] == [True, True, False, False]
    ahead = 100 * (float(local["test_accuracy"]) - float(whole["test_accuracy"]))
    side = "ahead of" if ahead > 0 else "behind"
    assert f"{abs(ahead):.2f} points {side} back-propagation;" in result.stdout
    best = max(rows[:2], key=lambda row: float(row["validation_accuracy"]))["method"]
    assert f"The best local objective on validation data is {best}." in result.stdout
    ElementTree.parse(out / "compare-tiny.svg")
    assert (
        (out / "compare-tiny.md").read_text().startswith("# Local learning and back-propagation on tiny\n\n| recipe |")
    )


def test_a_study_that_is_repeated_trains_nothing_again_and_finds_the_same(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, again = (edgeff("study", "depth", "--recipe", recipe, "--out", out, *ONCE) for _ in range(2))
    assert first.exit_code == again.exit_code == 0, first.output + again.output
    assert first.stderr.count("epoch 1/1") == 2
    assert "epoch" not in again.stderr
    assert first.stdout == again.stdout
    outcome = out / "runs" / "tiny-bp-deepsup-seed0" / "outcome.json"
    assert json.loads(outcome.read_text())["rows_per_s"] > 0
    outcome.unlink()  # as if it had been trained elsewhere
    assert edgeff("study", "depth", "--recipe", recipe, "--out", out, *ONCE).stdout == first.stdout
    assert json.loads(outcome.read_text())["rows_per_s"] is None


def test_a_study_whose_runs_were_of_something_else_is_refused(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert edgeff("study", "depth", "--recipe", recipe, "--out", out, *ONCE).exit_code == 0
    other = edgeff("study", "depth", "--recipe", recipe, "--out", out, "--seeds", 1, "--epochs", 2)
    assert other.exit_code == 1
    assert "cannot be resumed: its setting epochs differs: it was 1, and now it is 2" in other.stderr


def test_depth_has_every_block_and_the_fused_prediction(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = edgeff("study", "depth", "--recipe", recipe, "--out", out, *ONCE, "--json")
    found = json.loads(result.stdout)
    assert [row["block"] for row in found["rows"] if row["method"] == "DTG-FF"] == [1, 2, 3, 4, "fused"]
    outcome = json.loads((out / "runs" / "tiny-DTG-FF-seed0" / "outcome.json").read_text())
    assert [row["test_accuracy"] for row in found["rows"][:4]] == outcome["readout_accuracy"]
    assert found["rows"][4]["test_accuracy"] == outcome["test_accuracy"]


def test_an_ablation_leaves_out_what_it_says(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = edgeff("study", "ablation", "--recipe", recipe, "--out", out, *ONCE)
    assert result.exit_code == 0, result.output
    assert len(table_of(out, "ablation-tiny")) == 8
    described = json.loads((out / "runs" / "tiny-neither-seed0" / "recipe.json").read_text())["network"]["blocks"][0]
    assert described["temperature"] == {"part": "FixedTemperature", "value": 1.0}
    assert described["handover"] == {"part": "NoHandoverNorm"}


def test_recipes_that_differ_in_batch_norm_are_not_compared(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text() + "batch_norm = true\n")
    result = edgeff("study", "compare", "--recipe", recipe, "--recipe", other, "--out", tmp_path / "out", *ONCE)
    assert result.exit_code == 1
    assert "recipes `other` and `tiny` differ in batch_norm" in result.stderr
    assert not (tmp_path / "out" / "runs").exists()


def test_a_study_needs_what_it_needs(tmp_path: Path) -> None:
    nothing = edgeff("study", "compare", "--out", tmp_path / "out")
    assert (nothing.exit_code, "needs a recipe" in nothing.stderr) == (1, True)
    unknown = edgeff("study", "compare", "--recipe", "hapt-cpv", "--out", tmp_path / "out")
    assert (unknown.exit_code, "did you mean `hapt-cpu`?" in unknown.stderr) == (1, True)
    assert edgeff("study", "everything", "--out", tmp_path / "out").exit_code == 2


def test_findings_are_written_as_table_picture_and_text(tmp_path: Path) -> None:
    rows = [{"name": "a, b", "value": 0.25, "none": None}, {"name": "c", "value": 1234.5, "none": 3}]
    panel = Panel("value <1>", {"x": {"a, b": 0.25, "c": 1234.5}})
    found = Findings("some", "Some title", rows, [panel], "It was found.")
    found.write(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "some.csv").read_text() == 'name,value,none\n"a, b",0.25,\nc,1234.5,3\n'
    text = (tmp_path / "new" / "folder" / "some.md").read_text()
    assert "| a, b | 0.25 | - |\n| c | 1,234 | 3 |\n\nIt was found.\n\n![Some title](some.svg)\n" in text
    assert found.text().endswith("It was found.")
    assert shown(-0.000123) == "-0.000123"


def test_a_picture_has_a_bar_as_long_as_its_value_and_a_line_for_each_series() -> None:
    bars = Panel("bars", {"": {"half": 50.0, "whole": 100.0}})
    lines = Panel("lines", {"one": {2.0: 1.0, 100.0: 3.0}, "other": {2.0: 2.0}})
    root = ElementTree.fromstring(picture("Title", [bars, lines]).encode())
    name = "{http://www.w3.org/2000/svg}"
    widths = [float(rect.attrib["width"]) for rect in root.iter(f"{name}rect")][1:]
    assert widths[0] / widths[1] == pytest.approx(0.5, abs=0.01)
    assert len(list(root.iter(f"{name}polyline"))) == 2
    assert len(list(root.iter(f"{name}circle"))) == 3


def test_teachers_label_about_evenly_and_the_same_for_a_seed() -> None:
    train, test = teacher_data(10, seed=3)
    assert (len(train), len(test)) == (SYNTHETIC_ROWS, TEST_ROWS)
    shares = np.bincount(train.y, minlength=10) / len(train)
    assert shares.min() > 0.03
    assert np.array_equal(train.y, teacher_data(10, seed=3)[0].y)
    assert not np.array_equal(train.y, teacher_data(10, seed=4)[0].y)


def test_label_sets_keep_the_rows_and_change_what_they_are_called() -> None:
    y = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3], np.int64)
    x = np.arange(12, dtype=np.float32)[:, None]
    data = Dataset("four", x, y, ("a", "b", "c", "d"))
    some = of_classes(data, [1, 3], per_class=2, seed=0)
    assert some.classes == ("b", "d")
    assert np.bincount(some.y).tolist() == [2, 2]
    assert all(data.y[int(row)] == (1, 3)[label] for row, label in zip(some.x[:][:, 0], some.y, strict=True))
    grouped = in_groups(data, (1, 0, 0, 1))
    assert np.array_equal(grouped.y, np.array([1, 0, 0, 1])[y])
    groups = (0, 0, 0, 1, 1)
    assert sorted(random_groups(groups, 5)) == sorted(groups)
    assert len({random_groups(groups, seed) for seed in range(20)}) > 3


def test_each_superclass_of_cifar100_has_its_five_classes() -> None:
    members = {}
    for name, group in zip(CIFAR100, CIFAR100_COARSE, strict=True):
        members.setdefault(group, set()).add(name)
    assert sorted(members) == list(range(20))
    assert all(len(names) == 5 for names in members.values())
    assert members[0] == {"beaver", "dolphin", "otter", "seal", "whale"}
    assert members[14] == {"baby", "boy", "girl", "man", "woman"}
    assert members[19] == {"lawn_mower", "rocket", "streetcar", "tank", "tractor"}


@pytest.mark.parametrize("time_last", [True, False])
def test_a_drifted_sensor_is_turned_and_louder(time_last: bool) -> None:
    rng = np.random.default_rng(0)
    signals = rng.integers(-1000, 1000, (4, 6, 50)).astype(np.int16)
    x = signals if time_last else signals.transpose(0, 2, 1)
    moved = np.asarray(drifted(Dataset("d", x, np.zeros(4, np.int64))).x)
    assert moved.dtype == np.int16
    assert moved.shape == x.shape
    moved = moved if time_last else moved.transpose(0, 2, 1)
    before, after = (np.linalg.norm(one.reshape(4, 2, 3, 50).astype(float), axis=2) for one in (signals, moved))
    np.testing.assert_allclose(after, DRIFT_GAIN * before, atol=2.0)
    np.testing.assert_allclose(moved[:, 0], DRIFT_GAIN * signals[:, 0], atol=1.0)  # the axis it is turned about
    assert np.abs(moved[:, 1] - signals[:, 1]).max() > 100


def test_help_lists_every_study() -> None:
    text = edgeff("study", "--help").stdout
    for name in ("compare", "ablation", "depth", "k-conflict", "coarse-fine", "systems", "adapt"):
        assert re.search(rf"^\s+{name}\s+\S", text, re.MULTILINE)


def test_recipes_of_other_data_are_not_compared(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace("train.npz", "own.npz"))
    result = edgeff("study", "compare", "--recipe", recipe, "--recipe", other, "--out", tmp_path / "out", *ONCE)
    assert (result.exit_code, "recipes `other` and `tiny` differ in data" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("was", "becomes", "named"),
    [
        ("width = 0.25", "width = 0.5", "width"),
        ("epochs = 2", "epochs = 3\nweight_decay = 0.5", "epochs, weight_decay"),
    ],
)
def test_recipes_of_another_network_or_training_are_not_compared(
    recipe: Path, tmp_path: Path, was: str, becomes: str, named: str
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace(was, becomes))
    result = edgeff("study", "compare", "--recipe", recipe, "--recipe", other, "--out", tmp_path / "out", *ONCE)
    assert (result.exit_code, f"differ in {named}" in result.stderr) == (1, True)


def test_back_propagation_takes_no_relation_from_a_recipe(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text() + '[rule]\nrelation = "similarity"\nprojection = "fixed"\n')
    out = tmp_path / "out"
    result = edgeff("study", "depth", "--recipe", recipe, "--out", out, *ONCE)
    assert result.exit_code == 0, result.output
    described = json.loads((out / "runs" / "tiny-bp-deepsup-seed0" / "recipe.json").read_text())["network"]["blocks"][0]
    assert all("relation" not in layer for layer in described["layers"])
    assert all(layer["projection"]["part"] == "FixedProjection" for layer in described["layers"])


def test_a_place_where_no_folder_can_be_is_said_to_be_one(recipe: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    result = edgeff("study", "depth", "--recipe", recipe, "--out", taken, *ONCE)
    assert (result.exit_code, "cannot be written: File exists" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("systems", "--recipe", "hapt-cpu"), "study `systems` takes no recipe"),
        (("depth", "--recipe", "hapt-cpu", "--recipe", "ecg5000-cpu"), "study `depth` takes one recipe"),
        (("systems", "--epochs", 1), "study `systems` takes no epochs: it measures single steps"),
        (("systems", "--device", "cuda", "--mixed-precision"), "study `systems` measures in float32"),
        (("depth", "--device-python", sys.executable), "study `depth` on cpu has no use for --device-python"),
        (
            ("systems", "--device", "cuda", "--device-python", sys.executable),
            "study `systems` on cuda has no use for --device-python",
        ),
    ],
)
def test_options_that_a_study_has_no_use_for_are_refused(
    given: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    result = edgeff("study", *given, "--out", tmp_path / "out")
    assert (result.exit_code, message in result.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rule", "layers", "name"),
    [
        ({}, "1-layer", "DTG-FF"),
        ({}, "2-layer", "DTG-FF, 2-layer"),
        ({"auxiliary": 8, "auxiliary_cells": 4}, "2-layer", "DTG-FF, 2-layer, auxiliary 8, auxiliary cells 4"),
        ({"relation": "similarity"}, "1-layer", "local, relation similarity"),
    ],
)
def test_local_learning_is_called_by_what_it_learns_from(rule: dict[str, Any], layers: str, name: str) -> None:
    assert local_name(Recipe("any", "Any.", {"layers": layers}, rule)) == name
