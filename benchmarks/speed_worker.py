"""A worker of the speed benchmark for a peer: see `speed_protocol` for what it says.

    .venv/bin/python benchmarks/speed_worker.py speed_torch JOB

runs in the peer's own environment. The module offers `set_up(threads)`, which returns the runtime's version, a
`Trainer` as in `audit_protocol`, and `placed(job, x, y)` where it wants its two batches otherwise than as arrays.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from audit_protocol import Job, Trainer, check_learning, measure_from_here, rows
from speed_protocol import Ready, Taken, answers, serve

Batch = tuple[Any, Any]


def main() -> None:
    channel = answers()
    module: Any = importlib.import_module(sys.argv[1])
    job = Job(**json.loads(sys.argv[2]))
    version = module.set_up(job.threads)
    x, y = rows(job)
    placed: Callable[..., Sequence[Batch]] = getattr(module, "placed", lambda job, x, y: list(zip(x, y, strict=True)))
    batches = placed(job, x, y)
    del x, y
    floor = measure_from_here()
    trainer = module.Trainer(job)
    first_update(trainer, batches[0])
    ready = Ready(version, job.micro_batch, floor.resident)
    serve(channel, ready, bursts(trainer, batches), lambda: Taken(floor.training_bytes()))


def first_update(trainer: Trainer, batch: Batch) -> None:
    """Compile, plan and choose kernels, and check that something is learnt."""
    before = [read() for read in trainer.parameters()]
    loss = trainer.update(*batch)
    check_learning([loss], before, [read() for read in trainer.parameters()])


def bursts(trainer: Trainer, batches: Sequence[Batch]) -> Callable[[int], float]:
    """A function that makes so many updates on the batches by turns; the seconds they took."""
    following = cycle(batches)

    def burst(updates: int) -> float:
        began = time.perf_counter()
        for _ in range(updates):
            trainer.update(*next(following))
        return time.perf_counter() - began

    return burst


if __name__ == "__main__":
    main()
