"""A provider is compared with the CPU before anything is trained on it, by kernels that are right, coarse or wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_apply import sharing
from tiny_artifact import Tiny, make_dataset, write_tiny
from torch import nn

from edgeff.artifact import Artifact, open_artifact
from edgeff.errors import EngineError
from edgeff.export import ExportSettings, export_network
from edgeff.manifest import TensorSpec
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.preprocess import Preprocessing
from edgeff.runtime import provider_check
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.arrays import Array
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.engine import Call, Graph, OnnxRuntime
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.provider_check import check_provider
from edgeff.runtime.providers import CPU_PROVIDER, KINDS, ProviderKind
from edgeff.runtime.settings import AdaptSettings

TINY = Tiny(blocks=3, fusion=(1.0,) * 3)
Spoil = Callable[[str, dict[str, Array]], None]


class Kernels(OnnxRuntime):
    """A provider of some name, whose graphs run on the CPU; what they give may be spoilt.

    Args:
        name: Of the provider.
        spoil: Changes what a graph gave; gets the graph's file, and its results by name.
        coarse: The graphs see their inputs in half precision.
    """

    def __init__(self, name: str = "openvino", spoil: Spoil | None = None, *, coarse: bool = False) -> None:
        super().__init__(1, ProviderKind(name, CPU_PROVIDER))
        self.loaded: list[str] = []
        self.given: list[tuple[str, dict[str, Array]]] = []
        self._spoil, self._coarse = spoil, coarse

    def load(self, model: bytes, name: str, memory: Any = None, **more: Any) -> Graph:
        self.loaded.append(name)
        return _Graph(super().load(model, name, memory, **more), self, name)

    def ran(self, name: str, results: dict[str, Array]) -> None:
        if self._spoil:
            self._spoil(name, results)

    def seen(self, array: Array) -> Array:
        return array.astype(np.float16).astype(array.dtype) if self._coarse and array.ndim else array.copy()


class _Graph:
    def __init__(self, graph: Graph, kernels: Kernels, name: str) -> None:
        self._graph, self._kernels, self._name = graph, kernels, name
        self.inputs, self.outputs = graph.inputs, graph.outputs

    def bind(self, arrays: Mapping[str, Array]) -> Call:
        self._kernels.given.append((self._name, {port.name: arrays[port.name].copy() for port in self.inputs}))
        inside = {name: self._kernels.seen(array) for name, array in arrays.items()}
        return _Call(self, self._graph.bind(inside), inside, arrays)

    def ran(self, inside: Mapping[str, Array], arrays: Mapping[str, Array]) -> None:
        plain = {port.name: port.name.removeprefix("new.") for port in self.outputs}
        for source in plain.values():
            arrays[source][...] = inside[source]
        self._kernels.ran(self._name, {name: arrays[source] for name, source in plain.items()})


class _Call:
    def __init__(self, graph: _Graph, call: Call, inside: Mapping[str, Array], arrays: Mapping[str, Array]) -> None:
        self._graph, self._call, self._inside, self._arrays = graph, call, inside, arrays

    def run(self) -> None:
        self._call.run()
        self._graph.ran(self._inside, self._arrays)


def wrong(file: str, output: str, change: Callable[[Array], Any]) -> Spoil:
    """Results of which one, of one graph, is another."""

    def spoil(name: str, results: dict[str, Array]) -> None:
        if name == file:
            change(results[output])

    return spoil


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny", TINY)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A network on int64 rows, with a bias of zero whose gradient is rounding: a norm takes it away."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv1d(7, 4, 3, padding=1)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers = nn.Sequential(nn.Embedding(20, 4), conv, nn.GroupNorm(4, 4), nn.ReLU())
        network = LocalNetwork([LocalBlock(layers)], input_shape=(7,), classes=3, input_dtype="int64")
    row = TensorSpec("x", (7,), "int64")
    out = tmp_path_factory.mktemp("tokens") / "artifact"
    settings = ExportSettings(optimizer=optimizer_spec("adamw"))
    return open_artifact(export_network(network, out, preprocessing=Preprocessing(row, (), row), settings=settings))


def plan_of(artifact: Artifact, updates: str = "fused", trained: Sequence[str] | None = None, **more: Any) -> Plan:
    size = 8 if updates == "fused" else 4
    request = Request(8, None, micro_batch=size, updates=updates, trained=trained, **{"schedule": "sweep", **more})  # type: ignore[arg-type]
    return plan(artifact.manifest, request)


def files(blocks: Sequence[str], *kinds: str) -> list[str]:
    return [f"blocks/{block}.{kind}.onnx" for block in blocks for kind in kinds]


# --- kernels that are right ---


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
@pytest.mark.parametrize(
    ("updates", "kinds"), [("fused", ("step", "forward")), ("accumulated", ("accumulate", "apply", "forward"))]
)
def test_a_provider_that_computes_what_the_cpu_does_is_taken_after_a_look_at_every_graph(
    artifact: Artifact, updates: str, kinds: Sequence[str], schedule: str
) -> None:
    engine = Kernels()
    check_provider(artifact, engine, plan_of(artifact, updates, schedule=schedule))
    assert engine.loaded == files(TINY.names, *kinds)


def test_of_blocks_that_are_not_trained_only_the_forward_graphs_are_looked_at(artifact: Artifact) -> None:
    engine = Kernels()
    check_provider(artifact, engine, plan_of(artifact, trained=["block2"]))
    assert engine.loaded == [
        "blocks/block1.forward.onnx",
        *files(["block2"], "step", "forward"),
        *files(["block3"], "forward"),
    ]
    assert not [name for name in engine.given[0][1] if name.startswith(("state.", "gradient."))]


def test_a_graph_that_blocks_share_is_looked_at_once(artifact: Artifact) -> None:
    engine = Kernels()
    shared = sharing(artifact)
    check_provider(shared, engine, plan_of(shared, "accumulated"))
    assert engine.loaded.count("blocks/block1.apply.onnx") == 1
    assert len(engine.loaded) == len({*engine.loaded}) == 3 + 3 + 1


def test_on_the_cpu_nothing_is_loaded(artifact: Artifact) -> None:
    engine = Kernels("cpu", wrong("blocks/block1.step.onnx", "loss", lambda loss: loss.fill(7)))
    check_provider(artifact, engine, plan_of(artifact))
    assert engine.loaded == []


def test_every_graph_is_given_the_artifacts_weights_whatever_ran_before(artifact: Artifact) -> None:
    stored = artifact.tensors()
    engine = Kernels()
    check_provider(artifact, engine, plan_of(artifact))
    for file, given in engine.given:
        block = file.split("/")[1].split(".")[0]
        for name, array in given.items():
            if name.startswith(("parameter.", "buffer.")):
                np.testing.assert_array_equal(array, stored[f"{block}.{name.partition('.')[2]}"], err_msg=file)
    for key, array in artifact.tensors().items():
        np.testing.assert_array_equal(array, stored[key], err_msg=key)


@pytest.mark.parametrize("updates", ["fused", "accumulated"])
def test_rows_of_integers_are_drawn_as_such(tokens: Artifact, updates: str) -> None:
    engine = Kernels()
    check_provider(tokens, engine, plan_of(tokens, updates))
    rows = [given["x"] for _, given in engine.given if "x" in given]
    # Only what the smallest vocabulary has, and no negative number, which some kernels count from the end.
    assert {(array.dtype.name, *np.unique(array)) for array in rows} == {("int64", 0, 1)}
    spoilt = Kernels(spoil=wrong("blocks/block1.forward.onnx", "log_probabilities", lambda array: array.fill(0)))
    with pytest.raises(EngineError, match=r"`log_probabilities` of `blocks/block1\.forward\.onnx`"):
        check_provider(tokens, spoilt, plan_of(tokens, updates))


@pytest.mark.parametrize("updates", ["fused", "accumulated"])
def test_half_precision_is_taken_even_where_a_gradient_is_nothing_but_rounding(tokens: Artifact, updates: str) -> None:
    check_provider(tokens, Kernels(coarse=True), plan_of(tokens, updates))


# --- kernels that are wrong ---


@pytest.mark.parametrize(
    ("updates", "kind", "output"),
    [
        ("fused", "step", "loss"),
        ("fused", "step", "new.parameter.w"),
        ("fused", "step", "new.state.velocity.b"),
        ("fused", "step", "handover"),
        ("fused", "forward", "log_probabilities"),
        ("accumulated", "accumulate", "new.gradient.w"),
        ("accumulated", "apply", "new.parameter"),
        ("accumulated", "apply", "new.state.velocity"),
    ],
)
def test_a_provider_that_computes_something_else_is_refused_by_graph_and_tensor(
    artifact: Artifact, updates: str, kind: str, output: str
) -> None:
    file = f"blocks/block2.{kind}.onnx"
    engine = Kernels(spoil=wrong(file, output, lambda array: np.multiply(array, 1.25, out=array)))
    with pytest.raises(EngineError) as caught:
        check_provider(artifact, engine, plan_of(artifact, updates))
    # Of a gradient, and of what it changes, the norm may be off by more.
    allowed = "5%" if output.startswith("new.") and kind != "apply" else "2%"
    assert str(caught.value) == (
        f"the provider `openvino` of {engine.name} computes `{output}` of `{file}` wrongly: "
        f"25% from the CPU's, allowed {allowed}"
    )
    assert caught.value.hint == "leave `--provider` out to train on the CPU"


@pytest.mark.parametrize(
    ("output", "kept", "lost", "told"),
    [
        ("handover", 1.015, 1.03, "3% from .*, allowed 2%"),
        ("new.state.velocity.w", 1.04, 1.08, "8% from .*, allowed 5%"),
    ],
)
def test_what_half_precision_may_cost_is_allowed_and_no_more(
    artifact: Artifact, output: str, kept: float, lost: float, told: str
) -> None:
    def off_by(factor: float) -> Kernels:
        return Kernels(spoil=wrong("blocks/block1.step.onnx", output, lambda array: np.multiply(array, factor, array)))

    check_provider(artifact, off_by(kept), plan_of(artifact))
    with pytest.raises(EngineError, match=rf"{told}$"):
        check_provider(artifact, off_by(lost), plan_of(artifact))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A hidden layer so wide that of a few rows some units are nearly zero: whether they learn, rounding decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = LocalBlock(nn.Sequential(nn.Linear(16, 20_000), nn.ReLU()))
    network = LocalNetwork([block], input_shape=(16,), classes=3)
    row = TensorSpec("x", (16,), "float32")
    out = tmp_path_factory.mktemp("wide") / "artifact"
    return open_artifact(export_network(network, out, preprocessing=Preprocessing(row, (), row)))


def test_gradients_that_jump_with_a_rounding_are_held_against_the_cpu_by_their_norms(wide: Artifact) -> None:
    file, output = "blocks/block1.accumulate.onnx", "new.gradient.transform.0.weight"
    seen: list[Array] = []
    for coarse in (False, True):
        engine = Kernels(spoil=wrong(file, output, lambda array: seen.append(array.copy())), coarse=coarse)
        check_provider(wide, engine, plan_of(wide, "accumulated"))
    # Single numbers are off by far more than rounding: some units have another derivative.
    assert np.abs(seen[1] - seen[0]).max() > 0.05 * np.abs(seen[0]).max()
    spoilt = wrong(file, output, lambda array: array[:4000].fill(0))
    with pytest.raises(EngineError, match=r"`new\.gradient\.transform\.0\.weight` of .* wrongly: \d\d% from the CPU's"):
        check_provider(wide, Kernels(spoil=spoilt, coarse=True), plan_of(wide, "accumulated"))


def test_of_a_gradient_that_rounding_spoils_not_everything_is_allowed(
    wide: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if rounding took half of everything: three times what that does to a gradient is more than all of it.
    def halved(array: Array) -> Array:
        return array * np.float32(0.5) if array.ndim and array.dtype == np.float32 else array

    monkeypatch.setattr(provider_check, "_rounded", halved)
    file, output = "blocks/block1.accumulate.onnx", "new.gradient.transform.0.weight"
    for change, told in ((lambda array: array.fill(0), "100"), (lambda array: np.negative(array, out=array), "200")):
        with pytest.raises(EngineError, match=rf"wrongly: {told}% from the CPU's, allowed \d\d%$"):
            check_provider(wide, Kernels(spoil=wrong(file, output, change)), plan_of(wide, "accumulated"))


@pytest.mark.parametrize(("value", "told"), [(np.nan, "nan%"), (np.inf, "inf%")])
def test_a_result_that_is_no_number_is_refused(artifact: Artifact, value: float, told: str) -> None:
    spoil = wrong("blocks/block3.step.onnx", "new.parameter.b", lambda array: array.put(0, value))
    with pytest.raises(EngineError, match=rf"`new\.parameter\.b` of `blocks/block3\.step\.onnx` wrongly: {told} from"):
        check_provider(artifact, Kernels(spoil=spoil), plan_of(artifact))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if name != "cpu" and not kind.refusal])
def test_the_hint_names_the_exporters_target_where_there_is_one(artifact: Artifact, name: str) -> None:
    engine = Kernels(name, wrong("blocks/block1.step.onnx", "loss", lambda loss: loss.fill(7)))
    with pytest.raises(EngineError, match=rf"^the provider `{name}` of ") as caught:
        check_provider(artifact, engine, plan_of(artifact))
    again = f"export the model again with `--target {name}`, or " if name in ("coreml", "webgpu") else ""
    assert caught.value.hint == f"{again}leave `--provider` out to train on the CPU"


def test_a_run_on_a_provider_that_is_wrong_ends_before_its_first_update(artifact: Artifact, tmp_path: Path) -> None:
    spoil = wrong("blocks/block1.forward.onnx", "log_probabilities", lambda array: array.fill(0))
    settings = AdaptSettings(epochs=1, batch_size=8, learning_rate=0.1)
    request = adaptation_request(artifact.manifest, settings, 48, budget_bytes=None, schedule="sweep")
    planned = plan(artifact.manifest, request)
    folder = RunFolder(tmp_path / "run")
    run = Adaptation(artifact, make_dataset(48), settings, request, planned, Kernels(spoil=spoil), folder)
    with pytest.raises(EngineError, match=r"computes `log_probabilities` of `blocks/block1\.forward\.onnx` wrongly"):
        next(run.run())
    assert {path.name for path in folder.path.iterdir()} == {"run.json"}
    # On the CPU the same folder is gone on with.
    *_, last = replace(run, engine=OnnxRuntime(1)).run(resume=True)
    assert last.result["provider"]["name"] == "cpu"  # type: ignore[union-attr]
