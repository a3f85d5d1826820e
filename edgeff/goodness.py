"""Goodness: what of its activation a block takes as a sign of the classes, before any normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeff.errors import ModelError
from edgeff.parts import Description


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
        return _grid(row_shape[1:], self.cells)

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


def _grid(spatial: Sequence[int], cells: int | tuple[int, ...]) -> tuple[int, ...]:
    """Cells along each axis of a map."""
    most = _as_tuple(cells)
    most = most * len(spatial) if len(most) == 1 else most
    if len(most) != len(spatial):
        raise ModelError(f"the grid has cells for {len(most)} axes, the activation has {len(spatial)}")
    return tuple(largest_divisor(length, limit) for length, limit in zip(spatial, most, strict=True))


def means_over_grid(values: Tensor, cells: int | tuple[int, ...]) -> Tensor:
    """Means (N, C, *grid) over the cells of a grid of a map (N, C, ...): the largest divisors that are at most `cells`.

    >>> means_over_grid(torch.arange(8.0).reshape(1, 1, 8), 3)
    tensor([[[1.5000, 5.5000]]])
    """
    return _pool(values, _grid(values.shape[2:], cells))


def _pool(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Non-overlapping means. One axis is pooled as a map of height 1: one operator to lower, not two."""
    kernel = [length // cells for length, cells in zip(values.shape[2:], grid, strict=True)]
    if math.prod(kernel) == 1:
        return values
    if len(kernel) == 1:
        return F.avg_pool2d(values.unsqueeze(2), [1, *kernel]).squeeze(2)
    return F.avg_pool2d(values, kernel)


@dataclass(frozen=True)
class ChannelGroups:
    """One score per class without a weight: the mean of `a` or of `a**2` over a group of channels, one group per class.

    Channels (units, for rows (D,)) go to the classes in order and as evenly as can be: of C channels and K classes,
    class k has those from `k C / K` (rounded down) on. As in CwComp (arXiv 2312.12668; squares) and DeeperForward
    (ICLR 2025; means). A block with such goodness has no projection.

    Attributes:
        classes: K.
        power: 1 for the mean of `a`, 2 for the mean of its square.
    """

    classes: int
    power: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.power not in (1, 2):
            raise ModelError(f"ChannelGroups needs power 1 or 2, got `{self.power}`")

    def __call__(self, activation: Tensor) -> Tensor:
        """Scores (N, K) of an activation (N, C, ...).

        Raises:
            ModelError: Fewer channels than classes.
        """
        channels = activation.shape[1]
        if channels < self.classes:
            raise ModelError(
                f"ChannelGroups needs a channel for each of {self.classes} classes, the activation has {channels}",
                hint="widen the block, or give it a projection",
            )
        values = activation * activation if self.power == 2 else activation
        if values.ndim > 2:
            values = values.mean(dim=tuple(range(2, values.ndim)))
        return values @ self._membership(channels).to(values)

    def _membership(self, channels: int) -> Tensor:
        """(C, K): 1 / size of the group where a channel belongs to it. A product with it has a simple gradient."""
        group = np.arange(channels) * self.classes // channels
        belongs = (group[:, None] == np.arange(self.classes)).astype(np.float64)
        return torch.from_numpy(belongs / belongs.sum(axis=0))

    def describe(self) -> Description:
        """Name and settings."""
        return {"part": "ChannelGroups", **asdict(self)}
