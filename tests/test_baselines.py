"""Back-propagation that travels along: the same network and weights as one block, planned, trained and measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeff.artifact import Artifact, open_artifact
from edgeff.baselines import BASELINES, CHECKPOINTED, PLAIN
from edgeff.container import Folder
from edgeff.dataset import Dataset
from edgeff.errors import ArtifactError, BudgetError, RunError
from edgeff.export import ExportSettings, export_network
from edgeff.manifest import TensorSpec, TrainingDefaults
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.preprocess import Preprocessing
from edgeff.runtime.adapt import Adaptation
from edgeff.runtime.checkpoint import RunFolder, read_weights
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Finished
from edgeff.runtime.measure import measure_method
from edgeff.runtime.methods import METHODS, artifact_of, available_methods, plan_trained, request_for
from edgeff.runtime.mixture import prepare_rows
from edgeff.runtime.network import open_network
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.zeroth_order import ZerothOrder

SHAPE, CLASSES, BATCH, RATE = (3, 12, 12), 4, 8, 0.05
SGD = optimizer_spec("sgd", momentum=0.9)
MIB = 2**20


def network(layers: str = "1-layer") -> LocalNetwork:
    torch.manual_seed(0)
    blocks = [
        LocalBlock(nn.Sequential(nn.Conv2d(3 if index == 0 else 5, 5, 3, padding=1), nn.ReLU()), name=f"conv{index}")
        for index in range(4)
    ]
    made = LocalNetwork(blocks, input_shape=SHAPE, classes=CLASSES)
    return made if layers == "1-layer" else made.regroup(layers, "all")  # type: ignore[arg-type]


def exported(folder: Path, made: LocalNetwork, *, baselines: bool = True) -> Artifact:
    spec = TensorSpec("x", SHAPE)
    training = TrainingDefaults(batch_size=BATCH, epochs=1, replay_fraction=0.0, guard_fraction=0.0)
    settings = ExportSettings(optimizer=SGD, training=training, baselines=baselines)
    return open_artifact(export_network(made, folder, preprocessing=Preprocessing(spec, (), spec), settings=settings))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("artifact") / "small", network())


@pytest.fixture(scope="module")
def rows() -> Dataset:
    draw = np.random.default_rng(1)
    return Dataset("rows", draw.standard_normal((24, *SHAPE), np.float32), np.arange(24, dtype=np.int64) % CLASSES)


def plan_method(artifact: Artifact, method: str, request: Request) -> Plan:
    return plan_trained(artifact_of(artifact, method).manifest, method, request)


def adapted(artifact: Artifact, method: str, rows: Dataset, folder: Path, micro_batch: int | None = None) -> Adaptation:
    settings = AdaptSettings(1, BATCH, RATE, lr_schedule="constant", guard_fraction=0.0)
    trained = artifact_of(artifact, method)
    request = request_for(trained.manifest, method, Request(BATCH, rows=len(rows), micro_batch=micro_batch))
    planned = plan_method(artifact, method, Request(BATCH, rows=len(rows), micro_batch=micro_batch))
    return Adaptation(trained, rows, settings, request, planned, OnnxRuntime(1), RunFolder(folder))


def in_torch(rows: Dataset, run: Adaptation) -> dict[str, np.ndarray]:
    """Back-propagation through the whole network, by autograd and torch's own optimiser."""
    whole = network().regroup("whole", "last").sequence[0]
    optimizer = torch.optim.SGD(whole.parameters(), lr=RATE, momentum=0.9, weight_decay=SGD.settings["weight_decay"])
    order = prepare_rows(run.artifact, rows, run.settings).training.order
    for index in order.batches(1):
        x, y = torch.from_numpy(rows.x[index]), torch.from_numpy(rows.y[index])
        optimizer.zero_grad()
        _, scores = whole(x)
        whole.loss(scores, y, torch.full((len(index),), 1 / len(index))).backward()
        optimizer.step()
    names = {f"layers.{index}.": f"network.conv{index}." for index in range(4)}
    return {f"{names[name[:9]]}{name[9:]}": value.detach().numpy() for name, value in whole.named_parameters()}


@pytest.mark.parametrize(
    ("method", "micro_batch"),
    [
        ("bp", None),
        ("bp+accumulation", 2),
        ("bp+checkpointing", None),
        ("bp+accumulation+checkpointing", 2),
        ("bp+fused-updates", None),
    ],
)
def test_back_propagation_on_the_device_gives_what_torch_gives(
    artifact: Artifact, rows: Dataset, tmp_path: Path, method: str, micro_batch: int | None
) -> None:
    run = adapted(artifact, method, rows, tmp_path / "run", micro_batch)
    assert isinstance(list(run.run())[-1], Finished)
    found = read_weights(run.folder.path, run.artifact.manifest_sha256)
    expected = in_torch(rows, run)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def test_a_baseline_begins_with_the_weights_of_the_artifact(artifact: Artifact) -> None:
    own = artifact.tensors()
    for baseline in [artifact.baseline(name) for name in BASELINES]:
        weights = open_network(baseline, OnnxRuntime(1)).weights()
        assert weights
        for key in weights:
            np.testing.assert_array_equal(weights[key], own[key.removeprefix("network.")], err_msg=key)


def test_of_inner_layers_only_the_transform_is_kept(artifact: Artifact) -> None:
    names = {spec.name for spec in artifact.baseline(PLAIN).manifest.blocks[0].parameters}
    assert {name.partition(".")[0] for name in names if "readout" in name} == {"conv3"}
    assert {name.partition(".")[0] for name in names if "transform" in name} == {"conv0", "conv1", "conv2", "conv3"}


def test_a_network_of_joined_blocks_has_baselines_too(tmp_path: Path, rows: Dataset) -> None:
    joined = exported(tmp_path / "joined", network("2-layer"))
    weights = open_network(joined.baseline(PLAIN), OnnxRuntime(1)).weights()
    assert "network.conv0-conv1.layers.1.transform.0.weight" in weights
    run = adapted(joined, "bp", rows, tmp_path / "run")
    assert isinstance(list(run.run())[-1], Finished)


def test_without_baselines_there_is_local_learning_alone(tmp_path: Path) -> None:
    bare = exported(tmp_path / "bare", network(), baselines=False)
    assert bare.baseline_names == ()
    assert available_methods(bare) == ("stage", "sweep", "last-block")
    with pytest.raises(RunError, match="no graphs for `bp`") as refused:
        plan_method(bare, "bp", Request(BATCH))
    assert refused.value.hint == "export it once more with `--baselines`"
    with pytest.raises(RunError, match="unknown method `adam`"):
        plan_method(bare, "adam", Request(BATCH))


def test_baselines_change_nothing_else_of_an_artifact(artifact: Artifact, tmp_path: Path) -> None:
    bare = exported(tmp_path / "bare", network(), baselines=False)
    more = set(artifact.manifest.files) - set(bare.manifest.files)
    assert more
    assert all(file.startswith("baselines/") for file in more)
    assert {file: artifact.manifest.files[file] for file in bare.manifest.files} == dict(bare.manifest.files)
    assert artifact.manifest.blocks == bare.manifest.blocks


def edited(artifact: Artifact, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Artifact:
    """The artifact with another manifest of its baseline, past the check of hashes."""
    shutil.copytree(artifact.path, folder)
    path = folder / "baselines" / "bp.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return Artifact(folder, artifact.manifest, artifact.manifest_sha256, Folder(folder))


BROKEN: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda it: it.update(format_version=6), "artifact format 6 was written by"),
    (lambda it: it["blocks"][0].update(name="other"), "must be exactly|must have exactly"),
    (lambda it: it.update(blocks=[], fusion=[]), "at least one block"),
    (lambda it: it["blocks"][0]["buffers"].append({"name": "b", "shape": [1], "dtype": "float32"}), "network.b"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=range(len(BROKEN)))
def test_m44_a_baseline_is_a_manifest_by_all_rules_over_the_same_weights(
    artifact: Artifact, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    broken = edited(artifact, tmp_path / "broken", change)
    with pytest.raises(ArtifactError, match=message) as refused:
        broken.baseline(PLAIN)
    assert "baselines/bp.json" in str(refused.value)


def test_m44_its_block_is_called_network(artifact: Artifact, tmp_path: Path) -> None:
    def rename(it: dict[str, Any]) -> None:
        it["blocks"][0]["name"] = "other"
        it["checks"]["largest_error"] = {"other": 0.0}

    with pytest.raises(ArtifactError, match="must have one block `network`"):
        edited(artifact, tmp_path / "broken", rename).baseline(PLAIN)


def test_m45_its_files_are_those_of_the_artifact(artifact: Artifact, tmp_path: Path) -> None:
    def forge(it: dict[str, Any]) -> None:
        it["files"]["weights.safetensors"]["sha256"] = "0" * 64

    with pytest.raises(ArtifactError, match=r"lists `weights\.safetensors` otherwise"):
        edited(artifact, tmp_path / "broken", forge).baseline(PLAIN)


def test_every_method_has_a_plan_of_its_kind(artifact: Artifact) -> None:
    assert available_methods(artifact) == tuple(METHODS)
    plans = {method: plan_method(artifact, method, Request(BATCH, micro_batch=2)) for method in METHODS}
    assert {method: found.schedule for method, found in plans.items() if found.schedule == "stage"} == {
        "stage": "stage"
    }
    at_once = {method for method, found in plans.items() if found.micro_batch == BATCH}
    assert at_once == {"bp", "bp+checkpointing", "bp+fused-updates"}
    assert [part.block for part in plans["last-block"].blocks if part.trained] == ["conv3"]
    resident = {method: found.largest_phase.resident for method, found in plans.items()}
    assert resident["bp"].gradients
    assert not resident["bp+fused-updates"].gradients
    assert resident["mezo"].gradients == resident["mezo"].state == 0
    assert resident["bp+accumulation"].activations < resident["bp"].activations


def test_a_budget_chooses_the_micro_batch_of_every_method(artifact: Artifact) -> None:
    for method in METHODS:
        smallest = plan_method(artifact, method, Request(BATCH, prefer="memory"))
        needed = smallest.planned_bytes
        assert plan_method(artifact, method, Request(BATCH, budget_bytes=needed)).planned_bytes <= needed, method
        with pytest.raises(BudgetError):
            plan_method(artifact, method, Request(BATCH, budget_bytes=needed - 1))


def test_what_concerns_single_blocks_is_for_local_methods_alone(artifact: Artifact) -> None:
    request = Request(BATCH, block_budgets={"conv1": 1}, trained=["conv1"])
    assert request_for(artifact.manifest, "bp", request).block_budgets == {}
    with pytest.raises(BudgetError, match="conv1"):
        plan(artifact.manifest, request_for(artifact.manifest, "sweep", request))


@pytest.mark.parametrize("method", METHODS)
def test_a_measurement_is_a_run_in_a_process_of_its_own(artifact: Artifact, method: str) -> None:
    found = measure_method(artifact.path, method, batch_size=BATCH, repeats=1)
    assert (found.method, found.batch) == (method, BATCH)
    assert found.floor_bytes > 20 * MIB
    assert 0.3 * MIB < found.training_bytes < found.planned_bytes + 2 * MIB
    assert found.rows_per_s > 0
    assert len(found.blocks) == (0 if method == "mezo" else 1 if METHODS[method].baseline else 4)


def test_a_measurement_that_fails_says_why_in_one_line(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"^a measurement failed: the run needs [0-9,]+ bytes by schedule `sweep`, the budget is 1,000;"
    ):
        measure_method(artifact.path, "sweep", batch_size=BATCH, budget_bytes=1000, repeats=1)
    with pytest.raises(RunError, match="does not exist"):
        measure_method(tmp_path / "none", "sweep", batch_size=BATCH, repeats=1)


def test_forward_passes_alone_go_down_the_slope_of_the_loss(artifact: Artifact, rows: Dataset) -> None:
    opened = open_network(artifact.baseline(PLAIN), OnnxRuntime(1))
    trainer = ZerothOrder(opened, micro_batch=3)
    index = np.arange(BATCH)
    losses = [trainer.step(rows.x, rows.y, index, seed=step, rate=1e-3).loss for step in range(200)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.02


def test_the_slope_is_that_of_the_gradient_along_the_direction(artifact: Artifact, rows: Dataset) -> None:
    opened = open_network(artifact.baseline(PLAIN), OnnxRuntime(1))
    before = {name: value.copy() for name, value in opened.weights().items()}
    found = ZerothOrder(opened, micro_batch=BATCH, epsilon=2e-5).step(
        rows.x, rows.y, np.arange(BATCH), seed=7, rate=0.0
    )
    for name, value in opened.weights().items():  # moved to and fro
        np.testing.assert_allclose(value, before[name], atol=1e-6)
    whole = network().regroup("whole", "last").sequence[0]
    _, scores = whole(torch.from_numpy(rows.x[:BATCH]))
    whole.loss(scores, torch.from_numpy(rows.y[:BATCH]), torch.full((BATCH,), 1 / BATCH)).backward()
    draw = np.random.default_rng(7)
    names = {f"layers.{index}.": f"conv{index}." for index in range(4)}
    gradients = {names[name[:9]] + name[9:]: value.grad for name, value in whole.named_parameters()}
    slope = 0.0
    for spec in artifact.baseline(PLAIN).manifest.blocks[0].parameters:
        z = draw.standard_normal(int(np.prod(spec.shape, dtype=int)), np.float32)
        slope += float(gradients[spec.name].numpy().ravel() @ z)
    assert found.slope == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_checkpointed_graphs_compute_more_and_hold_no_more_in_the_manifest(artifact: Artifact) -> None:
    # The first block alone decides what this small network holds; test_checkpointing.py has deeper ones.
    kinds = {name: artifact.baseline(name).manifest.blocks[0].graphs["accumulate"] for name in BASELINES}
    assert kinds[CHECKPOINTED].nodes > kinds[PLAIN].nodes
    assert kinds[CHECKPOINTED].transient_bytes(8) <= kinds[PLAIN].transient_bytes(8)
    forward = {artifact.baseline(name).manifest.blocks[0].graphs["forward"].file for name in BASELINES}
    assert len(forward) == 1  # what is the same is stored once


def test_fused_updates_of_a_part_of_a_batch_are_refused() -> None:
    with pytest.raises(BudgetError, match="fused updates need the whole batch of 8 rows at once, not 4"):
        Request(BATCH, micro_batch=4, updates="fused")
