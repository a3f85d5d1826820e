"""Why nothing fits, in words: which block, its largest tensors, and what would do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeff.errors import BudgetError
from edgeff.manifest import Manifest
from edgeff.runtime.plan_bytes import MIB
from edgeff.runtime.plan_parts import BlockPlan, Plan, Request
from edgeff.units import format_bytes


def check_block_budgets(manifest: Manifest, request: Request) -> None:
    """Check that every block budget names a block and holds something.

    Raises:
        BudgetError: One does not.
    """
    known = [block.name for block in manifest.blocks]
    for name, cap in request.block_budgets.items():
        if name not in known:
            raise BudgetError(f"there is no block `{name}` to give a budget to", hint=f"its blocks: {', '.join(known)}")
        if cap <= 0:
            raise BudgetError(f"a budget of {cap} bytes for block `{name}` holds nothing")


def over_cap(manifest: Manifest, request: Request, plans: Sequence[Plan]) -> BudgetError:
    """A block that keeps to its budget in no plan; where there is none, one that does not in the smallest plan."""

    def over(parts: Iterable[BlockPlan]) -> list[BlockPlan]:
        return [
            part for part in parts if part.planned_bytes > request.block_budgets.get(part.block, part.planned_bytes)
        ]

    smallest = [
        min(parts, key=lambda part: part.planned_bytes) for parts in zip(*(one.blocks for one in plans), strict=True)
    ]
    block = (over(smallest) or over(min(plans, key=by_memory).blocks))[0]
    return BudgetError(
        f"block `{block.block}` needs {block.planned_bytes:,} bytes at micro-batch {block.micro_batch}, "
        f"its budget is {request.block_budgets[block.block]:,}: {_largest_tensors(manifest, block)}",
        hint=f"give it `--block-budget {block.block}={-(-block.planned_bytes // MIB)}MiB`",
    )


def over_budget(manifest: Manifest, request: Request, plans: Sequence[Plan]) -> BudgetError:
    """What the smallest of the plans needs, and who needs most of it."""
    smallest = min(plans, key=by_memory)
    needed, budget = smallest.planned_bytes, request.budget_bytes or 0
    block = max(
        (one for one in smallest.blocks if one.graphs), key=lambda one: one.planned_bytes, default=smallest.blocks[0]
    )
    schedule = f" by schedule `{request.schedule}`" if request.schedule else ""
    return BudgetError(
        f"the run needs {needed:,} bytes{schedule}, the budget is {budget:,}; most goes to block `{block.block}`: "
        f"{format_bytes(block.planned_bytes)} at micro-batch {block.micro_batch} ({_largest_tensors(manifest, block)})",
        hint=f"give it `--budget {-(-needed // MIB)}MiB`; the smallest budget that works is {needed:,} bytes",
    )


def _largest_tensors(manifest: Manifest, part: BlockPlan) -> str:
    """The three largest of what a block holds at its worst moment, in words."""
    block = next(one for one in manifest.blocks if one.name == part.block)
    held = [(f"weight `{spec.name}`", spec.nbytes) for spec in block.parameters]
    copies = len(block.slots) + (1 if part.gradient_bytes else 0)
    held += [(f"gradient and state of `{spec.name}`", copies * spec.nbytes) for spec in block.parameters]
    for kind in part.graphs:
        if kind != "apply":
            moment = block.graphs[kind].worst_moment(part.micro_batch)
            held += [(f"`{one.name}` of {one.operator}", one.at(part.micro_batch)) for one in moment.tensors]
    held.sort(key=lambda one: -one[1])
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in held[:3])


def by_memory(one: Plan) -> tuple[float, int]:
    """What plans are ordered by where the fewest bytes are wanted: bytes, then time."""
    return one.planned_bytes, round(1e9 * one.epoch_seconds)
