"""A network of your own, for `edgeff pretrain --model FILE:build`; docs/guide.md uses it."""

import torch
from torch import Tensor, nn

from edgeff.model import LocalBlock, LocalNetwork


class Residual(nn.Module):
    """Any module will do that treats every row by itself: here two convolutions beside a short cut."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(incoming, outgoing, 5, padding=2)
        self.norm = nn.GroupNorm(4, outgoing)  # not BatchNorm: it would mix the rows of a batch
        self.second = nn.Conv1d(outgoing, outgoing, 5, padding=2)
        self.short_cut = nn.Conv1d(incoming, outgoing, 1)
        self.pool = nn.MaxPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, incoming, L) to (N, outgoing, L / 2)."""
        found = self.second(nn.functional.gelu(self.norm(self.first(x))))
        return self.pool(nn.functional.relu(found + self.short_cut(x)))


def build() -> LocalNetwork:
    """Three blocks over rows of 3 channels and 64 samples; each learns from a loss of its own."""
    torch.manual_seed(0)  # the same weights to begin with in every run
    return LocalNetwork(
        [LocalBlock(Residual(3, 16)), LocalBlock(Residual(16, 24)), LocalBlock(Residual(24, 32))],
        input_shape=(3, 64),
        classes=["rest", "shake", "circle", "tap"],
        name="gestures",
    )
