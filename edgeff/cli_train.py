"""`edgeff train-on-device`. No torch, no onnx."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeff.artifact import open_artifact
from edgeff.cli_budget import (
    asked_over_floor,
    budget_over_floor,
    free_bytes,
    hints_for_total,
    over_floor,
    parse_budget,
    plan_run,
    profile_providers,
    read_block_budgets,
)
from edgeff.cli_drive import drive, noted_signals, result_text
from edgeff.cli_options import ARTIFACT, DATA, DATA_DIR, JSON, THREADS, open_checked, refuse_inside
from edgeff.cli_sign import require_signature_option
from edgeff.engines import ENGINES, ONNXRUNTIME
from edgeff.errors import StoppedError
from edgeff.providers import AUTO, NAMES

if TYPE_CHECKING:
    from edgeff.runtime.settings import AdaptSettings


@click.command(name="train-on-device")
@ARTIFACT
@DATA
@DATA_DIR
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--epochs", type=int, help="Default: the artifact's.")
@click.option("--batch-size", type=int, help="Default: the artifact's.")
@click.option("--learning-rate", type=float, help="Default: the artifact's.")
@click.option("--lr-schedule", type=click.Choice(["cosine", "constant"]), help="Default: cosine.")
@click.option("--replay-fraction", type=float, help="Part of each batch that is replay rows. Default: the artifact's.")
@click.option("--guard-fraction", type=float, help="Part of the rows held out to judge by; 0 for none.")
@click.option("--guard", metavar="SPEC", help="Labelled rows of their own to judge by, instead of a part of --data.")
@click.option("--skip-bad-rows", is_flag=True, help="Leave out rows with NaN, Inf or a label that is no class.")
@click.option("--blocks", metavar="NAME,NAME", help="Train these blocks only.")
@click.option("--seed", type=int, help="Default: 0.")
@click.option(
    "--schedule",
    type=click.Choice(["auto", "sweep", "stage"]),
    default="auto",
    help="All blocks at once, or one after another. Default: sweep where it fits, else stage.",
)
@click.option(
    "--features",
    type=click.Choice(["auto", "rerun", "float32", "float16", "uint8"]),
    default="auto",
    help="Between stages: run the blocks before again, or keep files. Default: float32 files where the disk has room.",
)
@click.option(
    "--prefer", type=click.Choice(["speed", "memory"]), default="speed", help="Of the plans that fit. Default: speed."
)
@click.option("--micro-batch", type=int, help="Rows that run at once. Default: the fastest that fits.")
@click.option(
    "--allow-freezing", is_flag=True, help="Where the budget does not do for all blocks, train only the last that fit."
)
@click.option("--budget", metavar="BYTES", help="What training may take over the floor, for example `32MiB`.")
@click.option("--total", is_flag=True, help="--budget is for the whole process, Python and onnxruntime included.")
@click.option(
    "--block-budget",
    "block_budgets",
    multiple=True,
    metavar="NAME=BYTES",
    help="What a block may take of it; may be repeated.",
)
@click.option(
    "--control",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='File that may change the budget during the run: {"budget": "12MiB"}.',
)
@click.option("--device", "device_name", metavar="NAME", help="Take the budget of this profile (name or TOML file).")
@click.option(
    "--max-seconds", type=click.FloatRange(min=0, min_open=True), help="Stop with a checkpoint after this time."
)
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop with a checkpoint after so many updates.")
@click.option(
    "--pause-file", type=click.Path(path_type=Path), metavar="FILE", help="Stop with a checkpoint while FILE is there."
)
@click.option("--checkpoint-steps", type=int, help="Updates from one checkpoint to the next. Default: 100.")
@click.option(
    "--writes-per-hour",
    metavar="BYTES",
    default="1GiB",
    show_default=True,
    help="Of checkpoints and best weights, which wear out flash; `0` for no bound.",
)
@click.option(
    "--engine",
    "engine_name",
    type=click.Choice(ENGINES),
    default=ONNXRUNTIME,
    show_default=True,
    help="What updates blocks. `ort-training` needs onnxruntime-training, and an artifact exported for it.",
)
@click.option(
    "--provider",
    type=click.Choice(NAMES),
    default=AUTO,
    show_default=True,
    help="What runs operators. `auto`: the first in the device's profile that is proven to train and is there.",
)
@require_signature_option
@THREADS
@JSON
def train_on_device(
    artifact: Path,
    data: str,
    data_dir: Path | None,
    out: Path,
    resume: bool,
    guard: str | None,
    skip_bad_rows: bool,
    blocks: str | None,
    schedule: str,
    features: str,
    prefer: str,
    micro_batch: int | None,
    allow_freezing: bool,
    budget: str | None,
    total: bool,
    block_budgets: tuple[str, ...],
    control: Path | None,
    device_name: str | None,
    max_seconds: float | None,
    max_steps: int | None,
    pause_file: Path | None,
    writes_per_hour: str,
    engine_name: str,
    provider: str,
    trusted: tuple[bytes, ...],
    threads: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train ARTIFACT on this machine with your rows, and keep the result only where it is better.

    Some of the rows are held out as a guard; the weights of the epoch that does best on them are kept, which may be
    those that the artifact came with.
    """
    asked = None if budget is None else parse_budget(budget)
    bound = None if writes_per_hour.strip() == "0" else parse_budget(writes_per_hour, option="--writes-per-hour ")
    caps = read_block_budgets(block_budgets)
    if total and asked is None:
        raise click.UsageError("--total needs --budget")
    if max_seconds is not None and not math.isfinite(max_seconds):
        raise click.UsageError(f"--max-seconds takes a finite number, got {max_seconds}")
    if guard is not None and settings["guard_fraction"]:
        raise click.UsageError("--guard has the rows to judge by: leave --guard-fraction out")
    refuse_inside(out, artifact)
    # From here on: reading and planning can take a while, and a stop is a stop then too.
    signals = click.get_current_context().with_resource(noted_signals())
    import edgeff.devices  # noqa: F401  (belongs to the floor)
    from edgeff.runtime.start import start

    engine, meter, allocator = start(
        threads,
        engine=engine_name,
        provider=provider,
        profile=lambda: profile_providers(device_name),
        lean=total,
    )
    if total and asked is not None:
        asked = over_floor(asked, meter.floor_bytes)
    budget_bytes = budget_over_floor(asked, device_name, meter.floor_bytes)
    opened = open_artifact(artifact, trusted).for_engine(engine_name)
    from edgeff.runtime.adapt import Adaptation, adaptation_request, engine_request
    from edgeff.runtime.checkpoint import RunFolder
    from edgeff.runtime.control import Control
    from edgeff.runtime.freezing import frozen_blocks, trained_blocks
    from edgeff.runtime.pages import RETURNING_CODE_BYTES
    from edgeff.runtime.settings import default_settings
    from edgeff.runtime.stops import StopConditions

    given = {name: value for name, value in settings.items() if value is not None}
    if guard is not None:
        given["guard_fraction"] = 0.0
    if blocks is not None:
        given["blocks"] = tuple(name.strip() for name in blocks.split(",") if name.strip())
    began = RunFolder(out).began_with() if resume else None
    if began and allow_freezing and blocks is None:
        given["blocks"] = began.blocks
    chosen = replace(default_settings(opened.manifest), **given)
    checked = open_checked(data, data_dir, opened.manifest, skip=skip_bad_rows)
    rows = checked.dataset
    held_out = None if guard is None else open_checked(guard, data_dir, opened.manifest, skip=skip_bad_rows).dataset
    request = adaptation_request(
        opened.manifest,
        chosen,
        len(rows),
        budget_bytes=budget_bytes,
        known_bytes=rows.known_bytes + (held_out.known_bytes if held_out else 0),
        threads=engine.threads,
        schedule=_asked(schedule, began, lambda run: run.schedule),
        features=_asked(features, began, _rounded),
        prefer=prefer,
        micro_batch=micro_batch,
        block_budgets=caps,
        disk_bytes=free_bytes(out),
        returning_bytes=RETURNING_CODE_BYTES if total else 0,
        **engine_request(engine),
    )
    over = meter.floor_bytes if total else 0
    planned = plan_run(opened.manifest, request, over, allow_freezing=allow_freezing and not began)
    frozen = frozen_blocks(planned, request)
    if frozen:
        click.echo(f"the budget does not do for all blocks: {', '.join(frozen)} stay as they are", err=True)
        request = replace(request, trained=trained_blocks(planned))
        chosen = replace(chosen, blocks=trained_blocks(planned))
    dtype = planned.features if planned.features in ("float16", "uint8") else "float32"
    chosen = replace(chosen, schedule=planned.schedule, feature_dtype=dtype)
    adaptation = Adaptation(
        artifact=opened,
        dataset=rows,
        settings=chosen,
        request=request,
        plan=planned,
        engine=engine,
        folder=RunFolder(out),
        meter=meter,
        allocator=allocator,
        asked_budget=asked_over_floor(Control(control), over) if control else lambda: None,
        writes_per_hour=bound,
        guard=held_out,
        skipped=checked.skipped,
    )
    if signals:
        hint = "nothing was changed: give the same command again"
        raise StoppedError(f"stopped by {signals[0]}, before the run went on", hint=hint)
    with hints_for_total(over):
        stop = StopConditions(max_seconds, max_steps, pause_file, signals)
        result = drive(adaptation, stop, resume=resume)
    floor, training = _measured(result)
    found = {"run": str(out), "floor_bytes": floor, "budget_bytes": budget_bytes, "training_bytes": training, **result}
    click.echo(json.dumps(found, indent=2) if as_json else result_text(found))


def _asked(option: str, began: AdaptSettings | None, of: Callable[[AdaptSettings], str | None]) -> Any:
    """What was asked for; where that is `auto`, what the run began with, be the budget another one now; else None."""
    if option != "auto":
        return option
    return None if began is None else of(began)


def _rounded(began: AdaptSettings) -> str | None:
    """How the run that is gone on with stores features, where that decides the outcome."""
    return None if began.feature_dtype == "float32" else began.feature_dtype


def _measured(result: Mapping[str, Any]) -> tuple[Any, Any]:
    """Floor and training bytes of the process that finished the run, which may have been another than this."""
    measured = result.get("measured")
    read = measured if isinstance(measured, dict) else {}
    return read.get("floor_bytes"), read.get("training_bytes")
