"""`edgeff pretrain`: needs PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeff import cli_network
from edgeff.cli_options import DATA_DIR
from edgeff.cli_progress import ProgressLine
from edgeff.errors import StoppedError

if TYPE_CHECKING:
    from edgeff.learner import Evaluation
    from edgeff.pretrain import PretrainProgress, PretrainResult
    from edgeff.pretrain_job import PretrainJob
    from edgeff.pretrain_settings import PretrainSettings
    from edgeff.recipe import Recipe


def _take_recipe(ctx: click.Context, parameter: click.Parameter, spec: str | None) -> Recipe | None:
    """Let a recipe's options be the defaults of all that the command line leaves out."""
    del parameter
    if spec is None:
        return None
    from edgeff.recipe import read_recipe

    recipe = read_recipe(spec)
    ctx.default_map = {**(ctx.default_map or {}), **recipe.options}
    return recipe


@click.command()
@click.option(
    "--recipe",
    is_eager=True,
    callback=_take_recipe,
    metavar="NAME|FILE.toml",
    help="Take data, network, rule and training from a recipe; other options given count instead, and with --data of "
    "your own its validation and test data are left out.",
)
@cli_network.PRESET
@cli_network.MODEL
@cli_network.RULE
@click.option(
    "--input-shape", metavar="C,H,W", help="One row after preprocessing. Default: the preset's, or the data's."
)
@click.option("--width", type=float, default=1.0, show_default=True, help="Factor on a preset's channels.")
@click.option("--data", required=True, metavar="SPEC", help="Training data: a path, or `name:split`.")
@click.option("--validation", metavar="SPEC", help="Validation data. Default: a tenth of the training data.")
@click.option("--test", metavar="SPEC", help="Test data, looked at once, by the network that is kept.")
@DATA_DIR
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@click.option("--epochs", type=int, default=10, show_default=True)
@click.option("--batch-size", type=int, default=128, show_default=True)
@click.option("--micro-batch", type=int, default=0, help="Rows that go through a block at once. Default: the batch.")
@click.option("--learning-rate", type=float, default=2e-3, show_default=True)
@click.option("--weight-decay", type=float, default=1e-4, show_default=True)
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", show_default=True)
@click.option("--gradient-clip", type=float, default=0.0, help="Largest norm of a block's gradient; 0 for any.")
@click.option(
    "--mode",
    type=click.Choice(["local", "bp", "bp-deepsup"]),
    default="local",
    show_default=True,
    help="`bp`: the same network as one block, by back-propagation; `bp-deepsup`: with all local losses summed.",
)
@click.option(
    "--layers",
    type=click.Choice(["1-layer", "2-layer"]),
    default="1-layer",
    show_default=True,
    help="With mode `local`: how many layers learn as one.",
)
@cli_network.LOSSES
@click.option(
    "--batch-norm/--no-batch-norm",
    default=False,
    help="Normalise layers by their batch, and fold that into the weights that are kept.",
)
@click.option(
    "--augment",
    type=click.Choice(["none", "shift", "shift-flip", "shift-flip-cutout", "signal"]),
    default="none",
    show_default=True,
)
@click.option("--label-smoothing", type=float, help="Of every block's cross-entropy.")
@click.option(
    "--fusion",
    type=click.Choice(["range", "sum", "loss", "readout"]),
    default="range",
    show_default=True,
    help="How the blocks' scores make one prediction: chosen or trained on validation data, but for `sum`.",
)
@click.option(
    "--keep", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Which epoch's weights."
)
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
    recipe: Recipe | None,
    preset: str | None,
    factory: str | None,
    rules: tuple[str, ...],
    input_shape: str | None,
    width: float,
    data: str,
    validation: str | None,
    test: str | None,
    data_dir: Path | None,
    out: Path,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Pretrain a network layer by layer and keep the weights that do best on validation data."""
    from edgeff.pretrain_job import PretrainJob, prepare
    from edgeff.pretrain_settings import PretrainSettings
    from edgeff.rule import merged_rules

    base = recipe.rule if recipe else {}
    if recipe and factory is not None and preset == recipe.options.get("preset"):
        preset, base = None, {}
    if (preset is None) == (factory is None):
        raise click.UsageError("give either --preset or --model")
    if factory is not None:
        _refuse_of_presets("input_shape", "width")
        input_shape, width = None, 1.0
    if _given("data"):
        validation, test = (
            value if _given(name) else None for name, value in (("validation", validation), ("test", test))
        )
    job = PretrainJob(
        data,
        PretrainSettings(**settings),
        preset=preset,
        factory=factory,
        validation=validation,
        test=test,
        input_shape=input_shape,
        width=width,
        rule=merged_rules(base, cli_network.rule_settings(rules)),
    )
    prepared = prepare(job, data_dir=data_dir)
    try:
        with ProgressLine("pretrain", prepared.steps) as line:
            result, tested = prepared.run(out, resume=resume, progress=lambda record: _show(line, record, job.settings))
    except KeyboardInterrupt as error:
        hint = f"the last whole epoch is kept: go on by `edgeff pretrain ... --out {out} --resume`"
        raise StoppedError("stopped by SIGINT", hint=hint) from error
    _print_result(result, tested, out, job, as_json=as_json)


def _given(name: str) -> bool:
    """Whether an option is on the command line itself, and not from a recipe."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _refuse_of_presets(*names: str) -> None:
    """Refuse options that a model of one's own would not heed; from a recipe they are for its preset."""
    for name in names:
        if _given(name):
            raise click.UsageError(f"--{name.replace('_', '-')} is for --preset; a model has its own")


def _show(line: ProgressLine, record: PretrainProgress, settings: PretrainSettings) -> None:
    if record.metrics is not None:
        line.note(
            f"epoch {record.epoch}/{settings.epochs}  validation accuracy {record.metrics.validation.accuracy:.4f}  "
            f"{record.rows_per_s:.0f} rows/s"
        )
        return
    losses = " ".join(f"{loss:.3f}" for loss in record.losses.values())
    line.show(record.step, f"loss {losses}  {record.rows_per_s:.0f} rows/s")


def _print_result(
    result: PretrainResult, tested: Evaluation | None, out: Path, job: PretrainJob, *, as_json: bool
) -> None:
    best = result.best
    if as_json:
        found = {
            "run": str(out),
            "best_epoch": result.best_epoch,
            "validation_accuracy": best.validation.accuracy,
            "readout_accuracy": list(best.validation.readout_accuracy),
            "parameters": sum(parameter.numel() for parameter in result.network.parameters()),
        }
        if tested is not None:
            found |= {"test_accuracy": tested.accuracy, "test_readout_accuracy": list(tested.readout_accuracy)}
        click.echo(json.dumps(found, indent=2))
        return
    readouts = " ".join(f"{accuracy:.3f}" for accuracy in best.validation.readout_accuracy)
    accuracy = f"validation accuracy {best.validation.accuracy:.4f} ({readouts})"
    click.echo(f"{out}: {job.settings.keep} epoch {result.best_epoch}, {accuracy}")
    if tested is not None:
        click.echo(f"test accuracy {tested.accuracy:.4f} on {job.test}")
