"""The reference networks of the benchmarks."""

from __future__ import annotations

import re

import torch
from torch import nn

from edgeff.goodness import PooledGoodness
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.presets import preset

NAMES = ("har-cnn", "kws-dscnn", "vgg8", "deep24", "mlp")


def reference(name: str) -> LocalNetwork:
    """A network with random weights, the same in every process.

    `har-cnn` (windows of 6 signals), `kws-dscnn` (49x40 log-mel), `vgg8` (32x32 colour) and `mlp` (784, 3 x 2000) are
    presets; `deep<N>` is N times a 3x3 convolution to 16 channels on 64x64, `wide<C>` four times one to C channels on
    32x32.

    Raises:
        ValueError: Unknown name.
    """
    grown = re.fullmatch(r"(deep|wide)([1-9]\d*)", name)
    if grown:
        family, size = grown[1], int(grown[2])
        channels, depth, length = (16, size, 64) if family == "deep" else (size, 4, 32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _convolutions(name, channels, depth, length)
    if name not in NAMES:
        raise ValueError(f"unknown network `{name}`; known: {', '.join(NAMES)}")
    return preset(name, width=2000 / 256) if name == "mlp" else preset(name)


def _convolutions(name: str, channels: int, depth: int, length: int) -> LocalNetwork:
    blocks = [
        LocalBlock(
            nn.Sequential(nn.Conv2d(channels if index else 3, channels, 3, padding=1), nn.ReLU()),
            goodness=PooledGoodness(cells=4),
        )
        for index in range(depth)
    ]
    return LocalNetwork(blocks, input_shape=(3, length, length), classes=10, name=name)
