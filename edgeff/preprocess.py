"""From raw rows to what the first block takes: steps that are applied on the device and travel in the manifest.

`edgeff.steps` has the kinds of steps. `fit_preprocessing` finds the steps that a data set needs for a model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeff.dataset import Dataset, Numbers, non_finite_rows
from edgeff.errors import DataError
from edgeff.manifest import TensorSpec
from edgeff.rows import Array, row_blocks, select_rows
from edgeff.split import sample_rows
from edgeff.steps import Step, apply_steps, row_after

# An axis that no transposition marks as the channels' is taken for it up to this length: a longer one is time or space.
MOST_CHANNELS = 16
# Rows of more axes than this are not tried in every order.
_MOST_AXES = 6

Shape = tuple[int, ...]
Axis = int | Literal["auto"] | None
_MEND = "leave such rows out (`train-on-device --skip-bad-rows` does), or fill the values in"


@dataclass(frozen=True)
class Preprocessing:
    """Steps from a raw row to features.

    Attributes:
        input: One raw row.
        steps: In order; `edgeff.steps` has the kinds.
        features: One row after the last step.
    """

    input: TensorSpec
    steps: tuple[Step, ...]
    features: TensorSpec

    def validate(self) -> Preprocessing:
        """The same, once the steps lead from `input` to `features`.

        Raises:
            DataError: A malformed step, or another row than `features` at the end.
        """
        shape, dtype = row_after(self.input, self.steps)
        if (shape, dtype) != (tuple(self.features.shape), self.features.dtype):
            raise DataError(
                f"the preprocessing steps give rows of {shape} {dtype}, "
                f"needed {tuple(self.features.shape)} {self.features.dtype}"
            )
        return self

    def check_raw(self, x: Array, *, numbers: Array | None = None) -> None:
        """Refuse rows that the steps are not meant for.

        Integers must be of exactly the dtype of `input`; float16, float32 and float64 may stand for one another.

        Args:
            x: Raw rows (n, *input.shape).
            numbers: Number of each row in its data set, for the message; None counts from 0.

        Raises:
            DataError: Another row shape or dtype, or a value that is not finite in float32, by row number.
        """
        wrong = self.bad_rows(x)
        if len(wrong):
            row = int(wrong[0]) if numbers is None else int(numbers[wrong[0]])
            raise DataError(
                f"row {row} has NaN, Inf or a number that float32 cannot hold",
                hint=_MEND,
            )

    def bad_rows(self, x: Array) -> Numbers:
        """Numbers of the rows with a value that is not finite in float32.

        Raises:
            DataError: Rows of another form than `input`.
        """
        self._check_form(x)
        if x.dtype.kind != "f":
            return np.zeros(0, np.int64)
        with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which is what is looked for
            return non_finite_rows(x.astype(np.float32, copy=False))

    def takes(self, shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
        """Whether raw rows of a shape and dtype can be taken: floating-point numbers may stand for one another."""
        own = np.dtype(self.input.dtype)
        return tuple(shape) == tuple(self.input.shape) and (dtype == own or dtype.kind == own.kind == "f")

    def _check_form(self, x: Array) -> None:
        if x.ndim == 0 or not self.takes(x.shape[1:], x.dtype):
            shape, dtype = tuple(self.input.shape), self.input.dtype
            raise DataError(
                f"raw rows have shape {x.shape[1:]} and dtype {x.dtype.name}, needed {shape} and {dtype}",
                hint="give rows in the form that the model was prepared with",
            )

    def apply(self, x: Array) -> Array:
        """Features of raw rows.

        Args:
            x: (n, *input.shape); values are not looked at (`check_raw` does).

        Returns:
            (n, *features.shape) of the features' dtype, C-contiguous; where no step changes anything, `x` itself.

        Raises:
            DataError: Rows of another form than `input`.
        """
        self._check_form(x)
        row = apply_steps(x.astype(self.input.dtype, copy=False), self.steps)
        if row.shape[1:] != tuple(self.features.shape) or row.dtype.name != self.features.dtype:
            self.validate()
        return np.ascontiguousarray(row)


def fit_preprocessing(
    dataset: Dataset,
    features_shape: Shape,
    *,
    rows: int = 5000,
    seed: int = 0,
    axis: Axis = "auto",
    dtype: str = "float32",
) -> Preprocessing:
    """Steps that standardise the values of a data set and lay its rows out as a model takes them.

    Values are standardised channel by channel, to mean 0 and standard deviation 1 over a sample of rows. A channel that
    does not vary is centred only.

    Args:
        dataset: To be fitted: the training half.
        features_shape: One row as the model takes it.
        rows: Size of the sample.
        seed: Determines the sample.
        axis: The channels' axis of a raw row; None standardises all values alike. `auto` takes the axis that becomes
            the first where the layout transposes, else the shorter of the first and the last, if it has
            `MOST_CHANNELS` or fewer places, else none. Axes of length 1 do not count, and for a model with one
            channel there is none.
        dtype: `float32`, or `int64` for a model that takes token ids: then values are cast and not standardised.

    Raises:
        DataError: Row shapes that no layout joins, or NaN or Inf, by row number.
    """
    raw = dataset.input
    layout = layout_steps(raw.shape, tuple(features_shape))
    features = TensorSpec("features", tuple(features_shape), dtype)
    if dtype != "float32":
        return Preprocessing(raw, ({"kind": "cast", "dtype": dtype}, *layout), features).validate()
    channel = _channel_axis(raw.shape, tuple(features_shape), layout) if axis == "auto" else axis
    if channel is not None and not 0 <= channel < len(raw.shape):
        raise DataError(f"rows of {raw.shape} have no axis {channel}", hint=f"axes are 0..{len(raw.shape) - 1}")
    return Preprocessing(
        raw, (_affine(dataset, sample_rows(len(dataset), rows, seed), channel), *layout), features
    ).validate()


def layout_steps(raw: Shape, features: Shape) -> tuple[Step, ...]:
    """Steps from one row shape to another: nothing, a transposition, a reshaping, or both.

    Axes of length 1 come and go, the others may change their order (of several orders that fit, the one that keeps the
    first axes first), and all may be joined into one.

    Raises:
        DataError: Neither leads to the shape.

    >>> layout_steps((32, 32, 3), (3, 32, 32))
    ({'kind': 'transpose', 'axes': [2, 0, 1]},)
    >>> layout_steps((140,), (1, 140))
    ({'kind': 'reshape', 'shape': [1, 140]},)
    """
    orders = itertools.permutations(range(len(raw))) if len(raw) <= _MOST_AXES else iter([tuple(range(len(raw)))])
    for axes in orders:
        turned = tuple(raw[axis] for axis in axes)
        if _long(turned) == _long(features):
            return _turn(axes) + _shape(turned, features)
    if len(_long(features)) <= 1 and math.prod(raw) == math.prod(features):
        return _shape(raw, features)
    raise DataError(
        f"rows of shape {raw} cannot be laid out as {features}",
        hint="needed the same axes in some order, with or without axes of length 1, or one axis of all values",
    )


def _long(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _turn(axes: Shape) -> tuple[Step, ...]:
    return () if axes == tuple(range(len(axes))) else ({"kind": "transpose", "axes": list(axes)},)


def _shape(before: Shape, after: Shape) -> tuple[Step, ...]:
    return () if before == after else ({"kind": "reshape", "shape": list(after)},)


def _channel_axis(raw: Shape, features: Shape, layout: tuple[Step, ...]) -> int | None:
    one_channel = len(features) > 1 and features[0] == 1
    long = [axis for axis, size in enumerate(raw) if size != 1]
    if one_channel or not long:
        return None
    for step in layout:
        if step["kind"] == "transpose":
            axes = step["axes"]
            assert isinstance(axes, list)
            return next(int(axis) for axis in axes if axis in long)
    shorter = long[0] if raw[long[0]] <= raw[long[-1]] else long[-1]
    return shorter if raw[shorter] <= MOST_CHANNELS else None


def _affine(dataset: Dataset, sample: Numbers, axis: int | None) -> Step:
    mean, deviation = _moments(dataset, sample, axis)
    scale = np.divide(1.0, deviation, out=np.ones_like(deviation), where=deviation > 0)
    # Rounded here, so that the manifest holds the very numbers that are computed with.
    offset, factor = mean.astype(np.float32).tolist(), scale.astype(np.float32).tolist()
    if axis is None:
        return {"kind": "affine", "offset": offset[0], "scale": factor[0]}
    return {"kind": "affine", "offset": offset, "scale": factor, "axis": axis}


def _moments(dataset: Dataset, sample: Numbers, axis: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel, in float64, block by block: the sample is never held whole."""
    channels = 1 if axis is None else dataset.x.shape[axis + 1]
    values = len(sample) * math.prod(dataset.x.shape[1:]) / channels
    mean, square = np.zeros(channels), np.zeros(channels)
    for block in _channel_blocks(dataset, sample, axis):
        mean += block.sum(axis=1) / values
    for block in _channel_blocks(dataset, sample, axis):
        square += ((block - mean[:, None]) ** 2).sum(axis=1)
    deviation = np.sqrt(square / values)
    # A spread that is rounding error against the size of the values, or whose inverse float32 cannot hold, is none.
    return mean, np.where(deviation > np.maximum(1e-6 * np.abs(mean), 1e-30), deviation, 0.0)


def _channel_blocks(dataset: Dataset, sample: Numbers, axis: int | None) -> Iterator[NDArray[np.float64]]:
    """(channels, values) of each block of the sample's rows."""
    for first, block in row_blocks(select_rows(dataset.x, sample)):
        values: NDArray[np.float64] = block.astype(np.float64)
        wrong = non_finite_rows(values)
        if len(wrong):
            raise DataError(f"`{dataset.name}` has NaN or Inf in row {sample[first + wrong[0]]}", hint=_MEND)
        by_channel = values[None] if axis is None else np.moveaxis(values, axis + 1, 0)
        yield by_channel.reshape(len(by_channel), -1)
