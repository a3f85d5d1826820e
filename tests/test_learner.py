from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeff.fusion import LogProbabilitySum
from edgeff.learner import Learner, assess, evaluate, learn_batch, torch_optimizer
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer, rates, slots
from edgeff.presets import preset
from edgeff.pretrain_settings import PretrainSettings
from edgeff.relation import SimilarityMatching, SupervisedContrast


def _network() -> LocalNetwork:
    torch.manual_seed(0)
    blocks = [
        LocalBlock(nn.Sequential(nn.Linear(6, 8), nn.ReLU())),
        LocalBlock(nn.Sequential(nn.Linear(8, 8), nn.ReLU())),
        LocalBlock(nn.Sequential(nn.Linear(8, 5), nn.ReLU())),
    ]
    return LocalNetwork(blocks, input_shape=(6,), classes=3)


def _batch(rows: int = 7) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=draw), torch.randint(0, 3, (rows,), generator=draw)


def _learners(network: LocalNetwork, **settings: Any) -> list[Learner]:
    chosen = PretrainSettings(**{"learning_rate": 0.1, "schedule": "constant", **settings})
    return [Learner(block, chosen, steps=10) for block in network.sequence]


def test_local_gradients_are_those_of_each_blocks_own_loss_alone() -> None:
    # SGD without momentum and decay moves by exactly learning rate x gradient, so the step shows the gradient.
    network, reference = _network(), _network()
    x, y = _batch()
    learners = _learners(network, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    losses = learn_batch(learners, x, y, step=1)

    a = x
    for learner, block in zip(learners, reference.sequence, strict=True):
        handover, readings = block(a)
        loss = nn.functional.cross_entropy(readings[0].scores, y)
        gradients = torch.autograd.grad(loss, list(block.parameters()))
        torch.testing.assert_close(losses[block.name], loss.detach())
        for moved, before, gradient in zip(learner.parameters, block.parameters(), gradients, strict=True):
            torch.testing.assert_close(moved.detach(), before.detach() - 0.1 * gradient)
        # The next block saw the hand-over of the weights before the update.
        a = handover.detach()


PLAIN = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("settings", [PLAIN, {"optimizer": "adamw"}, {**PLAIN, "gradient_clip": 1e-2}])
def test_micro_batches_give_the_update_of_the_whole_batch_where_no_rows_are_compared(
    size: int, settings: Mapping[str, Any]
) -> None:
    whole, parts = _network().double(), _network().double()
    x, y = _batch()
    x = x.double()
    weight = torch.rand(7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for one, other in zip(_learners(whole, **settings), _learners(parts, **settings, micro_batch=size), strict=True):
        expected, loss = one.learn(x, y, weight, step=1)
        handover, found = other.learn(x, y, weight, step=1)
        torch.testing.assert_close(handover, expected)
        torch.testing.assert_close(found, loss)
        assert not handover.requires_grad
        assert not found.requires_grad
        x = expected
    for key, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[key], tensor)
    assert not torch.equal(
        whole.tensors()["block1.transform.0.weight"], _network().double().tensors()["block1.transform.0.weight"]
    )


def _related() -> LocalNetwork:
    torch.manual_seed(0)
    blocks = [
        LocalBlock(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), relation=SimilarityMatching(2.0)),
        LocalBlock(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), relation=SupervisedContrast(2.0, size=4), probe=True),
    ]
    return LocalNetwork(blocks, input_shape=(6,), classes=3)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_rows_are_compared_within_a_micro_batch(size: int) -> None:
    network, reference, whole = _related(), _related(), _related()
    x, y = _batch()
    losses = learn_batch(_learners(network, **PLAIN, micro_batch=size), x, y, step=1)
    learn_batch(_learners(whole, **PLAIN), x, y, step=1)
    weight = torch.full((len(y),), 1.0 / len(y))
    for block in reference.sequence:
        handover, _ = block(x)
        loss = torch.zeros(())
        for start in range(0, len(y), size):
            own = slice(start, min(start + size, len(y)))
            _, readings = block(x[own])
            loss = loss + block.loss(readings, y[own], weight[own])
        gradients = torch.autograd.grad(loss, list(block.parameters()))
        torch.testing.assert_close(losses[block.name], loss.detach())
        x = handover.detach()
        with torch.no_grad():
            for parameter, gradient in zip(block.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    apart = {}
    for key, tensor in reference.tensors().items():
        torch.testing.assert_close(network.tensors()[key], tensor, atol=1e-6, rtol=1e-5)
        apart[key] = float((whole.tensors()[key] - tensor).abs().max())
    # The whole batch, compared as one, teaches something else.
    assert apart["block1.transform.0.weight"] > 1e-3
    assert apart["block2.transform.0.weight"] > 1e-3


class _Alive:
    """Which blocks have tensors that autograd keeps for a backward pass."""

    def __init__(self, network: LocalNetwork) -> None:
        self.running = ""
        self.saved: list[tuple[str, weakref.ref[Any]]] = []
        self.seen: list[tuple[str, set[str]]] = []
        for block in network.sequence:
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    def _enter(self, block: nn.Module, _: object) -> None:
        self.running = str(block.name)
        self.seen.append((f"before {self.running}", self.alive()))

    def _leave(self, block: nn.Module, _: object, __: object) -> None:
        self.seen.append((f"after {block.name}", self.alive()))

    def alive(self) -> set[str]:
        return {name for name, box in self.saved if box() is not None}

    def pack(self, tensor: Tensor) -> Any:
        box = _Box(tensor)
        self.saved.append((self.running, weakref.ref(box)))
        return box


class _Box:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize("layers", ["1-layer", "2-layer"])
def test_only_one_blocks_graph_is_alive_at_a_time(layers: Any, micro_batch: int) -> None:
    network = _network().regroup(layers)
    alive = _Alive(network)
    learners = _learners(network, micro_batch=micro_batch)
    x, y = _batch()
    with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda box: box.tensor):
        learn_batch(learners, x, y, step=1)
    assert alive.saved
    for block in network.sequence:
        seen = dict(alive.seen)
        assert seen[f"before {block.name}"] == set()
        assert seen[f"after {block.name}"] == {block.name}
    assert alive.alive() == set()
    # Gradients too are those of one block at a time.
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_count_of_living_graphs_would_notice_summed_losses() -> None:
    network = _network()
    alive = _Alive(network)
    x, y = _batch()
    weight = torch.full((len(y),), 1.0 / len(y))
    with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda box: box.tensor):
        outputs = network.block_outputs(x)
        total = sum(block.loss(o.readings, y, weight) for block, o in zip(network.sequence, outputs, strict=True))
    assert alive.alive() == {"block1", "block2", "block3"}
    del total


def test_a_block_without_trained_parameters_is_run_and_left_alone() -> None:
    network = LocalNetwork(
        [LocalBlock(nn.Flatten(), projection="fixed", temperature=1.0), LocalBlock(nn.Linear(6, 4))],
        input_shape=(6,),
        classes=3,
    )
    learners = _learners(network)
    assert learners[0].optimizer is None
    assert learners[0].state_dict() == {}
    learners[0].load_state_dict({})
    assert set(learn_batch(learners, *_batch(), step=1)) == {"block1", "block2"}


def test_frozen_parameters_stay_as_they_are() -> None:
    network = _network()
    frozen = network.get_parameter("blocks.0.transform.0.weight").requires_grad_(False)
    before = frozen.clone()
    learn_batch(_learners(network), *_batch(), step=1)
    assert torch.equal(frozen, before)


def test_the_gradient_of_a_block_is_clipped_to_a_norm() -> None:
    network = _network()
    before = {key: value.clone() for key, value in network.tensors().items()}
    learn_batch(
        _learners(network, optimizer="sgd", momentum=0.0, weight_decay=0.0, gradient_clip=1e-3), *_batch(), step=1
    )
    for block in network.sequence:
        moved = [(before[f"{block.name}.{key}"] - value).norm() for key, value in block.state_dict().items()]
        assert float(torch.stack(moved).norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_a_step_is_as_long_as_the_schedule_says() -> None:
    moved = []
    for step in (1, 10, 100):
        network = _network()
        before = network.tensors()["block1.transform.0.bias"].clone()
        settings = PretrainSettings(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0)
        learn_batch([Learner(block, settings, steps=100) for block in network.sequence], *_batch(), step=step)
        length = (network.tensors()["block1.transform.0.bias"] - before).norm().item()
        moved.append(length / settings.learning_rate_at(step, 100))
    assert moved[1:] == pytest.approx(moved[:1] * 2, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_state_of_another_device_is_taken_up_in_the_parameters_own_layout(optimizer: str) -> None:
    def learner(*, channels_last: bool) -> Learner:
        torch.manual_seed(0)
        network = preset("vgg8", input_shape=(3, 8, 8), classes=3, width=0.1)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        made = Learner(network.sequence[1], PretrainSettings(optimizer=optimizer), steps=9)  # type: ignore[arg-type]
        assert made.optimizer is not None
        for group in made.optimizer.param_groups:  # as on a GPU; torch has it on the CPU, too
            group["fused"] = channels_last
        return made

    x, y, weight = torch.randn(6, 12, 8, 8), torch.arange(6) % 3, torch.full((6,), 1 / 6)
    for there, here in ((True, False), (False, True)):
        first, alone, resumed = (learner(channels_last=last) for last in (there, here, here))
        assert resumed.optimizer is not None
        for one in (first, alone):
            one.learn(x, y, weight, step=1)
        resumed.block.load_state_dict(first.block.state_dict())
        resumed.load_state_dict(first.state_dict())
        assert [group["fused"] for group in resumed.optimizer.param_groups] == [here]
        for one in (alone, resumed):
            one.learn(x, y, weight, step=2)
        for own, other in zip(alone.parameters, resumed.parameters, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_mixed_precision_keeps_losses_hand_overs_and_weights_in_float32() -> None:
    # The settings are for a GPU; autocast does on a CPU what it does there.
    network, exact = _network(), _network()
    x, y = _batch()
    settings = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    learners = _learners(network, **settings, device="cuda", mixed_precision=True)
    handover, loss = learners[0].learn(x, y, torch.full((7,), 1 / 7), step=1)
    expected_handover, expected_loss = _learners(exact, **settings)[0].learn(x, y, torch.full((7,), 1 / 7), step=1)
    assert handover.dtype == loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    torch.testing.assert_close(loss, expected_loss, rtol=0.02, atol=0.02)
    torch.testing.assert_close(handover, expected_handover, rtol=0.05, atol=0.05)
    assert not torch.equal(handover, expected_handover)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(
    "chosen",
    [
        {"optimizer": "adamw", "weight_decay": 0.01},
        {"optimizer": "adamw", "weight_decay": 0.0},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    ],
)
def test_edgeffs_formulas_equal_torchs_optimisers_over_twenty_steps(
    chosen: Mapping[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    settings = PretrainSettings(**chosen)
    spec = settings.optimizer_spec()
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(4, 5, generator=draw, dtype=torch.float64).to(dtype)
    theirs = nn.Parameter(start.clone())
    torchs = torch_optimizer([theirs], settings)
    ours, state = start.clone(), {slot: torch.zeros_like(start) for slot in slots(spec)}
    for step in range(1, 21):
        learning_rate = settings.learning_rate_at(step, 20) + 1e-4
        gradient = torch.randn(4, 5, generator=draw, dtype=torch.float64).to(dtype)
        ours, state = optimizer(spec).update(ours, gradient, state, rates(spec, learning_rate, step), spec.settings)
        theirs.grad = gradient
        torchs.param_groups[0]["lr"] = learning_rate
        torchs.step()
        torch.testing.assert_close(ours, theirs.detach(), atol=tolerance, rtol=tolerance)


def test_an_evaluation_has_fused_and_single_accuracies() -> None:
    y = torch.tensor([0, 1, 2, 2])
    right = torch.log_softmax(5.0 * nn.functional.one_hot(y, 3).float(), dim=1)
    always_two = torch.log_softmax(torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3), dim=1)
    found = assess([always_two, right], y, LogProbabilitySum((0.0, 1.0)))
    assert found.readout_accuracy == (0.5, 1.0)
    assert found.accuracy == 1.0
    assert found.loss == pytest.approx(float(nn.functional.nll_loss(right, y)), rel=1e-6)
    assert found.rows == 4


def test_choosing_the_fusion_sets_the_network_to_it() -> None:
    network = _network()
    batches = [_batch(5), _batch(9)]
    found = evaluate(network, batches, choose="range")
    assert network.readout_weights == found.readout_weights
    assert found.rows == 14
    fixed = evaluate(network, batches)
    assert fixed == found
    assert not network.training
