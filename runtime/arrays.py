"""Arrays that graphs are bound to, and what graphs ask of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgeff.errors import EngineError

Array = NDArray[Any]


@dataclass(frozen=True)
class Port:
    """An input or output of a loaded graph.

    Attributes:
        name: As in the graph.
        shape: Sizes; None where the graph leaves one open (the rows).
        dtype: numpy's name.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def fitting(graph: str, port: Port, name: str, arrays: Mapping[str, Array]) -> Array:
    """The array of that name, in the form that a port of a graph takes it in.

    Raises:
        EngineError: It is missing or does not fit.
    """
    if name not in arrays:
        raise EngineError(f"`{graph}` needs an array for `{port.name}`")
    array = arrays[name]
    if name.startswith("gradient.") and array.size == math.prod(size or 0 for size in port.shape):
        # The sum of a weight's gradients is taken as the matrix that its parts come out as.
        array = array.reshape([size or 0 for size in port.shape])
    # The engine gets no more than an address: a wrong shape here would be a wild write there.
    fits = len(array.shape) == len(port.shape) and all(
        needed in (None, got) for needed, got in zip(port.shape, array.shape, strict=True)
    )
    if not fits or array.dtype.name != port.dtype or not array.flags.c_contiguous:
        raise EngineError(
            f"`{graph}`: `{port.name}` must be {port.dtype} {_shown(port.shape)}, "
            f"got {array.dtype.name} {_shown(array.shape)}{'' if array.flags.c_contiguous else ', not contiguous'}",
            hint="the graph is not the one the manifest describes: export the model again",
        )
    return array


def _shown(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("rows" if size is None else str(size) for size in shape) + ")"
