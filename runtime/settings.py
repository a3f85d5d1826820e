"""What decides the outcome of an adaptation, together with the artifact and the rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeff.errors import RunError
from edgeff.manifest import Manifest

# Their formulas are in `edgeff.runtime.trainer`, which this module of plain values does not load.
SCHEDULE_NAMES = ("constant", "cosine")


@dataclass(frozen=True)
class AdaptSettings:
    """What decides the outcome of a run, together with artifact and rows.

    Attributes:
        epochs: Passes through the user's training rows.
        batch_size: Rows of a batch, replay rows included.
        learning_rate: At the first step.
        lr_schedule: `constant` or `cosine`.
        replay_fraction: Part of each batch that is replay rows.
        guard_fraction: Part of the user's rows that is held out; 0 keeps the last epoch's weights unseen.
        seed: Of order and dropout.
        blocks: Names of the blocks to train; None for all.
        checkpoint_steps: Updates between two checkpoints; 0 for one at the end of each epoch only.
        schedule: `sweep`: all blocks learn from every batch. `stage`: one block after another, each for all epochs.
        feature_dtype: Of the files between blocks, for `stage`: `float32` changes nothing, `float16` and `uint8` round.

    Raises:
        RunError: A value that no run can have.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    lr_schedule: str = "cosine"
    replay_fraction: float = 0.0
    guard_fraction: float = 0.25
    seed: int = 0
    blocks: tuple[str, ...] | None = None
    checkpoint_steps: int = 100
    schedule: str = "sweep"
    feature_dtype: str = "float32"

    def __post_init__(self) -> None:
        _need(self.epochs >= 1, f"a run of {self.epochs} epochs trains nothing, needed 1 or more", _leave_out("epochs"))
        _need(
            self.batch_size >= 1,
            f"a batch of {self.batch_size} rows cannot be trained on, needed 1 or more",
            _leave_out("batch-size"),
        )
        rate, wanted = self.learning_rate, "finite" if self.learning_rate == math.inf else "above 0"
        _need(0 < rate < math.inf, f"the learning rate must be {wanted}, got `{rate}`", _leave_out("learning-rate"))
        _need(
            self.lr_schedule in SCHEDULE_NAMES,
            f"unknown learning-rate schedule `{self.lr_schedule}`",
            f"known: {', '.join(SCHEDULE_NAMES)}",
        )
        for name, value, known in (
            ("schedule", self.schedule, ("sweep", "stage")),
            ("dtype of features", self.feature_dtype, ("float32", "float16", "uint8")),
        ):
            _need(value in known, f"unknown {name} `{value}`", f"known: {', '.join(known)}")
        _need_fraction("replay", self.replay_fraction, "train on your rows alone")
        _need_fraction("guard", self.guard_fraction, "hold no rows out")
        _need(self.seed >= 0, f"the seed must be 0 or more, got `{self.seed}`", "leave it out for 0")
        _need(
            self.checkpoint_steps >= 0,
            f"`{self.checkpoint_steps}` updates between checkpoints make no sense, needed 0 or more",
            "0 writes one at the end of each epoch only",
        )
        _need(self.blocks != (), "no block is to be trained, needed 1 or more", "leave `--blocks` out to train all")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = dataclasses.asdict(self)
        return {**values, "blocks": None if self.blocks is None else list(self.blocks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdaptSettings:
        """From `as_dict`, or from the JSON of it."""
        blocks = values["blocks"]
        return cls(**{**values, "blocks": None if blocks is None else tuple(blocks)})


def default_settings(manifest: Manifest) -> AdaptSettings:
    """What the artifact proposes; no replay where it has no rows for it."""
    training = manifest.training
    return AdaptSettings(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        replay_fraction=training.replay_fraction if manifest.replay else 0.0,
        guard_fraction=training.guard_fraction,
    )


def _need(held: bool, message: str, hint: str) -> None:
    if not held:
        raise RunError(message, hint=hint)


def _need_fraction(name: str, fraction: float, otherwise: str) -> None:
    message = f"the {name} fraction must be from 0 to below 1, got `{fraction}`"
    _need(0 <= fraction < 1, message, f"give `--{name}-fraction 0` to {otherwise}")


def _leave_out(option: str) -> str:
    return f"leave `--{option}` out for what the artifact proposes"
