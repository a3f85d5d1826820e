"""What a data set is: rows, labels, and what is known about where the rows come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeff.errors import DataError
from edgeff.json_node import has_control_characters
from edgeff.manifest import ITEM_BYTES, TensorSpec
from edgeff.rows import Array, Rows, is_row_dtype, row_blocks, row_index, select_rows

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled rows.

    Attributes:
        name: For messages and reports.
        x: The rows, (rows, ...); read when asked for.
        y: Labels, int64 (rows,), 0..K-1.
        classes: K names in the order of the labels; empty when unknown.
        groups: Who or what a row comes from (person, speaker), int64 (rows,); None when unknown.
        sequence: The recording a row was cut from, int64 (rows,); None when the rows are independent. Rows of one
            recording are in time order and may overlap.
        span: First sample and the one after the last of each row in its recording, int64 (rows, 2); None when unknown,
            and then each row is taken to overlap its neighbours in the recording by up to a half.
    """

    name: str
    x: Rows
    y: Numbers
    classes: tuple[str, ...] = ()
    groups: Numbers | None = None
    sequence: Numbers | None = None
    span: Numbers | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def input(self) -> TensorSpec:
        """One raw row, named `x`."""
        return TensorSpec("x", tuple(self.x.shape[1:]), self.x.dtype.name)

    @property
    def known_bytes(self) -> int:
        """Bytes of all that is in memory: labels, groups, recordings and spans."""
        return sum(one.nbytes for one in (self.y, self.groups, self.sequence, self.span) if one is not None)

    def select(self, index: Array, *, name: str = "") -> Dataset:
        """The rows of the given numbers, in that order; nothing is read.

        Args:
            index: Row numbers, or a boolean mask.
            name: Of the selection; empty keeps the name.
        """
        numbers = row_index(index, len(self))
        return replace(
            self,
            name=name or self.name,
            x=select_rows(self.x, numbers),
            y=self.y[numbers],
            groups=None if self.groups is None else self.groups[numbers],
            sequence=None if self.sequence is None else self.sequence[numbers],
            span=None if self.span is None else self.span[numbers],
        )

    def is_named_as(self, classes: tuple[str, ...]) -> bool:
        """Whether the labels stand for these classes, as far as names tell.

        A network that was pretrained without class names has 0..K-1 for names and takes any K names but numbers: in
        a file that has the labels 0 and 2 alone, `2` is the second name, and another class than the network's `2`.
        """
        if not self.classes or self.classes == classes:
            return True
        numbered = classes == tuple(map(str, range(len(classes))))
        return numbered and len(self.classes) == len(classes) and not all(map(_is_number, self.classes))

    def check(self) -> Dataset:
        """The data set itself, once its parts fit together. Reads no rows.

        Raises:
            DataError: No rows, a dtype that rows cannot have, lengths that differ, labels outside 0..K-1, or a class
                name that no artifact can hold.
        """
        if not len(self) or 0 in self.x.shape:
            raise DataError(f"`{self.name}` has no rows: shape {tuple(self.x.shape)} with {len(self):,} labels")
        if not is_row_dtype(self.x.dtype):
            raise DataError(
                f"`{self.name}` has rows of dtype {self.x.dtype.name}, needed one of {', '.join(ITEM_BYTES)}",
                hint="convert the rows to one of these, `int64` or `float32` say",
            )
        for part, values in (("labels", self.y), ("groups", self.groups), ("sequence", self.sequence)):
            if values is not None:
                self._check_numbers(part, values, ())
        if self.span is not None:
            self._check_numbers("span", self.span, (2,))
        self._check_labels()
        self._check_names()
        return self

    def _check_numbers(self, part: str, values: Numbers, rest: tuple[int, ...]) -> None:
        needed = (len(self.x), *rest)
        if values.shape != needed or values.dtype != np.int64:
            raise DataError(
                f"`{self.name}` has {part} of shape {values.shape} and dtype {values.dtype.name}, "
                f"needed {needed} and int64: one for each row"
            )

    @property
    def counts_from_one(self) -> bool:
        """Whether the labels are 1..K: all of them are wrong then, not those alone that are no class."""
        return bool(self.classes and len(self.y) and self.y.min() == 1 and self.y.max() == len(self.classes))

    def _check_labels(self) -> None:
        past = len(self.classes) or np.iinfo(np.int64).max
        wrong = np.flatnonzero((self.y < 0) | (self.y >= past))
        if len(wrong):
            needed = f"0..{past - 1}" if self.classes else "0 or more"
            raise DataError(
                f"`{self.name}` has label {self.y[wrong[0]]} in row {wrong[0]}, needed {needed}",
                hint=f"its labels are 1..{past}: subtract 1 from all of them"
                if self.counts_from_one
                else "labels count from 0 in the order of the class names; `train-on-device --skip-bad-rows` leaves "
                "such rows out",
            )

    def _check_names(self) -> None:
        odd = next((name for name in self.classes if not name or has_control_characters(name)), None)
        if odd is not None:
            raise DataError(
                f"`{self.name}` has the class name {odd!r}, needed text without control characters",
                hint="give every class a plain name",
            )

    def check_values(self) -> Dataset:
        """The data set itself, once every value of float rows was read and found to be a finite number.

        Raises:
            DataError: NaN or Inf, by row number.
        """
        if self.x.dtype.kind == "f":
            for first, block in row_blocks(self.x):
                wrong = non_finite_rows(block)
                if len(wrong):
                    raise DataError(
                        f"`{self.name}` has NaN or Inf in row {first + int(wrong[0])}",
                        hint="leave such rows out (`train-on-device --skip-bad-rows` does), or fill the values in",
                    )
        return self


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def non_finite_rows(x: Array) -> Numbers:
    """Numbers of the rows that hold NaN or Inf."""
    return np.flatnonzero(~np.isfinite(x).all(axis=tuple(range(1, x.ndim))))


def labels_from_one(y: Numbers, classes: int, path: Path) -> Numbers:
    """Labels that count from 1, as they count from 0.

    Args:
        y: int64 (rows,), 1..classes.
        classes: How many there are.
        path: For the message.

    Returns:
        int64 (rows,), 0..classes - 1.

    Raises:
        DataError: A label out of range, by row number.
    """
    wrong = np.flatnonzero((y < 1) | (y > classes))
    if len(wrong):
        raise DataError(
            f"`{path}` has label {y[wrong[0]]} in row {wrong[0]}, needed 1..{classes}",
            hint="it is damaged or no official file: get it again",
        )
    return y - 1
