"""Pretraining from the command line: options, recipes and rules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_run import TinyRun, edgeff, wave_arrays

from edgeff.artifact import open_artifact
from edgeff.pretrain_run import PretrainedRun, load_run

SMALL = ("--width", 0.25, "--epochs", 1, "--batch-size", 32, "--threads", 1)
HAR = ("--preset", "har-cnn")


def refused(*arguments: object) -> tuple[str, str]:
    """Message and hint of a command that ends with 1."""
    result = edgeff(*arguments)
    assert result.exit_code == 1, result.output
    message, _, hint = result.stderr.removeprefix("Error: ").partition("\n\nhint: ")
    return message, hint.strip()


def pretrained(out: Path, *arguments: object) -> PretrainedRun:
    result = edgeff("pretrain", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    return load_run(out)


# --- what it says -----------------------------------------------------------------------------------------------------


def test_pretraining_tells_its_result_on_stdout_and_its_progress_on_stderr(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = edgeff("pretrain", *HAR, "--data", tiny.own, "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        rf"{re.escape(str(out))}: best epoch 1, validation accuracy 0\.\d{{4}} \((0\.\d{{3}} ?){{4}}\)\n", result.stdout
    )
    assert re.fullmatch(r"epoch 1/1  validation accuracy 0\.\d{4}  [1-9]\d* rows/s\n", result.stderr)


def test_pretraining_takes_its_shape_from_the_data_and_prints_json(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = ("--data", tiny.own, "--validation", tiny.train)
    found = json.loads(edgeff("pretrain", *HAR, *data, "--out", out, *SMALL, "--json").stdout)
    assert set(found) == {"run", "best_epoch", "validation_accuracy", "readout_accuracy", "parameters"}
    assert (found["run"], found["best_epoch"], len(found["readout_accuracy"])) == (str(out), 1, 4)
    assert found["parameters"] == sum(parameter.numel() for parameter in load_run(out).network.parameters()) > 1000
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["source"]["arguments"]["input_shape"] == [6, 32]
    assert recipe["split"]["validation"]["rows"] == 360


def test_test_data_are_looked_at_by_the_network_that_is_kept(tiny: TinyRun, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", **wave_arrays(90, seed=7))
    given = (*HAR, "--data", tiny.own, "--test", tmp_path / "test.npz", *SMALL, "--epochs", 2)
    result = edgeff("pretrain", *given, "--out", tmp_path / "run")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("test ")]
    printed = re.fullmatch(r"test accuracy (\d\.\d{4}) on .*test\.npz", line)
    assert printed
    run, rows = load_run(tmp_path / "run"), np.load(tmp_path / "test.npz")
    with torch.no_grad():
        found = run.network(torch.from_numpy(run.preprocessing.apply(rows["x"]))).argmax(dim=1).numpy()
    accuracy = float((found == rows["y"]).mean())
    assert float(printed[1]) == pytest.approx(accuracy, abs=1e-4)
    as_json = json.loads(edgeff("pretrain", *given, "--out", tmp_path / "again", "--json").stdout)
    assert as_json["test_accuracy"] == pytest.approx(accuracy)
    assert len(as_json["test_readout_accuracy"]) == 4
    # It has no part in the training.
    without = pretrained(tmp_path / "without", *HAR, "--data", tiny.own, *SMALL, "--epochs", 2)
    assert without.recipe["metrics"][-1]["validation"] == run.recipe["metrics"][-1]["validation"]


def test_test_data_that_are_not_there_are_missed_before_anything_is_trained(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    message, _ = refused("pretrain", *HAR, "--data", tiny.own, "--test", tmp_path / "no.npz", "--out", out, *SMALL)
    assert "no.npz" in message
    assert not out.exists()


# --- how it trains ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("losses", "readouts"), [("last", 2), ("all", 4)])
def test_two_layers_may_learn_as_one(tiny: TinyRun, tmp_path: Path, losses: str, readouts: int) -> None:
    given = (*HAR, "--data", tiny.own, "--layers", "2-layer", "--losses", losses, *SMALL)
    run = pretrained(tmp_path / "run", *given)
    assert [block.name for block in run.network.sequence] == ["block1-block2", "block3-block4"]
    assert len(run.metrics[0].validation.readout_accuracy) == readouts
    assert [block.describe()["losses"] for block in run.network.sequence] == [losses] * 2
    assert all(len(block.leaves()) == 2 for block in run.network.sequence)


def test_batch_norm_is_folded_into_a_run_that_exports_like_any(tiny: TinyRun, tmp_path: Path) -> None:
    given = (*HAR, "--data", tiny.own, *SMALL)
    plain = pretrained(tmp_path / "plain", *given)
    normed = pretrained(tmp_path / "normed", *given, "--batch-norm")
    assert (plain.settings.batch_norm, normed.settings.batch_norm) == (False, True)
    assert normed.network.describe()["blocks"] == plain.network.describe()["blocks"]
    assert largest_difference(plain, normed) > 0.0
    exported = edgeff("export", tmp_path / "normed", "--out", tmp_path / "a.zip")
    assert exported.exit_code == 0, exported.output
    evaluated = json.loads(edgeff("evaluate", tmp_path / "a.zip", "--data", tiny.own, "--json").stdout)
    rows = np.load(tiny.own)
    with torch.no_grad():
        found = normed.network(torch.from_numpy(normed.preprocessing.apply(rows["x"]))).argmax(dim=1).numpy()
    assert evaluated["accuracy"] == pytest.approx(float((found == rows["y"]).mean()))


def test_the_last_epoch_is_not_called_the_best(tiny: TinyRun, tmp_path: Path) -> None:
    result = edgeff("pretrain", *HAR, "--data", tiny.own, "--out", tmp_path / "run", *SMALL, "--keep", "last")
    assert ": last epoch 1, validation accuracy " in result.stdout


def test_back_propagation_has_no_blocks_of_two_layers(tiny: TinyRun, tmp_path: Path) -> None:
    given = (*HAR, "--data", tiny.own, "--out", tmp_path / "run", "--mode", "bp", "--layers", "2-layer")
    assert refused("pretrain", *given)[0] == ("mode `bp` trains all layers as one block, not blocks of `2-layer`")


def largest_difference(one: PretrainedRun, other: PretrainedRun) -> float:
    pairs = zip(one.network.tensors().items(), other.network.tensors().values(), strict=True)
    return max(float((tensor - second).abs().max()) for (_, tensor), second in pairs)


def test_a_micro_batch_changes_what_is_learnt_only_where_rows_are_compared(tiny: TinyRun, tmp_path: Path) -> None:
    # Steps along the gradient: what rounding makes of the smallest gradients shows in no step of full length.
    given = (*HAR, "--data", tiny.own, *SMALL, "--optimizer", "sgd", "--learning-rate", 0.01)
    found: dict[tuple[str, int], PretrainedRun] = {}
    for relation in ("none", "similarity"):
        for size in (0, 8):
            more = ("--rule", f"relation={relation}", "--micro-batch", size)
            found[relation, size] = pretrained(tmp_path / f"{relation}-{size}", *given, *more)
    assert found["none", 8].settings.micro_batch == 8
    assert largest_difference(found["none", 0], found["none", 8]) < 1e-5
    assert largest_difference(found["similarity", 0], found["similarity", 8]) > 1e-3


# --- rules ------------------------------------------------------------------------------------------------------------


def rule_of(run: PretrainedRun) -> dict[str, Any]:
    """What the run folder says of its rule."""
    return dict(run.recipe["source"]["arguments"].get("rule", {}))


def test_rules_are_given_by_key_and_value_and_kept_with_the_run(tiny: TinyRun, tmp_path: Path) -> None:
    rules = ("projection=hidden", "hidden-units = 5", "handover=unit-norm", "handover=group-norm")
    given = (*HAR, "--data", tiny.own, *SMALL, *(part for rule in rules for part in ("--rule", rule)))
    run = pretrained(tmp_path / "run", *given)
    assert rule_of(run) == {"projection": "hidden", "hidden_units": 5, "handover": "group-norm"}
    described = [block.describe() for block in run.network.sequence]
    assert [one["projection"] for one in described] == [{"part": "HiddenProjection", "units": 5}] * 4
    assert [one["handover"]["part"] for one in described] == ["GroupNormHandover"] * 4


def test_without_a_rule_a_run_says_nothing_of_one(tiny: TinyRun, tmp_path: Path) -> None:
    plain = pretrained(tmp_path / "plain", *HAR, "--data", tiny.own, *SMALL)
    default = pretrained(tmp_path / "default", *HAR, "--data", tiny.own, *SMALL, "--rule", "goodness=mean")
    assert rule_of(plain) == rule_of(default) == {}
    assert largest_difference(plain, default) == 0.0


@pytest.mark.parametrize(
    ("rule", "message", "hint"),
    [
        ("nonsense", "`nonsense` is no rule setting", "write for example `--rule projection=fixed`"),
        ("projektion=fixed", "unknown rule setting `projektion`", "did you mean `projection`?"),
        (
            "projection=fixd",
            "rule `projection` must be `learned` or `fixed` or `hidden` or `softmax` or `prototypes`, got `fixd`",
            "see `edgeff pretrain --help`",
        ),
        ("cells=many", "rule `cells` must be a whole number, got `many`", "see `edgeff pretrain --help`"),
        (
            "probe=true",
            "rule `probe` says nothing with `relation=none`",
            "leave it out, or choose `relation=similarity`",
        ),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_before_anything_is_trained(
    tiny: TinyRun, tmp_path: Path, rule: str, message: str, hint: str
) -> None:
    out = tmp_path / "run"
    assert refused("pretrain", *HAR, "--data", tiny.own, "--out", out, "--rule", rule) == (message, hint)
    assert not out.exists()


# --- recipes ----------------------------------------------------------------------------------------------------------


def recipe_file(tmp_path: Path, data: Path) -> Path:
    path = tmp_path / "waves.toml"
    path.write_text(
        f"""
about = "Waves."

[data]
data = "{data}"

[network]
preset = "har-cnn"
width = 0.25

[training]
epochs = 2
batch_size = 64
learning_rate = 0.004
label_smoothing = 0.1
layers = "2-layer"
batch_norm = true

[rule]
projection = "fixed"
cells = 2
probe = false
relation = "similarity"
relation_weight = 0.5
"""
    )
    return path


def test_a_recipe_sets_every_option_that_it_names(tiny: TinyRun, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", "--recipe", recipe_file(tmp_path, tiny.own), "--threads", 1)
    settings = run.settings
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (2, 64, 0.004)
    assert (settings.label_smoothing, settings.layers, settings.batch_norm) == (0.1, "2-layer", True)
    assert settings.weight_decay == 1e-4  # the command's own default
    assert run.recipe["source"]["arguments"]["width"] == 0.25
    assert rule_of(run) == {"projection": "fixed", "cells": 2, "relation": "similarity", "relation_weight": 0.5}
    assert len(run.network.sequence) == 2


def test_a_recipe_is_followed_as_if_its_options_had_been_given(tiny: TinyRun, tmp_path: Path) -> None:
    by_recipe = pretrained(tmp_path / "recipe", "--recipe", recipe_file(tmp_path, tiny.own), "--threads", 1)
    options = ("--width", 0.25, "--epochs", 2, "--batch-size", 64, "--learning-rate", 0.004, "--label-smoothing", 0.1)
    rules = ("projection=fixed", "cells=2", "relation=similarity", "relation_weight=0.5")
    given = (*HAR, "--data", tiny.own, *options, "--layers", "2-layer", "--batch-norm", "--threads", 1)
    by_options = pretrained(tmp_path / "options", *given, *(part for rule in rules for part in ("--rule", rule)))
    assert by_recipe.settings == by_options.settings
    assert largest_difference(by_recipe, by_options) == 0.0


def test_an_interrupted_pretraining_says_how_it_goes_on(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("pretrain", *HAR, "--data", tiny.own, *SMALL, "--epochs", 2, "--out", tmp_path / "run")

    def interrupt(self: object, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("edgeff.cli_pretrain.ProgressLine.note", interrupt)
        stopped = edgeff(*given)
    assert stopped.exit_code == 75
    assert "stopped by SIGINT\n\nhint: the last whole epoch is kept: " in stopped.stderr
    assert f"go on by `edgeff pretrain ... --out {tmp_path}/run --resume`" in stopped.stderr
    assert edgeff(*given, "--resume").exit_code == 0
    assert len(load_run(tmp_path / "run").metrics) == 2


def test_ones_own_data_are_not_tested_or_validated_by_a_recipes(tiny: TinyRun, tmp_path: Path) -> None:
    path, rows = recipe_file(tmp_path, tiny.own), tmp_path / "test.npz"
    np.savez(rows, **wave_arrays(90, seed=7))
    path.write_text(path.read_text().replace("[network]", f'test = "{rows}"\nvalidation = "{rows}"\n[network]'))
    common = ("pretrain", "--recipe", path, "--epochs", 1, "--threads", 1)
    as_it_is = edgeff(*common, "--out", tmp_path / "recipes")
    assert f"on {rows}" in as_it_is.stdout
    assert load_run(tmp_path / "recipes").recipe["split"]["validation"]["rows"] == 90
    given = edgeff(*common, "--data", tiny.own, "--out", tmp_path / "own")
    assert (given.exit_code, "test accuracy" in given.stdout) == (0, False)
    assert load_run(tmp_path / "own").recipe["split"]["validation"]["rows"] == 40
    tested = edgeff(*common, "--data", tiny.own, "--test", rows, "--out", tmp_path / "tested")
    assert f"on {rows}" in tested.stdout


@pytest.mark.parametrize("recipe_first", [True, False])
def test_what_is_given_on_the_command_line_counts_instead_of_the_recipe(
    tiny: TinyRun, tmp_path: Path, recipe_first: bool
) -> None:
    recipe = ("--recipe", recipe_file(tmp_path, tmp_path / "nowhere.npz"))
    options = (
        "--data",
        tiny.own,
        "--epochs",
        1,
        "--width",
        0.1,
        "--layers",
        "1-layer",
        "--no-batch-norm",
        "--threads",
        1,
    )
    rules = ("--rule", "projection=hidden", "--rule", "hidden_units=4")
    run = pretrained(tmp_path / "run", *((*recipe, *options, *rules) if recipe_first else (*options, *rules, *recipe)))
    assert (run.settings.epochs, run.settings.batch_size, run.settings.layers) == (1, 64, "1-layer")
    assert not run.settings.batch_norm
    assert run.recipe["source"]["arguments"]["width"] == 0.1
    # Of the rule too, setting by setting.
    assert rule_of(run) == {
        "projection": "hidden",
        "hidden_units": 4,
        "cells": 2,
        "relation": "similarity",
        "relation_weight": 0.5,
    }


def test_an_unknown_recipe_is_refused_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: TinyRun
) -> None:
    recipe_file(tmp_path, tiny.own)
    monkeypatch.setattr("edgeff.recipe.FOLDER", tmp_path)
    out = ("--out", tmp_path / "run")
    assert refused("pretrain", "--recipe", "wave", *out) == ("there is no recipe `wave`", "did you mean `waves`?")
    assert refused("pretrain", "--recipe", "zzz", *out) == ("there is no recipe `zzz`", "known: waves")
    assert pretrained(tmp_path / "run", "--recipe", "waves", "--epochs", 1).settings.epochs == 1


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("[rule]\nprojektion = 'fixed'", "unknown rule setting `projektion`", "did you mean `projection`?"),
        ("[rule]\ncells = 2.5", "rule `cells` must be a whole number, got `2.5`", "see `edgeff pretrain --help`"),
        (
            "[training]\nepoch = 3",
            "recipe `mine` has an unknown key `training.epoch`",
            "did you mean `training.epochs`?",
        ),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(
    tiny: TinyRun, tmp_path: Path, line: str, message: str, hint: str
) -> None:
    (tmp_path / "mine.toml").write_text(f'about = "x"\n{line}\n')
    given = (*HAR, "--data", tiny.own, "--out", tmp_path / "run", "--recipe", tmp_path / "mine.toml")
    assert refused("pretrain", *given) == (message, hint)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[training]\noptimizer = 'adam'", "'adam' is not one of 'adamw', 'sgd'"),
        (
            "[training]\naugment = 'blur'",
            "'blur' is not one of 'none', 'shift', 'shift-flip', 'shift-flip-cutout', 'signal'",
        ),
    ],
)
def test_a_value_of_a_recipe_that_the_option_cannot_have_is_refused_as_the_option_is(
    tiny: TinyRun, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "mine.toml").write_text(f'about = "x"\n{line}\n')
    given = (*HAR, "--data", tiny.own, "--out", tmp_path / "run", "--recipe", tmp_path / "mine.toml")
    result = edgeff("pretrain", *given)
    assert result.exit_code == 2
    assert message in result.stderr


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "row", "shape"),
    [
        ("image-cnn", (16, 16, 3), [3, 16, 16]),
        ("image-cnn", (16, 16), [1, 16, 16]),
        ("image-cnn", (3, 16, 16), [3, 16, 16]),
        ("mlp", (4, 8), [32]),
    ],
)
def test_channels_are_found_wherever_the_rows_have_them(
    tmp_path: Path, preset: str, row: tuple[int, ...], shape: list[int]
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 256, (30, *row)).astype(np.uint8), y=np.arange(30) % 3)
    out = tmp_path / "run"
    result = edgeff("pretrain", "--preset", preset, "--data", tmp_path / "d.npz", "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    arguments = json.loads((out / "recipe.json").read_text())["source"]["arguments"]
    assert (arguments["input_shape"], arguments["classes"]) == (shape, 3)


def own_network(file: Path) -> str:
    """A factory whose weights are drawn as torch draws them by default."""
    file.write_text(
        "from torch import nn\n"
        "from edgeff.model import LocalBlock, LocalNetwork\n"
        "def build():\n"
        "    first = LocalBlock(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU()))\n"
        "    return LocalNetwork([first], input_shape=(6, 32), classes=('sit', 'walk', 'run'))\n"
    )
    return f"{file}:build"


def test_a_network_of_ones_own_is_pretrained_and_exported(tiny: TinyRun, tmp_path: Path) -> None:
    factory = own_network(tmp_path / "mine.py")
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    result = edgeff("pretrain", "--model", factory, "--data", tiny.own, "--out", run, *SMALL[2:])
    assert result.exit_code == 0, result.output
    (tmp_path / "mine.py").unlink()  # the run has its own copy
    result = edgeff("export", run, "--out", artifact)
    assert result.exit_code == 0, result.output
    assert [block.name for block in open_artifact(artifact).manifest.blocks] == ["block1"]


def test_a_model_file_that_was_changed_meanwhile_is_told_of(tiny: TinyRun, tmp_path: Path) -> None:
    """Its network looks the same, and is trained by another `forward`: half a run would be of either."""
    given = ("--model", own_network(tmp_path / "mine.py"), "--data", tiny.own, "--out", tmp_path / "run", *SMALL[2:])
    assert edgeff("pretrain", *given).exit_code == 0
    assert edgeff("pretrain", *given, "--resume").exit_code == 0
    with (tmp_path / "mine.py").open("a") as stream:
        stream.write("nn.ReLU.forward = lambda self, x: 3 * x.tanh()\n")
    before = torch.nn.ReLU.forward
    try:
        assert "its model file differs" in refused("pretrain", *given, "--resume")[0]
    finally:
        torch.nn.ReLU.forward = before


@pytest.mark.parametrize("option", [("--width", 7), ("--input-shape", "9,9")])
def test_what_only_presets_heed_is_refused_for_a_model(
    tiny: TinyRun, tmp_path: Path, option: tuple[str, object]
) -> None:
    given = ("--model", own_network(tmp_path / "mine.py"), "--data", tiny.own, "--out", tmp_path / "run")
    result = edgeff("pretrain", *given, *option)
    assert result.exit_code == 2
    assert f"{option[0]} is for --preset; a model has its own" in result.stderr


@pytest.mark.parametrize("rate", [1e30])
def test_weights_that_diverge_in_the_last_step_are_one_line(tiny: TinyRun, tmp_path: Path, rate: float) -> None:
    given = (*HAR, "--data", tiny.own, *SMALL, "--batch-size", 1000, "--learning-rate", rate)
    message, hint = refused("pretrain", *given, "--out", tmp_path / "run")
    assert re.fullmatch(r"the loss on validation data is (nan|inf) after epoch 1", message.splitlines()[-1])
    assert hint.startswith("lower the learning rate")


def test_an_augmentation_that_does_not_fit_begins_no_run(tiny: TinyRun, tmp_path: Path) -> None:
    given = (*HAR, "--data", tiny.own, *SMALL, "--out", tmp_path / "run")
    assert "augmentation `shift` takes rows of shape" in refused("pretrain", *given, "--augment", "shift")[0]
    assert edgeff("pretrain", *given).exit_code == 0


@pytest.mark.parametrize(("option", "value"), [("--seed", 2**64), ("--threads", 10**11)])
def test_numbers_that_torch_cannot_count_to_are_refused(tiny: TinyRun, tmp_path: Path, option: str, value: int) -> None:
    message, _ = refused("pretrain", *HAR, "--data", tiny.own, "--out", tmp_path / "run", option, value)
    assert message.startswith(f"pretraining setting `{option.removeprefix('--')}` must be ")


def test_a_network_larger_than_all_memory_is_one_line(tiny: TinyRun, tmp_path: Path) -> None:
    message, hint = refused("pretrain", *HAR, "--data", tiny.own, "--out", tmp_path / "run", "--width", 1e7)
    assert message == "the system has not enough memory for this"
    assert "smaller sizes" in hint


def test_a_network_of_ones_own_says_itself_what_it_learns_from(tiny: TinyRun, tmp_path: Path) -> None:
    given = ("--model", own_network(tmp_path / "mine.py"), "--data", tiny.own, "--out", tmp_path / "run")
    message = "a rule is for presets; a network of one's own says itself what its blocks learn from"
    assert refused("pretrain", *given, "--rule", "projection=fixed")[0] == message


@pytest.mark.parametrize("arguments", [(), ("--preset", "har-cnn", "--model", "f.py:f")])
def test_pretraining_wants_one_network(tiny: TinyRun, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = edgeff("pretrain", *arguments, "--data", tiny.own, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "give either --preset or --model" in result.stderr


def test_the_seed_also_draws_the_weights_of_a_network_of_ones_own(tiny: TinyRun, tmp_path: Path) -> None:
    network = ("--model", own_network(tmp_path / "mine.py"), "--data", tiny.own)

    def weights(name: str, seed: int, before: int) -> bytes:
        torch.manual_seed(before)  # whatever the process has drawn so far
        state = torch.get_rng_state()
        result = edgeff("pretrain", *network, "--out", tmp_path / name, *SMALL[2:], "--seed", seed)
        assert result.exit_code == 0, result.output
        assert torch.equal(torch.get_rng_state(), state)  # and draws on as if nothing had happened
        return (tmp_path / name / "best.safetensors").read_bytes()

    first = weights("first", seed=1, before=10)
    assert weights("again", seed=1, before=20) == first
    assert weights("other", seed=2, before=10) != first


TOKENS = """
import torch
from torch import nn
from edgeff.model import LocalBlock, LocalNetwork

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(20, 8), nn.Conv1d(8, 12, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.conv(self.embedding(x).transpose(1, 2)))

def build():
    blocks = [LocalBlock(Words()), LocalBlock(nn.Sequential(nn.Conv1d(12, 12, 3, padding=1), nn.ReLU()))]
    return LocalNetwork(blocks, input_shape=(12,), input_dtype="int64", classes=("a", "b", "c"))
"""


def token_rows(path: Path, rows: int, *, seed: int, dtype: str) -> Path:
    """Sentences of 12 words of 20, in which the word of the label stands four times."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(3, 20, (rows, 12)), np.arange(rows) % 3
    x[np.arange(rows)[:, None], rng.permuted(np.tile(np.arange(12), (rows, 1)), axis=1)[:, :4]] = y[:, None]
    np.savez(path, x=x.astype(dtype), y=y)
    return path


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_a_network_of_token_ids_goes_from_the_command_line_to_a_device_and_back(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "words.py").write_text(TOKENS)
    train = token_rows(tmp_path / "train.npz", 150, seed=0, dtype=dtype)
    own = token_rows(tmp_path / "own.npz", 60, seed=1, dtype=dtype)
    run, artifact, adapted, model = (tmp_path / name for name in ("run", "artifact", "adapted", "model.onnx"))
    settings = ("--learning-rate", 0.01, "--epochs", 6, "--batch-size", 16, "--threads", 1)
    for command in (
        ("pretrain", "--model", f"{tmp_path}/words.py:build", "--data", train, "--out", run, *settings),
        ("export", run, "--out", artifact),
        ("train-on-device", artifact, "--data", own, "--out", adapted, "--epochs", 1, "--threads", 1),
        ("finalize", artifact, "--run", adapted, "--out", model),
    ):
        result = edgeff(*command)
        assert result.exit_code == 0, result.output
    manifest = open_artifact(artifact).manifest
    assert (manifest.input.dtype, manifest.features.dtype) == (dtype, "int64")
    found = json.loads(edgeff("evaluate", artifact, "--run", adapted, "--data", own, "--json").stdout)
    assert found["accuracy"] > 0.8  # a third by chance
    session = onnxruntime.InferenceSession(model)
    rows = np.load(own)
    _, labels = session.run(["log_probabilities", "label"], {session.get_inputs()[0].name: rows["x"]})
    assert (labels == rows["y"]).mean() == pytest.approx(found["accuracy"])


def test_rows_of_numbers_with_a_point_are_no_token_ids(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(TOKENS)
    data = token_rows(tmp_path / "train.npz", 30, seed=0, dtype="float32")
    result = edgeff("pretrain", "--model", f"{tmp_path}/words.py:build", "--data", data, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "turns float32 into int64, needed integers (token ids)" in result.stderr


def test_the_same_pretraining_gives_the_same_bytes_and_resuming_a_finished_one_changes_nothing(
    tiny: TinyRun, tmp_path: Path
) -> None:
    network = ("--preset", "har-cnn", "--data", tiny.own, "--width", 0.25, "--threads", 1, "--batch-size", 32)
    for name in ("whole", "again"):
        assert edgeff("pretrain", *network, "--out", tmp_path / name, "--epochs", 2).exit_code == 0
    weights = (tmp_path / "whole" / "best.safetensors").read_bytes()
    assert (tmp_path / "again" / "best.safetensors").read_bytes() == weights
    result = edgeff("pretrain", *network, "--out", tmp_path / "again", "--epochs", 2, "--resume")
    assert result.exit_code == 0
    assert (tmp_path / "again" / "best.safetensors").read_bytes() == weights


def test_a_model_without_class_names_takes_data_with_any(tmp_path: Path) -> None:
    arrays = wave_arrays(120, seed=3)
    np.savez(tmp_path / "named.npz", **arrays)
    np.savez(tmp_path / "numbered.npz", **{key: array for key, array in arrays.items() if key != "classes"})
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    edgeff("pretrain", "--preset", "har-cnn", "--data", tmp_path / "numbered.npz", "--out", run, *SMALL)
    edgeff("export", run, "--out", artifact)
    assert open_artifact(artifact).manifest.classes == ("0", "1", "2")
    assert edgeff("evaluate", artifact, "--data", tmp_path / "named.npz").exit_code == 0


def test_a_network_of_ones_own_takes_the_place_of_a_recipes(tiny: TinyRun, tmp_path: Path) -> None:
    recipe, model = tmp_path / "mine.toml", tmp_path / "model.py"
    recipe.write_text(
        f'about = "x"\n[data]\ndata = "{tiny.own}"\n[network]\npreset = "har-cnn"\n[training]\nepochs = 1\n'
        '[rule]\nprojection = "fixed"\n'
    )
    model.write_text(
        "from torch import nn\nfrom edgeff.model import LocalBlock, LocalNetwork\n"
        "def build():\n    layer = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU())\n"
        "    return LocalNetwork([LocalBlock(layer)], input_shape=(6, 32), classes=3)\n"
    )
    out = tmp_path / "run"
    result = edgeff("pretrain", "--recipe", recipe, "--model", f"{model}:build", "--out", out, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "recipe.json").read_text())["source"]["kind"] == "factory"


def test_test_data_of_another_dtype_are_refused_before_training(tiny: TinyRun, tmp_path: Path) -> None:
    arrays = dict(np.load(tiny.own))
    np.savez(tmp_path / "wrong.npz", **{**arrays, "x": arrays["x"].astype(np.float32)})
    given = (*HAR, "--data", tiny.own, "--test", tmp_path / "wrong.npz", *SMALL)
    assert "float32, preprocessing takes" in refused("pretrain", *given, "--out", tmp_path / "run")[0]
    assert not (tmp_path / "run").exists()


def test_test_data_that_do_not_fit_are_refused_before_training(tiny: TinyRun, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, x=np.zeros((4, 6, 31), np.int16), y=np.arange(4) % 3)
    result = edgeff(
        "pretrain", "--preset", "har-cnn", "--data", tiny.own, "--test", wrong, "--out", tmp_path / "run", "--epochs", 1
    )
    assert (result.exit_code, (tmp_path / "run").exists()) == (1, False)
    assert "has rows of (6, 31) int16, preprocessing takes (6, 32) int16" in result.stderr
