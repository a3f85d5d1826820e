"""A bar of bytes for each method, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeff.markup import Safe, element, join
from edgeff.report import MethodRow
from edgeff.report_compare import fastest, fewest_bytes
from edgeff.report_svg import stacked_bar
from edgeff.report_text import seconds_text
from edgeff.units import format_bytes

# A budget further away than this would make the picture small; it is told in words instead.
NEAR = 1.6
MARGIN = 1.06
# Bars this many times as long as the one in the middle are cut.
_DWARFS = 5


def bars_table(rows: Sequence[MethodRow], *, limit: int | None, caption: str, links: Sequence[str] | None) -> Safe:
    """A row per method with its bar.

    Args:
        rows: Methods.
        limit: The budget; None for none.
        caption: Of the table, for those who do not see it.
        links: Ids of the cards of the rows; None for none.
    """
    chart = _chart(rows, limit)
    lines = [_bar_row(row, chart, links[number] if links else None) for number, row in enumerate(rows)]
    return element(
        "table",
        element("thead", _header(chart), role="rowgroup"),
        element("tbody", *lines, role="rowgroup"),
        class_="bars",
        role="table",
        aria_label=caption,
    )


@dataclass(frozen=True)
class _Chart:
    """What the rows of a chart share.

    Attributes:
        scale: Bytes that the width stands for.
        limit: The budget where it is near enough to be drawn; else None.
        judged: Whether there is a budget.
        measured: Whether any row was measured.
        fastest: Methods.
        fewest_bytes: Methods.
    """

    scale: float
    limit: int | None
    judged: bool
    measured: bool
    fastest: frozenset[str]
    fewest_bytes: frozenset[str]


def _chart(rows: Sequence[MethodRow], limit: int | None) -> _Chart:
    longest = chart_bytes(rows)
    drawn = limit if limit is not None and limit <= NEAR * longest else None
    # The smallest plans are slow by intention, so that the fastest of them says nothing.
    quick = fastest(rows) if limit is not None else frozenset[str]()
    measured = any(row.measured for row in rows)
    scale = MARGIN * max(longest, drawn or 0)
    return _Chart(scale, drawn, limit is not None, measured, quick, fewest_bytes(rows))


def _header(chart: _Chart) -> Safe:
    titles = ["method", "verdict" if chart.judged else "micro-batch", "bytes over the floor", "planned"]
    titles += [*(["measured"] if chart.measured else []), "one update"]
    cells = (
        element("th", title, scope="col", role="columnheader", class_="n" if number > 2 else None)
        for number, title in enumerate(titles)
    )
    return element("tr", *cells, role="row")


def chart_bytes(rows: Sequence[MethodRow]) -> int:
    """The longest bar that is drawn whole: one that dwarfs most others is cut, so that these can be read."""
    sizes = sorted(max(row.planned_bytes or 0, row.measured_bytes or 0) for row in rows if row.plan) or [1]
    return max(size for size in sizes if size <= _DWARFS * sizes[len(sizes) // 2])


def cut_note(rows: Sequence[MethodRow]) -> Safe:
    """Says so where bars are cut."""
    cut = any((row.planned_bytes or 0) > chart_bytes(rows) for row in rows)
    return element("p", "A bar with a torn end is longer than the chart.", class_="soft small") if cut else join()


def _bar_row(row: MethodRow, chart: _Chart, link: str | None) -> Safe:
    name = element("a", breakable(row.method), href=f"#{link}") if link else breakable(row.method)
    verdict_cell = (
        element("td", verdict(row), role="cell")
        if chart.judged
        else element("td", str(row.micro_batch or "-"), role="cell", class_="labelled", data_label="micro-batch")
    )
    time = f"~{seconds_text(row.update_seconds)}" if row.update_seconds is not None and row.fits else ""
    return element(
        "tr",
        element("th", name, *_marks(row, chart), scope="row", role="rowheader"),
        verdict_cell,
        element("td", _track(row, chart), class_="picture", role="cell"),
        _number(row.planned_bytes, "planned" if row.fits else "needs"),
        *([_measured_cell(row)] if chart.measured else []),
        element("td", time, class_="n", role="cell", data_label="one update"),
        role="row",
    )


def _marks(row: MethodRow, chart: _Chart) -> list[Safe]:
    found = (("fastest", chart.fastest), ("fewest bytes", chart.fewest_bytes))
    return [join(" ", element("span", text, class_="chip mark")) for text, methods in found if row.method in methods]


def breakable(method: str) -> Safe:
    """A method's name that may go on in the next line behind a plus sign."""
    first, *more = method.split("+")
    return join(first, *(part for word in more for part in (Safe("+<wbr>"), word)))


def verdict(row: MethodRow) -> Safe:
    """Whether a method fits, told apart without colour too."""
    if row.over_budget:
        return element("span", "✗ measured over", class_="chip no", title="fits by its plan, took more when measured")
    if row.fits:
        return element("span", f"✓ fits at {row.micro_batch}", class_="chip yes")
    return element("span", "✗ does not fit", class_="chip no", title=row.reason)


def _number(size: int | None, label: str) -> Safe:
    return element("td", "-" if size is None else format_bytes(size), class_="n", role="cell", data_label=label)


def _measured_cell(row: MethodRow) -> Safe:
    if row.measured is None:
        return element(
            "td", "failed" if row.not_measured else "", class_="n", role="cell", title=row.not_measured or None
        )
    text = f"{format_bytes(row.measured.training_bytes)} (×{row.ratio:.2f})"
    speed = element("span", f"{row.measured.rows_per_s:,.0f} rows/s", class_="soft")
    return element("td", text, element("br"), speed, class_="n", role="cell", data_label="measured")


def _track(row: MethodRow, chart: _Chart) -> Safe:
    """The bar, what is laid over it, and the line of the budget."""
    if row.plan is None:
        return element("div", class_="track")
    scale, planned = chart.scale, row.plan.planned_bytes
    parts = [stacked_bar(row.plan.largest_phase.resident, scale)]
    if not row.fits:
        parts.append(element("div", class_="over", style=f"width:{percent(planned, scale)}"))
    if planned > scale:
        parts.append(element("div", class_="torn"))
    if row.measured:
        place = f"left:{percent(row.measured.training_bytes, scale)}"
        parts.append(element("div", class_="diamond at", style=place, title="measured"))
    track = element("div", *parts, class_="track")
    if chart.limit is None:
        return track
    return join(track, element("div", class_="limit", style=f"left:{percent(chart.limit, scale)}", title="budget"))


def percent(size: int, scale: float) -> str:
    """A place for a style, at most the whole width."""
    return f"{min(100.0, 100 * size / scale):.2f}%"
