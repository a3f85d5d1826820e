"""Learning rules by names and numbers: what each choice makes of a preset's blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast, get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeff.auxiliary import GridMeans
from edgeff.blocks import LocalBlock
from edgeff.errors import ModelError
from edgeff.export.compiled import compile_checked
from edgeff.goodness import largest_divisor
from edgeff.locality import check_locality
from edgeff.model import LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.overlay import OverlayBlock
from edgeff.presets import PRESETS, build_source, preset
from edgeff.rule import LocalRule, merged_rules

Values = dict[str, Any]
KINDS = get_type_hints(LocalRule)
# Small rows by how many axes a preset names: what is looked at here does not depend on their size.
ROWS: Mapping[int, tuple[int, ...]] = {0: (9,), 2: (2, 16), 3: (1, 16, 8)}
SHAPES = {name: ROWS[len(one.axes)] for name, one in PRESETS.items()}
NAMED: list[Values] = [
    {name: choice} for name, kind in KINDS.items() for choice in get_args(kind) if choice != getattr(LocalRule(), name)
]
NUMBERS: list[Values] = [
    {"cells": 2},
    {"projection": "hidden", "hidden_units": 3},
    {"auxiliary": 3},
    {"auxiliary": 3, "auxiliary_layers": 2},
    {"temperature": "fixed", "temperature_value": 0.5},
    {"objective": "forward-forward", "threshold": 0.5},
    {"super_classes": 2, "super_class_blocks": 1},
    {"relation": "similarity", "relation_weight": 0.5, "probe": True},
    {"relation": "contrast", "relation_weight": 0.5, "probe": True},
]


def named(values: Values) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items()) or "default"


def small(name: str, rule: Values | LocalRule | None = None, seed: int = 0) -> LocalNetwork:
    # Groups of units need some units each.
    width = 0.1 if name == "mlp" else 0.02
    return preset(name, input_shape=SHAPES[name], classes=3, width=width, rule=rule, seed=seed)


# --- what the settings make -------------------------------------------------------------------------------------------

# Settings, and what they are to make of the second block of `har-cnn`, by where its description says so.
MADE: list[tuple[Values, dict[str, Any]]] = [
    (
        {},
        {
            "goodness": {"part": "PooledGoodness", "cells": 4, "power": 1, "layout": "channels"},
            "projection": {"part": "LearnedProjection", "bias": True},
            "temperature": {"part": "LearnedTemperature", "minimum": 0.1, "maximum": 2.0},
            "objective": {"part": "CrossEntropyObjective", "label_smoothing": 0.0},
            "handover": {"part": "LayerNormHandover", "eps": 1e-5},
        },
    ),
    (
        {"goodness": "square", "cells": 2},
        {"goodness": {"part": "PooledGoodness", "cells": 2, "power": 2, "layout": "channels"}},
    ),
    (
        {"goodness": "channel-groups"},
        {
            "goodness": {"part": "ChannelGroups", "classes": 3, "power": 1},
            "projection": {"part": "NoProjection"},
        },
    ),
    ({"projection": "fixed"}, {"projection": {"part": "FixedProjection", "seed": 1, "law": "orthonormal"}}),
    ({"projection": "hidden"}, {"projection": {"part": "HiddenProjection", "units": 128}}),
    ({"projection": "hidden", "hidden_units": 7}, {"projection": {"part": "HiddenProjection", "units": 7}}),
    ({"projection": "softmax"}, {"projection": {"part": "SoftmaxProjection"}}),
    ({"projection": "prototypes"}, {"projection": {"part": "Prototypes", "scale": 10.0, "eps": 1e-6}}),
    ({"temperature": "fixed"}, {"temperature": {"part": "FixedTemperature", "value": 1.0}}),
    (
        {"temperature": "fixed", "temperature_value": 0.25},
        {"temperature": {"part": "FixedTemperature", "value": 0.25}},
    ),
    ({"temperature": "clarity"}, {"temperature": {"part": "ClarityTemperature", "minimum": 0.1, "maximum": 2.0}}),
    (
        {"objective": "forward-forward"},
        {"objective": {"part": "TwoSidedObjective", "threshold": 2.0}, "goodness": {"part": "MeanSquare"}},
    ),
    (
        {"objective": "forward-forward", "threshold": 0.5, "handover": "unit-norm"},
        {
            "objective": {"part": "TwoSidedObjective", "threshold": 0.5},
            "handover": {"part": "UnitNormHandover", "eps": 1e-5},
        },
    ),
    (
        {"super_classes": 2, "super_class_blocks": 2},
        {"objective": {"part": "SuperClassObjective", "groups": [0, 0, 1]}},
    ),
    ({"super_classes": 2, "super_class_blocks": 1}, {"objective": {"part": "CrossEntropyObjective"}}),
    (
        {"relation": "similarity"},
        {"relation": {"part": "SimilarityMatching", "weight": 1.0, "channels": None}, "probe": False},
    ),
    (
        {"relation": "contrast", "relation_weight": 0.5, "probe": True},
        {
            "relation": {
                "part": "SupervisedContrast",
                "weight": 0.5,
                "size": 64,
                "temperature": 0.1,
                "partners": 128,
            },
            "probe": True,
        },
    ),
    ({"handover": "group-norm"}, {"handover": {"part": "GroupNormHandover", "groups": 8, "eps": 1e-5}}),
    ({"handover": "none"}, {"handover": {"part": "NoHandoverNorm"}}),
]


@pytest.mark.parametrize(("rule", "made"), MADE, ids=[named(rule) for rule, _ in MADE])
def test_every_setting_makes_what_it_says(rule: Values, made: dict[str, Any]) -> None:
    block = small("har-cnn", rule).sequence[1]
    described = json.loads(json.dumps(block.describe()))
    for key, expected in made.items():
        found = described[key]
        assert found == expected if not isinstance(expected, dict) else expected.items() <= found.items()
    assert ("relation" in described) == (rule.get("relation", "none") != "none")
    assert isinstance(block, OverlayBlock) == (rule.get("objective") == "forward-forward")


def test_no_setting_is_left_out_here() -> None:
    tried = {key for rule, _ in MADE for key in rule}
    assert {one.name for one in fields(LocalRule)} == tried | {"auxiliary", "auxiliary_cells", "auxiliary_layers"}
    for name, kind in KINDS.items():
        default = getattr(LocalRule(), name)
        chosen = {rule[name] for rule, _ in MADE if name in rule} | {default}
        assert set(get_args(kind)) <= chosen, name


@pytest.mark.parametrize(("name", "layer"), [("har-cnn", nn.Conv1d), ("image-cnn", nn.Conv2d), ("mlp", nn.Linear)])
def test_auxiliary_layers_are_of_the_kind_of_the_blocks(name: str, layer: type[nn.Module]) -> None:
    block = small(name, {"auxiliary": 3}).sequence[0]
    assert isinstance(block, LocalBlock)
    assert block.readout is not None
    first, second = cast(nn.Sequential, block.readout.auxiliary)
    assert isinstance(first, layer)
    assert isinstance(second, nn.ReLU)
    assert first.weight.shape[0] == 3
    assert first.weight.shape[1] == block.handover_shape[0]
    activation = block.transform(torch.randn(2, *SHAPES[name]))
    assert block.readout.auxiliary is not None
    assert block.readout.auxiliary(activation).shape[2:] == activation.shape[2:]
    assert block.handover_shape == activation.shape[1:]
    plain = small(name).sequence[0]
    assert isinstance(plain, LocalBlock)
    assert plain.readout is not None
    assert plain.readout.auxiliary is None


@pytest.mark.parametrize("name", ["har-cnn", "image-cnn"])
def test_auxiliary_layers_work_on_a_coarser_map_and_there_may_be_several(name: str) -> None:
    block = small(name, {"auxiliary": 3, "auxiliary_cells": 4, "auxiliary_layers": 2}).sequence[0]
    assert isinstance(block, LocalBlock)
    assert block.readout is not None
    assert block.readout.auxiliary is not None
    assert isinstance(block.readout.auxiliary, nn.Sequential)
    layers = [module for module in block.readout.auxiliary if not isinstance(module, GridMeans)]
    assert [len(list(module.parameters())) for module in layers] == [2, 0, 2, 0]
    activation = block.transform(torch.randn(2, *SHAPES[name]))
    found = block.readout.auxiliary(activation)
    assert found.shape[:2] == (2, 3)
    assert found.shape[2:] == tuple(largest_divisor(size, 4) for size in activation.shape[2:])
    assert block.handover_shape == activation.shape[1:]
    pool = torch.nn.functional.adaptive_avg_pool2d if found.ndim == 4 else torch.nn.functional.adaptive_avg_pool1d
    pooled = pool(activation, tuple(found.shape[2:]))  # type: ignore[operator]
    torch.testing.assert_close(found, block.readout.auxiliary[1:](pooled))


def test_auxiliary_settings_go_with_auxiliary_channels() -> None:
    with pytest.raises(ModelError, match="rule `auxiliary_cells` says nothing with `auxiliary=0`") as caught:
        LocalRule(auxiliary_cells=8)
    assert caught.value.hint == "leave it out, or give `auxiliary` a number"
    base = {"auxiliary": 16, "auxiliary_cells": 8}
    assert merged_rules(base, {"auxiliary": "0"}) == {"auxiliary": "0"}
    assert merged_rules(base, {"auxiliary": "32"}) == {"auxiliary": "32", "auxiliary_cells": 8}
    with pytest.raises(ModelError, match="rule `auxiliary_layers` must be at least 1"):
        small("har-cnn", {"auxiliary": 3, "auxiliary_layers": 0})
    with pytest.raises(ModelError, match="rule `auxiliary_cells` is of maps, and these blocks have none"):
        small("mlp", {"auxiliary": 3, "auxiliary_cells": 4})
    with pytest.raises(ModelError, match="GridMeans needs cells of at least 1, got `0`"):
        GridMeans(0)


def test_a_setting_that_is_no_whole_number_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match=r"rule `auxiliary` must be a whole number, got `0\.5`"):
        LocalRule.from_dict(merged_rules({"auxiliary": 0.5}, {}))


def test_early_blocks_alone_learn_super_classes() -> None:
    network = small("har-cnn", {"super_classes": 2, "super_class_blocks": 3})
    parts = [block.describe()["objective"]["part"] for block in network.sequence]
    assert parts == ["SuperClassObjective"] * 3 + ["CrossEntropyObjective"]


def test_every_block_has_a_fixed_projection_of_its_own() -> None:
    network = small("har-cnn", {"projection": "fixed"})
    assert [block.describe()["projection"]["seed"] for block in network.sequence] == [0, 1, 2, 3]


def test_cells_are_the_presets_unless_the_rule_has_some() -> None:
    assert [block.describe()["goodness"]["cells"] for block in small("vgg8").sequence] == [4, 4, 4, 4, 4, 2]
    assert [block.describe()["goodness"]["cells"] for block in small("vgg8", {"cells": 3}).sequence] == [3] * 6


def test_labels_are_laid_over_as_many_channels_as_there_are_classes() -> None:
    assert LocalRule().label_channels(7) == 0
    assert LocalRule(objective="forward-forward").label_channels(7) == 7
    plain, overlaid = (small("har-cnn", {"objective": one}) for one in ("cross-entropy", "forward-forward"))
    for without, block in zip(plain.sequence, overlaid.sequence, strict=True):
        shapes = [one.get_parameter("transform.0.weight").shape for one in (without, block)]
        assert shapes[1][1] - shapes[0][1] == 3


# --- presets ----------------------------------------------------------------------------------------------------------


# Every preset as it is, and one of each builder by every rule.
BUILDERS = ("har-cnn", "kws-dscnn", "image-cnn", "mlp")
LOCAL = [
    *((name, {}) for name in PRESETS),
    *((name, rule) for name in BUILDERS for rule in (*NAMED, *NUMBERS)),
]


@pytest.mark.parametrize(("name", "rule"), LOCAL, ids=[f"{name}-{named(rule)}" for name, rule in LOCAL])
def test_every_preset_learns_locally_by_every_rule(name: str, rule: Values) -> None:
    network = small(name, rule)
    x = torch.randn(2, *SHAPES[name])
    assert network(x).shape == (2, 3)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-4, rtol=1e-4)
    found = check_locality(network)
    assert (found.local, found.kind) == (True, "local"), found


def signal_blocks() -> list[nn.Module]:
    """The transforms of `har-cnn` at 4 channels."""
    pools = ((), (), (nn.MaxPool1d(2),), (nn.MaxPool1d(2),), (nn.MaxPool1d(2),))
    return [
        nn.Sequential(nn.Conv1d(4 if number > 1 else 2, 4, 5, padding=2), nn.ReLU(), *pools[number])
        for number in range(1, 5)
    ]


def flat_blocks() -> list[nn.Module]:
    """The transforms of `mlp` at 24 units."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(9, 24), nn.ReLU())
    return [first, *(nn.Sequential(nn.Linear(24, 24), nn.ReLU()) for _ in range(2))]


@pytest.mark.parametrize("name", PRESETS)
def test_the_default_rule_draws_the_weights_of_a_preset_without_a_rule(name: str) -> None:
    plain = small(name, seed=5)
    for rule in ({}, LocalRule(), {"goodness": "mean", "cells": 0, "probe": False}):
        network = small(name, rule, seed=5)  # type: ignore[arg-type]
        assert network.describe() == plain.describe()
        assert network.source == plain.source
        assert list(network.tensors()) == list(plain.tensors())
        assert all(torch.equal(tensor, plain.tensors()[key]) for key, tensor in network.tensors().items())


@pytest.mark.parametrize(("name", "made"), [("har-cnn", signal_blocks), ("mlp", flat_blocks)])
def test_the_default_blocks_are_what_they_were_before_there_were_rules(
    name: str, made: Callable[[], list[nn.Module]]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        by_hand = LocalNetwork([LocalBlock(one) for one in made()], input_shape=SHAPES[name], classes=3)
    found, expected = small(name).tensors(), by_hand.tensors()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_a_run_folder_builds_the_network_again_by_its_rule() -> None:
    rule = {"projection": "hidden", "hidden_units": 5, "relation": "similarity", "probe": True}
    network = small("har-cnn", rule)
    assert network.source is not None
    assert network.source.arguments["rule"] == rule
    assert "rule" not in cast(Any, small("har-cnn").source).arguments
    source = json.loads(json.dumps(network.source.arguments))
    assert source == network.source.arguments
    again = build_source(network.source)
    assert again.describe() == network.describe()
    assert all(torch.equal(value, again.tensors()[key]) for key, value in network.tensors().items())


# What a device has to compute, in few networks: every part is in one of them.
TOGETHER: list[Values] = [
    {"goodness": "square", "projection": "prototypes", "temperature": "clarity", "handover": "unit-norm"},
    {"goodness": "channel-groups", "temperature": "clarity", "handover": "group-norm", "relation": "contrast"},
    {"projection": "hidden", "hidden_units": 4, "super_classes": 2, "super_class_blocks": 2, "handover": "none"},
    {"projection": "softmax", "auxiliary": 4, "relation": "similarity", "probe": True, "temperature": "fixed"},
]


@pytest.mark.parametrize("rule", TOGETHER, ids=named)
def test_what_rules_choose_compiles_to_graphs_that_are_as_near_to_torch_as_any(rule: Values) -> None:
    block = small("har-cnn", rule).sequence[1]
    compiled = compile_checked(
        block,
        optimizer=optimizer_spec("sgd", momentum=0.0),
        input_dtype="float32",
        classes=3,
        last=False,
        dropout=False,
    )
    assert compiled.check.error < 1e-5
    assert set(compiled.graphs.parameters) == {name for name, _ in block.named_parameters()}


# --- as text and back -------------------------------------------------------------------------------------------------

RELATIONS = ("similarity", "contrast")
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 10**6),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
}
# Settings that mean something together: what belongs to a hidden projection, a fixed temperature, a relation.
RULES = st.one_of(
    st.fixed_dictionaries(
        {"projection": st.just("hidden"), "temperature": st.just("fixed"), "relation": st.sampled_from(RELATIONS)},
        optional={
            name: st.sampled_from(get_args(KINDS[name])) if get_args(KINDS[name]) else VALUES[KINDS[name]]
            for name in (
                "cells",
                "hidden_units",
                "auxiliary",
                "temperature_value",
                "relation_weight",
                "probe",
                "handover",
            )
        },
    ),
    st.fixed_dictionaries(
        {"auxiliary": st.integers(1, 10**6)},
        optional=dict.fromkeys(("auxiliary_cells", "auxiliary_layers"), VALUES[int]),
    ),
    st.fixed_dictionaries({"objective": st.just("forward-forward")}, optional={"threshold": VALUES[float]}),
)


@settings(deadline=None)
@given(values=RULES)
def test_a_rule_says_only_what_differs_and_is_had_again_from_that_or_from_its_text(values: Values) -> None:
    rule = LocalRule(**values)
    said = rule.as_dict()
    assert LocalRule.from_dict(said) == rule
    assert json.loads(json.dumps(said)) == said
    default = LocalRule()
    assert said == {name: value for name, value in values.items() if value != getattr(default, name)}
    as_text = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    assert LocalRule.from_dict(as_text) == rule


def test_the_default_rule_says_nothing() -> None:
    assert LocalRule().as_dict() == {}
    assert LocalRule.from_dict({}) == LocalRule()


def test_text_becomes_what_the_setting_is() -> None:
    rule = LocalRule.from_dict({"cells": "3", "relation_weight": "1e-2", "relation": "contrast", "probe": "true"})
    assert (rule.cells, rule.relation_weight, rule.relation, rule.probe) == (3, 0.01, "contrast", True)
    assert LocalRule.from_dict({"probe": "false"}) == LocalRule()
    assert LocalRule.from_dict({"temperature": "fixed", "temperature_value": 2}).temperature_value == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "forward-forward", "relation": "contrast"}, "`relation` says nothing with `objective=forward-f"),
        ({"objective": "forward-forward", "super_classes": 2, "super_class_blocks": 1}, "`super_classes` says nothing"),
        ({"threshold": 1.0}, "`threshold` says nothing with `objective=cross-entropy`"),
        ({"goodness": "channel-groups", "projection": "fixed"}, "`projection` says nothing with `goodness=channel-gr"),
        ({"goodness": "channel-groups", "cells": 2}, "`cells` says nothing with `goodness=channel-groups`"),
        ({"hidden_units": 7}, "`hidden_units` says nothing with `projection=learned`"),
        ({"temperature_value": 2.0}, "`temperature_value` says nothing with `temperature=learned`"),
        ({"relation_weight": 2.0}, "`relation_weight` says nothing with `relation=none`"),
        ({"probe": True}, "`probe` says nothing with `relation=none`"),
    ],
)
def test_a_setting_that_another_one_makes_meaningless_is_refused(values: Values, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as refused:
        LocalRule(**values)
    assert str(refused.value.hint).startswith("leave it out, or choose `")


def test_early_blocks_alone_may_learn_super_classes() -> None:
    with pytest.raises(ModelError, match="no block of preset `har-cnn` learns the classes") as refused:
        preset("har-cnn", width=0.1, rule={"super_classes": 2, "super_class_blocks": 4})
    assert refused.value.hint == "it has 4 blocks: give it at most 3"


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"projektion": "fixed"}, "unknown rule setting `projektion`", "did you mean `projection`?"),
        ({"temprature": "fixed"}, "unknown rule setting `temprature`", "did you mean `temperature`?"),
        ({"xyz": 1}, "unknown rule setting `xyz`", "known: goodness, cells, projection, "),
        ({"projection": "fixd"}, "rule `projection` must be `learned` or `fixed` or .*, got `fixd`", ""),
        ({"projection": 3}, "rule `projection` must be `learned` or .*, got `3`", ""),
        ({"projection": None}, "rule `projection` must be `learned` or .*, got `None`", ""),
        ({"goodness": "max"}, "rule `goodness` must be `mean` or `square` or `channel-groups`, got `max`", ""),
        ({"cells": "two"}, "rule `cells` must be a whole number, got `two`", ""),
        ({"cells": "2.5"}, "rule `cells` must be a whole number, got `2.5`", ""),
        ({"cells": 2.0}, r"rule `cells` must be a whole number, got `2\.0`", ""),
        ({"cells": True}, "rule `cells` must be a whole number, got `True`", ""),
        ({"cells": [2, 2]}, r"rule `cells` must be a whole number, got `\[2, 2\]`", ""),
        ({"cells": "-1"}, "rule `cells` must be at least 0, got `-1`", ""),
        ({"hidden_units": -4}, "rule `hidden_units` must be at least 0, got `-4`", ""),
        ({"threshold": "high"}, "rule `threshold` must be a number, got `high`", ""),
        ({"threshold": None}, "rule `threshold` must be a number, got `None`", ""),
        ({"relation_weight": True}, "rule `relation_weight` must be a number, got `True`", ""),
        ({"probe": "yes"}, "rule `probe` must be a truth value, `true` or `false`, got `yes`", ""),
        ({"probe": 1}, "rule `probe` must be a truth value, `true` or `false`, got `1`", ""),
        ({"super_classes": 2}, "`super_classes` and `super_class_blocks` go together: give both or neither", ""),
        ({"super_class_blocks": "1"}, "`super_classes` and `super_class_blocks` go together", ""),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values: Values, message: str, hint: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        LocalRule.from_dict(values)
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"projection": "hidden", "hidden_units": 0}, "HiddenProjection needs units of at least 1, got `0`"),
        ({"temperature": "fixed", "temperature_value": 0.0}, "FixedTemperature needs a positive value, got 0.0"),
        ({"relation": "similarity", "relation_weight": 0.0}, "SimilarityMatching needs a positive weight"),
        ({"relation": "contrast", "relation_weight": -1.0}, "SupervisedContrast needs a positive weight"),
        ({"super_classes": 1, "super_class_blocks": 1}, "SuperClassObjective needs two or more groups"),
        ({"super_classes": 9, "super_class_blocks": 1}, "numbered from 0 without a gap"),
        ({"goodness": "channel-group"}, "rule `goodness` must be"),
    ],
)
def test_a_rule_that_no_block_can_learn_by_is_refused_when_it_is_built(rule: Values, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small("har-cnn", rule)


def test_a_block_that_is_too_narrow_for_groups_of_channels_is_named() -> None:
    with pytest.raises(ModelError, match="block `block1`: ChannelGroups needs a channel for each of 9 classes"):
        preset("har-cnn", classes=9, width=0.02, rule={"goodness": "channel-groups"})
