"""The command that runs benchmarks: `edgeff bench memory`. The benchmarks live in a checkout, not in the package."""

from __future__ import annotations

import csv
import importlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

import edgeff
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
    audit = _audit()
    chosen = audit.Audit(
        networks=known_networks(networks, audit.NETWORKS),
        methods=_known("method", methods, audit.METHODS),
        runtimes=_known("runtime", runtimes, audit.RUNTIMES),
        batches=batches,
        micro_batches=sizes,
        best=best,
    )
    rows = _told(audit.rows(chosen), as_json)
    if out is None:
        found = list(rows)
    else:
        try:
            with out.open("w", newline="", encoding="utf-8") as file:
                found = write_csv(rows, file, audit.COLUMNS)
        except OSError as error:
            raise EdgeffError(f"cannot write `{out}`: {error.strerror}") from error
    if not as_json:
        click.echo(rows_text(found))


def find_checkout(candidates: Iterable[Path]) -> Path:
    """The first folder that is a checkout with benchmarks.

    Raises:
        EdgeffError: None is.
    """
    for folder in candidates:
        if (folder / "benchmarks" / "audit.py").is_file():
            return folder
    raise EdgeffError(
        "`edgeff bench` needs a checkout of edgeff, and this is an installation without one",
        hint="clone the repository and run the command in its root folder, or install it with `pip install -e`",
    )


def known_networks(names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The names, or all that are known where there are none; `deep<N>` is known for every depth.

    Raises:
        EdgeffError: One is unknown.
    """
    unknown = [name for name in names if name not in known and not re.fullmatch(r"deep[1-9]\d*", name)]
    if unknown:
        raise EdgeffError(f"unknown network `{unknown[0]}`", hint=f"known: {', '.join(known)}, and deep<N>")
    return names or known


def write_csv(rows: Iterable[Mapping[str, Any]], file: TextIO, columns: Sequence[str]) -> list[Mapping[str, Any]]:
    """Write each row as soon as it is there; settings as JSON. Returns all of them."""
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    found = []
    for row in rows:
        writer.writerow({**row, "settings": json.dumps(row["settings"])})
        file.flush()
        found.append(row)
    return found


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


def _known(kind: str, names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise EdgeffError(f"unknown {kind} `{unknown[0]}`", hint=f"known: {', '.join(known)}")
    return names or known


def _audit() -> Any:
    """The module of the checkout."""
    checkout = find_checkout([Path(edgeff.__file__).resolve().parent.parent, Path.cwd()])
    folder = str(checkout / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("audit")
