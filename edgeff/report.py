"""What a model needs and which devices it fits: numbers in, text or JSON out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeff.manifest import BlockSpec, Line, Manifest
from edgeff.table import table
from edgeff.units import format_bytes


@dataclass(frozen=True)
class DeviceVerdict:
    """Whether a device can train the model.

    Attributes:
        device: Id of the profile.
        ram_bytes: What one process may use there; an estimate where `estimated`. None when the profile does not say.
        estimated: Whether `ram_bytes` is an estimate.
        floor_bytes: Of the process before the artifact is opened.
        budget_bytes: What is left for training.
        fits: A plan was found.
        micro_batch: Of the plan; None without one.
        planned_bytes: Of the plan, over the floor; without one, the smallest there is.
        reason: Why it does not fit, or why nothing can be trained there; empty when it fits.
    """

    device: str
    ram_bytes: int | None
    estimated: bool
    floor_bytes: int
    budget_bytes: int
    fits: bool
    micro_batch: int | None
    planned_bytes: int | None
    reason: str


def tensor_bytes(manifest: Manifest, rows: int = 1) -> int:
    """Bytes of tensors alone at a micro-batch: all weights and state, one block's gradients and activations.

    What a device without onnxruntime would have to hold at the least, whatever runtime it used.
    """
    held = sum(block.weight_bytes + block.state_bytes for block in manifest.blocks)
    return held + max(block.parameter_bytes + block.graphs["step"].transient_bytes(rows) for block in manifest.blocks)


def block_table(manifest: Manifest) -> str:
    """Per block: bytes of weights, gradients, optimizer state, and of activations as `a + b x micro-batch`."""
    header = ("block", "weights", "gradients", "optimizer state", "activations (N = micro-batch)")
    rows = [
        (
            block.name,
            format_bytes(block.weight_bytes),
            format_bytes(block.parameter_bytes),
            format_bytes(block.state_bytes),
            " | ".join(line_text(line) for line in activation_lines(block)),
        )
        for block in manifest.blocks
    ]
    return table(header, rows)


def activation_lines(block: BlockSpec) -> tuple[Line, ...]:
    """Bytes alive inside a `step` or `accumulate` run, whichever holds more; the largest line counts."""
    return max(block.graphs["step"].transient, block.graphs["accumulate"].transient, key=lambda ls: _at(ls, 1))


def _at(lines: Sequence[Line], rows: int) -> int:
    return max((line.at(rows) for line in lines), default=0)


def line_text(line: Line) -> str:
    """A line in words.

    >>> line_text(Line(2048, 512))
    '2 KiB + 512 B x N'
    """
    return f"{format_bytes(line.fixed_bytes)} + {format_bytes(line.row_bytes)} x N"


def device_table(verdicts: Sequence[DeviceVerdict]) -> str:
    """One line per device; `~` marks an estimate."""
    header = ("device", "app RAM", "floor", "budget", "fits", "micro-batch", "planned", "")
    rows = [
        (
            verdict.device,
            "?"
            if verdict.ram_bytes is None
            else f"{'~' if verdict.estimated else ''}{format_bytes(verdict.ram_bytes)}",
            format_bytes(verdict.floor_bytes) if verdict.floor_bytes else "-",
            format_bytes(verdict.budget_bytes) if verdict.budget_bytes > 0 else "-",
            "yes" if verdict.fits else "no",
            str(verdict.micro_batch or "-"),
            "-" if verdict.planned_bytes is None else format_bytes(verdict.planned_bytes),
            verdict.reason,
        )
        for verdict in verdicts
    ]
    return table(header, rows)


def report_text(manifest: Manifest, verdicts: Sequence[DeviceVerdict]) -> str:
    """The whole report: blocks, then devices."""
    return "\n".join(
        [
            f"{manifest.name}: training bytes per block",
            "",
            block_table(manifest),
            "",
            f"planned at batch {manifest.training.batch_size}, schedule sweep; planned bytes stand over the floor",
            "",
            device_table(verdicts),
        ]
    )


def report_json(artifact: str, manifest: Manifest, verdicts: Sequence[DeviceVerdict]) -> dict[str, object]:
    """The same for programs."""
    blocks = [
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
    devices = [
        {
            "device": verdict.device,
            "budget_bytes": verdict.budget_bytes,
            "floor_bytes": verdict.floor_bytes,
            "methods": [
                {
                    "method": "sweep",
                    "fits": verdict.fits,
                    "micro_batch": verdict.micro_batch,
                    "planned_bytes": verdict.planned_bytes,
                    "reason": verdict.reason,
                }
            ],
        }
        for verdict in verdicts
    ]
    return {"artifact": artifact, "blocks": blocks, "devices": devices}
