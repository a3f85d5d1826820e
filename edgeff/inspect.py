"""An artifact as a person reads it: what goes in, what learns, what it costs in bytes, what was checked.

Pure: text and plain values are made from the manifest alone. Every number of bytes here is planned, none measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from edgeff.artifact import Artifact
from edgeff.manifest import FORMAT_VERSION, BlockSpec, GraphSpec, Manifest, Moment, TensorSpec
from edgeff.units import format_bytes

_LISTED_CLASSES = 12


def inspect_text(artifact: Artifact) -> str:
    """A report on an artifact for people, without a newline at the end.

    Gradients, optimiser state and transients are what training takes. A transient `a + b x micro-batch` is alive inside
    one run of a graph, beyond its inputs and outputs.
    """
    manifest = artifact.manifest
    sections = (
        _facts(_heading(artifact)),
        _table(_BLOCK_COLUMNS, [_block_row(block) for block in manifest.blocks], numbers=(2, 3, 4, 5)),
        _table(_GRAPH_COLUMNS, [row for block in manifest.blocks for row in _graph_rows(block)], numbers=(2,)),
        _table(
            _FILE_COLUMNS,
            [(file, format_bytes(spec.bytes)) for file, spec in sorted(manifest.files.items())],
            numbers=(1,),
        ),
    )
    return "\n\n".join(sections)


def inspect_json(artifact: Artifact) -> dict[str, object]:
    """The same facts as plain JSON values; sizes in bytes."""
    manifest = artifact.manifest
    return {
        "path": str(artifact.path),
        "format_version": FORMAT_VERSION,
        "manifest_sha256": artifact.manifest_sha256,
        "edgeff_version": manifest.edgeff_version,
        "name": manifest.name,
        "input": _plain(manifest.input),
        "preprocessing": [dict(step) for step in manifest.preprocessing],
        "features": _plain(manifest.features),
        "classes": list(manifest.classes),
        "fusion": list(manifest.fusion),
        "optimizer": _plain(manifest.optimizer),
        "training": _plain(manifest.training),
        "replay_rows": manifest.replay.rows if manifest.replay else 0,
        "blocks": [_block_json(block) for block in manifest.blocks],
        "checks": _plain(manifest.checks),
        "engines": list(artifact.engines),
        "files": {file: spec.bytes for file, spec in sorted(manifest.files.items())},
        "metadata": dict(manifest.metadata),
    }


def _plain(spec: object) -> dict[str, object]:
    fields: dict[str, object] = dataclasses.asdict(spec)  # type: ignore[call-overload]  # callers pass dataclasses
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _block_json(block: BlockSpec) -> dict[str, object]:
    return {
        "name": block.name,
        "input": _plain(block.input),
        "handover": _plain(block.handover) if block.handover else None,
        "parameters": _parameter_count(block),
        "weight_bytes": block.weight_bytes,
        "gradient_bytes": block.parameter_bytes,
        "state_bytes": block.state_bytes,
        "objective": dict(block.objective),
        "graphs": {
            kind: {
                "file": graph.file,
                "nodes": graph.nodes,
                "transient": [_moment(moment) for moment in graph.transient],
            }
            for kind, graph in block.graphs.items()
        },
    }


def _heading(artifact: Artifact) -> list[tuple[str, str]]:
    manifest = artifact.manifest
    training = manifest.training
    return [
        ("artifact", str(artifact.path)),
        ("name", manifest.name),
        ("written by", f"edgeff {manifest.edgeff_version}, artifact format {FORMAT_VERSION}"),
        ("manifest", f"sha256 {artifact.manifest_sha256}"),
        ("input", f"one row is {_tensor(manifest.input)}"),
        ("preprocessing", _steps(manifest)),
        ("features", f"one row is {_tensor(manifest.features)}"),
        ("classes", _classes(manifest.classes)),
        ("fusion", ", ".join(f"{b.name} {w:g}" for b, w in zip(manifest.blocks, manifest.fusion, strict=True))),
        ("optimizer", f"{manifest.optimizer.kind}{_settings(manifest.optimizer.settings)}"),
        (
            "training",
            f"batch {training.batch_size}, epochs {training.epochs}, learning rate {training.learning_rate:g}, "
            f"replay {training.replay_fraction:.0%}, guard {training.guard_fraction:.0%}",
        ),
        ("replay", f"{manifest.replay.rows} rows travel along" if manifest.replay else "no rows travel along"),
        ("checked", _checks(manifest)),
        ("engines", ", ".join(artifact.engines)),
        *((f"metadata {key}", value) for key, value in sorted(manifest.metadata.items())),
    ]


def _tensor(spec: TensorSpec | None) -> str:
    if spec is None:
        return "-"
    return f"{spec.dtype} {' x '.join(str(size) for size in spec.shape) or 'scalar'}"


def _steps(manifest: Manifest) -> str:
    """`scale (by 0.0039); normalise (mean ...)`: the kind of each step and its settings."""
    return "; then ".join(_step(step) for step in manifest.preprocessing) or "none"


def _step(step: Mapping[str, object]) -> str:
    kind = step.get("kind", "step")
    return f"{kind}{_settings({key: value for key, value in step.items() if key != 'kind'})}"


def _settings(settings: Mapping[str, object]) -> str:
    words = ", ".join(f"{key} {_value(value)}" for key, value in settings.items())
    return f" ({words})" if words else ""


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _classes(classes: Sequence[str]) -> str:
    names = ", ".join(classes[:_LISTED_CLASSES])
    more = len(classes) - _LISTED_CLASSES
    return f"{len(classes)}: {names}" + (f" and {more} more" if more > 0 else "")


def _checks(manifest: Manifest) -> str:
    checks = manifest.checks
    sizes = ", ".join(str(rows) for rows in checks.micro_batches)
    worst = max(checks.largest_error, key=lambda name: checks.largest_error[name])
    return (
        f"against torch autograd at micro-batches {sizes}: "
        f"largest error {checks.largest_error[worst]:.1e} (`{worst}`), tolerance {checks.tolerance:.1e}"
    )


_BLOCK_COLUMNS = ("block", "in -> out", "parameters", "weights", "gradients", "optimizer state")
_GRAPH_COLUMNS = ("block", "graph", "nodes", "transient bytes")
_FILE_COLUMNS = ("file", "size")


def _parameter_count(block: BlockSpec) -> int:
    return sum(math.prod(spec.shape) for spec in block.parameters)


def _block_row(block: BlockSpec) -> tuple[str, ...]:
    return (
        block.name,
        f"{_tensor(block.input)} -> {_tensor(block.handover)}",
        f"{_parameter_count(block):,}",
        format_bytes(block.weight_bytes),
        format_bytes(block.parameter_bytes),
        format_bytes(block.state_bytes),
    )


def _graph_rows(block: BlockSpec) -> list[tuple[str, ...]]:
    return [(block.name, kind, f"{graph.nodes}", _transient(graph)) for kind, graph in block.graphs.items()]


def _moment(moment: Moment) -> dict[str, object]:
    tensors = [dataclasses.asdict(tensor) for tensor in moment.tensors]
    return {"fixed_bytes": moment.fixed_bytes, "row_bytes": moment.row_bytes, "tensors": tensors}


def _transient(graph: GraphSpec) -> str:
    """`a + b x micro-batch`; where the planner's envelope has several lines, the largest of them counts."""
    lines = [
        f"{format_bytes(line.fixed_bytes)} + {format_bytes(line.row_bytes)} x micro-batch" for line in graph.transient
    ]
    if len(lines) > 1:
        return f"largest of {'; '.join(lines)}"
    return lines[0] if lines else "none"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = list(facts)
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, numbers: tuple[int, ...]) -> str:
    """Aligned columns: those of numbers, given by index, to the right."""
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (columns, *rows)
    )
