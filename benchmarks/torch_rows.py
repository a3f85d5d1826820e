"""What back-propagation takes in PyTorch on the same networks: plain, accumulated, checkpointed, with fused updates.

The same blocks with their hand-over normalisation and the last block's scores, AdamW, float32, one thread. Every
measurement is a fresh process: the floor is what is resident after imports with two batches in memory, before the
network is built; then three updates; training bytes are the resident peak over the floor (VmHWM, reset before). The row
is the median of three, with the number of checkpointed segments, the kernel of AdamW (`foreach=False` or `fused`) and
the setting of the C allocator that take least: first the segments are chosen, then the other two.

    .venv/bin/python benchmarks/torch_rows.py --network deep24 --micro-batch 32 --method bp+accumulation+checkpointing
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

METHODS = (
    "bp",
    "bp+accumulation",
    "bp+checkpointing",
    "bp+accumulation+checkpointing",
    "bp+fused-updates",
    "bp+fused-updates+checkpointing",
)
REPEATS, UPDATES = 3, 3
LEAN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def worker(  # noqa: C901  (one measurement, from beginning to end)
    network: str, method: str, batch: int, micro_batch: int, segments: int, fused: bool
) -> dict[str, float]:
    """Measure in this process."""
    import torch
    from networks import reference
    from torch.utils.checkpoint import checkpoint

    torch.set_num_threads(1)
    probe = reference(network)
    shape, classes = probe.input_shape, len(probe.classes)
    del probe
    x = torch.randn(2, batch, *shape)
    y = torch.randint(0, classes, (2, batch))
    floor = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")

    block = reference(network).regroup("whole", "last").sequence[0]
    leaves = block.leaves()
    for leaf in leaves:
        for module in leaf.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = True
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    options: dict[str, bool] = {"fused": True} if fused else {"foreach": False}
    if "fused-updates" in method:
        _step_inside_backward(parameters, options)
        optimizer = None
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, **options)  # type: ignore[arg-type]
    size = math.ceil(len(leaves) / segments)
    parts = [leaves[start : start + size] for start in range(0, len(leaves), size)]

    def through(part: Sequence[Any], rows: torch.Tensor) -> torch.Tensor:
        for leaf in part:
            rows = leaf.handover(leaf.transform(rows)) if leaf is not leaves[-1] else leaf.readout(leaf.transform(rows))
        return rows

    def scores(rows: torch.Tensor) -> torch.Tensor:
        for part in parts:
            if "checkpointing" in method:
                rows = checkpoint(through, part, rows, use_reentrant=False, preserve_rng_state=False)
            else:
                rows = through(part, rows)
        return rows

    before = [parameter.detach().clone() for parameter in parameters[:1]]
    losses, began = [], time.perf_counter()
    for update in range(UPDATES):
        total = 0.0
        for start in range(0, batch, micro_batch):
            rows = x[update % 2, start : start + micro_batch]
            labels = y[update % 2, start : start + micro_batch]
            loss = torch.nn.functional.cross_entropy(scores(rows), labels, reduction="sum") / batch
            loss.backward()
            total += float(loss)
            del loss
        if optimizer:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    seconds = time.perf_counter() - began
    if not all(map(math.isfinite, losses)) or torch.equal(before[0], parameters[0]):
        raise SystemExit("nothing was learned")
    rate = UPDATES * batch / seconds
    return {"floor_bytes": floor, "training_bytes": _status("VmHWM") - floor, "rows_per_s": rate, "loss": losses[-1]}


def _step_inside_backward(parameters: Sequence[Any], options: dict[str, bool]) -> None:
    """Update a parameter as soon as its gradient is there, and let the gradient go."""
    import torch

    for parameter in parameters:
        own = torch.optim.AdamW([parameter], lr=1e-3, **options)  # type: ignore[arg-type]

        def step(_: Any, own: Any = own) -> None:
            own.step()
            own.zero_grad(set_to_none=True)

        parameter.register_post_accumulate_grad_hook(step)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def measure(job: Sequence[object], lean: bool) -> dict[str, float]:
    """Run a worker."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(LEAN if lean else {})}
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise click.ClickException(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def best_row(network: str, method: str, batch: int, micro_batch: int) -> dict[str, object]:
    """The row with the fewest training bytes over all settings."""
    counts = (1,)
    if "checkpointing" in method:
        from networks import reference

        layers = len(reference(network).blocks)
        counts = tuple(sorted({n for n in (2, 3, 4, 6, 8, 12, layers) if n <= layers}))
    found = {(n, False, True): measure((network, method, batch, micro_batch, n, False), True) for n in counts}
    best, _, _ = min(found, key=lambda key: found[key]["training_bytes"])
    for fused, lean in ((True, True), (False, False), (True, False)):
        found[best, fused, lean] = measure((network, method, batch, micro_batch, best, fused), lean)
    segments, fused, lean = min(found, key=lambda key: found[key]["training_bytes"])
    job = (network, method, batch, micro_batch, segments, fused)
    runs = [found[segments, fused, lean], *(measure(job, lean) for _ in range(REPEATS - 1))]
    import torch

    return {
        "network": network,
        "method": method,
        "runtime": f"pytorch {torch.__version__.partition('+')[0]}",
        "batch": batch,
        "micro_batch": micro_batch,
        "floor_bytes": int(statistics.median(run["floor_bytes"] for run in runs)),
        "training_bytes": int(statistics.median(run["training_bytes"] for run in runs)),
        "planned_bytes": None,
        "rows_per_s": round(statistics.median(run["rows_per_s"] for run in runs), 1),
        "settings": {"segments": segments, "fused_adamw": fused, "lean_allocator": lean},
    }


@click.command()
@click.option("--network", "networks", multiple=True)
@click.option("--method", "methods", multiple=True, default=METHODS)
@click.option("--batch", type=int, default=128)
@click.option("--micro-batch", "sizes", type=int, multiple=True, default=[8])
@click.option("--worker", "job", hidden=True)
def main(networks: Sequence[str], methods: Sequence[str], batch: int, sizes: Sequence[int], job: str | None) -> None:
    """Print a line of JSON for each network, method and micro-batch."""
    if job:
        print(json.dumps(worker(*json.loads(job))))
        return
    for network in networks:
        for method in methods:
            for size in sizes if "accumulation" in method else (batch,):
                print(json.dumps(best_row(network, method, batch, size)), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
