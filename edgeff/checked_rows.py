"""Rows as a model can take them: the others refused by number, or left out and counted.

The rule: rows of another shape or dtype, files that cannot be read, and class names that are not the model's are always
refused, for they say that these are other data. A single row with NaN, Inf, a number that float32 cannot hold, or a
label that is no class is refused too, unless bad rows are to be skipped; of more than half bad rows none is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.manifest import Manifest
from edgeff.preprocess import Preprocessing
from edgeff.rows import row_blocks

_NOT_FINITE, _NO_CLASS = "with NaN, Inf or a number that float32 cannot hold", "with a label that is no class"
# With more bad rows than this part of them, something else is wrong.
_MOST_SKIPPED = 0.5


@dataclass(frozen=True)
class CheckedRows:
    """Rows that fit.

    Attributes:
        dataset: They, with the model's class names.
        skipped: Rows left out, by what is wrong with them.
        constant: Whether all rows are the same.
    """

    dataset: Dataset
    skipped: Mapping[str, int] = field(default_factory=dict)
    constant: bool = False

    def notices(self) -> list[str]:
        """What a person should know."""
        found = [f"left out {count:,} rows {what}" for what, count in self.skipped.items()]
        if self.constant:
            found.append(f"all {len(self.dataset):,} rows are the same: there is nothing in them to learn from")
        return found


def check_rows(manifest: Manifest, rows: Dataset, *, skip: bool = False) -> CheckedRows:
    """Check rows against a model; every row is read once.

    Args:
        manifest: Of the artifact.
        rows: Raw.
        skip: Leave single bad rows out.

    Raises:
        DataError: They do not fit; by row number where it is a row.
    """
    _check_classes(manifest, rows)
    rows, skipped = replace(rows, classes=manifest.classes), dict[str, int]()
    if skip and not rows.counts_from_one:
        good = (rows.y >= 0) & (rows.y < len(manifest.classes))
        rows, skipped = _without(rows, good, _NO_CLASS, skipped)
    rows.check()
    preprocessing = Preprocessing(manifest.input, manifest.preprocessing, manifest.features)
    good, constant, first_row = np.ones(len(rows), bool), True, None
    for first, block in row_blocks(rows.x):
        first_row = block[:1].copy() if first_row is None else first_row
        constant = constant and bool((block == first_row).all())
        if skip:
            good[first + preprocessing.bad_rows(block)] = False
        else:
            preprocessing.check_raw(block, numbers=np.arange(first, first + len(block)))
    rows, skipped = _without(rows, good, _NOT_FINITE, skipped)
    return CheckedRows(rows, skipped, constant and len(rows) > 1)


def _check_classes(manifest: Manifest, rows: Dataset) -> None:
    if not rows.is_named_as(manifest.classes):
        raise DataError(
            f"`{rows.name}` has the classes {_listed(rows.classes)}, needed {_listed(manifest.classes)}",
            hint="give data with the classes that the model was pretrained on, in its order",
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _without(rows: Dataset, good: np.ndarray, what: str, skipped: Mapping[str, int]) -> tuple[Dataset, dict[str, int]]:
    """The good rows, and the count of those left out."""
    bad = len(good) - int(good.sum())
    if not bad:
        return rows, dict(skipped)
    if bad > _MOST_SKIPPED * len(good):
        raise DataError(
            f"`{rows.name}` has {bad:,} of {len(good):,} rows {what}",
            hint="of more than half bad rows none is taken: look at where the data come from",
        )
    return rows.select(good), {**skipped, what: bad}
