"""`edgeff export`: needs PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgeff import cli_network
from edgeff.engines import ENGINES, ONNXRUNTIME
from edgeff.errors import ArtifactError
from edgeff.manifest import TrainingDefaults
from edgeff.providers import CPU, TARGETS


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Artifact to write: a folder or a .zip file."
)
@cli_network.BLOCKS
@cli_network.LOSSES
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--weight-decay", type=float, help="Default: the optimizer's.")
@click.option("--momentum", type=float, help="Of sgd.")
@click.option("--dropout", is_flag=True, help="Keep dropout on while training on the device.")
@click.option("--batch-size", type=int, default=TrainingDefaults.batch_size, show_default=True, help="Device default.")
@click.option("--epochs", type=int, default=TrainingDefaults.epochs, show_default=True, help="Device default.")
@click.option(
    "--learning-rate", type=float, default=TrainingDefaults.learning_rate, show_default=True, help="Device default."
)
@click.option(
    "--rows-together",
    type=click.IntRange(min=2),
    help="Rows that are compared with one another on the device, where the rule compares rows. Default: 32.",
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
    rows_together: int | None,
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
    network = pretrained.network.predicting()
    left_out = [block.name for block in pretrained.network.sequence[len(network.blocks) :]]
    network = cli_network.regrouped(network, blocks, losses)
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
    if rows_together is not None:
        if not any(block.compares_rows for block in network.sequence):
            raise click.UsageError("--rows-together is for networks that compare rows; no block of this one does")
        settings = replace(settings, rows_together=rows_together)
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
        found = {"artifact": str(out), "blocks": len(manifest.blocks), "left_out": left_out, "largest_error": worst}
        click.echo(json.dumps(found, indent=2))
        return
    count = len(manifest.blocks)
    click.echo(
        f"{out}: {count} block{'s' * (count > 1)}, every graph within {worst:.1e} of torch "
        f"(allowed {manifest.checks.tolerance:.0e})"
    )
    if left_out:
        names = ", ".join(f"`{name}`" for name in left_out)
        click.echo(f"left out: {names}, for no prediction depends on {'it' if len(left_out) == 1 else 'them'}")
