"""The parts of the HTML report about one device: its bars, and a card for every plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeff.markup import Safe, element, join
from edgeff.report import DeviceRows, MethodRow, Planner, Report, plan_key
from edgeff.report_bars import MARGIN, NEAR, bars_table, breakable, chart_bytes, cut_note, percent, verdict
from edgeff.report_compare import tensors_sentence
from edgeff.report_svg import placed, stretch_places, ticks, timeline_svg
from edgeff.report_text import count, details, seconds_text
from edgeff.units import format_bytes

if TYPE_CHECKING:
    from edgeff.runtime.timeline import Timeline


@dataclass(frozen=True)
class Card:
    """A plan that is shown once, though several devices may have it.

    Attributes:
        id: In the page.
        row: Of one of these devices.
        limit: Their budget where it is near enough to be drawn; else None.
    """

    id: str
    row: MethodRow
    limit: int | None


def cards_of(report: Report) -> tuple[list[Card], list[list[str]]]:
    """Every plan once, and for each device the ids of its rows' cards."""
    found: dict[object, Card] = {}
    ids = []
    for one in report.devices:
        names = []
        for row in one.rows:
            limit = _limit(row, one.device.budget_bytes)
            key = (plan_key(row), row.fits, row.over_budget, limit, row.reason)
            card = found.setdefault(key, Card(f"plan-{len(found) + 1}", row, limit))
            names.append(card.id)
        ids.append(names)
    order = {method: number for number, method in enumerate(report.methods)}
    # In the order of methods, so that the cards of any device stand as its rows do.
    return sorted(found.values(), key=lambda card: order[card.row.method]), ids


def _limit(row: MethodRow, budget_bytes: int) -> int | None:
    near = row.planned_bytes is not None and budget_bytes < NEAR * row.planned_bytes
    return budget_bytes if near else None


# --- a device ---------------------------------------------------------------------------------------------------------


def device_panel(report: Report, one: DeviceRows, names: Sequence[str], legend: Safe) -> Safe:
    """What a device has, and what each method takes of it."""
    device = one.device
    heading = element("h3", device.name, " ", element("span", device.id, class_="soft small"))
    if not one.rows:
        told = tensors_sentence(report.manifest, device) if device.tensors_only else device.refusal
        content = [element("p", told)]
    else:
        mark = "~" if device.estimated else ""
        figures = [
            ("one process may use", "-" if device.ram_bytes is None else f"{mark}{format_bytes(device.ram_bytes)}"),
            ("floor", format_bytes(device.floor_bytes) if device.floor_bytes else "-"),
            ("budget", f"{mark}{format_bytes(device.budget_bytes)}"),
        ]
        listed = (element("div", element("dt", word), element("dd", value)) for word, value in figures)
        longest = chart_bytes(one.rows)
        far = device.budget_bytes > NEAR * longest
        times = device.budget_bytes / max(1, longest)
        note = f"The budget is {times:.1f} times the longest bar: off the chart to the right."
        bars = bars_table(one.rows, limit=device.budget_bytes, caption=f"Methods on {device.name}", links=names)
        content = [
            element("dl", *listed, class_="numbers"),
            legend,
            bars,
            cut_note(one.rows),
            *([element("p", note, class_="soft small")] if far else []),
        ]
    return element(
        "article", heading, *content, class_="device card", id=f"device-{device.id}", data_plans=" ".join(names)
    )


# --- a plan -----------------------------------------------------------------------------------------------------------


def plan_card(card: Card, planner: Planner, title: str) -> Safe:
    """One update as a picture, and its blocks as a table."""
    row = card.row
    heading = element("header", element("h4", breakable(row.method)), verdict(row))
    if row.plan is None:
        content = [element("p", row.reason, class_="why")]
    else:
        said = [] if row.fits else [element("p", row.reason, class_="why")]
        words = [title, *(details(row)[1:] if row.fits else ["the smallest plan there is"])]
        line = planner.timeline(row.method, row.plan)
        picture = [_timeline(card, line)] if line and line.stretches else []
        content = [element("p", "; ".join(words), class_="soft small"), *said, *picture, _blocks(card)]
    return element("article", heading, *content, class_="plan card", id=card.id)


def _timeline(card: Card, line: Timeline) -> Safe:
    plan, measured = card.row.plan, card.row.measured_bytes
    assert plan is not None
    near = card.limit if card.limit and card.limit < 2 * plan.planned_bytes else None
    top = max(plan.planned_bytes, line.peak_bytes, near or 0, measured or 0)
    scale = MARGIN * top
    marks = [("planned", plan.planned_bytes), ("measured", measured), ("budget", near)]
    rules = [_rule(size, scale, element("b", format_bytes(size), class_="tick"), "") for size in ticks(top)]
    marked = [_rule(size, scale, "", f" {name}") for name, size in marks if size]
    told = [
        element("li", element("span", class_=f"dash {name}"), f"{name} {format_bytes(size)}")
        for name, size in marks
        if size
    ]
    label = f"One update by {card.row.method}: {count(line.runs, 'run')}, at most {format_bytes(line.peak_bytes)}"
    svg = timeline_svg(line, scale, label=label, described_by=f"{card.id}-blocks")
    runs, parts = count(line.runs, "run"), count(line.micro_batches, "micro-batch", "micro-batches")
    caption = f"{runs} of graphs in {parts}.{_joined_note(line)}"
    return element(
        "figure",
        element("div", *rules, svg, *marked, class_="plot"),
        _stages(line),
        element("div", element("span", "0"), element("span", f"~{seconds_text(line.seconds)}"), class_="axis"),
        element("ul", *told, class_="legend marks"),
        element(
            "p", "Point at a run, or focus the picture and use the arrow keys.", class_="readout", aria_live="polite"
        ),
        element("figcaption", caption, class_="soft small"),
    )


def _joined_note(line: Timeline) -> str:
    """What bars stand for where there are fewer of them than runs."""
    if not line.collapsed:
        return ""
    left_out = any(bar.micro_batches for stretch in line.stretches for bar in stretch.bars)
    middle = ", and the micro-batches between the first and the last (dashed) are narrower than their time"
    return f" Too many to draw: alike ones are drawn as one{middle if left_out else ''}."


def _rule(size: int, scale: float, content: str, kind: str) -> Safe:
    return element("div", content, class_=f"rule{kind}", style=f"bottom:{percent(size, scale)}")


def _stages(line: Timeline) -> Safe:
    """Names of the stretches that are wide enough for one."""
    if len(line.stretches) < 2:
        return join()
    spans = (
        element(
            "span",
            _fitting(stretch.phase.removeprefix("train "), width),
            style=f"left:{100 * start:.2f}%;width:{100 * width:.2f}%",
            title=stretch.phase,
        )
        for stretch, start, width in stretch_places(placed(line))
    )
    return element("div", *spans, class_="stages")


def _fitting(name: str, width: float) -> str:
    """A name where there is room for it."""
    return name if width > 0.02 * len(name) else ""


def _blocks(card: Card) -> Safe:
    row = card.row
    measured = any(size is not None for _, size in row.blocks)
    titles = ["block", "micro-batch", "weights", "gradients", "optimizer state", "activations", "graphs", "planned"]
    titles += (["measured"] if measured else []) + (["budget"] if row.fits else [])
    header = element(
        "tr", *(element("th", title, scope="col", class_="n" if n else "") for n, title in enumerate(titles))
    )
    lines = []
    for number, (block, size) in enumerate(row.blocks):
        parts = (
            block.weight_bytes,
            block.gradient_bytes,
            block.state_bytes,
            block.transient_bytes,
            block.session_bytes,
        )
        texts = [
            str(block.micro_batch),
            *(format_bytes(part) if part else "-" for part in (*parts, block.planned_bytes)),
        ]
        texts += ["-" if size is None else format_bytes(size)] if measured else []
        cells = [element("td", text, class_="n") for text in texts]
        if row.fits:
            budget = "-" if block.budget_bytes is None else format_bytes(block.budget_bytes)
            cells.append(element("td", budget, class_="n", data_budget=number))
        lines.append(element("tr", element("th", block.block, scope="row"), *cells))
    table = element("table", element("thead", header), element("tbody", *lines), id=f"{card.id}-blocks")
    scroll = element("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Blocks by {row.method}")
    return element("details", element("summary", f"Per block: {count(len(lines), 'block')}"), scroll)
