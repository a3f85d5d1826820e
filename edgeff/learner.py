"""One block's update on torch, and what a network's readouts say about data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeff.blocks import Reading
from edgeff.fusion import FUSIONS, FusionName, LogProbabilitySum
from edgeff.model import Block, LocalNetwork
from edgeff.pretrain_settings import PretrainSettings


class Learner:
    """A block, its own optimiser and its own schedule.

    Args:
        block: Trained in place.
        settings: Optimiser, rates, clipping, precision.
        steps: Of the whole run, for the schedule.
    """

    def __init__(self, block: Block, settings: PretrainSettings, *, steps: int) -> None:
        self.block = block
        self.settings = settings
        self.steps = steps
        self.parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
        self.optimizer = torch_optimizer(self.parameters, settings) if self.parameters else None

    def learn(self, x: Tensor, y: Tensor, row_weight: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
        """One update. Nothing of the block's graph is left alive on return.

        Args:
            x: (N, *input_shape), without a graph.
            y: (N,) int64.
            row_weight: (N,) float32, 1/N for the mean.
            step: From 1, for the schedule.

        Returns:
            Hand-over (N, *handover_shape) and loss (), both of the weights before the update, detached.
        """
        size = self.settings.micro_batch or len(y)
        parts = [slice(start, start + size) for start in range(0, len(y), size)]
        found = [self._gradients(x[part], y[part], row_weight[part]) for part in parts]
        if self.optimizer is not None:
            self._update(self.optimizer, step)
        if len(found) == 1:
            return found[0]
        return torch.cat([handover for handover, _ in found]), torch.stack([loss for _, loss in found]).sum()

    def _gradients(self, x: Tensor, y: Tensor, row_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of some rows; their hand-over and loss, detached."""
        mixed = self.settings.mixed_precision
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            handover, readings = self.block(x)
        if mixed:
            readings = tuple(_in_float32(reading) for reading in readings)
        loss = self.block.loss(readings, y, row_weight)
        if self.optimizer is not None:
            torch.autograd.backward(loss)
        handover = handover.detach()
        # Autocast leaves some activations in bfloat16; what blocks exchange is float32, as on the device.
        return handover.float() if mixed else handover, loss.detach()

    def _update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        if self.settings.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(step, self.steps)
        optimizer.step()
        # Gradients of one block at a time: None frees them before the next block runs.
        optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return {} if self.optimizer is None else self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`, which may be of another device."""
        if self.optimizer is None:
            return
        own = {"fused": self.optimizer.param_groups[0]["fused"]}
        groups = [{**group, **own} for group in state["param_groups"]]
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if value is not None and value.shape == parameter.shape:
                    # In the parameter's own layout, which fused kernels take for granted.
                    values[name] = torch.empty_like(parameter).copy_(value)


def _in_float32(reading: Reading) -> Reading:
    return Reading(reading.scores.float(), None if reading.embedding is None else reading.embedding.float())


def torch_optimizer(parameters: list[torch.nn.Parameter], settings: PretrainSettings) -> torch.optim.Optimizer:
    """Torch's optimiser with the settings that `edgeff.optimizer` has."""
    own = settings.optimizer_spec().settings
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, settings.learning_rate, momentum=own["momentum"], weight_decay=own["weight_decay"]
        )
    return torch.optim.AdamW(
        parameters,
        settings.learning_rate,
        betas=(own["beta1"], own["beta2"]),
        eps=own["epsilon"],
        weight_decay=own["weight_decay"],
        # One kernel for all parameters: small blocks on a GPU wait for launches more than for arithmetic.
        fused=all(parameter.is_cuda for parameter in parameters),
    )


def learn_batch(learners: Iterable[Learner], x: Tensor, y: Tensor, *, step: int) -> dict[str, Tensor]:
    """Update block after block on one batch; each starts from the detached hand-over of the one before.

    Returns:
        Mean loss of the batch by block, detached.
    """
    row_weight = torch.full((len(y),), 1.0 / len(y), device=x.device)
    losses = {}
    for learner in learners:
        x, losses[learner.block.name] = learner.learn(x, y, row_weight, step=step)
    return losses


@dataclass(frozen=True)
class Evaluation:
    """What a network makes of labelled rows.

    Attributes:
        accuracy: Of the fused prediction, 0..1.
        loss: Mean cross-entropy of the fused distribution (softmax of the fused log-probabilities), nats.
        readout_accuracy: Of each readout by itself, over all blocks in order.
        readout_weights: Weights that made the fused prediction.
        rows: How many rows.
    """

    accuracy: float
    loss: float
    readout_accuracy: tuple[float, ...]
    readout_weights: tuple[float, ...]
    rows: int


@torch.no_grad()
def readout_outputs(network: LocalNetwork, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Log-probabilities (N, K) of each readout, and labels (N,), on the CPU. Leaves the network in evaluation mode."""
    network.eval()
    parts, labels = [], []
    for x, y in batches:
        outputs = network.outputs(x)
        parts.append([one.float().cpu() for output in outputs for one in output.readout_log_probabilities])
        labels.append(y.cpu())
    return [torch.cat(readout) for readout in zip(*parts, strict=True)], torch.cat(labels)


def assess(log_probabilities: list[Tensor], y: Tensor, fusion: LogProbabilitySum) -> Evaluation:
    """Accuracy and loss of readouts (N, K) each, and of their fusion, on labels (N,)."""
    fused = fusion.fuse(log_probabilities)
    return Evaluation(
        accuracy=_accuracy(fused, y),
        loss=float(torch.nn.functional.cross_entropy(fused.double(), y)),
        readout_accuracy=tuple(_accuracy(one, y) for one in log_probabilities),
        readout_weights=fusion.for_count(len(log_probabilities)),
        rows=len(y),
    )


def evaluate(
    network: LocalNetwork, batches: Iterable[tuple[Tensor, Tensor]], *, choose: FusionName | None = None
) -> Evaluation:
    """Run a network over batches.

    Args:
        network: Left in evaluation mode.
        batches: Features (n, *row) and labels (n,), on the network's device.
        choose: Choose how the readouts make the prediction on these very rows, as one may on validation data only, and
            set the network to it; None for the network's own weights.
    """
    log_probabilities, y = readout_outputs(network, batches)
    if choose:
        network.fuse_readouts(FUSIONS[choose](log_probabilities, y))
    return assess(log_probabilities, y, LogProbabilitySum(network.readout_weights))


def _accuracy(log_probabilities: Tensor, y: Tensor) -> float:
    return int((log_probabilities.argmax(dim=1) == y).sum()) / len(y)
