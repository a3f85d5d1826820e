"""Batch norm for pretraining alone: put behind layers, and folded into their weights again.

Batch norm makes pretraining faster and better, and cannot go to a device: it needs the rows of a batch together, and
what it does to a row would depend on the micro-batch. Once its statistics stand still it is a scale and a shift for
each channel, which the layer before it can take over, so the network that is kept is the one that was given.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edgeff.errors import ModelError, RunError
from edgeff.model import LocalNetwork
from edgeff.overlay import OverlayBlock

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_Layer = nn.Conv1d | nn.Conv2d | nn.Linear


class BatchNormed(nn.Module):
    """A layer and the batch norm (Ioffe and Szegedy, arXiv 1502.03167) of its output's channels or features.

    Args:
        layer: With a bias, which takes the shift when it is folded.
    """

    def __init__(self, layer: _Layer) -> None:
        super().__init__()
        self.layer = layer
        if isinstance(layer, nn.Linear):
            self.norm: nn.modules.batchnorm._BatchNorm = nn.BatchNorm1d(layer.out_features)
        else:
            self.norm = (nn.BatchNorm1d if isinstance(layer, nn.Conv1d) else nn.BatchNorm2d)(layer.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x, normalised: by the batch in training, by running statistics in evaluation.

        Raises:
            RunError: There is one number for each channel, of which nothing can be told.
        """
        output: Tensor = self.layer(x)
        if self.training and output.numel() == self.norm.num_features:
            raise RunError(
                "batch norm needs more than one row at once",
                hint="leave `batch_norm` out, or choose another batch or micro-batch: one of a run has a single row",
            )
        if not isinstance(self.layer, nn.Linear):
            return cast(Tensor, self.norm(output))
        # Every position of a sequence is a row of its own to a linear layer.
        return cast(Tensor, self.norm(output.reshape(-1, output.shape[-1]))).reshape(output.shape)

    def folded(self) -> nn.Module:
        """One layer, of the given one's kind and shape, that does what both do in evaluation."""
        pair = copy.deepcopy(self).eval()
        if isinstance(pair.layer, nn.Linear):
            return fuse_linear_bn_eval(pair.layer, cast(nn.BatchNorm1d, pair.norm)).train(self.training)
        return fuse_conv_bn_eval(pair.layer, pair.norm).train(self.training)


def with_batch_norm(network: LocalNetwork) -> LocalNetwork:
    """A copy whose layers are batch-normalised while it trains; `folded` makes a network like the given one of it.

    Batch norm comes behind every Conv1d, Conv2d and Linear of an `nn.Sequential`, in transforms and auxiliary layers,
    that no GroupNorm, LayerNorm or RMSNorm follows.

    Raises:
        ModelError: There is no such layer, or one that has no bias, or that stands in two places; or a block's
            objective is `forward-forward`.
    """
    for block in network.sequence:
        if any(isinstance(leaf, OverlayBlock) for leaf in block.leaves()):
            raise ModelError(
                f"block `{block.name}` compares the goodness of labels, and that goodness is a size, which batch norm "
                "takes away",
                hint="leave `batch_norm` out with objective `forward-forward`",
            )
    twin = copy.deepcopy(network)
    seen: set[int] = set()
    for name, sequential, index, layer in _bare_layers(twin):
        if id(layer) in seen:
            raise ModelError(
                f"block `{name}`: batch norm cannot be folded into a layer that stands in two places",
                hint="leave `batch_norm` out, or give each place a layer of its own",
            )
        if layer.bias is None:
            raise ModelError(
                f"block `{name}`: batch norm cannot be folded into a {type(layer).__name__} without a bias",
                hint="leave `batch_norm` out, or give the layer a bias",
            )
        seen.add(id(layer))
        sequential[index] = BatchNormed(layer)
    if not seen:
        raise ModelError(
            f"network `{network.name}` has no layer for batch norm to come behind",
            hint="leave `batch_norm` out: it is for Conv1d, Conv2d and Linear layers of an `nn.Sequential` without a "
            "norm behind them",
        )
    return twin


def folded(network: LocalNetwork) -> LocalNetwork:
    """A copy without the batch norm that `with_batch_norm` put in: the same outputs as the given one in evaluation."""
    twin = copy.deepcopy(network)
    for sequential in [module for module in twin.modules() if isinstance(module, nn.Sequential)]:
        for index, module in enumerate(sequential):
            if isinstance(module, BatchNormed):
                sequential[index] = module.folded()
    return twin


def _bare_layers(network: LocalNetwork) -> Iterator[tuple[str, nn.Sequential, int, _Layer]]:
    """Block, container, place and layer wherever batch norm belongs."""
    for block in network.sequence:
        for leaf in block.leaves():
            parts = [leaf.transform, *([] if leaf.readout is None else [leaf.readout.auxiliary])]
            for module in (inner for part in parts if part is not None for inner in part.modules()):
                if isinstance(module, nn.Sequential):
                    yield from ((leaf.name, module, index, layer) for index, layer in _bare(module))


def _bare(sequential: nn.Sequential) -> Iterator[tuple[int, _Layer]]:
    modules = list(sequential)
    for index, module in enumerate(modules):
        if isinstance(module, _LAYERS) and not isinstance(next(iter(modules[index + 1 :]), None), _NORMS):
            yield index, module
