from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.fusion import LogProbabilitySum
from edgeff.goodness import PooledGoodness
from edgeff.handover import NoHandoverNorm
from edgeff.model import Block, ChainedBlock, LocalBlock, LocalNetwork, Source
from edgeff.projection import FixedProjection


def _conv(incoming: int, outgoing: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(incoming, outgoing, 3, padding=1), nn.ReLU())


def _network(**options: object) -> LocalNetwork:
    torch.manual_seed(0)
    blocks = [LocalBlock(_conv(2, 4)), LocalBlock(_conv(4, 4)), LocalBlock(_conv(4, 6))]
    return LocalNetwork(blocks, input_shape=(2, 8, 8), classes=3, **options)  # type: ignore[arg-type]


def _step_inputs(rows: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 2, 8, 8, generator=draw)
    return x, torch.randint(0, 3, (rows,), generator=draw), torch.full((rows,), 1.0 / rows)


def test_blocks_are_named_by_position_and_know_their_shapes() -> None:
    network = LocalNetwork(
        [LocalBlock(_conv(1, 4)), LocalBlock(nn.Flatten(), name="flat"), LocalBlock(nn.Linear(256, 5))],
        input_shape=(1, 8, 8),
        classes=["cat", "dog"],
    )
    assert [block.name for block in network.sequence] == ["block1", "flat", "block3"]
    assert [block.input_shape for block in network.sequence] == [(1, 8, 8), (4, 8, 8), (256,)]
    assert [block.handover_shape for block in network.sequence] == [(4, 8, 8), (256,), (5,)]
    assert network.classes == ("cat", "dog")
    assert _network().classes == ("0", "1", "2")


def test_a_block_gives_hand_over_with_its_graph_and_scores_over_temperature() -> None:
    network = _network()
    block = network.sequence[0]
    assert isinstance(block, LocalBlock)
    assert block.readout is not None
    x, _, _ = _step_inputs()
    handover, readings = block(x)
    activation = block.transform(x)
    assert handover.requires_grad
    expected = block.readout.projection(PooledGoodness()(activation)) / 1.05  # the middle of 0.1..2
    torch.testing.assert_close(readings[0].scores, expected)
    torch.testing.assert_close(block.log_probabilities(readings), torch.log_softmax(expected, dim=1))
    torch.testing.assert_close(handover, nn.functional.layer_norm(activation, activation.shape[1:]))


def test_goodness_sees_the_activation_before_normalisation() -> None:
    block = LocalBlock(nn.Identity(), projection="fixed")
    block.build((6,), 3)
    x = torch.randn(2, 6)
    (handover, ((scores, _),)), (scaled_handover, ((scaled_scores, _),)) = block(x), block(10 * x)
    torch.testing.assert_close(scaled_scores, 10 * scores)
    torch.testing.assert_close(scaled_handover, handover, atol=1e-3, rtol=1e-3)


def test_no_gradient_crosses_a_block() -> None:
    network = _network()
    x, y, weight = _step_inputs()
    outputs = network.block_outputs(x)
    assert not any(output.handover.requires_grad for output in outputs)
    for index, (block, output) in enumerate(zip(network.sequence, outputs, strict=True)):
        network.zero_grad(set_to_none=True)
        block.loss(output.readings, y, weight).backward()
        for other, candidate in enumerate(network.sequence):
            reached = [parameter.grad is not None for parameter in candidate.parameters()]
            assert all(reached) if other == index else not any(reached)


def test_the_prediction_is_the_weighted_sum_of_the_blocks_log_probabilities() -> None:
    network = _network(fusion=LogProbabilitySum((0.0, 1.0, 0.5)))
    x, _, _ = _step_inputs()
    assert network.fusion_weights == network.readout_weights == (0.0, 1.0, 0.5)
    parts = [output.log_probabilities for output in network.block_outputs(x)]
    torch.testing.assert_close(network(x), parts[1] + 0.5 * parts[2])


def test_building_changes_neither_weights_nor_modes_nor_the_generator_of_torch() -> None:
    transform = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4))
    transform[0].eval()
    before = {key: value.clone() for key, value in transform.state_dict().items()}
    state = torch.get_rng_state()
    LocalBlock(transform, projection=FixedProjection(0)).build((4,), 2)
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in transform.modules()] == [True, False, True, True]
    for key, value in transform.state_dict().items():
        assert torch.equal(value, before[key])


def test_tokens_come_in_as_int64() -> None:
    blocks = [
        LocalBlock(nn.Embedding(10, 6), goodness=PooledGoodness(layout="tokens")),
        LocalBlock(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), goodness=PooledGoodness(layout="tokens")),
    ]
    network = LocalNetwork(blocks, input_shape=(7,), classes=2, input_dtype="int64")
    assert network(torch.randint(0, 10, (3, 7))).shape == (3, 2)
    assert network.sequence[1].handover_shape == (7, 6)


class _Returns(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            "`BatchNorm1d` .transform `1`. needs statistics of a whole",
        ),
        (nn.Linear(5, 4), r"the transform fails on rows of shape \(4,\) \(torch.float32\): "),
        (_Returns(lambda x: (x, x)), "must return one floating-point tensor, got `tuple`"),
        (_Returns(lambda x: x > 0), "must return one floating-point tensor, got a tensor of torch.bool"),
        (_Returns(lambda x: x.flatten()), r"must map \(N, \*row\) to \(N, \*row\), got \(4,\) for N = 1"),
        (_Returns(lambda x: x @ x.T), r"must map \(N, \*row\) to \(N, \*row\), got \(1, 1\) for N = 1"),
        (_Returns(lambda x: x - x.mean(dim=0)), "output for a row depends on the other rows"),
        (_Returns(lambda x: torch.dropout(x, 0.5, True)), "other values for the same rows: its forward draws random"),
        (nn.GRU(4, 4), "must return one floating-point tensor, got `tuple`"),
    ],
)
def test_a_transform_that_does_not_treat_rows_one_by_one_is_refused(transform: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=f"block `mine`: .*{message}"):
        LocalBlock(transform, name="mine").build((4,), 2)


def test_the_hint_for_batch_norm_names_group_norm() -> None:
    with pytest.raises(ModelError) as caught:
        LocalBlock(nn.BatchNorm2d(3), name="mine").build((3, 4, 4), 2)
    assert "GroupNorm" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goodness": lambda a: a[:, :, None]}, r"goodness must be of shape \(N, D\), got \(2, 4, 1\) for N = 2"),
        ({"projection": nn.Linear(3, 2)}, r"the projection does not take goodness of shape \(N, 4\)"),
        ({"projection": nn.Linear(4, 3)}, r"scores must be of shape \(N, 2\), got \(2, 3\) for N = 2"),
    ],
)
def test_parts_that_do_not_fit_one_another_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LocalBlock(nn.Linear(4, 4), **options).build((4,), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": "wild"}, "projection must be `learned`, `fixed` or a module, got `wild`"),
        ({"temperature": "wild"}, "temperature must be `learned`, a number or a part, got `wild`"),
    ],
)
def test_unknown_parts_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LocalBlock(nn.Linear(4, 4), **options)  # type: ignore[arg-type]


def _named(*names: str) -> list[Block]:
    return [LocalBlock(nn.Linear(4, 4), name=name) for name in names]


_SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        ([], {}, "at least one block, got none"),
        (_named("a", "a"), {}, "block names must be unique, got `a` twice"),
        (_named("a.b"), {}, "block name `a.b` must consist of letters, digits"),
        (_named("a"), {"classes": 1}, "at least two classes, got 1"),
        (_named("a"), {"classes": ["x", "x"]}, "class names must be unique, got `x` twice"),
        (_named("a"), {"input_dtype": "int8"}, "input_dtype must be `float32` or `int64`, got `int8`"),
        (
            [LocalBlock(_SHARED), LocalBlock(_SHARED)],
            {},
            "blocks `block1` and `block2` share the parameter `transform.weight`",
        ),
    ],
)
def test_networks_that_make_no_sense_are_refused(blocks: list[Block], options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LocalNetwork(blocks, **{"input_shape": (4,), "classes": 2, **options})  # type: ignore[arg-type]


def test_parts_can_be_exchanged() -> None:
    block = LocalBlock(
        _conv(2, 4),
        goodness=PooledGoodness(cells=2, power=2),
        projection="fixed",
        temperature=0.5,
        handover=NoHandoverNorm(),
    )
    block.build((2, 8, 8), 3)
    x, _, _ = _step_inputs()
    handover, ((scores, _),) = block(x)
    activation = block.transform(x)
    assert torch.equal(handover, activation)
    matrix = block.state_dict()["readout.projection.matrix"]
    torch.testing.assert_close(scores, PooledGoodness(2, 2)(activation) @ matrix / 0.5)
    assert [name for name, _ in block.named_parameters()] == ["transform.0.weight", "transform.0.bias"]


def test_the_whole_with_the_last_loss_is_back_propagation() -> None:
    network = _network()
    whole = network.regroup("whole")
    x, y, weight = _step_inputs()
    (block,) = whole.sequence
    handover, readings = block(x)
    block.loss(readings, y, weight).backward()

    a = x
    first, second, third = (leaf for leaf in network.sequence if isinstance(leaf, LocalBlock))
    for leaf in (first, second):
        a = leaf.handover(leaf.transform(a))
    activation = third.transform(a)
    assert third.readout is not None
    expected = nn.functional.cross_entropy(third.readout(activation), y)
    expected.backward()
    gradients = {key: parameter.grad for key, parameter in block.named_parameters()}
    for index, leaf in enumerate((first, second, third)):
        torch.testing.assert_close(gradients[f"layers.{index}.transform.0.weight"], leaf.transform[0].weight.grad)
    assert not any("readout" in key for key in gradients if not key.startswith("layers.2."))
    torch.testing.assert_close(handover, third.handover(activation))
    assert block.readouts_count == 1


def test_the_whole_with_all_losses_is_back_propagation_with_deep_supervision() -> None:
    network = _network()
    whole = network.regroup("whole", "all")
    x, y, weight = _step_inputs()
    (block,) = whole.sequence
    _, readings = block(x)
    assert len(readings) == 3
    torch.testing.assert_close(
        block.loss(readings, y, weight), sum(nn.functional.cross_entropy(one.scores, y) for one in readings)
    )
    # The forward pass is that of the local network: only where gradients stop differs.
    torch.testing.assert_close(whole(x), network(x))
    block.loss(readings[2:] * 3, y, weight).backward()
    assert block.get_parameter("layers.0.transform.0.weight").grad is not None


def test_blocks_of_two_layers_learn_together_and_stop_gradients_between_them() -> None:
    network = _network().regroup("2-layer", "all")
    assert [block.name for block in network.sequence] == ["block1-block2", "block3"]
    x, y, weight = _step_inputs()
    outputs = network.block_outputs(x)
    network.sequence[1].loss(outputs[1].readings, y, weight).backward()
    assert all(parameter.grad is None for parameter in network.sequence[0].parameters())
    assert network.sequence[0].handover_shape == network.sequence[1].input_shape == (4, 8, 8)


@pytest.mark.parametrize("layers", ["1-layer", "2-layer", "whole"])
@pytest.mark.parametrize("losses", ["last", "all"])
def test_regrouping_shares_no_storage_and_keeps_the_weights(layers: str, losses: str) -> None:
    network = _network()
    twin = network.regroup(layers, losses)  # type: ignore[arg-type]
    own = {value.data_ptr() for value in network.tensors().values()}
    assert own.isdisjoint(value.data_ptr() for value in twin.tensors().values())
    x, _, _ = _step_inputs()
    last = [one.block_outputs(x)[-1].readout_log_probabilities[-1] for one in (network, twin)]
    torch.testing.assert_close(last[0], last[1])


def test_regrouping_carries_the_weights_of_the_readouts_that_stay() -> None:
    network = _network(fusion=LogProbabilitySum((0.0, 1.0, 0.5)))
    deep = network.regroup("whole", "all")
    assert deep.readout_weights == (0.0, 1.0, 0.5)
    assert deep.fusion_weights == (1.0,)
    assert deep.regroup("1-layer").fusion_weights == (0.0, 1.0, 0.5)
    assert network.regroup("2-layer").readout_weights == (1.0, 0.5)
    nothing_left = _network(fusion=LogProbabilitySum((1.0, 0.0, 0.0))).regroup("whole")
    assert nothing_left.readout_weights == (1.0,)


def test_what_predicts_ends_with_the_last_readout_that_counts() -> None:
    network = _network(fusion=LogProbabilitySum((0.0, 1.0, 0.0)))
    short = network.predicting()
    assert [block.name for block in short.sequence] == ["block1", "block2"]
    assert short.fusion_weights == (0.0, 1.0)
    x, _, _ = _step_inputs()
    torch.testing.assert_close(short(x), network(x), rtol=0, atol=0)
    own = {value.data_ptr() for value in network.tensors().values()}
    assert own.isdisjoint(value.data_ptr() for value in short.tensors().values())
    whole = network.regroup("2-layer", "all").predicting()  # the end of the second block's fusion is silent as a whole
    assert [block.name for block in whole.sequence] == ["block1-block2"]
    assert whole.readout_weights == (0.0, 1.0)
    everything = _network().predicting()
    assert len(everything.blocks) == 3


def test_a_readout_that_was_dropped_cannot_come_back() -> None:
    whole = _network().regroup("whole")
    with pytest.raises(ModelError, match="layer `block1` has no readout: an earlier regrouping"):
        whole.regroup("1-layer")
    assert whole.regroup("whole").readout_weights == (1.0,)


def test_unknown_regroupings_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot regroup into `3-layer` with losses `last`"):
        _network().regroup("3-layer")  # type: ignore[arg-type]


def test_regrouping_is_noted_in_the_source() -> None:
    network = _network(source=Source("preset", "mine"))
    twin = network.regroup("2-layer", "all").regroup("whole")
    assert twin.source is not None
    assert twin.source.regroups == (("2-layer", "all"), ("whole", "last"))
    assert network.source == Source("preset", "mine")


def test_a_chained_block_can_be_built_by_hand_and_drops_no_readout_of_the_blocks_it_was_given() -> None:
    inner = [LocalBlock(_conv(2, 4)), LocalBlock(_conv(4, 4))]
    network = LocalNetwork(
        [ChainedBlock(inner, losses="last"), LocalBlock(_conv(4, 3))], input_shape=(2, 8, 8), classes=3
    )
    assert network.sequence[0].readouts_count == 1
    assert inner[0].readout is not None
    assert [leaf.name for leaf in network.sequence[0].leaves()] == ["block1-1", "block1-2"]
    assert network(torch.randn(2, 2, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChainedBlock([]), "at least one block, got none"),
        (lambda: ChainedBlock(_named("a"), losses="first"), "losses must be `last` or `all`, got `first`"),  # type: ignore[arg-type]
        (
            lambda: ChainedBlock([LocalBlock(nn.Linear(4, 4)).without_readout()], name="c").build((4,), 2),
            "block `c`: its last layer has no readout",
        ),
    ],
)
def test_chained_blocks_that_cannot_learn_are_refused(make: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()  # type: ignore[operator]


def test_weights_go_out_and_in_by_block_and_name() -> None:
    network, other = _network(), _network()
    with torch.no_grad():
        for value in other.tensors().values():
            value.add_(1.0)
    tensors = other.tensors()
    assert "block1.transform.0.weight" in tensors
    network.load_tensors(tensors)
    x, _, _ = _step_inputs()
    assert torch.equal(network(x), other(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("block1.transform.0.bias"), "tensor `block1.transform.0.bias` is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "tensor `extra` is unknown"),
        (
            lambda t: t.update({"block1.transform.0.bias": torch.zeros(9)}),
            r"tensor `block1.transform.0.bias` is of shape \(9,\), needed \(4,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: object, message: str) -> None:
    tensors = _network().tensors()
    change(tensors)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        _network().load_tensors(tensors)


@pytest.mark.parametrize("layers", ["1-layer", "whole"])
def test_a_network_describes_itself_as_json(layers: str) -> None:
    described = json.loads(json.dumps(_network().regroup(layers, "all").describe(), allow_nan=False))  # type: ignore[arg-type]
    block = described["blocks"][0]
    parts = block if layers == "1-layer" else block["layers"][0]
    assert parts["goodness"] == {"part": "PooledGoodness", "cells": 4, "power": 1, "layout": "channels"}
    assert parts["projection"]["part"] == "LearnedProjection"
    assert parts["temperature"] == {"part": "LearnedTemperature", "minimum": 0.1, "maximum": 2.0}
    assert parts["handover"]["part"] == "LayerNormHandover"
    assert parts["objective"]["label_smoothing"] == 0.0
