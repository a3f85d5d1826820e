"""Objectives: a block's loss over the scores of its rows, a weighted sum over rows, so that a batch may be cut."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeff.errors import ModelError
from edgeff.parts import Description


class Objective(Protocol):
    """A loss over the scores of a block's rows."""

    def __call__(self, scores: Tensor, y: Tensor, row_weight: Tensor, /) -> Tensor:
        """Sum over rows of row_weight (N,) times the loss of scores (N, K) against y (N,), a scalar."""


def one_hot(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """Labels (N,) as (N, K) of 0 and 1.

    By a comparison: the gradient of gathering one column would be a scatter, which lowers badly.
    """
    return (y[:, None] == torch.arange(classes, device=like.device)).to(like.dtype)


@dataclass(frozen=True)
class CrossEntropyObjective:
    """Softmax cross-entropy against the label, with optional label smoothing.

    Attributes:
        label_smoothing: Share of the target spread evenly over all K classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ModelError(f"label smoothing must be in [0, 1), got {self.label_smoothing}")

    def __call__(self, scores: Tensor, y: Tensor, row_weight: Tensor) -> Tensor:
        """Sum over rows of row_weight (N,) times the cross-entropy of scores (N, K) with y (N,), a scalar."""
        log_probabilities = torch.log_softmax(scores, dim=1)
        target = one_hot(y, scores.shape[1], log_probabilities)
        if self.label_smoothing:
            target = target * (1.0 - self.label_smoothing) + self.label_smoothing / scores.shape[1]
        return -(log_probabilities * (target * row_weight[:, None])).sum()

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "CrossEntropyObjective", **asdict(self)}


@dataclass(frozen=True)
class TwoSidedObjective:
    """Forward-Forward's own loss: the true label's goodness above a threshold, that of the others below it.

    `softplus(theta - s_y) + mean over k != y of softplus(s_k - theta)` (Hinton, arXiv 2212.13345, section 2, with the
    scores s as goodness of the row under each label). The mean is what the loss of a wrong label is when one is drawn
    evenly, without drawing: it never is the true one, and a step needs no random numbers.

    Attributes:
        threshold: theta.
    """

    threshold: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ModelError(f"TwoSidedObjective needs a finite threshold, got {self.threshold}")

    def __call__(self, scores: Tensor, y: Tensor, row_weight: Tensor) -> Tensor:
        """Sum over rows of row_weight (N,) times the loss of scores (N, K) with y (N,), a scalar."""
        target = one_hot(y, scores.shape[1], scores)
        positive = target * row_weight[:, None]
        negative = (1.0 - target) * row_weight[:, None] / (scores.shape[1] - 1)
        margin = scores - self.threshold
        return (positive * F.softplus(-margin) + negative * F.softplus(margin)).sum()

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "TwoSidedObjective", **asdict(self)}


@dataclass(frozen=True)
class SuperClassObjective:
    """Cross-entropy against the group of classes that a label belongs to: coarse targets for early blocks.

    The probability of a group is the sum of those of its classes; within a group the block is free.

    Attributes:
        groups: Of every class in order, the number of its group, from 0.
    """

    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(set(self.groups)) != list(range(max(self.groups, default=0) + 1)) or len(set(self.groups)) < 2:
            raise ModelError(
                f"SuperClassObjective needs two or more groups, numbered from 0 without a gap, got {self.groups}"
            )

    def __call__(self, scores: Tensor, y: Tensor, row_weight: Tensor) -> Tensor:
        """Sum over rows of row_weight (N,) times the loss of scores (N, K) with y (N,), a scalar.

        Raises:
            ModelError: Scores for another number of classes than there are groups for.
        """
        if scores.shape[1] != len(self.groups):
            raise ModelError(f"SuperClassObjective has groups for {len(self.groups)} classes, not {scores.shape[1]}")
        same = self._same(scores)
        # 1 where a class is in the group of the row's label.
        inside = one_hot(y, len(self.groups), scores) @ same
        shifted = scores - scores.detach().amax(dim=1, keepdim=True)
        powers = torch.exp(shifted)
        # A group far below the best has a sum of 0 in float32: the small number keeps its logarithm finite.
        log_probability = torch.log((powers * inside).sum(dim=1) + 1e-30) - torch.log(powers.sum(dim=1))
        return -(log_probability * row_weight).sum()

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Log-probabilities (N, K) of the classes: that of their group, divided evenly, as nothing else is learned."""
        same = self._same(scores)
        powers = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        share = (powers @ same) / (powers.sum(dim=1, keepdim=True) * same.sum(dim=1))
        return torch.log(share + 1e-30)

    def _same(self, like: Tensor) -> Tensor:
        groups = torch.tensor(self.groups, device=like.device)
        return (groups[:, None] == groups).to(like.dtype)

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "SuperClassObjective", "groups": list(self.groups)}


def even_groups(classes: int, count: int) -> tuple[int, ...]:
    """Consecutive classes put into `count` groups, as evenly as can be.

    >>> even_groups(10, 3)
    (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
    """
    return tuple(label * count // classes for label in range(classes))
