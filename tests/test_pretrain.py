from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeff.dataset import Dataset
from edgeff.errors import DataError, ModelError, RunError
from edgeff.feed import Feed, even_batches
from edgeff.manifest import TensorSpec
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.objective import CrossEntropyObjective
from edgeff.preprocess import Preprocessing, fit_preprocessing
from edgeff.presets import preset
from edgeff.pretrain import PretrainProgress, _timed_convolutions, evaluate_network, pretrain
from edgeff.pretrain_run import load_run
from edgeff.pretrain_settings import PretrainSettings

CENTRES = np.random.default_rng(99).standard_normal((3, 6)).astype(np.float32)


def _dataset(rows: int, seed: int, **options: Any) -> Dataset:
    """Three overlapping clouds in six dimensions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    x = (CENTRES[y] + 0.7 * rng.standard_normal((rows, 6))).astype(np.float32)
    return Dataset(**{"name": f"clouds{seed}", "x": x, "y": y.astype(np.int64), **options})


TRAIN, VALIDATION = _dataset(300, 0), _dataset(120, 1)
PREPROCESSING = fit_preprocessing(TRAIN, (6,))
SETTINGS = PretrainSettings(epochs=3, batch_size=32, learning_rate=0.01)


def _network(*, dropout: bool = False) -> LocalNetwork:
    torch.manual_seed(0)
    extra = (nn.Dropout(0.2),) if dropout else ()
    blocks = [
        LocalBlock(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *extra)),
        LocalBlock(nn.Sequential(nn.Linear(16, 12), nn.ReLU())),
        LocalBlock(nn.Sequential(nn.Linear(12, 12), nn.ReLU())),
    ]
    return LocalNetwork(blocks, input_shape=(6,), classes=3)


def _pretrain(settings: PretrainSettings = SETTINGS, **options: Any) -> Any:
    # Not a default argument: making a network seeds torch.
    return pretrain(options.pop("network", None) or _network(), TRAIN, VALIDATION, PREPROCESSING, settings, **options)


@pytest.mark.parametrize("mode", ["local", "bp", "bp-deepsup"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_mode_learns(mode: Any, optimizer: Any) -> None:
    network = _network()
    before = {key: value.clone() for key, value in network.tensors().items()}
    learning_rate = {"adamw": 0.01, "sgd": 0.05}[optimizer]
    settings = replace(SETTINGS, mode=mode, optimizer=optimizer, learning_rate=learning_rate, epochs=5)
    result = _pretrain(settings, network=network)
    assert result.best.validation.accuracy > 0.85
    assert result.history[-1].train_loss.keys() == ({"block1", "block2", "block3"} if mode == "local" else {"whole"})
    assert len(result.best.validation.readout_accuracy) == (1 if mode == "bp" else 3)
    assert all(torch.equal(value, before[key]) for key, value in network.tensors().items())


def test_the_result_has_the_weights_and_fusion_of_the_best_epoch() -> None:
    result = _pretrain(replace(SETTINGS, epochs=6, learning_rate=0.05))
    merits = [(m.validation.accuracy, -m.validation.loss) for m in result.history]
    assert result.best_epoch == merits.index(max(merits)) + 1
    again = evaluate_network(result.network, VALIDATION, PREPROCESSING)
    assert again == result.best.validation
    assert result.network.readout_weights == result.best.validation.readout_weights
    assert not result.network.training


def test_the_networks_own_fusion_is_kept_where_none_is_to_be_chosen() -> None:
    result = _pretrain(replace(SETTINGS, fusion="sum"))
    assert result.network.readout_weights == (1.0, 1.0, 1.0)


def test_runs_are_repeatable_and_their_seed_matters() -> None:
    first, again, other = (_pretrain(replace(SETTINGS, seed=seed)) for seed in (0, 0, 1))
    assert first.history == again.history
    assert first.history != other.history


def test_every_epoch_has_an_order_of_its_own() -> None:
    network, seen = _network(), []
    network.sequence[0].register_forward_pre_hook(lambda block, x: seen.append(x[0]) if block.training else None)
    _pretrain(replace(SETTINGS, epochs=2), network=network)
    first, second = (torch.cat(seen[start : start + 10]) for start in (0, 10))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)


def test_dropout_is_drawn_from_the_runs_seed() -> None:
    network, found = _network(dropout=True), []
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        found.append(_pretrain(network=network).history)
    assert found[0] == found[1]


def test_of_epochs_with_the_same_accuracy_the_one_with_the_lowest_loss_is_kept() -> None:
    apart = np.eye(6, dtype=np.float32)[TRAIN.y] * 10
    easy = replace(TRAIN, x=apart)
    result = pretrain(_network(), easy, easy, fit_preprocessing(easy, (6,)), replace(SETTINGS, epochs=4))
    assert [metrics.validation.accuracy for metrics in result.history[1:]] == [1.0] * 3
    losses = [metrics.validation.loss for metrics in result.history]
    assert result.best_epoch == losses.index(min(losses)) + 1 > 2


def test_a_run_leaves_torchs_generator_and_threads_alone() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    _pretrain(replace(SETTINGS, epochs=1, threads=2), network=preset("mlp", input_shape=(6,), classes=3, width=0.1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_progress_reports_every_step_and_epoch() -> None:
    records: list[PretrainProgress] = []
    result = _pretrain(replace(SETTINGS, epochs=2), progress=records.append)
    per_epoch = 10  # 300 rows in batches of at most 32
    assert [record.step for record in records if record.metrics is None] == list(range(1, 2 * per_epoch + 1))
    assert {record.steps for record in records} == {2 * per_epoch}
    assert [record.metrics for record in records if record.metrics] == list(result.history)
    assert all(record.rows_per_s > 0 for record in records)
    assert records[-1].losses == result.history[-1].train_loss


class _Interrupted(Exception):
    pass


def _interrupt_after(epoch: int) -> Any:
    def progress(record: PretrainProgress) -> None:
        if record.epoch > epoch:
            raise _Interrupted

    return progress


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("mode", ["local", "bp-deepsup"])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path: Path, optimizer: Any, mode: Any) -> None:
    settings = replace(SETTINGS, epochs=4, optimizer=optimizer, mode=mode)
    straight = _pretrain(settings, network=_network(dropout=True), out=tmp_path / "straight")
    with pytest.raises(_Interrupted):
        _pretrain(settings, network=_network(dropout=True), out=tmp_path / "cut", progress=_interrupt_after(2))
    resumed = _pretrain(settings, network=_network(dropout=True), out=tmp_path / "cut", resume=True)
    assert resumed.history == straight.history
    for key, value in straight.network.tensors().items():
        assert torch.equal(value, resumed.network.tensors()[key])
    for name in ("recipe.json", "best.safetensors", "replay.safetensors"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_finished_run_that_is_resumed_gives_its_result_again(tmp_path: Path) -> None:
    first = _pretrain(out=tmp_path / "run")
    records: list[PretrainProgress] = []
    again = _pretrain(out=tmp_path / "run", resume=True, progress=records.append)
    assert again.history == first.history
    assert records == []
    assert torch.equal(again.network(torch.ones(1, 6)), first.network(torch.ones(1, 6)))


def test_a_run_cut_before_its_first_epoch_begins_again(tmp_path: Path) -> None:
    with pytest.raises(_Interrupted):
        _pretrain(out=tmp_path, progress=_interrupt_after(0))
    assert _pretrain(out=tmp_path, resume=True).history == _pretrain().history


def test_a_loss_that_is_not_finite_stops_the_run_and_names_block_and_step() -> None:
    with pytest.raises(RunError, match=r"the loss of block `block1` is (nan|inf) at step \d+ \(epoch 1\)") as caught:
        _pretrain(replace(SETTINGS, optimizer="sgd", learning_rate=1e30))
    assert "lower the learning rate" in caught.value.hint


def test_label_smoothing_reaches_every_block() -> None:
    for mode in ("local", "bp-deepsup"):
        prepared = PretrainSettings(label_smoothing=0.1, mode=mode).prepare(_network())  # type: ignore[arg-type]
        objectives = {leaf.objective for block in prepared.sequence for leaf in block.leaves()}
        assert objectives == {CrossEntropyObjective(0.1)}
    assert PretrainSettings().prepare(_network()).sequence[0].leaves()[0].objective == CrossEntropyObjective()


def test_label_smoothing_that_reaches_no_block_is_refused() -> None:
    network = preset("har-cnn", width=0.2, rule={"objective": "forward-forward"})
    with pytest.raises(ModelError, match="label smoothing is of the cross-entropy of classes, which no block learns"):
        PretrainSettings(label_smoothing=0.1).check(network, 8)
    PretrainSettings(label_smoothing=0.0).check(network, 8)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({}, "leave it out, or give layers `2-layer` too"), ({"mode": "bp-deepsup"}, "leave it out")],
)
def test_losses_of_blocks_of_two_layers_need_such_blocks(changes: dict[str, Any], hint: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="losses `all` needs mode `local` and layers `2-layer`") as caught:
        _pretrain(replace(SETTINGS, losses="all", **changes), out=tmp_path / "run")
    assert caught.value.hint == hint
    assert not (tmp_path / "run").exists()


def test_a_run_of_before_there_was_a_setting_is_read_and_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = _pretrain(network=preset("mlp", input_shape=(6,), classes=3, width=0.1), out=run)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    recipe = json.loads((run / "recipe.json").read_text())
    del checkpoint["identity"]["setting batch_norm"], recipe["settings"]["batch_norm"]
    recipe["settings"]["losses"] = "all"  # which said nothing, and was not refused
    torch.save(checkpoint, run / "checkpoint.pt")
    (run / "recipe.json").write_text(json.dumps(recipe))
    read = load_run(run).network
    assert all(torch.equal(value, read.tensors()[key]) for key, value in whole.network.tensors().items())
    again = _pretrain(network=preset("mlp", input_shape=(6,), classes=3, width=0.1), out=run, resume=True)
    assert again.history == whole.history


@pytest.mark.parametrize("augment", ["shift", "shift-flip", "shift-flip-cutout"])
def test_augmented_images_are_learned_from(augment: Any) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 60)
    x = (rng.random((60, 8, 8)) * 50 + 200 * y[:, None, None]).astype(np.uint8)
    images = Dataset("images", x, y.astype(np.int64))
    network = preset("image-cnn", input_shape=(1, 8, 8), classes=2, width=0.1)
    settings = PretrainSettings(epochs=2, batch_size=16, augment=augment)
    result = pretrain(network, images, images, fit_preprocessing(images, (1, 8, 8)), settings)
    assert result.best.validation.accuracy > 0.9


def test_signals_are_augmented_before_preprocessing_and_only_in_training() -> None:
    rng = np.random.default_rng(0)
    signals = Dataset("signals", rng.standard_normal((20, 16, 6)).astype(np.float32), np.zeros(20, np.int64))
    preprocessing = fit_preprocessing(signals, (6, 16))
    feed = Feed(signals, preprocessing, device=torch.device("cpu"), augment="signal")
    index = np.arange(4)
    plain, _ = feed.batch(index)
    np.testing.assert_array_equal(plain.numpy(), preprocessing.apply(signals.x[index]))
    shaken, _ = feed.batch(index, np.random.default_rng(1))
    assert not torch.equal(plain, shaken)
    assert shaken.shape == (4, 6, 16)


def test_batches_are_even_and_cover_every_row_once() -> None:
    for rows in (1, 5, 32, 33, 100):
        parts = even_batches(np.arange(rows), 32)
        assert np.array_equal(np.concatenate(parts), np.arange(rows))
        sizes = [len(part) for part in parts]
        assert max(sizes) <= 32
        assert max(sizes) - min(sizes) <= 1


def test_a_batch_of_one_row_trains() -> None:
    one = TRAIN.select(np.arange(3))
    assert pretrain(_network(), one, VALIDATION, PREPROCESSING, replace(SETTINGS, batch_size=1)).best_epoch >= 1


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        (
            _dataset(5, 2, y=np.array([0, 1, 2, 3, 0])),
            DataError,
            r"labels 0\.\.3, network .* has classes 0\.\.2",
        ),
        (
            _dataset(5, 2, x=np.zeros((5, 7), np.float32)),
            DataError,
            r"has rows of \(7,\) float32, preprocessing takes \(6,\) float32",
        ),
        (_dataset(0, 2), DataError, "has no rows"),
        (_dataset(5, 2, x=np.full((5, 6), np.nan, np.float32)), DataError, "row 0 has NaN"),
    ],
)
def test_data_that_do_not_fit_are_refused(train: Dataset, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pretrain(_network(), train, VALIDATION, PREPROCESSING, SETTINGS)


def test_other_class_names_are_refused() -> None:
    named = LocalNetwork([LocalBlock(nn.Linear(6, 4))], input_shape=(6,), classes=["a", "b", "c"])
    train = replace(TRAIN, classes=("a", "c", "b"))
    with pytest.raises(DataError, match=r"classes of data set `clouds0` are \['a', 'c', 'b'\], those of network"):
        pretrain(named, train, VALIDATION, PREPROCESSING, SETTINGS)


def test_preprocessing_for_another_network_is_refused() -> None:
    other = Preprocessing(TensorSpec("x", (6,)), ({"kind": "reshape", "shape": (2, 3)},), TensorSpec("x", (2, 3)))
    with pytest.raises(ModelError, match=r"takes rows of \(6,\) float32, preprocessing gives \(2, 3\) float32"):
        pretrain(_network(), TRAIN, VALIDATION, other, SETTINGS)


class _Words(nn.Module):
    """The mean of the vectors of six words out of five known ones; it fails by itself where it is told to."""

    def __init__(self, failing: str = "") -> None:
        super().__init__()
        self.embedding, self.failing = nn.Embedding(5, 8), failing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.failing and self.training:
            raise IndexError(self.failing)
        return self.embedding(x).mean(dim=1)  # type: ignore[no-any-return]


def _words(count: int, word: int) -> tuple[Dataset, Preprocessing]:
    x = np.random.default_rng(0).integers(0, 5, (count, 6))
    x[count // 2, 3] = word
    rows = Dataset("words", x, np.arange(count) % 3)
    return rows, fit_preprocessing(rows, (6,), dtype="int64")


def _word_network(failing: str = "") -> LocalNetwork:
    return LocalNetwork([LocalBlock(_Words(failing))], input_shape=(6,), classes=3, input_dtype="int64", name="words")


@pytest.mark.parametrize("word", [5, -1])
def test_a_token_id_that_the_network_does_not_know_is_refused_in_one_line(word: int) -> None:
    rows, preprocessing = _words(30, word)
    for run in (
        lambda: pretrain(_word_network(), rows, rows, preprocessing, SETTINGS),
        lambda: evaluate_network(_word_network(), rows, preprocessing),
    ):
        with pytest.raises(DataError, match=r"^network `words` cannot take the rows: index out of range in self$") as e:
            run()
        assert "`num_embeddings`" in e.value.hint
    known, preprocessing = _words(30, 4)
    assert pretrain(_word_network(), known, known, preprocessing, SETTINGS).history


def test_another_index_error_of_a_users_module_is_not_taken_for_an_unknown_token() -> None:
    rows, preprocessing = _words(30, 0)
    with pytest.raises(IndexError, match=r"^list index out of range$"):
        pretrain(_word_network("list index out of range"), rows, rows, preprocessing, SETTINGS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1, got `0`"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got `0`"),
        ({"optimizer": "lion"}, "`optimizer` must be `adamw` or `sgd`, got `lion`"),
        ({"mode": "global"}, "`mode` must be `local` or `bp` or `bp-deepsup`, got `global`"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0, got `0.0`"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0, got `nan`"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be finite, got `inf`"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0, got `-1.0`"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got `1.0`"),
        ({"threads": 0}, "`threads` must be from 1 to 1024, got `0`"),
        ({"label_smoothing": 1.0}, r"label smoothing must be in \[0, 1\), got 1.0"),
        ({"mixed_precision": True}, "mixed precision needs device `cuda`"),
        ({"unheard_of": 1}, "unknown pretraining setting `unheard_of`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        PretrainSettings.from_dict(values)


def test_settings_survive_a_round_trip() -> None:
    settings = replace(SETTINGS, label_smoothing=0.1, augment="shift", threads=1)
    assert PretrainSettings.from_dict(settings.as_dict()) == settings


@pytest.mark.parametrize("chosen", [False, True])
def test_a_run_leaves_what_was_set_of_convolutions(monkeypatch: pytest.MonkeyPatch, chosen: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", chosen)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    seen: list[bool] = []
    _pretrain(replace(SETTINGS, epochs=1), progress=lambda _: seen.append(torch.backends.cudnn.benchmark))
    assert set(seen) == {chosen}  # on a CPU
    with _timed_convolutions(torch.device("cuda")):
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark is chosen


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="device `cuda` is asked for, and torch finds none"):
        _pretrain(replace(SETTINGS, device="cuda"))


def test_the_schedule_warms_up_and_falls_to_nothing() -> None:
    settings = PretrainSettings(learning_rate=1.0)
    rates = [settings.learning_rate_at(step, 200) for step in range(1, 201)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.0 < rates[-1] < 1e-3
    constant = replace(settings, schedule="constant")
    assert {constant.learning_rate_at(step, 200) for step in range(11, 201)} == {1.0}
    # A run too short for a warm-up begins at once.
    assert settings.learning_rate_at(1, 3) == 1.0
