"""Layers between a block's activation and its goodness, which teach the block and are no part of what it passes on.

A block whose readout looks through layers of its own need not make classes separable by itself yet, and keeps more that
later blocks can use (Belilovsky et al., Decoupled Greedy Learning, arXiv 1901.08164, whose auxiliary networks work on
coarser maps as well; Ma et al., AugLocal, arXiv 2402.17318). They are part of the block's readout: it predicts through
them as it learns through them.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.goodness import means_over_grid


class GridMeans(nn.Module):
    """A coarser map: means over the cells of a regular grid.

    Args:
        cells: Along each axis; the largest divisor of the map's size that is at most this is used.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        if cells < 1:
            raise ModelError(f"GridMeans needs cells of at least 1, got `{cells}`")
        self.cells = cells

    def forward(self, activation: Tensor) -> Tensor:
        """(N, C, *grid) of a map (N, C, ...)."""
        return means_over_grid(activation, self.cells)

    def extra_repr(self) -> str:
        """For descriptions."""
        return f"cells={self.cells}"


def make_auxiliary(incoming: int, channels: int, *, axes: int, cells: int = 0, layers: int = 1) -> nn.Sequential:
    """3-wide convolutions (linear layers for rows without a spatial axis) with ReLUs.

    Args:
        incoming: Channels of the activation.
        channels: Of each layer.
        axes: Of a row of the activation besides its channels: 0, 1 or 2.
        cells: Along each axis of the map that the layers work on; 0 for the activation's own.
        layers: How many, at least 1.

    Raises:
        ModelError: No layers; or cells for rows that have no map.
    """
    if layers < 1:
        raise ModelError(f"rule `auxiliary_layers` must be at least 1, got `{layers}`", hint="`auxiliary=0` for none")
    if cells and not axes:
        raise ModelError("rule `auxiliary_cells` is of maps, and these blocks have none", hint="leave it out")
    made: list[nn.Module] = [GridMeans(cells)] if cells else []
    for number in range(layers):
        made += [three_wide(incoming if number == 0 else channels, channels, axes), nn.ReLU()]
    return nn.Sequential(*made)


def three_wide(incoming: int, channels: int, axes: int, *, bias: bool = True) -> nn.Module:
    """A convolution of width 3, or a linear map for rows without a spatial axis."""
    if axes == 2:
        return nn.Conv2d(incoming, channels, 3, padding=1, bias=bias)
    if axes == 1:
        return nn.Conv1d(incoming, channels, 3, padding=1, bias=bias)
    return nn.Linear(incoming, channels, bias=bias)
