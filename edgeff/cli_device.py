"""Commands that run on the device: train-on-device, evaluate, finalize. No torch, no onnx."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeff.artifact import Artifact, open_artifact
from edgeff.cli_progress import ProgressLine
from edgeff.errors import BudgetError, DataError, DeviceError, EngineError, RunError
from edgeff.manifest import Manifest
from edgeff.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    import numpy as np

    from edgeff.dataset import Dataset
    from edgeff.runtime.adapt import Adaptation
    from edgeff.runtime.control import Control
    from edgeff.runtime.events import Event
    from edgeff.runtime.plan import Plan, Request

# Digits and unit; Python would not even read thousands of digits as a number.
_LONGEST_BUDGET = 40
_MOST_BYTES = 2**63 - 1

_ARTIFACT = click.argument("artifact", type=click.Path(path_type=Path))
_DATA = click.option("--data", required=True, metavar="SPEC", help="Labelled raw rows: a path, or `name:split`.")
_DATA_DIR = click.option(
    "--data-dir", type=click.Path(path_type=Path), envvar="EDGEFF_DATA_DIR", help="Folder of known data sets."
)
_RUN = click.option("--run", "run_folder", type=click.Path(path_type=Path), help="Take the weights of this run.")
_THREADS = click.option("--threads", type=int, help="Of onnxruntime. Default: the fast cores, at most 4.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(name="train-on-device")
@_ARTIFACT
@_DATA
@_DATA_DIR
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--epochs", type=int, help="Default: the artifact's.")
@click.option("--batch-size", type=int, help="Default: the artifact's.")
@click.option("--learning-rate", type=float, help="Default: the artifact's.")
@click.option("--lr-schedule", type=click.Choice(["cosine", "constant"]), help="Default: cosine.")
@click.option("--replay-fraction", type=float, help="Part of each batch that is replay rows. Default: the artifact's.")
@click.option("--guard-fraction", type=float, help="Part of the rows held out to judge by; 0 for none.")
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
@_THREADS
@_JSON
def train_on_device(
    artifact: Path,
    data: str,
    data_dir: Path | None,
    out: Path,
    resume: bool,
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
    threads: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train ARTIFACT on this machine with your rows, and keep the result only where it is better.

    Some of the rows are held out as a guard; the weights of the epoch that does best on them are kept, which may be
    those that the artifact came with.
    """
    asked = None if budget is None else _parse_budget(budget)
    caps = _block_budgets(block_budgets)
    if total and asked is None:
        raise click.UsageError("--total needs --budget")
    import edgeff.devices  # noqa: F401  (belongs to the floor)
    from edgeff.runtime.start import start

    engine, meter, allocator = start(threads, lean=total)
    if total and asked is not None:
        asked = _over_floor(asked, meter.floor_bytes)
    budget_bytes = _budget(asked, device_name, meter.floor_bytes)
    opened = open_artifact(artifact)
    from edgeff.runtime.adapt import Adaptation, adaptation_request
    from edgeff.runtime.checkpoint import RunFolder
    from edgeff.runtime.control import Control
    from edgeff.runtime.freezing import frozen_blocks, trained_blocks
    from edgeff.runtime.pages import RETURNING_CODE_BYTES
    from edgeff.runtime.settings import default_settings

    given = {name: value for name, value in settings.items() if value is not None}
    if blocks is not None:
        given["blocks"] = tuple(name.strip() for name in blocks.split(",") if name.strip())
    chosen = replace(default_settings(opened.manifest), **given)
    rows = open_checked(data, data_dir, opened.manifest)
    request = adaptation_request(
        opened.manifest,
        chosen,
        len(rows),
        budget_bytes=budget_bytes,
        threads=engine.threads,
        schedule=None if schedule == "auto" else schedule,
        features=None if features == "auto" else features,
        prefer=prefer,
        micro_batch=micro_batch,
        block_budgets=caps,
        disk_bytes=_free_bytes(out),
        returning_bytes=RETURNING_CODE_BYTES if total else 0,
    )
    over = meter.floor_bytes if total else 0
    planned = _plan(opened.manifest, request, over, allow_freezing=allow_freezing)
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
        asked_budget=_asked(Control(control), over) if control else lambda: None,
    )
    with _hints_for_total(over):
        result = _run(adaptation, resume=resume)
    found = {
        "run": str(out),
        "floor_bytes": meter.floor_bytes,
        "budget_bytes": budget_bytes,
        "training_bytes": meter.read().training_bytes,
        **result,
    }
    click.echo(json.dumps(found, indent=2) if as_json else _result_text(found))


def _block_budgets(given: tuple[str, ...]) -> dict[str, int]:
    """`NAME=BYTES` of each."""
    found = {}
    for text in given:
        name, separator, amount = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--block-budget takes NAME=BYTES, got `{text}`")
        if name in found:
            raise click.UsageError(f"--block-budget names `{name}` twice")
        found[name] = _parse_budget(amount, option=f"--block-budget {name}=")
    return found


def _free_bytes(out: Path) -> int:
    """What files of features may take: half of what is free where the run is to be."""
    import shutil

    folder = next(one for one in (out.absolute(), *out.absolute().parents) if one.exists())
    return shutil.disk_usage(folder).free // 2


def _asked(control: Control, floor_bytes: int) -> Callable[[], int | None]:
    """New budgets over the floor."""

    def ask() -> int | None:
        budget = control.budget()
        return None if budget is None else _over_floor(budget, floor_bytes)

    return ask


def _over_floor(total: int, floor_bytes: int) -> int:
    """What the budget of a whole process leaves to training.

    Raises:
        BudgetError: Nothing.
    """
    if total <= floor_bytes:
        raise BudgetError(
            f"the process takes {format_bytes(floor_bytes)} before it trains, the budget for all of it is "
            f"{format_bytes(total)}",
            hint="give more, or leave out `--total` where the budget is for training alone",
        )
    return total - floor_bytes


def _parse_budget(text: str, option: str = "--budget ") -> int:
    """Read an option's budget.

    Raises:
        EdgeffError: It is no number of bytes.
        BudgetError: It is none, or more than any machine has.
    """
    hint = f"write for example `{option}32MiB`"
    budget = parse_bytes(text) if len(text) <= _LONGEST_BUDGET else _MOST_BYTES + 1
    if budget < 1:
        raise BudgetError("a budget of 0 bytes holds nothing", hint=hint)
    if budget > _MOST_BYTES:
        raise BudgetError(f"a budget of `{text[:_LONGEST_BUDGET]}` is more than any machine has", hint=hint)
    return budget


def _plan(manifest: Manifest, request: Request, floor_bytes: int, *, allow_freezing: bool) -> Plan:
    """The plan of a run; `floor_bytes` of the process are in the user's budget too, 0 without `--total`.

    Raises:
        BudgetError: Nothing fits.
    """
    from edgeff.runtime.freezing import plan_freezing
    from edgeff.runtime.plan import plan, smallest_budget

    try:
        return plan_freezing(manifest, request) if allow_freezing else plan(manifest, request)
    except BudgetError as error:
        needed, budget = smallest_budget(manifest, request), request.budget_bytes
        if not floor_bytes or budget is None or needed <= budget:
            raise
        # The floor differs from run to run: a MiB more, so that the advice holds.
        hint = f"give it `--budget {-(-(needed + floor_bytes) // 2**20) + 1}MiB --total`"
        raise BudgetError(f"beside {format_bytes(floor_bytes)} of the process itself {error}", hint=hint) from error


@contextmanager
def _hints_for_total(floor_bytes: int) -> Iterator[None]:
    """Let what a run says of budgets serve where they are given for the whole process; the floor is 0 elsewhere."""
    try:
        yield
    except BudgetError as error:
        if not floor_bytes:
            raise
        more = f"these bytes stand over the floor: with `--total` {format_bytes(floor_bytes)} come on top"
        raise BudgetError(str(error), hint=f"{error.hint}; {more}" if error.hint else more) from error


def _budget(asked: int | None, device_name: str | None, floor_bytes: int) -> int:
    """Bytes over the floor: the smaller of what was asked for and what the device has.

    Raises:
        DeviceError: Unknown device, or one that onnxruntime does not run on.
    """
    from edgeff.devices import (
        default_budget_bytes,
        detect,
        fill_in,
        load_all,
        load_profile,
        machine_budget_bytes,
        match_profile,
        require_supported,
        require_trainable,
    )

    if device_name is not None:
        profile = load_profile(device_name)
        require_trainable(profile)
        if profile.app_ram is None or profile.as_found:
            profile = fill_in(profile, detect())
        has = default_budget_bytes(profile, floor_bytes)
        if asked is not None and asked > has:
            raise BudgetError(
                f"a budget of {format_bytes(asked)} exceeds that of `{profile.id}`: {format_bytes(has)} over the floor",
                hint=f"give at most `--budget {has // 2**20}MiB`, or leave it out",
            )
        return has if asked is None else asked
    if asked is not None:
        return asked
    machine = detect()
    require_supported(machine)
    matched, _ = match_profile(machine, load_all())
    if matched is None:
        raise DeviceError(
            "this machine matches no profile", hint="give `--budget`, or `--device` with a profile of yours"
        )
    return machine_budget_bytes(matched, machine, floor_bytes, resident_bytes=floor_bytes)


def open_checked(spec: str, data_dir: Path | None, manifest: Manifest) -> Dataset:
    """Open data and refuse what does not fit the model: form, labels, NaN.

    Raises:
        DataError: Says what does not fit, by row number where it is a row.
    """
    import numpy as np

    from edgeff.data import open_dataset
    from edgeff.preprocess import Preprocessing
    from edgeff.rows import row_blocks

    rows = open_dataset(spec, data_dir=data_dir)
    # A model pretrained without class names has numbers for names, and takes labels of any name.
    numbered = manifest.classes == tuple(map(str, range(len(manifest.classes))))
    same = len(rows.classes) == len(manifest.classes) if numbered else rows.classes == manifest.classes
    if rows.classes and not same:
        raise DataError(
            f"`{rows.name}` has the classes {', '.join(rows.classes)}, needed {', '.join(manifest.classes)}",
            hint="give data with the classes that the model was pretrained on",
        )
    rows = replace(rows, classes=manifest.classes).check()
    preprocessing = Preprocessing(manifest.input, manifest.preprocessing, manifest.features)
    for first, block in row_blocks(rows.x):
        preprocessing.check_raw(block, numbers=np.arange(first, first + len(block)))
    return rows


def _run(adaptation: Adaptation, *, resume: bool) -> Mapping[str, Any]:
    """Drive the run, showing its progress.

    Raises:
        RunError: It was stopped by a signal.
        BudgetError: It would take more than its budget.
    """
    from edgeff.runtime.events import Finished, GuardResult, Notice, Replanned, Stopped
    from edgeff.runtime.trainer import Progress

    stage = adaptation.plan.schedule == "stage"
    with _signals() as interrupted, ProgressLine("train", adaptation.settings.epochs) as line:
        for event in _told_of_memory(adaptation.run(resume=resume, stop=interrupted)):
            if isinstance(event, Progress):
                losses = " ".join(f"{name} {loss:.3f}" if stage else f"{loss:.3f}" for name, loss in event.loss.items())
                peak = "" if event.measured is None else f"  peak {format_bytes(event.measured.training_bytes)}"
                line.show(event.position.epoch, f"loss {losses}  {event.rows_per_s:.0f} rows/s{peak}")
            elif isinstance(event, GuardResult):
                what = f"{event.epoch} blocks done" if stage else f"epoch {event.epoch}"
                line.note(f"{what}  guard accuracy {event.evaluation.accuracy:.4f}")
            elif isinstance(event, Notice):
                line.note(f"warning: {event.text}")
            elif isinstance(event, Replanned):
                planned = format_bytes(event.plan.planned_bytes)
                line.note(f"{event.reason}: on with micro-batch {event.plan.micro_batch}, {planned} planned")
            elif isinstance(event, Finished):
                return event.result
            elif isinstance(event, Stopped):
                raise RunError(
                    f"stopped after step {event.position.step} with a checkpoint",
                    hint=f"go on by `edgeff train-on-device ... --out {adaptation.folder.path} --resume`",
                )
    raise AssertionError("a run ends with Finished or Stopped")


def _told_of_memory(events: Iterator[Event]) -> Iterator[Event]:
    """The same events; that the system has no memory left is something a user can mend.

    Raises:
        BudgetError: It has none.
    """
    hint = "the last checkpoint is kept: end other programs, or go on by `--resume` with a smaller `--budget`"
    try:
        yield from events
    except MemoryError as error:
        raise BudgetError("the system gave the run no more memory", hint=hint) from error
    except EngineError as error:
        if "alloc" not in str(error):
            raise
        raise BudgetError(f"the system gave the run no more memory: {error}", hint=hint) from error


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM ask for a stop at the next consistent point instead of ending the process."""
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda number, _: received.append(number)) for kind in kinds}
    try:
        yield lambda: bool(received)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _result_text(found: Mapping[str, Any]) -> str:
    best, guard = found["best_epoch"], found["guard"]
    rounds = f"{best} blocks done" if found["schedule"] == "stage" else f"epoch {best} of {found['epochs']}"
    kept = f"kept the weights of {rounds}" if best else "kept the weights it came with"
    judged = f": guard accuracy {guard[0]['accuracy']:.4f} before, {guard[best]['accuracy']:.4f} kept" if guard else ""
    return "\n".join(
        [
            f"{found['run']}: {kept}{judged}",
            f"floor {format_bytes(found['floor_bytes'])}, training bytes "
            f"measured {format_bytes(found['training_bytes'])}, planned {format_bytes(found['planned_bytes'])}, "
            f"budget {format_bytes(found['budget_bytes'])}; "
            f"{found['seconds']:.1f} s",
        ]
    )


@click.command()
@_ARTIFACT
@_DATA
@_DATA_DIR
@_RUN
@click.option("--micro-batch", type=int, default=32, show_default=True, help="Rows that run at once.")
@_THREADS
@_JSON
def evaluate(
    artifact: Path,
    data: str,
    data_dir: Path | None,
    run_folder: Path | None,
    micro_batch: int,
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
    opened = open_artifact(artifact)
    rows = open_checked(data, data_dir, opened.manifest)
    engine.reserve(max(block.graphs["forward"].arena_bytes(micro_batch) for block in opened.manifest.blocks))
    network = open_network(opened, engine, weights=_weights(opened, run_folder))
    found = run_evaluation(network, rows.x, rows.y, micro_batch=micro_batch)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    blocks = " ".join(f"{name} {accuracy:.4f}" for name, accuracy in found.per_block.items())
    click.echo(f"accuracy {found.accuracy:.4f} on {found.rows} rows ({found.rows_per_s:.0f} rows/s)")
    click.echo(f"by block: {blocks}")


@click.command()
@_ARTIFACT
@_RUN
@click.option("--out", required=True, type=click.Path(path_type=Path), help="ONNX file to write.")
@_JSON
def finalize(artifact: Path, run_folder: Path | None, out: Path, as_json: bool) -> None:
    """Write ARTIFACT, with its own weights or a run's, as one plain inference model that any onnxruntime serves."""
    from edgeff.runtime.engine import OnnxRuntime
    from edgeff.runtime.finalize import finalize as write_model

    engine = OnnxRuntime(1)
    opened = open_artifact(artifact)
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
    from edgeff.runtime.checkpoint import BEST, read_weights

    if run_folder is None:
        return None
    if not (run_folder / BEST).is_file():
        raise RunError(f"`{run_folder}` has no `{BEST}`", hint="give a folder that `edgeff train-on-device` wrote")
    return read_weights(run_folder / BEST, artifact.manifest_sha256)
