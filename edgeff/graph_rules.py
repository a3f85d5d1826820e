"""What the inputs and outputs of a block's graphs must be called, by the kind of graph.

The name of a graph input is its role, so a wrong name would bind a wrong buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeff.errors import ArtifactError
from edgeff.json_node import HINT
from edgeff.manifest import BlockSpec, GraphKind, GraphSpec, OptimizerSpec
from edgeff.optimizer import rates

INPUT_ROLES: Mapping[GraphKind, tuple[str, ...]] = {
    "step": ("x", "y", "row_weight", "seed", "rate", "parameter", "buffer", "state"),
    "accumulate": ("x", "y", "row_weight", "seed", "parameter", "buffer", "gradient"),
    "apply": ("rate", "parameter", "state", "gradient"),
    "forward": ("x", "parameter", "buffer"),
    "fast_accumulate": ("x", "y", "row_weight", "seed", "parameter", "buffer", "gradient"),
}
UPDATED_ROLES: Mapping[GraphKind, tuple[str, ...]] = {
    "step": ("parameter", "state"),
    "accumulate": ("gradient",),
    "apply": ("parameter", "state"),
    "forward": (),
    "fast_accumulate": ("gradient",),
}
RESULTS: Mapping[GraphKind, tuple[str, ...]] = {
    "step": ("loss", "handover", "log_probabilities"),
    "accumulate": ("loss", "handover", "log_probabilities"),
    "apply": (),
    "forward": ("handover", "log_probabilities"),
    "fast_accumulate": ("loss", "handover", "log_probabilities"),
}


def role_names(block: BlockSpec, optimizer: OptimizerSpec) -> dict[str, frozenset[str]]:
    """Every input name that a block's graphs may have, by role."""
    parameters = [spec.name for spec in block.parameters]
    plain = {role: frozenset({role}) for role in ("x", "y", "row_weight", "seed")}
    return {
        **plain,
        "rate": frozenset(f"rate.{name}" for name in rates(optimizer, 1e-3, 1)),
        "parameter": frozenset(f"parameter.{name}" for name in parameters),
        "buffer": frozenset(f"buffer.{spec.name}" for spec in block.buffers),
        "state": frozenset(f"state.{slot}.{name}" for slot in block.slots for name in parameters),
        "gradient": frozenset(f"gradient.{name}" for name in parameters),
    }


def whole_names(block: BlockSpec, optimizer: OptimizerSpec) -> dict[str, frozenset[str]]:
    """Every input name of an `apply` graph, by role: it takes any run of numbers, whichever tensor they are of."""
    return {
        "rate": role_names(block, optimizer)["rate"],
        "parameter": frozenset({"parameter"}),
        "gradient": frozenset({"gradient"}),
        "state": frozenset(f"state.{slot}" for slot in block.slots),
    }


def check_graphs(block: BlockSpec, place: str, optimizer: OptimizerSpec) -> None:
    """Check the input and output names of all graphs of a block.

    Args:
        block: The block.
        place: Where its graphs stand in the manifest, for messages.
        optimizer: Gives the names of the rates.

    Raises:
        ArtifactError: A name is wrong, missing, or given twice.
    """
    by_tensor, whole = role_names(block, optimizer), whole_names(block, optimizer)
    for kind, graph in block.graphs.items():
        _check_inputs(graph, f"{place}.{kind}.inputs", kind, whole if kind == "apply" else by_tensor)
        _check_outputs(graph, f"{place}.{kind}.outputs", kind, block)


def _check_inputs(graph: GraphSpec, place: str, kind: GraphKind, names: Mapping[str, frozenset[str]]) -> None:
    _check_unique(graph.inputs, place)
    for index, name in enumerate(graph.inputs):
        role = name.partition(".")[0]
        if role not in INPUT_ROLES[kind]:
            raise _refuse(f"`{place}[{index}]`: `{name}` is no input of this `{kind}` graph")
        if name not in names[role]:
            raise _refuse(f"`{place}[{index}]`: `{name}` is not a {role} of the block")


def _check_outputs(graph: GraphSpec, place: str, kind: GraphKind, block: BlockSpec) -> None:
    _check_unique(graph.outputs, place)
    needed = [name for name in RESULTS[kind] if name != "handover" or block.handover is not None]
    for name in needed:
        if name not in graph.outputs:
            raise _refuse(f"`{place}` must have `{name}`")
    inputs = frozenset(graph.inputs)
    for index, name in enumerate(graph.outputs):
        if name not in needed:
            _check_update(name, f"{place}[{index}]", kind, inputs)


def _check_update(name: str, place: str, kind: GraphKind, inputs: frozenset[str]) -> None:
    prefix, _, source = name.partition(".")
    if prefix != "new" or source.partition(".")[0] not in UPDATED_ROLES[kind]:
        raise _refuse(f"`{place}`: `{name}` is no output of this `{kind}` graph")
    if source not in inputs:
        raise _refuse(f"`{place}`: `{name}` is the new value of `{source}`, which is not an input of the graph")


def _check_unique(names: Sequence[str], place: str) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise _refuse(f"`{place}[{index}]`: `{name}` is given twice")
        seen.add(name)


def _refuse(message: str) -> ArtifactError:
    return ArtifactError(message, hint=HINT)
