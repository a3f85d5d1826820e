"""Recipes: what they may say, and that every one that comes with edgeff can be followed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeff import recipe as recipe_module
from edgeff.cli_pretrain import pretrain
from edgeff.errors import DataError
from edgeff.presets import PRESETS, preset
from edgeff.pretrain_settings import PretrainSettings
from edgeff.recipe import MOST_BYTES, TABLES, Recipe, parse_recipe, read_recipe, recipe_names
from edgeff.rule import LocalRule

GOOD = b"""
about = '''
Heartbeats,
  in a minute.'''

[data]
data = "ecg5000:train"
test = "ecg5000:test"

[network]
preset = "ecg-cnn"
width = 0.5
input_shape = "1,140"

[training]
epochs = 30
learning_rate = 2e-3
augment = "signal"

[rule]
projection = "hidden"
hidden_units = 64
probe = true
relation = "similarity"
relation_weight = 0.5
"""


def refused(content: str | bytes, name: str = "mine") -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        parse_recipe(content if isinstance(content, bytes) else content.encode(), name)
    return str(caught.value), caught.value.hint


# --- what a recipe says -----------------------------------------------------------------------------------------------


def test_a_recipe_has_options_of_the_command_and_settings_of_the_rule() -> None:
    found = parse_recipe(GOOD, "heart")
    assert found == Recipe(
        name="heart",
        about="Heartbeats, in a minute.",
        options={
            "data": "ecg5000:train",
            "test": "ecg5000:test",
            "preset": "ecg-cnn",
            "width": 0.5,
            "input_shape": "1,140",
            "epochs": 30,
            "learning_rate": 2e-3,
            "augment": "signal",
        },
        rule={
            "projection": "hidden",
            "hidden_units": 64,
            "probe": True,
            "relation": "similarity",
            "relation_weight": 0.5,
        },
    )


def test_a_recipe_may_leave_everything_out_but_what_it_is_for() -> None:
    assert parse_recipe(b'about = ""', "empty") == Recipe("empty", "", {}, {})
    assert parse_recipe(b'about = "x"\n[data]\n[rule]\n', "tables") == Recipe("tables", "x", {}, {})


def test_every_key_of_every_table_is_an_option_of_the_command() -> None:
    options = {parameter.name for parameter in pretrain.params}
    for table, keys in TABLES.items():
        assert set(keys) <= options, table
        for key in keys:
            value = {str: "some", bool: True}.get(keys[key], 1)
            found = parse_recipe(f'about = "x"\n[{table}]\n{key} = {json.dumps(value)}'.encode(), "one")
            assert found.options == {key: value}
    settings = {one.name for one in fields(PretrainSettings)}
    assert set(TABLES["training"]) <= settings
    # No key is in two tables, of which the later would count.
    every = [key for keys in TABLES.values() for key in keys]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs = 2.9", "`training.epochs` of recipe `one` must be a whole number, got `2.9`"),
        ("epochs = true", "`training.epochs` of recipe `one` must be a whole number, got `True`"),
        ("learning_rate = inf", "`training.learning_rate` of recipe `one` must be a finite number, got `inf`"),
        ("weight_decay = false", "`training.weight_decay` of recipe `one` must be a finite number, got `False`"),
        ("batch_norm = 1", "`training.batch_norm` of recipe `one` must be true or false, got `1`"),
        ("optimizer = 3", "`training.optimizer` of recipe `one` must be a text, got `3`"),
    ],
)
def test_a_value_of_another_kind_is_refused(line: str, message: str) -> None:
    with pytest.raises(DataError) as refused:
        parse_recipe(f'about = "x"\n[training]\n{line}'.encode(), "one")
    assert str(refused.value) == message


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be read: embedded null byte"):
        read_recipe("a\0.toml")


def test_a_recipe_is_read_from_a_file_by_its_name_or_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heart.toml").write_bytes(GOOD)
    expected = parse_recipe(GOOD, "heart")
    assert read_recipe(str(tmp_path / "heart.toml")) == expected
    monkeypatch.setattr(recipe_module, "FOLDER", tmp_path)
    (tmp_path / "notes.txt").write_text("no recipe")
    assert recipe_names() == ["heart"]
    assert read_recipe("heart") == expected


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ('abut = "x"', "recipe `mine` has an unknown key `abut`", "did you mean `about`?"),
        (
            'about = "x"\n[trainig]\nepochs = 3',
            "recipe `mine` has an unknown key `trainig`",
            "did you mean `training`?",
        ),
        (
            'about = "x"\n[zzz]',
            "recipe `mine` has an unknown key `zzz`",
            "known: about, data, network, training, rule",
        ),
        ('about = "x"\nepochs = 3', "recipe `mine` has an unknown key `epochs`", ""),
        (
            'about = "x"\n[training]\nepoch = 3',
            "recipe `mine` has an unknown key `training.epoch`",
            "did you mean `training.epochs`?",
        ),
        (
            'about = "x"\n[training]\nbatch-size = 3',
            "recipe `mine` has an unknown key `training.batch-size`",
            "did you mean `training.batch_size`?",
        ),
        ('about = "x"\n[data]\nepochs = 3', "recipe `mine` has an unknown key `data.epochs`", ""),
        (
            'about = "x"\n[network]\nmodel = "mine.py:build"',
            "recipe `mine` has an unknown key `network.model`",
            "",
        ),
        (
            'about = "x"\n[network]\ninput_shape = [3, 32, 32]',
            "`network.input_shape` of recipe `mine` must be a text, a number or a truth value",
            'lists are written as on the command line: `input_shape = "3,32,32"`',
        ),
        (
            'about = "x"\n[rule]\ncells = [2, 2]',
            "`rule.cells` of recipe `mine` must be a text, a number or a truth value",
            "lists are",
        ),
        (
            'about = "x"\n[rule.projection]\nkind = "fixed"',
            "`rule.projection` of recipe `mine` must be a text, a number or a truth value",
            "",
        ),
        (
            'about = "x"\n[training]\nepochs = 2026-11-26',
            "`training.epochs` of recipe `mine` must be a text, a number or a truth value",
            "",
        ),
        ('about = "x"\ndata = "d"', "`data` of recipe `mine` must be a table", "write `[data]` above its keys"),
        ('about = "x"\nrule = 3', "`rule` of recipe `mine` must be a table", "write `[rule]` above its keys"),
        ('about = "x"\n[[rule]]\ncells = 2', "`rule` of recipe `mine` must be a table", "write `[rule]` above"),
        ("[data]", "recipe `mine` does not say what it is for", 'begin with `about = "..."`'),
        ("", "recipe `mine` does not say what it is for", 'begin with `about = "..."`'),
        ("about = 3", "recipe `mine` does not say what it is for", 'begin with `about = "..."`'),
    ],
)
def test_a_recipe_that_says_what_none_can_is_refused(content: str, message: str, hint: str) -> None:
    found, found_hint = refused(content)
    assert found == message
    assert found_hint.startswith(hint)
    assert found_hint


@pytest.mark.parametrize(
    "content",
    [
        b"about",
        b'about = "x"\nabout = "y"',
        b'about = "x"\n[data]\n[data]',
        b"\xff\xfe",
        b'about = "\xc3\x28"',
        b'about = "x"\n[training]\nepochs = ' + b"9" * 5000,
        b"about = " + b"[" * 3000 + b"]" * 3000,
        b'about = "\x00"',
    ],
)
def test_what_is_no_toml_is_refused_on_one_line(content: bytes) -> None:
    message, hint = refused(content)
    assert message.startswith("recipe `mine` is not valid TOML: ")
    assert "\n" not in message
    assert hint == "mend the file there"


def test_a_recipe_of_more_than_a_few_pages_is_not_looked_at(tmp_path: Path) -> None:
    most = b'about = "x"\n'.ljust(MOST_BYTES, b"#")
    assert parse_recipe(most, "long").about == "x"
    message, _ = refused(most + b"#")
    assert message == "recipe `mine` has more than 32,768 bytes"
    (tmp_path / "mine.toml").write_bytes(most + b"#")
    with pytest.raises(DataError, match=r"^recipe `mine` has more than 32,768 bytes$"):
        read_recipe(str(tmp_path / "mine.toml"))


def test_a_key_of_any_length_is_named_by_its_beginning() -> None:
    message, _ = refused(f'about = "x"\n{"k" * 500} = 1')
    assert message == f"recipe `mine` has an unknown key `{'k' * 60}`"


def test_an_unknown_recipe_is_refused_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("heart-cpu", "speech-gpu"):
        (tmp_path / f"{name}.toml").write_bytes(GOOD)
    monkeypatch.setattr(recipe_module, "FOLDER", tmp_path)
    for spec, hint in (("hart-cpu", "did you mean `heart-cpu`?"), ("zzz", "known: heart-cpu, speech-gpu")):
        with pytest.raises(DataError, match=f"^there is no recipe `{spec}`$") as caught:
            read_recipe(spec)
        assert caught.value.hint == hint


@pytest.mark.parametrize("spec", ["../recipes/ecg5000-cpu", "", ".", "/etc/passwd"])
def test_what_is_no_name_of_a_recipe_leads_to_no_file(spec: str) -> None:
    with pytest.raises(DataError, match=f"there is no recipe `{re.escape(spec)}`"):
        read_recipe(spec)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^recipe `.*none\.toml` cannot be read: No such file or directory$") as caught:
        read_recipe(str(tmp_path / "none.toml"))
    assert caught.value.hint == "check the path"
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(DataError, match=r"folder\.toml` cannot be read: "):
        read_recipe(str(tmp_path / "folder.toml"))


KEYS = st.sampled_from(["about", "rule", *TABLES, *(key for keys in TABLES.values() for key in keys), "x"])
SCALARS = st.sampled_from(['"x"', "3", "2e-3", "true", "[1]", "{}", "1979-05-27", "nan", "'a\nb'", "inf"])
LINES = st.one_of(
    st.builds(lambda key: f"[{key}]", KEYS),
    st.builds(lambda key, value: f"{key} = {value}", KEYS, SCALARS),
)


@given(
    content=st.one_of(st.binary(max_size=200), st.lists(LINES, max_size=8).map(lambda found: "\n".join(found).encode()))
)
def test_whatever_a_file_holds_it_is_a_recipe_or_refused(content: bytes) -> None:
    try:
        found = parse_recipe(content, "any")
    except DataError:
        return
    assert isinstance(found, Recipe)
    assert all(isinstance(value, str | int | float) for value in (*found.options.values(), *found.rule.values()))
    assert set(found.options) <= {key for keys in TABLES.values() for key in keys}


# --- those that come with edgeff --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_followed(name: str) -> None:
    found = read_recipe(name)
    assert found.about
    assert {"data", "test", "preset"} <= set(found.options)
    known = {one.name for one in fields(PretrainSettings)}
    settings = {key: value for key, value in found.options.items() if key in known}
    chosen = PretrainSettings.from_dict(settings)
    for key, value in settings.items():
        # Of the kind of the option: 3.5 epochs would be three.
        kind = type(getattr(PretrainSettings(), key))
        assert type(getattr(chosen, key)) is kind or (value == int(value) if kind is int else True)
        assert not (isinstance(value, float) and math.isnan(value))
    rule = LocalRule.from_dict(found.rule)
    width = found.options.get("width", 1.0)
    assert found.options["preset"] in PRESETS
    # At a small width: it is how the parts fit together that is tried.
    preset(str(found.options["preset"]), width=min(float(width), 0.1), rule=rule)
