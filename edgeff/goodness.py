"""The exchangeable parts of a local objective: goodness, projection, temperature, loss, hand-over.

A block learns from statistics of its own activation `a` (N, ...): `goodness(a)` (N, D) is projected onto the K
classes, divided by a temperature, and compared with the label. What the block passes on is a normalised copy of `a`.
Each part here is small, knows nothing of the others, and says what it is by `describe()`; docs/method.md has the
equations and sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeff.errors import ModelError

Description = dict[str, Any]


class Part(Protocol):
    """Anything that maps a tensor to a tensor: an `nn.Module` or a frozen dataclass with `__call__`."""

    def __call__(self, values: Tensor, /) -> Tensor:
        """The mapped values."""


class Objective(Protocol):
    """A loss over the scores of a block's rows."""

    def __call__(self, scores: Tensor, y: Tensor, row_weight: Tensor, /) -> Tensor:
        """Sum over rows of row_weight (N,) times the loss of scores (N, K) against y (N,), a scalar."""


def describe_part(part: object) -> Description:
    """JSON-able name and settings of a part; of a foreign module its class and its text.

    >>> describe_part(PooledGoodness(cells=2))
    {'part': 'PooledGoodness', 'cells': 2, 'power': 1, 'layout': 'channels'}
    """
    describe = getattr(part, "describe", None)
    if callable(describe):
        described: Description = describe()
        return described
    return {"part": type(part).__name__, "text": " ".join(repr(part).split())}


def largest_divisor(length: int, limit: int) -> int:
    """The largest divisor of `length` that is at most `limit` (and at least 1).

    >>> largest_divisor(28, 4), largest_divisor(7, 4), largest_divisor(3, 4)
    (4, 1, 3)
    """
    return next(count for count in range(min(length, limit), 0, -1) if length % count == 0)


@dataclass(frozen=True)
class PooledGoodness:
    """Mean of `a` or of `a**2` over the cells of a regular grid, flattened.

    Takes the activation before any normalisation, so its size is still a signal (docs/method.md, "A block").

    Attributes:
        cells: Cells per spatial axis, one number or one per axis. The largest divisor of the map's size that is at most
            this is used, so that cells never overlap and no row of the map is left out: a prime size that is larger
            than `cells` is pooled whole.
        power: 1 for the mean of `a`, 2 for the mean of its square.
        layout: `channels` for rows (C, L) or (C, H, W), pooled over the last axes; `tokens` for rows (T, D), averaged
            over the T tokens. Rows (D,) are not pooled in either.
    """

    cells: int | tuple[int, ...] = 4
    power: Literal[1, 2] = 1
    layout: Literal["channels", "tokens"] = "channels"

    def __post_init__(self) -> None:
        if min(_as_tuple(self.cells)) < 1:
            raise ModelError(f"PooledGoodness needs cells of at least 1, got `{self.cells}`")
        if self.power not in (1, 2):
            raise ModelError(f"PooledGoodness needs power 1 or 2, got `{self.power}`")
        if self.layout not in ("channels", "tokens"):
            raise ModelError(f"PooledGoodness needs layout `channels` or `tokens`, got `{self.layout}`")

    def grid(self, row_shape: Sequence[int]) -> tuple[int, ...]:
        """Cells per spatial axis for activations of one row's shape, without the batch axis.

        Raises:
            ModelError: A row of more than three axes, or `cells` for another number of axes.

        >>> PooledGoodness(cells=4).grid((32, 28, 10))
        (4, 2)
        """
        if len(row_shape) > 3 or (self.layout == "tokens" and len(row_shape) > 2):
            raise ModelError(
                f"PooledGoodness takes rows (D,), (C, L), (C, H, W), or (T, D) as `tokens`, got {tuple(row_shape)}",
                hint="flatten the activation in the transform, or give the block a goodness of its own",
            )
        if self.layout == "tokens":
            return ()
        spatial = tuple(row_shape[1:])
        cells = _as_tuple(self.cells)
        cells = cells * len(spatial) if len(cells) == 1 else cells
        if len(cells) != len(spatial):
            raise ModelError(f"PooledGoodness has cells for {len(cells)} axes, the activation has {len(spatial)}")
        return tuple(largest_divisor(length, limit) for length, limit in zip(spatial, cells, strict=True))

    def __call__(self, activation: Tensor) -> Tensor:
        """Goodness (N, D) of an activation (N, *row)."""
        grid = self.grid(activation.shape[1:])
        values = activation * activation if self.power == 2 else activation
        if self.layout == "tokens" and values.ndim == 3:
            return values.mean(dim=1)
        if grid and max(grid) == 1:
            return values.mean(dim=tuple(range(2, values.ndim)))
        return _pool(values, grid).flatten(1)

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "PooledGoodness", **asdict(self)}


def _as_tuple(cells: int | Sequence[int]) -> tuple[int, ...]:
    return (cells,) if isinstance(cells, int) else tuple(cells)


def _pool(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Non-overlapping means. One axis is pooled as a map of height 1: one operator to lower, not two."""
    kernel = [length // cells for length, cells in zip(values.shape[2:], grid, strict=True)]
    if math.prod(kernel) == 1:
        return values
    if len(kernel) == 1:
        return F.avg_pool2d(values.unsqueeze(2), [1, *kernel]).squeeze(2)
    return F.avg_pool2d(values, kernel)


class LearnedProjection(nn.Module):
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


class FixedProjection(nn.Module):
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

    def forward(self, scores: Tensor) -> Tensor:
        """Scores (N, K) over the temperature."""
        return scores / self.value()

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "LearnedTemperature", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True)
class FixedTemperature:
    """Scores divided by a constant."""

    value: float = 1.0

    def __post_init__(self) -> None:
        if not self.value > 0.0:
            raise ModelError(f"FixedTemperature needs a positive value, got {self.value}")

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores (N, K) over the temperature."""
        return scores if self.value == 1.0 else scores / self.value

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "FixedTemperature", "value": self.value}


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
        # A comparison and a product: the gradient of gathering one column would be a scatter, which lowers badly.
        classes = torch.arange(scores.shape[1], device=scores.device)
        target = (y[:, None] == classes).to(log_probabilities.dtype)
        if self.label_smoothing:
            target = target * (1.0 - self.label_smoothing) + self.label_smoothing / scores.shape[1]
        return -(log_probabilities * (target * row_weight[:, None])).sum()

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "CrossEntropyObjective", "label_smoothing": self.label_smoothing}


@dataclass(frozen=True)
class LayerNormHandover:
    """Layer normalisation over all axes of a row, without parameters (Ba et al., arXiv 1607.06450, equation 4)."""

    eps: float = 1e-5

    def __call__(self, activation: Tensor) -> Tensor:
        """The activation (N, *row) with mean 0 and variance 1 in each row."""
        return F.layer_norm(activation, activation.shape[1:], eps=self.eps)

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "LayerNormHandover", "eps": self.eps}


@dataclass(frozen=True)
class NoHandoverNorm:
    """The activation as it is."""

    def __call__(self, activation: Tensor) -> Tensor:
        """The activation (N, *row), unchanged."""
        return activation

    def describe(self) -> Description:
        """Name."""
        return {"part": "NoHandoverNorm"}
