"""Training by graphs that take less time and more bytes: the same updates as without them, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from layer_cases import difference
from torch import nn

from edgeff.artifact import Artifact, open_artifact
from edgeff.baselines import CHECKPOINTED, PLAIN
from edgeff.export import ExportSettings, export_network
from edgeff.manifest import TensorSpec
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.preprocess import Preprocessing
from edgeff.runtime.adapt import engine_request
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.network import open_network, preprocessing_of
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.trainer import LearningRate, Position, Trainer
from edgeff.runtime.update import TrainingRows

SHAPE, CLASSES, BATCH, UPDATES = (3, 8, 8), 3, 8, 4
REQUEST = Request(BATCH, schedule="sweep", micro_batch=4)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A network whose second block has many channels, with back-propagation through the whole."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)]
    blocks = [LocalBlock(nn.Sequential(one, nn.ReLU())) for one in layers]
    network = LocalNetwork(blocks, input_shape=SHAPE, classes=CLASSES, name="wide")
    row = TensorSpec("x", SHAPE)
    out = tmp_path_factory.mktemp("artifacts") / "wide"
    export_network(network, out, preprocessing=Preprocessing(row, (), row), settings=ExportSettings(baselines=True))
    return open_artifact(out)


def trained(artifact: Artifact, chosen: Plan) -> dict[str, np.ndarray]:
    """Weights and optimiser state after some updates on random rows."""
    names = [block.name for block in artifact.manifest.blocks]
    network = open_network(artifact, OnnxRuntime(1), trained=names, accumulate=True)
    draw = np.random.default_rng(0)
    count = BATCH * UPDATES
    x = PreprocessedRows(draw.standard_normal((count, *SHAPE), np.float32), preprocessing_of(artifact.manifest))
    rows = TrainingRows(x, np.arange(count) % CLASSES, MixedOrder(count, 0, BATCH, 0.0, 0))
    rate = LearningRate(1e-3, "constant", UPDATES)
    list(Trainer(network, chosen, rows=rows, learning_rate=rate, seed=0).epoch(Position()))
    return network.resident()


def test_blocks_of_many_channels_have_a_fast_graph_of_which_alike_ones_share_the_file(artifact: Artifact) -> None:
    first, second, last = artifact.manifest.blocks
    assert "fast_accumulate" not in first.graphs
    assert second.graphs["fast_accumulate"].file != last.graphs["fast_accumulate"].file  # the last hands nothing over
    assert second.graphs["fast_accumulate"].work.at(8) < second.graphs["accumulate"].work.at(8)


@pytest.mark.parametrize("opened", [lambda it: it, lambda it: it.baseline(PLAIN)], ids=["blocks", "whole"])
def test_fast_graphs_learn_what_the_others_learn(artifact: Artifact, opened: Callable[[Artifact], Artifact]) -> None:
    opened_artifact = opened(artifact)
    fast, plain = (plan(opened_artifact.manifest, replace(REQUEST, fast=allowed)) for allowed in (True, False))
    assert any("fast_accumulate" in part.graphs for part in fast.blocks)
    assert not any("fast_accumulate" in part.graphs for part in plain.blocks)
    found, expected = trained(opened_artifact, fast), trained(opened_artifact, plain)
    assert any(not np.array_equal(found[key], expected[key]) for key in found)
    for key in (key for key in found if not key.startswith("state/")):
        # AdamW divides by what is near zero for some numbers: each update moves one by at most the rate.
        assert difference(found[key], expected[key], least=0.05) < 2e-3, key


def test_who_checkpoints_spares_bytes(artifact: Artifact) -> None:
    assert "fast_accumulate" not in artifact.baseline(CHECKPOINTED).manifest.blocks[0].graphs


def test_an_engine_with_copies_of_its_own_is_given_plain_graphs() -> None:
    assert engine_request(OnnxRuntime(1)) == {}

    class Apart(OnnxRuntime):
        has_copies = True  # type: ignore[assignment]

    assert engine_request(Apart(1))["fast"] is False


def test_a_fast_graph_that_is_not_there_is_found_when_the_artifact_is_opened(artifact: Artifact) -> None:
    file = artifact.manifest.blocks[1].graphs["fast_accumulate"].file
    assert file in artifact.manifest.files
    assert Path(artifact.path, file).is_file()
