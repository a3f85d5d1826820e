"""A learning rule by names and numbers: what a recipe, or `edgeff pretrain --rule`, chooses for a preset's blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from torch import nn

from edgeff.auxiliary import make_auxiliary
from edgeff.blocks import LocalBlock
from edgeff.errors import ModelError, did_you_mean
from edgeff.goodness import ChannelGroups, PooledGoodness
from edgeff.handover import GroupNormHandover, LayerNormHandover, NoHandoverNorm, UnitNormHandover
from edgeff.objective import CrossEntropyObjective, Objective, SuperClassObjective, even_groups
from edgeff.overlay import OverlayBlock
from edgeff.parts import Part
from edgeff.projection import (
    FixedProjection,
    HiddenProjection,
    LearnedProjection,
    NoProjection,
    Projection,
    Prototypes,
    SoftmaxProjection,
)
from edgeff.relation import Relation, SimilarityMatching, SupervisedContrast
from edgeff.temperature import ClarityTemperature, FixedTemperature, LearnedTemperature, Temperature

GoodnessName = Literal["mean", "square", "channel-groups"]
ProjectionName = Literal["learned", "fixed", "hidden", "softmax", "prototypes"]
TemperatureName = Literal["learned", "fixed", "clarity"]
HandoverName = Literal["layer-norm", "group-norm", "unit-norm", "none"]
ObjectiveName = Literal["cross-entropy", "forward-forward"]
RelationName = Literal["none", "similarity", "contrast"]
Setting = str | int | float | bool


@dataclass(frozen=True)
class LocalRule:
    """What every block of a network learns from. The defaults are DTG-FF with a learned projection (docs/method.md).

    Attributes:
        goodness: `mean` or `square` of the activation over the cells of a grid; `channel-groups`: a group of channels
            for each class, without a projection.
        cells: Of the grid along each axis; 0 for what the preset has at each block.
        projection: `learned`, `fixed` (drawn from the block's number), `hidden` (a layer of ReLUs between), `softmax`
            (each number divides itself among the classes), `prototypes` (cosines).
        hidden_units: Of projection `hidden`.
        auxiliary: Channels of 3-wide convolutions with ReLUs between activation and goodness; 0 for none.
        auxiliary_cells: Along each axis of the coarser map that these work on; 0 for the activation's own.
        auxiliary_layers: How many of them.
        temperature: `learned`, `fixed`, or `clarity` (the rule of 2025).
        temperature_value: Of temperature `fixed`.
        objective: `cross-entropy`, or `forward-forward`: two-sided, with every wrong label as a negative; it has no
            goodness, projection or temperature to choose.
        threshold: Of objective `forward-forward`.
        super_classes: Groups of consecutive classes that early blocks learn instead of classes; 0 for none.
        super_class_blocks: How many blocks from the first do so.
        relation: `none`, `similarity` (matching) or `contrast` (supervised), besides the objective.
        relation_weight: What its loss is multiplied by.
        probe: The scores learn without teaching the block, which learns from the relation alone.
        handover: `layer-norm`, `group-norm`, `unit-norm` or `none`.
    """

    goodness: GoodnessName = "mean"
    cells: int = 0
    projection: ProjectionName = "learned"
    hidden_units: int = 128
    auxiliary: int = 0
    auxiliary_cells: int = 0
    auxiliary_layers: int = 1
    temperature: TemperatureName = "learned"
    temperature_value: float = 1.0
    objective: ObjectiveName = "cross-entropy"
    threshold: float = 2.0
    super_classes: int = 0
    super_class_blocks: int = 0
    relation: RelationName = "none"
    relation_weight: float = 1.0
    probe: bool = False
    handover: HandoverName = "layer-norm"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if choices and value not in choices:
                raise ModelError(f"rule `{name}` must be {' or '.join(f'`{one}`' for one in choices)}, got `{value}`")
            if not choices and (type(value) is not kind) and not (kind is float and type(value) is int):
                raise ModelError(f"rule `{name}` must be a {_KINDS[kind]}, got `{value}`")
            if kind is int and value < 0:
                raise ModelError(f"rule `{name}` must be at least 0, got `{value}`")
        if bool(self.super_classes) != bool(self.super_class_blocks):
            raise ModelError("rule `super_classes` and `super_class_blocks` go together: give both or neither")
        self._refuse_what_says_nothing()

    def _refuse_what_says_nothing(self) -> None:
        """Refuse a setting that another one makes meaningless: whoever gave it expects it to do something."""
        default = {one.name: one.default for one in fields(self)}
        given = [name for name, value in default.items() if getattr(self, name) != value]
        for name in given:
            for other, needed, only in _MEANT_FOR:
                if name in only and not _allows(needed, getattr(self, other)):
                    choose = f"choose `{other}={needed[0]}`" if needed else f"give `{other}` a number"
                    raise ModelError(
                        f"rule `{name}` says nothing with `{other}={getattr(self, other)}`",
                        hint=f"leave it out, or {choose}",
                    )

    def label_channels(self, classes: int) -> int:
        """Channels that a block's transform takes besides those of its input: the labels of `forward-forward`."""
        return classes if self.objective == "forward-forward" else 0

    def block(
        self, transform: nn.Module, *, number: int, classes: int, channels: int, axes: int, cells: int | tuple[int, ...]
    ) -> LocalBlock:
        """A block that learns by this rule.

        Args:
            transform: Takes `label_channels(classes)` more channels than its input has.
            number: Of the block, from 0.
            classes: K.
            channels: Of the activation.
            axes: Of a row of the activation besides its channels.
            cells: Of the grid, where the rule leaves them to the preset.
        """
        handover = _HANDOVERS[self.handover]()
        if self.objective == "forward-forward":
            return OverlayBlock(transform, threshold=self.threshold, handover=handover)
        return LocalBlock(
            transform,
            auxiliary=self._auxiliary(channels, axes),
            goodness=self._goodness(classes, self.cells or cells),
            projection=self._projection(number),
            temperature=self._temperature(),
            objective=self._objective(number, classes),
            relation=self._relation(),
            probe=self.probe,
            handover=handover,
        )

    def _auxiliary(self, channels: int, axes: int) -> nn.Module | None:
        if not self.auxiliary:
            return None
        cells, layers = self.auxiliary_cells, self.auxiliary_layers
        return make_auxiliary(channels, self.auxiliary, axes=axes, cells=cells, layers=layers)

    def _goodness(self, classes: int, cells: int | tuple[int, ...]) -> Part:
        if self.goodness == "channel-groups":
            return ChannelGroups(classes)
        return PooledGoodness(cells=cells, power=2 if self.goodness == "square" else 1)

    def _projection(self, number: int) -> Projection:
        if self.goodness == "channel-groups":
            return NoProjection()
        made: Mapping[ProjectionName, Callable[[], Projection]] = {
            "learned": LearnedProjection,
            "fixed": lambda: FixedProjection(seed=number),
            "hidden": lambda: HiddenProjection(self.hidden_units),
            "softmax": SoftmaxProjection,
            "prototypes": Prototypes,
        }
        return made[self.projection]()

    def _temperature(self) -> Temperature:
        if self.temperature == "learned":
            return LearnedTemperature()
        return ClarityTemperature() if self.temperature == "clarity" else FixedTemperature(self.temperature_value)

    def _objective(self, number: int, classes: int) -> Objective:
        if number < self.super_class_blocks:
            return SuperClassObjective(even_groups(classes, self.super_classes))
        return CrossEntropyObjective()

    def _relation(self) -> Relation | None:
        if self.relation == "none":
            return None
        return (SimilarityMatching if self.relation == "similarity" else SupervisedContrast)(self.relation_weight)

    def as_dict(self) -> dict[str, Setting]:
        """JSON-able: the settings that differ from the defaults."""
        default = asdict(LocalRule())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LocalRule:
        """From `as_dict`, or from text as a command line has it.

        Raises:
            ModelError: An unknown setting, named with the nearest known one, or a value that it cannot have.
        """
        known = [one.name for one in fields(cls)]
        kinds = get_type_hints(cls)
        for name in values:
            if name not in known:
                raise ModelError(f"unknown rule setting `{name}`", hint=did_you_mean(name, known, most=1))
        return cls(**{name: _from_text(name, value, kinds[name]) for name, value in values.items()})


def merged_rules(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A rule's settings with some changed; of the old ones, those go that say nothing any more.

    >>> merged_rules({"relation": "contrast", "relation_weight": 2.0}, {"relation": "none"})
    {'relation': 'none'}
    """
    values: dict[str, Any] = {one.name: one.default for one in fields(LocalRule)} | {**base, **changes}
    kinds = get_type_hints(LocalRule)
    values = {name: _from_text(name, value, kinds[name]) for name, value in values.items() if name in kinds}
    idle = {name for other, needed, only in _MEANT_FOR if not _allows(needed, values[other]) for name in only}
    return {**{name: value for name, value in base.items() if name not in idle}, **changes}


_HANDOVERS: Mapping[HandoverName, Callable[[], Part]] = {
    "layer-norm": LayerNormHandover,
    "group-norm": GroupNormHandover,
    "unit-norm": UnitNormHandover,
    "none": NoHandoverNorm,
}
# Of a setting, the values with which some others mean something; none for any but 0.
_MEANT_FOR: tuple[tuple[str, tuple[object, ...], tuple[str, ...]], ...] = (
    (
        "objective",
        ("cross-entropy",),
        (
            *("goodness", "cells", "projection", "hidden_units", "temperature", "temperature_value"),
            *("auxiliary", "auxiliary_cells", "auxiliary_layers"),
            *("super_classes", "super_class_blocks", "relation", "relation_weight", "probe"),
        ),
    ),
    ("objective", ("forward-forward",), ("threshold",)),
    ("goodness", ("mean", "square"), ("projection", "hidden_units", "cells")),
    ("projection", ("hidden",), ("hidden_units",)),
    ("auxiliary", (), ("auxiliary_cells", "auxiliary_layers")),
    ("temperature", ("fixed",), ("temperature_value",)),
    ("relation", ("similarity", "contrast"), ("relation_weight", "probe")),
)
_KINDS: Mapping[type, str] = {int: "whole number", float: "number", bool: "truth value, `true` or `false`"}


def _allows(needed: tuple[object, ...], value: object) -> bool:
    return value in needed if needed else bool(value)


def _from_text(name: str, value: Any, kind: Any) -> Any:
    """A setting's value; where it is text and the setting is none, the number or truth value that it says."""
    if not isinstance(value, str) or get_args(kind):
        return value
    try:
        return {"true": True, "false": False}[value] if kind is bool else kind(value)
    except (ValueError, KeyError) as error:
        raise ModelError(f"rule `{name}` must be a {_KINDS[kind]}, got `{value}`") from error
