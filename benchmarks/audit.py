"""The memory audit behind `edgeff bench memory`: the same networks by every method on every runtime that can run it.

A row is a network, a method, a runtime, a batch and a micro-batch. Rows that cannot be had stay in, with the reason
under `skipped`. `audit_protocol` says what is measured.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import audit_own
from audit_peers import PEERS, ROOT, Skipped, output, peer_row

OWN = ("stage", "sweep", "last-block")
BASELINES = (
    "bp",
    "bp+accumulation",
    "bp+checkpointing",
    "bp+accumulation+checkpointing",
    "bp+fused-updates",
    "mezo",
)
METHODS = (*OWN, *BASELINES)
RUNTIMES = (audit_own.NAME, *PEERS)
NETWORKS = ("har-cnn", "kws-dscnn", "vgg8", "deep24", "mlp")
# What is measured without `--batch`.
BATCHES = {"har-cnn": (128, 8)}
# Updates on a whole batch at once: there is nothing to choose.
WHOLE_BATCH = ("bp", "bp+checkpointing", "bp+fused-updates")

COLUMNS = (
    *("network", "method", "runtime", "batch", "micro_batch", "best", "floor_bytes", "training_bytes"),
    *("planned_bytes", "rows_per_s", "settings", "skipped"),
)
Row = dict[str, Any]
Measure = Callable[[int], Row]


@dataclass(frozen=True)
class Audit:
    """What to measure.

    Attributes:
        networks: Names of `networks.reference`.
        methods: Of `METHODS`.
        runtimes: Of `RUNTIMES`.
        batches: Empty for 128, and 8 too for har-cnn.
        micro_batches: For methods that have one.
        best: Also look for the micro-batch with the fewest bytes.
    """

    networks: Sequence[str] = NETWORKS
    methods: Sequence[str] = METHODS
    runtimes: Sequence[str] = RUNTIMES
    batches: Sequence[int] = ()
    micro_batches: Sequence[int] = (8,)
    best: bool = False


@dataclass(frozen=True)
class Cell:
    """All of a row but its micro-batch."""

    network: str
    batch: int
    method: str
    runtime: str


def cells(audit: Audit) -> Iterator[Cell]:
    """In the order of the table; edgeff's methods run on its own runtime only."""
    for network in audit.networks:
        for batch in audit.batches or BATCHES.get(network, (128,)):
            for method in audit.methods:
                for runtime in audit.runtimes:
                    if runtime == audit_own.NAME or method in BASELINES:
                        yield Cell(network, batch, method, runtime)


def rows(audit: Audit) -> Iterator[Row]:
    """Measure, row after row. Takes minutes for each."""
    (ROOT / ".demo").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".demo") as folder:
        for cell in cells(audit):
            yield from cell_rows(cell, audit, measure_in(cell, Path(folder)))


def cell_rows(cell: Cell, audit: Audit, measure: Measure) -> Iterator[Row]:
    """The rows of a cell: one for each micro-batch asked for, and the best one."""
    if cell.method in WHOLE_BATCH:
        yield finished(cell, cell.batch, measure)
        return
    for size in dict.fromkeys(min(size, cell.batch) for size in audit.micro_batches):
        yield finished(cell, size, measure)
    if audit.best:
        yield {**finished(cell, cell.batch, lambda size: best_of(measure, powers_of_two(size))), "best": True}


def finished(cell: Cell, size: int, measure: Measure) -> Row:
    """A row with all its columns, skipped or not."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"network": cell.network, "method": cell.method, "runtime": cell.runtime, "batch": cell.batch}
    row |= {"micro_batch": size, "best": False, "settings": {}}
    try:
        return row | measure(size)
    except Skipped as error:
        return row | {"skipped": str(error)}


def powers_of_two(batch: int) -> list[int]:
    """1, 2, 4, ... up to a batch.

    >>> powers_of_two(20)
    [1, 2, 4, 8, 16]
    """
    return [2**power for power in range(batch.bit_length())]


def best_of(measure: Measure, sizes: Sequence[int]) -> Row:
    """The row with the fewest training bytes. Stops after two sizes in a row that took a twentieth more than the best.

    Raises:
        Skipped: No size could be measured; with the last reason.
    """
    best: Row | None = None
    worse, reason = 0, Skipped("there is no size to try")
    for size in sizes:
        try:
            row = measure(size)
        except Skipped as error:
            reason = error
            continue
        if best is None or row["training_bytes"] < best["training_bytes"]:
            best, worse = row, 0
        elif row["training_bytes"] > 1.05 * best["training_bytes"]:
            worse += 1
        if worse == 2:
            break
    if best is None:
        raise reason
    return best


def measure_in(cell: Cell, folder: Path) -> Measure:
    """How a cell is measured at a micro-batch, with its network's files below a folder."""

    def measure(size: int) -> Row:
        files = folder / cell.network
        if cell.runtime == audit_own.NAME:
            write("artifact", cell.network, files, "artifact")
            return audit_own.own_row(cell.method, cell.batch, size, files)
        write("network", cell.network, files, "network.json")
        blocks = len(json.loads((files / "network.json").read_text())["blocks"])
        return peer_row(PEERS[cell.runtime], cell.network, cell.method, cell.batch, size, files, blocks)

    return measure


def write(kind: str, network: str, folder: Path, target: str) -> None:
    """Have `audit_files` write a network's files, once.

    Raises:
        Skipped: It could not.
    """
    if (folder / target).exists():
        return
    if not (ROOT / ".venv" / ".ready").is_file():
        raise Skipped("no environment `.venv`: run `make test`")
    folder.mkdir(exist_ok=True)
    script = ROOT / "benchmarks" / "audit_files.py"
    output([str(ROOT / ".venv" / "bin" / "python"), str(script), kind, network, str(folder)], dict(os.environ))
