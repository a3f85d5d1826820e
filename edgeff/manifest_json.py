"""The manifest as JSON: the same manifest gives the same bytes, and nothing that breaks a rule is read.

`docs/artifact-format.md` has the rules. This module checks each value by itself; `edgeff.manifest_rules` checks what
one value demands of another.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from edgeff import __version__
from edgeff.errors import ArtifactError
from edgeff.json_node import HINT, Node, parse_json
from edgeff.manifest import (
    FORMAT,
    FORMAT_VERSION,
    GRAPH_KINDS,
    ITEM_BYTES,
    OPTIONAL_GRAPH_KINDS,
    BlockSpec,
    CheckResults,
    FileSpec,
    GraphSpec,
    HeldTensor,
    InferenceSpec,
    Line,
    Manifest,
    Moment,
    OptimizerSpec,
    ReplaySpec,
    TensorSpec,
    TrainingDefaults,
    Work,
)
from edgeff.manifest_rules import check_manifest

# A manifest of a hundred blocks has some hundred KiB; a device should not be made to parse more than this.
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_RANK = 8
# No tensor that a device trains comes near; it keeps byte counts inside 64 bits whatever is summed.
MAX_ELEMENTS = 2**31

_LINE_CHARACTERS = 110

Value = TypeVar("Value")


def to_json(manifest: Manifest) -> str:
    """The JSON text of a manifest; the same manifest always gives the same text.

    Keys of dataclasses stand in the order of their fields, keys of mappings in alphabetical order. The rules of the
    format are for `from_json` to check.

    Raises:
        ArtifactError: A number is not finite, or a text has no UTF-8 form.
    """
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **_plain_fields(_with_floats(manifest))}
    try:
        text = _layout(document, "") + "\n"
        text.encode()
    except ValueError as error:
        raise ArtifactError(f"the manifest cannot be written as JSON: {error}") from error
    return text


def from_json(text: str) -> Manifest:
    """Read and check a manifest.

    Raises:
        ArtifactError: The text breaks a rule of the format; the message names the place.
    """
    if len(text) > MAX_MANIFEST_BYTES or len(text.encode(errors="surrogatepass")) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"the manifest is larger than {MAX_MANIFEST_BYTES} bytes", hint=HINT)
    root = parse_json(text, "manifest.json")
    _check_version(root.mapping())
    keys = [field.name for field in dataclasses.fields(Manifest)]
    manifest = _manifest(root.fields("format", "format_version", *keys))
    check_manifest(manifest)
    return manifest


def _with_floats(manifest: Manifest) -> Manifest:
    """The same manifest with a float wherever the vocabulary says float, so that `1` and `1.0` give the same text."""
    training, checks = manifest.training, manifest.checks
    return dataclasses.replace(
        manifest,
        fusion=tuple(float(weight) for weight in manifest.fusion),
        optimizer=OptimizerSpec(manifest.optimizer.kind, _float_values(manifest.optimizer.settings)),
        training=dataclasses.replace(
            training,
            learning_rate=float(training.learning_rate),
            replay_fraction=float(training.replay_fraction),
            guard_fraction=float(training.guard_fraction),
        ),
        checks=CheckResults(
            checks.micro_batches, _float_values(checks.largest_error), tolerance=float(checks.tolerance)
        ),
    )


def _float_values(mapping: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in mapping.items()}


def _plain_fields(value: object) -> dict[str, object]:
    fields = dataclasses.fields(value)  # type: ignore[arg-type]  # callers pass dataclasses
    return {field.name: _plain(getattr(value, field.name)) for field in fields}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _layout(value: object, indent: str, key: str = "") -> str:
    """JSON text with everything that fits on one line: a tensor or a short list reads better so."""
    line = key + json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(indent) + len(line) <= _LINE_CHARACTERS or not isinstance(value, dict | list) or not value:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        keys = [f"{json.dumps(key, ensure_ascii=False)}: " for key in value]
        parts = [_layout(item, inner, key) for key, item in zip(keys, value.values(), strict=True)]
        opening, closing = "{", "}"
    else:
        parts = [_layout(item, inner) for item in value]
        opening, closing = "[", "]"
    return f"{key}{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{closing}"


def _check_version(fields: Mapping[str, Node]) -> None:
    """Refuse another format or version before its keys are looked at: they may differ."""
    if "format" not in fields or fields["format"].value != FORMAT:
        raise ArtifactError(f"`format` must be `{FORMAT}`", hint="this is not the manifest of an edgeff artifact")
    if "format_version" not in fields:
        raise ArtifactError("missing key `format_version`", hint=HINT)
    version = fields["format_version"].integer(minimum=1)
    if version != FORMAT_VERSION:
        writer = fields["edgeff_version"].text() if "edgeff_version" in fields else "of unknown version"
        raise ArtifactError(
            f"artifact format {version} was written by edgeff {writer}, "
            f"this edgeff {__version__} reads format {FORMAT_VERSION}",
            hint="upgrade edgeff here (`pip install --upgrade edgeff`), or export the model again with this version",
        )


def _manifest(fields: Mapping[str, Node]) -> Manifest:
    replay = fields["replay"].optional()
    return Manifest(
        edgeff_version=fields["edgeff_version"].text(),
        name=fields["name"].name(),
        input=_tensor(fields["input"]),
        preprocessing=_tuple(fields["preprocessing"], _free_object),
        features=_tensor(fields["features"]),
        classes=_tuple(fields["classes"], _class_name),
        fusion=_tuple(fields["fusion"], _not_negative),
        optimizer=_optimizer(fields["optimizer"]),
        training=_training(fields["training"]),
        blocks=_tuple(fields["blocks"], _block),
        weights=fields["weights"].file(),
        inference=_inference(fields["inference"]),
        replay=_replay(replay) if replay else None,
        checks=_checks(fields["checks"]),
        files={key: _file(node) for key, node in fields["files"].mapping().items()},
        metadata={key: node.text() for key, node in fields["metadata"].mapping().items()},
    )


def _tuple(node: Node, read: Callable[[Node], Value]) -> tuple[Value, ...]:
    return tuple(read(element) for element in node.elements())


def _free_object(node: Node) -> Mapping[str, object]:
    node.mapping()  # names the place when it is no object
    value = node.free()
    assert isinstance(value, dict)
    return value


def _class_name(node: Node) -> str:
    if not node.text():
        raise node.error("a string that is not empty")
    return node.text()


def _not_negative(node: Node) -> float:
    return node.number("a number, 0 or more", lambda value: value >= 0)


def _fraction(node: Node) -> float:
    return node.number("a number from 0 to below 1", lambda value: 0 <= value < 1)


def _positive(node: Node) -> float:
    return node.number("a number above 0", lambda value: value > 0)


def _tensor(node: Node) -> TensorSpec:
    fields = node.fields("name", "shape", "dtype")
    shape = _tuple(fields["shape"], lambda size: size.integer(minimum=1))
    # Of many axes the product is not even asked for: it takes forever, and has more digits than Python writes.
    elements = math.prod(shape) if len(shape) <= 4 * MAX_RANK else math.inf
    if len(shape) > MAX_RANK or elements > MAX_ELEMENTS:
        raise ArtifactError(
            f"{fields['shape'].place} must have at most {MAX_RANK} axes and {MAX_ELEMENTS} elements, "
            f"got {len(shape)} and {elements}",
            hint=HINT,
        )
    return TensorSpec(fields["name"].name(), shape, fields["dtype"].choice(ITEM_BYTES))


def _optimizer(node: Node) -> OptimizerSpec:
    fields = node.fields("kind", "settings")
    settings = {key: setting.number() for key, setting in fields["settings"].mapping().items()}
    return OptimizerSpec(fields["kind"].text(), settings)


def _training(node: Node) -> TrainingDefaults:
    fields = node.fields(*(field.name for field in dataclasses.fields(TrainingDefaults)))
    return TrainingDefaults(
        batch_size=fields["batch_size"].integer(minimum=1),
        epochs=fields["epochs"].integer(minimum=1),
        learning_rate=_positive(fields["learning_rate"]),
        replay_fraction=_fraction(fields["replay_fraction"]),
        guard_fraction=_fraction(fields["guard_fraction"]),
    )


def _block(node: Node) -> BlockSpec:
    fields = node.fields(*(field.name for field in dataclasses.fields(BlockSpec)))
    handover = fields["handover"].optional()
    optional = [kind for kind in OPTIONAL_GRAPH_KINDS if kind in fields["graphs"].mapping()]
    graphs = fields["graphs"].fields(*GRAPH_KINDS, *optional)
    return BlockSpec(
        name=fields["name"].name(),
        input=fields["input"].once(_tensor),
        handover=handover.once(_tensor) if handover else None,
        parameters=fields["parameters"].once(_tensors),
        buffers=fields["buffers"].once(_tensors),
        slots=fields["slots"].once(_names),
        graphs={kind: graphs[kind].once(_graph) for kind in (*GRAPH_KINDS, *optional)},
        objective=fields["objective"].once(_free_object),
        rows_together=fields["rows_together"].integer(minimum=1),
        handover_in_place=fields["handover_in_place"].boolean(),
    )


def _tensors(node: Node) -> tuple[TensorSpec, ...]:
    return _tuple(node, _tensor)


def _names(node: Node) -> tuple[str, ...]:
    return _tuple(node, Node.name)


def _graph(node: Node) -> GraphSpec:
    fields = node.fields("file", "inputs", "outputs", "nodes", "transient", "arena", "work", "traffic")
    return GraphSpec(
        file=fields["file"].file(),
        inputs=_tuple(fields["inputs"], Node.text),
        outputs=_tuple(fields["outputs"], Node.text),
        nodes=fields["nodes"].integer(),
        transient=_tuple(fields["transient"], _moment),
        arena=_line(fields["arena"]),
        work=_work(fields["work"]),
        traffic=_line(fields["traffic"]),
    )


def _moment(node: Node) -> Moment:
    fields = node.fields("fixed_bytes", "row_bytes", "tensors")
    tensors = _tuple(fields["tensors"], _held_tensor)
    return Moment(fields["fixed_bytes"].integer(), fields["row_bytes"].integer(), tensors)


def _held_tensor(node: Node) -> HeldTensor:
    fields = node.fields("name", "operator", "fixed_bytes", "row_bytes")
    sizes = (fields["fixed_bytes"].integer(), fields["row_bytes"].integer())
    return HeldTensor(fields["name"].text(), fields["operator"].text(), *sizes)


def _work(node: Node) -> Work:
    fields = node.fields("fixed", "per_row")
    return Work(fields["fixed"].integer(), fields["per_row"].integer())


def _line(node: Node) -> Line:
    fields = node.fields("fixed_bytes", "row_bytes")
    return Line(fields["fixed_bytes"].integer(), fields["row_bytes"].integer())


def _inference(node: Node) -> InferenceSpec:
    fields = node.fields("file", "offsets")
    offsets = {key: offset.integer() for key, offset in fields["offsets"].mapping().items()}
    return InferenceSpec(fields["file"].file(), offsets)


def _replay(node: Node) -> ReplaySpec:
    fields = node.fields("file", "rows")
    return ReplaySpec(fields["file"].file(), fields["rows"].integer(minimum=1))


def _checks(node: Node) -> CheckResults:
    fields = node.fields("micro_batches", "largest_error", "tolerance")
    return CheckResults(
        micro_batches=_tuple(fields["micro_batches"], lambda rows: rows.integer(minimum=1)),
        largest_error={key: _not_negative(error) for key, error in fields["largest_error"].mapping().items()},
        tolerance=_positive(fields["tolerance"]),
    )


def _file(node: Node) -> FileSpec:
    fields = node.fields("bytes", "sha256")
    return FileSpec(fields["bytes"].integer(), fields["sha256"].digest())
