"""PyTorch in the speed benchmark, as fast as it can be: fused AdamW, oneDNN, losses of a batch read once.

Settings: `channels_last`, the order of maps in memory; `compile`, whether forward and backward pass go through
`torch.compile`; `device`, `cpu` unless given. Method `bp-deepsup` sums the losses of all blocks' scores and goes back
through the whole network once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import peer_torch
import torch
from audit_protocol import Array, Job, micro_batches
from torch import Tensor
from torch.nn.functional import cross_entropy

set_up = peer_torch.set_up


def placed(job: Job, x: Array, y: Array) -> list[tuple[Tensor, Tensor]]:
    """The batches as tensors on their device, in the order of maps that is trained in."""
    return [
        (_ordered(job.settings, torch.from_numpy(rows)), torch.from_numpy(labels).to(_device(job.settings)))
        for rows, labels in zip(x, y, strict=True)
    ]


class Trainer(peer_torch.Trainer):
    """The network as one block, with its optimiser."""

    def __init__(self, job: Job) -> None:
        super().__init__(replace(job, settings={**job.settings, "onednn": True, "fused_adamw": True}))
        for block in self.blocks:
            block.to(_device(job.settings))
            if job.settings.get("channels_last"):
                block.to(memory_format=torch.channels_last)
        self.slices = micro_batches(job)
        self.forward = torch.compile(self.losses, dynamic=False) if job.settings.get("compile") else self.losses

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """These rows' part of the batch's mean loss, summed over the blocks that have scores."""
        found = []
        for block in self.blocks:
            x = block.transform(x)
            if block.readout is not None:
                found.append(cross_entropy(block.readout(x), y, reduction="sum"))
            if block is not self.blocks[-1]:
                x = block.handover(x)
        return sum(found[1:], found[0]) / self.job.batch

    def update(self, x: Tensor, y: Tensor) -> float:  # type: ignore[override]
        """One update."""
        total = torch.zeros((), device=x.device)
        for part in self.slices:
            loss = self.forward(x[part], y[part])
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        assert self.optimizer is not None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total)


def _device(settings: Mapping[str, Any]) -> torch.device:
    return torch.device(settings.get("device", "cpu"))


def _ordered(settings: Mapping[str, Any], rows: Tensor) -> Tensor:
    rows = rows.to(_device(settings))
    return rows.contiguous(memory_format=torch.channels_last) if settings.get("channels_last") else rows
