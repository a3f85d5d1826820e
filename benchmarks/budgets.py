"""Planned against measured training bytes: the reference networks, three budgets, both schedules.

The budgets are the smallest that a plan can be found for, the one with which the planner is free to be fast, and the
one halfway between them; fewer where these are the same to a MiB. Each row is the median of three fresh processes of
the device environment, one thread. A plan is right where it is within 10 % of what was measured, or 2 MiB; a budget is
kept where no more was measured.

    .venv/bin/python benchmarks/budgets.py --batch 16
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from edgeff.artifact import open_artifact
from edgeff.runtime.measure import UPDATES, measure_method
from edgeff.runtime.methods import request_for
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Request
from edgeff.table import table
from edgeff.units import format_bytes

ROOT = Path(__file__).resolve().parent.parent
DEVICE = ROOT / ".venv-device" / "bin" / "python"
NETWORKS = ("har-cnn", "kws-dscnn", "vgg8", "deep24", "mlp")
SCHEDULES = ("sweep", "stage")
MIB = 2**20
_COLUMNS = (
    "network",
    "schedule",
    "budget",
    "micro-batch",
    "planned",
    "measured",
    "planned - measured",
    "right",
    "kept",
)


def artifact_of(network: str, folder: Path) -> Path:
    """The artifact of a reference network with random weights, made once."""
    path = folder / network / "artifact"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        script = str(ROOT / "benchmarks" / "audit_files.py")
        subprocess.run([sys.executable, script, "artifact", network, str(path.parent)], check=True)
    return path


def budgets(path: Path, schedule: str, batch: int) -> list[int]:
    """Bytes over the floor."""
    manifest = open_artifact(path).manifest
    request = Request(batch, rows=UPDATES * batch, row_bytes=3 * 8 * UPDATES * batch, disk_bytes=2**40)
    request = request_for(manifest, schedule, request)
    smallest = -(-smallest_budget(manifest, request) // MIB) * MIB
    fastest = -(-plan(manifest, request).planned_bytes // MIB) * MIB
    return sorted({smallest, (smallest + fastest) // 2 // MIB * MIB, fastest})


def rows(networks: Sequence[str], batch: int, folder: Path) -> Iterator[dict[str, Any]]:
    """One for each network, schedule and budget."""
    for network in networks:
        path = artifact_of(network, folder)
        for schedule in SCHEDULES:
            for budget in budgets(path, schedule, batch):
                found = measure_method(path, schedule, batch_size=batch, budget_bytes=budget, python=str(DEVICE))
                plain = {key: value for key, value in dataclasses.asdict(found).items() if key != "blocks"}
                yield {"network": network, "budget_bytes": budget, **plain}


def is_right(row: dict[str, Any]) -> bool:
    """Whether planned and measured bytes agree."""
    difference = abs(row["planned_bytes"] - row["training_bytes"])
    return bool(difference <= max(2 * MIB, 0.1 * row["training_bytes"]))


@click.command()
@click.option("--network", "networks", multiple=True, default=NETWORKS)
@click.option("--batch", type=int, default=128)
@click.option("--folder", type=click.Path(path_type=Path), default=ROOT / ".demo" / "budgets")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each row.")
def main(networks: Sequence[str], batch: int, folder: Path, as_json: bool) -> None:
    """Measure, and print a table."""
    found = []
    for row in rows(networks, batch, folder):
        found.append(row)
        print(
            json.dumps(row) if as_json else " ".join(_cells(row)),
            flush=True,
            file=sys.stdout if as_json else sys.stderr,
        )
    if not as_json:
        print(table(_COLUMNS, [_cells(row) for row in found]))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    difference = (row["planned_bytes"] - row["training_bytes"]) / MIB
    return (
        row["network"],
        row["method"],
        format_bytes(row["budget_bytes"]),
        str(row["micro_batch"]),
        format_bytes(row["planned_bytes"]),
        format_bytes(row["training_bytes"]),
        f"{difference:+.2f} MiB",
        "yes" if is_right(row) else "NO",
        "yes" if row["training_bytes"] <= row["budget_bytes"] else "NO",
    )


if __name__ == "__main__":
    main()
