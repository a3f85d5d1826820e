"""What tests of the report share: real plans of a small model, under made-up names of methods."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from edgeff.errors import EngineError
from edgeff.manifest import Manifest
from edgeff.manifest_json import from_json
from edgeff.report import Device, Report, build_report
from edgeff.runtime import plan_blocks, plan_bytes
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.timeline import Timeline, timeline

LOCAL = ("stage", "sweep", "last-block")
ALL = (*LOCAL, "bp", "bp+accumulation", "mezo")
BATCH = 4
# Of the planner, so that what tests expect of a report does not change with what is measured of a process.
CONSTANTS = {"PROCESS_BYTES": 9 << 19, "BLOCK_BYTES": 64 << 10, "SESSION_BYTES": 96 << 10, "NODE_BYTES": 4608}
MIB = 2**20
LARGE = Device("pi-zero-2w", "Raspberry Pi Zero 2 W", "sbc", 250_000_000, True, 60_000_000, 190_000_000)
SMALL = Device("tiny-board", "Tiny <board>", "sbc", 70_000_000, False, 65_000_000, 5_000_000)
MICRO = Device(
    *("stm32h743", "STM32H743", "mcu", 1 << 20, False, 0, 0),
    refusal="onnxruntime does not run on STM32H743; runtimes that can train something there: AIfES",
    tensors_only=True,
)
AS_FOUND = Device("pc", "PC", "pc", None, False, 0, 0, refusal="takes what the machine has")


def golden() -> Manifest:
    return from_json((Path(__file__).parent / "golden" / "manifest-v5.json").read_text())


@dataclass(frozen=True)
class MeasuredPart:
    block: str
    measured_bytes: int


@dataclass(frozen=True)
class MeasuredRun:
    micro_batch: int
    training_bytes: int
    planned_bytes: int
    blocks: tuple[MeasuredPart, ...]
    floor_bytes: int = 70 * MIB
    runtime: str = "onnxruntime 1.32.0"
    rows_per_s: float = 100.0


@dataclass(frozen=True)
class FakePlanner:
    """Real plans; a method is a schedule, a set of blocks, or a micro-batch.

    Attributes:
        manifest: Planned for.
        names: Methods.
        failing: Methods that cannot be measured.
        greedy: Methods that take twice the budget when they are measured.
        measured: Every measurement asked for.
    """

    manifest: Manifest = field(default_factory=golden)
    names: tuple[str, ...] = LOCAL
    failing: tuple[str, ...] = ()
    greedy: tuple[str, ...] = ()
    measured: list[tuple[str, int]] = field(default_factory=list)
    updates: int = 1

    def methods(self) -> dict[str, str]:
        return {name: f"what {name} is" for name in self.names}

    def plan(self, method: str, budget_bytes: int | None) -> Plan:
        prefer = "memory" if budget_bytes is None else "speed"
        request = Request(BATCH, budget_bytes=budget_bytes, rows=self.updates * BATCH, prefer=prefer)
        if method in ("stage", "sweep"):
            request = replace(request, schedule=method)
        elif method == "last-block":
            request = replace(request, schedule="sweep", trained=[self.manifest.blocks[-1].name])
        else:
            request = replace(request, schedule="sweep", micro_batch=BATCH if method == "bp" else 1)
        with pytest.MonkeyPatch.context() as patch:
            for name, size in CONSTANTS.items():
                patch.setattr(plan_bytes, name, size)
                patch.setattr(plan_blocks, name, size, raising=False)
            return plan(self.manifest, request)

    def timeline(self, method: str, plan: Plan) -> Timeline | None:
        return None if method == "mezo" else timeline(self.manifest, plan)

    def measure(self, method: str, budget_bytes: int) -> MeasuredRun:
        self.measured.append((method, budget_bytes))
        if method in self.failing:
            raise EngineError("onnxruntime is not there")
        made = self.plan(method, budget_bytes)
        parts = tuple(MeasuredPart(block.block, block.planned_bytes // 2) for block in made.blocks)
        took = 2 * budget_bytes if method in self.greedy else made.planned_bytes // 2
        return MeasuredRun(made.micro_batch, took, made.planned_bytes, parts)


def report_of(*devices: Device, planner: FakePlanner | None = None) -> Report:
    planner = planner or FakePlanner()
    return build_report("a.zip", planner.manifest, "0" * 64, devices, planner, BATCH)
