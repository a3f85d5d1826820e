"""The budget in force: what the process takes is looked at after every update, and the budget itself may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgeff.errors import BudgetError, LoweredBudgetError
from edgeff.manifest import Manifest
from edgeff.runtime.meter import Meter
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.units import format_bytes

# Nearer to the budget than this, a smaller plan is looked for; it is to be smaller by as much again.
_NEAR = 0.97
_SMALLER = 0.9


@dataclass(frozen=True)
class Change:
    """Another plan, and why."""

    plan: Plan
    reason: str


class Watch:
    """Decides before each epoch and after each update whether to go on as planned.

    Args:
        manifest: Of the artifact.
        request: What the plan was made for.
        meter: Measures; None only follows changes of the budget.
        asked: A new budget in bytes over the floor, or None while nothing changed.
    """

    def __init__(
        self, manifest: Manifest, request: Request, meter: Meter | None, asked: Callable[[], int | None] = lambda: None
    ) -> None:
        self._manifest = manifest
        self._request = request
        self._meter = meter
        self._asked = asked
        self._nothing_below: Plan | None = None

    @property
    def budget_bytes(self) -> int | None:
        """In force now."""
        return self._request.budget_bytes

    def look(self, current: Plan) -> Change | None:
        """What to change; None to go on.

        Raises:
            BudgetError: The budget is exceeded, or nothing fits into a new one.
        """
        asked = self._asked()
        if asked is not None and asked != self._request.budget_bytes:
            return self._for_budget(current, asked)
        return self._for_measured(current)

    def changed(self) -> None:
        """The run goes on by another plan now: what was taken until here does not count against it.

        To be called when what the plan before held is gone.
        """
        if self._meter:
            self._meter.lap()

    def without_files(self, current: Plan) -> Change:
        """A plan that does without files of features, from now on, because these cannot be written.

        Raises:
            BudgetError: None fits the budget.
        """
        self._request = replace(self._request, features="rerun", schedule=current.schedule, arena=False)
        return Change(plan(self._manifest, self._request), "features cannot be kept in files")

    def _for_budget(self, current: Plan, budget: int) -> Change:
        # What an arena has taken goes back at once, but never more than once: from here on no plan keeps one.
        self._request = replace(self._request, budget_bytes=budget, schedule=current.schedule, arena=False)
        try:
            found = plan(self._manifest, self._request)
        except BudgetError as error:
            # What was asked for on the command line does not count any more.
            needed = error.hint.rpartition("; ")[2]
            hint = f"{needed}; raise it where it was lowered, and go on by `--resume`"
            raise LoweredBudgetError(f"the budget is {format_bytes(budget)} now: {error}", hint=hint) from error
        return Change(found, f"the budget is {format_bytes(budget)} now")

    def _for_measured(self, current: Plan) -> Change | None:
        budget = self._request.budget_bytes
        if budget is None or self._meter is None:
            return None
        used = self._meter.recent().training_bytes
        if used <= _NEAR * budget:
            return None
        smaller = self._smaller(current, budget)
        if smaller is None and used > budget:
            raise BudgetError(
                f"training took {format_bytes(used)}, the budget is {format_bytes(budget)}; no smaller plan is left",
                hint="go on by `--resume` with a larger `--budget`",
            )
        if smaller is None:
            return None
        return Change(smaller, f"training took {format_bytes(used)} of {format_bytes(budget)}")

    def _smaller(self, current: Plan, budget: int) -> Plan | None:
        if self._nothing_below is current:  # planning takes longer than a small update
            return None
        wanted = int(_SMALLER * current.planned_bytes)
        try:
            found = plan(
                self._manifest, replace(self._request, budget_bytes=wanted, schedule=current.schedule, arena=False)
            )
        except BudgetError:
            self._nothing_below = current
            return None
        return replace(found, budget_bytes=budget)
