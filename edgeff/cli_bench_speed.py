"""The command `edgeff bench speed`. The benchmark lives in a checkout, not in the package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgeff.bench_checkout import Row, benchmark, known_names, known_networks, new_file, rows_into, write_text
from edgeff.errors import EdgeffError
from edgeff.table import table
from edgeff.units import format_bytes

_HEADER = (
    *("network", "batch", "threads", "method", "runtime", "micro-batch", "rows/s", "spread", "ratio"),
    *("training", "first step", "settings"),
)
_GROWTH_HEADER = ("networks", "batch", "threads", "method", "runtime", "size")


@click.command()
@click.option("--network", "networks", multiple=True, metavar="NAME", help="Repeatable. Default: all five.")
@click.option("--method", "methods", multiple=True, metavar="M", help="Repeatable. Default: all.")
@click.option("--runtime", "runtimes", multiple=True, metavar="R", help="Repeatable. Default: all.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="Repeatable. Default: 8 and 128.")
@click.option("--threads", multiple=True, type=click.IntRange(1), help="Repeatable. Default: 1 and 2.")
@click.option("--micro-batch", type=click.IntRange(1), help="Of all that have one. Default: the fastest of each.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Bursts of each contender.")
@click.option(
    "--burst",
    "burst_s",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="What a burst of updates takes.",
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="With `cuda`, the rows of onnxruntime and PyTorch alone are measured, on the GPU.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each row.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to a CSV file as well.")
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the rows into an SVG file."
)
def speed(as_json: bool, out: Path | None, picture: Path | None, **options: Any) -> None:
    """Measure rows per second of the same networks by every method, on every runtime that can run it.

    Contenders run by turns, a burst of updates each, at the fastest settings that a search finds for each; a row is the
    median of its bursts, the spread their largest minus their smallest. The ratio is to PyTorch's back-propagation, the
    best of eager and compiled, channels first and last, and all micro-batches. AdamW, float32; takes hours for all.
    `deep<N>` and `wide<C>` of several sizes tell how things grow. `make bench-setup` makes the environments of
    onnxruntime-training and MNN.
    """
    module = benchmark("speed")
    chosen = _chosen(module, **options)
    if picture is not None:
        new_file(picture)
    rows = _told(module.rows(chosen, lambda text: click.echo(text, err=True)), as_json)
    found = rows_into(out, rows, module.COLUMNS)
    if not as_json:
        click.echo(rows_text(found, module.growth(found)))
    if picture is not None:
        write_text(picture, module.plot(found))


def _chosen(module: Any, provider: str, **options: Any) -> Any:
    """What to measure.

    Raises:
        EdgeffError: An unknown name, or what is asked for cannot be had.
    """
    methods = known_names("method", options["methods"], module.METHODS)
    runtimes = known_names("runtime", options["runtimes"], module.RUNTIMES)
    if not any(module.contenders(methods, runtimes)):
        raise EdgeffError(
            f"nothing to measure: `{methods[0]}` does not run on `{runtimes[0]}`",
            hint=f"`bp` and `bp-deepsup` are measured on other runtimes than `{module.RUNTIMES[0]}`",
        )
    if provider == "cuda":
        _need_cuda(module.providers())
    return module.Speed(
        networks=known_networks(options["networks"], module.NETWORKS),
        methods=methods,
        runtimes=runtimes,
        batches=options["batches"] or module.BATCHES,
        threads=options["threads"] or module.THREADS,
        micro_batch=options["micro_batch"],
        rounds=options["rounds"],
        burst_s=options["burst_s"],
        provider=provider,
    )


def _need_cuda(there: Sequence[str]) -> None:
    if "CUDAExecutionProvider" not in there:
        raise EdgeffError(
            f"the onnxruntime of `.venv-cuda` has no CUDAExecutionProvider, it has {', '.join(there)}",
            hint="leave `--provider` out to measure on the CPU",
        )


def rows_text(rows: Sequence[Row], growth: Sequence[Any] = ()) -> str:
    """The measured rows as a table, what exporting took, how things grow, and which rows were skipped, and why."""
    lines = [table(_HEADER, [_cells(row) for row in rows if not row["skipped"]])]
    exported = {row["network"]: row["export_s"] for row in rows if row["export_s"] is not None}
    lines += [f"exported: {name} in {seconds:.1f} s" for name, seconds in exported.items()]
    if growth:
        lines += ["", growth_text(growth), ""]
    return "\n".join([*lines, *_skipped(rows)])


def growth_text(growth: Sequence[Any]) -> str:
    """By how much each quantity grows from the smallest to the largest network of a family."""
    names = list(growth[0].factors)
    return table(
        (*_GROWTH_HEADER, *names),
        [
            (
                f"{one.family}{one.sizes[0]} to {one.family}{one.sizes[1]}",
                str(one.batch),
                str(one.threads),
                one.method,
                one.runtime,
                _times(one.sizes[1] / one.sizes[0]),
                *(_times(one.factors[name]) for name in names),
            )
            for one in growth
        ],
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["network"],
        str(row["batch"]),
        str(row["threads"]),
        row["method"],
        row["runtime"],
        str(row["micro_batch"]),
        f"{row['rows_per_s']:.0f}",
        f"{(max(row['rounds']) - min(row['rounds'])) / row['rows_per_s']:.0%}",
        "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "-" if row["training_bytes"] is None else format_bytes(row["training_bytes"]),
        f"{row['first_step_s']:.1f} s",
        _settings(row["settings"]),
    )


def _settings(settings: Mapping[str, Any]) -> str:
    """Those that are on, and numbers."""
    shown = {name.replace("_", "-"): value for name, value in settings.items() if value}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in shown.items())


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"x{factor:.3g}"


def _skipped(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each reason, with all that it concerns."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["skipped"]:
            cell = f"{row['network']} {row['batch']}x{row['threads']}"
            where.setdefault((row["method"], row["runtime"], row["skipped"]), []).append(cell)
    for (method, runtime, reason), cells in where.items():
        yield f"skipped: {method}, {runtime} (network, batch x threads: {', '.join(cells)}): {reason}"


def _told(rows: Iterable[Row], as_json: bool) -> Iterator[Row]:
    """The rows, each told as it comes if it is to be a line of JSON."""
    for row in rows:
        if as_json:
            click.echo(json.dumps(row))
        yield row
