"""Training, prediction and evaluation on tiny artifacts, against the same arithmetic in numpy."""

import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_artifact import CLASSES, Oracle, Tiny, make_manifest, make_rows, write_tiny

from edgeff.errors import ArtifactError, RunError
from edgeff.runtime.buffers import allocate_buffers
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.evaluate import evaluate
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.meter import Meter
from edgeff.runtime.network import open_network, preprocessing_of
from edgeff.runtime.order import MixedOrder, graph_seed
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.predict import fuse, predict
from edgeff.runtime.trainer import LearningRate, Position, Trainer
from edgeff.runtime.update import TrainingRows

ROWS = 29


@pytest.fixture(scope="module")
def engine():
    return OnnxRuntime(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def artifact(folder):
    return write_tiny(folder / "two")


def make_trainer(artifact, engine, *, batch_size=8, micro_batch=None, blocks=None, seed=4, rate=0.1, epochs=2):
    names = [block.name for block in artifact.manifest.blocks]
    planned = plan(artifact.manifest, Request(budget_bytes=None, batch_size=batch_size, trained=blocks))
    if micro_batch:
        graphs = [("accumulate", "apply") if part.trained else part.graphs for part in planned.blocks]
        parts = [replace(part, graphs=kinds) for part, kinds in zip(planned.blocks, graphs, strict=True)]
        planned = replace(planned, micro_batch=micro_batch, blocks=tuple(parts))
    network = open_network(artifact, engine, trained=blocks or names, accumulate=micro_batch is not None)
    x, y = make_rows(ROWS, seed=2)
    order = MixedOrder(ROWS, 0, batch_size, 0.0, seed)
    learning_rate = LearningRate(rate, "cosine", epochs * order.batches_per_epoch)
    rows = TrainingRows(PreprocessedRows(x, preprocessing_of(artifact.manifest)), y, order)
    return network, Trainer(network, planned, rows=rows, learning_rate=learning_rate, seed=seed, meter=Meter())


def oracle_run(artifact, tiny, trainer, *, epochs=2, blocks=None):
    """The same batches through numpy; returns the losses by step."""
    rows, rate = trainer._rows, trainer._learning_rate
    oracle = Oracle(tiny, artifact.tensors())
    losses, step = [], 0
    for epoch in range(1, epochs + 1):
        for index in rows.order.batches(epoch):
            step += 1
            losses.append(oracle.update(rows.x.rows[index], rows.y[index], rate.at(step), blocks))
    return oracle, losses


def run_epochs(trainer, epochs=2):
    records, step = [], 0
    for epoch in range(1, epochs + 1):
        records += trainer.epoch(Position(epoch, 0, step))
        step = records[-1].position.step
    return records


def assert_weights(network, oracle):
    for name, array in network.weights().items():
        np.testing.assert_allclose(array, oracle.weights[name], rtol=2e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 5])
def test_training_follows_the_same_formulas_in_numpy_at_every_micro_batch(artifact, engine, micro_batch):
    network, trainer = make_trainer(artifact, engine, micro_batch=micro_batch)
    records = run_epochs(trainer)
    oracle, losses = oracle_run(artifact, Tiny(), trainer)
    assert_weights(network, oracle)
    for record, loss in zip(records, losses, strict=True):
        assert record.loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_hand_over_does_not_run_over_the_one_it_was_made_from(folder, engine, micro_batch):
    """From three blocks on, both hand-over buffers are in use: a block reads one while it writes the other."""
    tiny = Tiny(blocks=3, fusion=(1.0, 0.5, 0.25))
    artifact = write_tiny(folder / f"three-{micro_batch}", tiny)
    network, trainer = make_trainer(artifact, engine, micro_batch=micro_batch)
    run_epochs(trainer)
    oracle, _ = oracle_run(artifact, tiny, trainer)
    assert_weights(network, oracle)


def test_a_block_reads_what_the_one_before_wrote_and_writes_elsewhere():
    manifest = make_manifest(Tiny(blocks=3, fusion=(1.0, 1.0, 1.0)))
    buffers = allocate_buffers(manifest, 5, {})
    bound = [buffers.bound_for(block, 0, 3, manifest) for block in range(3)]
    for before, after in pairwise(bound):
        assert after["x"].shape == (3, CLASSES)
        assert after["x"].ctypes.data == before["handover"].ctypes.data
    assert not any(np.shares_memory(each["x"], each["handover"]) for each in bound[:2])
    assert "handover" not in bound[2]


def test_only_the_blocks_asked_for_are_trained(artifact, engine):
    before = artifact.tensors()
    network, trainer = make_trainer(artifact, engine, blocks=["block2"])
    records = run_epochs(trainer)
    oracle, _ = oracle_run(artifact, Tiny(), trainer, blocks=["block2"])
    assert_weights(network, oracle)
    assert set(records[0].loss) == {"block2"}
    np.testing.assert_array_equal(network.weights()["block1.w"], before["block1.w"])


def test_blocks_behind_the_last_trained_one_are_not_even_loaded(artifact, engine):
    loaded = []

    class Listening(OnnxRuntime):
        def load(self, model, name, memory=None, **more):
            loaded.append(name)
            return super().load(model, name, memory, **more)

    _, trainer = make_trainer(artifact, Listening(1), blocks=["block1"])
    run_epochs(trainer, epochs=1)
    assert loaded == ["blocks/block1.step.onnx"]


def test_a_hand_over_is_of_the_weights_before_the_update(artifact, engine):
    """One batch for an epoch: had block 1 updated first, block 2 would have seen another input."""
    network, trainer = make_trainer(artifact, engine, batch_size=ROWS)
    (record,) = trainer.epoch(Position())
    oracle, (losses,) = oracle_run(artifact, Tiny(), trainer, epochs=1)
    assert record.loss == pytest.approx(losses, rel=1e-5)
    assert_weights(network, oracle)


def test_progress_says_where_the_run_is_and_what_was_measured(artifact, engine):
    _, trainer = make_trainer(artifact, engine)
    records = run_epochs(trainer)
    assert [record.position for record in records[:4]] == [Position(1, batch, batch) for batch in (1, 2, 3, 4)]
    assert records[4].position == Position(2, 1, 5)
    assert {record.batches for record in records} == {4}
    assert sum(record.rows for record in records) == 2 * ROWS
    assert all(record.rows_per_s > 0 and record.measured.peak_bytes > 0 for record in records)
    assert records[0].learning_rate == pytest.approx(0.1)


def test_an_epoch_can_be_begun_in_its_middle(artifact, engine):
    whole, trainer = make_trainer(artifact, engine)
    list(trainer.epoch(Position()))
    broken, trainer = make_trainer(artifact, engine)
    first = trainer.epoch(Position())
    next(first)
    position = next(first).position
    first.close()
    list(trainer.epoch(position))
    for name, array in whole.weights().items():
        np.testing.assert_array_equal(array, broken.weights()[name])


def test_a_loss_that_is_not_finite_ends_the_run_by_block_and_step(artifact, engine):
    _, trainer = make_trainer(artifact, engine, rate=1e38)
    with pytest.raises(RunError, match=r"^the loss of block `block1` is (inf|nan) at step \d$") as caught:
        run_epochs(trainer)
    assert "lower the learning rate" in caught.value.hint


def test_the_seed_input_differs_by_step_micro_batch_and_block(folder, engine):
    tiny = Tiny(seeded=True, momentum=0.0)
    artifact = write_tiny(folder / "seeded", tiny)
    network, trainer = make_trainer(artifact, engine, micro_batch=3, seed=11)
    list(trainer.epoch(Position()))
    rows, rate = trainer._rows, trainer._learning_rate
    oracle = Oracle(tiny, artifact.tensors())
    for step, index in enumerate(rows.order.batches(1), start=1):
        keep = {}
        for block, name in enumerate(tiny.names):
            parts = np.array_split(index, math.ceil(len(index) / 3))
            rows_before = np.cumsum([0, *(len(part) for part in parts[:-1])])
            odd = [graph_seed(11, step=step, row=int(row), block=block) % 2 for row in rows_before]
            keep[name] = np.repeat(odd, [len(part) for part in parts])
        oracle.update(rows.x.rows[index], rows.y[index], rate.at(step), keep=keep)
    assert_weights(network, oracle)


def test_graph_seeds_are_int64_of_at_least_zero_and_all_different():
    seeds = [
        graph_seed(7, step=step, row=part, block=block) for step in range(20) for part in range(3) for block in range(3)
    ]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_graphs_that_are_not_those_of_the_manifest_are_refused(folder):
    good = write_tiny(folder / "good")
    other = good.read("blocks/block1.forward.onnx")
    with pytest.raises(ArtifactError, match=r"^`blocks/block1.step.onnx` lacks input `rate.learning_rate`$"):
        write_tiny(folder / "spoilt", spoil={"blocks/block1.step.onnx": other})


def test_a_block_that_the_artifact_lacks_cannot_be_trained(artifact, engine):
    with pytest.raises(RunError, match=r"^the artifact has no block `head`$") as caught:
        open_network(artifact, engine, trained=["head"])
    assert caught.value.hint == "its blocks: block1, block2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("block1.w"), r"the weights lack `block1.w`"),
        (
            lambda w: w.update({"block2.b": np.zeros(3, np.float32)}),
            r"`block2.b` must be float32 \[4\], got float32 \[3\]",
        ),
        (lambda w: w.update({"block2.b": np.zeros(4)}), r"`block2.b` must be float32 \[4\], got float64 \[4\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(artifact, engine, change, message):
    weights = artifact.tensors()
    change(weights)
    with pytest.raises(RunError, match=f"^{message}$"):
        open_network(artifact, engine, weights=weights)


# --- learning rate ---


def test_the_cosine_falls_from_the_base_to_zero_over_the_run():
    rate = LearningRate(0.2, "cosine", steps=10)
    values = [rate.at(step) for step in range(1, 12)]
    assert values[0] == 0.2
    assert values[5] == pytest.approx(0.1)
    assert values[10] == pytest.approx(0.0)
    assert values == sorted(values, reverse=True)


def test_a_constant_rate_stays():
    assert {LearningRate(0.2, "constant", steps=10).at(step) for step in range(1, 11)} == {0.2}


def test_an_unknown_schedule_is_refused():
    with pytest.raises(RunError, match=r"^unknown learning-rate schedule `linear`$") as caught:
        LearningRate(0.1, "linear", 10)
    assert caught.value.hint == "known: constant, cosine"


@pytest.mark.parametrize("base", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_that_is_not_above_zero_is_refused(base):
    with pytest.raises(RunError, match=rf"^the learning rate must be above 0, got `{base}`$"):
        LearningRate(base, "constant", 10)


# --- order ---

ORDERS = st.builds(
    MixedOrder,
    own_rows=st.integers(1, 60),
    replay_rows=st.integers(0, 20),
    batch_size=st.integers(2, 17),
    replay_fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**63),
)


@given(order=ORDERS, epoch=st.integers(1, 4))
def test_an_epoch_has_every_own_row_once_in_batches_that_fit(order, epoch):
    batches = list(order.batches(epoch))
    assert len(batches) == order.batches_per_epoch
    assert all(1 <= len(batch) <= order.batch_size for batch in batches)
    rows = np.concatenate(batches)
    assert sorted(rows[rows >= order.replay_rows]) == list(range(order.replay_rows, order.replay_rows + order.own_rows))
    own = [int((batch >= order.replay_rows).sum()) for batch in batches]
    assert max(own) - min(own) <= 1


@given(order=ORDERS, epoch=st.integers(1, 3), first=st.integers(0, 10))
def test_an_epoch_begun_later_has_the_same_batches(order, epoch, first):
    whole = list(order.batches(epoch))[first:]
    part = list(order.batches(epoch, first))
    assert [batch.tolist() for batch in whole] == [batch.tolist() for batch in part]


@given(order=ORDERS)
def test_replay_rows_take_turns(order):
    drawn = np.concatenate([batch[batch < order.replay_rows] for epoch in (1, 2) for batch in order.batches(epoch)])
    counts = np.bincount(drawn, minlength=order.replay_rows) if order.replay_rows else np.zeros(1)
    # Batches of an epoch that are not full skip some places of the order, at most those of one batch each.
    skipped = 2 * order.batches_per_epoch * order.replay_per_batch - len(drawn)
    assert counts.max() - counts.min() <= 1 + skipped


def test_replay_rows_have_an_order_of_their_own():
    order = MixedOrder(12, 12, 24, 0.5, 1)
    replay, own = np.split(np.concatenate(list(order.batches(1))), 2)
    assert sorted(replay) == list(range(12))
    assert replay.tolist() != (own - 12).tolist()
    (first,) = MixedOrder(12, 12, 24, 0.5, 1).batches(1)
    # The n-th pass through the replay rows is not the n-th epoch's order of the own rows either.
    orders = [np.concatenate(list(MixedOrder(12, 0, 12, 0.0, 1).batches(epoch))).tolist() for epoch in range(4)]
    assert first[:12].tolist() not in orders


def test_epochs_and_seeds_have_other_orders():
    first, second = (np.concatenate(list(MixedOrder(40, 0, 8, 0.0, 1).batches(epoch))) for epoch in (1, 2))
    other = np.concatenate(list(MixedOrder(40, 0, 8, 0.0, 2).batches(1)))
    assert first.tolist() != second.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "`5` rows in batches of `0` make no batch, needed 1 or more"),
        ({"own_rows": 0}, "`0` rows in batches of `4` make no batch, needed 1 or more"),
        ({"seed": -1}, "the seed must be 0 or more, got `-1`"),
        ({"replay_fraction": 1.0}, "the replay fraction must be from 0 to below 1, got `1.0`"),
        ({"replay_fraction": math.nan}, "the replay fraction must be from 0 to below 1, got `nan`"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(change, message):
    given_values = {"own_rows": 5, "replay_rows": 3, "batch_size": 4, "replay_fraction": 0.5, "seed": 0}
    with pytest.raises(RunError) as caught:
        MixedOrder(**{**given_values, **change})
    assert str(caught.value) == message


# --- prediction and evaluation ---


@pytest.mark.parametrize("micro_batch", [1, 7, 64])
def test_predictions_are_the_fused_log_probabilities_of_all_blocks(artifact, engine, micro_batch):
    x, _ = make_rows(20, seed=8)
    found = predict(open_network(artifact, engine), x, micro_batch=micro_batch)
    np.testing.assert_allclose(found, Oracle(Tiny(), artifact.tensors()).fused(x), rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-5)


def test_blocks_that_no_longer_count_are_not_run_for_a_prediction(folder, engine):
    tiny = Tiny(fusion=(1.0, 0.0))
    artifact = write_tiny(folder / "first-only", tiny)
    x, _ = make_rows(9, seed=8)
    network = open_network(artifact, engine)
    network.memories[1].arrays["parameter.w"].fill(np.nan)
    np.testing.assert_allclose(predict(network, x), Oracle(tiny, artifact.tensors()).fused(x), rtol=1e-4, atol=1e-5)


def test_an_evaluation_counts_by_class_and_by_block(artifact, engine):
    x, y = make_rows(21, seed=8)
    y = np.where(y == 3, 2, y)  # a class without rows
    found = evaluate(open_network(artifact, engine), x, y, micro_batch=4)
    oracle = Oracle(Tiny(), artifact.tensors())
    fused, (logs, _) = oracle.fused(x), oracle.scores(x)
    right = fused.argmax(axis=1) == y
    assert found.accuracy == pytest.approx(right.mean())
    assert found.log_loss == pytest.approx(-fused[np.arange(21), y].mean(), rel=1e-5)
    assert found.per_class[:3] == pytest.approx([right[y == label].mean() for label in range(3)])
    assert found.per_class[3] is None
    assert found.per_block == pytest.approx(
        {name: (log.argmax(axis=1) == y).mean() for name, log in zip(Tiny().names, logs, strict=True)}
    )
    assert found.rows == 21
    assert found.rows_per_s > 0


def test_a_network_of_nan_is_never_right(artifact, engine):
    network = open_network(artifact, engine)
    network.memories[0].arrays["parameter.b"].fill(np.nan)
    x, _ = make_rows(5, seed=8)
    found = evaluate(network, x, np.zeros(5, np.int64))
    assert found.accuracy == 0.0
    assert found.log_loss is None


def test_a_block_of_weight_zero_may_be_minus_infinity():
    uniform = np.log(np.full((2, CLASSES), 1 / CLASSES, np.float32))
    fused = fuse([np.full((2, CLASSES), -np.inf, np.float32), uniform], [0.0, 2.0])
    np.testing.assert_allclose(fused, uniform, rtol=1e-6)


def test_training_fits_the_rows(artifact, engine):
    network, trainer = make_trainer(artifact, engine, epochs=30)
    x, y = make_rows(ROWS, seed=2)
    before = evaluate(network, x, y).accuracy
    run_epochs(trainer, epochs=30)
    assert evaluate(network, x, y).accuracy > max(before, 0.8)
