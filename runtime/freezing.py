"""A plan that leaves some blocks as they are, where the budget does not do for training all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgeff.errors import BudgetError
from edgeff.manifest import Manifest
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request


def plan_freezing(manifest: Manifest, request: Request) -> Plan:
    """The plan for as many of the last blocks as can be trained within the budget, all of them where that fits.

    The first blocks are frozen first: what they have learnt is the most general. Frozen blocks need no gradients and no
    optimiser state, and a schedule that trains more blocks is taken before one that trains fewer.

    Args:
        manifest: Of the artifact.
        request: Its `trained` blocks are those that may be trained.

    Raises:
        BudgetError: Not even the last of them can be trained; says what it needs.
    """
    refused: BudgetError | None = None
    for trained in _suffixes(manifest, request):
        try:
            return plan(manifest, replace(request, trained=trained))
        except BudgetError as error:
            refused = error
    assert refused is not None, "a manifest has blocks"
    raise refused


def frozen_blocks(chosen: Plan, request: Request) -> tuple[str, ...]:
    """Names of the blocks that were to be trained and are not."""
    wanted = [part.block for part in chosen.blocks if request.trained is None or part.block in request.trained]
    return tuple(name for name in wanted if name not in trained_blocks(chosen))


def trained_blocks(chosen: Plan) -> tuple[str, ...]:
    """Names of the blocks that a plan trains."""
    return tuple(part.block for part in chosen.blocks if part.trained)


def _suffixes(manifest: Manifest, request: Request) -> Iterator[tuple[str, ...]]:
    names = [block.name for block in manifest.blocks if request.trained is None or block.name in request.trained]
    yield from (tuple(names[start:]) for start in range(len(names)))
