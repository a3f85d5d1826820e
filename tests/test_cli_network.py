"""Options that say which network a command works on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import TinyRun, edgeff

from edgeff.cli_network import rule_settings
from edgeff.errors import ModelError

WORDS = st.text(st.characters(categories=("Ll", "Nd"), include_characters="_."), min_size=1, max_size=8)


@given(pairs=st.lists(st.tuples(WORDS, WORDS), max_size=5), gap=st.sampled_from(["", " "]))
def test_of_a_setting_that_is_given_twice_the_last_counts(pairs: list[tuple[str, str]], gap: str) -> None:
    given_rules = [f"{key.replace('_', '-')}{gap}={gap}{value}" for key, value in pairs]
    assert rule_settings(given_rules) == dict(pairs)


def test_a_value_may_hold_what_separates_it_from_its_key() -> None:
    assert rule_settings(["projection=a=b"]) == {"projection": "a=b"}
    assert rule_settings(["projection="]) == {"projection": ""}


@pytest.mark.parametrize("text", ["nonsense", "", "=fixed", "projection:fixed"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match=f"`{text}` is no rule setting") as caught:
        rule_settings(["projection=fixed", text])
    assert caught.value.hint == "write for example `--rule projection=fixed`"


def test_check_locality_takes_a_rule_for_a_preset() -> None:
    rule = ("--rule", "relation=contrast", "--rule", "probe=true")
    done = edgeff("check-locality", "--preset", "mlp", *rule, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["kind"], len(found["blocks"])) == ("local", 3)
    refused = edgeff("check-locality", "--preset", "mlp", "--rule", "relatin=contrast")
    assert refused.exit_code == 1
    assert refused.stderr == "Error: unknown rule setting `relatin`\n\nhint: did you mean `relation`?\n"


def test_check_locality_takes_no_rule_for_what_has_its_own(tiny: TinyRun) -> None:
    for named in ((tiny.run,), ("--model", "mine.py:build")):
        result = edgeff("check-locality", *named, "--rule", "projection=fixed")
        assert result.exit_code == 2
        assert "--rule is for --preset; a run or a model has its own" in result.stderr
