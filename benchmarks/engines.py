"""The two engines side by side on one machine: bytes and rows per second of the same sweep.

    .venv/bin/python benchmarks/engines.py [NETWORK ...] [--rounds 3] [--rows 256]

Each row is `edgeff train-on-device` in a fresh process: batch 32, micro-batch 8, one thread, one epoch of random rows.
`onnxruntime` runs the plain graphs, once on the training package's own onnxruntime 1.19.2 and once on the newest in
`.venv-device`; `ort-training` runs `Module` and `Optimizer`. The engines take turns; medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from networks import reference

from edgeff.engines import ONNXRUNTIME, ORT_TRAINING
from edgeff.export import ExportSettings, export_network
from edgeff.manifest import TensorSpec
from edgeff.preprocess import Preprocessing

NETWORKS = ("har-cnn", "kws-dscnn", "vgg8")
MIB = 2**20
# Environment and engine.
CONTENDERS = ((".venv", ORT_TRAINING), (".venv", ONNXRUNTIME), (".venv-device", ONNXRUNTIME))


def written(name: str, rows: int, folder: Path) -> tuple[Path, Path]:
    """An artifact for both engines, and labelled random rows."""
    network = reference(name)
    shape = tuple(network.input_shape)
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, *shape)).astype(np.float32)
    y = random.integers(0, len(network.classes), rows)
    row = TensorSpec("x", shape)
    artifact = export_network(
        network,
        folder / name,
        preprocessing=Preprocessing(row, (), row),
        settings=ExportSettings(engine=ORT_TRAINING),
    )
    np.savez(folder / f"{name}.npz", x=x, y=y)
    return artifact, folder / f"{name}.npz"


def trained(environment: str, engine: str, artifact: Path, rows: Path) -> Mapping[str, Any]:
    """The result of a run in a fresh process."""
    with tempfile.TemporaryDirectory() as out:
        command = [f"{environment}/bin/edgeff", "train-on-device", str(artifact), "--data", str(rows)]
        command += ["--out", f"{out}/run", "--engine", engine, "--threads", "1", "--epochs", "1", "--batch-size", "32"]
        command += ["--micro-batch", "8", "--replay-fraction", "0", "--guard-fraction", "0", "--schedule", "sweep"]
        command += ["--writes-per-hour", "0", "--checkpoint-steps", "0", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def row_of(name: str, engine: str, runs: Sequence[Mapping[str, Any]]) -> str:
    speed = [run["rows_per_s"] for run in runs]
    cells = [
        name,
        engine,
        runs[0]["engine"],
        f"{median(run['floor_bytes'] for run in runs) / MIB:.1f}",
        f"{runs[0]['planned_bytes'] / MIB:.1f}",
        f"{median(run['training_bytes'] for run in runs) / MIB:.1f}",
        f"{median(speed):.0f} ({min(speed):.0f} to {max(speed):.0f})",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=256)
    given = parser.parse_args()
    print("| network | engine | package | floor MiB | planned MiB | measured MiB | rows/s |")
    print("|---|---|---|---|---|---|---|")
    for name in given.networks:
        with tempfile.TemporaryDirectory() as folder:
            artifact, rows = written(name, given.rows, Path(folder))
            runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {one: [] for one in CONTENDERS}
            for _ in range(given.rounds):
                for contender in CONTENDERS:
                    runs[contender].append(trained(*contender, artifact, rows))
            for (_, engine), found in runs.items():
                print(row_of(name, engine, found), flush=True)


if __name__ == "__main__":
    main()
