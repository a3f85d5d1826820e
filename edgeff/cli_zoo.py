"""`edgeff zoo`: the pretrained networks that come with edgeff."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from edgeff.cli_options import JSON
from edgeff.table import table
from edgeff.units import format_bytes
from edgeff.zoo_index import ZooModel, copy_model, zoo_model, zoo_models


@click.command()
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Copy the network's artifact there, a .zip file.")
@JSON
def zoo(name: str | None, out: Path | None, as_json: bool) -> None:
    """List the pretrained networks, or tell all of the one called NAME and copy it to where it is wanted."""
    if name is None:
        if out is not None:
            raise click.UsageError("--out needs the NAME of a network")
        models = list(zoo_models().values())
        click.echo(json.dumps([_plain(model) for model in models], indent=2) if as_json else _list(models))
        return
    model = zoo_model(name)
    if out is not None:
        copy_model(model, out)
    if as_json:
        click.echo(json.dumps({**_plain(model), **({} if out is None else {"out": str(out)})}, indent=2))
    else:
        click.echo(_details(model) if out is None else f"{out}: {model.task}, {_size(model)}")


def _plain(model: ZooModel) -> dict[str, object]:
    return {**dataclasses.asdict(model), "bytes": model.path.stat().st_size, "commands": list(model.commands)}


def _size(model: ZooModel) -> str:
    return format_bytes(model.path.stat().st_size)


def _list(models: list[ZooModel]) -> str:
    rows = [
        (model.name, model.task, f"{100 * model.test_accuracy:.2f} %", _size(model), model.licence) for model in models
    ]
    return table(("name", "task", "test accuracy", "size", "licence of the data"), rows)


def _details(model: ZooModel) -> str:
    lines = [
        ("task", model.task),
        ("network", f"preset {model.preset}"),
        ("size", _size(model)),
        ("test accuracy", f"{100 * model.test_accuracy:.2f} % on {model.test}"),
        ("validation", f"{100 * model.validation_accuracy:.2f} %"),
        ("data", f"{model.data}; licence: {model.licence}"),
        ("trained", f"{model.date}, edgeff {model.edgeff_version}, seed {model.seed}"),
        ("made by", model.commands[0]),
        ("", model.commands[1]),
    ]
    return "\n".join(f"{key:15}{value}" for key, value in lines)
