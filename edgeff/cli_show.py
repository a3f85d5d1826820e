"""Commands that only show: inspect, report, devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from edgeff.cli_sign import require_signature_option
from edgeff.devices import DeviceProfile, load_all, load_profile
from edgeff.units import format_bytes


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@require_signature_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(artifact: Path, trusted: tuple[bytes, ...], as_json: bool) -> None:
    """Show what is in ARTIFACT, after verifying it."""
    from edgeff.artifact import open_artifact
    from edgeff.inspect import inspect_json, inspect_text

    opened = open_artifact(artifact, trusted)
    click.echo(json.dumps(inspect_json(opened), indent=2) if as_json else inspect_text(opened))


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--device", "devices", multiple=True, help="A profile's name or TOML file; repeatable. Default: all.")
@click.option("--batch-size", type=click.IntRange(1), help="Rows of a batch. Default: what the artifact proposes.")
@click.option(
    "--measure", is_flag=True, help="Train for a moment on this machine whatever fits, and set it beside the plan."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", "html", type=click.Path(path_type=Path), help="Write one HTML file instead of printing text.")
@require_signature_option
def report(
    artifact: Path,
    devices: tuple[str, ...],
    batch_size: int | None,
    measure: bool,
    as_json: bool,
    html: Path | None,
    trusted: tuple[bytes, ...],
) -> None:
    """Show what training ARTIFACT takes by each method, and on which devices it fits."""
    from edgeff.artifact import open_artifact
    from edgeff.cli_report import check_report_file, report_on
    from edgeff.report_json import report_json
    from edgeff.report_text import report_text

    if html is not None:
        check_report_file(html)  # before minutes of measuring
    opened = open_artifact(artifact, trusted)
    profiles = [load_profile(name) for name in dict.fromkeys(devices)] if devices else load_all()
    found, planner = report_on(opened, str(artifact), profiles, batch_size, measure=measure)
    if html is not None:
        from edgeff.atomic import write_atomically
        from edgeff.report_html import report_html

        write_atomically(html, report_html(found, planner).encode())
    if as_json:
        click.echo(json.dumps(report_json(found), indent=2))
    elif html is not None:
        click.echo(
            f"{html}: {len(found.devices)} device{'s'[: len(found.devices) != 1]}, {format_bytes(html.stat().st_size)}"
        )
    else:
        click.echo(report_text(found, details=bool(devices)))


@click.command()
@click.argument("name", required=False)
@click.option("--detect", is_flag=True, help="Compare this machine with the catalogue.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def devices(name: str | None, detect: bool, as_json: bool) -> None:
    """Show all device profiles, one (NAME or a TOML file), or this machine (--detect)."""
    from edgeff.devices import show

    if name and detect:
        raise click.UsageError("give NAME or --detect, not both")
    if detect:
        _detect(as_json)
        return
    profiles: Sequence[DeviceProfile] = [load_profile(name)] if name else load_all()
    if as_json:
        found = [show.to_json(profile) for profile in profiles]
        click.echo(json.dumps(found[0] if name else found, indent=2))
    else:
        click.echo(show.profile_text(profiles[0]) if name else show.profile_table(profiles))


def _detect(as_json: bool) -> None:
    from edgeff.devices import detect, match_profile, show

    machine = detect()
    profile, differences = match_profile(machine, load_all())
    if as_json:
        click.echo(json.dumps(show.detection_json(machine, profile, differences), indent=2))
    else:
        click.echo(show.detection_text(machine, profile, differences))
