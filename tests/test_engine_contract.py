"""One contract for both engines: the same updates as torch's, and nothing of a run lost on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeff.artifact import Artifact, open_artifact
from edgeff.engines import ENGINES, ONNXRUNTIME, ORT_TRAINING
from edgeff.export import ExportSettings, export_network
from edgeff.manifest import OptimizerSpec, TensorSpec
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.preprocess import Preprocessing
from edgeff.presets import preset
from edgeff.runtime.adapt import engine_request
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.network import Network, open_network, preprocessing_of
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.ort_training import OrtTraining
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.predict import predict
from edgeff.runtime.trainer import LearningRate, Position, Progress, Trainer
from edgeff.runtime.update import TrainingRows

# Between float32 sums in another order, over a whole trajectory.
TOLERANCE = 1e-4
STEPS = 50
STARTED: dict[str, Callable[[int], OnnxRuntime]] = {ONNXRUNTIME: OnnxRuntime, ORT_TRAINING: OrtTraining}


@dataclass(frozen=True)
class Case:
    """A network on both engines, and the rows of the trajectory."""

    network: LocalNetwork
    spec: OptimizerSpec
    artifact: Artifact
    x: np.ndarray
    y: np.ndarray
    batch: int
    rate: float


ADAMW = optimizer_spec("adamw", weight_decay=1e-2)
SGD = optimizer_spec("sgd", momentum=0.0)


def make_case(folder: Path, network: LocalNetwork, batch: int, spec: OptimizerSpec = ADAMW, rate: float = 1e-3) -> Case:
    draw = np.random.default_rng(3)
    shape, classes = tuple(network.input_shape), len(network.classes)
    x = draw.standard_normal((STEPS * batch, *shape)).astype(np.float32)
    y = draw.integers(0, classes, STEPS * batch)
    row = TensorSpec("x", shape)
    settings = ExportSettings(optimizer=spec, engine=ORT_TRAINING)
    path = export_network(
        network, folder / "artifact", preprocessing=Preprocessing(row, (), row), settings=settings, replay=(x, y)
    )
    return Case(network, spec, open_artifact(path), x, y, batch, rate)


def mixed() -> LocalNetwork:
    """Blocks with everything that onnxruntime-training needs in another form, and a constant tensor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [
            LocalBlock(
                nn.Sequential(
                    nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5)
                )
            ),
            LocalBlock(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1), nn.GELU())),
            LocalBlock(nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh()), projection="fixed"),
        ]
        return LocalNetwork(blocks, input_shape=(2, 8, 8), classes=3, name="mixed")


@pytest.fixture(scope="module", params=["har-cnn", pytest.param("vgg8", marks=pytest.mark.slow), "mixed", "mixed sgd"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("contract")
    if request.param.startswith("mixed"):
        return make_case(folder, mixed(), 6, SGD if request.param.endswith("sgd") else ADAMW)
    if request.param == "vgg8":
        # On random rows AdamW drives it apart from itself: of 50 updates, a rounding error makes 1e-3 of the loss.
        return make_case(folder, preset("vgg8"), 2, SGD)
    return make_case(folder, preset("har-cnn"), 6)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("small"), mixed(), 6)


def start(case: Case, name: str, micro_batch: int | None = None) -> Trainer:
    engine = STARTED[name](1)
    artifact = case.artifact.for_engine(name)
    manifest = artifact.manifest
    asked = {"updates": "accumulated", **engine_request(engine)}
    request = Request(case.batch, schedule="sweep", micro_batch=micro_batch or case.batch, **asked)  # type: ignore[arg-type]
    planned = plan(manifest, request)
    engine.reserve(planned.arena_bytes)
    names = [block.name for block in manifest.blocks]
    network = open_network(artifact, engine, trained=names, accumulate=not engine.keeps_gradients)
    order = MixedOrder(len(case.y), 0, case.batch, 0.0, seed=1)
    rows = TrainingRows(PreprocessedRows(case.x, preprocessing_of(manifest)), case.y, order)
    return Trainer(network, planned, rows=rows, learning_rate=LearningRate(case.rate, "constant", STEPS), seed=0)


def weights(network: Network) -> dict[str, np.ndarray]:
    return {key: array.copy() for key, array in network.resident().items()}


def in_torch(case: Case, order: MixedOrder) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The same updates by autograd and `torch.optim`, block by block, the hand-over detached."""
    network = copy.deepcopy(case.network).eval()
    settings = dict(case.spec.settings)
    made: Callable[[Any], torch.optim.Optimizer] = (
        (lambda tensors: torch.optim.SGD(tensors, case.rate))
        if case.spec.kind == "sgd"
        else (
            lambda tensors: torch.optim.AdamW(
                tensors,
                case.rate,
                betas=(settings["beta1"], settings["beta2"]),
                eps=settings["epsilon"],
                weight_decay=settings["weight_decay"],
            )
        )
    )
    optimizers = [made(block.parameters()) for block in network.blocks]
    losses = []
    for index in order.batches(1):
        x, y = torch.from_numpy(case.x[index]), torch.from_numpy(case.y[index])
        found = {}
        for block, optimizer in zip(network.blocks, optimizers, strict=True):
            handover, scores = block(x)
            loss = block.loss(scores, y, torch.full((len(y),), 1.0 / len(y)))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            found[str(block.name)], x = loss.item(), handover.detach()
        losses.append(found)
    tensors = {
        f"{block.name}.{name}": tensor.detach().numpy()
        for block in network.blocks
        for name, tensor in block.named_parameters()
    }
    return losses, tensors


def assert_same_losses(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> None:
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE)


def assert_same_weights(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for key, array in expected.items():
        # AdamW makes a step of full length of the smallest gradient, whose sign rounding may decide.
        np.testing.assert_allclose(found[key], array, rtol=0, atol=1e-3 * np.abs(array).max() + 1e-3, err_msg=key)


def test_fifty_updates_are_torchs_on_both_engines(case: Case) -> None:
    trainers = {name: start(case, name) for name in ENGINES}
    losses = {name: [dict(one.loss) for one in trainer.epoch(Position())] for name, trainer in trainers.items()}
    expected, tensors = in_torch(case, trainers[ONNXRUNTIME]._rows.order)
    for name, trainer in trainers.items():
        assert_same_losses(losses[name], expected)
        assert_same_weights(dict(trainer.network.weights()), tensors)
    assert_same_losses(losses[ONNXRUNTIME], losses[ORT_TRAINING])


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_a_batch_in_parts_gives_the_same_updates(small: Case, micro_batch: int) -> None:
    whole, parts = (start(small, ORT_TRAINING, size) for size in (None, micro_batch))
    expected = [dict(one.loss) for one in whole.epoch(Position())]
    assert_same_losses([dict(one.loss) for one in parts.epoch(Position())], expected)
    assert_same_weights(dict(parts.network.weights()), dict(whole.network.weights()))


@pytest.mark.parametrize("name", ENGINES)
def test_an_epoch_gone_on_with_ends_in_the_same_weights_and_state(small: Case, name: str) -> None:
    """State goes through the runtime's arrays, as through a checkpoint, into a session of its own."""
    through, first, second = (start(small, name) for _ in range(3))
    list(through.epoch(Position()))
    *_, middle = _updates(first, 20)
    for key, array in second.network.resident().items():
        array[...] = weights(first.settled())[key]
    list(second.epoch(middle.position))
    for key, array in weights(through.network).items():
        np.testing.assert_array_equal(second.network.resident()[key], array, err_msg=key)


@pytest.mark.parametrize(("first", "second"), [ENGINES, ENGINES[::-1]])
def test_a_run_may_change_its_engine(small: Case, first: str, second: str) -> None:
    through, begun, ended = start(small, first), start(small, first), start(small, second)
    expected = [dict(one.loss) for one in through.epoch(Position())]
    records = _updates(begun, 20)
    for key, array in ended.network.resident().items():
        array[...] = weights(begun.settled())[key]
    ended.network.convert_state(begun.network.engine.moments)
    records += list(ended.epoch(records[-1].position))
    assert_same_losses([dict(one.loss) for one in records], expected)


@pytest.mark.parametrize("name", ENGINES)
def test_arrays_are_up_to_date_in_the_midst_of_an_epoch_and_after_it(small: Case, name: str) -> None:
    trainer = start(small, name)
    before = weights(trainer.network)
    updates = trainer.epoch(Position())
    next(updates)
    middle = weights(trainer.settled())
    assert all((middle[key] != before[key]).any() for key in before if not key.endswith("projection.matrix"))
    next(updates)
    updates.close()
    left = weights(trainer.network)
    assert any((left[key] != middle[key]).any() for key in middle)


@pytest.mark.parametrize("name", ENGINES)
def test_weights_that_were_trained_predict_on_either_engine(small: Case, name: str) -> None:
    trainer = start(small, name)
    list(trainer.epoch(Position()))
    rows = PreprocessedRows(small.x[:9], preprocessing_of(small.artifact.manifest))
    found = predict(trainer.network, rows, micro_batch=4)
    plain = open_network(small.artifact, OnnxRuntime(1), weights=trainer.network.weights())
    np.testing.assert_allclose(found, predict(plain, rows, micro_batch=4), rtol=1e-6)


def test_blocks_that_are_not_trained_keep_their_weights(small: Case) -> None:
    trainer = start(small, ORT_TRAINING)
    frozen, *_ = (block.name for block in small.artifact.manifest.blocks)
    parts = [
        replace(part, trained=part.block != frozen, graphs=("forward",) if part.block == frozen else part.graphs)
        for part in trainer._plan.blocks
    ]
    trainer._plan = replace(trainer._plan, blocks=tuple(parts))
    before = weights(trainer.network)
    *_, last = _updates(trainer, 5)
    assert frozen not in last.loss
    after = weights(trainer.settled())
    for key in before:
        assert (before[key] == after[key]).all() == (f"{frozen}." in key or key.endswith("projection.matrix")), key


def _updates(trainer: Trainer, count: int) -> list[Progress]:
    """The first updates of an epoch, which is left."""
    updates = trainer.epoch(Position())
    found = [next(updates) for _ in range(count)]
    updates.close()
    return found
