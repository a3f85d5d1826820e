"""What a model needs by each method, and which devices it fits: the facts of a report, without any form.

Plans, timelines and measurements come from a `Planner`, so that nothing here loads the runtime. `edgeff.report_text`,
`edgeff.report_json` and `edgeff.report_html` give the facts a form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

from edgeff.errors import BudgetError, EdgeffError
from edgeff.manifest import Manifest

if TYPE_CHECKING:
    from edgeff.runtime.plan_parts import BlockPlan, Plan
    from edgeff.runtime.timeline import Timeline

KINDS = ("weights", "gradients", "state", "activations", "graphs", "rows", "process")
# What a person reads for each kind of bytes.
KIND_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "state": "optimizer state",
    "activations": "activations",
    "graphs": "graphs",
    "rows": "rows",
    "process": "process",
}


class MeasuredBlock(Protocol):
    """What `edgeff.runtime.measure` says of a block."""

    @property
    def block(self) -> str:
        """Its name."""

    @property
    def measured_bytes(self) -> int | None:
        """What its runs raised the peak by, and what it holds; None where it was not measured."""


class Measured(Protocol):
    """What `edgeff.runtime.measure` says of a method; bytes over the floor, but for the floor itself."""

    @property
    def runtime(self) -> str:
        """Name and version."""

    @property
    def micro_batch(self) -> int:
        """Rows that went through at once."""

    @property
    def floor_bytes(self) -> int:
        """Resident before the artifact was opened."""

    @property
    def training_bytes(self) -> int:
        """Peak over the floor."""

    @property
    def planned_bytes(self) -> int:
        """What the measured run had planned."""

    @property
    def rows_per_s(self) -> float:
        """Rows trained on per second."""

    @property
    def blocks(self) -> Sequence[MeasuredBlock]:
        """In order."""


class Planner(Protocol):
    """What a report asks of the runtime about one artifact at one batch size."""

    @property
    def updates(self) -> int:
        """Batches of the epoch that plans are made for."""

    def methods(self) -> Mapping[str, str]:
        """In the order of display, each with what it is, for people."""

    def plan(self, method: str, budget_bytes: int | None) -> Plan:
        """The fastest plan that fits; without a budget, the smallest there is.

        Raises:
            BudgetError: None fits.
        """

    def timeline(self, method: str, plan: Plan) -> Timeline | None:
        """One update of a plan; None where a method has no such picture."""

    def measure(self, method: str, budget_bytes: int) -> Measured:
        """Train for a moment in fresh processes of this machine.

        Raises:
            EdgeffError: It cannot be measured.
        """


@dataclass(frozen=True)
class Device:
    """What a report needs of a device profile.

    Attributes:
        id: Of the profile.
        name: For people.
        kind: `sbc`, `mcu`, ...
        ram_bytes: What one process may use there; for a microcontroller, its memory. None when nobody knows.
        estimated: Whether `ram_bytes` is an estimate.
        floor_bytes: Resident bytes of the process before the artifact is opened; 0 where unknown.
        budget_bytes: What is left for training; 0 for nothing.
        refusal: Why nothing can be trained or planned there, as a sentence; empty where something can.
        tensors_only: onnxruntime does not run there: tensor bytes are all that can be told.
    """

    id: str
    name: str
    kind: str
    ram_bytes: int | None
    estimated: bool
    floor_bytes: int
    budget_bytes: int
    refusal: str = ""
    tensors_only: bool = False


@dataclass(frozen=True)
class MethodRow:
    """One method on one device, or at its smallest.

    Attributes:
        method: Its name.
        fits: A plan was found.
        plan: That plan; where none fits, the smallest there is; None where there is none at all.
        reason: Why it does not fit; empty when it fits.
        measured: On this machine, with the device's budget; None where nothing was measured.
        not_measured: Why a measurement failed.
        updates: Of the epoch that the plan is for.
    """

    method: str
    fits: bool
    plan: Plan | None
    reason: str = ""
    measured: Measured | None = None
    not_measured: str = ""
    updates: int = 1

    @property
    def micro_batch(self) -> int | None:
        """Of the plan that fits."""
        return self.plan.micro_batch if self.plan and self.fits else None

    @property
    def planned_bytes(self) -> int | None:
        """Of the plan, over the floor; where none fits, the smallest there is."""
        return self.plan.planned_bytes if self.plan else None

    @property
    def update_seconds(self) -> float | None:
        """One batch through all blocks, by the cost model."""
        return self.plan.epoch_seconds / self.updates if self.plan else None

    @property
    def row_disk_bytes(self) -> int:
        """What a row takes on disk, where blocks read their inputs from files."""
        return self.plan.disk_bytes // (self.updates * self.plan.batch_size) if self.plan else 0

    @property
    def measured_bytes(self) -> int | None:
        """Over the floor."""
        return self.measured.training_bytes if self.measured else None

    @property
    def over_budget(self) -> bool:
        """It fits by its plan, and took more than the budget when it was measured."""
        budget = self.plan.budget_bytes if self.plan else None
        return budget is not None and self.measured is not None and self.measured.training_bytes > budget

    @property
    def holds(self) -> bool:
        """It fits, and kept to the budget where it was measured."""
        return self.fits and not self.over_budget

    @property
    def ratio(self) -> float | None:
        """Measured bytes for each byte that the measured run had planned."""
        return self.measured.training_bytes / max(1, self.measured.planned_bytes) if self.measured else None

    @property
    def blocks(self) -> Iterator[tuple[BlockPlan, int | None]]:
        """Each block of the plan, and its measured bytes."""
        found = {block.block: block.measured_bytes for block in self.measured.blocks} if self.measured else {}
        return ((block, found.get(block.block)) for block in (self.plan.blocks if self.plan else ()))


@dataclass(frozen=True)
class DeviceRows:
    """All methods on a device.

    Attributes:
        device: Which.
        rows: One for each method; none where nothing can be planned.
    """

    device: Device
    rows: tuple[MethodRow, ...] = ()


@dataclass(frozen=True)
class Report:
    """All facts.

    Attributes:
        artifact: Its path, as the user gave it.
        manifest: Of the artifact.
        sha256: Of the manifest, which names the whole artifact.
        batch_size: Rows of a batch.
        methods: In the order of display, each with what it is.
        least: Each method at its smallest, whatever the device.
        devices: In order.
    """

    artifact: str
    manifest: Manifest
    sha256: str
    batch_size: int
    methods: Mapping[str, str]
    least: tuple[MethodRow, ...]
    devices: tuple[DeviceRows, ...] = field(default=())

    @property
    def has_baselines(self) -> bool:
        """Whether back-propagation is among the methods."""
        return any(method.partition("+")[0] == "bp" for method in self.methods)


def build_report(
    artifact: str, manifest: Manifest, sha256: str, devices: Sequence[Device], planner: Planner, batch_size: int
) -> Report:
    """Plan every method for every device."""
    methods = planner.methods()

    @cache
    def smallest(method: str) -> MethodRow:
        return _row(planner, method, None, lambda: None)

    @cache  # devices with the same budget share their plans
    def row(method: str, budget_bytes: int) -> MethodRow:
        return _row(planner, method, budget_bytes, lambda: smallest(method).plan)

    found = tuple(
        DeviceRows(device, () if device.refusal else tuple(row(method, device.budget_bytes) for method in methods))
        for device in devices
    )
    least = tuple(smallest(method) for method in methods)
    return Report(artifact, manifest, sha256, batch_size, methods, least, found)


def _row(planner: Planner, method: str, budget_bytes: int | None, otherwise: Callable[[], Plan | None]) -> MethodRow:
    try:
        return MethodRow(method, True, planner.plan(method, budget_bytes), updates=planner.updates)
    except BudgetError as error:
        return MethodRow(method, False, otherwise(), str(error), updates=planner.updates)


def measured_report(report: Report, planner: Planner, tell: Callable[[int, int, MethodRow], None]) -> Report:
    """The report with every row that fits measured on this machine; equal plans are measured once.

    Args:
        report: With plans.
        planner: Measures.
        tell: Is called before each measurement, with its number from 0, how many there are, and the row.
    """
    wanted: dict[object, tuple[MethodRow, int]] = {}
    for device in report.devices:
        for row in device.rows:
            if row.fits:
                wanted.setdefault(plan_key(row), (row, device.device.budget_bytes))
    found = {}
    for number, (key, (row, budget_bytes)) in enumerate(wanted.items()):
        tell(number, len(wanted), row)
        found[key] = _measured(row, planner, budget_bytes)

    def filled(row: MethodRow) -> MethodRow:
        one = found.get(plan_key(row)) if row.fits else None
        return replace(row, measured=one.measured, not_measured=one.not_measured) if one else row

    devices = tuple(replace(each, rows=tuple(map(filled, each.rows))) for each in report.devices)
    return replace(report, devices=devices)


def _measured(row: MethodRow, planner: Planner, budget_bytes: int) -> MethodRow:
    try:
        return replace(row, measured=planner.measure(row.method, budget_bytes))
    except EdgeffError as error:
        return replace(row, not_measured=str(error))


def plan_key(row: MethodRow) -> tuple[str, object]:
    """Equal for rows that do the same, whatever their budgets."""
    if row.plan is None:
        return row.method, None
    blocks = tuple(replace(block, budget_bytes=None) for block in row.plan.blocks)
    return row.method, replace(row.plan, budget_bytes=None, blocks=blocks)
