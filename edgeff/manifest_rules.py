"""What one value of a manifest demands of another: the rules that no single value can break alone.

Every message names the place. `docs/artifact-format.md` numbers the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from edgeff.errors import ArtifactError, DataError
from edgeff.graph_rules import check_graphs
from edgeff.json_node import HINT, Node
from edgeff.manifest import BlockSpec, Manifest, OptimizerSpec, TensorSpec
from edgeff.optimizer import OPTIMIZERS, slots
from edgeff.steps import row_after

MANIFEST_FILE = "manifest.json"


def check_manifest(manifest: Manifest) -> None:
    """Check every rule that concerns more than one value.

    Raises:
        ArtifactError: A rule is broken; the message names the place.
    """
    rules: tuple[Callable[[Manifest], None], ...] = (
        _check_classes,
        _check_fusion,
        _check_optimizer,
        _check_names,
        _check_chain,
        _check_preprocessing,
        _check_blocks,
        _check_files,
        _check_offsets,
        _check_results,
    )
    for rule in rules:
        rule(manifest)


def weight_specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """What the weights file holds: parameters and buffers by their key `<block>.<name>`."""
    return {f"{block.name}.{spec.name}": spec for block in manifest.blocks for spec in block.parameters + block.buffers}


def referenced_files(manifest: Manifest) -> list[tuple[str, str]]:
    """Every `(place in the manifest, file)` that something refers to."""
    graphs = [
        (f"blocks[{index}].graphs.{kind}.file", graph.file)
        for index, block in enumerate(manifest.blocks)
        for kind, graph in block.graphs.items()
    ]
    replay = [("replay.file", manifest.replay.file)] if manifest.replay else []
    return [*graphs, ("weights", manifest.weights), ("inference.file", manifest.inference.file), *replay]


def _refuse(message: str) -> ArtifactError:
    return ArtifactError(message, hint=HINT)


def _check_unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _refuse(f"{what} `{name}` is given twice")
        seen.add(name)


def _check_classes(manifest: Manifest) -> None:
    if len(manifest.classes) < 2:
        raise _refuse(f"`classes` must name at least 2 classes, got {len(manifest.classes)}")
    _check_unique(manifest.classes, "class")


def _check_fusion(manifest: Manifest) -> None:
    if len(manifest.fusion) != len(manifest.blocks):
        raise _refuse(
            f"`fusion` must have one weight for each of {len(manifest.blocks)} blocks, got {len(manifest.fusion)}"
        )
    if manifest.blocks and not any(manifest.fusion):
        raise _refuse("`fusion` must have a weight above 0")


def _check_optimizer(manifest: Manifest) -> None:
    spec = manifest.optimizer
    if spec.kind not in OPTIMIZERS:
        raise _refuse(f"`optimizer.kind` must be one of {_quoted(sorted(OPTIMIZERS))}, got `{spec.kind}`")
    needed = OPTIMIZERS[spec.kind].defaults
    if set(spec.settings) != set(needed):
        raise _refuse(
            f"`optimizer.settings` of `{spec.kind}` must be {_quoted(needed)}, got {_quoted(sorted(spec.settings))}"
        )
    _check_settings(spec)


def _check_settings(spec: OptimizerSpec) -> None:
    for name, value in spec.settings.items():
        if value < 0:
            raise _refuse(f"`optimizer.settings.{name}` must be 0 or more, got {value}")
        # The rates divide by 1 - beta**step.
        if name.startswith("beta") and value >= 1:
            raise _refuse(f"`optimizer.settings.{name}` must be below 1, got {value}")


def _check_names(manifest: Manifest) -> None:
    _check_unique((block.name for block in manifest.blocks), "block")
    keys = [f"{block.name}.{spec.name}" for block in manifest.blocks for spec in block.parameters + block.buffers]
    # Also finds block `a` with tensor `b.c` beside block `a.b` with tensor `c`.
    _check_unique(keys, "tensor")


def _row(spec: TensorSpec | None) -> str:
    return f"{spec.dtype} {list(spec.shape)}" if spec else "none"


def _check_chain(manifest: Manifest) -> None:
    if not manifest.blocks:
        raise _refuse("`blocks` must have at least one block")
    needed: TensorSpec | None = manifest.features
    origin = "`features`"
    for index, block in enumerate(manifest.blocks):
        # The name of a row is for people; shape and dtype are what must fit.
        if _row(block.input) != _row(needed):
            raise _refuse(f"`blocks[{index}].input` must be as {origin}, {_row(needed)}, got {_row(block.input)}")
        needed, origin = block.handover, f"`blocks[{index}].handover`"
    if needed is not None:
        raise _refuse(f"{origin} must be `null`: the last block hands nothing over")


def _check_preprocessing(manifest: Manifest) -> None:
    try:
        shape, dtype = row_after(manifest.input, manifest.preprocessing)
    except DataError as error:
        raise _refuse(f"`preprocessing`: {error}") from error
    got = TensorSpec(manifest.features.name, shape, dtype)
    if _row(got) != _row(manifest.features):
        raise _refuse(f"`preprocessing` must lead to `features`, {_row(manifest.features)}, got {_row(got)}")


def _check_blocks(manifest: Manifest) -> None:
    for index, block in enumerate(manifest.blocks):
        _check_block(block, f"blocks[{index}]", manifest)
        check_graphs(block, f"blocks[{index}].graphs", manifest.optimizer)
    together = sorted({block.rows_together for block in manifest.blocks} - {1})
    if len(together) > 1:
        raise _refuse(f"`rows_together` must be the same in all blocks that compare rows, got {together}")


def _check_block(block: BlockSpec, place: str, manifest: Manifest) -> None:
    for index, spec in enumerate(block.parameters):
        if not spec.dtype.startswith("float"):
            raise _refuse(f"`{place}.parameters[{index}].dtype` must be a floating-point type, got `{spec.dtype}`")
    if block.handover_in_place and (block.handover is None or block.handover.nbytes > block.input.nbytes):
        raise _refuse(
            f"`{place}.handover_in_place` must be false: {_row(block.handover)} does not fit over {_row(block.input)}"
        )
    needed = slots(manifest.optimizer)
    if block.slots != needed:
        raise _refuse(
            f"`{place}.slots` must be those of `{manifest.optimizer.kind}`, {_quoted(needed)}, "
            f"got {_quoted(block.slots)}"
        )


def _check_files(manifest: Manifest) -> None:
    for file in manifest.files:
        Node(file, f"files[{file!a:.70}]", MANIFEST_FILE).file()
        if file.lower() == MANIFEST_FILE:
            raise _refuse(f"`files` must not list `{file}`: it cannot hold its own hash")
    for place, file in referenced_files(manifest):
        if file not in manifest.files:
            raise _refuse(f"`{place}` names `{file}`, which `files` does not list")
    _check_paths_fit_any_file_system(sorted(manifest.files))


def _check_paths_fit_any_file_system(files: Sequence[str]) -> None:
    lower = {file.lower(): file for file in files}
    for file in files:
        if lower[file.lower()] != file:
            raise _refuse(f"`files` lists `{file}` and `{lower[file.lower()]}`, which differ only in case")
        parts = file.lower().split("/")
        for end in range(1, len(parts)):
            folder = "/".join(parts[:end])
            if folder in lower:
                raise _refuse(f"`files` lists `{lower[folder]}` both as a file and as a folder of `{file}`")


def _check_offsets(manifest: Manifest) -> None:
    weights = weight_specs(manifest)
    size = manifest.files[manifest.inference.file].bytes
    end_before, before = 0, ""
    for name, offset in sorted(manifest.inference.offsets.items(), key=lambda item: item[1]):
        if name not in weights:
            raise _refuse(f"`inference.offsets` names `{name}`, which no block has")
        end = offset + weights[name].nbytes
        if end > size:
            raise _refuse(f"`inference.offsets` puts `{name}` up to byte {end} of a file of {size} bytes")
        if offset < end_before:
            raise _refuse(f"`inference.offsets` puts `{name}` over `{before}`")
        end_before, before = end, name


def _check_results(manifest: Manifest) -> None:
    checks = manifest.checks
    if not checks.micro_batches:
        raise _refuse("`checks.micro_batches` must name at least one size")
    names = {block.name for block in manifest.blocks}
    if set(checks.largest_error) != names:
        raise _refuse(
            f"`checks.largest_error` must have exactly the blocks {_quoted(sorted(names))}, "
            f"got {_quoted(sorted(checks.largest_error))}"
        )
    for name, error in checks.largest_error.items():
        if error > checks.tolerance:
            raise _refuse(f"`checks.largest_error` of `{name}` is {error}, above the tolerance {checks.tolerance}")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
