"""What the exporter guarantees, measured before anything is written.

Every graph runs on onnxruntime as the device will run it, new values bound over the old ones, and is compared with
torch autograd and the optimiser's formula at two batch sizes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import nn

from edgeff.errors import EngineError, ExportError
from edgeff.export.dropout import seeded_dropout
from edgeff.export.graphs import BlockGraphs
from edgeff.export.inplace import HANDOVER, ROWS_IN, hands_over_in_place, in_place_pairs
from edgeff.export.ir import IR_VERSION, OPSET
from edgeff.export.tracing import gradients_function
from edgeff.manifest import GraphKind, OptimizerSpec
from edgeff.optimizer import moment_factors, optimizer, rates
from edgeff.probe import evaluating, first_line

TOLERANCE = 1e-5  # of float32 sums in another order, relative to the tensor's largest absolute value
MICRO_BATCHES = (3, 8)
_LEARNING_RATE, _STEP = 1e-2, 5
# A value within rounding of a kink (a ReLU at 0, two equal maxima) may fall to either side: then another draw decides.
_DRAWS = 4


# A deep network may carry rounding far. Then an error is allowed that is this many times what torch's own result moves
# by, the most of some moves of its weights as far as a kernel rounds its sums.
_FACTOR, _MOVES, _ROUNDING = 4, 8, 2.0**-20


@dataclass(frozen=True)
class Check:
    """What a comparison with torch found.

    Attributes:
        error: The largest error found, each tensor's relative to its largest absolute value.
        tolerance: What was allowed: `TOLERANCE`, or more where torch's own result moves more than that when its weights
            move by a rounding error.
    """

    error: float
    tolerance: float


@dataclass(frozen=True)
class Trial:
    """One random state of a block and what torch makes of it.

    Attributes:
        feeds: Every graph input by name.
        expected: Every graph output by kind, then name.
    """

    feeds: Mapping[str, np.ndarray]
    expected: Mapping[GraphKind, Mapping[str, np.ndarray]]


def check_block(
    block: nn.Module,
    graphs: BlockGraphs,
    *,
    spec: OptimizerSpec,
    input_dtype: str,
    classes: int,
    seed: int = 0,
    micro_batches: Sequence[int] = MICRO_BATCHES,
) -> Check:
    """Compare a block's graphs with torch.

    Raises:
        ExportError: An operator outside the standard or unknown to onnxruntime, or an error above the tolerance; names
            block, graph and tensor.
        EngineError: No onnxruntime is installed.
    """
    name = str(block.name)
    for kind, model in graphs.models.items():
        check_standard(model, block=name, kind=kind)
    with _named(name):
        runs = {kind: session(model) for kind, model in graphs.models.items()}
    worst = Check(0.0, TOLERANCE)
    for rows in micro_batches:
        found: dict[_Output, float] = {}
        allowed: dict[_Output, float] = {}
        # First draws that need no allowance; where none does without, the same ones with what torch itself moves by.
        for moves, draw in itertools.product((0, _MOVES), range(_DRAWS)):
            drawn = (block, graphs, spec, input_dtype, classes, rows, seed + draw)
            trial = make_trial(*drawn)
            with _named(name):
                found = _errors(block, graphs, runs, trial)
            moved = [make_trial(*drawn, move=1 + number) for number in range(moves)]
            allowed = {key: max(TOLERANCE, _FACTOR * _moved(trial, moved, key)) for key in found}
            if _worst(found, allowed) is None:
                break
        failed = _worst(found, allowed)
        if failed is not None:
            where = f"output `{failed.output}` of graph `{failed.kind}`{failed.how}"
            raise ExportError(
                f"block `{name}`: {where} differs from torch by {found[failed]:.1e}, allowed {allowed[failed]:.0e}",
                hint="a forward or loss that is random or depends on other rows of the batch cannot be exported",
            )
        needed = max((allowed[key] for key in found if found[key] > TOLERANCE), default=TOLERANCE)
        worst = Check(max(worst.error, *found.values()), max(worst.tolerance, needed))
    return worst


class _Output(NamedTuple):
    """An output that was compared, and how its graph was run."""

    kind: GraphKind
    output: str
    how: str = ""


def _worst(errors: Mapping[_Output, float], allowed: Mapping[_Output, float]) -> _Output | None:
    """The output that is the most above what is allowed; None where none is."""
    above = [key for key, error in errors.items() if not error <= allowed[key]]  # also true for NaN
    return max(above, key=lambda key: errors[key] / allowed[key], default=None)


def _moved(trial: Trial, moved: Sequence[Trial], key: _Output) -> float:
    """By how much torch's own result differs between a trial and the moved ones, the most."""
    expected = trial.expected[key.kind][key.output]
    return max((relative_error(other.expected[key.kind][key.output], expected) for other in moved), default=0.0)


def check_standard(model: onnx.ModelProto, *, block: str, kind: str) -> None:
    """Refuse anything but standard operators of the chosen opset.

    Raises:
        ExportError: Names block, graph and operator.
    """
    foreign = [node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")]
    versions = {(entry.domain, entry.version) for entry in model.opset_import}
    if foreign:
        raise ExportError(f"block `{block}`: graph `{kind}` has operator `{foreign[0]}`, which is not standard ONNX")
    if versions != {("", OPSET)} or model.ir_version != IR_VERSION:
        opsets = ", ".join(str(version) for _, version in sorted(versions))
        raise ExportError(
            f"block `{block}`: graph `{kind}` has opset {opsets} and IR version {model.ir_version}, "
            f"needed {OPSET} and {IR_VERSION}"
        )


@contextlib.contextmanager
def _named(block: str) -> Iterator[None]:
    """Say whose graph it was that onnxruntime refused."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # onnxruntime raises a dozen classes that share no base of their own
        raise ExportError(
            f"block `{block}`: onnxruntime does not run it: {first_line(error)}",
            hint="it lacks some operators for other dtypes than float32",
        ) from error


def session(model: onnx.ModelProto | bytes) -> Any:
    """An onnxruntime session on one thread, quiet.

    Raises:
        EngineError: No onnxruntime is installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("no onnxruntime is installed", hint='run `pip install "edgeff[workstation]"`') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses, it raises as well
    options.intra_op_num_threads = 1
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def make_trial(
    block: nn.Module,
    graphs: BlockGraphs,
    spec: OptimizerSpec,
    input_dtype: str,
    classes: int,
    rows: int,
    seed: int,
    *,
    move: int = 0,
) -> Trial:
    """Draw a state and let torch compute what every graph should give; `move`: from weights a rounding error away.

    Moments and gradients are drawn away from zero: from a state of zero, AdamW's first step is the gradient's
    sign, which rounding decides for entries near zero.
    """
    draw = torch.Generator().manual_seed(seed)
    x = _random_rows(block, input_dtype, rows, draw)
    y = torch.randint(0, classes, (rows,), generator=draw)
    row_weight = (torch.rand(rows, generator=draw) + 0.5) / rows
    parameters = {name: t + 0.02 * _like(t, draw) for name, t in graphs.parameters.items()}
    if move:
        other = torch.Generator().manual_seed(move)
        parameters = {name: t * (1 + _ROUNDING * _like(t, other)) for name, t in parameters.items()}
    factors = moment_factors(spec)
    state = {
        name: {slot: (_like(t, draw).square() * 0.1 + 0.01) / factor for slot, factor in factors.items()}
        for name, t in parameters.items()
    }
    sums = {name: _like(t, draw) for name, t in parameters.items()}
    scalars = rates(spec, _LEARNING_RATE, _STEP)
    seed_input = torch.tensor(seed + 11, dtype=torch.int64)
    buffers = dict(graphs.buffers) | {n: b.detach() for n, b in block.named_buffers() if n not in graphs.buffers}
    trained = _reference(block, parameters, buffers, x, y, row_weight, seed_input, graphs)
    gradients = {name: trained[f"gradient.{name}"] for name in parameters}
    drops = "seed" in {value.name for value in graphs.models["step"].graph.input}
    plain = _reference(block, parameters, buffers, x, y, row_weight, None, graphs) if drops else trained
    feeds = {
        **{"x": x, "y": y, "row_weight": row_weight, "seed": seed_input},
        **{f"rate.{name}": torch.tensor(value) for name, value in scalars.items()},
        **{f"parameter.{name}": value for name, value in parameters.items()},
        **{f"buffer.{name}": value for name, value in graphs.buffers.items()},
        **{f"gradient.{name}": value for name, value in sums.items()},
        **{f"state.{slot}.{name}": value for name, slots_ in state.items() for slot, value in slots_.items()},
    }
    feeds |= _flat(feeds)
    accumulated = {**trained, **{f"new.gradient.{n}": sums[n] + g for n, g in gradients.items()}}
    outputs: dict[GraphKind, dict[str, torch.Tensor]] = {
        "step": {**trained, **_updated(spec, parameters, gradients, state, scalars)},
        "accumulate": accumulated,
        "fast_accumulate": accumulated,
        "apply": _flat(_updated(spec, parameters, sums, state, scalars)),
        "forward": plain,
    }
    return Trial(
        feeds={name: _array(value) for name, value in feeds.items()},
        expected={kind: {n: _array(v) for n, v in found.items()} for kind, found in outputs.items()},
    )


def _reference(
    block: nn.Module,
    parameters: Mapping[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    row_weight: torch.Tensor,
    seed: torch.Tensor | None,
    graphs: BlockGraphs,
) -> dict[str, torch.Tensor]:
    seeded = seed is not None and any(value.name == "seed" for value in graphs.models["step"].graph.input)
    dropping = seeded_dropout(block, seed) if seeded and seed is not None else contextlib.nullcontext()
    with evaluating(block), dropping:
        return gradients_function(block)(parameters, buffers, x, y, row_weight)


def _updated(
    spec: OptimizerSpec,
    parameters: Mapping[str, torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    state: Mapping[str, Mapping[str, torch.Tensor]],
    scalars: Mapping[str, float],
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        new, new_state = optimizer(spec).update(parameter, gradients[name], state[name], scalars, spec.settings)
        found[f"new.parameter.{name}"] = new
        found |= {f"new.state.{slot}.{name}": value for slot, value in new_state.items()}
    return found


def _flat(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All tensors of a role behind one another, as `apply` takes and gives them: by name without the parameter's."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.match(r"(?:new\.)?(?:parameter|gradient|state\.[^.]+)(?=\.)", name)
        if match:
            found.setdefault(match[0], []).append(tensor.flatten())
    return {role: torch.cat(parts) for role, parts in found.items()}


def run_in_place(model: onnx.ModelProto, run: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a graph as the device does: `new.X` is bound to the buffer of `X`, a hand-over to that of `x` if it may be.

    Returns:
        All outputs by name, new values in the shape of what was fed.
    """
    from onnxruntime import OrtValue

    arrays = {value.name: np.ascontiguousarray(_as_taken(value, feeds)) for value in model.graph.input}
    values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    if hands_over_in_place([model]):
        values[HANDOVER] = OrtValue.ortvalue_from_numpy(_over_rows(model, arrays[ROWS_IN]))
    renewed = {target: source for source, target in in_place_pairs(model)}
    binding = run.io_binding()
    for name in arrays:
        binding.bind_ortvalue_input(name, values[name])
    outputs = [value.name for value in model.graph.output]
    for name in outputs:
        if name in renewed or name in values:
            binding.bind_ortvalue_output(name, values[renewed.get(name, name)])
        else:
            binding.bind_output(name, "cpu")
    run.run_with_iobinding(binding)
    found = dict(zip(outputs, (value.numpy().copy() for value in binding.get_outputs()), strict=True))
    return found | {name: found[name].reshape(feeds[source].shape) for name, source in renewed.items()}


def _over_rows(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The array of a hand-over, float32, in the bytes of the rows `x` that a graph takes."""
    (spec,) = (value for value in model.graph.output if value.name == HANDOVER)
    shape = (len(x), *(dim.dim_value for dim in spec.type.tensor_type.shape.dim[1:]))
    return x.reshape(-1).view(np.float32)[: math.prod(shape)].reshape(shape)


def _as_taken(value: onnx.ValueInfoProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """A copy of a feed; sums of gradients in the shape that the graph takes them in."""
    copy = feeds[value.name].copy()
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return copy.reshape(dims) if value.name.startswith("gradient.") and dims else copy


def compares_rows(block: nn.Module) -> bool:
    """Whether a block says that what a row teaches depends on the rows beside it."""
    return bool(getattr(block, "compares_rows", False))


def _errors(block: nn.Module, graphs: BlockGraphs, runs: Mapping[GraphKind, Any], trial: Trial) -> dict[_Output, float]:
    """Of every output of every graph, and of a batch in two parts."""
    found = {
        _Output(kind, name): relative_error(value, trial.expected[kind][name])
        for kind, model in graphs.models.items()
        for name, value in run_in_place(model, runs[kind], trial.feeds).items()
    }
    # A mask that a seed gives counts the rows of a run from 0, so that it differs between the parts of a batch; what
    # compares rows does so in learning alone.
    drops = "seed" in {value.name for value in graphs.models["accumulate"].graph.input}
    kind: GraphKind = "forward" if drops or compares_rows(block) else "accumulate"
    parts = _in_two_parts(graphs.models[kind], runs[kind], trial.feeds)
    how = ", run on a batch in two parts,"
    return found | {
        _Output(kind, name, how): relative_error(value, trial.expected[kind][name]) for name, value in parts.items()
    }


def _in_two_parts(model: onnx.ModelProto, run: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the first row and then the others give: the same as the batch, if each row counts by itself."""
    feeds, parts = dict(feeds), []
    for part in (slice(0, 1), slice(1, None)):
        rows = {name: feeds[name][part] for name in ("x", "y", "row_weight")}
        parts.append(run_in_place(model, run, feeds | rows))
        feeds |= {name.removeprefix("new."): value for name, value in parts[-1].items() if name.startswith("new.")}
    first, second = parts
    by_row = {name: np.concatenate([first[name], second[name]]) for name in second if second[name].ndim}
    summed = {"loss": first["loss"] + second["loss"]} if "loss" in second else {}
    return {**by_row, **summed, **{name: value for name, value in second.items() if name.startswith("new.")}}


def relative_error(found: np.ndarray, expected: np.ndarray, *, least: float = 1e-6) -> float:
    """Largest difference over the largest absolute value expected, or `least`; infinite where either is not finite.

    >>> relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.5]))
    0.2
    """
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    difference = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
    return float(difference / max(np.abs(expected).max(initial=0.0), least))


def _random_rows(block: nn.Module, input_dtype: str, rows: int, draw: torch.Generator) -> torch.Tensor:
    shape = (rows, *block.input_shape)  # type: ignore[misc]
    if input_dtype == "int64":
        known = [module.num_embeddings for module in block.modules() if isinstance(module, nn.Embedding)]
        return torch.randint(0, min(known, default=2), shape, generator=draw)
    return torch.randn(shape, generator=draw)


def _like(tensor: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=draw)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
