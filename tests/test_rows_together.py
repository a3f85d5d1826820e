"""Blocks that compare rows, from the exporter over the planner to the device: what is learnt is whatever groups of
`rows_together` consecutive rows teach, however much memory there is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_artifact import CLASSES, Tiny, make_manifest
from torch import Tensor, nn

from edgeff.artifact import Artifact, open_artifact
from edgeff.dataset import Dataset
from edgeff.errors import BudgetError, ExportError
from edgeff.export import ExportSettings, export_network
from edgeff.manifest import HeldTensor, Manifest, Moment, TensorSpec
from edgeff.model import Block, LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.preprocess import Preprocessing
from edgeff.relation import Relation, SimilarityMatching, SupervisedContrast
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder, read_weights
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Finished
from edgeff.runtime.mixture import prepare_rows
from edgeff.runtime.order import even_parts
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_blocks import rows_together
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.trainer import Progress

# --- parts of a batch -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(count=st.integers(1, 80), together=st.integers(1, 9), groups=st.integers(1, 9), whole=st.booleans())
def test_a_batch_is_cut_into_whole_groups_and_what_remains(count: int, together: int, groups: int, whole: bool) -> None:
    """At most so many rows: whole groups of them, or the batch."""
    most = max(count, together * groups) if whole else together * groups
    index = np.arange(100, 100 + count)
    parts = even_parts(index, most, together)
    sizes = [len(part) for part in parts]
    assert np.concatenate(parts).tolist() == index.tolist()
    assert min(sizes) >= 1
    assert max(sizes) <= most
    assert all(size % together == 0 for size in sizes[:-1])
    assert len(parts) == -(-count // most)
    if together > 1:  # the last has what remains
        assert len(set(sizes[:-1])) <= 1
        assert sizes[-1] <= sizes[0]
    else:
        assert max(sizes) - min(sizes) <= 1


# --- the planner ------------------------------------------------------------------------------------------------------

BASE = make_manifest(Tiny(blocks=3, fusion=(1.0, 1.0, 1.0)))


def manifest_with(*together: int, row_bytes: int = 20_000) -> Manifest:
    """Three blocks that compare so many rows each, and hold so many bytes for every row."""
    blocks = []
    for block, rows in zip(BASE.blocks, together, strict=True):
        held = (HeldTensor("relu_1", "Relu", 0, row_bytes),)
        graphs = {
            kind: replace(graph, transient=(Moment(0, 8),) if kind == "apply" else (Moment(0, row_bytes, held),))
            for kind, graph in block.graphs.items()
        }
        blocks.append(replace(block, graphs=graphs, rows_together=rows))
    return replace(BASE, blocks=tuple(blocks))


def planned(manifest: Manifest, **request: Any) -> Plan:
    return plan(manifest, Request(**{"batch_size": 10, "schedule": "sweep", **request}))


def sizes(found: Plan) -> list[int]:
    return [part.micro_batch for part in found.blocks]


def test_of_blocks_that_compare_rows_those_that_are_trained_count() -> None:
    manifest = manifest_with(1, 4, 4)
    assert rows_together(manifest, None) == 4
    assert rows_together(manifest, ["block1", "block3"]) == 4
    assert rows_together(manifest, ["block1"]) == 1
    assert rows_together(manifest, []) == 1


@given(
    batch_size=st.integers(1, 70),
    together=st.integers(2, 12),
    spare=st.integers(0, 4 * 2**20),
    schedule=st.sampled_from(["sweep", "stage", None]),
    prefer=st.sampled_from(["speed", "memory"]),
    arena=st.booleans(),
)
def test_whatever_the_budget_a_block_runs_on_as_many_rows_as_it_compares(
    batch_size: int, together: int, spare: int, schedule: Any, prefer: Any, arena: bool
) -> None:
    manifest = manifest_with(together, 1, together)
    request = Request(batch_size=batch_size, schedule=schedule, prefer=prefer, arena=arena)
    found = plan(manifest, replace(request, budget_bytes=smallest_budget(manifest, request) + spare))
    first, second, third = sizes(found)
    assert first == third == min(together, batch_size)
    assert 1 <= second <= found.micro_batch <= batch_size
    # Whole groups of rows pass from block to block, or all.
    assert found.micro_batch == batch_size or found.micro_batch % together == 0
    fused = [part.graphs == ("step",) for part in found.blocks]
    assert not any(fused) or (all(fused) and batch_size <= together)


def test_more_room_lets_more_groups_pass_at_once_and_changes_nothing_for_the_block_that_compares() -> None:
    manifest = manifest_with(4, 1, 4, row_bytes=400_000)
    tight, roomy = planned(manifest, prefer="memory", batch_size=20), planned(manifest, batch_size=20)
    assert tight.micro_batch < roomy.micro_batch
    assert (sizes(tight)[0], sizes(roomy)[0]) == (4, 4)
    assert sizes(tight)[1] < sizes(roomy)[1]


@pytest.mark.parametrize("micro_batch", [4, 8, 10])
@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_whole_groups_and_the_whole_batch_may_be_asked_for(micro_batch: int, schedule: Any) -> None:
    found = planned(manifest_with(4, 1, 4), micro_batch=micro_batch, schedule=schedule)
    assert found.micro_batch == micro_batch
    assert sizes(found) == [4, micro_batch, 4]


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 6, 7, 9])
@pytest.mark.parametrize("schedule", ["sweep", "stage", None])
def test_a_micro_batch_that_cuts_a_group_is_refused(micro_batch: int, schedule: Any) -> None:
    with pytest.raises(BudgetError) as caught:
        planned(manifest_with(4, 1, 1), micro_batch=micro_batch, schedule=schedule)
    assert str(caught.value) == (
        f"a micro-batch of {micro_batch} rows cuts groups of 4 that are compared with one another"
    )
    assert caught.value.hint == "give it `--micro-batch 4` or a multiple, or export with another `--rows-together`"


def test_fused_updates_need_a_batch_that_is_compared_as_a_whole() -> None:
    manifest = manifest_with(4, 1, 1)
    with pytest.raises(BudgetError) as caught:
        planned(manifest, updates="fused")
    assert str(caught.value) == (
        "fused updates need the whole batch of 10 rows at once, and 4 are compared with one another"
    )
    assert caught.value.hint == "give it `--batch-size 4`"
    for batch_size in (1, 3, 4):
        found = planned(manifest, updates="fused", batch_size=batch_size)
        assert [part.graphs for part in found.blocks] == [("step",)] * 3
        assert sizes(found) == [batch_size] * 3


def test_updates_are_fused_where_that_is_quicker_and_only_where_a_batch_is_one_group() -> None:
    manifest = manifest_with(4, 1, 4)
    assert planned(manifest, batch_size=4).blocks[0].graphs == ("step",)
    assert planned(manifest, batch_size=5).blocks[0].graphs == ("accumulate", "apply")
    # Without comparisons a batch of 5 would be fused as well.
    assert planned(manifest_with(1, 1, 1), batch_size=5).blocks[0].graphs == ("step",)


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
@pytest.mark.parametrize("micro_batch", [None, 3, 10])
def test_a_block_that_compares_rows_is_as_free_as_any_where_it_is_not_trained(schedule: Any, micro_batch: Any) -> None:
    asked: dict[str, Any] = {"schedule": schedule, "micro_batch": micro_batch, "trained": ["block2"]}
    comparing, plain = (planned(manifest_with(one, 1, one), **asked) for one in (4, 1))
    assert comparing == plain
    fused = planned(manifest_with(4, 1, 4), updates="fused", trained=["block2"])
    assert fused.blocks[1].graphs == ("step",)


def test_where_all_blocks_run_the_rows_that_pass_these_are_one_group() -> None:
    """On a device whose memory cannot be taken in parts."""
    found = planned(manifest_with(4, 1, 4), uniform=True)
    assert (found.micro_batch, sizes(found)) == (4, [4, 4, 4])
    with pytest.raises(BudgetError, match="a micro-batch of 8 rows cuts groups of 4") as caught:
        planned(manifest_with(4, 1, 4), uniform=True, micro_batch=8)
    assert caught.value.hint == "give it `--micro-batch 4`, or export with another `--rows-together`"


def test_a_block_with_a_cap_of_its_own_keeps_its_groups() -> None:
    manifest = manifest_with(4, 1, 4, row_bytes=400_000)
    free = planned(manifest, budget_bytes=64 * 2**20)
    found = planned(manifest, budget_bytes=64 * 2**20, block_budgets={"block1": free.blocks[0].planned_bytes})
    assert sizes(found)[0] == 4
    with pytest.raises(BudgetError, match=r"^block `block1` needs [\d,]+ bytes at micro-batch 4, its budget is "):
        planned(manifest, block_budgets={"block1": free.blocks[0].planned_bytes // 2})


# --- the exporter -----------------------------------------------------------------------------------------------------

SHAPE, ROWS, BATCH, TOGETHER = (2, 8), 28, 10, 4
SPEC = optimizer_spec("sgd", momentum=0.9)


def network_with(*relations: Relation | None, probe: bool = False) -> LocalNetwork:
    """Blocks of a convolution each, the last one over features without places."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.Tanh()),
            nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh()),
            nn.Sequential(nn.Linear(5, 5), nn.Tanh()),
        ]
        blocks = [
            LocalBlock(layer, relation=relation, probe=probe and relation is not None)
            for layer, relation in zip(layers, relations, strict=False)
        ]
        return LocalNetwork(blocks, input_shape=SHAPE, classes=CLASSES)


def rows() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.standard_normal((ROWS, *SHAPE)).astype(np.float32), draw.integers(0, CLASSES, ROWS)


def export(folder: Path, network: LocalNetwork, **more: Any) -> Artifact:
    row = TensorSpec("x", SHAPE)
    chosen = ExportSettings(optimizer=SPEC, **more)
    return open_artifact(
        export_network(network, folder / "artifact", preprocessing=Preprocessing(row, (), row), settings=chosen)
    )


def together_of(artifact: Artifact) -> list[int]:
    return [block.rows_together for block in artifact.manifest.blocks]


def test_of_layers_that_learn_as_one_those_compare_rows_that_keep_a_relation(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = LocalBlock(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), relation=SupervisedContrast(size=3))
        network = LocalNetwork([first, LocalBlock(nn.Linear(5, 5))], input_shape=SHAPE, classes=CLASSES)
    artifact = export(tmp_path, network.regroup("whole", "all"))
    assert together_of(artifact) == [ExportSettings().rows_together] == [32]


@pytest.mark.parametrize("count", [1, 0, -3])
def test_one_row_cannot_be_compared_with_another(tmp_path: Path, count: int) -> None:
    message = f"^{count} rows cannot be compared with one another, needed 2 or more$"
    with pytest.raises(ExportError, match=message):
        export(tmp_path, network_with(SimilarityMatching()), rows_together=count)
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_hides_that_it_compares_rows_does_not_pass_its_checks(tmp_path: Path) -> None:
    class Hiding(LocalBlock):
        @property
        def compares_rows(self) -> bool:
            return False

    block = Hiding(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), relation=SimilarityMatching())
    network = LocalNetwork([block], input_shape=SHAPE, classes=CLASSES)
    with pytest.raises(ExportError, match=r"run on a batch in two parts, differs from torch") as caught:
        export(tmp_path, network)
    assert "depends on other rows of the batch" in caught.value.hint


# --- the device -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network, its artifact, and the rows that each of its blocks compares."""

    network: LocalNetwork
    artifact: Artifact
    together: tuple[int, ...]


MADE: dict[str, Callable[[], LocalNetwork]] = {
    "similar": lambda: network_with(SimilarityMatching(2.0), SimilarityMatching(0.5), probe=True),
    "contrasted": lambda: network_with(None, SupervisedContrast(2.0, size=3, temperature=0.3, partners=3)),
}
EXPECTED = {"similar": (TOGETHER, TOGETHER), "contrasted": (1, TOGETHER)}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    found = {}
    for name, make in MADE.items():
        network = make()
        artifact = export(tmp_path_factory.mktemp(name), network, rows_together=TOGETHER)
        found[name] = Case(network, artifact, EXPECTED[name])
    return found


@pytest.fixture(params=MADE)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def test_the_artifact_says_how_many_rows_each_block_compares(case: Case) -> None:
    blocks = case.artifact.manifest.blocks
    assert tuple(together_of(case.artifact)) == case.together
    for block, own, together in zip(blocks, case.network.sequence, case.together, strict=True):
        assert block.objective == own.describe()
        assert ("relation" in block.objective) == (together > 1)


def run_of(
    case: Case,
    folder: Path,
    *,
    schedule: Any = "sweep",
    batch: int = BATCH,
    tight: bool = False,
    blocks: tuple[str, ...] | None = None,
    **asked: Any,
) -> Adaptation:
    """A run of two epochs; `tight` for the smallest budget that works."""
    manifest = case.artifact.manifest
    chosen = AdaptSettings(
        epochs=2,
        batch_size=batch,
        learning_rate=0.05,
        lr_schedule="constant",
        guard_fraction=0.0,
        blocks=blocks,
        schedule=schedule,
    )
    asked = {"schedule": schedule, "disk_bytes": 1 << 30, **asked}
    request = adaptation_request(manifest, chosen, ROWS, budget_bytes=None, **asked)
    if tight:
        request = replace(request, budget_bytes=smallest_budget(manifest, request))
    x, y = rows()
    dataset = Dataset("rows", x, y)
    return Adaptation(
        case.artifact, dataset, chosen, request, plan(manifest, request), OnnxRuntime(1), RunFolder(folder)
    )


def trained(run: Adaptation) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """The weights that are kept, and the losses of every update."""
    events = list(run.run())
    assert isinstance(events[-1], Finished)
    losses = [dict(event.loss) for event in events if isinstance(event, Progress)]
    return read_weights(run.folder.path, run.artifact.manifest_sha256), losses


def groups_of(rows: int, together: int) -> list[slice]:
    return [slice(start, min(start + together, rows)) for start in range(0, rows, together)]


class InTorch:
    """The same updates by autograd: a batch's loss is the sum over groups of consecutive rows, each row with 1/N."""

    def __init__(self, case: Case, run: Adaptation, together: int = TOGETHER) -> None:
        self.network = copy.deepcopy(case.network).train()
        self.rows = prepare_rows(run.artifact, run.dataset, run.settings).training
        self.epochs = run.settings.epochs
        self.rate = run.settings.learning_rate
        self.together = together
        self.losses: list[dict[str, float]] = []

    def _optimizer(self, block: Block) -> torch.optim.Optimizer:
        return torch.optim.SGD(block.parameters(), self.rate, momentum=SPEC.settings["momentum"])

    def _update(self, block: Block, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
        weight = torch.full((len(y),), 1.0 / len(y))
        handover, _ = block(x)
        loss = torch.zeros(())
        for group in groups_of(len(y), self.together):
            _, readings = block(x[group])
            loss = loss + block.loss(readings, y[group], weight[group])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        self.losses[-1][block.name] = loss.item()
        return handover.detach()

    def _batches(self) -> Sequence[tuple[Tensor, Tensor]]:
        indices = [index for epoch in range(1, self.epochs + 1) for index in self.rows.order.batches(epoch)]
        return [(torch.from_numpy(self.rows.x[index]), torch.from_numpy(self.rows.y[index])) for index in indices]

    def sweep(self) -> dict[str, np.ndarray]:
        """Every batch through all blocks."""
        optimizers = [self._optimizer(block) for block in self.network.sequence]
        for x, y in self._batches():
            self.losses.append({})
            for block, optimizer in zip(self.network.sequence, optimizers, strict=True):
                x = self._update(block, optimizer, x, y)
        return self.weights()

    def stage(self) -> dict[str, np.ndarray]:
        """One block after another, each for all epochs."""
        for number, block in enumerate(self.network.sequence):
            optimizer = self._optimizer(block)
            for x, y in self._batches():
                self.losses.append({})
                for before in self.network.sequence[:number]:
                    x = before(x)[0].detach()
                self._update(block, optimizer, x, y)
        return self.weights()

    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in self.network.tensors().items()}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Relative to the largest number of each tensor."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        bound = tolerance * np.abs(array).max()
        np.testing.assert_allclose(found[name], array, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_a_device_learns_what_groups_of_rows_teach_in_torch_whatever_the_budget(
    case: Case, tmp_path: Path, schedule: str
) -> None:
    free = run_of(case, tmp_path / "free", schedule=schedule)
    torch_run = InTorch(case, free)
    expected = torch_run.sweep() if schedule == "sweep" else torch_run.stage()
    asked: dict[str, dict[str, Any]] = {
        "tight": {"tight": True},
        "4": {"micro_batch": 4},
        "8": {"micro_batch": 8, "tight": True},
        "10": {"micro_batch": 10},
    }
    runs = {"free": free} | {
        name: run_of(case, tmp_path / name, schedule=schedule, **one) for name, one in asked.items()
    }
    found = {}
    for name, run in runs.items():
        found[name], losses = trained(run)
        assert_close(found[name], expected, 1e-4)
        assert len(losses) == len(torch_run.losses) == (6 if schedule == "sweep" else 12)
        for one, other in zip(losses, torch_run.losses, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        assert run.plan.blocks[1].micro_batch == TOGETHER
    assert [runs[name].plan.micro_batch for name in asked] == [4, 4, 8, 10]
    # A block that compares no rows runs on as many as fit, so that its sums are rounded otherwise.
    tolerance = 1e-6 if min(case.together) == TOGETHER else 1e-5
    for name in ("8", "10"):
        assert_close(found[name], found["4"], tolerance)


def test_other_groups_would_have_given_other_weights(case: Case, tmp_path: Path) -> None:
    """What is compared above is not the same for any way to cut a batch."""
    run = run_of(case, tmp_path / "run")
    expected, whole, pairs = (InTorch(case, run, together).sweep() for together in (TOGETHER, BATCH, 2))
    for other in (whole, pairs):
        apart = max(np.abs(other[name] - array).max() / np.abs(array).max() for name, array in expected.items())
        assert apart > 1e-3


@pytest.mark.parametrize("updates", ["fused", "accumulated"])
@pytest.mark.parametrize("batch", [3, 4])
def test_a_batch_that_is_one_group_may_update_at_once(
    cases: dict[str, Case], tmp_path: Path, batch: int, updates: str
) -> None:
    similar = cases["similar"]
    run = run_of(similar, tmp_path / "run", batch=batch, updates=updates)
    graphs = ("step",) if updates == "fused" else ("accumulate", "apply")
    assert [part.graphs for part in run.plan.blocks] == [graphs] * 2
    assert_close(trained(run)[0], InTorch(similar, run).sweep(), 1e-4)


def test_where_the_block_that_compares_rows_is_not_trained_a_batch_may_be_cut_anywhere(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases["contrasted"]
    before, found = case.artifact.tensors(), {}
    for size in (3, 9):
        run = run_of(case, tmp_path / f"{size}", batch=9, micro_batch=size, blocks=("block1",))
        found[size], _ = trained(run)
        frozen = [name for name in before if name.startswith("block2.")]
        assert frozen
        assert all((found[size][name] == before[name]).all() for name in frozen)
        assert run.plan.micro_batch == size
    assert_close(found[3], found[9], 1e-5)
    assert any((found[3][name] != before[name]).any() for name in before)
