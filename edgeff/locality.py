"""Whether a network's learning is local, found out by watching it learn.

Nothing is read off the code: an update is run on copies of the network, whatever it does inside. A block is local when
no later block's weights change what it learns, when what it is handed over has no graph, and when its own graph is gone
before the next block runs. An update that sums all losses over hand-overs that are not detached fails all three; so
does a readout whose gradient reaches the blocks, which makes learning *hybrid*.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgeff.learner import Learner, learn_batch
from edgeff.model import LocalNetwork
from edgeff.pretrain_settings import PretrainSettings

# Changes a network's weights by one batch: rows (N, *input_shape), labels (N,) int64.
Update = Callable[[LocalNetwork, Tensor, Tensor], object]
_ROWS = 8
# Plain steps along the gradient: AdamW's first is its sign, which small influences do not turn.
_PLAIN = PretrainSettings(optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", learning_rate=0.1)


@dataclass(frozen=True)
class BlockLocality:
    """What was seen of one block.

    Attributes:
        name: Of the block.
        layers: How many layers learn as one in it.
        reached_by: Later blocks whose weights change what it learns.
        attached: It was handed over a tensor through which a gradient could flow back.
        held: Tensors that earlier blocks still held for their gradients when it began.
    """

    name: str
    layers: int
    reached_by: tuple[str, ...]
    attached: bool
    held: int

    @property
    def local(self) -> bool:
        """It learns from itself and what it is handed over alone."""
        return not (self.reached_by or self.attached or self.held)


@dataclass(frozen=True)
class Locality:
    """What was seen of a network.

    Attributes:
        blocks: In order.
        left: Tensors that were still held for gradients after the update.
    """

    blocks: tuple[BlockLocality, ...]
    left: int

    @property
    def local(self) -> bool:
        """Every block is local, and nothing is held on to."""
        return not self.left and all(block.local for block in self.blocks)

    @property
    def kind(self) -> str:
        """`local`; `back-propagation` where all layers are one block; `hybrid` where a block is not local."""
        if not self.local:
            return "hybrid"
        return "back-propagation" if len(self.blocks) == 1 and self.blocks[0].layers > 1 else "local"


def local_update(network: LocalNetwork, x: Tensor, y: Tensor) -> None:
    """The update of `edgeff pretrain`, with plain steps along the gradient."""
    learn_batch([Learner(block, _PLAIN, steps=1) for block in network.sequence], x, y, step=1)


def check_locality(network: LocalNetwork, update: Update = local_update, *, seed: int = 0) -> Locality:
    """Watch a network learn.

    Args:
        network: Built; it is not changed.
        update: What is watched.
        seed: Of rows, labels, dropout and of how weights are moved.
    """
    draw = torch.Generator().manual_seed(seed)
    x = _rows(network, draw)
    y = torch.randint(0, len(network.classes), (_ROWS,), generator=draw)
    seen = _Seen()
    learnt = _learn(network, update, x, y, seed, seen)
    names = [block.name for block in network.sequence]
    reached: dict[str, list[str]] = {name: [] for name in names}
    for later in range(1, len(names)):
        moved = copy.deepcopy(network)
        _move(moved.sequence[later], draw)
        other = _learn(moved, update, x, y, seed, _Seen())
        for name in names[:later]:
            if any((other[name][key] != tensor).any() for key, tensor in learnt[name].items()):
                reached[name].append(names[later])
    blocks = tuple(
        BlockLocality(
            name=block.name,
            layers=len(block.leaves()),
            reached_by=tuple(reached[block.name]),
            attached=block.name in seen.attached,
            held=seen.held.get(block.name, 0),
        )
        for block in network.sequence
    )
    return Locality(blocks, seen.left)


class _Seen:
    """What is seen during one update: tensors that autograd keeps, and what blocks are called with."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[_Saved] = weakref.WeakSet()
        self.attached: set[str] = set()
        self.held: dict[str, int] = {}
        self.left = 0

    @contextmanager
    def watching(self, network: LocalNetwork) -> Iterator[None]:
        for block in network.blocks:
            block.forward = partial(self._begun, block, block.forward)  # a hook would miss who calls `forward` itself
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda saved: saved.tensor):
            yield
        for block in network.blocks:
            del block.forward
        self.left = len(self.alive)

    def _begun(self, block: nn.Module, forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        self._begins(block, next(iter((*given, *named.values()))))
        return forward(*given, **named)

    def _begins(self, block: nn.Module, x: Tensor) -> None:
        name = str(block.name)
        self.held[name] = max(len(self.alive), self.held.get(name, 0))
        if x.requires_grad:
            self.attached.add(name)

    def _keep(self, tensor: Tensor) -> _Saved:
        # Without its graph: an operation that saves its own result would keep itself alive by it.
        saved = _Saved(tensor.detach())
        self.alive.add(saved)
        return saved


class _Saved:
    """A tensor that autograd keeps for a gradient; gone when the graph is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _learn(
    network: LocalNetwork, update: Update, x: Tensor, y: Tensor, seed: int, seen: _Seen
) -> dict[str, dict[str, Tensor]]:
    """The weights of every block after an update of a copy, by block and name."""
    learning = copy.deepcopy(network).train()
    with torch.random.fork_rng(devices=[]), seen.watching(learning):
        torch.manual_seed(seed)
        kept = update(learning, x, y)  # until all is counted: an update may hold its graphs by what it returns
    del kept
    return {
        block.name: {name: tensor.detach().clone() for name, tensor in block.named_parameters()}
        for block in learning.sequence
    }


def _rows(network: LocalNetwork, draw: torch.Generator) -> Tensor:
    shape = (_ROWS, *network.input_shape)
    if network.input_dtype == "int64":
        return torch.randint(0, 2, shape, generator=draw)
    return torch.randn(shape, generator=draw)


def _move(block: nn.Module, draw: torch.Generator) -> None:
    """Move every weight of a block by about its own size, those that it does not learn included."""
    with torch.no_grad():
        for tensor in (*block.parameters(), *(one for one in block.buffers() if one.is_floating_point())):
            tensor.add_(torch.randn(tensor.shape, generator=draw) * (tensor.abs().mean() + 0.1))
