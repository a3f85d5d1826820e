"""Settings of an adaptation: what is refused when they are made, with what to do about it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tiny_artifact import Tiny, make_manifest

from edgeff.errors import RunError
from edgeff.manifest import TrainingDefaults
from edgeff.runtime.settings import SCHEDULE_NAMES, AdaptSettings, default_settings
from edgeff.runtime.trainer import SCHEDULES

GOOD = AdaptSettings(epochs=3, batch_size=8, learning_rate=0.1)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"epochs": 0}, "a run of 0 epochs trains nothing, needed 1 or more", "leave `--epochs` out"),
        ({"batch_size": 0}, "a batch of 0 rows cannot be trained on, needed 1 or more", "leave `--batch-size` out"),
        ({"learning_rate": 0.0}, "the learning rate must be above 0, got `0.0`", "leave `--learning-rate` out"),
        ({"learning_rate": -0.1}, "the learning rate must be above 0, got `-0.1`", "leave `--learning-rate` out"),
        ({"learning_rate": math.nan}, "the learning rate must be above 0, got `nan`", "leave `--learning-rate` out"),
        ({"learning_rate": math.inf}, "the learning rate must be finite, got `inf`", "leave `--learning-rate` out"),
        ({"schedule": "linear"}, "unknown schedule `linear`", "known: sweep, stage"),
        ({"feature_dtype": "int4"}, "unknown dtype of features `int4`", "known: float32, float16, uint8"),
        ({"lr_schedule": "linear"}, "unknown learning-rate schedule `linear`", "known: constant, cosine"),
        ({"replay_fraction": 1.0}, "the replay fraction must be from 0 to below 1, got `1.0`", "`--replay-fraction 0`"),
        ({"replay_fraction": -0.1}, "the replay fraction must be from 0 to below 1, got `-0.1`", "on your rows alone"),
        ({"guard_fraction": 1.0}, "the guard fraction must be from 0 to below 1, got `1.0`", "`--guard-fraction 0`"),
        ({"guard_fraction": math.nan}, "the guard fraction must be from 0 to below 1, got `nan`", "hold no rows out"),
        ({"seed": -1}, "the seed must be 0 or more, got `-1`", "leave it out for 0"),
        ({"checkpoint_steps": -1}, "`-1` updates between checkpoints make no sense, needed 0 or more", "0 writes one"),
        ({"blocks": ()}, "no block is to be trained, needed 1 or more", "leave `--blocks` out"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_with_what_to_do(
    change: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(RunError) as caught:
        replace(GOOD, **change)  # type: ignore[arg-type]
    assert str(caught.value) == message
    assert hint in caught.value.hint
    assert "\n" not in message + caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 1, "batch_size": 1, "learning_rate": 1e-30, "seed": 2**70},
        {"replay_fraction": 0.0, "guard_fraction": 0.0, "checkpoint_steps": 0, "blocks": None},
        {"replay_fraction": 0.99, "guard_fraction": 0.99, "blocks": ("block1",)},
    ],
)
def test_values_at_the_edge_are_taken(change: dict[str, object]) -> None:
    settings = replace(GOOD, **change)  # type: ignore[arg-type]
    assert AdaptSettings.from_dict(settings.as_dict()) == settings


def test_settings_that_were_edited_in_a_run_folder_are_refused_too() -> None:
    with pytest.raises(RunError, match="the learning rate must be above 0"):
        AdaptSettings.from_dict({**GOOD.as_dict(), "learning_rate": -1.0})


def test_the_schedules_that_are_known_are_those_that_have_a_formula() -> None:
    assert set(SCHEDULE_NAMES) == set(SCHEDULES)
    for name in SCHEDULE_NAMES:
        assert replace(GOOD, lr_schedule=name).lr_schedule == name


def test_an_artifact_proposes_everything_but_seed_schedule_and_checkpoints() -> None:
    proposed = TrainingDefaults(batch_size=5, epochs=7, learning_rate=0.3, replay_fraction=0.25, guard_fraction=0.125)
    manifest = replace(make_manifest(Tiny()), training=proposed)
    assert default_settings(manifest) == AdaptSettings(
        epochs=7, batch_size=5, learning_rate=0.3, replay_fraction=0.25, guard_fraction=0.125
    )
