"""The command that runs benchmarks: `edgeff bench memory`. The benchmarks live in a checkout, not in the package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgeff.bench_checkout import benchmark, known_names, known_networks, rows_into
from edgeff.cli_bench_speed import speed
from edgeff.errors import EdgeffError
from edgeff.table import table
from edgeff.units import format_bytes

_HEADER = ("network", "method", "runtime", "batch", "micro-batch", "floor", "training", "planned", "rows/s")


@click.group()
def bench() -> None:
    """Run a benchmark of a checkout of edgeff."""


@bench.command()
@click.option("--network", "networks", multiple=True, metavar="NAME", help="Repeatable. Default: all five.")
@click.option("--method", "methods", multiple=True, metavar="M", help="Repeatable. Default: ours and all baselines.")
@click.option("--runtime", "runtimes", multiple=True, metavar="R", help="Repeatable. Default: all.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="Default: 128; har-cnn 8 too.")
@click.option(
    "--micro-batch",
    "sizes",
    multiple=True,
    type=click.IntRange(1),
    default=[8],
    show_default=True,
    help="Of the methods that have one; repeatable.",
)
@click.option("--best", is_flag=True, help="Also each method at the micro-batch with the fewest bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each row.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to a CSV file as well.")
def memory(
    networks: Sequence[str],
    methods: Sequence[str],
    runtimes: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
    best: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measure training bytes of the same networks by every method, on every runtime that can run it.

    Each row is the median of three fresh processes at the runtime's best settings, one thread, AdamW, float32; takes
    minutes. `make bench-setup` makes the environments of onnxruntime-training and MNN.
    """
    audit = benchmark("audit")
    chosen = audit.Audit(
        networks=known_networks(networks, audit.NETWORKS),
        methods=known_names("method", methods, audit.METHODS),
        runtimes=known_names("runtime", runtimes, audit.RUNTIMES),
        batches=batches,
        micro_batches=sizes,
        best=best,
    )
    if not any(audit.cells(chosen)):
        raise EdgeffError(
            f"nothing to measure: `{chosen.methods[0]}` does not run on `{chosen.runtimes[0]}`",
            hint=f"local methods run on `{audit.RUNTIMES[0]}` alone",
        )
    found = rows_into(out, _told(audit.rows(chosen), as_json), audit.COLUMNS)
    if not as_json:
        click.echo(rows_text(found))


def rows_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The measured rows as a table, then a line for each that was skipped."""
    lines = [table(_HEADER, [_cells(row) for row in rows if not row["skipped"]])]
    lines += [
        f"skipped: {row['network']}, {row['method']}, {row['runtime']}, batch {row['batch']}: {row['skipped']}"
        for row in rows
        if row["skipped"]
    ]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = (row["floor_bytes"], row["training_bytes"], row["planned_bytes"])
    return (
        row["network"],
        row["method"],
        row["runtime"],
        str(row["batch"]),
        f"{row['micro_batch']}{' (best)' if row['best'] else ''}",
        *("-" if size is None else format_bytes(size) for size in sizes),
        f"{row['rows_per_s']:.0f}",
    )


def _told(rows: Iterable[Mapping[str, Any]], as_json: bool) -> Iterable[Mapping[str, Any]]:
    """The rows, each told as it comes: as the result on stdout, or as progress on stderr."""
    for row in rows:
        if as_json:
            click.echo(json.dumps(row))
        else:
            done = row["skipped"] or format_bytes(row["training_bytes"])
            click.echo(f"{row['network']} {row['method']} {row['runtime']} {row['micro_batch']}: {done}", err=True)
        yield row


bench.add_command(speed)
