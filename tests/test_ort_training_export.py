"""What `--engine ort-training` exports, what it refuses, and that nothing wrong gets past its comparison with torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from engine_artifact import ADAMW, SHAPE, contents, export_small
from layer_cases import CASES, CLASSES, IMAGE, block_of, conv
from onnx import numpy_helper
from torch import nn

from edgeff.artifact import open_artifact
from edgeff.engines import ORT_TRAINING, TRAINING_MODEL
from edgeff.errors import EngineError, ExportError
from edgeff.export import ExportSettings, export_network, ort_training
from edgeff.export.compiled import compile_checked
from edgeff.export.ir import IR_VERSION, OPSET
from edgeff.export.openable import check_openable
from edgeff.export.ort_training import TOLERANCE, TrainedBlock, training_artifacts
from edgeff.manifest import OptimizerSpec, TensorSpec
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.onnx_dialects import TRAINING
from edgeff.optimizer import optimizer_spec
from edgeff.preprocess import Preprocessing
from edgeff.relation import SimilarityMatching
from edgeff.temperature import ClarityTemperature

PLAIN_ENGINE = "leave `--engine ort-training` out: the plain graphs train it on any onnxruntime"
SGD = optimizer_spec("sgd", momentum=0.0, weight_decay=0.0)


def trained(block: nn.Module, *, input_dtype: str = "float32", spec: OptimizerSpec = ADAMW) -> TrainedBlock:
    """A block's training artifacts, as a device would open them."""
    with torch.no_grad():
        compiled = compile_checked(
            block, optimizer=spec, input_dtype=input_dtype, classes=CLASSES, last=False, dropout=False
        )
    made = training_artifacts(block, compiled, spec=spec, input_dtype=input_dtype, classes=CLASSES, last=False)
    graphs = {file: data for file, data in made.files.items() if file.endswith(".onnx")}
    check_openable(graphs, dialect=TRAINING)
    return made


def operators(made: TrainedBlock) -> set[str]:
    return {
        one.op_type for one in onnx.load_from_string(made.files[f"ort-training/block1/{TRAINING_MODEL}"]).graph.node
    }


# Each with an operator that onnxruntime-training needs in another form, or makes a form of its own of.
EXPORTED = {
    "adaptive average": "FusedMatMul",
    "layer norm": "LayerNormalizationGrad",
    "max pool overlapping": "MaxPoolGrad",
    "embedding": "GatherGrad",
}


@pytest.mark.parametrize("name", EXPORTED)
def test_a_layer_trains_as_in_torch(name: str) -> None:
    case = CASES[name]
    made = trained(case.block().eval(), input_dtype=case.input_dtype)
    assert 0.0 < made.error <= TOLERANCE
    assert EXPORTED[name] in operators(made)


def test_a_gradient_that_is_zero_but_for_rounding_is_no_difference() -> None:
    """A bias before a normalisation of its channel changes nothing."""
    torch.manual_seed(0)
    block = block_of(conv(nn.GroupNorm(8, 8), nn.ReLU()), IMAGE).eval()
    assert trained(block).error <= TOLERANCE


REFUSED = {
    "elu": "block `block1`: onnxruntime-training has no gradient for `Elu`",
    "largest of tokens": "block `block1`: onnxruntime-training has no gradient for `ReduceMax`",
    "average pool overlapping": "block `block1`: onnxruntime-training has no gradient for `AveragePool` "
    "with windows that overlap, are padded or leave a rest",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_without_a_gradient_is_refused_by_block_and_operator(name: str) -> None:
    case = CASES[name]
    with pytest.raises(ExportError) as refused:
        trained(case.block().eval(), input_dtype=case.input_dtype)
    assert str(refused.value) == REFUSED[name]
    assert refused.value.hint == PLAIN_ENGINE


def export_elu(out: Path, engine: str) -> Path:
    network = LocalNetwork(
        [LocalBlock(nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ELU()))], input_shape=SHAPE, classes=3
    )
    row = TensorSpec("x", SHAPE)
    return export_network(
        network, out, preprocessing=Preprocessing(row, (), row), settings=ExportSettings(engine=engine)
    )


def test_what_the_engine_cannot_train_is_not_written_and_is_exported_without_it(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no gradient for `Elu`"):
        export_elu(tmp_path / "artifact", ORT_TRAINING)
    assert list(tmp_path.iterdir()) == []
    assert open_artifact(export_elu(tmp_path / "artifact", "onnxruntime")).engines == ("onnxruntime",)


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"momentum": 0.0, "weight_decay": 1e-3}])
def test_sgd_with_momentum_or_weight_decay_is_refused_before_anything_is_compiled(
    settings: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeff.export.writer.compile_checked", None)
    with pytest.raises(ExportError) as refused:
        export_small(tmp_path / "artifact", optimizer=optimizer_spec("sgd", **settings))
    assert str(refused.value) == ("onnxruntime-training has `sgd` without momentum and without weight decay only")
    assert refused.value.hint == f"give `--momentum 0`, or `--optimizer adamw`, or {PLAIN_ENGINE}"
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_training_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeff.export.writer.compile_checked", None)
    monkeypatch.setitem(sys.modules, "onnxruntime.training", None)
    with pytest.raises(EngineError) as refused:
        export_small(tmp_path / "artifact")
    assert str(refused.value) == (
        "onnxruntime-training is not installed (it has wheels for x86-64 Linux, Windows and macOS, Python 3.8 to 3.12)"
    )
    assert refused.value.hint == f'run `pip install "edgeff[workstation]"` there, or {PLAIN_ENGINE}'
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", params=[ADAMW, SGD], ids=["adamw", "sgd"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("exported") / "artifact", optimizer=request.param)


def models(artifact: Path) -> dict[str, onnx.ModelProto]:
    return {file: onnx.load_from_string(data) for file, data in contents(artifact).items() if file.endswith(".onnx")}


def test_every_model_is_of_versions_that_onnxruntime_training_reads(exported: Path) -> None:
    found = {file: model for file, model in models(exported).items() if file.startswith("ort-training/")}
    assert len(found) == 6
    for file, model in found.items():
        assert model.ir_version == IR_VERSION == 8, file
        domains = {one.domain: one.version for one in model.opset_import}
        own = {"com.microsoft": 1} if any(one.domain for one in model.graph.node) else {}
        assert domains == {"": OPSET, **own}, file
        assert bool(own) == (not file.endswith("eval_model.onnx"))


def test_the_update_is_torchs_formula(exported: Path) -> None:
    optimizer = open_artifact(exported).manifest.optimizer
    for file, model in models(exported).items():
        if not file.endswith("optimizer_model.onnx"):
            continue
        (node,) = model.graph.node
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if optimizer.kind == "sgd":
            assert (node.op_type, attributes) == ("SGDOptimizerV2", {})
            continue
        settings = optimizer.settings
        assert node.op_type == "AdamWOptimizer"
        assert (attributes.pop("adam_mode"), attributes.pop("correct_bias")) == (0, 1)
        expected = {name: settings[key] for name, key in (("alpha", "beta1"), ("beta", "beta2"))}
        expected |= {key: settings[key] for key in ("epsilon", "weight_decay")}
        assert attributes == pytest.approx(expected)


def test_an_export_writes_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_small(tmp_path / "artifact")
    assert tuple(capfd.readouterr()) == ("", "")


def test_what_is_refused_writes_nothing_to_the_terminal_either(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError):
        export_elu(tmp_path / "artifact", ORT_TRAINING)
    assert tuple(capfd.readouterr()) == ("", "")


# --- what is wrong is caught by the comparison with torch -------------------------------------------------------------


def small_block() -> LocalBlock:
    torch.manual_seed(0)
    return block_of(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), (6,))


def spoiling(change: Callable[[onnx.GraphProto], Any], file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model of that name be changed before it is compared."""
    bring_down = ort_training._brought_down

    def spoilt(path: Path) -> onnx.ModelProto:
        model = bring_down(path)
        if path.name == file:
            change(model.graph)
            path.write_bytes(model.SerializeToString())
        return model

    monkeypatch.setattr(ort_training, "_brought_down", spoilt)


def differs(spec: OptimizerSpec = ADAMW) -> str:
    with pytest.raises(ExportError) as refused:
        trained(small_block(), spec=spec)
    assert refused.value.hint == PLAIN_ENGINE
    return str(refused.value)


DIFFERS = "block `block1`: its onnxruntime-training artifacts differ from torch by "


def double_loss_gradient(graph: onnx.GraphProto) -> None:
    seed = next(one for one in graph.initializer if one.name == "loss_grad")
    seed.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(seed), "loss_grad"))


def relu_as_sigmoid(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "ReluGrad").op_type = "SigmoidGrad"


def sum_of_itself(graph: onnx.GraphProto) -> None:
    added = next(node for node in graph.node if node.op_type == "InPlaceAccumulatorV2")
    added.input[1] = added.input[0]


@pytest.mark.parametrize("change", [double_loss_gradient, relu_as_sigmoid, sum_of_itself])
def test_a_spoilt_training_model_is_refused(
    change: Callable[[onnx.GraphProto], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiling(change, "training_model.onnx", monkeypatch)
    assert differs().startswith(DIFFERS)


def test_the_other_formula_of_adamw_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is the package's own choice; it adds epsilon elsewhere."""
    spec = optimizer_spec("adamw", epsilon=1e-3)
    assert trained(small_block(), spec=spec).error <= TOLERANCE
    monkeypatch.setattr(ort_training, "_TORCH_MODE", 1)
    assert differs(spec).startswith(DIFFERS)


def test_an_update_by_another_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(graph: onnx.GraphProto) -> None:
        next(one for one in graph.node[0].attribute if one.name == "weight_decay").f = 0.5

    spoiling(change, "optimizer_model.onnx", monkeypatch)
    assert differs().startswith(DIFFERS)


def test_a_gradient_that_the_graph_alone_does_not_tell_is_refused() -> None:
    """torch leaves the padding's vector as it is, which its forward pass does not say."""
    case = CASES["embedding with padding"]
    with pytest.raises(ExportError, match="differ from torch by"):
        trained(case.block().eval(), input_dtype=case.input_dtype)


def test_a_result_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(graph: onnx.GraphProto) -> None:
        seed = next(one for one in graph.initializer if one.name == "loss_grad")
        seed.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(seed) * float("nan"), "loss_grad"))

    spoiling(change, "training_model.onnx", monkeypatch)
    assert differs() == f"{DIFFERS}inf, allowed 1e-04"


@pytest.mark.parametrize(
    "options", [{"relation": SimilarityMatching(), "probe": True}, {"temperature": ClarityTemperature()}], ids=str
)
def test_a_rule_that_stops_gradients_is_refused_and_the_reason_given(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block = LocalBlock(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), **options)
    LocalNetwork([block], input_shape=(3, 6, 6), classes=CLASSES)
    with pytest.raises(ExportError, match="differ from torch") as refused:
        trained(block)
    assert str(refused.value.hint).startswith("its gradients pass where the rule's stop; leave `--engine ort-training`")


def test_blocks_that_compare_rows_have_training_artifacts_too() -> None:
    torch.manual_seed(0)
    block = LocalBlock(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), relation=SimilarityMatching(2.0))
    LocalNetwork([block], input_shape=(3, 6, 6), classes=CLASSES)
    assert trained(block).spec.rows_together > 1
