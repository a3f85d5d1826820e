"""What the report command asks of the runtime and of the device profiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeff.artifact import Artifact
from edgeff.cli_progress import ProgressLine
from edgeff.devices import DeviceProfile, default_budget_bytes
from edgeff.errors import DeviceError, RunError
from edgeff.manifest import Manifest
from edgeff.plain_file import open_plain
from edgeff.report import Device, Measured, MethodRow, Report, build_report, measured_report

if TYPE_CHECKING:
    from edgeff.runtime.plan_parts import Plan
    from edgeff.runtime.timeline import Timeline

# What an HTML file of ours begins with.
DOCTYPE = b"<!doctype html>"
# What `edgeff.runtime.measure` plans with: labels, their joined copy and one order for every row; files of features
# wherever they are faster.
_LABEL_BYTES = 3 * 8
_DISK_BYTES = 2**40


@dataclass(frozen=True)
class ArtifactPlanner:
    """Plans, timelines and measurements of an artifact.

    Attributes:
        artifact: Verified.
        batch_size: Rows of a batch.
    """

    artifact: Artifact
    batch_size: int
    _manifests: dict[str | None, Manifest] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        """As many as a measurement makes, so that it is of the same plan."""
        from edgeff.runtime.measure import UPDATES

        return UPDATES

    def methods(self) -> dict[str, str]:
        """In the order of display, each with what it is."""
        from edgeff.runtime.methods import METHODS, available_methods

        return {method: METHODS[method].title for method in available_methods(self.artifact)}

    def plan(self, method: str, budget_bytes: int | None) -> Plan:
        """The fastest plan that fits; without a budget, the smallest there is.

        Raises:
            BudgetError: None fits.
        """
        from edgeff.runtime.methods import plan_trained
        from edgeff.runtime.plan_parts import Request

        rows = self.updates * self.batch_size
        request = Request(
            batch_size=self.batch_size,
            budget_bytes=budget_bytes,
            rows=rows,
            row_bytes=_LABEL_BYTES * rows,
            disk_bytes=_DISK_BYTES,
            prefer="memory" if budget_bytes is None else "speed",
        )
        return plan_trained(self._manifest(method), method, request)

    def timeline(self, method: str, plan: Plan) -> Timeline | None:
        """One update of a plan."""
        from edgeff.runtime.methods import METHODS
        from edgeff.runtime.timeline import timeline

        return timeline(self._manifest(method), plan, passes=2 if METHODS[method].forward_only else 1)

    def measure(self, method: str, budget_bytes: int) -> Measured:
        """The median of three fresh processes.

        Raises:
            EdgeffError: It cannot be measured.
        """
        from edgeff.runtime.measure import measure_method

        return measure_method(self.artifact.path, method, batch_size=self.batch_size, budget_bytes=budget_bytes)

    def _manifest(self, method: str) -> Manifest:
        """What a method trains; read once, since it is planned for every device."""
        from edgeff.runtime.methods import METHODS, artifact_of

        baseline = METHODS[method].baseline
        if baseline not in self._manifests:
            self._manifests[baseline] = artifact_of(self.artifact, method).manifest
        return self._manifests[baseline]


def report_on(
    artifact: Artifact, name: str, profiles: Sequence[DeviceProfile], batch_size: int | None, *, measure: bool
) -> tuple[Report, ArtifactPlanner]:
    """The facts, and what made them.

    Args:
        artifact: Verified.
        name: Of the artifact, as the user gave it.
        profiles: Devices.
        batch_size: Rows of a batch; None for what the artifact proposes.
        measure: Measure what fits on this machine, with progress on stderr.
    """
    batch = batch_size or artifact.manifest.training.batch_size
    planner = ArtifactPlanner(artifact, batch)
    devices = [device_of(profile) for profile in profiles]
    report = build_report(name, artifact.manifest, artifact.manifest_sha256, devices, planner, batch)
    if not measure:
        return report, planner
    with ProgressLine("measure", 1) as progress:

        def tell(number: int, count: int, row: MethodRow) -> None:
            progress.total = count
            progress.show(number, f"{row.method} at micro-batch {row.micro_batch}, three fresh processes")

        return measured_report(report, planner, tell), planner


def check_report_file(path: Path) -> None:
    """Refuse a file that cannot be written, and one that is there and is not a report.

    Raises:
        RunError: With the reason.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RunError(f"cannot write `{path}`: there is no folder `{folder}`", hint="make the folder first")
    if path.is_dir():
        raise RunError(f"cannot write `{path}`: it is a folder", hint="name a file, for example `--html report.html`")
    if not os.access(folder, os.W_OK):
        raise RunError(f"cannot write `{path}`: permission denied", hint="choose another folder or change its rights")
    if path.exists() and not _begins(path).startswith(DOCTYPE):
        raise RunError(f"`{path}` exists and is not an HTML file", hint="give `--html` another name")


def _begins(path: Path) -> bytes:
    with open_plain(path) as stream:
        return stream.read(len(DOCTYPE))


def device_of(profile: DeviceProfile) -> Device:
    """What a report needs of a profile."""
    ram = profile.app_ram or (None if profile.can_train else profile.ram)
    size, estimated = (None, False) if ram is None else (int(ram.value), ram.is_estimate)
    floor = int(profile.floor.value) if profile.floor and profile.can_train else 0
    budget, refusal = 0, profile.refusal
    if not refusal and size is None:
        refusal = "takes what the machine has: run `edgeff devices --detect` there"
    if not refusal:
        try:
            budget = default_budget_bytes(profile, floor)
        except DeviceError as error:
            refusal = str(error)
    tensors_only = not profile.can_train
    return Device(profile.id, profile.name, profile.device_class, size, estimated, floor, budget, refusal, tensors_only)
