"""`runtime/network.py`: an artifact's network in memory, and its graphs run one behind the other."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tiny_artifact import CLASSES, FEATURES, Oracle, Tiny, make_rows, write_tiny

from edgeff.artifact import Artifact
from edgeff.errors import RunError
from edgeff.runtime.buffers import allocate_buffers
from edgeff.runtime.engine import Graph, OnnxRuntime
from edgeff.runtime.network import Chain, Network, check_block_names, open_network

TINY = Tiny(blocks=3, fusion=(1.0, 0.5, 0.25))


class Counting(OnnxRuntime):
    """Notes which graphs are loaded."""

    def __init__(self) -> None:
        self.names: list[str] = []
        super().__init__(1)
        self.names.clear()

    def load(self, model: bytes, name: str) -> Graph:
        self.names.append(name)
        return super().load(model, name)


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
    assert open_network(artifact, engine).state() == {}
    network = open_network(artifact, engine, trained=["block2"])
    assert set(network.state()) == {"state/velocity/block2.w", "state/velocity/block2.b"}
    assert all((array == 0).all() for array in network.state().values())
    assert not [name for memory in network.memories for name in memory.arrays if name.startswith("gradient.")]
    network = open_network(artifact, engine, trained=["block2"], accumulate=True)
    sums = [{name for name in memory.arrays if name.startswith("gradient.")} for memory in network.memories]
    assert sums == [set(), {"gradient.w", "gradient.b"}, set()]


def test_weights_of_a_run_are_taken_over_without_a_copy_unless_they_may_not_be_written(
    artifact: Artifact, engine: Counting
) -> None:
    weights = artifact.tensors()
    weights["block1.w"].flags.writeable = False
    opened = open_network(artifact, engine, weights=weights).weights()
    assert np.shares_memory(opened["block1.b"], weights["block1.b"])
    assert not np.shares_memory(opened["block1.w"], weights["block1.w"])
    assert opened["block1.w"].flags.writeable
    np.testing.assert_array_equal(opened["block1.w"], weights["block1.w"])


def test_the_artifacts_weights_are_read_block_by_block(
    artifact: Artifact, engine: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[set[str]] = []
    tensors = Artifact.tensors

    def noted(self: Artifact, keys: Any = None) -> dict[str, np.ndarray]:
        read.append({key.partition(".")[0] for key in keys})
        return tensors(self, keys)

    monkeypatch.setattr(Artifact, "tensors", noted)
    open_network(artifact, engine)
    assert read == [{"block1"}, {"block2"}, {"block3"}]


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
    for call in chain.calls(len(x)):
        call.run()
        yield buffers.log_probabilities[: len(x)].copy()


def test_every_block_reads_what_the_one_before_handed_over_whatever_the_micro_batch(
    artifact: Artifact, network: Network
) -> None:
    oracle = Oracle(TINY, artifact.tensors())
    buffers = allocate_buffers(artifact.manifest, 9, {})
    chain = Chain(network, ["forward"] * 3, buffers)
    x, _ = make_rows(30, seed=3)
    for rows in (9, 1, 4, 9, 4):  # smaller ones after larger ones: nothing of the larger may be left
        expected, _ = oracle.scores(x[:rows])
        for found, wanted in zip(through(network, chain, buffers, x[:rows]), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        x = np.roll(x, 1, axis=0)


def test_a_chain_loads_one_graph_for_each_of_its_blocks_and_no_other(network: Network, engine: Counting) -> None:
    Chain(network, ["forward", "step"], allocate_buffers(network.manifest, 4, {"learning_rate": 0.1}))
    assert engine.names == ["blocks/block1.forward.onnx", "blocks/block2.step.onnx"]


def test_graphs_are_bound_once_for_each_micro_batch(network: Network, engine: Counting) -> None:
    chain = Chain(network, ["forward", "forward"], allocate_buffers(network.manifest, 4, {}))
    four, two = chain.calls(4), chain.calls(2)
    assert len(four) == len(two) == 2
    assert chain.calls(4) is four
    assert chain.calls(2) is two
    assert len(engine.names) == 2


def test_a_chain_sees_weights_that_change_after_it_was_bound(artifact: Artifact, network: Network) -> None:
    buffers = allocate_buffers(artifact.manifest, 5, {})
    chain = Chain(network, ["forward"], buffers)
    x, _ = make_rows(5)
    (before,) = through(network, chain, buffers, x)
    for array in network.weights().values():
        array *= -1.0
    (after,) = through(network, chain, buffers, x)
    changed = Oracle(TINY, {key: -array for key, array in artifact.tensors().items()})
    np.testing.assert_allclose(after, changed.scores(x)[0][0], rtol=1e-4, atol=1e-5)
    assert np.abs(after - before).max() > 0.1


def test_the_graphs_are_gone_with_the_chain(network: Network) -> None:
    chain = Chain(network, ["forward"], allocate_buffers(network.manifest, 2, {}))
    (call,) = chain.calls(2)
    held = [weakref.ref(one) for one in (chain, call)]
    del chain, call
    # At once, with no collection: their memory is wanted for the next ones.
    assert [one() for one in held] == [None, None]


def test_the_network_knows_its_manifest_and_prepares_rows_as_it_says(artifact: Artifact, network: Network) -> None:
    assert network.manifest is artifact.manifest
    x = np.ones((2, FEATURES), np.float32)
    np.testing.assert_array_equal(network.preprocessing.apply(x), np.full((2, FEATURES), (1 - 0.25) * 2, np.float32))
    assert len(network.memories) == 3
    assert network.memories[1].arrays["parameter.w"].shape == (CLASSES, CLASSES)
