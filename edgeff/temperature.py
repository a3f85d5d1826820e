"""Temperatures: what scores are divided by before the softmax."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.parts import Description


class Temperature(Protocol):
    """Scales scores; it may look at the goodness that they were made of."""

    def __call__(self, scores: Tensor, goodness: Tensor, /) -> Tensor:
        """Scores (N, K) over the temperature; goodness (N, D)."""


class LearnedTemperature(nn.Module):
    """Scores over `T = minimum + (maximum - minimum) * sigmoid(alpha)`, alpha a trained scalar that starts at 0."""

    def __init__(self, minimum: float = 0.1, maximum: float = 2.0) -> None:
        super().__init__()
        if not 0.0 < minimum < maximum:
            raise ModelError(f"LearnedTemperature needs 0 < minimum < maximum, got {minimum} and {maximum}")
        self.minimum = minimum
        self.maximum = maximum
        self.alpha = nn.Parameter(torch.zeros(()))

    def value(self) -> Tensor:
        """The temperature, a scalar."""
        return self.minimum + (self.maximum - self.minimum) * torch.sigmoid(self.alpha)

    def forward(self, scores: Tensor, goodness: Tensor) -> Tensor:
        """Scores (N, K) over the temperature."""
        del goodness
        return scores / self.value()

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "LearnedTemperature", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True)
class FixedTemperature:
    """Scores divided by a constant."""

    value: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.value < math.inf:
            raise ModelError(f"FixedTemperature needs a positive value, got {self.value}")

    def __call__(self, scores: Tensor, goodness: Tensor) -> Tensor:
        """Scores (N, K) over the temperature."""
        del goodness
        return scores if self.value == 1.0 else scores / self.value

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "FixedTemperature", "value": self.value}


@dataclass(frozen=True)
class ClarityTemperature:
    """The rule of 2025: a row's temperature follows from how unevenly its goodness is spread.

    `T = minimum + (maximum - minimum) * sigmoid(c)` with the clarity `c = clamp(std(g) / (|mean(g)| + 1e-6), 0.1, 10)`,
    no gradient through it (S. Chen, "Dynamic Temperature Goodness", 2025; formula and bounds from the author's public
    code). There mean and deviation of a unit go over the rows of a batch and then over the units; here they go over the
    D numbers of one row, so that a row does not depend on its neighbours. Nothing is trained.
    """

    minimum: float = 0.1
    maximum: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.minimum < self.maximum:
            raise ModelError(f"ClarityTemperature needs 0 < minimum < maximum, got {self.minimum} and {self.maximum}")

    def value(self, goodness: Tensor) -> Tensor:
        """The temperature (N, 1) of each row of goodness (N, D)."""
        seen = goodness.detach()
        mean = seen.mean(dim=1, keepdim=True)
        deviation = ((seen - mean) ** 2).mean(dim=1, keepdim=True) ** 0.5
        clarity = (deviation / (mean.abs() + 1e-6)).clamp(0.1, 10.0)
        return self.minimum + (self.maximum - self.minimum) * torch.sigmoid(clarity)

    def __call__(self, scores: Tensor, goodness: Tensor) -> Tensor:
        """Scores (N, K), each row over its temperature."""
        return scores / self.value(goodness)

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "ClarityTemperature", **asdict(self)}
