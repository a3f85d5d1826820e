"""Execution providers: which one a run takes, what is refused and why, and what is told of where graphs ran."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_artifact import make_dataset, write_tiny
from tiny_run import TinyRun, edgeff

from edgeff.devices import load_all
from edgeff.engines import ORT_TRAINING
from edgeff.errors import EngineError
from edgeff.providers import AUTO, CPU, NAMES, REFUSED, TARGETS, TRAINING
from edgeff.runtime import start as start_module
from edgeff.runtime.adapt import Adaptation, adaptation_request, engine_request
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.events import Placed, Progress
from edgeff.runtime.plan import plan
from edgeff.runtime.providers import (
    CPU_PROVIDER,
    KINDS,
    Placement,
    ProviderKind,
    available,
    check_started,
    choose,
    load_libraries,
    placement_of,
    plugin_devices,
    told,
)
from edgeff.runtime.settings import AdaptSettings

CUDA, WEBGPU, COREML = (KINDS[name].full for name in ("cuda", "webgpu", "coreml"))
WHEEL = "onnxruntime_ep_webgpu"


def onnxruntime_with(*providers: str, **more: Any) -> SimpleNamespace:
    """A stand-in for an onnxruntime with some providers built in, the CPU's last."""
    return SimpleNamespace(
        __version__="1.99.0", get_available_providers=lambda: ["Azure", *providers, CPU_PROVIDER], **more
    )


class Plugins:
    """What of onnxruntime has to do with plug-ins: a library makes its devices known when it is registered."""

    def __init__(self, found: int = 1, refusal: str = "") -> None:
        self.found, self.refusal = found, refusal
        self.registered: list[tuple[str, str]] = []
        self.devices = [SimpleNamespace(ep_name=CPU_PROVIDER)]

    def register(self, name: str, path: str) -> None:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.registered.append((name, path))
        self.devices += [SimpleNamespace(ep_name=WEBGPU) for _ in range(self.found)]

    def onnxruntime(self, *providers: str) -> SimpleNamespace:
        more = {"register_execution_provider_library": self.register, "get_ep_devices": lambda: self.devices}
        return onnxruntime_with(*providers, **more)


@pytest.fixture
def webgpu_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of the WebGPU plug-in is installed."""
    (tmp_path / f"{WHEEL}.py").write_text("def get_library_path():\n    return '/there/webgpu.so'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop(WHEEL, None)


# --- names ---


def test_the_names_of_the_command_line_are_the_kinds_that_are_known() -> None:
    assert {*NAMES} == {AUTO, *KINDS}
    assert {name for name, kind in KINDS.items() if kind.refusal} == {*REFUSED}
    assert {name for name, kind in KINDS.items() if not kind.refusal} == {*TRAINING}
    assert {*TARGETS} <= {*TRAINING}
    assert all(name == kind.name for name, kind in KINDS.items())
    assert len({kind.full for kind in KINDS.values()}) == len(KINDS)


def test_every_provider_of_the_catalogue_that_may_train_is_one_that_can_be_asked_for() -> None:
    named = {one.name for profile in load_all() for one in profile.providers if one.training != "no"}
    assert {CPU_PROVIDER, CUDA, WEBGPU} <= named
    assert named - {kind.full for kind in KINDS.values() if not kind.refusal} == set()


# --- choosing ---


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ([(CUDA, "yes"), (CPU_PROVIDER, "yes")], "cuda"),
        ([(CPU_PROVIDER, "yes"), (CUDA, "yes")], "cpu"),
        ([(CUDA, "untested"), (CPU_PROVIDER, "yes")], "cpu"),
        ([(COREML, "yes"), (CUDA, "yes")], "cuda"),  # the first is not there
        ([(CUDA, "untested"), (COREML, "yes")], "cpu"),
        ([("TIDLExecutionProvider", "yes")], "cpu"),
        ([], "cpu"),
    ],
)
def test_auto_takes_the_first_proven_provider_of_the_profile_that_is_there(
    profile: list[tuple[str, str]], expected: str
) -> None:
    assert choose(AUTO, onnxruntime_with(CUDA), profile) is KINDS[expected]


def test_what_is_asked_for_is_taken_whether_it_is_proven_or_not() -> None:
    assert choose("cuda", onnxruntime_with(CUDA), [(CUDA, "untested")]) is KINDS["cuda"]
    assert choose(CPU, onnxruntime_with(CUDA), [(CUDA, "yes")]) is KINDS[CPU]


def test_a_provider_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(EngineError) as caught:
        choose("coreml", onnxruntime_with(CUDA, "TensorrtExecutionProvider"))
    assert str(caught.value) == "this onnxruntime 1.99.0 has no provider `coreml`; it has: cpu, cuda"
    assert caught.value.hint == "leave `--provider` out to train on the CPU"


def test_where_a_package_brings_the_provider_the_hint_names_it() -> None:
    with pytest.raises(EngineError, match=r"has no provider `webgpu`; it has: cpu$") as caught:
        choose("webgpu", onnxruntime_with())
    assert caught.value.hint == "leave `--provider` out to train on the CPU, or install `onnxruntime-ep-webgpu`"


@pytest.mark.parametrize("name", REFUSED)
def test_a_provider_on_which_nothing_can_be_trained_is_refused_with_the_reason_even_where_it_is_there(
    name: str,
) -> None:
    module = onnxruntime_with(*(kind.full for kind in KINDS.values()))
    with pytest.raises(EngineError) as caught:
        choose(name, module)
    assert str(caught.value) == f"the provider `{name}` is refused: {KINDS[name].refusal}"
    assert "constant weights" in str(caught.value)
    assert caught.value.hint == f"this onnxruntime has: {', '.join(TRAINING)}"
    assert choose(AUTO, module, [(KINDS[name].full, "yes")]) is KINDS[CPU]


# --- plug-ins ---


@pytest.mark.usefixtures("webgpu_wheel")
def test_a_plugin_counts_where_it_is_installed_and_this_onnxruntime_takes_plugins() -> None:
    assert available(Plugins().onnxruntime(CUDA)) == ("cpu", "cuda", "webgpu")
    assert available(onnxruntime_with(CUDA)) == ("cpu", "cuda")


def test_a_plugin_that_is_not_installed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert available(Plugins().onnxruntime()) == ("cpu",)


@pytest.mark.usefixtures("webgpu_wheel")
def test_the_devices_of_a_plugin_are_found_once_its_library_is_registered_and_that_is_done_once() -> None:
    plugins = Plugins(found=2)
    module = plugins.onnxruntime()
    found = plugin_devices(KINDS["webgpu"], module)
    assert [device.ep_name for device in found] == [WEBGPU] * 2
    assert plugin_devices(KINDS["webgpu"], module) == found
    assert plugins.registered == [("webgpu", "/there/webgpu.so")]


def test_a_provider_that_is_built_in_needs_no_devices() -> None:
    plugins = Plugins()
    assert plugin_devices(KINDS["cuda"], plugins.onnxruntime(CUDA)) == []
    assert plugin_devices(KINDS["webgpu"], plugins.onnxruntime(WEBGPU)) == []
    assert plugins.registered == []


@pytest.mark.usefixtures("webgpu_wheel")
def test_a_plugin_that_finds_no_device_is_refused_and_auto_goes_on_without_it() -> None:
    module = Plugins(found=0).onnxruntime(CUDA)
    with pytest.raises(EngineError) as caught:
        plugin_devices(choose("webgpu", module), module)
    assert str(caught.value) == "the provider `webgpu` finds no device that it can use here"
    assert caught.value.hint == "leave `--provider` out; beside it this onnxruntime has: cpu, cuda"
    assert choose(AUTO, module, [(WEBGPU, "yes"), (CUDA, "yes")]) is KINDS["cuda"]
    assert choose(AUTO, Plugins().onnxruntime(CUDA), [(WEBGPU, "yes"), (CUDA, "yes")]) is KINDS["webgpu"]


@pytest.mark.usefixtures("webgpu_wheel")
def test_a_plugin_whose_library_cannot_be_loaded_is_told_in_one_line() -> None:
    with pytest.raises(EngineError) as caught:
        plugin_devices(KINDS["webgpu"], Plugins(refusal="no such file:\n  /there").onnxruntime())
    assert str(caught.value) == "the provider `webgpu` cannot be loaded: no such file: /there"


# --- a provider that does not start ---


def test_the_libraries_of_cuda_are_loaded_quietly_and_of_no_other_provider(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = []

    def preload_dlls() -> None:
        print("Failed to load libcudnn.so.9")
        loaded.append(True)

    for kind in KINDS.values():
        load_libraries(kind, SimpleNamespace(preload_dlls=preload_dlls))
    assert loaded == [True]
    load_libraries(KINDS["cuda"], SimpleNamespace())  # an onnxruntime that cannot
    assert capsys.readouterr() == ("", "")


def test_a_session_that_went_to_the_cpu_instead_is_refused() -> None:
    check_started(KINDS["cuda"], SimpleNamespace(get_providers=lambda: [CUDA, CPU_PROVIDER]))
    with pytest.raises(EngineError, match="the provider `cuda` does not start here") as caught:
        check_started(KINDS["cuda"], SimpleNamespace(get_providers=lambda: [CPU_PROVIDER]))
    assert "train on the CPU with `--provider cpu`" in str(caught.value.hint)


# --- what ran where ---


def session_of(**operators: list[str]) -> SimpleNamespace:
    """A session that tells which operators each provider took, in a part for each two of them."""
    parts = [
        SimpleNamespace(
            ep_name=KINDS[name].full,
            get_nodes=lambda chosen=taken[first : first + 2]: [SimpleNamespace(op_type=one) for one in chosen],
        )
        for name, taken in operators.items()
        for first in range(0, len(taken), 2)
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)


def test_a_placement_counts_nodes_by_provider_and_names_what_fell_back() -> None:
    found = placement_of(session_of(cuda=["Conv", "Relu", "Conv"], cpu=["OneHot", "Gather", "OneHot"]))
    assert found == Placement({CUDA: 3, CPU_PROVIDER: 3}, {"Gather": 1, "OneHot": 2})
    assert placement_of(SimpleNamespace()) is None


def test_placements_of_several_graphs_are_told_in_one_line() -> None:
    placements = {
        "step": placement_of(session_of(cuda=["Conv"] * 5, cpu=["OneHot", "Gather"])),
        "forward": placement_of(session_of(cuda=["Conv"] * 2, cpu=["OneHot"])),
    }
    line = told(KINDS["cuda"], placements)
    assert line == (
        "provider cuda took 7 of 10 nodes; on the CPU: 1 Gather, 2 OneHot; what it takes for itself is not in the plan"
    )
    nothing_left = {"step": Placement({CUDA: 4})}
    assert told(KINDS["cuda"], nothing_left).startswith("provider cuda took 4 of 4 nodes; what it takes")


def test_an_onnxruntime_that_does_not_tell_where_nodes_went_is_said_to() -> None:
    for placements in ({}, {"step": None}, {"step": Placement({CUDA: 4}), "forward": None}):
        line = told(KINDS["cuda"], placements)
        assert line == "provider cuda; this onnxruntime does not tell which nodes it took (1.24 and newer do)"


def test_a_run_tells_once_where_its_graphs_ran_and_keeps_it_in_its_result(tmp_path: Path) -> None:
    artifact = write_tiny(tmp_path / "tiny")
    engine = OnnxRuntime(1, ProviderKind("stand-in", CPU_PROVIDER, in_place=False))
    settings = AdaptSettings(epochs=2, batch_size=8, learning_rate=0.1)
    request = adaptation_request(
        artifact.manifest, settings, 48, budget_bytes=None, schedule="sweep", **engine_request(engine)
    )
    planned = plan(artifact.manifest, request)
    rows = make_dataset(48)
    run = Adaptation(artifact, rows, settings, request, planned, engine, RunFolder(tmp_path / "run"))
    events = list(run.run())
    (told_at,) = (index for index, event in enumerate(events) if isinstance(event, Placed))
    assert events[told_at].text == told(engine.provider, engine.placements)  # type: ignore[union-attr]
    assert [isinstance(event, Progress) for event in events[:told_at]].count(True) == 1
    found = json.loads((tmp_path / "run" / "result.json").read_text())["provider"]
    assert found["name"] == "stand-in"
    graphs = [f"blocks/{block}.{kind}.onnx" for block in ("block1", "block2") for kind in ("forward", "step")]
    assert list(found["graphs"]) == graphs
    assert found["copies_per_step"] == {"to_device": 0, "from_device": 0}


def test_on_the_cpu_there_is_nothing_to_tell(tmp_path: Path) -> None:
    artifact = write_tiny(tmp_path / "tiny")
    engine = OnnxRuntime(1)
    engine.load(artifact.read("blocks/block1.forward.onnx"), "forward")
    assert engine.placements == {}
    other = OnnxRuntime(1, replace(KINDS[CPU], name="other"))
    other.load(artifact.read("blocks/block1.forward.onnx"), "forward")
    assert other.placements.keys() == {"forward"}


# --- on the command line ---


def train(tiny: TinyRun, out: Path, *more: object) -> Any:
    return edgeff("train-on-device", tiny.artifact, "--data", tiny.own, "--out", out, "--epochs", 1, *more)


def test_a_provider_that_is_not_there_ends_the_command_before_anything_is_written(
    tiny: TinyRun, tmp_path: Path
) -> None:
    result = train(tiny, tmp_path / "run", "--provider", "cuda")
    message, empty, hint = result.stderr.splitlines()
    assert result.exit_code == 1
    assert message.startswith("Error: this onnxruntime ")
    assert message.endswith("has no provider `cuda`; it has: cpu")
    assert (empty, hint) == ("", "hint: leave `--provider` out to train on the CPU")
    assert not (tmp_path / "run").exists()


def test_a_provider_that_cannot_train_ends_the_command_with_the_reason(tiny: TinyRun, tmp_path: Path) -> None:
    result = train(tiny, tmp_path / "run", "--provider", "qnn")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"Error: the provider `qnn` is refused: {KINDS['qnn'].refusal}",
        "",
        "hint: this onnxruntime has: cpu",
    ]
    assert train(tiny, tmp_path / "run", "--provider", "quantum").exit_code == 2


def test_the_engine_of_onnxruntime_training_takes_no_other_provider(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tiny, tmp_path / "run", "--engine", "ort-training", "--provider", "cuda").exit_code == 1
    monkeypatch.setattr(start_module, "import_onnxruntime", lambda: onnxruntime_with(CUDA))
    with pytest.raises(EngineError) as caught:
        start_module.start(1, engine=ORT_TRAINING, provider="cuda")
    assert str(caught.value) == "the engine `ort-training` runs on the CPU, not on the provider `cuda`"
    assert "leave `--provider` out" in caught.value.hint
    # What a device has besides does not matter to it.
    engine, _, _ = start_module.start(1, engine=ORT_TRAINING, provider=AUTO, profile=lambda: [(CUDA, "yes")])
    assert engine.provider is KINDS[CPU]


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available:UserWarning")
def test_a_provider_that_does_not_start_is_refused_before_anything_is_read_and_auto_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Chosen as where CUDA's provider is installed, started as where its libraries or its driver are not.
    monkeypatch.setattr(start_module, "import_onnxruntime", lambda: onnxruntime_with(CUDA))
    with pytest.raises(EngineError, match="the provider `cuda` does not start here"):
        start_module.start(1, provider="cuda")
    engine, _, _ = start_module.start(1, provider=AUTO, profile=lambda: [(CUDA, "yes")])
    assert engine.provider is KINDS[CPU]


def test_the_result_of_a_plain_run_names_the_cpu_and_no_copies(tiny: TinyRun, tmp_path: Path) -> None:
    result = train(tiny, tmp_path / "run", "--json", "--threads", 1, "--guard-fraction", 0)
    assert result.exit_code == 0, result.stderr
    expected = {"name": "cpu", "graphs": {}, "copies_per_step": {"to_device": 0, "from_device": 0}}
    assert json.loads(result.stdout)["provider"] == expected
    assert json.loads((tmp_path / "run" / "result.json").read_text())["provider"] == expected
    assert "provider" not in result.stderr
