"""An update on PyTorch in a process of its own, measured: back-propagation and local learning, for study `systems`.

    python -m edgeff.studies.torch_process '{"preset": ..., "arguments": {...}, "method": "bp", "batch": 32, ...}'

prints floor and training bytes and rows per second as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgeff.errors import RunError

# Local learning, every block by its own loss on each part of a batch.
LOCAL = "local"
# Back-propagation, in the order of memory: each with whether the batch is cut, and whether activations are made again.
METHODS: Mapping[str, tuple[bool, bool]] = {
    "bp": (False, False),
    "bp+accumulation": (True, False),
    "bp+checkpointing": (False, True),
    "bp+accumulation+checkpointing": (True, True),
}
UPDATES = {"cpu": 3, "cuda": 7}
# Of torch, and of the libraries that it calls, where they find no room.
_OUT_OF_MEMORY = (
    "OutOfMemoryError",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine",
)


@dataclass(frozen=True)
class TorchMeasured:
    """What a method took.

    Attributes:
        runtime: `torch` and its version.
        micro_batch: Rows that ran at once.
        floor_bytes: Before the network was made: resident on the CPU, allocated on a GPU.
        training_bytes: The most since then, over the floor.
        rows_per_s: Median over the updates but the first; on the CPU of a second process, with the settings that are
            fastest instead of those that take least.
    """

    runtime: str
    micro_batch: int
    floor_bytes: int
    training_bytes: int
    rows_per_s: float


class DoesNotFit(RunError):
    """A method needs more than the GPU may give."""


def measure_torch(
    preset: str,
    arguments: Mapping[str, Any],
    method: str,
    *,
    batch: int,
    micro_batch: int,
    threads: int,
    device: str = "cpu",
    limit_bytes: int | None = None,
) -> TorchMeasured:
    """Train a preset for some updates in a fresh process, and on the CPU in another one as fast as it can.

    Memory that goes back to the system at once, and is zeroed anew at every update, takes least and costs time.

    Args:
        preset: Name.
        arguments: Of `edgeff.presets.preset`.
        method: `LOCAL` or one of `METHODS`.
        batch: Rows of an update.
        micro_batch: Rows that run at once, where the method cuts a batch.
        threads: Of torch on the CPU.
        device: `cpu` or `cuda`.
        limit_bytes: Of a GPU's memory; None for all.

    Raises:
        DoesNotFit: It needs more than `limit_bytes`.
        RunError: The process failed.
    """
    told = {
        **{"preset": preset, "arguments": dict(arguments), "method": method, "batch": batch, "threads": threads},
        **{"micro_batch": micro_batch, "device": device, "limit_bytes": limit_bytes},
    }
    least = _measure_in_process({**told, "lean": device == "cpu"})
    if device != "cpu":
        return least
    return replace(least, rows_per_s=_measure_in_process({**told, "lean": False}).rows_per_s)


def _measure_in_process(told: Mapping[str, Any]) -> TorchMeasured:
    command = [sys.executable, "-m", "edgeff.studies.torch_process", json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or f"ended with code {done.returncode}").splitlines()[-1]
        if any(text in done.stderr for text in _OUT_OF_MEMORY):
            raise DoesNotFit(f"`{told['method']}` on PyTorch does not fit: {reason}", hint="give the GPU more")
        raise RunError(f"`{told['method']}` on PyTorch failed: {reason}", hint="there may not be enough memory")
    return TorchMeasured(**json.loads(done.stdout))


def _measure_here(told: Mapping[str, Any]) -> TorchMeasured:
    import torch

    from edgeff.runtime.allocator import set_lean_allocator

    if told["lean"]:
        set_lean_allocator()
    torch.set_num_threads(told["threads"])
    device = torch.device(told["device"])
    warm = torch.nn.Conv2d(3, 4, 3).to(device)
    # What torch loads on its first use is no training.
    torch.autograd.backward(warm(torch.zeros(1, 3, 8, 8, device=device)).sum())
    read = _gpu_reader(told["limit_bytes"]) if device.type == "cuda" else _resident_reader()
    size = told["micro_batch"] if METHODS.get(told["method"], (True, False))[0] else told["batch"]
    seconds = _seconds(told, size, device)
    floor, training = read()
    typical = sorted(seconds[1:])[(len(seconds) - 1) // 2]
    version = torch.__version__.partition("+")[0]
    return TorchMeasured(f"torch {version}", size, floor, training, told["batch"] / typical)


def _seconds(told: Mapping[str, Any], size: int, device: Any) -> list[float]:
    """Of each of some updates of a network that is made here."""
    import torch
    from torch.nn.utils import convert_conv2d_weight_memory_format

    from edgeff.presets import preset

    network = preset(told["preset"], **told["arguments"])
    if told["method"] != LOCAL:
        network = network.regroup("whole", "last")
    network.to(device)
    if not told["lean"]:
        convert_conv2d_weight_memory_format(network, torch.channels_last)
    passes = _local_pass(network) if told["method"] == LOCAL else _whole_pass(network, METHODS[told["method"]][1])
    update = _update(network, size, passes, fused=not told["lean"])
    x = torch.randn(told["batch"], *network.input_shape, device=device)
    y = torch.arange(told["batch"], device=device) % len(network.classes)
    seconds = []
    for _ in range(UPDATES[device.type]):
        began = time.perf_counter()
        update(x, y)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def _resident_reader() -> Callable[[], tuple[int, int]]:
    """Floor now, and when it is called the most that was resident above it, both of this process."""
    from edgeff.runtime.meter import Meter

    meter = Meter()

    def read() -> tuple[int, int]:
        reading = meter.read()
        return reading.floor_bytes, reading.training_bytes

    return read


def _gpu_reader(limit_bytes: int | None) -> Callable[[], tuple[int, int]]:
    """As `_resident_reader`, of what torch has allocated on the GPU; at most `limit_bytes` from now on."""
    import torch

    if limit_bytes is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total))
    torch.cuda.reset_peak_memory_stats()
    floor = torch.cuda.memory_allocated()
    return lambda: (floor, torch.cuda.max_memory_allocated() - floor)


# Adds the gradients of some rows, given with their labels and weights.
_Pass = Callable[[Any, Any, Any], None]


def _update(network: Any, size: int, passes: _Pass, *, fused: bool = False) -> Callable[[Any, Any], None]:
    """One update by AdamW, the batch in parts of `size`."""
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), fused=fused)

    def update(x: Any, y: Any) -> None:
        for start in range(0, len(y), size):
            labels = y[start : start + size]
            passes(x[start : start + size], labels, torch.full((len(labels),), 1.0 / len(y), device=y.device))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def _local_pass(network: Any) -> _Pass:
    """Through block after block, each of which learns from what the one before hands over."""
    import torch

    def run(part: Any, labels: Any, weight: Any) -> None:
        for block in network.sequence:
            handover, readings = block(part)
            torch.autograd.backward(block.loss(readings, labels, weight))
            part = handover.detach()
            del handover, readings

    return run


def _whole_pass(network: Any, again: bool) -> _Pass:
    """Through all layers of one block and back; `again`: a layer's inner activations are made again."""
    import torch
    from torch.utils.checkpoint import checkpoint

    whole = network.sequence[0]

    def run(part: Any, labels: Any, weight: Any) -> None:
        readings = ()
        for leaf in whole.leaves():
            part, readings = checkpoint(leaf, part, use_reentrant=False) if again else leaf(part)
        torch.autograd.backward(whole.loss(readings, labels, weight))

    return run


if __name__ == "__main__":
    print(json.dumps(asdict(_measure_here(json.loads(sys.argv[1])))))
