"""The report as text for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeff.manifest import Line, Manifest
from edgeff.report import KIND_NAMES, KINDS, Device, DeviceRows, MethodRow, Report
from edgeff.report_compare import (
    activation_lines,
    comparison,
    fastest,
    fewest_bytes,
    replay_note,
    tensor_bytes,
    tensors_fit,
    tensors_sentence,
)
from edgeff.table import table
from edgeff.units import format_bytes

NO_BASELINES = "`edgeff export --baselines` adds back-propagation's rows"
TERMS = "planned and measured bytes stand over the floor: what the process takes before the artifact is opened"
_NONE = "-"
# So that a table of all methods fits a terminal.
_SHORT = {"accumulation": "acc", "checkpointing": "ckpt", "fused-updates": "fused"}


def report_text(report: Report, *, details: bool) -> str:
    """The whole report.

    Args:
        report: The facts.
        details: Every device in full, instead of one line for each.
    """
    parts = [
        f"{report.manifest.name}: training bytes per block",
        block_table(report.manifest),
        f"what each method takes at the least on any device, batch {report.batch_size}; {TERMS}",
        least_table(report.least),
        *([note] if (note := replay_note(report.manifest)) else []),
        *([sentence] if (sentence := comparison(report.least)) else []),
        *([] if report.has_baselines else [NO_BASELINES]),
    ]
    if details:
        parts += [text for device in report.devices for text in device_texts(report, device)]
    else:
        parts += overview_texts(report)
    return "\n\n".join(parts)


def short_name(method: str) -> str:
    """A method's name for a narrow column.

    >>> short_name("bp+accumulation+checkpointing")
    'bp+acc+ckpt'
    """
    return "+".join(_SHORT.get(word, word) for word in method.split("+"))


# --- the model --------------------------------------------------------------------------------------------------------


def block_table(manifest: Manifest) -> str:
    """Per block: bytes of weights, gradients, optimizer state, and of activations as `a + b x micro-batch`."""
    header = ("block", "weights", "gradients", "optimizer state", "activations (N = micro-batch)")
    rows = [
        (
            block.name,
            format_bytes(block.weight_bytes),
            format_bytes(block.parameter_bytes),
            format_bytes(block.state_bytes),
            " | ".join(line_text(line) for line in activation_lines(block)),
        )
        for block in manifest.blocks
    ]
    return table(header, rows)


def line_text(line: Line) -> str:
    """A line in words.

    >>> line_text(Line(2048, 512))
    '2 KiB + 512 B x N'
    """
    return f"{format_bytes(line.fixed_bytes)} + {format_bytes(line.row_bytes)} x N"


def least_table(rows: Sequence[MethodRow]) -> str:
    """Each method at its smallest, split by kind at its largest moment."""
    header = ("method", "planned", "micro-batch", *(KIND_NAMES[kind] for kind in KINDS))
    return table(header, [_least_cells(row) for row in rows])


def _least_cells(row: MethodRow) -> tuple[str, ...]:
    if row.plan is None:
        return (row.method, *[_NONE] * (2 + len(KINDS)))
    held = dataclasses.asdict(row.plan.largest_phase.resident)
    kinds = (format_bytes(held[kind]) if held[kind] else _NONE for kind in KINDS)
    return (row.method, format_bytes(row.plan.planned_bytes), str(row.plan.micro_batch), *kinds)


# --- all devices ------------------------------------------------------------------------------------------------------


def overview_texts(report: Report) -> list[str]:
    """A line for each device, those that nothing can be planned for apart."""
    planned = [one for one in report.devices if not one.device.refusal]
    others = [one.device for one in report.devices if one.device.refusal and not one.device.tensors_only]
    tensors = [one.device for one in report.devices if one.device.tensors_only]
    parts = []
    if planned:
        parts = ["devices: `fits N` at micro-batch N, else the bytes that it needs at the least; ~ is an estimate"]
        parts.append(overview_table(report, planned))
    if others:
        parts.append("\n".join(f"{device.id}: {device.refusal}" for device in others))
    if tensors:
        parts.append(tensors_text(report.manifest, tensors))
    measured = measured_table(report)
    return [*parts, *([measured] if measured else [])]


def overview_table(report: Report, devices: Sequence[DeviceRows]) -> str:
    """One row per device, one column per method."""
    header = ("device", "floor", "budget", *(short_name(method) for method in report.methods))
    rows = [
        (
            one.device.id,
            _size(one.device.floor_bytes),
            _estimate(one.device, one.device.budget_bytes),
            *(verdict_text(row) for row in one.rows),
        )
        for one in devices
    ]
    return table(header, rows)


def verdict_text(row: MethodRow) -> str:
    """`fits N`, or what it needs, or what it took where that is more than the budget."""
    if row.over_budget and row.measured_bytes is not None:
        return f"took {format_bytes(row.measured_bytes)}"
    if row.fits:
        return f"fits {row.micro_batch}"
    return _NONE if row.planned_bytes is None else format_bytes(row.planned_bytes)


def tensors_text(manifest: Manifest, devices: Sequence[Device]) -> str:
    """Microcontrollers: what their memory would have to hold, and why nothing is promised."""
    needed = tensor_bytes(manifest)
    rows = [
        (
            device.id,
            _NONE if device.ram_bytes is None else f"{'~' if device.estimated else ''}{format_bytes(device.ram_bytes)}",
            format_bytes(needed),
            "would fit" if tensors_fit(manifest, device) else "would not fit",
            device.refusal.partition("; ")[2],
        )
        for device in devices
    ]
    head = "onnxruntime does not run on microcontrollers: tensor bytes only, at micro-batch 1, whatever the runtime"
    return f"{head}\n\n{table(('device', 'RAM', 'tensors', '', ''), rows)}"


def measured_table(report: Report) -> str:
    """Every plan that was measured, once; empty without any."""
    found: dict[tuple[object, ...], list[str]] = {}
    for each in report.devices:
        for row in each.rows:
            if row.measured:
                found.setdefault(_measured_cells(row), []).append(each.device.id)
            elif row.not_measured:
                found.setdefault((row.method, f"not measured: {row.not_measured}", *[""] * 6), []).append("")
    if not found:
        return ""
    header = ("measured here", "micro-batch", "planned", "measured", "ratio", "floor", "total", "rows/s", "devices")
    return table(header, [(*map(str, cells), str(len(devices))) for cells, devices in found.items()])


def _measured_cells(row: MethodRow) -> tuple[str, ...]:
    assert row.measured is not None
    one = row.measured
    sizes = (one.floor_bytes, one.floor_bytes + one.training_bytes)
    planned = (format_bytes(one.planned_bytes), format_bytes(one.training_bytes), f"{row.ratio:.2f}")
    return (row.method, str(one.micro_batch), *planned, *map(format_bytes, sizes), f"{one.rows_per_s:.0f}")


# --- one device -------------------------------------------------------------------------------------------------------


def device_texts(report: Report, one: DeviceRows) -> list[str]:
    """A device in full: a row per method, and the blocks of every plan that fits."""
    device = one.device
    if device.tensors_only:
        return [f"{device.id}: {tensors_sentence(report.manifest, device)}"]
    if device.refusal:
        return [f"{device.id}: {device.refusal}"]
    budget = _estimate(device, device.budget_bytes)
    heading = f"{device.id} ({device.name}): budget {budget}, floor {_size(device.floor_bytes)}"
    reasons = [f"{row.method} does not fit: {row.reason}" for row in one.rows if not row.fits]
    failed = [f"{row.method} was not measured: {row.not_measured}" for row in one.rows if row.not_measured]
    notes = [line for lines in (reasons, failed) if lines for line in ["\n".join(lines)]]
    blocks = blocks_table(one.rows)
    return [heading, method_table(one.rows), *notes, *([blocks] if blocks else [])]


def method_table(rows: Sequence[MethodRow]) -> str:
    """A row per method; where it does not fit, the planned bytes are the least it needs."""
    figures = ("micro-batch", "planned", "measured", "ratio", "floor here", "rows/s", "update")
    header = ("method", "fits", *figures, "details")
    quick, small = fastest(rows), fewest_bytes(rows)
    return table(header, [_method_cells(row, quick, small) for row in rows])


def _method_cells(row: MethodRow, quick: frozenset[str], small: frozenset[str]) -> tuple[str, ...]:
    marks = [mark for mark, methods in (("fastest", quick), ("fewest bytes", small)) if row.method in methods]
    return (
        row.method,
        "over" if row.over_budget else "yes" if row.fits else "no",
        str(row.micro_batch or _NONE),
        _NONE if row.planned_bytes is None else format_bytes(row.planned_bytes),
        _NONE if row.measured_bytes is None else format_bytes(row.measured_bytes),
        _NONE if row.ratio is None else f"{row.ratio:.2f}",
        _NONE if row.measured is None else format_bytes(row.measured.floor_bytes),
        _NONE if row.measured is None else f"{row.measured.rows_per_s:.0f}",
        f"~{seconds_text(row.update_seconds)}" if row.update_seconds is not None and row.fits else _NONE,
        "; ".join([*details(row), *marks]),
    )


def details(row: MethodRow) -> list[str]:
    """What else there is to say of a plan that fits."""
    if row.plan is None or not row.fits:
        return []
    sizes = [block.micro_batch for block in row.plan.blocks if block.graphs]
    single = len(row.plan.blocks) == 1
    found = ["one block at a time" if row.plan.schedule == "stage" else f"{count(len(sizes), 'block')} at once"]
    found = ["the network as one block"] if single else found
    if row.plan.schedule == "stage" and not single:
        again = row.plan.features == "rerun"
        found.append("blocks before it run again" if again else f"{row.plan.features} files between blocks")
    if len(row.plan.groups) > 1:
        found.append(f"learn in {len(row.plan.groups)} groups, those before run again")
    if row.plan.disk_bytes:
        found.append(f"{format_bytes(row.row_disk_bytes)} on disk for each row")
    trained = [block.block for block in row.plan.blocks if block.trained]
    if 0 < len(trained) < len(row.plan.blocks):
        found.append(f"trains {', '.join(trained)} only")
    if sizes and min(sizes) < row.plan.micro_batch:
        found.append(f"in blocks {min(sizes)} to {max(sizes)} rows at once")
    if row.over_budget:
        found.append("measured over the budget")
    if row.measured and row.measured.micro_batch != row.plan.micro_batch:
        found.append(f"measured at micro-batch {row.measured.micro_batch}")
    return found


def blocks_table(rows: Sequence[MethodRow]) -> str:
    """The blocks of every plan that fits; empty when none does."""
    header = (
        *("method", "block", "micro-batch", "weights", "gradients", "optimizer state", "activations", "graphs"),
        *("planned", "measured", "budget"),
    )
    found = []
    for row in rows:
        for block, measured in row.blocks if row.fits else ():
            sizes = (block.weight_bytes, block.gradient_bytes, block.state_bytes, block.transient_bytes)
            more = (measured, block.budget_bytes)
            found.append(
                (
                    *(row.method, block.block, str(block.micro_batch)),
                    *(_size(size) for size in (*sizes, block.session_bytes, block.planned_bytes)),
                    *(_NONE if size is None else format_bytes(size) for size in more),
                )
            )
    return table(header, found) if found else ""


# From here on seconds have three digits.
_LONG = 99.5


def seconds_text(seconds: float) -> str:
    """Seconds with two significant digits.

    >>> seconds_text(0.01234), seconds_text(3.456), seconds_text(99.6), seconds_text(0.00004)
    ('12 ms', '3.5 s', '100 s', '0.04 ms')
    """
    return f"{seconds:.2g} s" if 0.9995 <= seconds < _LONG else _long_or_short(seconds)


def _long_or_short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= _LONG else f"{float(f'{1e3 * seconds:.2g}'):g} ms"


def _estimate(device: Device, size: int) -> str:
    return f"{'~' if device.estimated else ''}{_size(size)}"


def _size(size: int) -> str:
    return format_bytes(size) if size > 0 else _NONE


def count(number: int, word: str, plural: str = "") -> str:
    """A number of things.

    >>> count(1, "block"), count(2, "class", "classes")
    ('1 block', '2 classes')
    """
    return f"{number:,} {word if number == 1 else plural or word + 's'}"
