"""All devices in one table."""

from __future__ import annotations

from itertools import groupby

from edgeff.markup import Safe, element, join
from edgeff.report import DeviceRows, MethodRow, Report
from edgeff.report_compare import tensor_bytes, tensors_fit
from edgeff.report_text import short_name
from edgeff.units import format_bytes

_CLASSES = {
    "sbc": "Single-board computers",
    "mpu": "Processor modules and kits",
    "pc": "PCs",
    "phone": "Phones",
    "browser": "Browsers",
    "mcu": "Microcontrollers",
}


def overview(report: Report) -> Safe:
    """A line for each device, a column for each method."""
    lead = (
        "✓ and the micro-batch at which a method fits, or ✗ and the bytes that it needs at the least; ~ is an estimate."
    )
    header = element(
        "tr",
        *(
            element("th", text, scope="col", class_=kind)
            for text, kind in (("device", ""), ("floor", "n"), ("budget", "n"))
        ),
        *(element("th", short_name(method), scope="col", title=title) for method, title in report.methods.items()),
    )
    bodies = []
    order = list(_CLASSES)
    sorted_devices = sorted(
        report.devices, key=lambda one: order.index(one.device.kind) if one.device.kind in order else 99
    )
    for kind, group in groupby(sorted_devices, key=lambda one: one.device.kind):
        title = element("th", _CLASSES.get(kind, kind), scope="rowgroup", colspan=3 + len(report.methods))
        rows = [_overview_row(report, one) for one in group]
        bodies.append(element("tbody", element("tr", title, class_="group"), *rows))
    table = element("table", element("thead", header), *bodies, class_="overview")
    return join(
        element("p", lead, class_="lead"),
        element("div", table, class_="scroll card", tabindex=0, role="region", aria_label="All devices"),
    )


def _overview_row(report: Report, one: DeviceRows) -> Safe:
    device = one.device
    link = element("a", device.id, href=f"#device-{device.id}")
    cells = [element("th", link, scope="row")]
    if device.refusal:
        told = _tensors(report, one) if device.tensors_only else device.refusal
        cells.append(element("td", told, colspan=2 + len(report.methods), class_="soft"))
    else:
        mark = "~" if device.estimated else ""
        cells.append(element("td", format_bytes(device.floor_bytes) if device.floor_bytes else "-", class_="n"))
        cells.append(element("td", f"{mark}{format_bytes(device.budget_bytes)}", class_="n"))
        cells += [_overview_cell(row) for row in one.rows]
    return element("tr", *cells, data_device=device.id)


def _tensors(report: Report, one: DeviceRows) -> str:
    fits = "✓ would fit" if tensors_fit(report.manifest, one.device) else "✗ would not fit"
    return f"{fits}: tensors alone, {format_bytes(tensor_bytes(report.manifest))}"


def _overview_cell(row: MethodRow) -> Safe:
    size = "-" if row.planned_bytes is None else format_bytes(row.planned_bytes)
    if row.over_budget and row.measured is not None:
        took = format_bytes(row.measured.training_bytes)
        return element("td", element("span", f"✗ took {took}", class_="chip no", title="fits by its plan"))
    if row.fits:
        return element("td", element("span", f"✓ {row.micro_batch}", class_="chip yes", title=f"fits; planned {size}"))
    return element("td", element("span", f"✗ {size}", class_="chip no", title=row.reason))
