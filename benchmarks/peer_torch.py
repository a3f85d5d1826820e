"""A worker of the memory audit: PyTorch. See `audit_protocol` for what is measured; `speed_torch` is built on it.

Settings: `segments`, into how many checkpointed parts the blocks are divided; `fused_adamw`, the kernel of AdamW
(otherwise `foreach=False`: the third would hold temporaries of all parameters at once); `onednn`, whether convolutions
are its or PyTorch's own, which read in 10 MB less code and are slower. Activations are freed as early as PyTorch can:
ReLU works in place, and only the last block has a readout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

# AdamW would import this at its first use, 70 MB of modules: an import like others, so before the floor.
import torch._dynamo
from audit_protocol import (
    BETA1,
    BETA2,
    EPSILON,
    LEARNING_RATE,
    MEZO_EPSILON,
    MEZO_RATE,
    WEIGHT_DECAY,
    Array,
    Job,
    micro_batches,
    serve,
    small,
)
from networks import reference
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

# Numbers of noise drawn at once.
_PIECE = 65536
Part = Callable[[Tensor], Tensor]


class Trainer:
    """The network as one block, with its optimiser."""

    def __init__(self, job: Job) -> None:
        self.job = job
        torch.backends.mkldnn.enabled = bool(job.settings.get("onednn", True))
        self.blocks = blocks_of(job.network, all_scores=job.method == "bp-deepsup")
        self.parts = divided(self.blocks, int(job.settings.get("segments", 1)))
        self.weights = [
            parameter for block in self.blocks for parameter in block.parameters() if parameter.requires_grad
        ]
        self.optimizer: torch.optim.Optimizer | None = None
        self.updates = 0
        if job.method == "bp+fused-updates":
            step_inside_backward(self.weights, self.adamw)
        elif job.method != "mezo":
            self.optimizer = self.adamw(self.weights)

    def adamw(self, weights: Sequence[Tensor]) -> torch.optim.Optimizer:
        """AdamW over some parameters."""
        kernel: dict[str, bool] = {"fused": True} if self.job.settings.get("fused_adamw") else {"foreach": False}
        return torch.optim.AdamW(
            weights, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=WEIGHT_DECAY, **kernel
        )

    def parameters(self) -> list[Callable[[], Array]]:
        """Readers of small parameters."""
        return [lambda one=one: one.detach().cpu().numpy().copy() for one in self.weights if small(one.shape)]  # type: ignore[misc]

    def update(self, x: Array, y: Array) -> float:
        """One update."""
        self.updates += 1
        rows, labels = torch.from_numpy(x), torch.from_numpy(y)
        if self.job.method == "mezo":
            return self.mezo(rows, labels)
        total = 0.0
        for part in micro_batches(self.job):
            loss = self.loss(rows[part], labels[part])
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            del loss
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return total

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """These rows' part of the batch's mean loss."""
        for part in self.parts:
            if "checkpointing" in self.job.method:
                x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = part(x)
        return cross_entropy(x, y, reduction="sum") / self.job.batch

    @torch.inference_mode()
    def mezo(self, x: Tensor, y: Tensor) -> float:
        """Two forward passes, at weights plus and minus one draw of noise, and a step along that noise."""
        self.add_noise(MEZO_EPSILON)
        above = sum(float(self.loss(x[part], y[part])) for part in micro_batches(self.job))
        self.add_noise(-2 * MEZO_EPSILON)
        below = sum(float(self.loss(x[part], y[part])) for part in micro_batches(self.job))
        self.add_noise(MEZO_EPSILON - MEZO_RATE * (above - below) / (2 * MEZO_EPSILON))
        return (above + below) / 2

    def add_noise(self, scale: float) -> None:
        """Add this update's noise, drawn anew from its seed in pieces."""
        draw = torch.Generator().manual_seed(self.updates)
        for weight in self.weights:
            for piece in weight.view(-1).split(_PIECE):
                piece.add_(torch.randn(len(piece), generator=draw), alpha=scale)


def blocks_of(network: str, *, all_scores: bool = False) -> list[Any]:
    """The blocks; all readouts but the last are dropped unless `all_scores`."""
    blocks = [leaf for block in reference(network).sequence for leaf in block.leaves()]
    for block in blocks:
        for module in block.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = True
    return blocks if all_scores else [block.without_readout() for block in blocks[:-1]] + blocks[-1:]


def divided(blocks: Sequence[Any], segments: int) -> list[Part]:
    """The blocks in at most so many parts, each a function of rows."""
    size = math.ceil(len(blocks) / segments)
    return [_through(blocks[start : start + size]) for start in range(0, len(blocks), size)]


def _through(blocks: Sequence[Any]) -> Part:
    def run(x: Tensor) -> Tensor:
        for block in blocks:
            x = block.transform(x)
            x = block.handover(x) if block.readout is None else block.readout(x)
        return x

    return run


def step_inside_backward(weights: Sequence[Tensor], adamw: Callable[[Sequence[Tensor]], Any]) -> None:
    """Update a parameter as soon as its gradient is there, and let the gradient go."""
    for weight in weights:
        own = adamw([weight])

        def step(_: Any, own: Any = own) -> None:
            own.step()
            own.zero_grad(set_to_none=True)

        weight.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]


def set_up(threads: int) -> str:
    """Set the threads; PyTorch's version."""
    torch.set_num_threads(threads)
    return torch.__version__.partition("+")[0]


if __name__ == "__main__":
    serve(set_up(1), Trainer)
