from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from edgeff.batch_norm import BatchNormed, folded_tensors, with_batch_norm
from edgeff.dataset import Dataset
from edgeff.errors import ModelError
from edgeff.locality import check_locality
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.preprocess import fit_preprocessing
from edgeff.presets import preset
from edgeff.pretrain import evaluate_network, pretrain
from edgeff.pretrain_run import load_run
from edgeff.pretrain_settings import PretrainSettings

ROWS = np.random.default_rng(0)
IMAGES = Dataset(
    "images", ROWS.standard_normal((96, 1, 8, 8)).astype(np.float32) + 3.0, ROWS.integers(0, 3, 96).astype(np.int64)
)
SETTINGS = PretrainSettings(epochs=2, batch_size=16, learning_rate=0.01, batch_norm=True)


def _images(**rule: object) -> LocalNetwork:
    return preset("image-cnn", input_shape=(1, 8, 8), classes=3, width=0.2, rule=rule)  # type: ignore[arg-type]


def _with_statistics(network: LocalNetwork) -> LocalNetwork:
    """The network with batch norms of random, well-behaved numbers, as if it had been trained."""
    draw = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, BatchNormed):
            norm = module.norm
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                assert isinstance(tensor, Tensor)
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return network


def _bare_network(layer: nn.Module, *after: nn.Module, input_shape: tuple[int, ...] = (2, 6)) -> LocalNetwork:
    return LocalNetwork([LocalBlock(nn.Sequential(layer, *after, nn.ReLU()))], input_shape=input_shape, classes=3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv1d(2, 5, 3, stride=2), (2, 9)),
        (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 7)),
        (lambda: nn.Linear(6, 5), (6,)),
        (lambda: nn.Linear(6, 5), (3, 6)),
    ],
    ids=["conv1d", "conv2d-groups", "linear", "linear-of-a-sequence"],
)
def test_a_folded_layer_gives_what_layer_and_batch_norm_give_in_evaluation(
    layer: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    network = _bare_network(layer(), input_shape=shape)
    normed = _with_statistics(with_batch_norm(network)).eval()
    x = torch.randn(4, *shape)
    plain = copy.deepcopy(network).eval()
    plain.load_tensors(folded_tensors(normed))
    assert torch.allclose(normed(x), plain(x), atol=1e-5)
    assert not torch.allclose(normed(x), network.eval()(x), atol=1e-3)


def test_channels_are_normalised_by_the_batch_while_training() -> None:
    normed = with_batch_norm(_bare_network(nn.Linear(6, 5), input_shape=(3, 6)))
    layer = next(module for module in normed.modules() if isinstance(module, BatchNormed))
    output = layer(torch.randn(64, 3, 6) * 5 + 2).reshape(-1, 5)
    assert torch.allclose(output.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(output.var(0, unbiased=False), torch.ones(5), atol=1e-3)


def test_the_given_network_is_left_as_it_is() -> None:
    network = _images()
    before = copy.deepcopy(network.tensors())
    folded_tensors(with_batch_norm(network))
    assert not any(isinstance(module, BatchNormed) for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.tensors().items())


def test_every_convolution_is_normalised_but_not_what_has_a_norm_already() -> None:
    assert sum(isinstance(module, BatchNormed) for module in with_batch_norm(_images()).modules()) == 4
    assert sum(isinstance(module, BatchNormed) for module in with_batch_norm(_images(auxiliary=8)).modules()) == 8
    two = LocalBlock(nn.Sequential(nn.Conv1d(2, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv1d(4, 4, 1), nn.ReLU()))
    normed = with_batch_norm(LocalNetwork([two], input_shape=(2, 6), classes=3))
    assert [type(module) for module in normed.sequence[0].leaves()[0].transform.children()] == [
        nn.Conv1d,
        nn.GroupNorm,
        nn.ReLU,
        BatchNormed,
        nn.ReLU,
    ]


def _frozen() -> LocalNetwork:
    network = _bare_network(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3))
    for parameter in network.sequence[0].leaves()[0].transform[0].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    return network


class _Standardised(nn.Conv1d):
    """A layer whose output is no product with its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    "network",
    [
        _frozen,
        lambda: _bare_network(_Standardised(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3)),
        lambda: _bare_network(weight_norm(nn.Conv1d(2, 4, 3)), nn.ReLU(), nn.Conv1d(4, 4, 3)),
    ],
    ids=["frozen", "of-a-class-of-its-own", "weight-norm"],
)
def test_layers_that_are_frozen_or_compute_something_of_their_own_are_left_alone(
    network: Callable[[], LocalNetwork],
) -> None:
    given = network()
    normed = with_batch_norm(given)
    transform = normed.sequence[0].leaves()[0].transform
    assert [isinstance(module, BatchNormed) for module in transform.children()] == [False, False, True, False]
    assert folded_tensors(normed).keys() == given.tensors().keys()


class _Walked(nn.Module):
    """Treats its layers by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) if isinstance(layer, nn.Conv1d) else layer(x)
        return x


class _Peeking(nn.Module):
    """Looks at a layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layers[0].weight
        return self.layers(x) + weight.mean()  # type: ignore[operator, no-any-return, union-attr]


def _hooked() -> LocalNetwork:
    layer = nn.Conv1d(2, 4, 3)
    layer.register_forward_hook(lambda module, given, output: output.clamp(-0.2, 0.2))
    return _bare_network(layer)


def _tied() -> LocalNetwork:
    one, other = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)
    other.weight = one.weight
    return _bare_network(one, nn.ReLU(), other)


def _twice() -> LocalNetwork:
    layer = nn.Conv1d(2, 2, 1)
    return _bare_network(layer, nn.ReLU(), layer)


def _block(transform: nn.Module) -> LocalNetwork:
    return LocalNetwork([LocalBlock(transform)], input_shape=(2, 6), classes=3)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: preset("kws-dscnn", width=0.1), "network `kws-dscnn` has no layer for batch norm to come behind"),
        (lambda: _bare_network(nn.Conv1d(2, 4, 3, bias=False)), "block `block1`: .* into a Conv1d without a bias"),
        (_twice, "block `block1`: .* a Conv1d whose weights stand in two places"),
        (_tied, "block `block1`: .* a Conv1d whose weights stand in two places"),
        (lambda: _images(objective="forward-forward"), "block `block1` .* goodness is a size"),
        (_hooked, "network `network` is another one once batch norm is folded"),
        (lambda: _block(_Walked()), "network `network` is another one once batch norm is folded"),
        (lambda: _block(_Peeking()), "`network` cannot be trained with batch norm: 'BatchNormed' .* 'weight'"),
    ],
    ids=["nowhere", "no-bias", "twice", "tied", "forward-forward", "hooked", "walked", "peeking"],
)
def test_what_batch_norm_cannot_be_folded_into_is_refused(network: Callable[[], LocalNetwork], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        with_batch_norm(network())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "bp"},
        {"mode": "bp-deepsup"},
        {"layers": "2-layer"},
        {"layers": "2-layer", "losses": "all"},
        {"micro_batch": 8},
    ],
    ids=str,
)
def test_what_is_kept_is_a_network_without_batch_norm_and_is_what_was_validated(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    network, preprocessing = _images(auxiliary=8), fit_preprocessing(IMAGES, (1, 8, 8))
    settings = replace(SETTINGS, **changes)
    result = pretrain(network, IMAGES, IMAGES, preprocessing, settings, out=tmp_path / "run")
    assert not any(isinstance(module, BatchNormed) for module in result.network.modules())
    validated = result.best.validation
    # The network was validated with channels last: sums of another order.
    near = replace(validated, loss=pytest.approx(validated.loss, rel=1e-6))
    assert evaluate_network(result.network, IMAGES, preprocessing) == near
    read = load_run(tmp_path / "run").network
    assert all(torch.equal(value, read.tensors()[key]) for key, value in result.network.tensors().items())
    kept = safetensors.torch.load_file(tmp_path / "run" / "best.safetensors")
    assert kept.keys() == settings.prepare(network).tensors().keys()


def test_it_is_another_training_than_one_without() -> None:
    preprocessing = fit_preprocessing(IMAGES, (1, 8, 8))
    losses = [
        pretrain(_images(), IMAGES, IMAGES, preprocessing, replace(SETTINGS, batch_norm=on)).history[-1].train_loss
        for on in (False, True)
    ]
    assert losses[0] != losses[1]


def test_a_run_that_is_interrupted_goes_on_bit_for_bit(tmp_path: Path) -> None:
    preprocessing = fit_preprocessing(IMAGES, (1, 8, 8))

    def stop(record: object) -> None:
        if getattr(record, "epoch", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(_images(), IMAGES, IMAGES, preprocessing, SETTINGS, out=tmp_path / "run", progress=stop)
    whole = pretrain(_images(), IMAGES, IMAGES, preprocessing, SETTINGS)
    resumed = pretrain(_images(), IMAGES, IMAGES, preprocessing, SETTINGS, out=tmp_path / "run", resume=True)
    assert resumed.history == whole.history
    assert all(torch.equal(value, resumed.network.tensors()[key]) for key, value in whole.network.tensors().items())


def test_blocks_with_batch_norm_learn_locally() -> None:
    found = check_locality(with_batch_norm(_images()))
    assert found.kind == "local"


@pytest.mark.parametrize(
    ("rows", "batch", "micro_batch", "message"),
    [
        (67, 34, 32, "67 rows make batches of 33, and micro-batches of 32 a single row of that"),
        (8, 1, 0, "8 rows make batches of 1"),
        (8, 4, 1, "8 rows make batches of 4, and micro-batches of 1 a single row of that"),
    ],
)
def test_single_rows_are_refused_before_a_run_begins(
    tmp_path: Path, rows: int, batch: int, micro_batch: int, message: str
) -> None:
    few = IMAGES.select(np.arange(96) < rows)
    settings = replace(SETTINGS, batch_size=batch, micro_batch=micro_batch)
    with pytest.raises(ModelError, match=f"batch norm needs more than one row at once: {message}$"):
        pretrain(_images(), few, IMAGES, fit_preprocessing(few, (1, 8, 8)), settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
