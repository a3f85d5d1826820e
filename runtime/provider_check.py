"""Whether a provider computes what the CPU computes, looked at before anything is trained on it.

Kernels of accelerators are younger than the CPU's: one that is wrong would spoil weights without a word. Every graph
of a run is run once on both, on the network's own weights and a few random rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgeff.artifact import Artifact
from edgeff.errors import EngineError
from edgeff.manifest import BlockSpec, GraphKind
from edgeff.optimizer import rates
from edgeff.providers import CPU, TARGETS
from edgeff.runtime.arrays import Array
from edgeff.runtime.engine import Engine, OnnxRuntime
from edgeff.runtime.memory import BlockMemory, allocate_memory
from edgeff.runtime.plan_parts import Plan

# Of the largest number of a tensor. Half precision, which some providers use unasked, is within; a wrong kernel is not.
TOLERANCE = 2e-2
_OF_ROLE = 1e-2
_ROWS, _NUMBERS, _LEARNING_RATE, _STEP = 4, 64, 1e-3, 5


def check_provider(artifact: Artifact, engine: Engine, plan: Plan) -> None:
    """Compare an engine's provider with the CPU on every graph that a plan needs; on the CPU there is nothing to do.

    Raises:
        EngineError: They differ; names graph and tensor.
    """
    if engine.provider.name == CPU:
        return
    plain = OnnxRuntime(engine.threads)
    draw = np.random.default_rng(0)
    seen: set[str] = set()
    for block, part in zip(artifact.manifest.blocks, plan.blocks, strict=True):
        memory = allocate_memory(block, trained=part.trained, accumulate=True)
        artifact.fill(memory.weights())
        kinds: tuple[GraphKind, ...] = (*part.graphs, "forward")
        for kind in kinds:
            spec = block.graphs[kind]
            if spec.file in seen:
                continue
            seen.add(spec.file)
            model = artifact.read(spec.file)
            given = _inputs(artifact, block, memory, kind, draw)
            expected = _run(plain, model, spec.file, given)
            for name, difference in _differences(_run(engine, model, spec.file, given), expected):
                if not difference <= TOLERANCE:
                    raise _wrong(engine, spec.file, name, difference)


def _inputs(
    artifact: Artifact, block: BlockSpec, memory: BlockMemory, kind: GraphKind, draw: np.random.Generator
) -> dict[str, Array]:
    """Arrays for every input and result that a graph of that kind may have."""
    manifest = artifact.manifest
    scalars = rates(manifest.optimizer, _LEARNING_RATE, _STEP)
    found: dict[str, Array] = {f"rate.{name}": np.array(value, np.float32) for name, value in scalars.items()}
    if kind == "apply":
        roles = ("parameter", "gradient", *(f"state.{slot}" for slot in block.slots))
        # State of AdamW is not negative in its second slot; nothing else depends on the sign.
        return found | {role: np.abs(draw.standard_normal(_NUMBERS)).astype(np.float32) for role in roles}
    shape = (_ROWS, *block.input.shape)
    x = draw.integers(0, 2, shape) if block.input.dtype == "int64" else draw.standard_normal(shape)
    found |= {
        "x": x.astype(block.input.dtype),
        "y": draw.integers(0, len(manifest.classes), _ROWS),
        "row_weight": np.full(_ROWS, 1 / _ROWS, np.float32),
        "seed": np.array(1, np.int64),
        "loss": np.zeros((), np.float32),
        "log_probabilities": np.zeros((_ROWS, len(manifest.classes)), np.float32),
        **{name: array.copy() for name, array in memory.arrays.items()},
    }
    # From squares of zero, AdamW's first step is the gradient's sign, which half precision may turn near zero. The
    # other slots stay zero: what they become tells of the gradient alone.
    for name in [name for name in found if name.startswith("state.square.")]:
        found[name][...] = np.abs(draw.standard_normal(found[name].shape))
    if block.handover is not None:
        found["handover"] = np.zeros((_ROWS, *block.handover.shape), block.handover.dtype)
    return found


def _run(engine: Engine, model: bytes, name: str, given: Mapping[str, Array]) -> dict[str, Array]:
    """Every result of a graph, in arrays of its own."""
    arrays = {key: array.copy() for key, array in given.items()}
    memory = engine.memory()
    graph = engine.load(model, name, memory)
    graph.bind(arrays).run()
    found = {port.name: arrays[port.name.removeprefix("new.")] for port in graph.outputs}
    if memory is not None:
        for array in found.values():
            memory.fetch(array)
    return found


def _differences(found: Mapping[str, Array], expected: Mapping[str, Array]) -> Iterator[tuple[str, float]]:
    """Of every result, relative to its largest number, or to a part of the largest of those of its role.

    A gradient that is zero by what the layers are, such as that of a bias before a normalisation, is rounding alone.
    """
    largest = {name: float(np.abs(array).max(initial=0.0)) for name, array in expected.items()}
    of_role: dict[str, float] = {}
    for name, size in largest.items():
        of_role[_role(name)] = max(of_role.get(_role(name), 0.0), size)
    for name, array in expected.items():
        difference = float(np.abs(found[name].astype(np.float64) - array).max(initial=0.0))
        yield name, difference / max(largest[name], _OF_ROLE * of_role[_role(name)], 1e-6)


def _role(name: str) -> str:
    """What a result is, without whose it is."""
    parts = name.removeprefix("new.").split(".")
    return ".".join(parts[: 2 if parts[0] == "state" else 1])


def _wrong(engine: Engine, file: str, name: str, difference: float) -> EngineError:
    provider = engine.provider.name
    again = f"export the model again with `--target {provider}`, or " if provider in TARGETS else ""
    return EngineError(
        f"the provider `{provider}` of {engine.name} computes `{name}` of `{file}` wrongly: "
        f"{difference:.0%} from the CPU's, allowed {TOLERANCE:.0%}",
        hint=f"{again}leave `--provider` out to train on the CPU",
    )
