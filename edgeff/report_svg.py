"""The pictures of the report: bars of bytes by kind, and one update as rectangles.

All are stretched to the width there is, so that they hold shapes alone; labels are HTML beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeff.markup import Safe, element
from edgeff.report import KIND_NAMES
from edgeff.report_text import seconds_text
from edgeff.units import format_bytes

if TYPE_CHECKING:
    from edgeff.runtime.plan_parts import Bytes
    from edgeff.runtime.timeline import Bar, Stretch, Timeline

# What every process takes comes first, what methods differ in last.
STACK = ("process", "graphs", "rows", "weights", "state", "gradients", "activations")
WIDTH, BAR_HEIGHT, PLOT_HEIGHT = 1000.0, 20, 200.0
# Micro-batches that are left out take at most this part of the width together: the others stand for them.
_GAPS = 0.2
_LEAST_WIDTH = 0.7


def held_by_kind(resident: Bytes) -> list[tuple[str, int]]:
    """Kinds that take something, in the order of the stack."""
    sizes = dataclasses.asdict(resident)
    return [(kind, sizes[kind]) for kind in STACK if sizes[kind]]


def stacked_bar(resident: Bytes, scale: float) -> Safe:
    """A bar of all kinds; its width stands for `scale` bytes."""
    shapes, x = [], 0.0
    held = held_by_kind(resident)
    for kind, size in held:
        width = WIDTH * size / scale
        title = element("title", f"{KIND_NAMES[kind]}: {format_bytes(size)}")
        shapes.append(element("rect", title, class_=f"k-{kind}", x=x, y=0, width=width, height=BAR_HEIGHT))
        x += width
    label = ", ".join(f"{KIND_NAMES[kind]} {format_bytes(size)}" for kind, size in held)
    return _svg(*shapes, height=BAR_HEIGHT, role="img", aria_label=label)


def _svg(*shapes: str, height: float, **attributes: str | float | bool | None) -> Safe:
    box = f"0 0 {WIDTH:g} {height:g}"
    return element("svg", *shapes, viewBox=box, preserveAspectRatio="none", **attributes)


# --- one update -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """A bar with its place, in parts of the width."""

    bar: Bar
    stretch: Stretch
    start: float
    width: float


def placed(line: Timeline) -> list[Placed]:
    """Where each bar stands: as wide as it takes time, but for micro-batches that are left out."""
    pairs = [(bar, stretch) for stretch in line.stretches for bar in stretch.bars]
    gaps = [bar for bar, _ in pairs if bar.micro_batches]
    total = max(line.seconds, 1e-12)
    left_out = sum(bar.seconds for bar in gaps) / total
    room = min(_GAPS, left_out)
    found, start = [], 0.0
    for bar, stretch in pairs:
        share = bar.seconds / total
        width = share / left_out * room if bar.micro_batches else share * (1 - room) / max(1 - left_out, 1e-12)
        found.append(Placed(bar, stretch, start, width))
        start += width
    return found


def timeline_svg(line: Timeline, scale: float, *, label: str, described_by: str) -> Safe:
    """One update: what is resident as areas, what a run holds on top of it as rectangles.

    Args:
        line: The update.
        scale: Bytes that the height stands for.
        label: In words.
        described_by: Id of the table with the numbers.
    """
    bars = placed(line)
    shapes = [*_areas(bars, scale), *(_run(one, scale) for one in bars)]
    top = len(bars) - 1
    return _svg(
        *shapes,
        height=PLOT_HEIGHT,
        class_="timeline",
        tabindex=0,
        role="slider",
        aria_label=label,
        aria_describedby=described_by,
        aria_valuemin=1,
        aria_valuemax=top + 1,
        aria_valuenow=1,
        aria_valuetext=bar_text(bars[0]) if bars else "",
    )


def _areas(bars: Sequence[Placed], scale: float) -> Iterator[Safe]:
    """For each stretch what is resident all the while, from the bottom up."""
    for stretch, start, width in stretch_places(bars):
        y = PLOT_HEIGHT
        for kind, size in held_by_kind(stretch.resident):
            height = PLOT_HEIGHT * size / scale
            y -= height
            title = element("title", f"{stretch.phase}: {KIND_NAMES[kind]} {format_bytes(size)}")
            place = {"x": WIDTH * start, "y": y, "width": WIDTH * width, "height": height}
            yield element("rect", title, class_=f"k-{kind} area", **place)


def stretch_places(bars: Sequence[Placed]) -> list[tuple[Stretch, float, float]]:
    """Each stretch, where it begins and how wide it is, in parts of the width."""
    found: dict[int, tuple[Stretch, float, float]] = {}
    for one in bars:
        stretch, start, width = found.get(id(one.stretch), (one.stretch, one.start, 0.0))
        found[id(one.stretch)] = (stretch, start, width + one.width)
    return list(found.values())


def _run(one: Placed, scale: float) -> Safe:
    """What a run holds; a run is as high as the plot to a pointer, so that a low one can be hit."""
    x, width = WIDTH * one.start, max(WIDTH * one.width, _LEAST_WIDTH)
    base = PLOT_HEIGHT * (1 - one.stretch.resident.total / scale)
    height = PLOT_HEIGHT * one.bar.bytes / scale
    kind = "left-out" if one.bar.micro_batches else one.bar.graph.partition(" ")[0]
    shape = element("rect", class_=f"k-activations run {kind}", x=x, y=base - height, width=width, height=height)
    hit = element("rect", element("title", bar_text(one)), class_="hit", x=x, y=0, width=width, height=PLOT_HEIGHT)
    return element("g", shape, hit, class_="bar")


def bar_text(one: Placed) -> str:
    """A bar in words."""
    bar, held = one.bar, one.stretch.resident.total
    what = f"{bar.micro_batches} more micro-batches like these" if bar.micro_batches else f"{_blocks(bar)} {bar.graph}"
    rows = f" of {bar.rows} rows" if bar.rows and not bar.micro_batches else ""
    runs = f", {bar.runs} runs" if bar.runs > 1 else ""
    return (
        f"{what}{rows}{runs}: ~{seconds_text(bar.seconds)}, {format_bytes(held)} resident "
        f"+ {format_bytes(bar.bytes)} inside = {format_bytes(held + bar.bytes)}"
    )


def _blocks(bar: Bar) -> str:
    return bar.first if bar.first == bar.last else f"{bar.first} to {bar.last}"


def ticks(top: int) -> list[int]:
    """Two to four round numbers of bytes below the top of an axis.

    >>> ticks(10 * 2**20)
    [4194304, 8388608]
    """
    step = 1
    while top // step > 4:
        step *= 2
    return [step * number for number in range(1, top // step + 1)]
