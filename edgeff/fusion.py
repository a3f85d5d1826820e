"""Fusion: how the scores of several readouts become one prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgeff.errors import ModelError
from edgeff.parts import Description

FusionName = Literal["range", "sum", "loss", "readout"]
# A readout that a trained fusion gives less than this part of the largest weight is left out, and need not be run.
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class LogProbabilitySum:
    """Fusion: a weighted sum of the log-probabilities of several readouts.

    Attributes:
        weights: One per readout; empty for 1 from `first_block` on.
        first_block: Where `weights` is empty: the first readout that counts, from 0. It is lowered to the last readout
            where there are fewer.
    """

    weights: tuple[float, ...] = ()
    first_block: int = 0

    def for_count(self, count: int) -> tuple[float, ...]:
        """The weights of `count` readouts.

        Raises:
            ModelError: Another number of weights, or no weight above 0.

        >>> LogProbabilitySum(first_block=1).for_count(3)
        (0.0, 1.0, 1.0)
        """
        first = min(self.first_block, count - 1)
        weights = self.weights or tuple(0.0 if index < first else 1.0 for index in range(count))
        if len(weights) != count:
            raise ModelError(f"fusion has {len(weights)} weights, the network has {count} readouts")
        if min(weights) < 0.0 or max(weights) <= 0.0:
            raise ModelError(f"fusion needs weights of at least 0 and one above, got {weights}")
        return weights

    def fuse(self, log_probabilities: Sequence[Tensor]) -> Tensor:
        """Weighted sum (N, K) of log-probabilities, each (N, K); its softmax is the fused distribution."""
        weights = self.for_count(len(log_probabilities))
        used = [
            values if weight == 1.0 else values * weight
            for weight, values in zip(weights, log_probabilities, strict=True)
            if weight
        ]
        return sum(used[1:], start=used[0])

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "LogProbabilitySum", "weights": list(self.weights), "first_block": self.first_block}


def sum_fusion(log_probabilities: Sequence[Tensor], y: Tensor) -> LogProbabilitySum:
    """Every readout alike."""
    del y
    return LogProbabilitySum((1.0,) * len(log_probabilities))


def loss_fusion(log_probabilities: Sequence[Tensor], y: Tensor) -> LogProbabilitySum:
    """Each readout by the inverse of its cross-entropy, the largest weight 1. Arguments as for `choose_fusion`."""
    losses = [_cross_entropy(one, y).clamp(min=1e-6) for one in log_probabilities]
    least = torch.stack(losses).min()
    return LogProbabilitySum(tuple(float(least / loss) for loss in losses))


def readout_fusion(log_probabilities: Sequence[Tensor], y: Tensor) -> LogProbabilitySum:
    """Weights trained on validation data: a linear readout of all scores, detached, with one number for each block.

    Minimises the cross-entropy of `softmax(sum_l w_l log p_l)` over `w_l > 0`, a convex problem, by L-BFGS over log w.
    No gradient reaches a block. Arguments as for `choose_fusion`.
    """
    stacked = torch.stack(list(log_probabilities)).double()
    logs = torch.full((len(stacked),), 1.0 / len(stacked), dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.LBFGS([logs], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _cross_entropy((logs.exp()[:, None, None] * stacked).sum(dim=0), y)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weights = logs.detach().exp()
    kept = torch.where(weights < _LEAST_WEIGHT * weights.max(), torch.zeros_like(weights), weights)
    return LogProbabilitySum(tuple(kept.tolist()))


def _cross_entropy(log_probabilities: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(log_probabilities.double(), y)


def choose_fusion(log_probabilities: Sequence[Tensor], y: Tensor) -> LogProbabilitySum:
    """The contiguous range of readouts whose summed log-probabilities are right most often.

    Args:
        log_probabilities: One (N, K) per readout, on validation data (never on test data).
        y: Labels (N,), int64.

    Returns:
        Weights 1 inside the range and 0 outside. Of equally good ranges the longest, then the one that ends last.
    """
    count = len(log_probabilities)
    ranges = [(first, last) for first in range(count) for last in range(first, count)]

    def merit(bounds: tuple[int, int]) -> tuple[int, int, int]:
        first, last = bounds
        fused = torch.stack(list(log_probabilities[first : last + 1])).sum(dim=0)
        return int((fused.argmax(dim=1) == y).sum()), last - first, last

    first, last = max(ranges, key=merit)
    return LogProbabilitySum(tuple(1.0 if first <= index <= last else 0.0 for index in range(count)))


FUSIONS: Mapping[FusionName, Callable[[Sequence[Tensor], Tensor], LogProbabilitySum]] = {
    "range": choose_fusion,
    "sum": sum_fusion,
    "loss": loss_fusion,
    "readout": readout_fusion,
}
