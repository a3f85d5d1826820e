"""What threads are best for: rows per second of a sweep for each way to divide them, by turns in one process.

With `--no-arena`, on one thread in memory that graphs take anew in each run: two runs tell what an arena gives.

    .venv-device/bin/python benchmarks/workers.py ARTIFACT --threads 2 --batch 128 --micro-batch 4

Updates on random rows in bursts of half a second. Every way has weights and graphs of its own; the memory that graphs
run in is one for all.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import numpy as np

from edgeff.artifact import Artifact, open_artifact
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.network import open_network
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.start import start
from edgeff.runtime.stops import never
from edgeff.runtime.update import TrainingRows, Update
from edgeff.table import table

BURST_SECONDS = 0.5


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--threads", type=click.IntRange(2), default=2, show_default=True, help="That may work at once.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Rows of a batch.")
@click.option("--micro-batch", type=click.IntRange(1), default=4, show_default=True, help="Rows that pass at once.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Bursts of each way.")
@click.option("--arena/--no-arena", default=True, show_default=True, help="Whether graphs keep their memory.")
def main(artifact: Path, threads: int, batch: int, micro_batch: int, rounds: int, arena: bool) -> None:
    """Print the medians over the bursts, and each by itself."""
    engine, _, _ = start(threads)
    opened = open_artifact(artifact)
    asked = divided(threads) if arena else [(1, 1)]
    plans = [planned(opened, of_all, workers, batch, micro_batch, arena=arena) for of_all, workers in asked]
    if arena:
        engine.reserve(max(one.arena_bytes for one in plans))
    updates = [update(opened, engine, one) for one in plans]
    index = np.arange(batch)
    found: list[list[float]] = [[] for _ in plans]
    for number in range(rounds + 1):
        for one, speeds in zip(updates, found, strict=True):
            speed = burst(one, index)
            if number:  # the first loads
                speeds.append(speed)
    lines = [
        (
            f"{one.workers}",
            f"{one.operator_threads}",
            f"{one.planned_bytes / 2**20:.1f} MiB",
            f"{statistics.median(speeds):.1f}",
            " ".join(f"{speed:.0f}" for speed in speeds),
        )
        for one, speeds in zip(plans, found, strict=True)
    ]
    click.echo(table(("workers", "threads of an operator", "planned", "rows/s", "bursts"), lines))


def divided(threads: int) -> list[tuple[int, int]]:
    """Threads and workers: one thread, all threads for every operator, and what else they can be divided into."""
    return [(1, 1), *((threads, workers) for workers in range(1, threads + 1) if threads % workers == 0)]


def planned(artifact: Artifact, threads: int, workers: int, batch: int, micro_batch: int, *, arena: bool) -> Plan:
    """The plan of a sweep on so many threads."""
    request = Request(
        batch_size=batch,
        rows=batch,
        schedule="sweep",
        updates="accumulated",
        micro_batch=micro_batch,
        threads=threads,
        workers=workers,
        arena=arena,
    )
    return plan(artifact.manifest, request)


def update(artifact: Artifact, engine: OnnxRuntime, one: Plan) -> Update:
    """Updates by a plan, with weights of their own."""
    names = [block.name for block in artifact.manifest.blocks]
    network = open_network(artifact, engine, trained=names, accumulate=True)
    block = artifact.manifest.blocks[0]
    x = np.random.default_rng(0).standard_normal((one.batch_size, *block.input.shape)).astype(block.input.dtype)
    y = np.arange(one.batch_size, dtype=np.int64) % len(artifact.manifest.classes)
    rows = TrainingRows(x, y, MixedOrder(one.batch_size, 0, one.batch_size, 0.0, 0))
    return Update(network, one, rows, 0, None, None, {}, never, 0)


def burst(one: Update, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Rows per second of updates for half a second."""
    began, count, seconds = time.perf_counter(), 0, 0.0
    while seconds < BURST_SECONDS:
        one.run(index, 1 + count, 1e-4)
        count += 1
        seconds = time.perf_counter() - began
    return count * len(index) / seconds


if __name__ == "__main__":
    main()
