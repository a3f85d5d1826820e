"""Estimates of time: how threads and workers enter into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_artifact import Tiny, make_manifest

from edgeff.manifest import GraphSpec, Line, Moment, Work
from edgeff.runtime.cost import (
    BESIDE_OTHERS,
    CACHE_BYTES,
    TURN_SECONDS,
    learning_seconds,
    pipelined_seconds,
    run_seconds,
)

SECONDS = st.floats(0.001, 1.0)


def graph(nodes: int = 10, work: int = 0, traffic: int = 0, inside: int = 0) -> GraphSpec:
    return GraphSpec("a.onnx", (), (), nodes, (Moment(inside, 0),), work=Work(work, 0), traffic=Line(traffic, 0))


def simulated(each: Sequence[float], micro_batches: int, workers: int) -> float:
    """When the last micro-batch is through, each worker taking every so many-th from block to block."""
    free = [0.0] * len(each)  # when each block is
    ends: list[float] = []
    for number in range(micro_batches):
        now = ends[number - workers] if number >= workers else 0.0
        for block, seconds in enumerate(each):
            now = free[block] = max(now, free[block]) + seconds
        ends.append(now)
    return max(ends)


@given(st.lists(SECONDS, min_size=1, max_size=6), st.integers(1, 20), st.integers(2, 5))
def test_what_is_estimated_of_workers_is_what_they_take(blocks: list[float], micro_batches: int, workers: int) -> None:
    together = min(workers, micro_batches)
    found = pipelined_seconds(blocks, micro_batches, workers)
    if together == 1:
        assert found == pytest.approx(micro_batches * sum(blocks))
        return
    each = [BESIDE_OTHERS * seconds + TURN_SECONDS for seconds in blocks]
    exact = simulated(each, micro_batches, together)
    assert found == pytest.approx(exact)


def test_a_block_that_takes_most_of_the_time_holds_all_workers_up() -> None:
    assert pipelined_seconds([0.1, 1.0, 0.1], 16, 4) > 16 * 1.0
    assert pipelined_seconds([0.4, 0.4, 0.4], 16, 2) < 0.65 * 16 * 1.2


def test_threads_divide_the_arithmetic_and_cost_something_for_every_node() -> None:
    heavy, many = graph(work=10**9), graph(nodes=1000)
    assert run_seconds(heavy, 1, threads=2) < 0.6 * run_seconds(heavy, 1)
    assert run_seconds(many, 1, threads=2) > run_seconds(many, 1)


def test_what_is_in_no_cache_comes_more_slowly_to_each_of_several() -> None:
    cached, large = graph(traffic=10**8), graph(traffic=10**8, inside=CACHE_BYTES + 1)
    assert run_seconds(cached, 1, workers=2) == run_seconds(cached, 1)
    alone, beside = run_seconds(large, 1), run_seconds(large, 1, workers=2)
    assert alone < beside < 2 * alone


def test_learning_counts_every_run_and_no_update() -> None:
    block = make_manifest(Tiny(blocks=1, fusion=(1.0,))).blocks[0]
    block = replace(block, graphs={**block.graphs, "accumulate": graph(work=10**7)})
    one = run_seconds(block.graphs["accumulate"], 4)
    assert learning_seconds(block, ("accumulate", "apply"), 4, 10) == pytest.approx(3 * one)
