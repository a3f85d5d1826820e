"""Every choice of a rule compiles to plain ONNX whose update is PyTorch's, at two batch sizes, on onnxruntime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgeff.export.check import TOLERANCE, check_block
from edgeff.export.graphs import compile_block
from edgeff.model import LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.rule import LocalRule

CLASSES = 5
RULES: list[dict[str, Any]] = [
    {},
    {"goodness": "square"},
    {"goodness": "channel-groups"},
    {"projection": "fixed"},
    {"projection": "hidden", "hidden_units": 7},
    {"projection": "softmax"},
    {"projection": "prototypes"},
    {"auxiliary": 6},
    {"auxiliary": 6, "auxiliary_layers": 2},
    {"temperature": "fixed", "temperature_value": 0.5},
    {"temperature": "clarity"},
    {"handover": "group-norm"},
    {"handover": "unit-norm"},
    {"handover": "none"},
    {"super_classes": 2, "super_class_blocks": 1},
    {"relation": "similarity", "relation_weight": 3.0},
    {"relation": "contrast"},
    {"relation": "similarity", "probe": True},
    {"objective": "forward-forward"},
]
# Rows of an image, of a signal, and of numbers; each with the layer that takes them.
KINDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "map": ((3, 8, 8), lambda more: nn.Sequential(nn.Conv2d(3 + more, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))),
    "signal": ((3, 16), lambda more: nn.Sequential(nn.Conv1d(3 + more, 8, 3, padding=1), nn.ReLU())),
    "numbers": ((12,), lambda more: nn.Sequential(nn.Linear(12 + more, 8), nn.ReLU())),
}


def network_of(rule: dict[str, Any], kind: str) -> LocalNetwork:
    shape, layer = KINDS[kind]
    chosen = LocalRule(**rule)
    torch.manual_seed(0)
    block = chosen.block(
        layer(chosen.label_channels(CLASSES)), number=0, classes=CLASSES, channels=8, axes=len(shape) - 1, cells=2
    )
    return LocalNetwork([block], input_shape=shape, classes=CLASSES)


# What is of maps alone.
CASES = [(rule, kind) for rule in RULES for kind in KINDS]
CASES += [({"auxiliary": 6, "auxiliary_cells": 2}, kind) for kind in ("map", "signal")]


@pytest.mark.parametrize(
    ("rule", "kind"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else ",".join(f"{key}={one}" for key, one in value.items()),
)
def test_every_choice_learns_on_onnxruntime_as_it_does_in_torch(rule: dict[str, Any], kind: str) -> None:
    (block,) = network_of(rule, kind).sequence
    spec = optimizer_spec("adamw")
    graphs = compile_block(block, optimizer_spec=spec, input_dtype="float32", last=False)
    found = check_block(block, graphs, spec=spec, input_dtype="float32", classes=CLASSES)
    assert found.error <= found.tolerance <= 100 * TOLERANCE


def test_blocks_of_two_layers_that_compare_rows_compile_too() -> None:
    chosen = LocalRule(relation="similarity", auxiliary=4)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())]
    blocks = [
        chosen.block(layer, number=number, classes=CLASSES, channels=8, axes=2, cells=2)
        for number, layer in enumerate(layers)
    ]
    network = LocalNetwork(blocks, input_shape=(3, 8, 8), classes=CLASSES).regroup("2-layer", "all")
    (block,) = network.sequence
    assert block.compares_rows
    spec = optimizer_spec("sgd")
    graphs = compile_block(block, optimizer_spec=spec, input_dtype="float32", last=True)
    assert check_block(block, graphs, spec=spec, input_dtype="float32", classes=CLASSES).error < 1e-4
