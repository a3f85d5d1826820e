"""Commands that need PyTorch: pretrain and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeff.cli_progress import ProgressLine
from edgeff.engines import ENGINES, ONNXRUNTIME
from edgeff.errors import ArtifactError, ModelError
from edgeff.manifest import TrainingDefaults
from edgeff.providers import CPU, TARGETS

if TYPE_CHECKING:
    from edgeff.dataset import Dataset
    from edgeff.model import LocalNetwork
    from edgeff.pretrain import PretrainProgress, PretrainResult
    from edgeff.pretrain_settings import PretrainSettings

_DATA_DIR = click.option(
    "--data-dir", type=click.Path(path_type=Path), envvar="EDGEFF_DATA_DIR", help="Folder of known data sets."
)


@click.command()
@click.option("--preset", "preset_name", help="A network by name, for example `har-cnn` or `image-cnn`.")
@click.option("--model", "factory", metavar="FILE:FUNCTION", help="Your own: a function that returns a LocalNetwork.")
@click.option(
    "--input-shape", metavar="C,H,W", help="One row after preprocessing. Default: the preset's, or the data's."
)
@click.option("--width", type=float, default=1.0, show_default=True, help="Factor on a preset's channels.")
@click.option("--data", required=True, metavar="SPEC", help="Training data: a path, or `name:split`.")
@click.option("--validation", metavar="SPEC", help="Validation data. Default: a tenth of the training data.")
@_DATA_DIR
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@click.option("--epochs", type=int, default=10, show_default=True)
@click.option("--batch-size", type=int, default=128, show_default=True)
@click.option("--learning-rate", type=float, default=2e-3, show_default=True)
@click.option("--weight-decay", type=float, default=1e-4, show_default=True)
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", show_default=True)
@click.option(
    "--mode",
    type=click.Choice(["local", "bp", "bp-deepsup"]),
    default="local",
    show_default=True,
    help="`bp`: the same network as one block, by back-propagation; `bp-deepsup`: with all local losses summed.",
)
@click.option(
    "--augment", type=click.Choice(["none", "shift", "shift-flip", "signal"]), default="none", show_default=True
)
@click.option("--label-smoothing", type=float, help="Of every block's cross-entropy.")
@click.option("--replay-rows", type=int, default=256, show_default=True, help="Training rows kept for the device.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of initial weights, order, augmentation and dropout."
)
@click.option("--threads", type=int, help="Of torch on the CPU.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--mixed-precision", is_flag=True, help="bfloat16 autocast on cuda.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pretrain(
    preset_name: str | None,
    factory: str | None,
    input_shape: str | None,
    width: float,
    data: str,
    validation: str | None,
    data_dir: Path | None,
    out: Path,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Pretrain a network layer by layer and keep the weights that do best on validation data."""
    from edgeff.data import open_dataset
    from edgeff.preprocess import fit_preprocessing
    from edgeff.pretrain import pretrain as run_pretraining
    from edgeff.pretrain_settings import PretrainSettings
    from edgeff.split import train_validation_split

    chosen = PretrainSettings(**settings)
    rows = open_dataset(data, data_dir=data_dir)
    network = _network(preset_name, factory, input_shape, width, rows, seed=chosen.seed)
    if validation:
        train, held_out = rows, open_dataset(validation, data_dir=data_dir)
    else:
        train, held_out = train_validation_split(rows, 0.1, chosen.seed)
    preprocessing = fit_preprocessing(train, network.input_shape, dtype=network.input_dtype)
    steps = chosen.epochs * -(-len(train) // chosen.batch_size)
    with ProgressLine("pretrain", steps) as line:
        result = run_pretraining(
            network,
            train,
            held_out,
            preprocessing,
            chosen,
            out=out,
            resume=resume,
            progress=lambda record: _show(line, record, chosen),
        )
    _print_result(result, out, as_json)


def _show(line: ProgressLine, record: PretrainProgress, settings: PretrainSettings) -> None:
    if record.metrics is not None:
        line.note(
            f"epoch {record.epoch}/{settings.epochs}  validation accuracy {record.metrics.validation.accuracy:.4f}"
        )
        return
    losses = " ".join(f"{loss:.3f}" for loss in record.losses.values())
    line.show(record.step, f"loss {losses}  {record.rows_per_s:.0f} rows/s")


def _print_result(result: PretrainResult, out: Path, as_json: bool) -> None:
    best = result.best
    if as_json:
        found = {
            "run": str(out),
            "best_epoch": result.best_epoch,
            "validation_accuracy": best.validation.accuracy,
            "readout_accuracy": list(best.validation.readout_accuracy),
        }
        click.echo(json.dumps(found, indent=2))
        return
    readouts = " ".join(f"{accuracy:.3f}" for accuracy in best.validation.readout_accuracy)
    click.echo(
        f"{out}: best epoch {result.best_epoch}, validation accuracy {best.validation.accuracy:.4f} ({readouts})"
    )


def _network(
    name: str | None, factory: str | None, shape: str | None, width: float, rows: Dataset, *, seed: int
) -> LocalNetwork:
    import torch

    from edgeff.presets import load_factory, preset

    if (name is None) == (factory is None):
        raise click.UsageError("give either --preset or --model")
    if factory is not None:
        # A factory draws its weights as torch does by default: from the global generator, which is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return load_factory(factory)
    classes = rows.classes or int(rows.y.max()) + 1
    return preset(str(name), input_shape=_shape(str(name), shape, rows), classes=classes, width=width, seed=seed)


def _shape(name: str, text: str | None, rows: Dataset) -> tuple[int, ...] | None:
    """The shape asked for; else channels first what the rows have, where they differ from what the preset takes."""
    from math import prod

    from edgeff.presets import PRESETS

    if text is not None:
        try:
            return tuple(int(part) for part in text.split(","))
        except ValueError as error:
            raise ModelError(f"`{text}` is not a shape", hint="write for example `--input-shape 3,32,32`") from error
    chosen = PRESETS.get(name)
    row = tuple(rows.x.shape[1:])
    if chosen is None or prod(row) == prod(chosen.input_shape):
        return None
    if not chosen.axes:
        return (prod(row),)
    if len(row) == len(chosen.axes) - 1:
        return (1, *row)
    # Fewer channels than places along any other axis is what tells which axis is which.
    return (row[-1], *row[:-1]) if len(row) == len(chosen.axes) and row[-1] < row[0] else row


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Artifact to write: a folder or a .zip file."
)
@click.option(
    "--blocks",
    type=click.Choice(["1-layer", "2-layer", "whole"]),
    help="How many layers learn as one; `whole` is back-propagation through the whole network. Default: as pretrained.",
)
@click.option(
    "--losses", type=click.Choice(["last", "all"]), default="last", show_default=True, help="Of a joined block."
)
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--weight-decay", type=float, help="Default: the optimizer's.")
@click.option("--momentum", type=float, help="Of sgd.")
@click.option("--dropout", is_flag=True, help="Keep dropout on while training on the device.")
@click.option("--batch-size", type=int, default=TrainingDefaults.batch_size, show_default=True, help="Device default.")
@click.option("--epochs", type=int, default=TrainingDefaults.epochs, show_default=True, help="Device default.")
@click.option(
    "--learning-rate", type=float, default=TrainingDefaults.learning_rate, show_default=True, help="Device default."
)
@click.option("--no-replay", is_flag=True, help="Let no training rows travel along.")
@click.option(
    "--baselines",
    is_flag=True,
    help="Let back-propagation through the whole network travel along, plain and checkpointed, for `edgeff report`.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=ONNXRUNTIME,
    show_default=True,
    help="`ort-training` lets training artifacts for onnxruntime-training travel along, beside the plain graphs.",
)
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default=CPU,
    show_default=True,
    help="Write graphs in the forms that this execution provider takes; they run on any other too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    run: Path,
    out: Path,
    blocks: str | None,
    losses: str,
    optimizer: str,
    weight_decay: float | None,
    momentum: float | None,
    dropout: bool,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    no_replay: bool,
    baselines: bool,
    engine: str,
    target: str,
    as_json: bool,
) -> None:
    """Compile the network of a pretraining RUN into an artifact that a device can train."""
    from dataclasses import replace

    from edgeff.artifact import open_artifact
    from edgeff.export import ExportSettings, export_network
    from edgeff.optimizer import optimizer_spec
    from edgeff.pretrain_run import load_run

    if out.exists():  # before the minutes that compiling may take
        raise ArtifactError(f"`{out}` exists already", hint="remove it, or write to another place")
    given = {"weight_decay": weight_decay, "momentum": momentum}
    spec = optimizer_spec(optimizer, **{name: value for name, value in given.items() if value is not None})
    pretrained = load_run(run)
    network = pretrained.network if blocks is None else pretrained.network.regroup(blocks, losses)  # type: ignore[arg-type]
    keep = not no_replay and len(pretrained.replay_y) > 0
    training = replace(TrainingDefaults(), batch_size=batch_size, epochs=epochs, learning_rate=learning_rate)
    settings = ExportSettings(
        optimizer=spec,
        training=training if keep else replace(training, replay_fraction=0.0),
        dropout=dropout,
        baselines=baselines,
        engine=engine,
        target=target,
    )
    export_network(
        network,
        out,
        preprocessing=pretrained.preprocessing,
        settings=settings,
        replay=(pretrained.replay_x, pretrained.replay_y) if keep else None,
    )
    manifest = open_artifact(out).manifest
    worst = max(manifest.checks.largest_error.values())
    if as_json:
        found = {"artifact": str(out), "blocks": len(manifest.blocks), "largest_error": worst}
        click.echo(json.dumps(found, indent=2))
        return
    count = len(manifest.blocks)
    click.echo(
        f"{out}: {count} block{'s' * (count > 1)}, every graph within {worst:.1e} of torch "
        f"(allowed {manifest.checks.tolerance:.0e})"
    )
