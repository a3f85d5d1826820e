"""Dropout whose mask is a function of a seed input, with the same bits in torch and in onnxruntime.

ONNX's random operators keep hidden state, so a resumed run could not repeat them. Here the mask is an integer hash of
seed, layer, row and position, made of int64 products and remainders that both sides compute exactly.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn

_PRIME = 2**31 - 1  # products of two numbers below it fit into int64
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def keep_mask(rows: int, columns: int, probability: float, seed: torch.Tensor, layer: int) -> torch.Tensor:
    """Which entries survive.

    Args:
        rows: N, may be symbolic.
        columns: D.
        probability: Of being dropped.
        seed: int64 (), at least 0.
        layer: Number of the dropout layer in its block, so that two layers differ.

    Returns:
        bool (N, D).
    """
    row = torch.arange(rows)[:, None]
    column = torch.arange(columns)[None, :]
    start = torch.remainder(seed, _PRIME) * 40_014 + (layer + 1) * 1_299_709
    state = torch.remainder(start + row * 69_621 + column * 16_807, _PRIME)
    for _ in range(4):  # a quadratic map modulo a prime: no two products overflow
        state = torch.remainder(state * state + state * 48_271 + 12_345, _PRIME)
    return state >= round(probability * _PRIME)


def dropouts(block: nn.Module) -> list[nn.Module]:
    """The dropout layers of a block that do something, in order."""
    return [module for module in block.modules() if isinstance(module, _DROPOUTS) and module.p > 0]


@contextlib.contextmanager
def seeded_dropout(block: nn.Module, seed: torch.Tensor) -> Iterator[None]:
    """Let the block's dropout layers draw from `seed` inside the context."""
    layers = dropouts(block)
    try:
        for number, layer in enumerate(layers):
            layer.forward = _Seeded(layer, seed, number)
        yield
    finally:
        for layer in layers:
            del layer.forward


class _Seeded:
    """The forward of one dropout layer."""

    def __init__(self, layer: nn.Module, seed: torch.Tensor, number: int) -> None:
        self.probability = float(layer.p)  # type: ignore[arg-type]
        self.whole_channels = not isinstance(layer, nn.Dropout)
        self.seed = seed
        self.number = number

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shape = [*x.shape[:2], *(1 for _ in x.shape[2:])] if self.whole_channels else list(x.shape)
        mask = keep_mask(shape[0], math.prod(shape[1:]), self.probability, self.seed, self.number)
        return x * mask.reshape(shape).to(x.dtype) / (1.0 - self.probability)
