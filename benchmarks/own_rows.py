"""What `edgeff train-on-device` takes: planned and measured bytes over the floor, of reference networks.

Every measurement is one run of the command in a fresh process of the device environment, for one epoch of three batches
without guard rows; the row is the median of three. Networks are exported with random weights first.

    .venv/bin/python benchmarks/own_rows.py --network deep24 --schedule sweep --micro-batch 32
    .venv/bin/python benchmarks/own_rows.py --network vgg8 --schedule stage --budget 80MiB --json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgeff.manifest import TensorSpec, TrainingDefaults
from edgeff.preprocess import Preprocessing
from edgeff.table import table
from edgeff.units import format_bytes

ROOT = Path(__file__).resolve().parent.parent
DEVICE = ROOT / ".venv-device" / "bin" / "python"
REPEATS, BATCHES = 3, 3


def export(name: str, layers: str, folder: Path) -> Path:
    """An artifact of a reference network, made once; `layers` is the dial of `edgeff export --blocks`."""
    from networks import reference

    from edgeff.export.writer import ExportSettings, export_network

    path = folder / f"{name}-{layers}"
    if not path.exists():
        network = reference(name)
        network = network if layers == "1-layer" else network.regroup(layers, "last")  # type: ignore[arg-type]
        spec = TensorSpec("x", tuple(network.input_shape))
        settings = ExportSettings(training=TrainingDefaults(epochs=1, replay_fraction=0.0, guard_fraction=0.0))
        export_network(network, path, preprocessing=Preprocessing(spec, (), spec), settings=settings)
    return path


def rows_file(artifact: Path, batch: int) -> Path:
    """Random rows for some batches, uncompressed, so that they are read from disk as on a device."""
    path = artifact.with_name(f"{artifact.name}-{batch}.npz")
    if not path.exists():
        manifest = json.loads((artifact / "manifest.json").read_text())
        rng, count = np.random.default_rng(0), BATCHES * batch
        x = rng.standard_normal((count, *manifest["input"]["shape"]), dtype=np.float32)
        np.savez(path, x=x, y=np.arange(count) % len(manifest["classes"]))
    return path


def measure(artifact: Path, batch: int, options: Sequence[str]) -> dict[str, Any]:
    """The result of one run."""
    with tempfile.TemporaryDirectory(dir=artifact.parent) as parent:
        command = [
            str(DEVICE),
            "-m",
            "edgeff",
            "train-on-device",
            str(artifact),
            "--data",
            str(rows_file(artifact, batch)),
        ]
        command += ["--out", f"{parent}/run", "--batch-size", str(batch), "--threads", "1", "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr.strip().splitlines()[0])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(network: str, layers: str, batch: int, options: Sequence[str], folder: Path) -> dict[str, Any]:
    """The median of some runs."""
    artifact = export(network, layers, folder)
    runs = sorted(
        (measure(artifact, batch, options) for _ in range(REPEATS)), key=lambda run: int(run["training_bytes"])
    )
    middle = runs[len(runs) // 2]
    plan = middle["plan"]
    phase = max(plan["phases"], key=lambda one: sum(one["resident"].values()))
    return {
        "network": network,
        "method": plan["schedule"] if layers == "1-layer" else "bp",
        "runtime": middle["engine"],
        "batch": batch,
        "micro_batch": plan["micro_batch"],
        "floor_bytes": int(statistics.median(run["floor_bytes"] for run in runs)),
        "training_bytes": middle["training_bytes"],
        "planned_bytes": middle["planned_bytes"],
        "budget_bytes": middle["budget_bytes"],
        "phase": phase["name"],
        "resident": phase["resident"],
        "rows_per_s": round(statistics.median(run["rows_per_s"] for run in runs), 1),
    }


@click.command()
@click.option("--network", "networks", multiple=True, required=True)
@click.option("--schedule", "schedules", multiple=True, default=["sweep"])
@click.option(
    "--layers", type=click.Choice(["1-layer", "whole"]), default="1-layer", help="`whole` is back-propagation."
)
@click.option("--batch", type=int, default=128)
@click.option("--budget", "budgets", multiple=True, default=["64GiB"])
@click.option("--micro-batch", type=int)
@click.option("--features", type=click.Choice(["auto", "rerun", "float32", "float16", "uint8"]), default="auto")
@click.option("--prefer", type=click.Choice(["speed", "memory"]), default="speed")
@click.option("--folder", type=click.Path(path_type=Path), default=ROOT / ".demo" / "bench")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each row.")
def main(
    networks: Sequence[str],
    schedules: Sequence[str],
    layers: str,
    batch: int,
    budgets: Sequence[str],
    micro_batch: int | None,
    features: str,
    prefer: str,
    folder: Path,
    as_json: bool,
) -> None:
    """Measure rows, one for each network, schedule and budget."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for network in networks:
        for schedule in schedules:
            for budget in budgets:
                options = ["--schedule", schedule, "--budget", budget, "--features", features, "--prefer", prefer]
                options += ["--micro-batch", str(micro_batch)] if micro_batch else []
                rows.append(row(network, layers, batch, options, folder))
                print(json.dumps(rows[-1]) if as_json else _line(rows[-1]), flush=True)
    if not as_json:
        header = ("network", "method", "batch", "micro-batch", "floor", "planned", "measured", "of budget", "rows/s")
        print(table(header, [_cells(one) for one in rows]))


def _line(one: dict[str, Any]) -> str:
    return f"{' '.join(_cells(one))}  {one['phase']}"


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    sizes = (one["floor_bytes"], one["planned_bytes"], one["training_bytes"], one["budget_bytes"])
    return (
        one["network"],
        one["method"],
        str(one["batch"]),
        str(one["micro_batch"]),
        *(format_bytes(size) for size in sizes),
        f"{one['rows_per_s']:.0f}",
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "benchmarks"))
    main()
