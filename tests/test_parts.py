from __future__ import annotations

import inspect
import json

import pytest
from torch import nn

from edgeff import fusion, goodness, handover, objective, overlay, projection, relation, temperature
from edgeff.blocks import Block
from edgeff.fusion import LogProbabilitySum
from edgeff.goodness import ChannelGroups, PooledGoodness
from edgeff.handover import GroupNormHandover, LayerNormHandover, NoHandoverNorm, UnitNormHandover
from edgeff.objective import CrossEntropyObjective, SuperClassObjective, TwoSidedObjective
from edgeff.overlay import MeanSquare
from edgeff.parts import describe_part
from edgeff.projection import (
    FixedProjection,
    HiddenProjection,
    LearnedProjection,
    NoProjection,
    Prototypes,
    SoftmaxProjection,
)
from edgeff.relation import SimilarityMatching, SupervisedContrast
from edgeff.temperature import ClarityTemperature, FixedTemperature, LearnedTemperature

# Each with a setting of its own, where it has any, and how that is described.
DESCRIBED = [
    (PooledGoodness(cells=(2, 3)), {"cells": (2, 3), "power": 1, "layout": "channels"}),
    (ChannelGroups(4, power=2), {"classes": 4, "power": 2}),
    (MeanSquare(), {}),
    (LearnedProjection(bias=False), {"bias": False}),
    (FixedProjection(4), {"seed": 4, "law": "orthonormal"}),
    (HiddenProjection(9), {"units": 9}),
    (SoftmaxProjection(), {}),
    (Prototypes(3.0), {"scale": 3.0, "eps": 1e-6}),
    (NoProjection(), {}),
    (LearnedTemperature(0.5), {"minimum": 0.5, "maximum": 2.0}),
    (FixedTemperature(2.0), {"value": 2.0}),
    (ClarityTemperature(0.2, 3.0), {"minimum": 0.2, "maximum": 3.0}),
    (CrossEntropyObjective(0.1), {"label_smoothing": 0.1}),
    (TwoSidedObjective(1.5), {"threshold": 1.5}),
    (SuperClassObjective((0, 1, 1)), {"groups": [0, 1, 1]}),
    (LayerNormHandover(1e-3), {"eps": 1e-3}),
    (GroupNormHandover(4), {"groups": 4, "eps": 1e-5}),
    (UnitNormHandover(1e-3), {"eps": 1e-3}),
    (NoHandoverNorm(), {}),
    (SimilarityMatching(0.5, channels=7), {"weight": 0.5, "channels": 7}),
    (SimilarityMatching(), {"weight": 1.0, "channels": None}),
    (
        SupervisedContrast(2.0, size=8, temperature=0.2, partners=9),
        {"weight": 2.0, "size": 8, "temperature": 0.2, "partners": 9},
    ),
    (LogProbabilitySum((1.0, 0.0)), {"weights": [1.0, 0.0], "first_block": 0}),
]


@pytest.mark.parametrize(("part", "settings"), DESCRIBED, ids=[type(part).__name__ for part, _ in DESCRIBED])
def test_every_part_says_its_name_and_settings_as_json(part: object, settings: dict[str, object]) -> None:
    described = describe_part(part)
    assert described == {"part": type(part).__name__, **settings}
    assert json.loads(json.dumps(described, allow_nan=False))["part"] == type(part).__name__


def test_no_part_is_left_out_here() -> None:
    modules = (fusion, goodness, handover, objective, overlay, projection, relation, temperature)
    own = [
        one
        for module in modules
        for _, one in inspect.getmembers(module, inspect.isclass)
        if one.__module__ == module.__name__ and hasattr(one, "describe") and not issubclass(one, Block)
    ]
    assert {one for one in own if one is not relation.Relation} == {type(part) for part, _ in DESCRIBED}


def test_a_foreign_part_is_described_by_its_class_and_text() -> None:
    described = describe_part(nn.Sequential(nn.Linear(2, 3)))
    assert described["part"] == "Sequential"
    assert "Linear(in_features=2, out_features=3" in described["text"]
