"""Whether a provider computes what the CPU computes, looked at before anything is trained on it.

Kernels of accelerators are younger than the CPU's: one that is wrong would spoil weights without a word. Every graph
of a run is run once on both, on the network's own weights and a few random rows.

Some round inside to half precision, unasked (CUDA's TF32). What goes forward changes no more than that: every number is
held against the CPU's. A derivative jumps where a rounding decides whether a ReLU is open or which place of a map is
the largest, and a few such jumps change single numbers by any part of them, but their sum of squares little. So where
a number of a gradient is off, its norm decides, and how much may be lost is asked of the CPU itself: its own gradient
from inputs that are rounded as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

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

# Of the largest number of a tensor. Half precision is within; a wrong kernel is not.
TOLERANCE = 2e-2
# Of the norm of a gradient, and how often what rounding does to it comes on top. With roundings as TF32 makes them a
# block's gradient is up to 3.5 % off, by chance, one back through 24 layers 50 % (`benchmarks/roundings.py`). Never is
# so much allowed that zeros, or another gradient as long, would pass.
_NORM_TOLERANCE, _ROUNDINGS, _MOST = 5e-2, 3, 0.9
_MANTISSA_BITS = 10  # of TF32 and float16; float32 has 23
_OF_DERIVATIVES = ("new.gradient.", "new.parameter.", "new.state.")
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
            given = random_inputs(artifact, block, memory, kind, draw)
            jumping = _OF_DERIVATIVES if kind != "apply" else ()
            _check_graph(engine, plain, artifact.read(spec.file), spec.file, given, jumping)


def _check_graph(
    engine: Engine, plain: Engine, model: bytes, file: str, given: Mapping[str, Array], jumping: tuple[str, ...]
) -> None:
    """Compare what two engines make of a graph; results whose names begin with one of `jumping` by norms.

    Raises:
        EngineError: They differ.
    """
    found, expected = (results(one, model, file, given) for one in (engine, plain))
    off = {name: part for name, part in differences(found, expected, largest) if not part <= TOLERANCE}
    for name, part in off.items():
        if not name.startswith(jumping):
            raise _wrong(engine, file, name, part, TOLERANCE)
    if not off:
        return
    rounded = results(plain, model, file, {name: _rounded(array) for name, array in given.items()})
    norms, roundings = (dict(differences(one, expected, norm)) for one in (found, rounded))
    for name in off:
        allowed = min(_NORM_TOLERANCE + _ROUNDINGS * roundings[name], _MOST)
        if not norms[name] <= allowed:
            raise _wrong(engine, file, name, norms[name], allowed)


def random_inputs(
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
    for name in [name for name in found if name.startswith("state.squares.")]:
        found[name][...] = np.abs(draw.standard_normal(found[name].shape))
    if block.handover is not None:
        found["handover"] = np.zeros((_ROWS, *block.handover.shape), block.handover.dtype)
    return found


def results(engine: Engine, model: bytes, name: str, given: Mapping[str, Array]) -> dict[str, Array]:
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


def differences(
    found: Mapping[str, Array], expected: Mapping[str, Array], size: Callable[[Array], float]
) -> Iterator[tuple[str, float]]:
    """Of every result, relative to its size, or to a part of the greatest size of those of its role.

    A gradient that is zero by what the layers are, such as that of a bias before a normalisation, is rounding alone.
    """
    sizes = {name: size(array) for name, array in expected.items()}
    of_role: dict[str, float] = {}
    for name, own in sizes.items():
        of_role[_role(name)] = max(of_role.get(_role(name), 0.0), own)
    for name, array in expected.items():
        difference = size(found[name].astype(np.float64) - array)
        yield name, difference / max(sizes[name], _OF_ROLE * of_role[_role(name)], 1e-6)


def largest(array: Array) -> float:
    """The largest number, whatever its sign."""
    return float(np.abs(array).max(initial=0.0))


def norm(array: Array) -> float:
    """The root of the sum of squares."""
    return float(np.linalg.norm(array.astype(np.float64)))


def _rounded(array: Array) -> Array:
    """Numbers of float32 with as many digits as half precision has, whatever their size; others as they are."""
    if array.dtype != np.float32:
        return array
    spare = 23 - _MANTISSA_BITS
    bits = np.array(array, ndmin=1).view(np.uint32) + np.uint32(1 << (spare - 1))
    return (bits & np.uint32(2**32 - 2**spare)).view(np.float32).reshape(array.shape)


def _role(name: str) -> str:
    """What a result is, without whose it is."""
    parts = name.removeprefix("new.").split(".")
    return ".".join(parts[: 2 if parts[0] == "state" else 1])


def _wrong(engine: Engine, file: str, name: str, difference: float, allowed: float) -> EngineError:
    provider = engine.provider.name
    again = f"export the model again with `--target {provider}`, or " if provider in TARGETS else ""
    return EngineError(
        f"the provider `{provider}` of {engine.name} computes `{name}` of `{file}` wrongly: "
        f"{difference:.0%} from the CPU's, allowed {allowed:.0%}",
        hint=f"{again}leave `--provider` out to train on the CPU",
    )
