"""What a pretraining run is told: frozen, JSON-able, checked when it is made."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from edgeff.errors import ModelError
from edgeff.fusion import FusionName
from edgeff.manifest import OptimizerSpec
from edgeff.model import Layers, LocalBlock, LocalNetwork, Losses
from edgeff.objective import CrossEntropyObjective
from edgeff.optimizer import optimizer_spec

Mode = Literal["local", "bp", "bp-deepsup"]
Augment = Literal["none", "shift", "shift-flip", "shift-flip-cutout", "signal"]
Schedule = Literal["cosine", "constant"]
Device = Literal["cpu", "cuda"]
Kind = Literal["adamw", "sgd"]
Keep = Literal["best", "last"]
LayersPerBlock = Literal["1-layer", "2-layer"]

# Share of all steps over which the learning rate rises linearly: AdamW's second moment is a guess in its first steps.
WARM_UP = 0.05
_REGROUPED: Mapping[str, tuple[Layers, Losses]] = {"bp": ("whole", "last"), "bp-deepsup": ("whole", "all")}


@dataclass(frozen=True)
class PretrainSettings:
    """Settings of a run.

    Attributes:
        epochs: Passes over the training rows.
        batch_size: Rows of a step, at most: an epoch is cut into batches whose sizes differ by at most one.
        optimizer: `adamw` or `sgd`, with the formulas of `edgeff.optimizer`; one per block.
        learning_rate: Highest of the schedule.
        weight_decay: Decoupled for `adamw`, L2 for `sgd`.
        momentum: Of `sgd`.
        schedule: `cosine` (to 0 at the end) or `constant`, after a linear warm-up over the first 5 % of the steps.
        seed: Of order, augmentation and dropout; the command line draws the initial weights from it, too.
        device: `cpu`, where a run is repeatable bit for bit, or `cuda`.
        mixed_precision: bfloat16 autocast; only on `cuda`.
        mode: `local`: the network's own blocks. `bp`: the network as one block with the last loss, which is
            back-propagation. `bp-deepsup`: as one block with all the local losses summed.
        layers: With mode `local`: how many layers learn as one, `1-layer` or `2-layer`.
        losses: Of a block of two layers: `last`, or `all` for both layers' losses.
        micro_batch: Rows that go through a block at once; gradients are summed over a batch. What compares rows
            (`edgeff.relation`) compares those of a micro-batch. 0 for the whole batch.
        batch_norm: Normalise layers by their batch while training, and fold that into their weights in what is kept
            (`edgeff.batch_norm`).
        augment: `none`; `shift`, `shift-flip` or `shift-flip-cutout` for images; `signal` for inertial and other
            signals.
        gradient_clip: Largest norm of a block's gradient; 0 for no limit.
        label_smoothing: Given to every block's cross-entropy; None leaves the blocks' own.
        fusion: How the readouts make one prediction: `range`, the consecutive ones that do best on validation data;
            `sum`, all alike; `loss`, by the inverse of their validation loss; `readout`, weights trained on validation
            data.
        keep: The weights of the `best` epoch on validation data, or of the `last`: a few dozen validation rows tell
            epochs apart no better than chance.
        replay_rows: Training rows that are kept in the run folder, to be used on the device against forgetting.
        threads: Of torch on the CPU; None leaves them.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Kind = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    seed: int = 0
    device: Device = "cpu"
    mixed_precision: bool = False
    mode: Mode = "local"
    layers: LayersPerBlock = "1-layer"
    losses: Losses = "last"
    micro_batch: int = 0
    batch_norm: bool = False
    augment: Augment = "none"
    gradient_clip: float = 0.0
    label_smoothing: float | None = None
    fusion: FusionName = "range"
    keep: Keep = "best"
    replay_rows: int = 256
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            _need(getattr(self, name) in choices, name, " or ".join(f"`{one}`" for one in choices), getattr(self, name))
        for name in ("epochs", "batch_size", "micro_batch", "replay_rows", "seed"):
            _need(type(getattr(self, name)) is int, name, "a whole number", getattr(self, name))
        for name in ("epochs", "batch_size"):
            _need(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("weight_decay", "gradient_clip", "replay_rows", "seed", "micro_batch"):
            _need(0 <= getattr(self, name) < math.inf, name, "at least 0", getattr(self, name))
        _need(0.0 < self.learning_rate < math.inf, "learning_rate", "above 0", self.learning_rate)
        _need(0.0 <= self.momentum < 1.0, "momentum", "in [0, 1)", self.momentum)
        _need(self.seed < 2**63, "seed", "below 2**63", self.seed)
        _need(self.threads is None or 1 <= self.threads <= 1024, "threads", "from 1 to 1024", self.threads)
        if self.label_smoothing is not None:
            CrossEntropyObjective(self.label_smoothing)
        if self.mode != "local" and self.layers != "1-layer":
            raise ModelError(f"mode `{self.mode}` trains all layers as one block, not blocks of `{self.layers}`")
        if self.mixed_precision and self.device != "cuda":
            raise ModelError("mixed precision needs device `cuda`", hint="leave it out on a CPU")

    def optimizer_spec(self) -> OptimizerSpec:
        """The optimiser as `edgeff.optimizer` and the manifest know it."""
        if self.optimizer == "sgd":
            return optimizer_spec("sgd", momentum=self.momentum, weight_decay=self.weight_decay)
        return optimizer_spec("adamw", weight_decay=self.weight_decay)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of one of `steps` steps, which count from 1.

        >>> settings = PretrainSettings(learning_rate=1.0)
        >>> [round(settings.learning_rate_at(step, 100), 3) for step in (1, 5, 6, 53, 100)]
        [0.2, 1.0, 1.0, 0.508, 0.0]
        """
        warm_up = math.floor(steps * WARM_UP)
        if step <= warm_up:
            return self.learning_rate * step / warm_up
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - warm_up - 1) / (steps - warm_up)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))

    def prepare(self, network: LocalNetwork) -> LocalNetwork:
        """A copy of the network as the settings want it trained: regrouped by `mode`, with their label smoothing."""
        regroup = _REGROUPED.get(self.mode) or ((self.layers, self.losses) if self.layers != "1-layer" else None)
        prepared = network.regroup(*regroup) if regroup else copy.deepcopy(network)
        prepared.source = network.source
        if self.label_smoothing is not None:
            for leaf in _smoothed(prepared):
                leaf.objective = CrossEntropyObjective(self.label_smoothing)
        return prepared

    def check(self, prepared: LocalNetwork, rows: int) -> None:
        """Refuse to begin a run in which a setting would do nothing, or fail on the way.

        Args:
            prepared: As `prepare` made it.
            rows: Training rows.

        Raises:
            ModelError: Losses `all` without blocks of two layers; label smoothing where no block learns by the
                cross-entropy of classes; batch norm with a single row at a time.
        """
        if self.losses == "all" and (self.mode, self.layers) != ("local", "2-layer"):
            hint = "leave it out" if self.mode != "local" else "leave it out, or give layers `2-layer` too"
            raise ModelError("losses `all` needs mode `local` and layers `2-layer`", hint=hint)
        if self.label_smoothing and not _smoothed(prepared):
            raise ModelError(
                "label smoothing is of the cross-entropy of classes, which no block learns by",
                hint="leave it out, or give 0 where a recipe has it",
            )
        if self.batch_norm:
            self._refuse_single_rows(rows)

    def _refuse_single_rows(self, rows: int) -> None:
        count = math.ceil(rows / self.batch_size)
        for size in {rows // count, math.ceil(rows / count)}:
            if 1 in (size, self.micro_batch) or (self.micro_batch and size % self.micro_batch == 1):
                part = f", and micro-batches of {self.micro_batch} a single row of that" if self.micro_batch else ""
                raise ModelError(
                    f"batch norm needs more than one row at once: {rows} rows make batches of {size}{part}",
                    hint="choose another `batch_size` or `micro_batch`, or leave `batch_norm` out",
                )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainSettings:
        """From `as_dict`.

        Raises:
            ModelError: An unknown setting, or a value out of range.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ModelError(f"unknown pretraining setting `{unknown[0]}`")
        return cls(**values)


def _smoothed(network: LocalNetwork) -> list[LocalBlock]:
    """The layers whose labels can be smoothed."""
    leaves = [leaf for block in network.sequence for leaf in block.leaves()]
    return [leaf for leaf in leaves if isinstance(leaf.objective, CrossEntropyObjective)]


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimizer": get_args(Kind),
    "schedule": get_args(Schedule),
    "device": get_args(Device),
    "mode": get_args(Mode),
    "layers": get_args(LayersPerBlock),
    "losses": get_args(Losses),
    "fusion": get_args(FusionName),
    "keep": get_args(Keep),
    "augment": get_args(Augment),
}


def _need(held: bool, name: str, needed: str, got: object) -> None:
    if not held:
        wanted = "finite" if got == math.inf else needed
        raise ModelError(f"pretraining setting `{name}` must be {wanted}, got `{got}`")
