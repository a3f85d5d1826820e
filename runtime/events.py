"""What an adaptation tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeff.runtime.evaluate import Evaluation
from edgeff.runtime.plan_parts import Plan
from edgeff.runtime.trainer import Position, Progress


@dataclass(frozen=True)
class Notice:
    """Something the user should know; the run goes on."""

    text: str


@dataclass(frozen=True)
class GuardResult:
    """What the guard rows say of the weights after an epoch; with schedule `stage`, after a block is finished.

    Attributes:
        epoch: 0 before training; counts finished blocks with schedule `stage`.
        evaluation: On the guard rows.
        best_epoch: So far.
    """

    epoch: int
    evaluation: Evaluation
    best_epoch: int


@dataclass(frozen=True)
class Replanned:
    """The run goes on by another plan.

    Attributes:
        plan: The new one.
        reason: Why.
    """

    plan: Plan
    reason: str


@dataclass(frozen=True)
class Placed:
    """Graphs were loaded on a provider that is not the CPU; told once.

    Attributes:
        text: What it took of them, and what fell back.
    """

    text: str


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop; it goes on from where its checkpoint is.

    Attributes:
        position: Of the checkpoint.
        reason: To stop.
    """

    position: Position
    reason: str = ""


@dataclass(frozen=True)
class Finished:
    """The run is complete; the weights it chose are in `best.safetensors`.

    Attributes:
        result: What `result.json` holds.
    """

    result: Mapping[str, Any]


Event = Notice | Progress | GuardResult | Placed | Replanned | Stopped | Finished
