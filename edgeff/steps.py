"""The steps that preprocessing is made of, as numpy and ONNX compute them to the same bits.

The steps are JSON objects, for they travel in the manifest. There are four kinds, each with exactly these keys:

| kind | keys | what it does to a row |
|---|---|---|
| `affine` | `offset`, `scale`, and `axis` where they are lists | `(float32(x) - offset) * scale` |
| `transpose` | `axes` | puts the axes in that order |
| `reshape` | `shape` | the same values in C order under another shape |
| `cast` | `dtype`: `float32` or `int64` | converts; to `int64` from integers only (token ids) |

Axes are those of a row before the step: the batch axis does not count. `offset` and `scale` are numbers for all values,
or lists with a number for each place along `axis`; they are rounded to float32 and the arithmetic is float32's,
subtraction first. A row that goes through `affine` is float32 afterwards, `transpose` and `reshape` keep the dtype. The
last step has to leave float32 or int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from edgeff.errors import DataError
from edgeff.manifest import ITEM_BYTES, TensorSpec
from edgeff.rows import Array

Step = Mapping[str, object]
FEATURE_DTYPES = ("float32", "int64")


def apply_steps(x: Array, steps: Sequence[Step]) -> Array:
    """Rows (n, ...) after the steps, which must have passed `row_after`."""
    for step in steps:
        x = _APPLY[str(step["kind"])](x, cast("Mapping[str, Any]", step))
    return x


# --- what a step does to rows (n, ...) ---


def _affine(x: Array, step: Mapping[str, Any]) -> Array:
    shape = [1] * x.ndim
    if "axis" in step:
        shape[step["axis"] + 1] = -1
    offset, scale = (np.asarray(step[key], np.float32).reshape(shape) for key in ("offset", "scale"))
    # Unsafe casting lets numpy turn integers into float32 piece by piece, with no second array of all values.
    out = np.subtract(x, offset, dtype=np.float32, casting="unsafe")
    return np.multiply(out, scale, out=out)


def _transpose(x: Array, step: Mapping[str, Any]) -> Array:
    return x.transpose(0, *(axis + 1 for axis in step["axes"]))


def _reshape(x: Array, step: Mapping[str, Any]) -> Array:
    return x.reshape(len(x), *step["shape"])


def _cast(x: Array, step: Mapping[str, Any]) -> Array:
    return x.astype(step["dtype"], copy=False)


_APPLY: Mapping[str, Callable[[Array, Mapping[str, Any]], Array]] = {
    "affine": _affine,
    "transpose": _transpose,
    "reshape": _reshape,
    "cast": _cast,
}

# --- what a step does to the form of a row; here every step is checked ---

Form = tuple[tuple[int, ...], str]


def row_after(row: TensorSpec, steps: Sequence[Step]) -> Form:
    """Shape and dtype of a row after the steps.

    Raises:
        DataError: A malformed step, one that does not fit the row before it, or another dtype at the end.

    >>> row_after(TensorSpec("x", (28, 28), "uint8"), [{"kind": "affine", "offset": 33, "scale": 0.01}])
    ((28, 28), 'float32')
    """
    if row.dtype not in ITEM_BYTES:
        raise DataError(f"raw rows have dtype `{row.dtype}`, needed one of {', '.join(ITEM_BYTES)}")
    form: Form = (tuple(row.shape), row.dtype)
    for number, step in enumerate(steps):
        form = _form_after(form, step, f"preprocessing step {number}")
    if form[1] not in FEATURE_DTYPES:
        raise DataError(
            f"the preprocessing steps give {form[1]}, needed float32 or int64",
            hint='add a step {"kind": "affine", ...} or {"kind": "cast", "dtype": "float32"}',
        )
    return form


def _form_after(form: Form, step: Step, name: str) -> Form:
    kind = step.get("kind")
    if not isinstance(kind, str) or kind not in _FORMS:
        raise DataError(f"{name} is of kind {kind!r}, needed one of {', '.join(_FORMS)}")
    needed, after = _FORMS[kind]
    if set(step) - {"axis"} != {"kind", *needed} or ("axis" in step and kind != "affine"):
        raise DataError(f"{name} (`{kind}`) has keys {_list(step)}, needed {_list(('kind', *needed))}")
    return after(form, step, f"{name} (`{kind}`)")


def _list(keys: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


def _affine_form(form: Form, step: Step, name: str) -> Form:
    shape, _ = form
    places = 0
    if "axis" in step:
        axis = step["axis"]
        if type(axis) is not int or not 0 <= axis < len(shape):
            raise DataError(f"{name} has axis {axis!r}, needed 0..{len(shape) - 1} for a row of {shape}")
        places = shape[axis]
    for key in ("offset", "scale"):
        _check_numbers(step[key], places, f"{name}: `{key}`", along="axis" in step)
    return shape, "float32"


def _check_numbers(value: object, places: int, name: str, *, along: bool) -> None:
    if along and (not isinstance(value, list | tuple) or len(value) != places):
        got = f"{len(value)} numbers" if isinstance(value, list | tuple) else repr(value)
        raise DataError(f"{name} is {got}, needed a list of {places} numbers, one for each place along `axis`")
    values = cast("Sequence[object]", value) if along else [value]
    for number in values:
        if type(number) not in (int, float) or not abs(float(cast("float", number))) <= _LARGEST:
            raise DataError(f"{name} has {number!r}, needed a finite number")


_LARGEST = float(np.finfo(np.float32).max)


def _transpose_form(form: Form, step: Step, name: str) -> Form:
    (shape, dtype), axes = form, step["axes"]
    if not _is_sizes(axes) or sorted(cast("Sequence[int]", axes)) != list(range(len(shape))):
        raise DataError(f"{name} has axes {axes!r}, needed an order of 0..{len(shape) - 1} for a row of {shape}")
    return tuple(shape[axis] for axis in cast("Sequence[int]", axes)), dtype


def _reshape_form(form: Form, step: Step, name: str) -> Form:
    (shape, dtype), sizes = form, step["shape"]
    few = _is_sizes(sizes) and len(cast("Sequence[int]", sizes)) <= _MOST_AXES
    if not few or math.prod(cast("Sequence[int]", sizes)) != math.prod(shape):
        raise DataError(f"{name} has shape {sizes!r}, needed one of {math.prod(shape):,} values as the row of {shape}")
    return tuple(cast("Sequence[int]", sizes)), dtype


# More than numpy 1 can have.
_MOST_AXES = 32


def _is_sizes(value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(size) is int and size >= 0 for size in value)


def _cast_form(form: Form, step: Step, name: str) -> Form:
    (shape, dtype), wanted = form, step["dtype"]
    if wanted not in FEATURE_DTYPES:
        raise DataError(f"{name} has dtype {wanted!r}, needed `float32` or `int64`")
    if wanted == "int64" and np.dtype(dtype).kind not in "iu":
        raise DataError(f"{name} turns {dtype} into int64, needed integers (token ids)")
    return shape, str(wanted)


_FORMS: Mapping[str, tuple[tuple[str, ...], Callable[[Form, Step, str], Form]]] = {
    "affine": (("offset", "scale"), _affine_form),
    "transpose": (("axes",), _transpose_form),
    "reshape": (("shape",), _reshape_form),
    "cast": (("dtype",), _cast_form),
}
