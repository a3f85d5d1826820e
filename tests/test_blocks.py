"""Blocks with a relation, a probe or auxiliary layers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from edgeff.blocks import ChainedBlock, LocalBlock
from edgeff.errors import ModelError
from edgeff.goodness import ChannelGroups, PooledGoodness
from edgeff.model import LocalNetwork
from edgeff.projection import NoProjection
from edgeff.relation import SimilarityMatching, SupervisedContrast
from edgeff.temperature import ClarityTemperature

WEIGHT = torch.full((6,), 1.0 / 6)


def rows() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=draw), torch.tensor([0, 1, 2, 0, 1, 0])


def built(**parts: object) -> LocalBlock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = LocalBlock(nn.Sequential(nn.Linear(5, 8), nn.ReLU()), name="first", **parts)  # type: ignore[arg-type]
        block.build((5,), 3)
    return block


def gradients(block: LocalBlock, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(block.parameters()), allow_unused=True)
    return {
        name: gradient
        for (name, _), gradient in zip(block.named_parameters(), found, strict=True)
        if gradient is not None
    }


def test_the_loss_of_a_relation_is_added_to_that_of_the_scores() -> None:
    block = built(relation=SimilarityMatching(0.5))
    x, y = rows()
    _, readings = block(x)
    ((scores, embedding),) = readings
    assert block.relation is not None
    torch.testing.assert_close(embedding, block.relation(block.transform(x)))
    expected = nn.functional.cross_entropy(scores, y) + block.relation.loss(embedding, y, WEIGHT, 3)
    torch.testing.assert_close(block.loss(readings, y, WEIGHT), expected)
    # What the block adds to the prediction is of its scores alone.
    torch.testing.assert_close(block.log_probabilities(readings), torch.log_softmax(scores, dim=1))


def test_the_readout_of_a_probe_learns_without_teaching_the_block() -> None:
    block, both = (built(relation=SupervisedContrast(size=4), probe=probe) for probe in (True, False))
    x, y = rows()
    _, readings = block(x)
    found = gradients(block, block.loss(readings, y, WEIGHT))
    ((_, embedding),) = readings
    assert block.relation is not None
    alone = gradients(block, block.relation.loss(block.relation(block.transform(x)), y, WEIGHT, 3))
    of_scores = gradients(block, nn.functional.cross_entropy(block(x)[1][0].scores, y))
    for name, gradient in found.items():
        expected = of_scores if name.startswith("readout.") else alone
        torch.testing.assert_close(gradient, expected[name])
    assert set(found) == {name for name, _ in block.named_parameters()}
    # The same block without the probe learns its transform from both.
    _, readings = both(x)
    other = gradients(both, both.loss(readings, y, WEIGHT))
    assert not torch.allclose(other["transform.0.weight"], found["transform.0.weight"])
    assert embedding is not None


def test_a_probe_without_a_relation_has_nothing_to_learn_from() -> None:
    with pytest.raises(ModelError, match="a block whose readout is a probe needs a relation to learn from"):
        LocalBlock(nn.Identity(), probe=True)


def test_auxiliary_layers_are_between_activation_and_goodness_and_no_part_of_what_is_handed_over() -> None:
    block = built(auxiliary=nn.Sequential(nn.Linear(8, 4), nn.ReLU()), temperature=1.0)
    x, y = rows()
    handover, ((scores, _),) = block(x)
    activation = block.transform(x)
    assert block.readout is not None
    assert block.readout.auxiliary is not None
    torch.testing.assert_close(scores, block.readout.projection(block.readout.auxiliary(activation)))
    torch.testing.assert_close(handover, nn.functional.layer_norm(activation, (8,)))
    assert block.handover_shape == (8,)
    found = gradients(block, block.loss(block(x)[1], y, WEIGHT))
    assert "readout.auxiliary.0.weight" in found
    assert "transform.0.weight" in found
    assert "Linear(in_features=8" in block.describe()["auxiliary"]["text"]


def test_a_temperature_may_look_at_goodness() -> None:
    block = built(temperature=ClarityTemperature())
    x, _ = rows()
    _, ((scores, _),) = block(x)
    assert block.readout is not None
    goodness = PooledGoodness()(block.transform(x))
    expected = block.readout.projection(goodness) / ClarityTemperature().value(goodness)
    torch.testing.assert_close(scores, expected)


def test_groups_of_channels_are_scores_without_a_projection() -> None:
    block = built(goodness=ChannelGroups(3), projection=NoProjection(), temperature=1.0)
    x, _ = rows()
    _, ((scores, _),) = block(x)
    torch.testing.assert_close(scores, ChannelGroups(3)(block.transform(x)))
    with pytest.raises(ModelError, match="block `first`: goodness of 8 numbers is no score for each of 3 classes"):
        built(projection=NoProjection())
    with pytest.raises(ModelError, match="block `first`: ChannelGroups needs a channel for each of 9 classes"):
        built(goodness=ChannelGroups(9), projection=NoProjection())


def test_only_a_block_with_a_relation_compares_rows() -> None:
    assert not built().compares_rows
    assert built(relation=SimilarityMatching()).compares_rows


def related_network() -> LocalNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [
            LocalBlock(nn.Sequential(nn.Linear(5, 8), nn.ReLU()), relation=SimilarityMatching(), probe=True),
            LocalBlock(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), relation=SimilarityMatching(), probe=True),
        ]
        return LocalNetwork(blocks, input_shape=(5,), classes=3)


def test_back_propagation_learns_from_the_scores_of_the_last_block_alone() -> None:
    network = related_network()
    (whole,) = network.regroup("whole").sequence
    x, y = rows()
    assert isinstance(whole, ChainedBlock)
    assert not whole.compares_rows
    _, readings = whole(x)
    loss = whole.loss(readings, y, WEIGHT)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(readings[-1].scores, y))
    loss.backward()
    # A probe's scores teach nothing but their readout; those of back-propagation teach all.
    assert whole.get_parameter("layers.0.transform.0.weight").grad is not None
    assert not [name for name, _ in whole.named_parameters() if "relation" in name]
    assert [block.compares_rows for block in network.sequence] == [True, True]  # nothing is shared with it


def test_deep_supervision_keeps_every_relation() -> None:
    (whole,) = related_network().regroup("whole", "all").sequence
    assert whole.compares_rows
    x, y = rows()
    _, readings = whole(x)
    expected = math.fsum(
        leaf.loss((own,), y, WEIGHT).item() for leaf, own in zip(whole.leaves(), readings, strict=True)
    )
    assert whole.loss(readings, y, WEIGHT).item() == pytest.approx(expected, rel=1e-6)
    described = json.loads(json.dumps(whole.describe()))
    assert [layer["relation"]["part"] for layer in described["layers"]] == ["SimilarityMatching"] * 2
    assert [layer["probe"] for layer in described["layers"]] == [True, True]


@pytest.mark.parametrize("choice", ["warm", None, object()])
def test_a_temperature_is_learned_a_number_or_a_part(choice: object) -> None:
    with pytest.raises(ModelError, match="temperature must be `learned`, a number or a part, got"):
        LocalBlock(nn.Identity(), temperature=choice)  # type: ignore[arg-type]


def test_batch_norm_behind_the_activation_is_refused_too() -> None:
    block = LocalBlock(nn.Linear(4, 6), auxiliary=nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)))
    with pytest.raises(ModelError, match=r"`BatchNorm1d` .* needs statistics of a whole batch"):
        block.build((4,), 3)


def test_a_pair_of_layers_keeps_the_last_ones_relation_and_the_whole_network_by_one_loss_none() -> None:
    blocks = [LocalBlock(nn.Linear(4, 4), relation=SimilarityMatching()) for _ in range(4)]
    network = LocalNetwork(blocks, input_shape=(4,), classes=3)
    pairs = network.regroup("2-layer", "last")
    assert [[leaf.relation is not None for leaf in block.leaves()] for block in pairs.sequence] == [[False, True]] * 2
    (whole,) = network.regroup("whole", "last").sequence
    assert not whole.compares_rows
