"""Commands that only show: inspect, report, devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from edgeff.devices import DeviceProfile, default_budget_bytes, load_all, load_profile
from edgeff.errors import BudgetError, DeviceError
from edgeff.manifest import Manifest
from edgeff.report import DeviceVerdict, report_json, report_text, tensor_bytes
from edgeff.units import format_bytes


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(artifact: Path, as_json: bool) -> None:
    """Show what is in ARTIFACT, after verifying it."""
    from edgeff.artifact import open_artifact
    from edgeff.inspect import inspect_json, inspect_text

    opened = open_artifact(artifact)
    click.echo(json.dumps(inspect_json(opened), indent=2) if as_json else inspect_text(opened))


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--device", "devices", multiple=True, help="A profile's name or TOML file; repeatable. Default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(artifact: Path, devices: tuple[str, ...], as_json: bool) -> None:
    """Show what training ARTIFACT takes per block, and on which devices it fits."""
    from edgeff.artifact import open_artifact

    manifest = open_artifact(artifact).manifest
    profiles = [load_profile(name) for name in devices] if devices else load_all()
    verdicts = [verdict_of(manifest, profile) for profile in profiles]
    if as_json:
        click.echo(json.dumps(report_json(str(artifact), manifest, verdicts), indent=2))
    else:
        click.echo(report_text(manifest, verdicts))


def verdict_of(manifest: Manifest, profile: DeviceProfile) -> DeviceVerdict:
    """Plan the model for a device."""
    from edgeff.runtime.plan import Request, plan

    ram = None if profile.app_ram is None else int(profile.app_ram.value)
    estimated = profile.app_ram is not None and profile.app_ram.is_estimate
    floor = 0 if profile.floor is None else int(profile.floor.value)
    verdict = DeviceVerdict(profile.id, ram, estimated, floor, 0, False, None, None, "")
    if not profile.can_train:
        return _without_runtime(verdict, manifest, profile)
    if ram is None:
        return _changed(verdict, reason="takes what the machine has: run `edgeff devices --detect` there")
    try:
        budget = default_budget_bytes(profile, floor)
        planned = plan(manifest, Request(batch_size=manifest.training.batch_size, budget_bytes=budget))
    except (BudgetError, DeviceError) as error:
        return _changed(verdict, budget_bytes=max(0, ram - floor), reason=str(error))
    return _changed(
        verdict,
        budget_bytes=budget,
        fits=True,
        micro_batch=planned.micro_batch,
        planned_bytes=planned.planned_bytes,
    )


def _without_runtime(verdict: DeviceVerdict, manifest: Manifest, profile: DeviceProfile) -> DeviceVerdict:
    """Tensor bytes against the memory, and the sentence that onnxruntime does not run there; nothing is promised."""
    needed = tensor_bytes(manifest)
    ram = profile.app_ram or profile.ram
    fits = "would fit" if ram is not None and needed <= int(ram.value) else "would not fit"
    reason = f"tensors alone ({format_bytes(needed)} at micro-batch 1) {fits}; {profile.refusal}"
    return _changed(verdict, floor_bytes=0, ram_bytes=None if ram is None else int(ram.value), reason=reason)


def _changed(verdict: DeviceVerdict, **values: object) -> DeviceVerdict:
    from dataclasses import replace

    return replace(verdict, **values)  # type: ignore[arg-type]


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
