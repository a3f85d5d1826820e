"""A block's arrays: weights, constant tensors, optimiser state and gradient sums.

They are allocated once and bound to the graphs; training changes them in place. What the optimiser updates lies in one
run of numbers for each role, parameter after parameter in the same places of each, so that `apply` can go over a block
in pieces of any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeff.errors import RunError
from edgeff.manifest import BlockSpec, TensorSpec
from edgeff.runtime.engine import Array

# Bytes; kernels read from the beginning of a cache line fastest.
ALIGNMENT = 64
_ITEM_BYTES = 4


@dataclass(frozen=True)
class BlockMemory:
    """What one block keeps between runs.

    Attributes:
        spec: The block.
        arrays: By the name of the graph input: `parameter.<name>`, `buffer.<name>`, `state.<slot>.<name>`,
            `gradient.<name>`; the last two only where the block is trained.
        runs: What they are views of, float32 (numbers,), all of the same length: `parameter`, `gradient`,
            `state.<slot>`; none where the block is not trained.
    """

    spec: BlockSpec
    arrays: Mapping[str, Array]
    runs: Mapping[str, Array] = field(default_factory=dict)

    def weights(self) -> dict[str, Array]:
        """The arrays themselves of parameters and buffers, by their key in a weights file."""
        found: dict[str, Array] = {}
        for role, specs in (("parameter", self.spec.parameters), ("buffer", self.spec.buffers)):
            found |= {f"{self.spec.name}.{spec.name}": self.arrays[f"{role}.{spec.name}"] for spec in specs}
        return found

    def state(self) -> dict[str, Array]:
        """The arrays themselves of the optimiser state, by their key in a checkpoint; empty where not trained."""
        return {
            # A slash is in no block's name, so that no weight can have such a key.
            f"state/{slot}/{self.spec.name}.{spec.name}": self.arrays[f"state.{slot}.{spec.name}"]
            for slot in self.spec.slots
            for spec in self.spec.parameters
            if f"state.{slot}.{spec.name}" in self.arrays
        }

    def zero_gradients(self) -> None:
        """Begin a new sum of gradients."""
        self.runs["gradient"].fill(0)

    def with_gradients(self) -> BlockMemory:
        """The same arrays, with gradient sums if there are none yet."""
        if "gradient" in self.runs or not self.runs:
            return self
        run, views = _run(self.spec, "gradient")
        return BlockMemory(self.spec, {**self.arrays, **views}, {**self.runs, "gradient": run})

    def without_gradients(self) -> BlockMemory:
        """The same arrays without gradient sums."""
        arrays = {name: array for name, array in self.arrays.items() if not name.startswith("gradient.")}
        return BlockMemory(self.spec, arrays, {role: run for role, run in self.runs.items() if role != "gradient"})


def allocate_memory(spec: BlockSpec, *, trained: bool, accumulate: bool = False) -> BlockMemory:
    """Arrays for a block, all zero.

    Args:
        spec: The block.
        trained: Give it optimiser state.
        accumulate: Give it gradient sums.
    """
    arrays: dict[str, Array] = {f"buffer.{tensor.name}": _zeros(tensor) for tensor in spec.buffers}
    if not trained:
        return BlockMemory(spec, arrays | {f"parameter.{tensor.name}": _zeros(tensor) for tensor in spec.parameters})
    runs: dict[str, Array] = {}
    for role in ("parameter", *(["gradient"] if accumulate else []), *(f"state.{slot}" for slot in spec.slots)):
        runs[role], views = _run(spec, role)
        arrays |= views
    return BlockMemory(spec, arrays, runs)


def copy_weights(memory: BlockMemory, weights: Mapping[str, Array]) -> None:
    """Fill in weights by key `<block>.<name>`.

    Raises:
        RunError: One is missing, or has another shape or dtype.
    """
    for key, array in memory.weights().items():
        if key not in weights:
            raise RunError(f"the weights lack `{key}`", hint="give the weights of a run of this same artifact")
        given = weights[key]
        if given.shape != array.shape or given.dtype != array.dtype:
            raise RunError(
                f"`{key}` must be {array.dtype.name} {list(array.shape)}, got {given.dtype.name} {list(given.shape)}",
                hint="give the weights of a run of this same artifact",
            )
        array[...] = given


def _run(spec: BlockSpec, role: str) -> tuple[Array, dict[str, Array]]:
    """Zeros for all parameters of a block, and the part of each. Padding between them stays zero under any update."""
    step = ALIGNMENT // _ITEM_BYTES
    sizes = [-(-math.prod(tensor.shape) // step) * step for tensor in spec.parameters]
    run: Array = _zeros(TensorSpec(role, (sum(sizes),)))
    views, start = {}, 0
    for tensor, size in zip(spec.parameters, sizes, strict=True):
        views[f"{role}.{tensor.name}"] = run[start : start + math.prod(tensor.shape)].reshape(tensor.shape)
        start += size
    return run, views


def _zeros(tensor: TensorSpec) -> Array:
    # Written, not only reserved: pages that are first touched while training would count against the budget there.
    array = np.empty(tensor.shape, tensor.dtype)
    array.fill(0)
    return array
