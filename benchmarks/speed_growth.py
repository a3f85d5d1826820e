"""How speed, bytes and times grow with depth (`deep<N>`) and width (`wide<C>`): what rows of one family tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Quantity:
    """Something of a row that grows.

    Attributes:
        name: For people.
        of: Its value in a row; None where there is none.
    """

    name: str
    of: Callable[[Row], float | None]


QUANTITIES = (
    Quantity("time per row", lambda row: 1 / row["rows_per_s"] if row["rows_per_s"] else None),
    Quantity("training bytes", lambda row: row["training_bytes"]),
    Quantity("first step", lambda row: row["first_step_s"]),
    Quantity("export", lambda row: row["export_s"]),
)


@dataclass(frozen=True)
class Growth:
    """What a contender takes of the largest network of a family over what it takes of the smallest.

    Attributes:
        family: `deep` or `wide`.
        sizes: Of the smallest and the largest network.
        method: Of the contender.
        runtime: With its version.
        batch: Rows of an update.
        threads: Of the runtime.
        factors: By name of `QUANTITIES`; None where it was not measured.
    """

    family: str
    sizes: tuple[int, int]
    method: str
    runtime: str
    batch: int
    threads: int
    factors: Mapping[str, float | None]


def family_of(network: str) -> tuple[str, int] | None:
    """The family of a network and its size there.

    >>> family_of("deep24"), family_of("mlp")
    (('deep', 24), None)
    """
    match = re.fullmatch(r"(deep|wide)(\d+)", network)
    return (match[1], int(match[2])) if match else None


def growth(rows: Sequence[Row]) -> list[Growth]:
    """Of every contender that was measured on two sizes of a family or more."""
    series: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        family = family_of(row["network"])
        if family and not row["skipped"]:
            key = (family[0], row["method"], row["runtime"], row["batch"], row["threads"])
            series.setdefault(key, {})[family[1]] = row
    found = []
    for (name, method, runtime, batch, threads), by_size in series.items():
        small, large = min(by_size), max(by_size)
        if small < large:
            factors = {one.name: _factor(one.of(by_size[small]), one.of(by_size[large])) for one in QUANTITIES}
            found.append(Growth(name, (small, large), method, runtime, batch, threads, factors))
    return found


def _factor(small: float | None, large: float | None) -> float | None:
    return large / small if small and large else None
