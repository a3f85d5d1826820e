"""The speed benchmark behind `edgeff bench speed`: the same networks by every method on every runtime, by turns.

For each network, batch and number of threads every contender first looks for its fastest settings, each in a
short-lived process. Then one process of each is started and makes its first update; they are given a burst of updates
each, one after another, for some rounds, so that a machine that others disturb is disturbed for all. Only one process
works at a time. A row has the median of its rounds; rows that cannot be had stay in, with the reason under `skipped`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from audit_peers import ROOT, Skipped, output
from speed_contenders import (
    BATCHES,
    METHODS,
    NETWORKS,
    PROVIDERS,
    RUNTIMES,
    THREADS,
    Cell,
    Speed,
    contenders,
    device_python,
)
from speed_entry import COLUMNS, Entry, Row, Say
from speed_growth import growth
from speed_plot import plot

from edgeff.errors import EdgeffError

# What the command knows of the benchmark.
__all__ = [
    "BATCHES",
    "COLUMNS",
    "METHODS",
    "NETWORKS",
    "PROVIDERS",
    "RUNTIMES",
    "THREADS",
    "Speed",
    "contenders",
    "growth",
    "plot",
    "providers",
    "rows",
]


def rows(chosen: Speed, say: Say = lambda text: None) -> Iterator[Row]:
    """Measure cell after cell. Takes minutes for each; what goes on is said."""
    (ROOT / ".demo").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".demo") as parent:
        for cell in cells(chosen):
            yield from cell_rows(cell, chosen, Path(parent) / cell.network, say)


def cells(chosen: Speed) -> Iterator[Cell]:
    """In the order of the table."""
    for network in chosen.networks:
        for batch in chosen.batches:
            for threads in chosen.threads:
                yield Cell(network, batch, threads)


def cell_rows(cell: Cell, chosen: Speed, folder: Path, say: Say) -> list[Row]:
    """The rows of a cell; `folder` is for its network's files."""
    entries = [Entry(one, cell, chosen, folder) for one in contenders(chosen.methods, chosen.runtimes)]
    with ExitStack() as stack:
        for entry in entries:
            stack.callback(entry.stop)
            entry.search(say)
        for entry in entries:
            entry.begin()
        for number in range(chosen.rounds):
            say(f"{cell}: round {number + 1} of {chosen.rounds}")
            for entry in entries:
                entry.burst()
        for entry in entries:
            entry.finish()
    return with_ratios([entry.row for entry in entries])


def with_ratios(found: Sequence[Row]) -> list[Row]:
    """The rows of a cell, each with its speed over that of PyTorch's back-propagation, where that was measured."""
    speeds = [row["rows_per_s"] for row in found if row["method"] == "bp" and row["runtime"].startswith("pytorch")]
    best = max((one for one in speeds if one), default=None)
    return [
        {**row, "ratio": round(row["rows_per_s"] / best, 3) if best and row["rows_per_s"] else None} for row in found
    ]


def providers() -> list[str]:
    """What the onnxruntime of the environment for a GPU can run on.

    Raises:
        EdgeffError: There is none that tells.
    """
    program = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
    try:
        text = output([str(device_python("cuda")), "-c", program], {**os.environ, "ORT_DISABLE_TELEMETRY": "1"})
    except Skipped as error:
        hint = "leave `--provider` out to measure on the CPU"
        raise EdgeffError(f"no onnxruntime tells what it can run on: {error}", hint=hint) from error
    found: list[str] = json.loads(text)
    return found
