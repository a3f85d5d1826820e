"""`runtime/network.py`: an artifact's network in memory, and its graphs run one behind the other."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tiny_artifact import CLASSES, FEATURES, Oracle, Tiny, make_rows, write_tiny

from edgeff.artifact import Artifact
from edgeff.errors import RunError
from edgeff.manifest import GraphKind
from edgeff.runtime.buffers import allocate_buffers
from edgeff.runtime.engine import Graph, OnnxRuntime
from edgeff.runtime.memory import BlockMemory
from edgeff.runtime.network import Chain, Graphs, Network, check_block_names, open_network, open_on_disk
from edgeff.runtime.store import ArtifactStore

TINY = Tiny(blocks=3, fusion=(1.0, 0.5, 0.25))


class Counting(OnnxRuntime):
    """Notes which graphs are loaded."""

    def __init__(self) -> None:
        self.names: list[str] = []
        super().__init__(1)
        self.names.clear()

    def load(self, model: bytes, name: str, memory: Any = None, **more: Any) -> Graph:
        self.names.append(name)
        return super().load(model, name, memory, **more)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny", TINY)


@pytest.fixture
def engine() -> Counting:
    return Counting()


@pytest.fixture
def network(artifact: Artifact, engine: Counting) -> Network:
    return open_network(artifact, engine)


# --- memory ---


def test_the_weights_are_those_of_the_artifact_and_its_own_to_change(artifact: Artifact, engine: Counting) -> None:
    network, stored = open_network(artifact, engine), artifact.tensors()
    assert network.weights().keys() == stored.keys()
    for key, array in network.weights().items():
        np.testing.assert_array_equal(array, stored[key])
        array += 1.0  # what an update does
    assert (network.weights()["block2.w"] == stored["block2.w"] + 1.0).all()
    np.testing.assert_array_equal(open_network(artifact, engine).weights()["block2.w"], stored["block2.w"])


def test_opening_a_network_loads_no_graph(artifact: Artifact, engine: Counting) -> None:
    open_network(artifact, engine, trained=TINY.names, accumulate=True)
    assert engine.names == []


def test_only_trained_blocks_have_optimizer_state_and_only_accumulating_ones_gradient_sums(
    artifact: Artifact, engine: Counting
) -> None:
    assert open_network(artifact, engine).resident().keys() == artifact.tensors().keys()
    network = open_network(artifact, engine, trained=["block2"])
    state = {key: array for key, array in network.resident().items() if key.startswith("state/")}
    assert set(state) == {"state/velocity/block2.w", "state/velocity/block2.b"}
    assert all((array == 0).all() for array in state.values())
    assert not [name for memory in network.memories for name in memory.arrays if name.startswith("gradient.")]
    network = open_network(artifact, engine, trained=["block2"], accumulate=True)
    sums = [{name for name in memory.arrays if name.startswith("gradient.")} for memory in network.memories]
    assert sums == [set(), {"gradient.w", "gradient.b"}, set()]


def test_weights_of_a_run_are_copied_into_the_networks_own_arrays(artifact: Artifact, engine: Counting) -> None:
    weights = {key: 2 * array for key, array in artifact.tensors().items()}
    opened = open_network(artifact, engine, weights=weights).weights()
    for key, array in weights.items():
        np.testing.assert_array_equal(opened[key], array)
        assert not np.shares_memory(opened[key], array)


@pytest.mark.parametrize("spoil", [lambda w: w.pop("block2.b"), lambda w: w.update({"block2.b": np.zeros(9)})])
def test_weights_that_lack_one_or_have_another_shape_are_refused(
    artifact: Artifact, engine: Counting, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    weights = artifact.tensors()
    spoil(weights)
    with pytest.raises(RunError, match=r"`block2\.b`"):
        open_network(artifact, engine, weights=weights)


def test_what_the_optimizer_updates_is_one_run_of_numbers_for_each_role(artifact: Artifact, engine: Counting) -> None:
    network = open_network(artifact, engine, trained=["block1"], accumulate=True)
    memory = network.memory(0)
    assert set(memory.runs) == {"parameter", "gradient", "state.velocity"}
    for role, run in memory.runs.items():
        places = []
        for name in ("w", "b"):
            view = memory.arrays[f"{role}.{name}"]
            assert np.shares_memory(view, run)
            places.append((view.ctypes.data - run.ctypes.data) // 4)
        assert places == [0, 32]  # 24 numbers, and padding up to a cache line
    assert network.memory(1).runs == {}


def test_the_numbers_of_all_trained_blocks_follow_one_another(artifact: Artifact, engine: Counting) -> None:
    network = open_network(artifact, engine, trained=["block1", "block3"], accumulate=True)
    assert set(network.runs) == {"parameter", "gradient", "state.velocity"}
    first, third = network.memory(0), network.memory(2)
    for role, run in network.runs.items():
        joined = np.concatenate([first.runs[role], third.runs[role]])
        run += np.arange(len(run), dtype=np.float32)
        np.testing.assert_array_equal(run, joined + np.arange(len(run), dtype=np.float32))
        assert np.shares_memory(run, third.arrays[f"{role}.b"])
    np.testing.assert_array_equal(third.runs["parameter"], network.runs["parameter"][third.start :])


def test_gradient_sums_come_and_go_and_all_else_stays(artifact: Artifact, engine: Counting) -> None:
    network = open_network(artifact, engine, trained=["block1", "block3"])
    network.runs["state.velocity"].fill(3.0)
    summing = network.accumulating(True)
    assert (summing.runs["gradient"] == 0).all()
    assert summing.memory(0).arrays["gradient.w"].shape == (FEATURES, CLASSES)
    summing.memory(2).arrays["gradient.w"].fill(1.0)
    assert summing.accumulating(True).runs["gradient"].any()
    for again in (summing, summing.accumulating(False)):
        for key, array in network.resident().items():
            assert np.shares_memory(again.resident()[key], array), key
    assert not any(name.startswith("gradient.") for name in summing.accumulating(False).memory(2).arrays)
    assert open_network(artifact, engine).accumulating(True).runs == {}


def test_a_block_that_is_not_in_memory_is_read_for_who_asks(artifact: Artifact, engine: Counting) -> None:
    on_disk = open_on_disk(artifact, engine, ArtifactStore(artifact))
    assert on_disk.resident() == {}
    for key, array in artifact.tensors().items():
        np.testing.assert_array_equal(on_disk.weights()[key], array)
    assert on_disk.memory(1) is not on_disk.memory(1)
    one = on_disk.holding(1, accumulate=True)
    assert one.memory(1) is one.memory(1)
    assert [memory is None for memory in one.memories] == [True, False, True]
    assert {key.rpartition("/")[2].partition(".")[0] for key in one.resident()} == {"block2"}


def test_names_of_blocks_are_checked_one_by_one(artifact: Artifact) -> None:
    check_block_names(artifact.manifest, [])
    check_block_names(artifact.manifest, ("block3", "block1"))
    with pytest.raises(RunError, match=r"^the artifact has no block `block4`$") as caught:
        check_block_names(artifact.manifest, ["block1", "block4", "block5"])
    assert caught.value.hint == "its blocks: block1, block2, block3"


# --- chains of graphs ---


def through(network: Network, chain: Chain, buffers: Any, x: np.ndarray) -> Iterator[np.ndarray]:
    """Log-probabilities of each block of a chain for a micro-batch."""
    buffers.features[: len(x)] = network.preprocessing.apply(x)
    for part in chain.parts(len(x)):
        part.call.run()
        if part.rows.stop < len(x):
            continue
        yield buffers.log_probabilities[: len(x)].copy()


def chain_of(network: Network, kinds: Sequence[GraphKind], buffers: Any, **more: Any) -> Chain:
    return Chain(network, Graphs(network.artifact, network.engine), kinds, buffers, **more)


@pytest.mark.parametrize("sizes", [None, (9, 9, 9), (1, 4, 2), (3, 9, 1)])
@pytest.mark.parametrize("resident", [True, False])
def test_every_block_reads_what_the_one_before_handed_over_whatever_the_micro_batch(
    artifact: Artifact, network: Network, resident: bool, sizes: Sequence[int] | None
) -> None:
    network = network if resident else open_on_disk(artifact, network.engine, ArtifactStore(artifact))
    oracle = Oracle(TINY, artifact.tensors())
    buffers = allocate_buffers(artifact.manifest, 9, {})
    chain = chain_of(network, ["forward"] * 3, buffers, micro_batches=sizes)
    x, _ = make_rows(30, seed=3)
    for rows in (9, 1, 4, 9, 4):  # smaller ones after larger ones: nothing of the larger may be left
        expected, _ = oracle.scores(x[:rows])
        for found, wanted in zip(through(network, chain, buffers, x[:rows]), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        x = np.roll(x, 1, axis=0)


def test_a_chain_loads_one_graph_for_each_of_its_blocks_and_no_other(network: Network, engine: Counting) -> None:
    chain_of(network, ["forward", "step"], allocate_buffers(network.manifest, 4, {"learning_rate": 0.1}))
    assert engine.names == ["blocks/block1.forward.onnx", "blocks/block2.step.onnx"]


def test_graphs_are_bound_once_for_each_part_of_a_micro_batch(network: Network) -> None:
    chain = chain_of(network, ["forward", "forward"], allocate_buffers(network.manifest, 4, {}), micro_batches=[2, 4])
    four, three = ([(part.block, part.rows.start, part.call) for part in chain.parts(rows)] for rows in (4, 3))
    assert [(block, start) for block, start, _ in four] == [(0, 0), (0, 2), (1, 0)]
    again = [(part.block, part.rows.start, part.call) for part in chain.parts(4)]
    assert all(one is other for (_, _, one), (_, _, other) in zip(four, again, strict=True))
    assert three[0][2] is four[0][2]
    assert three[1][2] is not four[1][2]


def test_a_chain_sees_weights_that_change_after_it_was_bound(artifact: Artifact, network: Network) -> None:
    buffers = allocate_buffers(artifact.manifest, 5, {})
    chain = chain_of(network, ["forward"], buffers)
    x, _ = make_rows(5)
    (before,) = through(network, chain, buffers, x)
    for array in network.weights().values():
        array *= -1.0
    (after,) = through(network, chain, buffers, x)
    changed = Oracle(TINY, {key: -array for key, array in artifact.tensors().items()})
    np.testing.assert_allclose(after, changed.scores(x)[0][0], rtol=1e-4, atol=1e-5)
    assert np.abs(after - before).max() > 0.1


def test_of_blocks_that_are_not_in_memory_there_is_only_one_at_a_time(artifact: Artifact, engine: Counting) -> None:
    read: list[weakref.ref[Any]] = []

    class Noting(ArtifactStore):
        def fill(self, memory: BlockMemory) -> None:
            assert [one() for one in read] == [None] * len(read)
            read.append(weakref.ref(memory.arrays["parameter.w"]))
            super().fill(memory)

    on_disk = open_on_disk(artifact, engine, Noting(artifact))
    chain = chain_of(on_disk, ["forward"] * 3, allocate_buffers(artifact.manifest, 2, {}))
    for part in chain.parts(2):  # the part is held while the next one is made
        part.call.run()
    assert len(read) == 3


def test_the_graphs_are_gone_with_the_chain(network: Network) -> None:
    chain = chain_of(network, ["forward"], allocate_buffers(network.manifest, 2, {}))
    (part,) = chain.parts(2)
    held = [weakref.ref(one) for one in (chain, part.call)]
    del chain, part
    # At once, with no collection: their memory is wanted for the next ones.
    assert [one() for one in held] == [None, None]


def test_the_network_knows_its_manifest_and_prepares_rows_as_it_says(artifact: Artifact, network: Network) -> None:
    assert network.manifest is artifact.manifest
    x = np.ones((2, FEATURES), np.float32)
    np.testing.assert_array_equal(network.preprocessing.apply(x), np.full((2, FEATURES), (1 - 0.25) * 2, np.float32))
    assert len(network.memories) == 3
    assert network.memory(1).arrays["parameter.w"].shape == (CLASSES, CLASSES)
