"""Batch norm for pretraining alone: put behind layers, and folded into their weights in what is kept.

Batch norm makes pretraining faster and better, and cannot go to a device: it needs the rows of a batch together, and
what it does to a row would depend on the micro-batch. Once its statistics stand still it is a scale and a shift for
each channel, which the layer before it can take over, so the network that is kept is the one that was given.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from edgeff.errors import ModelError
from edgeff.model import LocalNetwork
from edgeff.overlay import OverlayBlock
from edgeff.probe import evaluating, first_line

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_Layer = nn.Conv1d | nn.Conv2d | nn.Linear
_LEAVE_OUT = "leave `batch_norm` out: it is for plain Conv1d, Conv2d and Linear layers in an `nn.Sequential`"


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
        """The layer's output for x, normalised: by the batch in training, by running statistics in evaluation."""
        output: Tensor = self.layer(x)
        if not isinstance(self.layer, nn.Linear):
            return cast(Tensor, self.norm(output))
        # Every position of a sequence is a row of its own to a linear layer.
        return cast(Tensor, self.norm(output.reshape(-1, output.shape[-1]))).reshape(output.shape)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer that does by itself what both do in evaluation."""
        norm = self.norm
        fuse = fuse_linear_bn_weights if isinstance(self.layer, nn.Linear) else fuse_conv_bn_weights
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        weight, bias = fuse(self.layer.weight, self.layer.bias, mean, variance, norm.eps, norm.weight, norm.bias)
        return weight.detach(), bias.detach()


def with_batch_norm(network: LocalNetwork) -> LocalNetwork:
    """A copy whose layers are batch-normalised while it trains; `folded_tensors` makes the given network's of its own.

    Batch norm comes behind every Conv1d, Conv2d and Linear (not of a class of their own) that is trained and stands in
    an `nn.Sequential` of a transform or of auxiliary layers, unless a GroupNorm, LayerNorm or RMSNorm comes next there.

    Raises:
        ModelError: There is no such layer; one has no bias, or stands in two places; the network does something else
            with its layers than to call them, so that batch norm cannot be folded; a block compares the goodness of
            labels.
    """
    for block in network.sequence:
        if any(isinstance(leaf, OverlayBlock) for leaf in block.leaves()):
            raise ModelError(
                f"block `{block.name}` compares the goodness of labels, and that goodness is a size, which batch norm "
                "takes away",
                hint="leave `batch_norm` out with objective `forward-forward`",
            )
    twin = copy.deepcopy(network)
    uses = Counter(id(parameter) for _, parameter in twin.named_parameters(remove_duplicate=False))
    found = list(_bare_layers(twin))
    for name, sequential, index, layer in found:
        what = f"block `{name}`: batch norm cannot be folded into a {type(layer).__name__}"
        if layer.bias is None:
            raise ModelError(f"{what} without a bias", hint="give the layer a bias, or leave `batch_norm` out")
        if max(uses[id(layer.weight)], uses[id(layer.bias)]) > 1:
            raise ModelError(f"{what} whose weights stand in two places", hint=_LEAVE_OUT)
        sequential[index] = BatchNormed(layer)
    if not found:
        raise ModelError(f"network `{network.name}` has no layer for batch norm to come behind", hint=_LEAVE_OUT)
    _prove_folding(twin, network)
    return twin


def folded_tensors(network: LocalNetwork) -> dict[str, Tensor]:
    """The tensors of the network that `with_batch_norm` was given, with batch norm folded into them."""
    tensors = network.tensors()
    for block in network.sequence:
        for name, module in block.named_modules():
            if isinstance(module, BatchNormed):
                prefix = f"{block.name}.{name}."
                tensors = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
                tensors[f"{prefix}weight"], tensors[f"{prefix}bias"] = module.folded()
    return tensors


def _bare_layers(network: LocalNetwork) -> Iterator[tuple[str, nn.Sequential, int, _Layer]]:
    """Layer's name, container, place and layer wherever batch norm belongs."""
    for block in network.sequence:
        for leaf in block.leaves():
            parts = [leaf.transform, *([] if leaf.readout is None else [leaf.readout.auxiliary])]
            for module in (inner for part in parts if part is not None for inner in part.modules()):
                if isinstance(module, nn.Sequential):
                    yield from ((leaf.name, module, index, layer) for index, layer in _bare(module))


def _bare(sequential: nn.Sequential) -> Iterator[tuple[int, _Layer]]:
    modules = list(sequential)
    for index, module in enumerate(modules):
        # A class of somebody's own may do anything with its weight.
        plain = type(module) in (nn.Conv1d, nn.Conv2d, nn.Linear)
        if plain and not isinstance(next(iter(modules[index + 1 :]), None), _NORMS):
            layer = cast(_Layer, module)
            if layer.weight.requires_grad:
                yield index, layer


def _prove_folding(normed: LocalNetwork, network: LocalNetwork) -> None:
    """Refuse, before anything is trained, a network that is another one once batch norm is folded."""
    trained, plain = copy.deepcopy(normed), copy.deepcopy(network)
    draw = torch.Generator().manual_seed(0)
    for module in trained.modules():
        if isinstance(module, BatchNormed):
            for tensor in (module.norm.weight, module.norm.bias, module.norm.running_mean, module.norm.running_var):
                cast(Tensor, tensor).data.uniform_(0.5, 1.5, generator=draw)
    try:
        plain.load_tensors(folded_tensors(trained))
        same = all(
            torch.allclose(one, other, rtol=1e-3, atol=1e-3)
            for one, other in zip(_seen(trained), _seen(plain), strict=True)
        )
    except (ModelError, RuntimeError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise ModelError(
            f"network `{network.name}` cannot be trained with batch norm: {first_line(error)}", hint=_LEAVE_OUT
        ) from error
    if not same:
        raise ModelError(
            f"network `{network.name}` is another one once batch norm is folded: it does more with its layers than to "
            "call them in turn",
            hint=_LEAVE_OUT,
        )


@torch.no_grad()
def _seen(network: LocalNetwork) -> list[Tensor]:
    """Hand-overs and log-probabilities of a few rows, in evaluation."""
    x = torch.randn((3, *network.input_shape), generator=torch.Generator().manual_seed(1))
    if network.input_dtype == "int64":
        x = torch.zeros_like(x, dtype=torch.int64)
    with evaluating(network):
        outputs = network.block_outputs(x)
    return [one for output in outputs for one in (output.handover, *output.readout_log_probabilities)]
