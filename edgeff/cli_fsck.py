"""`edgeff fsck`: what is in the folder of a run, what is damaged, and what can be gone on with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeff.table import table
from edgeff.units import format_bytes

if TYPE_CHECKING:
    from edgeff.runtime.fsck import RunState


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fsck(run_folder: Path, as_json: bool) -> None:
    """Look at RUN_FOLDER of train-on-device: every file, and what `--resume` would do. Changes nothing.

    Exits with 1 where a file is damaged or the run is lost.
    """
    from edgeff.runtime.fsck import examine

    found = examine(run_folder)
    click.echo(json.dumps(_as_dict(found), indent=2) if as_json else _as_text(found))
    if found.damaged or found.next == "lost":
        raise SystemExit(1)


def _as_dict(found: RunState) -> dict[str, object]:
    return {**asdict(found), "path": str(found.path)}


def _as_text(found: RunState) -> str:
    rows = [
        (file.name if file.name.isprintable() else repr(file.name), format_bytes(file.bytes), file.state, file.note)
        for file in found.files
    ]
    lines = [table(("file", "size", "state", "what"), rows)] if rows else []
    if found.in_use:
        lines.append("a process works in this folder now: what is seen here may be changing")
    return "\n".join([*lines, _verdict(found)])


def _verdict(found: RunState) -> str:
    if found.next == "finished":
        return "the run is finished"
    if found.next == "begins again":
        return "the run has no checkpoint yet: `--resume` begins it again"
    if found.next == "lost":
        return f"the run cannot be gone on with: {found.why}"
    assert found.position is not None
    return f"`--resume` goes on from `{found.source}`, after step {found.position.step}"
