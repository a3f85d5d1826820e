"""Options and arguments that several commands of the device share, and opening the data they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeff.errors import RunError
from edgeff.manifest import Manifest

if TYPE_CHECKING:
    from edgeff.checked_rows import CheckedRows

ARTIFACT = click.argument("artifact", type=click.Path(path_type=Path))
DATA = click.option("--data", required=True, metavar="SPEC", help="Labelled raw rows: a path, or `name:split`.")
DATA_DIR = click.option(
    "--data-dir", type=click.Path(path_type=Path), envvar="EDGEFF_DATA_DIR", help="Folder of known data sets."
)
RUN = click.option("--run", "run_folder", type=click.Path(path_type=Path), help="Take the weights of this run.")
THREADS = click.option("--threads", type=int, help="That may work at once. Default: the fast cores, at most 4.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def refuse_inside(out: Path, artifact: Path) -> None:
    """Refuse to write into an artifact, which holds what its manifest lists and nothing else.

    Raises:
        RunError: The path lies inside.
    """
    if artifact.is_dir() and out.resolve().is_relative_to(artifact.resolve()):
        raise RunError(f"`{out}` lies inside the artifact `{artifact}`", hint="choose a place outside of it for --out")


def open_checked(spec: str, data_dir: Path | None, manifest: Manifest, *, skip: bool = False) -> CheckedRows:
    """Open data, refuse or leave out what does not fit the model, and say so on stderr.

    Raises:
        DataError: Says what does not fit, by row number where it is a row.
    """
    from edgeff.checked_rows import check_rows
    from edgeff.data import open_dataset

    found = check_rows(manifest, open_dataset(spec, data_dir=data_dir, checked=not skip), skip=skip)
    for notice in found.notices():
        click.echo(f"warning: {notice}", err=True)
    return found
