"""Ways to train one artifact's network, to be planned and measured side by side.

Local learning comes from the artifact's own blocks. Back-propagation and forward-only learning need the baselines that
`edgeff export --baselines` lets travel along: the same network as one block, on the same runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgeff.artifact import Artifact
from edgeff.baselines import CHECKPOINTED, PLAIN
from edgeff.errors import RunError
from edgeff.manifest import Manifest
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.zeroth_order import plan_zeroth_order


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        title: For people.
        baseline: Of the artifact, that it trains; None for the artifact's own blocks.
        at_once: A batch is not divided.
        changes: To the request that a plan is made for.
        forward_only: It takes no gradient.
    """

    title: str
    baseline: str | None = None
    at_once: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    forward_only: bool = False


_FUSED, _SUMMED = {"schedule": "sweep", "updates": "fused"}, {"schedule": "sweep", "updates": "accumulated"}
METHODS: Mapping[str, Method] = {
    "stage": Method("local, one block at a time", changes={"schedule": "stage"}),
    "sweep": Method("local, all blocks for every batch", changes={"schedule": "sweep"}),
    "last-block": Method("the last block alone", changes={"schedule": "sweep"}),
    "bp": Method("back-propagation", PLAIN, at_once=True, changes=_SUMMED),
    "bp+accumulation": Method("back-propagation, gradients accumulated", PLAIN, changes=_SUMMED),
    "bp+checkpointing": Method("back-propagation, checkpointed", CHECKPOINTED, at_once=True, changes=_SUMMED),
    "bp+accumulation+checkpointing": Method(
        "back-propagation, accumulated and checkpointed", CHECKPOINTED, changes=_SUMMED
    ),
    "bp+fused-updates": Method(
        "back-propagation, weights updated as gradients come", PLAIN, at_once=True, changes=_FUSED
    ),
    "mezo": Method("forward passes alone (MeZO)", PLAIN, forward_only=True),
}
LOCAL = ("stage", "sweep", "last-block")


def available_methods(artifact: Artifact) -> tuple[str, ...]:
    """Names of the methods that this artifact has graphs for, in the order of `METHODS`."""
    there = (None, *artifact.baseline_names)
    return tuple(name for name, method in METHODS.items() if method.baseline in there)


def artifact_of(artifact: Artifact, method: str) -> Artifact:
    """What a method trains: the artifact itself, or one of its baselines.

    Raises:
        RunError: Unknown method, or the artifact has no graphs for it.
        ArtifactError: The baseline cannot be read.
    """
    if method not in METHODS:
        raise RunError(f"unknown method `{method}`", hint=f"known: {', '.join(METHODS)}")
    wanted = METHODS[method].baseline
    if wanted is None:
        return artifact
    if wanted not in artifact.baseline_names:
        raise RunError(
            f"`{artifact.path}` has no graphs for `{method}`",
            hint="export it once more with `--baselines`",
        )
    return artifact.baseline(wanted)


def request_for(manifest: Manifest, method: str, request: Request) -> Request:
    """A request as the method changes it; what concerns single blocks is for the artifact's own blocks alone."""
    chosen = METHODS[method]
    changes = dict(chosen.changes)
    if method == "last-block":
        changes["trained"] = (manifest.last_predicting.name,)
    if chosen.baseline is not None:
        changes |= {"trained": None, "block_budgets": {}, "features": None}
    if chosen.at_once:
        changes["micro_batch"] = request.batch_size
    return replace(request, **changes)


def plan_trained(manifest: Manifest, method: str, request: Request) -> Plan:
    """The plan by which a method trains.

    Args:
        manifest: Of `artifact_of`.
        method: One of `METHODS`.
        request: Its schedule, updates and blocks are set by the method.

    Raises:
        BudgetError: Nothing fits.
    """
    wanted = request_for(manifest, method, request)
    return plan_zeroth_order(manifest, wanted) if METHODS[method].forward_only else plan(manifest, wanted)
