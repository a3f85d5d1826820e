"""The blocks' arrays: weights, constant tensors, optimiser state and gradient sums.

They are allocated once and bound to the graphs; training changes them in place. What the optimiser updates lies in one
run of numbers for each role, block after block and parameter after parameter in the same places of each, so that
`apply` can go over all blocks in pieces of any size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate as running_sums
from typing import TypeVar

import numpy as np

from edgeff.errors import RunError
from edgeff.manifest import BlockSpec, TensorSpec
from edgeff.runtime.arrays import Array
from edgeff.runtime.groups import ONE_GROUP, largest_group, spans

# Bytes; kernels read from the beginning of a cache line fastest.
ALIGNMENT = 64
_ITEM_BYTES = 4
GRADIENT = "gradient"


@dataclass(frozen=True)
class BlockMemory:
    """What one block keeps between runs.

    Attributes:
        spec: The block.
        arrays: By the name of the graph input: `parameter.<name>`, `buffer.<name>`, `state.<slot>.<name>`,
            `gradient.<name>`; the last two only where the block is trained.
        runs: What they are views of, float32 (numbers,), all of the same length: `parameter`, `gradient`,
            `state.<slot>`; none where the block is not trained.
        start: Where these runs begin in those of all blocks.
        gradient_start: Where that of its gradients does, in that of its group.
    """

    spec: BlockSpec
    arrays: Mapping[str, Array]
    runs: Mapping[str, Array] = field(default_factory=dict)
    start: int = 0
    gradient_start: int = 0

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

    def over(self, runs: Mapping[str, Array]) -> BlockMemory:
        """The same block on its part of the runs of all blocks; itself where it is not trained."""
        if not self.runs:
            return self
        count = numbers_of(self.spec)
        starts = {role: self.gradient_start if role == GRADIENT else self.start for role in runs}
        own = {role: run[starts[role] : starts[role] + count] for role, run in runs.items()}
        arrays = {name: array for name, array in self.arrays.items() if name.startswith("buffer.")}
        for role, run in own.items():
            arrays |= _views(self.spec, role, run)
        return replace(self, arrays=arrays, runs=own)


# A block's arrays, or None where they are not in memory.
Memory = TypeVar("Memory", BlockMemory, BlockMemory | None)


def allocate_memory(spec: BlockSpec, *, trained: bool, accumulate: bool = False) -> BlockMemory:
    """Arrays for a block, all zero.

    Args:
        spec: The block.
        trained: Give it optimiser state.
        accumulate: Give it gradient sums.
    """
    (memory,), _ = allocate_memories([spec], trained=[spec.name] if trained else [], accumulate=accumulate)
    return memory


def allocate_memories(
    specs: Sequence[BlockSpec],
    *,
    trained: Collection[str],
    accumulate: bool = False,
    groups: Sequence[int] = ONE_GROUP,
) -> tuple[tuple[BlockMemory, ...], dict[str, Array]]:
    """Arrays for some blocks, all zero, and the runs of numbers of those that are trained, by role.

    Args:
        specs: The blocks.
        trained: Names of those that get optimiser state.
        accumulate: Give these gradient sums.
        groups: Which of them share the numbers of those (`edgeff.runtime.groups`).
    """
    chosen = [spec.name in trained for spec in specs]
    sizes = [numbers_of(spec) if one else 0 for spec, one in zip(specs, chosen, strict=True)]
    roles = ["parameter", *(f"state.{slot}" for slot in specs[0].slots)] if any(chosen) else []
    runs = {role: _zeros(TensorSpec(role, (sum(sizes),))) for role in roles}
    memories = [
        BlockMemory(spec, _own_arrays(spec, trained=one), runs if one else {}, start)
        for spec, one, start in zip(specs, chosen, _starts(sizes), strict=False)
    ]
    return with_gradients(memories, runs, accumulate, groups)


def with_gradients(
    memories: Sequence[Memory], runs: Mapping[str, Array], wanted: bool, groups: Sequence[int] = ONE_GROUP
) -> tuple[tuple[Memory, ...], dict[str, Array]]:
    """The same blocks and runs of numbers, with or without gradient sums; zero where there were none.

    Args:
        memories: Of all blocks; None for one that is not in memory.
        runs: Of those that are trained, by role.
        wanted: Have gradient sums.
        groups: Blocks of different groups share the numbers of these.
    """
    found = {role: run for role, run in runs.items() if role != GRADIENT}
    sizes: list[int] = [numbers_of(memory.spec) if memory and memory.runs else 0 for memory in memories]
    if wanted and found:
        shape = (largest_group(sizes, groups),)
        kept = GRADIENT in runs and runs[GRADIENT].shape == shape
        found[GRADIENT] = runs[GRADIENT] if kept else _zeros(TensorSpec(GRADIENT, shape))
    pairs = zip(memories, _starts_in_groups(sizes, groups), strict=True)
    return tuple(memory and replace(memory, gradient_start=start).over(found) for memory, start in pairs), found


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


def _own_arrays(spec: BlockSpec, *, trained: bool) -> dict[str, Array]:
    """What is no view of a run."""
    arrays = {f"buffer.{tensor.name}": _zeros(tensor) for tensor in spec.buffers}
    return arrays if trained else arrays | {f"parameter.{tensor.name}": _zeros(tensor) for tensor in spec.parameters}


def _views(spec: BlockSpec, role: str, run: Array) -> dict[str, Array]:
    """Each parameter's part of a block's run. Padding between them stays zero under any update."""
    starts = _starts(map(_padded, spec.parameters))
    return {
        f"{role}.{tensor.name}": run[start : start + math.prod(tensor.shape)].reshape(tensor.shape)
        for tensor, start in zip(spec.parameters, starts, strict=False)
    }


def numbers_of(spec: BlockSpec) -> int:
    """How many numbers its parameters are in a run, with padding."""
    return sum(map(_padded, spec.parameters))


def _padded(tensor: TensorSpec) -> int:
    step = ALIGNMENT // _ITEM_BYTES
    return -(-math.prod(tensor.shape) // step) * step


def _starts(sizes: Iterable[int]) -> Iterator[int]:
    """Where each begins when they lie one after another, and where the last ends."""
    return running_sums(sizes, initial=0)


def _starts_in_groups(sizes: Sequence[int], groups: Sequence[int]) -> Iterator[int]:
    """The same, beginning anew with each group."""
    for span in spans(groups, len(sizes)):
        yield from list(_starts(sizes[block] for block in span))[:-1]


def _zeros(tensor: TensorSpec) -> Array:
    # Written, not only reserved: pages that are first touched while training would count against the budget there.
    array = np.empty(tensor.shape, tensor.dtype)
    array.fill(0)
    return array
