"""Networks whose blocks each learn from a loss of their own.

A `LocalBlock` is any `nn.Module` with a readout (goodness, projection, temperature) and a loss; a `ChainedBlock` is
several of them learning as one. `LocalNetwork.regroup` turns the one into the other: the dial between strictly local
learning and back-propagation. The compiler in `edgeff.export` knows blocks by what they offer (`name`, `input_shape`,
`handover_shape`, `forward`, `loss`, `log_probabilities`, `describe`), not by their class.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgeff.blocks import Block, ChainedBlock, LocalBlock, Losses, Reading
from edgeff.errors import ModelError
from edgeff.fusion import LogProbabilitySum
from edgeff.probe import Shape

__all__ = ["Block", "BlockOutput", "ChainedBlock", "Layers", "LocalBlock", "LocalNetwork", "Losses", "Source"]

Layers = Literal["1-layer", "2-layer", "whole"]
_LAYERS_PER_BLOCK: Mapping[str, int | None] = {"1-layer": 1, "2-layer": 2, "whole": None}
_INPUT_DTYPES = {"float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class Source:
    """How a network came about, so that a run folder can build it again.

    Attributes:
        kind: `preset` or `factory`.
        name: Of the preset, or `path/to/file.py:function`.
        arguments: JSON-able keyword arguments it was called with.
        regroups: `(layers, losses)` of each `LocalNetwork.regroup` since, in order.
    """

    kind: Literal["preset", "factory"]
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    regroups: tuple[tuple[Layers, Losses], ...] = ()


class BlockOutput(NamedTuple):
    """What a block gives for N rows.

    Attributes:
        handover: (N, *handover_shape), detached.
        readings: Of each readout.
        readout_log_probabilities: Of each readout, (N, K).
        log_probabilities: What the block adds to the prediction, (N, K).
    """

    handover: Tensor
    readings: tuple[Reading, ...]
    readout_log_probabilities: tuple[Tensor, ...]
    log_probabilities: Tensor


class LocalNetwork(nn.Module):
    """Blocks in order, with detached hand-overs between them and one fused prediction.

    Args:
        blocks: In order; they are built here, for rows of `input_shape`.
        input_shape: One row after preprocessing.
        classes: Names in the order of the labels, or how many (named `0`, `1`, ...).
        name: Of the network.
        fusion: Weights of the readouts in the prediction; None for 1 each.
        input_dtype: `float32`, or `int64` for tokens (an `Embedding` first).
        source: How it came about, where a run folder should be able to build it again.

    Raises:
        ModelError: No blocks, names that are not unique or not of letters, digits, `_` and `-`, fewer than two classes,
            a module that two blocks share, or a block that cannot be built.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        input_shape: Sequence[int],
        classes: int | Sequence[str],
        name: str = "network",
        fusion: LogProbabilitySum | None = None,
        input_dtype: Literal["float32", "int64"] = "float32",
        source: Source | None = None,
    ) -> None:
        super().__init__()
        if input_dtype not in _INPUT_DTYPES:
            raise ModelError(f"input_dtype must be `float32` or `int64`, got `{input_dtype}`")
        self.name = name
        self.classes = _class_names(classes)
        self.input_shape: Shape = tuple(input_shape)
        self.input_dtype = input_dtype
        self.source = source
        self.blocks = nn.ModuleList(blocks)
        _name_blocks(self.sequence)
        _refuse_shared_parameters(self.sequence)
        self._build()
        self.fuse_readouts(fusion or LogProbabilitySum())

    def _build(self) -> None:
        shape, dtype = self.input_shape, _INPUT_DTYPES[self.input_dtype]
        for block in self.sequence:
            block.build(shape, len(self.classes), input_dtype=dtype)
            shape, dtype = block.handover_shape, torch.float32

    @property
    def sequence(self) -> tuple[Block, ...]:
        """The blocks in order, as `Block`s."""
        return tuple(cast(Block, block) for block in self.blocks)

    @property
    def fusion_weights(self) -> tuple[float, ...]:
        """Weight of each block's log-probabilities in the prediction."""
        return self.fusion.for_count(len(self.blocks))

    @property
    def readout_weights(self) -> tuple[float, ...]:
        """Weight of each readout's log-probabilities in the prediction, over all blocks in order."""
        weights: list[float] = []
        for block, weight in zip(self.sequence, self.fusion_weights, strict=True):
            inner = block.fusion.for_count(block.readouts_count) if isinstance(block, ChainedBlock) else (1.0,)
            weights += [weight * own for own in inner]
        return tuple(weights)

    def fuse_readouts(self, fusion: LogProbabilitySum) -> None:
        """Set the weight of every readout, over all blocks in order, in place.

        Raises:
            ModelError: Another number of weights than the network has readouts, or none above 0.
        """
        weights = iter(fusion.for_count(sum(block.readouts_count for block in self.sequence)))
        blocks = []
        for block in self.sequence:
            own = tuple(next(weights) for _ in range(block.readouts_count))
            blocks.append(own[0] if not isinstance(block, ChainedBlock) else float(any(own)))
            if isinstance(block, ChainedBlock):
                block.fusion = LogProbabilitySum(own) if any(own) else LogProbabilitySum()
        self.fusion = LogProbabilitySum(tuple(blocks))

    def outputs(self, x: Tensor) -> Iterator[BlockOutput]:
        """Run block after block on x (N, *input_shape), each on the detached hand-over of the one before."""
        for block in self.sequence:
            handover, readings = block(x)
            x = handover.detach()
            del handover
            yield BlockOutput(x, readings, block.readout_log_probabilities(readings), block.log_probabilities(readings))

    def block_outputs(self, x: Tensor) -> tuple[BlockOutput, ...]:
        """What each block gives for x (N, *input_shape)."""
        return tuple(self.outputs(x))

    def forward(self, x: Tensor) -> Tensor:
        """Fused log-probabilities (N, K), not normalised: argmax is the prediction, softmax its distribution."""
        return self.fusion.fuse([output.log_probabilities for output in self.outputs(x)])

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by `<block>.<name>`, detached and contiguous, sharing storage."""
        return {
            f"{block.name}.{key}": value.detach()
            for block in self.sequence
            for key, value in block.state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors, named as by `tensors()`, into the parameters and buffers.

        Raises:
            ModelError: A tensor that is missing, unknown or of another shape.
        """
        own = self.tensors()
        different = sorted(set(own) ^ set(tensors)) or [
            key for key, value in own.items() if value.shape != tensors[key].shape
        ]
        if different:
            raise ModelError(
                f"weights do not fit network `{self.name}`: tensor `{different[0]}` is "
                f"{_mismatch(different[0], own, tensors)}",
                hint="the weights must come from the same network, with the same settings",
            )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[key])

    def describe(self) -> dict[str, Any]:
        """JSON-able: name, input, classes, fusion and the blocks' parts and settings."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "input_dtype": self.input_dtype,
            "classes": list(self.classes),
            "readout_weights": list(self.readout_weights),
            "blocks": [{"name": block.name, **block.describe()} for block in self.sequence],
        }

    def regroup(self, layers: Layers, losses: Losses = "last") -> LocalNetwork:
        """The same weights in blocks of another size; nothing is shared with this network.

        Args:
            layers: `1-layer`: each local block by itself. `2-layer`: blocks of two (the last may be one). `whole`: one
                block.
            losses: Inside a block: `last` drops all readouts but the last, so `whole` is back-propagation; `all` sums
                the losses, so `whole` is back-propagation with deep supervision.

        Raises:
            ModelError: Unknown choice, or a readout is needed that an earlier regrouping dropped.
        """
        if layers not in _LAYERS_PER_BLOCK or losses not in ("last", "all"):
            raise ModelError(
                f"cannot regroup into `{layers}` with losses `{losses}`",
                hint="layers: `1-layer`, `2-layer` or `whole`; losses: `last` or `all`",
            )
        twin = copy.deepcopy(self)
        leaves = [leaf for block in twin.sequence for leaf in block.leaves()]
        step = _LAYERS_PER_BLOCK[layers] or len(leaves)
        groups = [leaves[start : start + step] for start in range(0, len(leaves), step)]
        _need_readouts(groups, losses)
        twin.blocks = nn.ModuleList([_group(group, layers, losses) for group in groups])
        _rebuild_shapes(twin.sequence)
        kept = [leaf for block in twin.sequence for leaf in block.leaves() if leaf.readout is not None]
        twin.fuse_readouts(_kept_fusion(self, [leaf.name for leaf in kept]))
        if self.source is not None:
            twin.source = replace(self.source, regroups=(*self.source.regroups, (layers, losses)))
        return twin

    def predicting(self) -> LocalNetwork:
        """The same weights without the blocks behind the last that takes part in the prediction.

        Whatever those learn changes no prediction. Nothing is shared with this network.
        """
        count = max(number for number, weight in enumerate(self.fusion_weights, start=1) if weight)
        twin = copy.deepcopy(self)
        twin.blocks = nn.ModuleList(twin.sequence[:count])
        readouts = sum(block.readouts_count for block in twin.sequence)
        twin.fuse_readouts(LogProbabilitySum(self.readout_weights[:readouts]))
        if count < len(self.blocks):
            twin.source = None  # which builds the whole network
        return twin


def _class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    names = tuple(str(label) for label in (range(classes) if isinstance(classes, int) else classes))
    if len(names) < 2:
        raise ModelError(f"a network needs at least two classes, got {len(names)}")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ModelError(f"class names must be unique, got `{repeated[0]}` twice")
    return names


def _name_blocks(blocks: Sequence[Block]) -> None:
    """Give unnamed blocks a name by position, and check all names."""
    if not blocks:
        raise ModelError("a network needs at least one block, got none")
    for index, block in enumerate(blocks, start=1):
        block.name = block.name or f"block{index}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", block.name):
            raise ModelError(f"block name `{block.name}` must consist of letters, digits, `_` and `-`")
    names = [block.name for block in blocks]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ModelError(f"block names must be unique, got `{repeated[0]}` twice")


def _refuse_shared_parameters(blocks: Sequence[Block]) -> None:
    owner: dict[nn.Parameter, str] = {}
    for block in blocks:
        for key, parameter in block.named_parameters():
            if owner.setdefault(parameter, block.name) != block.name:
                raise ModelError(
                    f"blocks `{owner[parameter]}` and `{block.name}` share the parameter `{key}`",
                    hint="a block's update may depend on that block alone: give each its own module",
                )


def _mismatch(key: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    if key not in given:
        return "missing"
    return "unknown" if key not in own else f"of shape {tuple(given[key].shape)}, needed {tuple(own[key].shape)}"


def _need_readouts(groups: Sequence[Sequence[LocalBlock]], losses: Losses) -> None:
    needed = [leaf for group in groups for leaf in (group if losses == "all" else group[-1:])]
    dropped = next((leaf.name for leaf in needed if leaf.readout is None), None)
    if dropped is not None:
        raise ModelError(
            f"layer `{dropped}` has no readout: an earlier regrouping with losses `last` dropped it",
            hint="regroup the original network, or train with losses `all`, which keeps every readout",
        )


def _group(group: Sequence[LocalBlock], layers: Layers, losses: Losses) -> Block:
    if layers == "whole":
        # With the last loss alone this is back-propagation, which has scores to learn from and nothing else.
        last = group[-1].with_scores_alone() if losses == "last" else group[-1]
        return ChainedBlock([*group[:-1], last], losses=losses, name="whole")
    name = f"{group[0].name}-{group[-1].name}"
    return group[0] if len(group) == 1 else ChainedBlock(group, losses=losses, name=name)


def _rebuild_shapes(blocks: Sequence[Block]) -> None:
    """Shapes of chained blocks from their layers: building anew would draw new projections."""
    for block in blocks:
        block.input_shape, block.handover_shape = block.leaves()[0].input_shape, block.leaves()[-1].handover_shape


def _kept_fusion(network: LocalNetwork, kept: Sequence[str]) -> LogProbabilitySum:
    """The old weights of the readouts that are kept; 1 each where all of them would be 0."""
    old = [leaf.name for block in network.sequence for leaf in block.leaves() if leaf.readout is not None]
    by_name = dict(zip(old, network.readout_weights, strict=True))
    weights = tuple(by_name[name] for name in kept)
    return LogProbabilitySum(weights) if any(weights) else LogProbabilitySum()
