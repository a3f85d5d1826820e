"""The planner: a pure function from manifest and budget to bytes."""

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_artifact import CLASSES, FEATURES, Tiny, make_manifest

from edgeff.errors import BudgetError
from edgeff.manifest import Line
from edgeff.runtime import plan as plan_module
from edgeff.runtime.plan import micro_batches, plan, session_bytes, smallest_budget
from edgeff.units import parse_bytes

MANIFEST = make_manifest(Tiny())
WEIGHTS = (4 * (FEATURES * CLASSES + 2 * CLASSES), 4 * (CLASSES * CLASSES + 2 * CLASSES))  # w, b, shift
TRAINED = (4 * (FEATURES * CLASSES + CLASSES), 4 * (CLASSES * CLASSES + CLASSES))


def heavy(row_bytes=100_000, block=1):
    """The tiny manifest with one block whose runs need much per row."""
    blocks = list(MANIFEST.blocks)
    graphs = {
        kind: replace(graph, transient=() if kind == "apply" else (Line(0, row_bytes),))
        for kind, graph in blocks[block].graphs.items()
    }
    blocks[block] = replace(blocks[block], graphs=graphs)
    return replace(MANIFEST, blocks=tuple(blocks))


def test_without_a_budget_the_batch_is_the_micro_batch_and_blocks_step_at_once():
    found = plan(MANIFEST, budget_bytes=None, batch_size=8)
    assert (found.schedule, found.batch_size, found.micro_batch, found.budget_bytes) == ("sweep", 8, 8, None)
    assert [block.graphs for block in found.blocks] == [("step",), ("step",)]
    assert [block.gradient_bytes for block in found.blocks] == [0, 0]
    assert [block.weight_bytes for block in found.blocks] == list(WEIGHTS)
    assert [block.state_bytes for block in found.blocks] == list(TRAINED)


def test_a_smaller_micro_batch_accumulates_and_needs_gradient_sums():
    manifest = heavy()
    found = plan(manifest, budget_bytes=plan(manifest, budget_bytes=None, batch_size=8).planned_bytes - 1, batch_size=8)
    assert found.micro_batch == 4
    assert [block.graphs for block in found.blocks] == [("accumulate", "apply")] * 2
    assert [block.gradient_bytes for block in found.blocks] == list(TRAINED)
    assert {block.micro_batch for block in found.blocks} == {4}


def test_planned_bytes_are_the_sum_of_their_parts():
    found = plan(heavy(), budget_bytes=None, batch_size=8, row_bytes=1000)
    graphs = [block.graphs for block in heavy().blocks]
    resident = sum(WEIGHTS) + sum(TRAINED) + found.buffer_bytes + 1000 + plan_module.PROCESS_BYTES
    assert found.training_bytes == resident + sum(session_bytes(graph["step"]) for graph in graphs) + 800_000
    assert found.evaluation_bytes == resident + sum(session_bytes(graph["forward"]) for graph in graphs) + 800_000
    assert found.planned_bytes == max(found.training_bytes, found.evaluation_bytes)


def test_buffers_grow_with_the_rows_and_hold_both_hand_overs():
    manifest = make_manifest(Tiny(blocks=3, fusion=(1.0, 1.0, 1.0)))
    small, large = (plan(manifest, budget_bytes=None, batch_size=rows).buffer_bytes for rows in (1, 5))
    assert large == 5 * small
    # raw rows, float32 twice on the way, features; y and row weight; log-probabilities; two hand-overs of CLASSES each
    assert small == 4 * FEATURES * 4 + 12 + 4 * CLASSES + 2 * 4 * CLASSES


def test_a_block_that_is_not_trained_only_runs_forward():
    found = plan(MANIFEST, budget_bytes=None, batch_size=8, trained=["block2"])
    assert [block.graphs for block in found.blocks] == [("forward",), ("step",)]
    assert [block.state_bytes for block in found.blocks] == [0, TRAINED[1]]
    assert [block.trained for block in found.blocks] == [False, True]


def test_blocks_behind_the_last_trained_one_do_not_run_at_all():
    found = plan(MANIFEST, budget_bytes=None, batch_size=8, trained=["block1"])
    assert [block.graphs for block in found.blocks] == [("step",), ()]
    assert found.blocks[1].session_bytes == found.blocks[1].transient_bytes == 0


def test_every_thread_beyond_the_first_counts_in_every_session():
    one, three = (plan(MANIFEST, budget_bytes=None, batch_size=8, threads=threads) for threads in (1, 3))
    assert three.training_bytes - one.training_bytes == 2 * 2 * plan_module.THREAD_BYTES


def test_the_smallest_budget_works_and_one_byte_less_does_not():
    needed = smallest_budget(heavy(), batch_size=8)
    found = plan(heavy(), budget_bytes=needed, batch_size=8)
    assert found.planned_bytes == needed
    with pytest.raises(BudgetError):
        plan(heavy(), budget_bytes=needed - 1, batch_size=8)


def test_a_budget_that_cannot_hold_names_the_block_and_what_would_work():
    needed = smallest_budget(heavy(), batch_size=8)
    with pytest.raises(BudgetError) as caught:
        plan(heavy(), budget_bytes=1_000_000, batch_size=8)
    message = str(caught.value)
    assert message.startswith(f"the run needs {needed:,} bytes, the budget is 1,000,000; most goes to block `block2`: ")
    assert message.endswith(" at micro-batch 1")
    assert f"the smallest budget that works is {needed:,} bytes" in caught.value.hint
    offered = parse_bytes(re.search(r"`--budget (\w+)`", caught.value.hint)[1])
    assert plan(heavy(), budget_bytes=offered, batch_size=8).planned_bytes <= offered


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(BudgetError, match=rf"^a budget of {budget} bytes holds nothing$") as caught:
        plan(MANIFEST, budget_bytes=budget, batch_size=8)
    assert "`--budget 12MiB`" in caught.value.hint


def test_a_batch_without_rows_is_refused():
    with pytest.raises(BudgetError, match=r"^a batch of 0 rows cannot be trained on, needed 1 or more$"):
        plan(MANIFEST, budget_bytes=None, batch_size=0)


def test_a_schedule_that_is_not_there_is_refused():
    with pytest.raises(BudgetError, match=r"^schedule `stage` is not available$"):
        plan(MANIFEST, budget_bytes=None, batch_size=8, kind="stage")


@given(batch_size=st.integers(1, 200), row_bytes=st.integers(0, 10**6), spare=st.integers(0, 10**7))
def test_a_plan_fits_and_no_larger_micro_batch_would(batch_size, row_bytes, spare):
    manifest = heavy(row_bytes)
    budget = smallest_budget(manifest, batch_size=batch_size) + spare
    found = plan(manifest, budget_bytes=budget, batch_size=batch_size)
    assert found.planned_bytes <= budget
    for larger in micro_batches(batch_size):
        if larger > found.micro_batch:
            # The same plan at the larger size, by a batch that is that size: step graphs instead of accumulation
            # only where it is the whole batch.
            whole = plan(manifest, budget_bytes=None, batch_size=larger)
            gradients = 0 if larger == batch_size else sum(TRAINED)
            sessions = 0 if larger == batch_size else _more_sessions(manifest)
            assert whole.training_bytes + gradients + sessions > budget or whole.evaluation_bytes + gradients > budget


def _more_sessions(manifest):
    return sum(
        session_bytes(block.graphs["accumulate"])
        + session_bytes(block.graphs["apply"])
        - session_bytes(block.graphs["step"])
        for block in manifest.blocks
    )


@given(batch_size=st.integers(1, 10**6))
def test_micro_batches_halve_from_the_batch_to_one(batch_size):
    sizes = list(micro_batches(batch_size))
    assert (sizes[0], sizes[-1]) == (batch_size, 1)
    assert all(after == before // 2 for before, after in pairwise(sizes))
