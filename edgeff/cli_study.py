"""`edgeff study`: the experiments of docs/results.md as commands. Needs PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeff.cli_options import DATA_DIR, JSON

if TYPE_CHECKING:
    from edgeff.pretrain_settings import Device

# By name, with what each asks; the functions are in `edgeff.studies.<name>`, `-` as `_`.
STUDIES = {
    "compare": "Local learning beside back-propagation on a recipe's backbone",
    "ablation": "What each of the three ingredients of DTG-FF gives",
    "depth": "Accuracy of every block, and of their fusion",
    "k-conflict": "How the gap to back-propagation goes with the number of classes: synthetic against real data",
    "coarse-fine": "The same images with coarse, fine and randomly grouped labels",
    "systems": "Bytes and rows per second beside back-propagation at 224 x 224",
    "adapt": "A new person, speaker, sensor or class on the device",
}
# Studies of many recipes, of one recipe, those that train for no number of epochs, and those of float32 alone.
_MANY_RECIPES, _ONE_RECIPE = ("compare",), ("ablation", "depth")
_WITHOUT_EPOCHS = _IN_FLOAT32 = _MEASURED = ("systems",)


@click.command(help="Run an experiment.\n\n\b\n" + "\n".join(f"{name:12}{what}" for name, what in STUDIES.items()))
@click.argument("name", type=click.Choice(list(STUDIES)), metavar="NAME")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for table, picture and runs.")
@click.option("--recipe", "recipes", multiple=True, metavar="NAME|FILE.toml", help="May be repeated.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's or the study's own.")
@click.option("--threads", type=click.IntRange(min=1), help="Of torch on the CPU.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Torch's.")
@click.option("--mixed-precision", is_flag=True, help="bfloat16 autocast on cuda.")
@click.option(
    "--device-python",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Interpreter of a device's environment: with `systems`, whose onnxruntime is measured. Default: this one's.",
)
@DATA_DIR
@JSON
def study(
    name: str,
    out: Path,
    recipes: tuple[str, ...],
    seeds: int,
    epochs: int | None,
    threads: int | None,
    device: Device,
    mixed_precision: bool,
    device_python: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Run one of `STUDIES`."""
    import importlib

    from edgeff.errors import RunError
    from edgeff.studies.training import StudySettings

    if recipes and name not in (*_MANY_RECIPES, *_ONE_RECIPE):
        raise click.UsageError(f"study `{name}` takes no recipe")
    if len(recipes) > 1 and name in _ONE_RECIPE:
        raise click.UsageError(f"study `{name}` takes one recipe")
    if epochs and name in _WITHOUT_EPOCHS:
        raise click.UsageError(f"study `{name}` takes no epochs: it measures single steps")
    if mixed_precision and name in _IN_FLOAT32:
        raise click.UsageError(f"study `{name}` measures in float32")
    if device_python and (name not in _MEASURED or device != "cpu"):
        raise click.UsageError(f"study `{name}` on {device} has no use for --device-python")
    module = name.replace("-", "_")
    run = getattr(importlib.import_module(f"edgeff.studies.{module}"), module)
    settings = StudySettings(
        out=out,
        data_dir=data_dir,
        recipes=recipes,
        seeds=seeds,
        epochs=epochs or 0,
        threads=threads,
        device=device,
        mixed_precision=mixed_precision,
        # Not resolved: a link to the interpreter is what makes the environment.
        device_python=device_python.absolute() if device_python else None,
        report=lambda line: click.echo(line, err=True),
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = run(settings)
        found.write(out)
    except OSError as error:
        raise RunError(f"`{out}` cannot be written: {error.strerror or error}", hint="check the path") from error
    click.echo(found.json() if as_json else found.text())
