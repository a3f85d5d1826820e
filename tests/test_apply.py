"""`runtime/apply.py`: the update of all blocks in as few runs as can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_artifact import Tiny, write_tiny

from edgeff.artifact import Artifact
from edgeff.optimizer import rates
from edgeff.runtime import apply as apply_module
from edgeff.runtime.apply import applies
from edgeff.runtime.arrays import Array
from edgeff.runtime.buffers import allocate_buffers
from edgeff.runtime.engine import Call, Graph, OnnxRuntime
from edgeff.runtime.network import Graphs, Network, open_network
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request

TINY = Tiny(blocks=4, fusion=(1.0,) * 4)


class Noting(OnnxRuntime):
    """Notes how many numbers each bound call is for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        super().__init__(1)

    def load(self, model: bytes, name: str, memory: Any = None, **more: Any) -> Graph:
        return _Noting(super().load(model, name, memory, **more), self.sizes)


class _Noting:
    def __init__(self, graph: Graph, sizes: list[int]) -> None:
        self._graph, self._sizes = graph, sizes
        self.inputs, self.outputs = graph.inputs, graph.outputs

    def bind(self, arrays: Mapping[str, Array]) -> Call:
        if "gradient" in arrays:
            self._sizes.append(len(arrays["gradient"]))
        return self._graph.bind(arrays)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny", TINY)


def sharing(artifact: Artifact) -> Artifact:
    """The same artifact, whose blocks all name one apply graph."""
    shared = artifact.manifest.blocks[0].graphs["apply"]
    blocks = tuple(replace(block, graphs={**block.graphs, "apply": shared}) for block in artifact.manifest.blocks)
    return replace(artifact, manifest=replace(artifact.manifest, blocks=blocks))


def updated(artifact: Artifact, trained: list[str], threads: int = 1) -> tuple[Network, list[int]]:
    """A network after one update with gradients that are all 1, and the numbers of each call."""
    engine = Noting()
    network = open_network(artifact, engine, trained=trained, accumulate=True)
    chosen = plan(artifact.manifest, Request(batch_size=8, trained=trained, micro_batch=4))
    buffers = allocate_buffers(artifact.manifest, 4, rates(artifact.manifest.optimizer, 0.5, 1))
    numbered = [(block, part) for block, part in enumerate(chosen.blocks) if part.trained]
    found = applies(network, Graphs(artifact, engine), numbered, buffers, threads)
    for block, _ in numbered:
        for name in ("w", "b"):
            network.memory(block).arrays[f"gradient.{name}"].fill(1.0)
    for one in found:
        one.run()
    return network, engine.sizes


def test_blocks_that_share_a_graph_are_updated_in_one_run(artifact: Artifact) -> None:
    network, sizes = updated(sharing(artifact), TINY.names)
    assert sizes == [len(network.runs["parameter"])]
    for key, array in artifact.tensors().items():
        change = 0.0 if key.endswith("shift") else 0.5
        np.testing.assert_allclose(network.weights()[key], array - np.float32(change), rtol=1e-6, err_msg=key)
    assert (network.runs["gradient"] == 0).all()


def test_each_graph_updates_its_own_blocks(artifact: Artifact) -> None:
    network, sizes = updated(artifact, TINY.names)
    assert sizes == [len(memory.runs["parameter"]) for memory in network.memories if memory]
    together, _ = updated(sharing(artifact), TINY.names)
    for key, array in together.weights().items():
        np.testing.assert_array_equal(network.weights()[key], array, err_msg=key)


def test_a_block_in_between_that_is_not_trained_stays(artifact: Artifact) -> None:
    network, sizes = updated(sharing(artifact), ["block1", "block3"])
    assert len(sizes) == 1
    stored = artifact.tensors()
    changed = {key for key, array in network.weights().items() if (array != stored[key]).any()}
    assert changed == {"block1.w", "block1.b", "block3.w", "block3.b"}


@pytest.mark.parametrize("threads", [1, 2, 3, 100])
def test_a_long_run_is_updated_in_pieces_with_the_same_result(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    whole, _ = updated(sharing(artifact), TINY.names)
    monkeypatch.setattr(apply_module, "APPLY_NUMBERS", 48)
    network, sizes = updated(sharing(artifact), TINY.names, threads)
    assert set(sizes[:-1]) == {48}
    assert sum(sizes) == len(network.runs["parameter"])
    for role, run in whole.runs.items():
        np.testing.assert_array_equal(network.runs[role], run, err_msg=role)


def test_pieces_are_updated_by_as_many_threads_as_are_given(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "APPLY_NUMBERS", 48)
    asked: list[int] = []
    run = apply_module.run_at_once
    monkeypatch.setattr(apply_module, "run_at_once", lambda jobs: (asked.append(len(jobs)), run(jobs)))
    _, sizes = updated(sharing(artifact), TINY.names, 2)
    assert asked == [2]
    updated(sharing(artifact), TINY.names, 100)
    assert asked[1:] == [len(sizes)]
