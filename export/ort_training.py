"""Training artifacts for onnxruntime-training, one set for each block.

The block's forward and its local objective are one graph whose only trained tensors are the block's own; from it
`onnxruntime.training.artifacts.generate_artifacts` makes training, eval and optimizer model and the checkpoint. What it
gives is brought to the versions that onnxruntime-training 1.19.2 reads whatever onnx is installed, and to what the
artifact's readers allow.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.helper import make_opsetid, make_tensor_value_info, np_dtype_to_tensor_dtype
from torch import nn

from edgeff.engines import CHECKPOINT, EVAL_MODEL, OPTIMIZER_MODEL, TRAINING_FOLDER, TRAINING_MODEL, WHEELS
from edgeff.errors import EngineError, ExportError
from edgeff.export.check import MICRO_BATCHES, Trial, make_trial, relative_error, session
from edgeff.export.compiled import CompiledBlock, graph_spec, serialised
from edgeff.export.differentiable import differentiable
from edgeff.export.graphs import objective_model
from edgeff.export.ir import IR_VERSION, OPSET
from edgeff.manifest import GRAPH_KINDS, BlockSpec, GraphKind, GraphSpec, OptimizerSpec
from edgeff.optimizer import optimizer, rates
from edgeff.temperature import ClarityTemperature

# Its kernels sum in another order than torch; the plain graphs are held to less, but the runtime compares engines to
# ten times this.
TOLERANCE = 1e-4
PLAIN_HINT = "leave `--engine ort-training` out: the plain graphs train it on any onnxruntime"
# A gradient that is zero but for rounding (of a bias before a normalisation, say) is held against this part of the
# block's largest.
_LEAST = 0.05
# The update of entries whose gradient is this much smaller than the tensor's largest, or the block's, is not compared:
# AdamW's first step is the gradient's sign, which rounding decides near zero.
_SURE, _SURE_OF_BLOCK = 1e-2, 1e-4
_LEARNING_RATE = 1e-2
# `adam_mode` of the operator `AdamWOptimizer`: 0 is the formula of `torch.optim.AdamW`.
_TORCH_MODE = 0


@dataclass(frozen=True)
class TrainedBlock:
    """A block's training artifacts.

    Attributes:
        spec: The block with the graphs of its update exchanged.
        files: By path inside the artifact.
        error: The largest found against torch, relative to each tensor's largest absolute value.
    """

    spec: BlockSpec
    files: Mapping[str, bytes]
    error: float


def check_trainable(spec: OptimizerSpec) -> None:
    """Look for what can be known before anything is compiled.

    Raises:
        ExportError: onnxruntime-training does not have the optimiser.
        EngineError: It is not installed.
    """
    _, onnxblock = _training_package()
    _optimizer_block(onnxblock, spec)


def training_artifacts(
    block: nn.Module,
    compiled: CompiledBlock,
    *,
    spec: OptimizerSpec,
    input_dtype: str,
    classes: int,
    last: bool,
    dropout: bool = False,
) -> TrainedBlock:
    """Make a block's training artifacts and compare them with torch.

    Args:
        block: What was compiled.
        compiled: Its plain graphs.
        spec: Optimiser.
        input_dtype: Of the block's input rows.
        classes: How many labels there are.
        last: Nothing follows it.
        dropout: Keep dropout on, drawn from a `seed` input.

    Raises:
        ExportError: A layer has no gradient in onnxruntime-training, an optimiser that it does not have, or a result
            that differs from torch's.
        EngineError: onnxruntime-training is not installed.
    """
    name = str(block.name)
    model = objective_model(block, input_dtype=input_dtype, last=last, dropout=dropout)
    parameters = [f"parameter.{key}" for key in compiled.graphs.parameters]
    model = differentiable(model, parameters, loss="loss", block=name)
    _fix(model, {**compiled.graphs.parameters, **compiled.graphs.buffers})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _generate(model, parameters, spec, folder, block=name)
        training = _brought_down(folder / TRAINING_MODEL)
        _brought_down(folder / EVAL_MODEL)
        _brought_down(folder / OPTIMIZER_MODEL)
        trials = [
            make_trial(block, compiled.graphs, spec, input_dtype, classes, rows, seed=0) for rows in MICRO_BATCHES
        ]
        error = _largest_error(folder, compiled, spec, trials)
        if not error <= TOLERANCE:
            raise ExportError(
                f"block `{name}`: its onnxruntime-training artifacts differ from torch by {error:.1e}, "
                f"allowed {TOLERANCE:.0e}",
                hint=PLAIN_HINT
                if not stops_gradients(block)
                else f"its gradients pass where the rule's stop; {PLAIN_HINT}",
            )
        files = {f"{TRAINING_FOLDER}{name}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    return TrainedBlock(_exchanged(compiled.spec, _described(training, trials), name), files, error)


def _fix(model: onnx.ModelProto, tensors: Mapping[str, torch.Tensor]) -> None:
    """Turn inputs that are a block's tensors into initialisers, and drop those that nothing reads."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    values = {f"{role}.{key}": tensor for role in ("parameter", "buffer") for key, tensor in tensors.items()}
    given = [value for value in graph.input if value.name not in values and value.name in read]
    fixed = [
        numpy_helper.from_array(values[value.name].detach().cpu().contiguous().numpy(), value.name)
        for value in graph.input
        if value.name in values
    ]
    for field, kept in ((graph.input, given), (graph.initializer, [*fixed, *graph.initializer])):
        del field[:]
        field.extend(kept)


def _generate(model: onnx.ModelProto, parameters: list[str], spec: OptimizerSpec, folder: Path, *, block: str) -> None:
    artifacts, onnxblock = _training_package()
    held = [one.name for one in model.graph.initializer if one.name.startswith("buffer.")]
    update = _optimizer_block(onnxblock, spec)
    try:
        with _quiet():
            artifacts.generate_artifacts(
                model,
                requires_grad=parameters,
                frozen_params=held,
                loss=None,  # it is in the graph
                optimizer=update,
                artifact_directory=str(folder),
            )
    except RuntimeError as error:
        unknown = re.search(r"registered for: (\w+)|registered: (\w+)|node of type (\w+)", str(error))
        operator = next((one for one in unknown.groups() if one), "") if unknown else ""
        what = f"no gradient for `{operator}`" if operator else "no gradient graph"
        raise ExportError(f"block `{block}`: onnxruntime-training has {what}", hint=PLAIN_HINT) from error


def _training_package() -> tuple[Any, Any]:
    try:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # what fails is raised
        with _quiet():
            from onnxruntime.training import artifacts, onnxblock
    except ImportError as error:
        raise EngineError(
            f"onnxruntime-training is not installed (it has wheels for {WHEELS})",
            hint=f'run `pip install "edgeff[workstation]"` there, or {PLAIN_HINT}',
        ) from error
    return artifacts, onnxblock


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings, and without what onnxruntime's own code writes of every pass whatever severity is set."""
    kept = os.dup(2)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _optimizer_block(onnxblock: Any, spec: OptimizerSpec) -> Any:
    settings = spec.settings
    if spec.kind == "adamw":
        betas = settings["beta1"], settings["beta2"]
        return onnxblock.optim.AdamW(betas=betas, eps=settings["epsilon"], weight_decay=settings["weight_decay"])
    if any(settings.values()):
        raise ExportError(
            "onnxruntime-training has `sgd` without momentum and without weight decay only",
            hint=f"give `--momentum 0`, or `--optimizer adamw`, or {PLAIN_HINT}",
        )
    return onnxblock.optim.SGD()


def _brought_down(path: Path) -> onnx.ModelProto:
    """Write a model again in the versions that every reader knows.

    A newer onnx gives the optimizer model an IR version of its own time, which onnxruntime 1.19.2 refuses.
    """
    model = onnx.load(path)
    model.ir_version = IR_VERSION
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    del model.opset_import[:]
    model.opset_import.extend([make_opsetid("", OPSET), *(make_opsetid(domain, 1) for domain in sorted(domains))])
    for number, node in enumerate(model.graph.node):
        if node.op_type == "AdamWOptimizer":
            next(one for one in node.attribute if one.name == "adam_mode").i = _TORCH_MODE
        # Names count what was made before in this process, and the order of attributes is a hash's.
        node.name = f"{node.op_type}_{number}"
        attributes = sorted(node.attribute, key=lambda one: one.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
    if path.name == OPTIMIZER_MODEL:
        model.graph.node[0].output[0] = model.graph.output[0].name = "updated"
    # That operator ends the process where the graph does not say how large its result is.
    needed = {name for node in model.graph.node if node.op_type == "MaxPoolGrad" for name in node.output}
    path.write_bytes(serialised(model, described=needed))
    return model


def _described(model: onnx.ModelProto, trials: Sequence[Trial]) -> onnx.ModelProto:
    """The same model with the shape of every inner tensor, as it was seen in runs of two sizes.

    What the package says of shapes has gaps, and memory is planned by them.
    """
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    given = {value.name for value in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if name and name not in given]
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    run = session(open_model)
    seen = [dict(zip(inner, run.run(inner, _feeds(model, trial)), strict=True)) for trial in trials]
    rows = [len(trial.feeds["y"]) for trial in trials]
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.value_info[:]
    for name in inner:
        shapes = [one[name].shape for one in seen]
        dims = [size if size == other else f"{size // rows[0]}*N" for size, other in zip(*shapes, strict=True)]
        dtype = np_dtype_to_tensor_dtype(seen[0][name].dtype)
        found.graph.value_info.append(make_tensor_value_info(name, dtype, dims))
    return found


def _feeds(model: onnx.ModelProto, trial: Trial) -> dict[str, np.ndarray]:
    """Of a training model; sums of gradients begin at zero."""
    found = {"lazy_reset_grad": np.array([True])}
    for value in model.graph.input:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        found.setdefault(value.name, trial.feeds.get(value.name, np.zeros(dims, np.float32)))
    return found


def stops_gradients(block: nn.Module) -> bool:
    """Whether a part of a block looks at a tensor without learning from it: a probe, a temperature of clarity."""
    modules = list(block.modules())
    temperatures = [getattr(module, "temperature", None) for module in modules]
    probes = any(getattr(module, "probe", False) for module in modules)
    return probes or any(isinstance(temperature, ClarityTemperature) for temperature in temperatures)


def _largest_error(folder: Path, compiled: CompiledBlock, spec: OptimizerSpec, trials: list[Trial]) -> float:
    """Of losses, hand-overs, gradients and first updates, through the package's own interface."""
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    state = CheckpointState.load_checkpoint(folder / CHECKPOINT)
    module = Module(folder / TRAINING_MODEL, state)
    errors = []
    names = list(compiled.graphs.parameters)
    for trial in trials:
        for name in names:
            state.parameters[f"parameter.{name}"] = trial.feeds[f"parameter.{name}"]
        module.lazy_reset_grad()
        results = module(*(trial.feeds[name] for name in module.input_names()))
        expected = trial.expected["step"]
        found = dict(zip(module.output_names(), results, strict=True))
        errors += [relative_error(np.asarray(value), expected[key]) for key, value in found.items()]
        largest = max((np.abs(expected[f"gradient.{name}"]).max(initial=0.0) for name in names), default=0.0)
        for name in names:
            gradient = state.parameters[f"parameter.{name}"].grad
            errors.append(relative_error(gradient, expected[f"gradient.{name}"], least=_LEAST * largest + 1e-6))
    update = Optimizer(folder / OPTIMIZER_MODEL, module)
    update.set_learning_rate(_LEARNING_RATE)
    update.step()
    del update  # before the module: it ends the process to outlive it
    for name in names:
        new = state.parameters[f"parameter.{name}"].data
        errors.append(_update_error(new, name, trials[-1], spec, least=_SURE_OF_BLOCK * largest))
    return max(errors)


def _update_error(found: np.ndarray, name: str, trial: Trial, spec: OptimizerSpec, *, least: float) -> float:
    """Of the first update of a tensor, relative to the largest step that any of its entries takes.

    Entries whose gradient is below `least` are left out.
    """
    before, gradient = trial.feeds[f"parameter.{name}"], trial.expected["step"][f"gradient.{name}"]
    zeros = dict.fromkeys(optimizer(spec).slots(spec.settings), np.zeros_like(before))
    new, _ = optimizer(spec).update(before, gradient, zeros, rates(spec, _LEARNING_RATE, 1), spec.settings)
    sure = np.abs(gradient) >= max(_SURE * np.abs(gradient).max(initial=0.0), least)
    return relative_error(np.where(sure, found - before, 0.0), np.where(sure, new - before, 0.0))


def _exchanged(spec: BlockSpec, training: onnx.ModelProto, name: str) -> BlockSpec:
    """The block as this engine updates it: ports are those that the runtime gives and gets."""
    names = {value.name for value in training.graph.input}
    inputs = tuple(name for name in ("x", "y", "row_weight", "seed") if name in names)
    accumulate = replace(
        graph_spec("accumulate", training, f"{TRAINING_FOLDER}{name}/{TRAINING_MODEL}"),
        inputs=inputs,
        outputs=tuple(out for out in ("loss", "handover", "log_probabilities") if out in _outputs(training)),
    )
    # The operator writes over what it reads and needs nothing beside it.
    apply = GraphSpec(f"{TRAINING_FOLDER}{name}/{OPTIMIZER_MODEL}", (), (), nodes=1, transient=())
    graphs: dict[GraphKind, GraphSpec] = {kind: spec.graphs[kind] for kind in GRAPH_KINDS}
    graphs |= {"accumulate": accumulate, "apply": apply}
    return replace(spec, graphs=graphs)


def _outputs(model: onnx.ModelProto) -> set[str]:
    return {value.name for value in model.graph.output}


__all__ = ["TrainedBlock", "check_trainable", "training_artifacts"]
