"""Commands that use what was trained on the device: evaluate, finalize. No torch, no onnx."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeff.artifact import Artifact, open_artifact
from edgeff.cli_options import ARTIFACT, DATA, DATA_DIR, JSON, RUN, THREADS, open_checked, refuse_inside
from edgeff.cli_sign import require_signature_option
from edgeff.units import format_bytes

if TYPE_CHECKING:
    import numpy as np

_MOST_RESERVED = 1 << 28


@click.command()
@ARTIFACT
@DATA
@DATA_DIR
@RUN
@click.option("--micro-batch", type=int, default=32, show_default=True, help="Rows that run at once.")
@require_signature_option
@THREADS
@JSON
def evaluate(
    artifact: Path,
    data: str,
    data_dir: Path | None,
    run_folder: Path | None,
    micro_batch: int,
    trusted: tuple[bytes, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Test ARTIFACT, or the weights that a run chose, on labelled rows."""
    from edgeff.runtime.engine import OnnxRuntime
    from edgeff.runtime.evaluate import evaluate as run_evaluation
    from edgeff.runtime.network import open_network

    if micro_batch < 1:
        raise click.UsageError("--micro-batch must be at least 1")
    engine = OnnxRuntime(threads)
    opened = open_artifact(artifact, trusted)
    rows = open_checked(data, data_dir, opened.manifest).dataset
    micro_batch = min(micro_batch, len(rows))
    arena = max(block.graphs["forward"].arena_bytes(micro_batch) for block in opened.manifest.blocks)
    # What a manifest says of itself is no reason to take any amount of memory: beyond this, as it is needed.
    engine.reserve(arena if arena <= _MOST_RESERVED else 0)
    network = open_network(opened, engine, weights=_weights(opened, run_folder))
    found = run_evaluation(network, rows.x, rows.y, micro_batch=micro_batch)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    blocks = " ".join(f"{name} {accuracy:.4f}" for name, accuracy in found.per_block.items())
    click.echo(f"accuracy {found.accuracy:.4f} on {found.rows} rows ({found.rows_per_s:.0f} rows/s)")
    click.echo(f"by block: {blocks}")


@click.command()
@ARTIFACT
@RUN
@click.option("--out", required=True, type=click.Path(path_type=Path), help="ONNX file to write.")
@require_signature_option
@JSON
def finalize(artifact: Path, run_folder: Path | None, out: Path, trusted: tuple[bytes, ...], as_json: bool) -> None:
    """Write ARTIFACT, with its own weights or a run's, as one plain inference model that any onnxruntime serves."""
    from edgeff.runtime.engine import OnnxRuntime
    from edgeff.runtime.finalize import finalize as write_model

    refuse_inside(out, artifact)
    engine = OnnxRuntime(1)
    opened = open_artifact(artifact, trusted)
    model = write_model(opened, _weights(opened, run_folder), out, engine=engine)
    if as_json:
        found = {
            "model": str(model.path),
            "bytes": model.bytes,
            "largest_error": model.largest_error,
            "rows": model.rows,
        }
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(
        f"{model.path}: {format_bytes(model.bytes)}, same labels as the artifact on {model.rows} rows, "
        f"log-probabilities within {model.largest_error:.1e}"
    )


def _weights(artifact: Artifact, run_folder: Path | None) -> dict[str, np.ndarray] | None:
    from edgeff.runtime.checkpoint import RunFolder, read_weights

    if run_folder is None:
        return None
    return read_weights(RunFolder(run_folder).best_weights(), artifact.manifest_sha256)
