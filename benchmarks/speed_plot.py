"""Rows of the speed benchmark as one picture in SVG.

A strip for each network, or for each family of which there are several sizes, batch and number of threads; in it a
panel each for rows per second, training bytes and the time to the first step. Contenders are named on the left, in the
colour of their bar, or of their line over the sizes of the family, whose axes are both logarithmic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speed_growth import family_of

from edgeff.markup import Safe, element
from edgeff.units import format_bytes

Row = Mapping[str, Any]
COLOURS = (
    *("#1d5fd1", "#14713c", "#b3261e", "#b86e00", "#7a3fb8", "#0f7f86"),
    *("#a8327e", "#56657a", "#6d7a12", "#8a4b2a", "#2b2f77", "#9a8a00"),
)
LABELS, PANEL, GAP, LINE, HEAD, MARGIN = 270.0, 250.0, 30.0, 20.0, 52.0, 16.0
WIDTH = 2 * MARGIN + LABELS + 3 * (PANEL + GAP)
_VALUE_WIDTH = 70.0
_AXIS = 18.0


@dataclass(frozen=True)
class Measure:
    """A panel: a key of rows, its title, and how a value is written."""

    key: str
    title: str

    def text(self, value: float) -> str:
        """A value for people."""
        if self.key == "training_bytes":
            return format_bytes(round(value))
        return f"{value:.1f} s" if self.key == "first_step_s" else f"{value:.3g}" if value < 100 else f"{value:.0f}"


MEASURES = (
    Measure("rows_per_s", "rows per second"),
    Measure("training_bytes", "training bytes"),
    Measure("first_step_s", "time to the first step"),
)


@dataclass(frozen=True)
class Strip:
    """What stands side by side: the rows of every contender, by the size of its network (0 for a single network)."""

    title: str
    series: Mapping[str, Mapping[int, Row]]

    @property
    def height(self) -> float:
        """With its title and a margin below."""
        return HEAD + LINE * max(len(self.series), 5) + MARGIN

    @property
    def sizes(self) -> list[int]:
        """Of the networks, ascending."""
        return sorted({size for by_size in self.series.values() for size in by_size})


def plot(rows: Sequence[Row]) -> str:
    """The picture, a whole file."""
    shapes, top = [], MARGIN
    for strip in strips(rows):
        shapes.append(element("g", *_strip(strip), transform=f"translate({MARGIN:g} {top:g})"))
        top += strip.height
    height = top + MARGIN
    paper = element("rect", width=WIDTH, height=height, fill="#ffffff")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + element(
        "svg",
        element("title", "edgeff bench speed"),
        paper,
        *shapes,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=WIDTH,
        height=height,
        font_family="system-ui, sans-serif",
        font_size=12,
        fill="#17202b",
    )


def strips(rows: Sequence[Row]) -> list[Strip]:
    """Families with several sizes together, other networks one by one; skipped rows are left out."""
    measured = [row for row in rows if not row["skipped"]]
    names = {row["network"] for row in measured}
    found: dict[str, dict[str, dict[int, Row]]] = {}
    for row in measured:
        family = family_of(row["network"])
        several = family and sum(1 for name in names if (family_of(name) or ("", 0))[0] == family[0]) > 1
        name, size = (f"{family[0]}<N>", family[1]) if family and several else (row["network"], 0)
        title = f"{name}, batch {row['batch']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        found.setdefault(title, {}).setdefault(f"{row['method']}, {row['runtime']}", {})[size] = row
    return [Strip(title, series) for title, series in found.items()]


def _strip(strip: Strip) -> Iterator[Safe]:
    yield element("text", strip.title, x=0, y=14, font_weight="bold", font_size=14)
    for place, name in enumerate(strip.series):
        yield element("text", name, x=0, y=_middle(place) + 4, fill=_colour(place))
    for number, measure in enumerate(MEASURES):
        x = LABELS + number * (PANEL + GAP)
        title = element("text", measure.title, x=0, y=HEAD - 14, fill="#5a6675")
        shapes = _lines(strip, measure) if len(strip.sizes) > 1 else _bars(strip, measure)
        yield element("g", title, *shapes, transform=f"translate({x:g} 0)")


def _bars(strip: Strip, measure: Measure) -> Iterator[Safe]:
    """A bar for each contender, with its value at the end."""
    values = [next(iter(by_size.values()))[measure.key] for by_size in strip.series.values()]
    most = max((value for value in values if value), default=1)
    for place, value in enumerate(values):
        if value is None:
            continue
        width, middle = (PANEL - _VALUE_WIDTH) * value / most, _middle(place)
        yield element("rect", x=0, y=middle - 6, width=float(width), height=12, fill=_colour(place))
        yield element("text", measure.text(value), x=float(width) + 5, y=middle + 4)


def _lines(strip: Strip, measure: Measure) -> Iterator[Safe]:
    """A line for each contender over the sizes."""
    points = [
        [(size, row[measure.key]) for size, row in sorted(by_size.items()) if row[measure.key]]
        for by_size in strip.series.values()
    ]
    values = [value for line in points for _, value in line]
    if not values:
        return
    low, high, bottom = min(values), max(values), strip.height - MARGIN - _AXIS
    sizes = strip.sizes

    def at(size: int, value: float) -> tuple[float, float]:
        x = (PANEL - _VALUE_WIDTH) * _share(size, sizes[0], sizes[-1])
        return x, bottom - (bottom - HEAD) * _share(value, low, high)

    yield element("path", d=f"M0 {HEAD:g}V{bottom:g}H{PANEL - _VALUE_WIDTH:g}", fill="none", stroke="#b4bcc6")
    for size in sizes:
        yield element("text", str(size), x=at(size, low)[0], y=bottom + 14, text_anchor="middle", fill="#5a6675")
    for value in {low, high}:
        yield element("text", measure.text(value), x=PANEL - _VALUE_WIDTH + 8, y=at(sizes[0], value)[1] + 4)
    for place, line in enumerate(points):
        places = [at(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield element("polyline", points=path, fill="none", stroke=_colour(place), stroke_width=2)
        for (x, y), (size, value) in zip(places, line, strict=True):
            title = element("title", f"{list(strip.series)[place]}, {size}: {measure.text(value)}")
            yield element("circle", title, cx=x, cy=y, r=3, fill=_colour(place))


def _share(value: float, low: float, high: float) -> float:
    """Where a value stands between two others on a logarithmic axis, from 0 to 1."""
    return 0.5 if low == high else math.log(value / low) / math.log(high / low)


def _middle(place: int) -> float:
    return HEAD + LINE * (place + 0.5)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
