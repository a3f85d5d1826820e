"""Back-propagation on PyTorch in a process of its own, measured by the kernel: the baseline of study `systems`.

    python -m edgeff.studies.torch_process '{"preset": ..., "arguments": {...}, "method": "bp", "batch": 32, ...}'

prints floor and training bytes and rows per second as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgeff.errors import RunError

# In the order of memory: each with whether the batch is cut, and whether activations are made again.
METHODS: Mapping[str, tuple[bool, bool]] = {
    "bp": (False, False),
    "bp+accumulation": (True, False),
    "bp+checkpointing": (False, True),
    "bp+accumulation+checkpointing": (True, True),
}
UPDATES = 3


@dataclass(frozen=True)
class TorchMeasured:
    """What a method took.

    Attributes:
        runtime: `torch` and its version.
        micro_batch: Rows that ran at once.
        floor_bytes: Resident before the network was made.
        training_bytes: Most resident since then, over the floor.
        rows_per_s: Median over the updates but the first.
    """

    runtime: str
    micro_batch: int
    floor_bytes: int
    training_bytes: int
    rows_per_s: float


def measure_torch(
    preset: str, arguments: Mapping[str, Any], method: str, *, batch: int, micro_batch: int, threads: int
) -> TorchMeasured:
    """Train a preset for some updates in a fresh process.

    Raises:
        RunError: The process failed.
    """
    told = {"preset": preset, "arguments": dict(arguments), "method": method, "batch": batch, "threads": threads}
    command = [sys.executable, "-m", "edgeff.studies.torch_process", json.dumps({**told, "micro_batch": micro_batch})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or f"ended with code {done.returncode}").splitlines()[-1]
        raise RunError(f"`{method}` on PyTorch failed: {reason}", hint="there may not be enough memory")
    return TorchMeasured(**json.loads(done.stdout))


def _measure_here(told: Mapping[str, Any]) -> TorchMeasured:
    import torch

    from edgeff.presets import preset
    from edgeff.runtime.allocator import set_lean_allocator
    from edgeff.runtime.meter import Meter

    set_lean_allocator()
    torch.set_num_threads(told["threads"])
    cut, again = METHODS[told["method"]]
    size = told["micro_batch"] if cut else told["batch"]
    warm = torch.nn.Conv2d(3, 4, 3)
    torch.autograd.backward(warm(torch.zeros(1, 3, 8, 8)).sum())  # what torch loads on its first use is no training
    meter = Meter()
    network = preset(told["preset"], **told["arguments"]).regroup("whole", "last")
    update = _update(network, size, again)
    x = torch.randn(told["batch"], *network.input_shape)
    y = torch.arange(told["batch"]) % len(network.classes)
    seconds = []
    for _ in range(UPDATES):
        began = time.perf_counter()
        update(x, y)
        seconds.append(time.perf_counter() - began)
    reading = meter.read()
    typical = sorted(seconds[1:])[(UPDATES - 1) // 2]
    return TorchMeasured(
        f"torch {torch.__version__.partition('+')[0]}",
        size,
        reading.floor_bytes,
        reading.training_bytes,
        told["batch"] / typical,
    )


def _update(network: Any, size: int, again: bool) -> Callable[[Any, Any], None]:
    """One update by AdamW, the batch in parts of `size`; `again`: a layer's inner activations are made again."""
    import torch
    from torch.utils.checkpoint import checkpoint

    whole = network.sequence[0]
    optimizer = torch.optim.AdamW(network.parameters())

    def update(x: Any, y: Any) -> None:
        for start in range(0, len(y), size):
            part, readings = x[start : start + size], ()
            for leaf in whole.leaves():
                part, readings = checkpoint(leaf, part, use_reentrant=False) if again else leaf(part)
            labels = y[start : start + size]
            weight = torch.full((len(labels),), 1.0 / len(y))
            torch.autograd.backward(whole.loss(readings, labels, weight))
            del part, readings
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


if __name__ == "__main__":
    print(json.dumps(asdict(_measure_here(json.loads(sys.argv[1])))))
