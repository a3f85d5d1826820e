"""Hand-overs: what a block passes on of its activation. None has parameters: what follows must not teach the block."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeff.errors import ModelError
from edgeff.goodness import largest_divisor
from edgeff.parts import Description


@dataclass(frozen=True)
class LayerNormHandover:
    """Layer normalisation over all axes of a row, without parameters (Ba et al., arXiv 1607.06450, equation 4)."""

    eps: float = 1e-5

    def __call__(self, activation: Tensor) -> Tensor:
        """The activation (N, *row) with mean 0 and variance 1 in each row."""
        if activation.ndim == 4 and _is_channels_last(activation):
            # All numbers of a row count alike in any order; `layer_norm` would put channels first, and copy twice.
            last = activation.permute(0, 2, 3, 1)
            return F.layer_norm(last, last.shape[1:], eps=self.eps).permute(0, 3, 1, 2)
        return F.layer_norm(activation, activation.shape[1:], eps=self.eps)

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "LayerNormHandover", "eps": self.eps}


def _is_channels_last(maps: Tensor) -> bool:
    # Of a single channel or place both layouts are the same one.
    return maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()


@dataclass(frozen=True)
class GroupNormHandover:
    """Normalisation over groups of channels, without parameters (Wu and He, arXiv 1803.08494).

    Attributes:
        groups: At most so many; the largest divisor of the number of channels is used that leaves no group with a
            single number.
        eps: Added to the variance.
    """

    groups: int = 8
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ModelError(f"GroupNormHandover needs at least 1 group, got `{self.groups}`")

    def __call__(self, activation: Tensor) -> Tensor:
        """The activation (N, C, ...) with mean 0 and variance 1 in each group of channels of a row."""
        channels, places = activation.shape[1], math.prod(activation.shape[2:])
        # A group of a single number would be 0 whatever it is.
        limit = self.groups if places > 1 else min(self.groups, channels // 2)
        return F.group_norm(activation, largest_divisor(channels, max(1, limit)), eps=self.eps)

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "GroupNormHandover", **asdict(self)}


@dataclass(frozen=True)
class UnitNormHandover:
    """Each row at the same length, as in Forward-Forward (Hinton, arXiv 2212.13345): the mean of its squares is 1.

    The length is the root of the row's size and not 1, so that the next block's weights can start as they always do.
    """

    eps: float = 1e-5

    def __call__(self, activation: Tensor) -> Tensor:
        """The activation (N, *row), each row scaled."""
        axes = tuple(range(1, activation.ndim))
        return activation * torch.rsqrt((activation * activation).mean(dim=axes, keepdim=True) + self.eps)

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "UnitNormHandover", **asdict(self)}


@dataclass(frozen=True)
class NoHandoverNorm:
    """The activation as it is."""

    def __call__(self, activation: Tensor) -> Tensor:
        """The activation (N, *row), unchanged."""
        return activation

    def describe(self) -> Description:
        """Name."""
        return {"part": "NoHandoverNorm"}
