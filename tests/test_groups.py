"""Blocks that learn from a batch in groups: which groups are worth it, and that runs learn what they would at once."""

from __future__ import annotations

import weakref
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from four_blocks import BATCH, Array, assert_same, exported, opened, trainer_of
from hypothesis import given
from hypothesis import strategies as st

from edgeff.artifact import Artifact
from edgeff.manifest import TensorSpec
from edgeff.runtime import memory
from edgeff.runtime.engine import Call, Graph, OnnxRuntime
from edgeff.runtime.groups import ONE_GROUP, groupings, largest_group, spans
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.stops import Interrupted
from edgeff.runtime.trainer import Position
from edgeff.runtime.update import NonFiniteLossError

# --- which groups -----------------------------------------------------------------------------------------------------


@st.composite
def sized(draw: st.DrawFn) -> tuple[list[int], int, int]:
    sizes = draw(st.lists(st.integers(0, 50), min_size=1, max_size=7))
    return sizes, draw(st.integers(0, len(sizes) - 1)), draw(st.integers(0, 30))


def all_ways(count: int, last_cut: int) -> list[tuple[int, ...]]:
    """Every way to cut blocks into groups."""
    cuts = range(1, last_cut + 1)
    return [(0, *chosen) for number in range(len(cuts) + 1) for chosen in combinations(cuts, number)]


def forward_passes(groups: tuple[int, ...]) -> int:
    """Of blocks that run once more for each group behind their own."""
    return sum(groups)


@given(sized())
def test_each_way_is_the_cheapest_of_those_whose_largest_group_is_no_larger(given: tuple[list[int], int, int]) -> None:
    sizes, last_cut, worth = given
    found = list(groupings(sizes, last_cut, worth))
    assert found[0] == ONE_GROUP
    for one, other in pairwise(found):
        assert largest_group(sizes, other) <= largest_group(sizes, one) - max(1, worth)
    ways = all_ways(len(sizes), last_cut)
    for one in found:
        assert one in ways
        no_larger = [way for way in ways if largest_group(sizes, way) <= largest_group(sizes, one)]
        assert forward_passes(one) == min(map(forward_passes, no_larger))
    best = min(largest_group(sizes, way) for way in ways)
    assert largest_group(sizes, found[-1]) - best < max(1, worth)


@given(sized())
def test_every_block_is_in_one_group(given: tuple[list[int], int, int]) -> None:
    sizes, last_cut, worth = given
    for groups in groupings(sizes, last_cut, worth):
        assert [block for span in spans(groups, len(sizes)) for block in span] == list(range(len(sizes)))
        assert all(spans(groups, len(sizes)))


# --- runs -------------------------------------------------------------------------------------------------------------


class Noting(OnnxRuntime):
    """Notes the file of every graph that is run."""

    def __init__(self) -> None:
        super().__init__(1)
        self.runs: list[str] = []

    def load(self, model: bytes, name: str, memory: Any = None, **more: Any) -> Any:
        return _Noting(super().load(model, name, memory, **more), name, self.runs)


class _Noting:
    def __init__(self, graph: Graph, name: str, runs: list[str]) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph, self._name, self._runs = graph, name, runs

    def bind(self, arrays: Any) -> Any:
        return _NotingCall(self._graph.bind(arrays), self._name, self._runs)


class _NotingCall:
    def __init__(self, call: Call, name: str, runs: list[str]) -> None:
        self._call, self._name, self._runs = call, name, runs

    def run(self) -> None:
        self._runs.append(self._name)
        self._call.run()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("groups") / "artifact")


def planned(artifact: Artifact, groups: tuple[int, ...], **more: Any) -> Plan:
    """The smallest plan by plain graphs, as if the groups were worth it."""
    request = Request(BATCH, schedule="sweep", micro_batch=3, updates="accumulated", fast=False, arena=False, **more)
    return replace(plan(artifact.manifest, request), groups=groups)


def learnt(artifact: Artifact, groups: tuple[int, ...], **more: Any) -> tuple[dict[str, Array], list[Any]]:
    """Weights and optimiser state after an epoch, and the losses by step."""
    made = planned(artifact, groups, **more)
    network = opened(artifact, made, OnnxRuntime(1))
    records = list(trainer_of(network, made).epoch(Position()))
    assert not network.runs["gradient"].any()
    return network.resident(), [record.loss for record in records]


@pytest.mark.parametrize("trained", [None, {"block2", "block4"}], ids=["all", "two"])
@pytest.mark.parametrize("groups", all_ways(4, last_cut=3)[1:], ids=str)
def test_in_groups_the_same_is_learnt_bit_by_bit(artifact: Artifact, groups: tuple[int, ...], trained: Any) -> None:
    at_once, losses = learnt(artifact, ONE_GROUP, trained=trained)
    in_groups, again = learnt(artifact, groups, trained=trained)
    assert_same(in_groups, at_once)
    assert again == losses
    assert any((at_once[name] != array).any() for name, array in artifact.tensors().items() if name in at_once)


def test_gradient_sums_are_as_long_as_the_largest_group(artifact: Artifact) -> None:
    sizes = [
        len(memory.runs["gradient"])
        for memory in opened(artifact, planned(artifact, ONE_GROUP), OnnxRuntime(1)).memories
        if memory
    ]
    for groups in [ONE_GROUP, (0, 2), (0, 1, 3)]:
        network = opened(artifact, planned(artifact, groups), OnnxRuntime(1))
        assert len(network.runs["gradient"]) == largest_group(sizes, groups)
        assert len(network.runs["parameter"]) == sum(sizes)


def test_a_batch_passes_once_for_each_group_the_last_one_first(artifact: Artifact) -> None:
    engine, made = Noting(), planned(artifact, (0, 2, 3))
    next(trainer_of(opened(artifact, made, engine), made).epoch(Position()))
    files = {
        f"{number}.{kind}": spec.file
        for number, block in enumerate(artifact.manifest.blocks)
        for kind, spec in block.graphs.items()
    }
    named = {file: name for name, file in files.items() if not name.endswith("apply")}
    ran = [named.get(file, "apply") for file in engine.runs]
    passes = [
        ["0.forward", "1.forward", "2.forward", "3.accumulate"],
        ["0.forward", "1.forward", "2.accumulate"],
        ["0.accumulate", "1.accumulate"],
    ]
    assert ran == [name for one in passes for name in (*3 * one, "apply")]


def test_a_run_may_change_its_groups_between_updates(artifact: Artifact) -> None:
    expected, _ = learnt(artifact, ONE_GROUP)
    made = planned(artifact, ONE_GROUP)
    trainer = trainer_of(opened(artifact, made, OnnxRuntime(1)), made)
    position = Position()
    for groups in [ONE_GROUP, (0, 1, 3), (0, 2)]:
        trainer.change_plan(planned(artifact, groups))
        epoch = trainer.epoch(position)
        position = next(epoch).position
        epoch.close()
    assert_same(trainer.network.resident(), expected)


def test_sums_of_other_groups_are_let_go_before_there_are_new_ones(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(artifact, ONE_GROUP)
    trainer = trainer_of(opened(artifact, made, OnnxRuntime(1)), made)
    old = weakref.ref(trainer.network.runs["gradient"])
    allocate, seen = memory._zeros, []

    def zeros(tensor: TensorSpec) -> Array:
        seen.append((tensor.name, old() is None))
        return allocate(tensor)

    monkeypatch.setattr(memory, "_zeros", zeros)
    trainer.change_plan(made)
    assert old() is not None
    trainer.change_plan(planned(artifact, (0, 2)))
    assert seen == [("gradient", True)]


def test_a_batch_is_left_before_any_block_has_learnt_from_it_or_not_at_all(artifact: Artifact) -> None:
    asked = []

    def stop() -> str | None:
        asked.append(len(asked))
        return "asked" if len(asked) == 2 else None

    made = planned(artifact, (0, 2, 3))
    network = opened(artifact, made, OnnxRuntime(1))
    before = {name: array.copy() for name, array in network.resident().items()}
    with pytest.raises(Interrupted):
        list(trainer_of(network, made, stop=stop).epoch(Position()))
    assert_same(network.resident(), before)
    assert not network.runs["gradient"].any()
    asked.extend([0] * 9)  # from now on there is no reason; asked twice a batch, in the first pass alone
    count = len(asked)
    updates = list(trainer_of(network, made, stop=stop).epoch(Position()))
    assert len(asked) - count == 2 * len(updates)


def test_a_loss_that_is_not_finite_is_of_the_group_in_which_it_was_seen(artifact: Artifact) -> None:
    made = planned(artifact, (0, 2))
    network = opened(artifact, made, OnnxRuntime(1))
    arrays = network.memory(1).arrays
    arrays[next(name for name in arrays if name.startswith("parameter."))].fill(np.nan)
    with pytest.raises(NonFiniteLossError, match=r"`block[234]`"):
        list(trainer_of(network, made).epoch(Position()))
