"""Projections: from goodness (N, D) to scores (N, K)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.parts import Description


class Projection(nn.Module):
    """A projection that is sized when its block is built."""

    def build(self, features_count: int, classes_count: int) -> None:
        """Create what depends on D and K."""
        raise NotImplementedError


class LearnedProjection(Projection):
    """Scores = g W^T + b with trained W (K, D) and b (K,), initialised as `nn.Linear`."""

    linear: nn.Linear

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.bias = bias

    def build(self, features_count: int, classes_count: int) -> None:
        """Create the weights for goodness (N, features_count)."""
        self.linear = nn.Linear(features_count, classes_count, bias=self.bias)

    def forward(self, goodness: Tensor) -> Tensor:
        """Scores (N, K) of goodness (N, D)."""
        scores: Tensor = self.linear(goodness)
        return scores

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "LearnedProjection", "bias": self.bias}


class FixedProjection(Projection):
    """Scores = g R with a random R (D, K) that is drawn from a seed and never trained.

    Args:
        seed: Of the draw; blocks with the same D and seed share a projection, so give each its own.
        law: `orthonormal` columns (spectral norm 1; needs D >= K, else `normal` is used), or `normal`: N(0, 1/D).
    """

    matrix: Tensor

    def __init__(self, seed: int = 0, *, law: Literal["orthonormal", "normal"] = "orthonormal") -> None:
        super().__init__()
        if law not in ("orthonormal", "normal"):
            raise ModelError(f"FixedProjection needs law `orthonormal` or `normal`, got `{law}`")
        self.seed = seed
        self.law = law

    def build(self, features_count: int, classes_count: int) -> None:
        """Draw R (features_count, classes_count), float32."""
        generator = torch.Generator().manual_seed(self.seed)
        matrix = torch.randn(features_count, classes_count, generator=generator, dtype=torch.float64)
        if self.law == "orthonormal" and features_count >= classes_count:
            matrix = torch.linalg.qr(matrix).Q
        else:
            matrix = matrix / math.sqrt(features_count)
        self.register_buffer("matrix", matrix.float())

    def forward(self, goodness: Tensor) -> Tensor:
        """Scores (N, K) of goodness (N, D)."""
        return goodness @ self.matrix

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "FixedProjection", "seed": self.seed, "law": self.law}


class HiddenProjection(Projection):
    """Scores by a perceptron with one hidden layer of ReLUs: g -> relu(g V^T + c) W^T + b.

    A readout that may bend asks less of the block: features need not be separable by planes yet, as in the auxiliary
    networks of Belilovsky et al. (Decoupled Greedy Learning, arXiv 1901.08164).

    Args:
        units: Of the hidden layer.
    """

    def __init__(self, units: int = 128) -> None:
        super().__init__()
        if units < 1:
            raise ModelError(f"HiddenProjection needs units of at least 1, got `{units}`")
        self.units = units

    def build(self, features_count: int, classes_count: int) -> None:
        """Create both layers, initialised as `nn.Linear`."""
        self.hidden = nn.Linear(features_count, self.units)
        self.linear = nn.Linear(self.units, classes_count)

    def forward(self, goodness: Tensor) -> Tensor:
        """Scores (N, K) of goodness (N, D)."""
        scores: Tensor = self.linear(torch.relu(self.hidden(goodness)))
        return scores

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "HiddenProjection", "units": self.units}


class SoftmaxProjection(Projection):
    """Scores = g softmax(M): each number of goodness divides itself among the classes, and speaks against none.

    M (D, K) is trained, the softmax is over the classes of each row. As the learnable channel-class assignment of
    arXiv 2606.09928, of which only the idea was at hand.
    """

    logits: nn.Parameter

    def build(self, features_count: int, classes_count: int) -> None:
        """Create M (features_count, classes_count), standard normal."""
        self.logits = nn.Parameter(torch.randn(features_count, classes_count))

    def forward(self, goodness: Tensor) -> Tensor:
        """Scores (N, K) of goodness (N, D)."""
        return goodness @ torch.softmax(self.logits, dim=1)

    def describe(self) -> Description:
        """Name."""
        return {"part": "SoftmaxProjection"}


class Prototypes(Projection):
    """Scores = cosine of goodness and a trained prototype of each class, times a scale; both are of unit norm.

    Unit-norm prototypes as in hybrid forward-forward networks (arXiv 2605.00082, of which only the idea was at hand).

    Args:
        scale: What a cosine of 1 is worth: a softmax over numbers in -1..1 could never be sure.
        eps: Added to the squared norms.
    """

    prototypes: nn.Parameter

    def __init__(self, scale: float = 10.0, *, eps: float = 1e-6) -> None:
        super().__init__()
        if not scale > 0.0:
            raise ModelError(f"Prototypes need a positive scale, got {scale}")
        self.scale = scale
        self.eps = eps

    def build(self, features_count: int, classes_count: int) -> None:
        """Create the prototypes (classes_count, features_count), standard normal."""
        self.prototypes = nn.Parameter(torch.randn(classes_count, features_count))

    def forward(self, goodness: Tensor) -> Tensor:
        """Scores (N, K) of goodness (N, D)."""
        return self.scale * (self._unit(goodness) @ self._unit(self.prototypes).T)

    def _unit(self, rows: Tensor) -> Tensor:
        return rows * torch.rsqrt((rows * rows).sum(dim=1, keepdim=True) + self.eps)

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "Prototypes", "scale": self.scale, "eps": self.eps}


class NoProjection(Projection):
    """Goodness that is a score per class already (`ChannelGroups`), as it is."""

    def build(self, features_count: int, classes_count: int) -> None:
        """Check that goodness is (N, K).

        Raises:
            ModelError: It is not.
        """
        if features_count != classes_count:
            raise ModelError(
                f"goodness of {features_count} numbers is no score for each of {classes_count} classes",
                hint="give the block a projection",
            )

    def forward(self, goodness: Tensor) -> Tensor:
        """The goodness (N, K)."""
        return goodness

    def describe(self) -> Description:
        """Name."""
        return {"part": "NoProjection"}
