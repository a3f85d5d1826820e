"""Pictures of a study's rows in SVG: panels of bars, or of lines over numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeff.markup import Safe, element

COLOURS = ("#1d5fd1", "#b3261e", "#14713c", "#b86e00", "#7a3fb8", "#0f7f86", "#a8327e", "#56657a")
WIDTH, LABELS, LINE, MARGIN, HEAD, PLOT = 900.0, 300.0, 22.0, 18.0, 34.0, 240.0
_VALUES = 70.0


@dataclass(frozen=True)
class Panel:
    """One part of a picture.

    Attributes:
        title: What is shown, with its unit.
        series: By name, values by their place: the label of a bar, or a number on the horizontal axis. A panel whose
            places are all numbers is drawn as lines.
        base: Where the vertical axis, or a bar, begins.
    """

    title: str
    series: Mapping[str, Mapping[str | float, float]]
    base: float = 0.0

    @property
    def places(self) -> list[str | float]:
        """All places, in order of appearance; numbers ascending."""
        found = list(dict.fromkeys(place for values in self.series.values() for place in values))
        return sorted(found, key=float) if self.is_lines else found

    @property
    def is_lines(self) -> bool:
        """Whether it is drawn as lines."""
        return all(not isinstance(place, str) for values in self.series.values() for place in values)

    @property
    def height(self) -> float:
        """With its title."""
        bars = sum(len(values) for values in self.series.values())
        return HEAD + (PLOT + LINE * (1 + len(self.series)) if self.is_lines else LINE * bars) + MARGIN


def picture(title: str, panels: Sequence[Panel]) -> str:
    """A whole SVG file."""
    shapes, top = [], MARGIN + HEAD
    for panel in panels:
        drawn = _lines(panel) if panel.is_lines else _bars(panel)
        heading = element("text", panel.title, x=0, y=12, font_weight="bold")
        shapes.append(element("g", heading, *drawn, transform=f"translate({MARGIN:g} {top:g})"))
        top += panel.height
    paper = element("rect", width=WIDTH, height=top, fill="#ffffff")
    name = element("text", title, x=MARGIN, y=MARGIN + 10, font_size=16, font_weight="bold")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + element(
        "svg",
        element("title", title),
        paper,
        name,
        *shapes,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {top:g}",
        width=WIDTH,
        height=top,
        font_family="system-ui, sans-serif",
        font_size=12,
        fill="#17202b",
    )


def _bars(panel: Panel) -> Iterator[Safe]:
    """A bar for each value, grouped by place, in the colour of its series."""
    room = WIDTH - 2 * MARGIN - LABELS - _VALUES
    largest = max(value for values in panel.series.values() for value in values.values())
    y = HEAD - 10
    for place in panel.places:
        for number, (name, values) in enumerate(panel.series.items()):
            if place not in values:
                continue
            share = (values[place] - panel.base) / ((largest - panel.base) or 1.0)
            width = max(1.0, room * max(0.0, share))
            label = str(place) if len(panel.series) == 1 else f"{place}, {name}"
            yield element("text", label, x=0, y=y + 12)
            yield element("rect", x=LABELS, y=y, width=width, height=LINE - 6, fill=_colour(number))
            yield element("text", f"{values[place]:.4g}", x=LABELS + width + 6, y=y + 12)
            y += LINE


def _lines(panel: Panel) -> Iterator[Safe]:
    """A line for each series over a logarithmic axis where places span more than a factor of eight."""
    places = [float(place) for place in panel.places]
    logarithmic = places[0] > 0 and places[-1] / places[0] > 8
    values = [value for line in panel.series.values() for value in line.values()]
    low, high = min(panel.base, *values), max(panel.base, *values)
    left, right = 60.0, WIDTH - 2 * MARGIN - 20

    def across(place: float) -> float:
        scale = math.log if logarithmic else float
        span = scale(places[-1]) - scale(places[0]) or 1.0
        return left + (right - left) * (scale(place) - scale(places[0])) / span

    def down(value: float) -> float:
        return HEAD + PLOT * (1 - (value - low) / ((high - low) or 1.0))

    for value in (low, (low + high) / 2, high):
        yield element("line", x1=left, x2=right, y1=down(value), y2=down(value), stroke="#d5dbe3")
        yield element("text", f"{value:.3g}", x=0, y=down(value) + 4, fill="#5a6675")
    for place in places:
        yield element("text", f"{place:g}", x=across(place), y=HEAD + PLOT + 18, text_anchor="middle", fill="#5a6675")
    for number, (name, line) in enumerate(panel.series.items()):
        points = sorted((float(place), value) for place, value in line.items())
        path = " ".join(f"{across(place):.1f},{down(value):.1f}" for place, value in points)
        yield element("polyline", points=path, fill="none", stroke=_colour(number), stroke_width=2)
        for place, value in points:
            mark = element("title", f"{name}: {value:.4g} at {place:g}")
            yield element("circle", mark, cx=across(place), cy=down(value), r=3.5, fill=_colour(number))
        yield element("text", name, x=left, y=HEAD + PLOT + 18 + LINE * (number + 1), fill=_colour(number))


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
