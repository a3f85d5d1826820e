"""Weights that lie on a device: the same numbers as without, settled when they are asked for, and copies counted.

The device is stood in for by memory of onnxruntime's own on the CPU, which no array of the runtime shares.
"""

from __future__ import annotations

import json
import subprocess
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
from tiny_artifact import CLASSES, Tiny, make_dataset, make_rows, write_tiny

from edgeff.artifact import Artifact
from edgeff.runtime.adapt import Adaptation, adaptation_request, engine_request
from edgeff.runtime.arrays import Array, Port
from edgeff.runtime.buffers import allocate_buffers
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.device_memory import Copies, DeviceMemory
from edgeff.runtime.engine import Native, OnnxRuntime
from edgeff.runtime.evaluate import evaluate
from edgeff.runtime.events import Finished, Stopped
from edgeff.runtime.features import HandedOverRows, PreprocessedRows
from edgeff.runtime.memory import BlockMemory
from edgeff.runtime.network import Chain, Graphs, Network, open_network, open_on_disk, preprocessing_of
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request, Schedule, Updates
from edgeff.runtime.predict import predict
from edgeff.runtime.providers import CPU_PROVIDER, ProviderKind
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.stops import Interrupted, never
from edgeff.runtime.store import ArtifactStore
from edgeff.runtime.trainer import LearningRate, Position, Progress, Trainer
from edgeff.runtime.update import TrainingRows

TINY = Tiny(blocks=3, fusion=(1.0, 0.5, 0.25), seeded=True)
EPOCHS = 2
DEVICE = ProviderKind("stand-in", CPU_PROVIDER, memory="somewhere")
APART = ProviderKind("stand-in", CPU_PROVIDER, in_place=False)


class OnDevice(OnnxRuntime):
    """An engine whose tensors lie where no array of the runtime does."""

    def __init__(self) -> None:
        self.memories: list[DeviceMemory] = []
        super().__init__(1, DEVICE)

    def memory(self) -> DeviceMemory:
        # Without `copy_tensors`, which onnxruntime has from 1.22 on: then copies are the values' own business.
        module = SimpleNamespace(OrtValue=onnxruntime.OrtValue)
        self.memories.append(DeviceMemory(module, "cpu", self._count))
        return self.memories[-1]


class Way(NamedTuple):
    """How a network is trained."""

    updates: Updates = "fused"
    batch: int = 8
    micro_batch: int | None = None
    rows: int = 29
    blocks: tuple[str, ...] | None = None


FUSED, SUMMED = Way(), Way("accumulated", micro_batch=3)
WAYS = {
    "fused": FUSED,
    "summed": SUMMED,
    "summed, the last part smaller": Way("accumulated", batch=16, micro_batch=5, rows=48),
    "summed, row by row": Way("accumulated", micro_batch=1),
    "summed in one part": Way("accumulated"),
    # 4,320 bytes of rows at once: more than what is passed in only when it has changed.
    "large inputs": Way("accumulated", batch=360, micro_batch=180, rows=720),
    "large inputs, fused": Way(batch=180, rows=720),
    "a frozen block before": Way("accumulated", micro_batch=3, blocks=("block2", "block3")),
    "a frozen block between": Way(blocks=("block1", "block3")),
    "blocks behind that do not run": Way(blocks=("block1",)),
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny", TINY)


@pytest.fixture(scope="module")
def unseeded(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One in which no seed turns a gradient off."""
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny", replace(TINY, seeded=False))


def trainer_of(
    artifact: Artifact, engine: OnnxRuntime, way: Way, stop: Any = never, *, rate: str = "cosine"
) -> Trainer:
    request = Request(
        way.batch,
        None,
        schedule="sweep",
        micro_batch=way.micro_batch or way.batch,
        trained=way.blocks,
        **{**engine_request(engine), "updates": way.updates},
    )
    planned = plan(artifact.manifest, request)
    network = open_network(artifact, engine, trained=way.blocks or TINY.names, accumulate=way.updates == "accumulated")
    x, y = make_rows(way.rows, seed=2)
    order = MixedOrder(way.rows, 0, way.batch, 0.0, seed=4)
    rows = TrainingRows(PreprocessedRows(x, preprocessing_of(artifact.manifest)), y, order)
    return Trainer(
        network,
        planned,
        rows=rows,
        learning_rate=LearningRate(0.1, rate, EPOCHS * order.batches_per_epoch),
        seed=4,
        stop=stop,
    )


def both(artifact: Artifact, way: Way, engine: Callable[[], OnnxRuntime] = OnDevice) -> tuple[Trainer, Trainer]:
    """The same run on the CPU and elsewhere."""
    return trainer_of(artifact, OnnxRuntime(1), way), trainer_of(artifact, engine(), way)


def trained(trainer: Trainer, epochs: int = EPOCHS) -> list[Progress]:
    records: list[Progress] = []
    for epoch in range(1, epochs + 1):
        records += trainer.epoch(Position(epoch, 0, len(records)))
    return records


def copied(network: Network) -> dict[str, Array]:
    return {key: array.copy() for key, array in network.resident().items()}


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        # To the last bit on most machines: kernels are the same, but lie elsewhere to their vectors.
        np.testing.assert_allclose(found[key], array, rtol=1e-6, atol=1e-7, err_msg=key)


def changed(now: Mapping[str, Array], before: Mapping[str, Array]) -> set[str]:
    return {key for key, array in before.items() if (now[key] != array).any()}


# --- the same numbers ---


@pytest.mark.parametrize("engine", [OnDevice, lambda: OnnxRuntime(1, APART)], ids=["on a device", "apart"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_run_elsewhere_gives_the_losses_weights_and_state_of_one_in_the_runtimes_arrays(
    artifact: Artifact, way: Way, engine: Callable[[], OnnxRuntime]
) -> None:
    plain, other = both(artifact, way, engine)
    before = copied(other.network)
    expected, found = trained(plain), trained(other)
    assert [one.loss for one in found] == [pytest.approx(one.loss, rel=1e-6) for one in expected]
    assert_same(other.network.resident(), plain.network.resident())
    names = way.blocks or TINY.names
    assert {key.rpartition("/")[2].partition(".")[0] for key in changed(other.network.resident(), before)} == {*names}


@pytest.mark.parametrize("updates", ["fused", "accumulated"])
def test_one_block_in_memory_is_trained_on_what_the_blocks_before_handed_over(
    artifact: Artifact, updates: Updates
) -> None:
    draw = np.random.default_rng(3)
    x, y = draw.standard_normal((24, CLASSES)).astype(np.float32), draw.integers(0, CLASSES, 24)
    found = []
    for engine in (OnnxRuntime(1), OnDevice()):
        asked = {**engine_request(engine), "updates": updates}
        size = 8 if updates == "fused" else 4
        planned = plan(artifact.manifest, Request(8, None, schedule="stage", micro_batch=size, **asked))
        on_disk = open_on_disk(artifact, engine, ArtifactStore(artifact))
        network = on_disk.holding(1, accumulate=updates == "accumulated")
        rows = TrainingRows(x, y, MixedOrder(24, 0, 8, 0.0, seed=4))
        trainer = Trainer(network, planned, rows=rows, learning_rate=LearningRate(0.1, "cosine", 6), seed=4, only=1)
        losses = [one.loss for one in trained(trainer)]
        assert losses[-1]["block2"] != losses[0]["block2"]
        found.append((losses, copied(trainer.network)))
    (expected_losses, expected), (losses, weights) = found
    assert losses == [pytest.approx(loss, rel=1e-6) for loss in expected_losses]
    assert_same(weights, expected)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("micro_batch", [4, 200])
def test_predictions_are_the_same_whether_blocks_are_in_memory_or_not(
    artifact: Artifact, resident: bool, micro_batch: int
) -> None:
    x, y = make_rows(210, seed=8)
    plain, other = open_network(artifact, OnnxRuntime(1)), open_network(artifact, OnDevice())
    other = other if resident else other.holding_nothing()
    expected = predict(plain, x, micro_batch=micro_batch)
    np.testing.assert_allclose(predict(other, x, micro_batch=micro_batch), expected, rtol=1e-6, atol=1e-7)
    assert evaluate(other, x, y, micro_batch=micro_batch).accuracy == evaluate(plain, x, y).accuracy


def test_what_was_trained_is_evaluated_as_it_is_now(artifact: Artifact) -> None:
    x, _ = make_rows(20, seed=8)
    plain, other = both(artifact, SUMMED)
    before = predict(other.network, x)
    trained(plain)
    trained(other)
    found = predict(other.network, x)
    np.testing.assert_allclose(found, predict(plain.network, x), rtol=1e-5, atol=1e-6)
    assert np.abs(found - before).max() > 0.1


def test_weights_that_change_between_two_epochs_are_taken_up(artifact: Artifact) -> None:
    found = []
    for trainer in both(artifact, FUSED):
        trained(trainer, epochs=1)
        for key, array in trainer.network.resident().items():
            array *= 0.5 if key.endswith(".w") else 1.0
        records = list(trainer.epoch(Position(2, 0, 4)))
        found.append((records[0].loss, copied(trainer.network)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert_same(found[1][1], found[0][1])


# --- settling ---


@pytest.mark.parametrize("way", [FUSED, SUMMED], ids=["fused", "summed"])
def test_arrays_stay_as_they_are_until_they_are_settled(artifact: Artifact, way: Way) -> None:
    plain, other = both(artifact, way)
    before = copied(other.network)
    updates, others = plain.epoch(Position()), other.epoch(Position())
    for _ in range(2):
        next(updates)
        next(others)
    assert changed(other.network.resident(), before) == set()
    assert_same(other.settled().resident(), plain.network.resident())
    assert len(changed(other.network.resident(), before)) == 2 * 2 * 3  # weights and state of three blocks


def test_arrays_are_up_to_date_after_an_epoch_and_after_one_that_is_left(artifact: Artifact) -> None:
    plain, other = both(artifact, SUMMED)
    trained(plain, epochs=1)
    trained(other, epochs=1)
    assert_same(other.network.resident(), plain.network.resident())
    updates, others = plain.epoch(Position(2, 0, 4)), other.epoch(Position(2, 0, 4))
    for each in (updates, others):
        position = next(each).position
        each.close()
    assert_same(other.network.resident(), plain.network.resident())
    list(plain.epoch(position))
    list(other.epoch(position))
    assert_same(other.network.resident(), plain.network.resident())


def test_an_interrupted_batch_leaves_no_trace(artifact: Artifact) -> None:
    whole = trainer_of(artifact, OnDevice(), SUMMED)
    trained(whole, epochs=1)
    asked: list[None] = []

    def stop() -> str:
        asked.append(None)
        return "by a test" if len(asked) == 4 else ""

    broken = trainer_of(artifact, OnDevice(), SUMMED, stop)
    updates = broken.epoch(Position())
    position, before = next(updates).position, copied(broken.settled())
    with pytest.raises(Interrupted):
        next(updates)
    assert len(asked) == 4  # in the second batch, with two parts of its gradients summed
    assert changed(broken.network.resident(), before) == set()
    assert not broken.network.runs["gradient"].any()
    list(broken.epoch(position))
    assert_same(broken.network.resident(), whole.network.resident())


def test_what_lies_on_a_gpu_copies_itself_for_onnxruntime_finds_no_way_there() -> None:
    class Values:
        @staticmethod
        def ortvalue_from_shape_and_type(shape: Sequence[int], kind: type, device: str, number: int) -> Any:
            assert (device, number) == ("cuda", 0)
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind)

    def copy_tensors(*_: object) -> None:
        raise RuntimeError("Data transfer implementation between source and destination device was not found.")

    counted: list[Copies] = []
    module = SimpleNamespace(OrtValue=Values, copy_tensors=copy_tensors)
    memory = DeviceMemory(module, "cuda", counted.append)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    copy = memory.place_output("new.parameter.w", array)
    np.testing.assert_array_equal(copy.value.numpy(), np.arange(6))
    copy.value.update_inplace(2 * copy.array)
    memory.settle()
    np.testing.assert_array_equal(array.reshape(-1), 2 * np.arange(6))
    assert sum(counted, Copies()) == Copies(to_device=1, from_device=1)


def test_gradients_begin_anew_after_each_batch(unseeded: Artifact) -> None:
    engine = OnDevice()

    def on_the_device() -> float:
        gradient = trainer.network.memory(0).arrays["gradient.w"]
        engine.memories[-1].fetch(gradient)
        found = float(np.abs(gradient).sum())
        gradient.fill(0)
        return found

    in_batches: list[float] = []
    stop: Callable[[], str] = lambda: in_batches.append(on_the_device()) or ""  # noqa: E731
    trainer = trainer_of(unseeded, engine, Way("accumulated", micro_batch=4, rows=32), stop)
    after = [on_the_device() for _ in trainer.epoch(Position())]
    assert after == [0.0] * 4
    assert min(in_batches) > 0.0


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_a_run_that_is_stopped_and_gone_on_with_ends_in_the_same_files(
    unseeded: Artifact, tmp_path: Path, schedule: Schedule
) -> None:
    # Without a guard, which would keep what was best: the last weights are compared.
    settings = AdaptSettings(2, 8, 0.1, guard_fraction=0.0, checkpoint_steps=2, seed=5, schedule=schedule)

    def run(name: str, engine: OnnxRuntime) -> Adaptation:
        asked = {"schedule": schedule, "features": "rerun", "micro_batch": 4, **engine_request(engine)}
        request = adaptation_request(unseeded.manifest, settings, 48, budget_bytes=None, **asked)
        planned = plan(unseeded.manifest, request)
        return Adaptation(unseeded, make_dataset(48), settings, request, planned, engine, RunFolder(tmp_path / name))

    plain, whole, broken = run("plain", OnnxRuntime(1)), run("whole", OnDevice()), run("broken", OnDevice())
    list(plain.run())
    *_, last = whole.run()
    asked: list[None] = []
    *_, stopped = broken.run(stop=lambda: asked.append(None) or ("by a test" if len(asked) >= 9 else ""))
    assert isinstance(stopped, Stopped)
    assert 0 < stopped.position.step < 12
    list(broken.run(resume=True))
    assert broken.folder.best.read_bytes() == whole.folder.best.read_bytes() == plain.folder.best.read_bytes()
    assert isinstance(last, Finished)
    assert last.result["provider"]["copies_per_step"]["from_device"] > 0


# --- what is copied ---


class Counted(NamedTuple):
    """Copies of an epoch: before its first update, at each, and after the last."""

    begin: Copies
    updates: list[Copies]
    settling: Copies


def counted(artifact: Artifact, way: Way, rate: str = "constant") -> Counted:
    engine = OnDevice()
    found = [(one.copies, engine.copies) for one in trainer_of(artifact, engine, way, rate=rate).epoch(Position())]
    (first, after_first), (_, after_last) = found[0], found[-1]
    return Counted(after_first - first, [one for one, _ in found], engine.copies - after_last)


def test_copies_of_fused_updates_are_those_that_must_be(artifact: Artifact) -> None:
    begin, (first, *rest), settling = counted(artifact, Way(rows=32))
    # Each block: labels and seed in, loss and log-probabilities out. The first also: its rows, which are others.
    steady = Copies(3 * 2 + 1, 3 * 2)
    assert begin == Copies()
    assert rest == [steady] * 3
    # To begin with all that stays: weights, shift, velocity; the two hand-overs; the weights of rows and the rate.
    assert first - steady == Copies(3 * (2 + 1 + 2) + 2 + 2, 0)
    assert settling == Copies(0, 3 * (2 + 2))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_copies_of_summed_updates_grow_with_the_parts_of_a_batch_alone(artifact: Artifact, parts: int) -> None:
    begin, (first, *rest), settling = counted(artifact, Way("accumulated", micro_batch=8 // parts, rows=32))
    # Of each part as above; of each batch, the zeros with which its gradients begin.
    steady = Copies(parts * (3 * 2 + 1) + 3 * 2, parts * 3 * 2)
    assert rest == [steady] * 3
    # What `apply` takes: weights, velocity, gradients and the rate; then the shift, hand-overs, weights of rows, and
    # the rate again, which was a mere place-holder.
    assert begin == Copies(3 * (2 + 2 + 2) + 1, 0)
    assert first - steady == Copies(3 + 2 + 1 + 1, 0)
    assert settling == Copies(0, 3 * (2 + 2))


def test_a_small_input_is_passed_in_only_when_it_has_changed(artifact: Artifact) -> None:
    way = Way(rows=32)
    _, still = counted(artifact, way).updates[0], counted(artifact, way).updates[1:]
    falling = counted(artifact, way, rate="cosine").updates[1:]
    assert [one - other for one, other in zip(falling, still, strict=True)] == [Copies(1, 0)] * 3
    # Too many to compare with what was there: passed in each time, which comes to the same here.
    assert counted(artifact, Way(batch=180, rows=720)).updates[1:] == still


def test_two_calls_on_the_same_rows_both_see_them_change(artifact: Artifact) -> None:
    engine = OnDevice()
    network = open_network(artifact, engine)
    buffers = allocate_buffers(artifact.manifest, 2, {})
    graph = Graphs(artifact, engine).of(0, "forward")
    calls = [graph.bind({**buffers.bound_for(0, 0, 2, artifact.manifest), **network.memory(0).arrays}) for _ in "ab"]
    found = []
    for number, call in enumerate((*calls, *calls)):
        buffers.features.fill(number)
        call.run()
        found.append(buffers.log_probabilities.tobytes())
    assert len(set(found)) == 4


def test_blocks_that_pass_through_the_device_are_let_go_one_by_one(artifact: Artifact) -> None:
    read: list[weakref.ref[Any]] = []

    class Noting(ArtifactStore):
        def fill(self, memory: BlockMemory) -> None:
            assert [one() for one in read] == [None] * len(read)
            read.append(weakref.ref(memory.arrays["parameter.w"]))
            super().fill(memory)

    engine = OnDevice()
    on_disk = open_on_disk(artifact, engine, Noting(artifact))
    graphs = Graphs(artifact, engine)
    chain = Chain(on_disk, graphs, ["forward"] * 3, allocate_buffers(artifact.manifest, 2, {}))
    for _ in range(4):
        for part in chain.parts(2):
            part.call.run()
    assert len(read) == 12
    assert [one() for one in read] == [None] * 12


def test_rows_that_are_handed_over_come_from_the_device(artifact: Artifact) -> None:
    x, _ = make_rows(9, seed=8)
    rows = PreprocessedRows(x, preprocessing_of(artifact.manifest))
    expected, found = (
        HandedOverRows(open_network(artifact, engine), rows, first=0, stop=2, micro_batch=4)[:]
        for engine in (OnnxRuntime(1), OnDevice())
    )
    assert expected.any()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- what the planner is asked ---


def test_an_engine_with_memory_of_its_own_asks_for_no_arena_and_one_micro_batch_for_all(artifact: Artifact) -> None:
    alike = {"arena": False, "engine_copies": True, "fast": False}
    assert engine_request(OnDevice()) == {**alike, "uniform": True}
    assert engine_request(OnnxRuntime(1, APART)) == {**alike, "uniform": False}
    assert engine_request(OnnxRuntime(1)) == {}
    small = plan(artifact.manifest, Request(4096, None, micro_batch=64)).blocks[0].planned_bytes
    capped = Request(4096, None, block_budgets={"block1": small + 4096})
    assert len({part.micro_batch for part in plan(artifact.manifest, capped).blocks}) == 2
    even = plan(artifact.manifest, replace(capped, **engine_request(OnDevice())))
    assert even.micro_batch < 4096
    assert {part.micro_batch for part in even.blocks} == {even.micro_batch}
    assert even.arena_bytes == 0


# --- new values beside the old ones ---


class Seen(Native):
    """Notes the address that each port of a graph is bound to."""

    bound: list[tuple[str, dict[str, tuple[int, int]]]]

    def values(
        self, graph: str, ports: Sequence[Port], arrays: Mapping[str, Array]
    ) -> tuple[list[Any], tuple[Array, ...]]:
        values, held = super().values(graph, ports, arrays)
        places = {
            port.name: (value.data_ptr(), int(np.prod(value.shape(), dtype=int)) * 4)
            for port, value in zip(ports, values, strict=True)
        }
        self.bound.append((graph, places))
        return values, held


def bound_places(artifact: Artifact, engine: OnnxRuntime, way: Way) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    engine.native = Seen(engine._module)
    engine.native.bound = []
    trained(trainer_of(artifact, engine, way), epochs=1)
    return engine.native.bound


@pytest.mark.parametrize("way", [FUSED, SUMMED], ids=["fused", "summed"])
def test_a_provider_that_compiles_graphs_writes_no_new_value_over_an_old_one(artifact: Artifact, way: Way) -> None:
    def over_old(found: list[tuple[str, dict[str, tuple[int, int]]]]) -> list[bool]:
        """Of each new value, whether it lies over any input of its graph."""
        return [
            any(
                start < place + size and place < start + length
                for other, (start, length) in places.items()
                if not other.startswith("new.") and other not in ("loss", "log_probabilities", "handover")
            )
            for _, places in found
            for name, (place, size) in places.items()
            if name.startswith("new.")
        ]

    apart = over_old(bound_places(artifact, OnnxRuntime(1, APART), way))
    plain = over_old(bound_places(artifact, OnnxRuntime(1), way))
    assert len(apart) == len(plain) >= 3 * 4
    assert (any(apart), all(plain)) == (False, True)


def test_a_call_that_writes_beside_has_written_over_the_old_values_when_it_returns(artifact: Artifact) -> None:
    found = []
    for engine in (OnnxRuntime(1), OnnxRuntime(1, APART)):
        draw = np.random.default_rng(1)
        arrays = {role: draw.standard_normal(7).astype(np.float32) for role in ("parameter", "gradient")}
        arrays |= {"state.velocity": np.ones(7, np.float32), "rate.learning_rate": np.array(0.5, np.float32)}
        call = engine.load(artifact.read("blocks/block1.apply.onnx"), "apply").bind(arrays)
        for _ in range(3):
            call.run()
        found.append(arrays)
    assert found[1]["state.velocity"][0] != 1.0
    for name, array in found[0].items():
        np.testing.assert_array_equal(found[1][name], array, err_msg=name)


# --- another onnxruntime ---

ELSEWHERE = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, onnxruntime
from edgeff.artifact import open_artifact
from edgeff.runtime.device_memory import DeviceMemory
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.network import open_network
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.trainer import LearningRate, Position, Trainer
from edgeff.runtime.update import TrainingRows

class OnDevice(OnnxRuntime):
    def memory(self):
        return DeviceMemory(SimpleNamespace(OrtValue=onnxruntime.OrtValue), "cpu", self._count)

artifact = open_artifact(Path(sys.argv[1]))
draw = np.random.default_rng(0)
x, y = draw.standard_normal((24, 6)).astype(np.float32), draw.integers(0, 4, 24)
found = []
for engine in (OnnxRuntime(1), OnDevice(1)):
    asked = Request(8, None, schedule="sweep", micro_batch=4, updates="accumulated", arena=False)
    names = [block.name for block in artifact.manifest.blocks]
    network = open_network(artifact, engine, trained=names, accumulate=True)
    rows, rate = TrainingRows(x, y, MixedOrder(24, 0, 8, 0.0, 0)), LearningRate(0.1, "cosine", 3)
    trainer = Trainer(network, plan(artifact.manifest, asked), rows=rows, learning_rate=rate, seed=0)
    copies = [[one.copies.to_device, one.copies.from_device] for one in trainer.epoch(Position())]
    found.append({"version": onnxruntime.__version__, "copies": copies, "resident": network.resident()})
plain, other = found
plain["same"] = all(np.allclose(other["resident"][key], one, 1e-6, 1e-7) for key, one in plain.pop("resident").items())
print(json.dumps([plain, other["copies"]]))
"""


def test_the_newest_onnxruntime_makes_the_same_copies(artifact: Artifact, device_python: Path) -> None:
    command = [str(device_python), "-c", ELSEWHERE, str(artifact.path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    plain, copies = json.loads(done.stdout)
    assert plain["version"] != onnxruntime.__version__
    assert plain["same"]
    assert plain["copies"] == [[0, 0]] * 3
    here = counted(artifact, Way("accumulated", micro_batch=4, rows=24), rate="cosine").updates
    assert copies == [[one.to_device, one.from_device] for one in here]
