"""Profiles and detected machines as text and as JSON. Nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from edgeff.devices.detect import USABLE_PERCENT, DetectedMachine, match_reason
from edgeff.devices.figure import Figure, Provider, Training
from edgeff.devices.form import DEVICE_CLASSES
from edgeff.devices.profile import DeviceProfile
from edgeff.units import format_bytes

_HEADINGS = ("id", "class", "RAM", "app RAM", "CPU", "trains on", "onnxruntime")

# Field -> what a reader calls it, and its unit; bytes carry their unit in the figure's own text.
_FIGURES = {
    "ram": ("RAM", "bytes"),
    "visible_ram": ("visible RAM", "bytes"),
    "external_ram": ("external RAM", "bytes"),
    "app_ram": ("app RAM", "bytes"),
    "floor": ("floor", "bytes"),
    "storage": ("storage", "bytes"),
    "cores": ("cores", ""),
    "clock_mhz": ("clock", "MHz"),
    "fp32_gflops": ("float32 speed", "GFLOP/s"),
    "bandwidth_peak_gb_s": ("bandwidth, peak", "GB/s"),
    "bandwidth_copy_gb_s": ("bandwidth, copy", "GB/s"),
    "bandwidth_fill_gb_s": ("bandwidth, fill", "GB/s"),
    "power_idle_w": ("power, idle", "W"),
    "power_typical_w": ("power, typical", "W"),
    "power_load_w": ("power, load", "W"),
}

_TRAINING: dict[Training, str] = {"yes": "trains", "no": "does not train", "untested": "training untested"}


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, two spaces apart, without trailing spaces."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _size(figure: Figure[int] | None) -> str:
    if figure is None:
        return "-"
    return f"~{figure.text}" if figure.is_estimate else figure.text


def _trains_on(profile: DeviceProfile) -> str:
    proven = [provider.short_name for provider in profile.providers if provider.training == "yes"]
    hoped = [f"{provider.short_name} (untested)" for provider in profile.training_providers]
    return ", ".join(proven or hoped) or "-"


def _row(profile: DeviceProfile) -> tuple[str, ...]:
    ram, app_ram = ("as found" if profile.as_found and not f else _size(f) for f in (profile.ram, profile.app_ram))
    supported = "yes" if profile.onnxruntime_supported else "no"
    return (profile.id, profile.device_class, ram, app_ram, profile.cpu, _trains_on(profile), supported)


def profile_table(profiles: Iterable[DeviceProfile]) -> str:
    """One line per profile, by class; `~` marks an estimate.

    Args:
        profiles: In the order they have within their class.
    """
    ordered = sorted(profiles, key=lambda profile: DEVICE_CLASSES.index(profile.device_class))
    return "\n".join(_columns([_HEADINGS, *(_row(profile) for profile in ordered)]))


def _figure_rows(profile: DeviceProfile) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for key, (label, unit) in _FIGURES.items():
        figure: Figure[Any] | None = getattr(profile, key)
        if figure is not None:
            text = figure.text if unit in ("bytes", "") else f"{figure.text} {unit}"
            rows.append((label, text, figure.basis, figure.source))
    return rows


def _provider_line(provider: Provider) -> str:
    return f"{provider.name}: {_TRAINING[provider.training]}" + (f" ({provider.note})" if provider.note else "")


def _lists(profile: DeviceProfile) -> list[tuple[str, list[str]]]:
    beside = []
    for accelerator in profile.accelerators:
        detail = f", {accelerator.detail}" if accelerator.detail else ""
        training = _TRAINING[accelerator.training]
        beside.append(f"{accelerator.name}{detail}: {training} ({accelerator.basis}: {accelerator.source})")
    return [
        ("execution providers", [_provider_line(provider) for provider in profile.providers]),
        ("accelerators", beside),
        ("other runtimes that can train something there", list(profile.other_runtimes)),
        ("notes", list(profile.notes)),
        ("sources of the rest", list(profile.sources)),
    ]


def profile_text(profile: DeviceProfile) -> str:
    """Everything a profile says, each figure with its basis and source."""
    lines = [f"{profile.id}: {profile.name}", ""]
    heads = [
        ("class", profile.device_class),
        ("architecture", profile.architecture),
        ("CPU", profile.cpu),
        ("instruction set", ", ".join(profile.isa) or "-"),
        ("stores on", profile.storage_kind or "-"),
        ("onnxruntime", "yes" if profile.onnxruntime_supported else "no"),
        ("trains", f"no: {profile.refusal}" if profile.refusal else f"yes, on {_trains_on(profile)}"),
    ]
    lines += _columns(heads)
    if rows := _figure_rows(profile):
        lines += ["", *_columns(rows)]
    for heading, entries in _lists(profile):
        if entries:
            lines += ["", heading, *(f"  {entry}" for entry in entries)]
    return "\n".join(lines)


def to_json(profile: DeviceProfile) -> dict[str, Any]:
    """Everything a profile says as values that JSON knows; sizes in bytes, absent figures as null."""
    document: dict[str, Any] = {}
    for field in fields(profile):
        value = getattr(profile, field.name)
        if field.name in _FIGURES and value is not None:
            unit = _FIGURES[field.name][1]
            value = {"value": value.value, "unit": unit, "basis": value.basis, "source": value.source}
        elif isinstance(value, tuple):
            value = [entry if isinstance(entry, str) else asdict(entry) for entry in value]
        document["class" if field.name == "device_class" else field.name] = value
    return document | {"can_train": profile.can_train, "refusal": profile.refusal}


def _amount(count: int | None) -> str:
    return "unknown" if count is None else format_bytes(count)


def _limits(machine: DetectedMachine) -> list[tuple[str, str]]:
    rows = []
    if machine.limit_bytes is not None:
        used = f"{_amount(machine.limit_used_bytes)} of it used"
        rows.append(("memory limit", f"{format_bytes(machine.limit_bytes)}, {used}"))
    if machine.cpu_limit is not None:
        rows.append(("CPU limit", f"{machine.cpu_limit:g} processors"))
    return rows


def detection_text(machine: DetectedMachine, profile: DeviceProfile | None, differences: Sequence[str]) -> str:
    """What was found, the profile that fits it and why, and what is otherwise here than the profile says.

    Args:
        machine: From `detect`.
        profile: From `match_profile`.
        differences: From `match_profile`.
    """
    cores = "unknown number of" if machine.cores is None else str(machine.cores)
    rows = [
        ("machine", machine.model or "unknown"),
        ("system", f"{machine.system} on {machine.architecture or 'unknown'}, {machine.pointer_bits}-bit"),
        ("CPU", f"{machine.cpu or 'unknown'}, {cores} cores"),
        ("instruction set", ", ".join(machine.isa) or "unknown"),
        ("RAM", _amount(machine.ram_bytes)),
        ("swap (not counted)", _amount(machine.swap_bytes)),
        *_limits(machine),
        ("available", _amount(machine.available_bytes)),
        (f"usable ({USABLE_PERCENT} %)", _amount(machine.usable_bytes)),
        ("profile", f"{profile.id} ({profile.name})" if profile else "none"),
        ("because", match_reason(machine, profile)),
    ]
    lines = _columns(rows)
    if differences:
        lines += ["", "not as in the profile", *(f"  {line}" for line in differences)]
    return "\n".join(lines)


def detection_json(
    machine: DetectedMachine, profile: DeviceProfile | None, differences: Sequence[str]
) -> dict[str, Any]:
    """The same as `detection_text` as values that JSON knows."""
    found = asdict(machine) | {"available_bytes": machine.available_bytes, "usable_bytes": machine.usable_bytes}
    return {
        "machine": found | {"isa": list(machine.isa), "compatible": list(machine.compatible)},
        "unsupported": machine.unsupported,
        "profile": None if profile is None else profile.id,
        "reason": match_reason(machine, profile),
        "differences": list(differences),
    }
