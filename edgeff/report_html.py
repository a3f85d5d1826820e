"""The report as one HTML file: no network, no library, nothing but what stands in it.

Every text is escaped by `edgeff.markup`; names in an artifact come from strangers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

import edgeff
from edgeff.markup import Safe, element, join
from edgeff.report import KIND_NAMES, MethodRow, Planner, Report
from edgeff.report_bars import bars_table, breakable, cut_note
from edgeff.report_compare import LOCAL, comparison, is_backprop, replay_note
from edgeff.report_overview import overview
from edgeff.report_panels import Card, cards_of, device_panel, plan_card
from edgeff.report_style import SCRIPT, content_policy, css
from edgeff.report_svg import STACK
from edgeff.report_text import NO_BASELINES, count
from edgeff.units import format_bytes


def report_html(report: Report, planner: Planner) -> str:
    """The file.

    Args:
        report: The facts.
        planner: That made them; asked for timelines.
    """
    cards, ids = cards_of(report)
    name = report.manifest.name
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=content_policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name}: what training takes on a device"),
        element("link", rel="icon", href="data:,"),
        element("style", Safe(css())),
    )
    body = element(
        "body",
        element("a", "Skip to the devices", class_="skip", href="#one"),
        _header(report),
        element("main", *_sections(report, cards, ids, planner)),
        _footer(report),
        element("script", Safe(_json(_budgets(report, ids))), type="application/json", id="budgets"),
        element("script", Safe(SCRIPT)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _json(value: object) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _budgets(report: Report, ids: Sequence[Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """What each block may take, by device and plan: all that differs between devices that share a plan."""
    return {
        one.device.id: {
            card: ["-" if b.budget_bytes is None else format_bytes(b.budget_bytes) for b, _ in row.blocks]
            for card, row in zip(names, one.rows, strict=True)
            if row.fits
        }
        for one, names in zip(report.devices, ids, strict=True)
        if names
    }


# --- the page ---------------------------------------------------------------------------------------------------------


def _header(report: Report) -> Safe:
    manifest = report.manifest
    numbers = sum(block.parameter_bytes // 4 for block in manifest.blocks)
    shape = " × ".join(map(str, manifest.input.shape)) or "scalar"
    facts = [
        f"{count(len(manifest.blocks), 'block')}",
        f"{numbers:,} parameters",
        f"one row is {manifest.input.dtype} {shape}",
        count(len(manifest.classes), "class", "classes"),
        f"optimizer {manifest.optimizer.kind}",
        f"batch {report.batch_size}",
    ]
    return element(
        "div",
        element(
            "div",
            element("p", "What training takes on a device", class_="eyebrow"),
            element("h1", manifest.name),
            element("ul", *(element("li", fact) for fact in facts), class_="facts"),
        ),
        element("button", "Theme: system", type="button", id="theme", hidden=True),
        class_="top",
    )


def _sections(report: Report, cards: Sequence[Card], ids: Sequence[Sequence[str]], planner: Planner) -> Iterable[Safe]:
    yield _glance(report)
    yield _terms()
    yield _least(report)
    if len(report.devices) > 1:
        yield _section("devices", f"{len(report.devices)} devices", overview(report))
    yield _one_device(report, cards, ids, planner)


def _section(anchor: str, title: str, *content: str) -> Safe:
    heading = f"{anchor}-title"
    return element("section", element("h2", title, id=heading), *content, id=anchor, aria_labelledby=heading)


def _glance(report: Report) -> Safe:
    local = _smallest(report.least, lambda method: method in LOCAL)
    other = _smallest(report.least, is_backprop)
    planned = [one for one in report.devices if one.rows]
    fitting = sum(any(row.holds and row.method in LOCAL for row in one.rows) for one in planned)
    backprop = sum(any(row.holds and is_backprop(row.method) for row in one.rows) for one in planned)
    both = f"devices; back-propagation {backprop} of {len(planned)}" if report.has_baselines else "devices"
    parts = [
        _fact("Local learning, at its smallest", *_size_of(local)),
        _fact("Back-propagation, at its smallest", *(_size_of(other) if report.has_baselines else ("not here", ""))),
        _fact("Local learning fits", f"{fitting} of {len(planned)}", both),
    ]
    ratios = [row.ratio for one in report.devices for row in one.rows if row.ratio is not None]
    if ratios:
        ends = dict.fromkeys(f"{ratio:.2f}" for ratio in (min(ratios), max(ratios)))
        parts.append(_fact("Measured for each byte planned", " to ".join(ends), "on this machine, median of three"))
    sentence = comparison(report.least) if report.has_baselines else ""
    note = element("p", f"{sentence}.", class_="sentence") if sentence else join()
    hint = join() if report.has_baselines else element("p", f"{NO_BASELINES}.", class_="sentence")
    return element("section", element("div", *parts, class_="glance"), note, hint, aria_label="At a glance")


def _fact(label: str, value: str, note: str) -> Safe:
    return element(
        "div",
        element("p", label, class_="label"),
        element("p", value, class_="value"),
        element("p", breakable(note), class_="note"),
        class_="card",
    )


def _smallest(rows: Sequence[MethodRow], wanted: Callable[[str], bool]) -> MethodRow | None:
    found = [row for row in rows if wanted(row.method) and row.planned_bytes is not None]
    return min(found, key=lambda row: row.planned_bytes or 0, default=None)


def _size_of(row: MethodRow | None) -> tuple[str, str]:
    if row is None or row.planned_bytes is None:
        return "-", "no plan"
    return format_bytes(row.planned_bytes), f"{row.method} at micro-batch {row.micro_batch}, planned"


def _terms() -> Safe:
    words = (
        ("floor", "what the process takes with numpy and onnxruntime loaded, before the artifact is opened"),
        ("budget", "what training may take over the floor: what a process may use on the device, less the floor"),
        ("planned", "what edgeff expects training to take over the floor, before anything is loaded"),
        ("measured", "the highest resident bytes of a real run on this machine, less its floor"),
        ("micro-batch", "rows that run at once; gradients add up to those of the batch"),
    )
    strip = element(
        "div",
        element("div", "floor", class_="floor"),
        element("div", "planned", class_="planned"),
        element("div", "room", class_="room"),
        class_="strip",
    )
    braces = element("div", element("div"), element("div", "budget", class_="budget"), class_="braces")
    everything = element("div", "what one process may use on the device", class_="all")
    picture = element("div", strip, braces, everything, class_="memory", aria_hidden="true")
    listed = element("dl", *(join(element("dt", word), element("dd", meaning)) for word, meaning in words))
    return _section("words", "What the words mean", element("div", picture, listed, class_="terms card"))


def _least(report: Report) -> Safe:
    lead = (
        "The smallest plan of each method, whatever the device, at the moment when most is in memory. "
        "It is not the fastest one: more room means larger micro-batches."
    )
    table = bars_table(report.least, limit=None, caption="Smallest plans by method", links=None)
    return _section(
        "least",
        "What each method needs at the least",
        element("p", lead, class_="lead"),
        element("div", legend(budget=False), table, cut_note(report.least), _note(report), class_="card"),
    )


def _note(report: Report) -> Safe:
    note = replay_note(report.manifest)
    return element("p", f"{note[:1].upper()}{note[1:]}.", class_="soft small") if note else join()


def legend(*, budget: bool, measured: bool = False) -> Safe:
    """What the colours and marks stand for."""
    items = [element("li", element("span", class_=f"swatch k-{kind}"), KIND_NAMES[kind]) for kind in STACK]
    if budget:
        items.append(element("li", element("span", class_="swatch budget"), "budget"))
    if measured:
        items.append(element("li", element("span", class_="swatch diamond"), "measured"))
    return element("ul", *items, class_="legend", aria_label="Legend")


# --- one device -------------------------------------------------------------------------------------------------------


def _one_device(report: Report, cards: Sequence[Card], ids: Sequence[Sequence[str]], planner: Planner) -> Safe:
    first = min(
        (one for one in report.devices if one.rows), key=lambda one: one.device.budget_bytes, default=report.devices[0]
    ).device.id
    options = (
        element("option", f"{one.device.id}: {one.device.name}", value=one.device.id, selected=one.device.id == first)
        for one in report.devices
    )
    picker = element(
        "div",
        element("label", "Device", for_="device"),
        element("select", *options, id="device"),
        element("button", "Previous", type="button", data_step="-1"),
        element("button", "Next", type="button", data_step="1"),
        class_="picker",
        hidden=len(report.devices) < 2,
    )
    measured = any(row.measured for one in report.devices for row in one.rows)
    panels = [
        device_panel(report, one, names, legend(budget=True, measured=measured))
        for one, names in zip(report.devices, ids, strict=True)
    ]
    lead = (
        "What each method takes of the budget, and below it one update of every method: one batch through all blocks, "
        "from left to right as time goes by the cost model, which is good for proportions, not for promises. Areas "
        "stay in memory (pale: activations that wait between runs); a run adds what it holds while it lasts."
    )
    return _section(
        "one",
        "One device",
        element("p", lead, class_="lead"),
        picker,
        *panels,
        element("div", *(plan_card(card, planner, report.methods[card.row.method]) for card in cards), class_="plans"),
    )


def _footer(report: Report) -> Safe:
    return element(
        "footer",
        element("p", f"edgeff {edgeff.__version__} report of {report.artifact}, manifest sha256 {report.sha256}."),
        element(
            "p",
            "Planned bytes are estimates; a ~ marks a device's figures that are estimates too. Times are of a cost "
            "model and good for proportions only. What was measured was measured on the machine that wrote this file, "
            "not on the device.",
        ),
    )
