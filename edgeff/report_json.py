"""The report for programs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgeff.manifest import Manifest
from edgeff.report import DeviceRows, MethodRow, Report
from edgeff.report_compare import activation_lines, comparison, tensor_bytes, tensors_sentence

if TYPE_CHECKING:
    from edgeff.runtime.plan_parts import BlockPlan, Plan


def report_json(report: Report) -> dict[str, object]:
    """Plain values; sizes in bytes, over the floor but for the floor itself. What is unknown is null."""
    return {
        "artifact": report.artifact,
        "batch_size": report.batch_size,
        "blocks": _model_blocks(report.manifest),
        "methods": list(report.methods),
        "least": [_method(row) for row in report.least],
        "comparison": comparison(report.least),
        "devices": [_device(report, one) for one in report.devices],
    }


def _model_blocks(manifest: Manifest) -> list[dict[str, object]]:
    return [
        {
            "block": block.name,
            "weight_bytes": block.weight_bytes,
            "gradient_bytes": block.parameter_bytes,
            "state_bytes": block.state_bytes,
            "activation_bytes": [
                {"fixed_bytes": line.fixed_bytes, "row_bytes": line.row_bytes} for line in activation_lines(block)
            ],
        }
        for block in manifest.blocks
    ]


def _device(report: Report, one: DeviceRows) -> dict[str, object]:
    device = one.device
    told = tensors_sentence(report.manifest, device) if device.tensors_only else device.refusal
    return {
        "device": device.id,
        "budget_bytes": device.budget_bytes,
        "floor_bytes": device.floor_bytes,
        "ram_bytes": device.ram_bytes,
        "estimated": device.estimated,
        "tensor_bytes": tensor_bytes(report.manifest) if device.tensors_only else None,
        "reason": told,
        "methods": [_method(row) for row in one.rows],
    }


def _method(row: MethodRow) -> dict[str, object]:
    plan, measured = row.plan, row.measured
    return {
        "method": row.method,
        "fits": row.fits,
        "micro_batch": row.micro_batch,
        "planned_bytes": row.planned_bytes,
        "measured_bytes": row.measured_bytes,
        "ratio": None if row.ratio is None else round(row.ratio, 4),
        "over_budget": row.over_budget,
        "reason": row.reason,
        "not_measured": row.not_measured,
        "schedule": plan.schedule if plan else None,
        "features": plan.features if plan and plan.schedule == "stage" else None,
        "groups": _groups(plan) if plan and plan.schedule == "sweep" else None,
        "row_disk_bytes": row.row_disk_bytes,
        "update_seconds": None if row.update_seconds is None else round(row.update_seconds, 6),
        "phase": plan.largest_phase.name if plan else None,
        "resident": dataclasses.asdict(plan.largest_phase.resident) if plan else {},
        "measured": None
        if measured is None
        else {
            "runtime": measured.runtime,
            "micro_batch": measured.micro_batch,
            "floor_bytes": measured.floor_bytes,
            "training_bytes": measured.training_bytes,
            "total_bytes": measured.floor_bytes + measured.training_bytes,
            "planned_bytes": measured.planned_bytes,
            "rows_per_s": measured.rows_per_s,
        },
        "blocks": [_block(block, size) for block, size in row.blocks],
    }


def _groups(plan: Plan) -> list[list[str]]:
    """Names of the blocks that learn together, of each group."""
    return [[plan.blocks[block].block for block in group] for group in plan.spans]


def _block(block: BlockPlan, measured_bytes: int | None) -> dict[str, object]:
    return {
        "block": block.block,
        "trained": block.trained,
        "micro_batch": block.micro_batch,
        "graphs": list(block.graphs),
        "planned_bytes": block.planned_bytes,
        "measured_bytes": measured_bytes,
        "budget_bytes": block.budget_bytes,
        "weight_bytes": block.weight_bytes,
        "gradient_bytes": block.gradient_bytes,
        "state_bytes": block.state_bytes,
        "activation_bytes": block.transient_bytes,
        "graph_bytes": block.session_bytes,
    }
