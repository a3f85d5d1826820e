"""Micro-batches under way at once: they pass every block in their order, and what is learnt is the same bit by bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from four_blocks import BATCH, Array, assert_same, exported, opened, trainer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeff.artifact import Artifact
from edgeff.errors import EngineError
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.stops import Interrupted
from edgeff.runtime.trainer import Position
from edgeff.runtime.update import NonFiniteLossError
from edgeff.runtime.workers import Abandoned, Turns, run_at_once

# --- turns ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_every_place_is_passed_in_order_whoever_comes_when(workers: int, places: int, count: int) -> None:
    turns, passed = Turns(), [[] for _ in range(places)]
    draw = np.random.default_rng(0)

    def work(worker: int) -> None:
        for number in range(worker, count, workers):
            for place in range(places):
                with turns.turn(place, number):
                    time.sleep(draw.random() * 1e-4)
                    passed[place].append(number)

    run_at_once([lambda worker=worker: work(worker) for worker in range(workers)], turns.abandon)
    assert passed == [list(range(count))] * places


def test_the_first_job_runs_in_the_callers_thread_and_all_have_ended_on_return() -> None:
    others = threading.active_count()
    ran: list[str] = []

    def job(name: str, seconds: float) -> None:
        time.sleep(seconds)
        ran.append(f"{name} {threading.current_thread() is threading.main_thread()}")

    run_at_once([lambda: job("one", 0.0), lambda: job("two", 0.05)])
    assert ran == ["one True", "two False"]
    run_at_once([])
    assert threading.active_count() <= others


@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_raises_is_raised_once_nobody_waits_any_longer(failing: int) -> None:
    turns = Turns()

    def fail() -> None:
        raise ValueError("broken")

    def wait() -> None:
        with turns.turn(0, 1):  # whose turn never comes
            pass

    jobs: list[Callable[[], None]] = [wait, wait]
    jobs[failing] = fail
    with pytest.raises(ValueError, match="broken"):
        run_at_once(jobs, turns.abandon)
    with pytest.raises(Abandoned), turns.turn(0, 0):
        pass


def test_where_no_thread_can_be_started_that_is_said_and_the_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    others = threading.active_count()
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if threading.active_count() > others:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    turns = Turns()

    def wait() -> None:
        with turns.turn(0, 1):
            pass

    with pytest.raises(EngineError, match="no more threads"):
        run_at_once([wait] * 3, turns.abandon)
    assert threading.active_count() <= others


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("workers") / "artifact", dropout=0.4)


def planned(artifact: Artifact, workers: int, micro_batch: int = 2, **more: Any) -> Plan:
    """By one thread for each operator, whose number could change the last bits."""
    request = Request(
        BATCH,
        schedule="sweep",
        micro_batch=micro_batch,
        updates="accumulated",
        threads=workers,
        workers=workers,
        **more,
    )
    made = plan(artifact.manifest, request)
    assert made.operator_threads == 1
    return made


class Watched(OnnxRuntime):
    """Calls back before each run of a graph, with its file."""

    def __init__(self, before: Callable[[str], None]) -> None:
        super().__init__(1)
        self._before = before

    def load(self, model: bytes, name: str, memory: Any = None, **more: Any) -> Any:
        graph = super().load(model, name, memory, **more)
        bind = graph.bind

        def watched(arrays: Any) -> Any:
            return _Call(bind(arrays), lambda: self._before(name))

        graph.bind = watched  # type: ignore[method-assign]
        return graph


class _Call:
    def __init__(self, call: Any, before: Callable[[], None]) -> None:
        self._call, self._before = call, before

    def run(self) -> None:
        self._before()
        self._call.run()


def learnt(artifact: Artifact, made: Plan, **more: Any) -> tuple[dict[str, Array], list[Any]]:
    """Weights and optimiser state after an epoch, and the losses by step."""
    engine = OnnxRuntime(made.workers)
    engine.reserve(made.arena_bytes)
    network = opened(artifact, made, engine)
    records = list(trainer_of(network, made, **more).epoch(Position()))
    assert not network.runs["gradient"].any()
    engine.reserve(0)
    return network.resident(), [record.loss for record in records]


@pytest.mark.parametrize("factors", [{}, {"block3": 0.5}], ids=["one rate", "two rates"])
@pytest.mark.parametrize("trained", [None, {"block2", "block4"}], ids=["all", "two"])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_the_same_is_learnt_bit_by_bit(artifact: Artifact, workers: int, trained: Any, factors: Any) -> None:
    alone, losses = learnt(artifact, planned(artifact, 1, trained=trained), rate_factors=factors)
    made = planned(artifact, workers, trained=trained)
    assert made.workers == workers
    together, again = learnt(artifact, made, rate_factors=factors)
    assert_same(together, alone)
    assert again == losses
    assert any((alone[name] != array).any() for name, array in artifact.tensors().items() if name in alone)


def test_no_more_are_under_way_than_there_are(artifact: Artifact) -> None:
    made = planned(artifact, 4, micro_batch=4)
    assert (made.workers, made.operator_threads) == (2, 1)
    together, _ = learnt(artifact, made)
    alone, _ = learnt(artifact, planned(artifact, 1, micro_batch=4))
    assert_same(together, alone)


def test_a_block_works_while_the_one_behind_it_works_on_the_micro_batch_before(artifact: Artifact) -> None:
    blocks = artifact.manifest.blocks
    first, second = (blocks[number].graphs["accumulate"].file for number in (0, 1))
    runs: list[str] = []
    again = threading.Event()

    def before(name: str) -> None:
        runs.append(name)
        if runs.count(first) == 2:
            again.set()
        if name == second:
            assert again.wait(60), "the first block did not go on"

    made = planned(artifact, 2, fast=False)
    engine = Watched(before)
    next(trainer_of(opened(artifact, made, engine), made).epoch(Position()))


def test_a_batch_is_left_before_any_block_has_learnt_from_it(artifact: Artifact) -> None:
    others = threading.active_count()
    asked: list[int] = []

    def stop() -> str:
        assert threading.current_thread() is threading.main_thread()
        asked.append(1)
        return "asked"

    made = planned(artifact, 2)
    network = opened(artifact, made, OnnxRuntime(1))
    before = {name: array.copy() for name, array in network.resident().items()}
    with pytest.raises(Interrupted):
        list(trainer_of(network, made, stop=stop).epoch(Position()))
    assert len(asked) == 1
    assert_same(network.resident(), before)
    assert not network.runs["gradient"].any()
    assert threading.active_count() <= others


@pytest.mark.parametrize("at", [1, 2, 3, 5, 7])
def test_an_engine_that_fails_ends_the_run_whoever_runs_it(artifact: Artifact, at: int) -> None:
    others = threading.active_count()
    runs: list[str] = []

    def before(name: str) -> None:
        runs.append(name)
        if len(runs) == at:
            raise EngineError("out of order")

    made = planned(artifact, 2)
    engine = Watched(before)
    with pytest.raises(EngineError, match="out of order"):
        list(trainer_of(opened(artifact, made, engine), made).epoch(Position()))
    assert threading.active_count() <= others


def test_a_loss_that_is_not_finite_is_that_of_its_block(artifact: Artifact) -> None:
    made = planned(artifact, 2)
    network = opened(artifact, made, OnnxRuntime(1))
    arrays = network.memory(1).arrays
    arrays[next(name for name in arrays if name.startswith("parameter."))].fill(np.nan)
    with pytest.raises(NonFiniteLossError, match="`block2`"):
        list(trainer_of(network, made).epoch(Position()))


# --- plans ------------------------------------------------------------------------------------------------------------


def test_without_memory_that_is_kept_and_in_stages_one_micro_batch_is_under_way(artifact: Artifact) -> None:
    request = Request(BATCH, threads=4, micro_batch=2)
    for changed in (replace(request, arena=False), replace(request, schedule="stage")):
        made = plan(artifact.manifest, changed)
        assert made.workers == 1
        assert plan(artifact.manifest, replace(changed, operators=4)).operator_threads == 4


def test_room_for_graphs_grows_with_the_number_that_run_at_once(artifact: Artifact) -> None:
    one, two, three = (planned(artifact, workers, fast=False) for workers in (1, 2, 3))
    sizes = sorted((block.transient_bytes for block in one.blocks), reverse=True)
    assert sum(sizes[:2]) <= two.arena_bytes < sum(sizes[:2]) + sizes[0]
    assert sum(sizes[:3]) <= three.arena_bytes < sum(sizes[:3]) + 2 * sizes[0]
    assert one.planned_bytes < two.planned_bytes < three.planned_bytes


def test_where_every_byte_counts_one_thread_runs_operators(artifact: Artifact) -> None:
    request = Request(BATCH, threads=4, prefer="memory")
    many, one = plan(artifact.manifest, request), plan(artifact.manifest, replace(request, threads=1))
    assert many.operator_threads == 1
    assert many.training_bytes == one.training_bytes


def test_where_fewest_bytes_are_wanted_or_left_there_is_one(artifact: Artifact) -> None:
    free = Request(BATCH, schedule="sweep", threads=2, micro_batch=2, updates="accumulated", fast=False)
    assert plan(artifact.manifest, replace(free, prefer="memory")).workers == 1
    two = planned(artifact, 2, fast=False)
    tight = replace(free, budget_bytes=two.planned_bytes - 1)
    assert plan(artifact.manifest, tight).workers == 1
