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
    presets; `deep<N>` is N times a 3x3 convolution to 16 channels on 64x64.

    Raises:
        ValueError: Unknown name.
    """
    deep = re.fullmatch(r"deep(\d+)", name)
    if deep:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _deep(int(deep[1]))
    if name not in NAMES:
        raise ValueError(f"unknown network `{name}`; known: {', '.join(NAMES)}")
    return preset(name, width=2000 / 256) if name == "mlp" else preset(name)


def _deep(depth: int) -> LocalNetwork:
    blocks = [
        LocalBlock(
            nn.Sequential(nn.Conv2d(16 if index else 3, 16, 3, padding=1), nn.ReLU()), goodness=PooledGoodness(cells=4)
        )
        for index in range(depth)
    ]
    return LocalNetwork(blocks, input_shape=(3, 64, 64), classes=10, name=f"deep{depth}")
