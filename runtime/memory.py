"""A block's arrays: weights, constant tensors, optimiser state and gradient sums.

They are allocated once and bound to the graphs; training changes them in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeff.errors import RunError
from edgeff.manifest import BlockSpec, TensorSpec
from edgeff.runtime.engine import Array


@dataclass(frozen=True)
class BlockMemory:
    """What one block keeps between runs.

    Attributes:
        spec: The block.
        arrays: By the name of the graph input: `parameter.<name>`, `buffer.<name>`, `state.<slot>.<name>`,
            `gradient.<name>`; the last two only where the block is trained.
    """

    spec: BlockSpec
    arrays: Mapping[str, Array]

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
        for name, array in self.arrays.items():
            if name.startswith("gradient."):
                array.fill(0)


def allocate_memory(
    spec: BlockSpec, weights: Mapping[str, Array], *, trained: bool, accumulate: bool = False
) -> BlockMemory:
    """Arrays for a block, with its weights filled in and everything else zero.

    Args:
        spec: The block.
        weights: By key `<block>.<name>`; an array that can be trained in as it is, is taken over and not copied.
        trained: Give it optimiser state.
        accumulate: Give it gradient sums.

    Raises:
        RunError: A weight is missing, or has another shape or dtype.
    """
    arrays = {f"parameter.{tensor.name}": _weight(spec, tensor, weights) for tensor in spec.parameters}
    arrays |= {f"buffer.{tensor.name}": _weight(spec, tensor, weights) for tensor in spec.buffers}
    if trained:
        arrays |= {f"state.{slot}.{tensor.name}": _zeros(tensor) for slot in spec.slots for tensor in spec.parameters}
    if trained and accumulate:
        arrays |= {f"gradient.{tensor.name}": _zeros(tensor) for tensor in spec.parameters}
    return BlockMemory(spec, arrays)


def _weight(spec: BlockSpec, tensor: TensorSpec, weights: Mapping[str, Array]) -> Array:
    key = f"{spec.name}.{tensor.name}"
    if key not in weights:
        raise RunError(f"the weights lack `{key}`", hint="give the weights of a run of this same artifact")
    array = weights[key]
    if array.shape != tensor.shape or array.dtype != np.dtype(tensor.dtype):
        raise RunError(
            f"`{key}` must be {tensor.dtype} {list(tensor.shape)}, got {array.dtype.name} {list(array.shape)}",
            hint="give the weights of a run of this same artifact",
        )
    return np.require(array, requirements=["C", "W", "O"])


def _zeros(tensor: TensorSpec) -> Array:
    # Written, not only reserved: pages that are first touched while training would count against the budget there.
    array = np.empty(tensor.shape, tensor.dtype)
    array.fill(0)
    return array
