"""What a report says of its rows: who takes fewest bytes, who is fastest, what tensors alone take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeff.manifest import BlockSpec, Line, Manifest
from edgeff.report import Device, MethodRow
from edgeff.units import format_bytes

# Methods whose every block learns, without back-propagation through the network.
LOCAL = ("stage", "sweep")


def is_backprop(method: str) -> bool:
    """Whether a method is back-propagation through the whole network."""
    return method == "bp" or method.startswith("bp+")


def comparison(rows: Sequence[MethodRow]) -> str:
    """Who takes fewer bytes, the best local method or the best back-propagation; empty without one of them.

    Whichever wins is named first.
    """
    planned = [(row.planned_bytes, row.method) for row in rows if row.planned_bytes is not None]
    local = min((one for one in planned if one[1] in LOCAL), default=None)
    other = min((one for one in planned if is_backprop(one[1])), default=None)
    if local is None or other is None:
        return ""
    first, second = sorted((local, other))
    words = [f"{method} ({format_bytes(size)})" for size, method in (first, second)]
    if first[0] == second[0]:
        return f"fewest bytes: {words[0]} and {words[1]} alike"
    kinds = ("local learning", "back-propagation") if first == local else ("back-propagation", "local learning")
    return f"fewest bytes: {kinds[0]}, {words[0]}, {first[0] / second[0]:.2f} of the best {kinds[1]}, {words[1]}"


def fastest(rows: Sequence[MethodRow]) -> frozenset[str]:
    """Of the methods that fit and train all blocks, those with the least time for an update, by the cost model."""
    return _least({row.method: row.update_seconds for row in _comparable(rows) if row.update_seconds is not None})


def fewest_bytes(rows: Sequence[MethodRow]) -> frozenset[str]:
    """Of the methods that fit and train all blocks, those with the fewest planned bytes."""
    return _least({row.method: float(row.plan.planned_bytes) for row in _comparable(rows) if row.plan})


def _comparable(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """That fit, planned and measured, and whose every block learns by a gradient."""
    return [row for row in rows if row.holds and (row.method in LOCAL or is_backprop(row.method))]


def _least(found: Mapping[str, float]) -> frozenset[str]:
    """All that are as small as the smallest."""
    return frozenset(method for method, value in found.items() if value == min(found.values()))


def replay_note(manifest: Manifest) -> str:
    """What replay rows take beside all that is planned here; empty where none are used by default."""
    if manifest.replay is None or not manifest.training.replay_fraction:
        return ""
    size = manifest.replay.rows * manifest.input.nbytes
    return f"a run keeps its {manifest.replay.rows} replay rows in memory too: {format_bytes(size)} on top"


def tensor_bytes(manifest: Manifest, rows: int = 1) -> int:
    """Bytes of tensors alone at a micro-batch: all weights and state, one block's gradients and activations.

    What a device without onnxruntime would have to hold at the least, whatever runtime it used.
    """
    held = sum(block.weight_bytes + block.state_bytes for block in manifest.blocks)
    return held + max(block.parameter_bytes + block.graphs["step"].transient_bytes(rows) for block in manifest.blocks)


def tensors_fit(manifest: Manifest, device: Device) -> bool:
    """Whether a device's memory could hold the tensors; False where it is unknown."""
    return device.ram_bytes is not None and tensor_bytes(manifest) <= device.ram_bytes


def tensors_sentence(manifest: Manifest, device: Device) -> str:
    """Tensor bytes against the memory of a device without onnxruntime; nothing is promised."""
    needed = tensor_bytes(manifest)
    fits = "would fit" if tensors_fit(manifest, device) else "would not fit"
    return f"tensors alone ({format_bytes(needed)} at micro-batch 1) {fits}; {device.refusal}"


def activation_lines(block: BlockSpec) -> tuple[Line, ...]:
    """Bytes alive inside a `step` or `accumulate` run, whichever holds more; the largest line counts."""
    return max(block.graphs["step"].transient, block.graphs["accumulate"].transient, key=lambda ls: _at(ls, 1))


def _at(lines: Sequence[Line], rows: int) -> int:
    return max((line.at(rows) for line in lines), default=0)
