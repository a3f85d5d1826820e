from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeff.dataset import Dataset
from edgeff.errors import ModelError, RunError
from edgeff.lock import locked
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.preprocess import fit_preprocessing
from edgeff.presets import load_factory, preset
from edgeff.pretrain import pretrain
from edgeff.pretrain_run import load_run
from edgeff.pretrain_settings import PretrainSettings
from edgeff.run_folder import rows_even_over_classes

SETTINGS = PretrainSettings(epochs=2, batch_size=16, replay_rows=12)


def _dataset(rows: int = 60, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    x = rng.standard_normal((rows, 8)) + 2.0 * np.eye(3, 8)[y]
    return Dataset(f"set{seed}", x.astype(np.float32), y.astype(np.int64), ("a", "b", "c"), groups=y.astype(np.int64))


TRAIN, VALIDATION = _dataset(), _dataset(30, 1)
PREPROCESSING = fit_preprocessing(TRAIN, (8,))


def _network(seed: int = 0) -> LocalNetwork:
    return preset("mlp", input_shape=(8,), classes=("a", "b", "c"), width=0.05, seed=seed)


def _run(out: Path, *, network: LocalNetwork | None = None, **changes: Any) -> Any:
    settings = replace(SETTINGS, **changes)
    return pretrain(network or _network(), TRAIN, VALIDATION, PREPROCESSING, settings, out=out)


@pytest.mark.parametrize("changes", [{}, {"mode": "bp"}, {"mode": "bp-deepsup", "label_smoothing": 0.1}])
def test_a_run_is_read_back_as_it_ended(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = _run(tmp_path, **changes)
    run = load_run(tmp_path)
    x = torch.randn(4, 8)
    assert torch.equal(run.network(x), result.network(x))
    assert run.network.describe() == result.network.describe()
    assert run.network.readout_weights == result.network.readout_weights
    assert run.metrics == result.history
    assert run.best_epoch == result.best_epoch
    assert run.settings == replace(SETTINGS, **changes)
    assert not run.network.training
    raw = TRAIN.x[:5]
    np.testing.assert_array_equal(run.preprocessing.apply(raw), PREPROCESSING.apply(raw))


def test_a_regrouped_preset_is_read_back(tmp_path: Path) -> None:
    result = _run(tmp_path, network=_network().regroup("2-layer", "all"))
    run = load_run(tmp_path)
    assert [block.name for block in run.network.sequence] == ["block1-block2", "block3"]
    assert torch.equal(run.network(torch.ones(1, 8)), result.network(torch.ones(1, 8)))


def test_deeply_supervised_pretraining_can_go_on_in_local_blocks(tmp_path: Path) -> None:
    _run(tmp_path, mode="bp-deepsup")
    whole = load_run(tmp_path).network
    local = whole.regroup("1-layer")
    x = torch.randn(3, 8)
    torch.testing.assert_close(local(x), whole(x))
    assert [block.name for block in local.sequence] == ["block1", "block2", "block3"]


def test_replay_holds_raw_training_rows_of_every_class(tmp_path: Path) -> None:
    _run(tmp_path)
    run = load_run(tmp_path)
    assert np.bincount(run.replay_y).tolist() == [4, 4, 4]
    assert run.replay_y.dtype == np.int64
    assert run.replay_x.dtype == TRAIN.x.dtype
    rows = {(row.tobytes(), int(label)) for row, label in zip(TRAIN.x[:], TRAIN.y, strict=True)}
    assert all((row.tobytes(), int(label)) in rows for row, label in zip(run.replay_x, run.replay_y, strict=True))


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    rows=st.integers(0, 40),
    seed=st.integers(0, 5),
)
def test_sampled_rows_are_as_even_over_the_classes_as_they_allow(counts: list[int], rows: int, seed: int) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    index = rows_even_over_classes(y, rows, seed=seed)
    assert len(set(index.tolist())) == len(index) == min(rows, len(y))
    got = np.bincount(y[index], minlength=len(counts))
    # A class is behind another only where it has no more rows to give.
    for own, count in zip(got, counts, strict=True):
        assert own == count or own >= got.max() - 1


def test_the_recipe_tells_how_the_network_came_about_and_what_was_measured(tmp_path: Path) -> None:
    result = _run(tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["format"] == "edgeff-run"
    assert recipe["source"]["name"] == "mlp"
    assert recipe["source"]["arguments"] == {
        "input_shape": [8],
        "classes": ["a", "b", "c"],
        "width": 0.05,
        "seed": 0,
    }
    assert recipe["settings"]["epochs"] == 2
    assert recipe["split"]["train"]["rows"] == 60
    assert sum(recipe["split"]["train"]["rows_per_class"].values()) == 60
    assert recipe["split"]["validation"]["groups"] == [0, 1, 2]
    assert recipe["network"]["classes"] == ["a", "b", "c"]
    assert recipe["best_epoch"] == result.best_epoch
    assert [metrics["epoch"] for metrics in recipe["metrics"]] == [1, 2]


def test_the_checkpoint_holds_tensors_and_plain_values_only(tmp_path: Path) -> None:
    _run(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(state) == {"weights", "optimizers", "history", "best_epoch", "best", "identity"}


def test_reading_a_run_needs_no_checkpoint(tmp_path: Path) -> None:
    result = _run(tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    assert torch.equal(load_run(tmp_path).network(torch.ones(1, 8)), result.network(torch.ones(1, 8)))


_FACTORY = """
from torch import nn
from edgeff.model import LocalBlock, LocalNetwork

def tiny(hidden=4):
    blocks = [LocalBlock(nn.Linear(8, hidden)), LocalBlock(nn.Linear(hidden, hidden))]
    return LocalNetwork(blocks, input_shape=(8,), classes=["a", "b", "c"])
"""


def test_a_network_from_a_file_travels_with_its_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(_FACTORY)
    result = _run(tmp_path / "run", network=load_factory(f"{file}:tiny", arguments={"hidden": 5}))
    file.unlink()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    run = load_run(moved)
    assert torch.equal(run.network(torch.ones(1, 8)), result.network(torch.ones(1, 8)))
    assert str(tmp_path) not in (moved / "recipe.json").read_text()


def _own_network(hidden: int = 4) -> LocalNetwork:
    return LocalNetwork([LocalBlock(nn.Linear(8, hidden))], input_shape=(8,), classes=["a", "b", "c"])


def test_a_network_made_in_code_has_to_be_given_again(tmp_path: Path) -> None:
    result = _run(tmp_path, network=_own_network())
    with pytest.raises(RunError, match="does not say how its network is built"):
        load_run(tmp_path)
    run = load_run(tmp_path, network=_own_network())
    assert torch.equal(run.network(torch.ones(1, 8)), result.network(torch.ones(1, 8)))
    with pytest.raises(ModelError, match=r"tensor `block1.\S+` is of shape \(4, 8\), needed \(5, 8\)"):
        load_run(tmp_path, network=_own_network(5))


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    _run(tmp_path)
    with pytest.raises(RunError, match="holds a run already"):
        _run(tmp_path)


def test_a_run_that_another_process_works_at_is_refused(tmp_path: Path) -> None:
    _run(tmp_path)
    with (
        locked(tmp_path / "replay.safetensors", what="it"),
        pytest.raises(RunError, match=r"^the run in `.*` is in use by another process$"),
    ):
        pretrain(_network(), TRAIN, VALIDATION, PREPROCESSING, SETTINGS, out=tmp_path, resume=True)
    pretrain(_network(), TRAIN, VALIDATION, PREPROCESSING, SETTINGS, out=tmp_path, resume=True)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is not a folder"):
        _run(tmp_path / "file")
    with pytest.raises(RunError, match="cannot write into `"):
        _run(tmp_path / "file" / "deeper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": replace(SETTINGS, learning_rate=0.5)}, "its setting learning_rate differs"),
        ({"network": _network(seed=0).regroup("2-layer")}, "its network differs"),
        ({"train": TRAIN.select(np.arange(40))}, "its number of training rows differs"),
    ],
)
def test_another_run_cannot_be_resumed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _run(tmp_path)
    given = {"network": _network(), "train": TRAIN, "settings": SETTINGS, **change}
    with pytest.raises(RunError, match=f"cannot be resumed: {message}"):
        pretrain(
            given["network"], given["train"], VALIDATION, PREPROCESSING, given["settings"], out=tmp_path, resume=True
        )


def test_threads_may_differ_when_a_run_is_resumed(tmp_path: Path) -> None:
    result = _run(tmp_path)
    again = pretrain(
        _network(), TRAIN, VALIDATION, PREPROCESSING, replace(SETTINGS, threads=1), out=tmp_path, resume=True
    )
    assert again.history == result.history


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    _run(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(RunError, match="cannot be read: it is damaged or not of edgeff"):
        pretrain(_network(), TRAIN, VALIDATION, PREPROCESSING, SETTINGS, out=tmp_path, resume=True)


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "recipe.json").unlink(), "is not a run folder: no `recipe.json`"),
        (lambda folder: (folder / "recipe.json").write_text("{"), r"recipe.json` cannot be read"),
        (lambda folder: (folder / "recipe.json").write_text("[]"), "is not a recipe of edgeff"),
        (lambda folder: _edit(folder, format="x"), "is not a recipe of edgeff"),
        (lambda folder: _edit(folder, format_version=3), "has format version 3, this edgeff reads 2"),
        (lambda folder: _edit(folder, preprocessing={}), "recipe.json` is damaged: KeyError: 'input'"),
        (lambda folder: _edit(folder, best_epoch=7), "is damaged: best epoch 7 of 2"),
        (lambda folder: _edit(folder, metrics=[]), "has not finished its first epoch"),
        (lambda folder: (folder / "best.safetensors").unlink(), "best.safetensors` cannot be read"),
        (lambda folder: (folder / "best.safetensors").write_bytes(b"123"), "best.safetensors` cannot be read"),
        (
            lambda folder: (folder / "replay.safetensors").write_bytes(
                safetensors.numpy.save({"x": np.zeros(1, np.float32)})
            ),
            "replay.safetensors` has no tensor `y`",
        ),
    ],
)
def test_damaged_runs_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    _run(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match=message):
        load_run(tmp_path)
