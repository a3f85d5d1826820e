"""What decides the outcome of an adaptation, together with the artifact and the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeff.errors import RunError
from edgeff.manifest import Manifest


@dataclass(frozen=True)
class AdaptSettings:
    """What decides the outcome of a run, together with artifact and rows.

    Attributes:
        epochs: Passes through the user's training rows.
        batch_size: Rows of a batch, replay rows included.
        learning_rate: At the first step.
        schedule: `constant` or `cosine`.
        replay_fraction: Part of each batch that is replay rows.
        guard_fraction: Part of the user's rows that is held out; 0 keeps the last epoch's weights unseen.
        seed: Of order and dropout.
        blocks: Names of the blocks to train; None for all.
        checkpoint_steps: Updates between two checkpoints; 0 for one at the end of each epoch only.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "cosine"
    replay_fraction: float = 0.0
    guard_fraction: float = 0.25
    seed: int = 0
    blocks: tuple[str, ...] | None = None
    checkpoint_steps: int = 100

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise RunError(f"a run of {self.epochs} epochs trains nothing, needed 1 or more")
        if self.checkpoint_steps < 0:
            raise RunError(f"`{self.checkpoint_steps}` updates between checkpoints make no sense, needed 0 or more")
        if self.blocks is not None and not self.blocks:
            raise RunError("no block is to be trained, needed 1 or more")

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
