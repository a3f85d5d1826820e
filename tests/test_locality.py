"""The public check of locality: it passes what is local, and fails every leak that is planted."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny_run import TinyRun, edgeff
from torch import Tensor, nn

from edgeff.goodness import PooledGoodness
from edgeff.locality import check_locality, local_update
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.presets import PRESETS, preset

RATE = 0.1


def network(dropout: float = 0.0) -> LocalNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [
            LocalBlock(nn.Sequential(nn.Linear(size, 6), nn.ReLU(), nn.Dropout(dropout)), goodness=PooledGoodness())
            for size in (5, 6, 6)
        ]
        return LocalNetwork(blocks, input_shape=(5,), classes=3)


def step(learning: LocalNetwork, loss: Tensor) -> None:
    loss.backward()
    with torch.no_grad():
        for parameter in learning.parameters():
            if parameter.grad is not None:
                parameter.sub_(RATE * parameter.grad)
                parameter.grad = None


def row_weight(y: Tensor) -> Tensor:
    return torch.full((len(y),), 1.0 / len(y))


def summed_without_detaching(learning: LocalNetwork, x: Tensor, y: Tensor) -> None:
    total = torch.zeros(())
    for block in learning.sequence:
        x, readings = block(x)
        total = total + block.loss(readings, y, row_weight(y))
    step(learning, total)


def summed_and_detached(learning: LocalNetwork, x: Tensor, y: Tensor) -> None:
    """Learns as local learning does, and holds every block's graph until the end."""
    total = torch.zeros(())
    for block in learning.sequence:
        handover, readings = block(x)
        total, x = total + block.loss(readings, y, row_weight(y)), handover.detach()
    step(learning, total)


def hybrid_readout(learning: LocalNetwork, x: Tensor, y: Tensor) -> None:
    """A last readout over what all blocks hand over, whose gradient reaches them."""
    for block in learning.sequence:
        x, readings = block(x)
    step(learning, block.loss(readings, y, row_weight(y)))


def losses_kept(learning: LocalNetwork, x: Tensor, y: Tensor) -> list[Tensor]:
    """Local, but what it returns holds a graph."""
    local_update(learning, x, y)
    _, readings = learning.sequence[0](x)
    return [learning.sequence[0].loss(readings, y, row_weight(y))]


def last_one_moves_the_first(learning: LocalNetwork, x: Tensor, y: Tensor) -> None:
    """No graph crosses a block: the influence goes by values alone."""
    local_update(learning, x, y)
    with torch.no_grad():
        first, last = (next(learning.sequence[number].parameters()) for number in (0, 2))
        first.mul_(1 + 1e-3 * last.abs().mean())


def summed_by_forward_itself(learning: LocalNetwork, x: Tensor, y: Tensor) -> None:
    """Holds every block's graph until the end, and calls blocks so that their hooks do not run."""
    total = torch.zeros(())
    for block in learning.sequence:
        handover, readings = block.forward(x)
        total, x = total + block.loss(readings, y, row_weight(y)), handover.detach()
    step(learning, total)


def last_projection_moves_the_first(learning: LocalNetwork, x: Tensor, y: Tensor) -> None:
    """The influence goes by a matrix that is not learnt."""
    local_update(learning, x, y)
    with torch.no_grad():
        first, last = (learning.sequence[number] for number in (0, 2))
        next(first.parameters()).mul_(1 + 1e-3 * next(last.buffers()).abs().mean())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_update_of_pretraining_is_local(dropout: float) -> None:
    found = check_locality(network(dropout))
    assert (found.local, found.kind, found.left) == (True, "local", 0)
    assert [(block.layers, block.reached_by, block.attached, block.held) for block in found.blocks] == [
        (1, (), False, 0)
    ] * 3


def test_summed_losses_over_hand_overs_that_are_not_detached_are_found() -> None:
    found = check_locality(network(), summed_without_detaching)
    first, second, last = found.blocks
    assert first.reached_by == (second.name, last.name)
    assert second.reached_by == (last.name,)
    assert [block.attached for block in found.blocks] == [False, True, True]
    assert 0 == first.held < second.held < last.held
    assert (found.local, found.kind) == (False, "hybrid")
    # Its loss depends on its own weights and those before alone.
    assert last.reached_by == ()


def test_blocks_are_watched_however_they_are_called() -> None:
    found = check_locality(network(), summed_by_forward_itself)
    assert [bool(block.held) for block in found.blocks] == [False, True, True]
    assert not found.local


def test_an_influence_of_what_a_later_block_does_not_learn_is_found() -> None:
    fixed = preset("mlp", rule={"projection": "fixed"}, width=0.1)
    assert check_locality(fixed).local
    found = check_locality(fixed, last_projection_moves_the_first)
    assert found.blocks[0].reached_by == (found.blocks[2].name,)


def test_graphs_that_are_held_until_the_end_are_found_though_the_result_is_that_of_local_learning() -> None:
    found = check_locality(network(), summed_and_detached)
    assert not any(block.reached_by or block.attached for block in found.blocks)
    assert [bool(block.held) for block in found.blocks] == [False, True, True]
    assert not found.local


def test_a_readout_whose_gradient_reaches_the_blocks_is_called_hybrid() -> None:
    found = check_locality(network(), hybrid_readout)
    assert found.kind == "hybrid"
    assert found.blocks[0].reached_by == tuple(block.name for block in found.blocks[1:])


def test_a_graph_that_outlives_the_update_is_found() -> None:
    found = check_locality(network(), losses_kept)
    assert all(block.local for block in found.blocks)
    assert found.left > 0
    assert not found.local


def test_an_influence_without_a_gradient_is_found() -> None:
    found = check_locality(network(), last_one_moves_the_first)
    first, second, last = found.blocks
    # What the second hands over changes what the last one learns, and so the first.
    assert (first.reached_by, second.reached_by, last.reached_by) == ((second.name, last.name), (), ())


def test_the_network_is_not_changed_nor_the_random_state() -> None:
    checked = network(0.5)
    before, state = copy.deepcopy(checked.state_dict()), torch.get_rng_state()
    check_locality(checked)
    assert all(torch.equal(tensor, before[name]) for name, tensor in checked.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("forward" in vars(block) for block in checked.blocks)


def test_one_block_of_all_layers_is_called_back_propagation() -> None:
    found = check_locality(network().regroup("whole"))
    assert (found.local, found.kind) == (True, "back-propagation")
    assert found.blocks[0].layers == 3


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"vgg8"}))
def test_every_preset_learns_locally(name: str) -> None:
    assert check_locality(preset(name, width=0.25)).kind == "local"


def test_the_command_shows_a_run_and_joined_blocks(tiny: TinyRun) -> None:
    done = edgeff("check-locality", tiny.run)
    assert done.exit_code == 0
    assert done.stdout.endswith("local: no block learns from a later one; 0 tensors held after the update\n")
    found = json.loads(edgeff("check-locality", tiny.run, "--blocks", "2-layer", "--json").stdout)
    assert [block["layers"] for block in found["blocks"]] == [2, 2]
    assert (found["local"], found["kind"], found["left"]) == (True, "local", 0)


LEAKING = """
from torch import nn
from edgeff.model import LocalBlock, LocalNetwork

class Reaching(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(5, 5)
        self.next = []
    def forward(self, x):
        out = self.own(x)
        return out + sum(later.own.weight.sum() for later in self.next)

def model():
    first, second = Reaching(), Reaching()
    first.next.append(second)
    return LocalNetwork([LocalBlock(first), LocalBlock(second)], input_shape=(5,), classes=3)
"""


def test_the_command_ends_with_1_where_a_block_reads_a_later_ones_weights(tmp_path: Path) -> None:
    (tmp_path / "leaking.py").write_text(LEAKING)
    done = edgeff("check-locality", "--model", f"{tmp_path / 'leaking.py'}:model")
    assert done.exit_code == 1
    assert "block1  1       block2" in done.stdout
    assert done.stderr.startswith("Error: learning is hybrid: block1\n\nhint: detach")


@pytest.mark.parametrize("arguments", [(), ("--preset", "har-cnn", "--model", "f.py:f")])
def test_the_command_wants_one_network(arguments: tuple[str, ...]) -> None:
    done = edgeff("check-locality", *arguments)
    assert done.exit_code == 2
    assert "give a pretraining RUN, --preset or --model" in done.stderr
