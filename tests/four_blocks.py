"""A network of four blocks that learns from a few random rows, for tests of the order in which it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from edgeff.artifact import Artifact, open_artifact
from edgeff.export.writer import export_network
from edgeff.goodness import PooledGoodness
from edgeff.manifest import TensorSpec
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.preprocess import Preprocessing
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.network import Network, open_network
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.plan_parts import Plan
from edgeff.runtime.trainer import LearningRate, Trainer
from edgeff.runtime.update import TrainingRows

ROWS, BATCH = 22, 8
Array = np.ndarray[Any, Any]


def network(dropout: float = 0.0) -> LocalNetwork:
    """Four blocks; the second and the third may hand over in place. With dropout, the second draws."""
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1))),
        nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU()),
    ]
    pool = PooledGoodness(cells=2)
    return LocalNetwork([LocalBlock(layer, goodness=pool) for layer in layers], input_shape=(2, 40, 40), classes=3)


def exported(folder: Any, dropout: float = 0.0) -> Artifact:
    spec = TensorSpec("x", (2, 40, 40))
    return open_artifact(export_network(network(dropout), folder, preprocessing=Preprocessing(spec, (), spec)))


def opened(artifact: Artifact, made: Plan, engine: OnnxRuntime) -> Network:
    names = [part.block for part in made.blocks if part.trained]
    return open_network(artifact, engine, trained=names, accumulate=True, groups=made.groups)


def trainer_of(network: Network, made: Plan, **more: Any) -> Trainer:
    draw = np.random.default_rng(3)
    x, y = draw.standard_normal((ROWS, 2, 40, 40), np.float32), draw.integers(0, 3, ROWS)
    order = MixedOrder(ROWS, 0, BATCH, 0.0, 5)
    rows = TrainingRows(PreprocessedRows(x, network.preprocessing), y, order)
    return Trainer(network, made, rows=rows, learning_rate=LearningRate(0.01, "constant", 9), seed=1, **more)


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
