"""Relations: losses that compare the rows of a batch with one another.

A relation looks at an embedding of the activation by a map of its own, which is thrown away after training. What it
makes of a row depends on the rows that come with it: of a batch that is cut into micro-batches, each is compared within
itself. The artifact therefore says how many rows come together (docs/method.md, "Comparing rows").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgeff.auxiliary import three_wide
from edgeff.errors import ModelError
from edgeff.objective import one_hot
from edgeff.parts import Description

_EPS = 1e-8


class Relation(nn.Module):
    """A loss over the embeddings of rows.

    Attributes:
        weight: What the loss is multiplied by before it is added to that of the scores.
    """

    weight: float

    def build(self, activation: Tensor) -> None:
        """Size the map to an example activation (N, ...)."""
        raise NotImplementedError

    def forward(self, activation: Tensor) -> Tensor:
        """Embedding (N, E) of an activation (N, ...)."""
        raise NotImplementedError

    def loss(self, embedding: Tensor, y: Tensor, row_weight: Tensor, classes: int) -> Tensor:
        """Sum over rows of row_weight (N,) times the row's loss among these rows, times `weight`; a scalar."""
        raise NotImplementedError

    def describe(self) -> Description:
        """JSON-able name and settings."""
        raise NotImplementedError


def _unit_rows(values: Tensor) -> Tensor:
    return values * torch.rsqrt((values * values).sum(dim=1, keepdim=True) + _EPS)


class SimilarityMatching(Relation):
    """Rows should be alike where their labels are, and unlike where they are not.

    The cosine similarity of the embeddings of rows i and j (each less its own mean) is to be that of their labels as
    one-hot vectors less their mean: 1 for equal labels, -1 / (K - 1) for different ones. The loss is the mean over the
    rows j that came together, and the weighted sum over i, of the squared difference (Noekland and Eidnes, arXiv
    1901.06656, section 3, `sim`). The embedding is the standard deviation over the places of each channel of a 3-wide
    convolution of the activation; of rows (D,) a linear map.

    No table of N x N similarities is made: with Z (N, E) the embeddings, Y (N, K) the labels, D the row weights and
    T = a Y Y^T + b 1 1^T,
    ``sum_ij d_i d_j ((Z Z^T)_ij - T_ij)^2 = |Z^T D Z|^2 - 2 a |Y^T D Z|^2 - 2 b |1^T D Z|^2 + sum_ij d_i d_j T_ij^2``
    which needs E x E numbers however many rows there are.

    Args:
        weight: Of the loss.
        channels: Of the auxiliary map; None for as many as the activation has, 0 for no map.
    """

    def __init__(self, weight: float = 1.0, *, channels: int | None = None) -> None:
        super().__init__()
        if not 0.0 < weight < math.inf or (channels or 0) < 0:
            raise ModelError(f"SimilarityMatching needs a positive weight and channels, got {weight} and {channels}")
        self.weight = weight
        self.channels = channels

    def build(self, activation: Tensor) -> None:
        """Create the auxiliary map for an activation (N, ...)."""
        channels = activation.shape[1] if self.channels is None else self.channels
        incoming, axes = activation.shape[1], activation.ndim - 2
        self.map: nn.Module = three_wide(incoming, channels, axes, bias=False) if channels else nn.Identity()

    def forward(self, activation: Tensor) -> Tensor:
        """Embedding (N, E), of mean 0 and length 1 in each row."""
        values: Tensor = self.map(activation)
        if values.ndim > 2:
            axes = tuple(range(2, values.ndim))
            centred = values - values.mean(dim=axes, keepdim=True)
            values = ((centred * centred).mean(dim=axes) + _EPS) ** 0.5
        return _unit_rows(values - values.mean(dim=1, keepdim=True))

    def loss(self, embedding: Tensor, y: Tensor, row_weight: Tensor, classes: int) -> Tensor:
        """Weighted sum over rows of the mean squared difference to the rows beside it, times `weight`."""
        labels = one_hot(y, classes, embedding)
        weighted = embedding * row_weight[:, None]
        unlike = -1.0 / (classes - 1)
        alike = 1.0 - unlike
        counts = labels.T @ row_weight
        total = row_weight.sum()
        # sum_ij d_i d_j T_ij^2: pairs of equal labels count 1, the others unlike^2.
        equal = (counts * counts).sum()
        target = equal + unlike**2 * (total * total - equal)
        own = ((embedding.T @ weighted) ** 2).sum()
        by_class = ((labels.T @ weighted) ** 2).sum()
        everyone = (weighted.sum(dim=0) ** 2).sum()
        return self.weight * (own - 2.0 * alike * by_class - 2.0 * unlike * everyone + target) / total

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "SimilarityMatching", "weight": self.weight, "channels": self.channels}


class SupervisedContrast(Relation):
    """Rows of the same class attract one another, all others push away.

    ``L_i = -1/|P(i)| sum over p in P(i) of log(exp(z_i.z_p / tau) / sum over a != i of exp(z_i.z_a / tau))``, P(i) the
    other rows of i's class (Khosla et al., arXiv 2004.11362, equation 2). The embedding z is a linear map of the mean
    over places of each channel, at length 1. A row that has no other of its class gives 0.

    Args:
        weight: Of the loss.
        size: E, of the embedding.
        temperature: tau.
        partners: Each row is compared with the first so many that came together: a fixed number, so that the graph's
            sizes grow with N and not with its square.
    """

    def __init__(self, weight: float = 1.0, *, size: int = 64, temperature: float = 0.1, partners: int = 128) -> None:
        super().__init__()
        if not 0.0 < weight < math.inf or size < 1 or not temperature > 0.0 or partners < 2:
            raise ModelError(
                "SupervisedContrast needs a positive weight, size and temperature and two partners or more, "
                f"got {weight}, {size}, {temperature} and {partners}"
            )
        self.weight = weight
        self.size = size
        self.temperature = temperature
        self.partners = partners

    def build(self, activation: Tensor) -> None:
        """Create the linear map."""
        self.map = nn.Linear(activation.shape[1], self.size, bias=False)

    def forward(self, activation: Tensor) -> Tensor:
        """Embedding (N, E), of length 1 in each row."""
        values = activation
        if values.ndim > 2:
            values = values.mean(dim=tuple(range(2, values.ndim)))
        return _unit_rows(self.map(values))

    def loss(self, embedding: Tensor, y: Tensor, row_weight: Tensor, classes: int) -> Tensor:
        """Weighted sum over rows of the row's contrast with its partners, times `weight`."""
        number = torch.arange(embedding.shape[0], device=embedding.device)
        # A product with 0 and 1 picks the partners, (P, N): its gradient is one too. Rows beyond N are empty.
        pick = (torch.arange(self.partners, device=embedding.device)[:, None] == number).to(embedding.dtype)
        labels = one_hot(y, classes, embedding)
        there = pick.sum(dim=1)
        other = there * (1.0 - pick.T)
        friends = (labels @ (pick @ labels).T) * other
        logits = (embedding @ (pick @ embedding).T) / self.temperature
        # Cosines are at most 1, so no exponent is above 0 and none overflows.
        powers = torch.exp(logits - 1.0 / self.temperature) * other
        log_sum = torch.log(powers.sum(dim=1) + 1e-30) + 1.0 / self.temperature
        count = friends.sum(dim=1)
        attraction = (friends * logits).sum(dim=1) / count.clamp(min=1.0) - log_sum
        return self.weight * -(attraction * row_weight * (count > 0).to(embedding.dtype)).sum()

    def describe(self) -> Description:
        """Name and settings."""
        return {
            "part": "SupervisedContrast",
            "weight": self.weight,
            "size": self.size,
            "temperature": self.temperature,
            "partners": self.partners,
        }
