"""Graphs in the forms of a target: the same numbers, none of the forms that it refuses, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import Runner
from onnx import TensorProto, helper
from tiny_run import TinyRun, edgeff
from torch import nn

from edgeff import providers
from edgeff.artifact import Artifact, open_artifact
from edgeff.errors import ExportError
from edgeff.export import ExportSettings, export_network
from edgeff.export.targets import TARGETS, for_target
from edgeff.manifest import GraphKind, TensorSpec, TrainingDefaults
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.onnx_operators import OPERATORS
from edgeff.optimizer import optimizer_spec
from edgeff.preprocess import Preprocessing
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.network import open_network, preprocessing_of
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request, Updates
from edgeff.runtime.trainer import LearningRate, Position, Trainer
from edgeff.runtime.update import TrainingRows

CLASSES, ROW, STEPS = 3, (2, 8, 6), 10
OTHERS = ("coreml", "webgpu")
Shape = Sequence[int | str]


def test_every_target_of_the_command_line_has_its_rules() -> None:
    assert tuple(TARGETS) == providers.TARGETS
    assert TARGETS["cpu"] == {}


# --- one node at a time ---


def one_node(operator: str, inputs: Mapping[str, Shape], out: Shape, **attributes: Any) -> onnx.ModelProto:
    """A model of one node; `N` in a shape stands for the rows."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    node = helper.make_node(operator, list(inputs), ["y"], name="node", **attributes)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
    graph = helper.make_graph([node], "one", values, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def assert_same_numbers(model: onnx.ModelProto, rewritten: onnx.ModelProto) -> None:
    """At two numbers of rows, and with shapes as the rewritten model describes them."""
    onnx.checker.check_model(rewritten, full_check=True)
    before, after = Runner(model), Runner(rewritten)
    for rows in (1, 3):
        draw = np.random.default_rng(rows)
        feeds = {
            value.name: draw.standard_normal([rows if one.dim_param else one.dim_value for one in dims]).astype("f4")
            for value in model.graph.input
            for dims in [value.type.tensor_type.shape.dim]
        }
        expected, found = before(feeds)["y"], after(feeds)["y"]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max(initial=1.0)))


def conv_model(
    sizes: Sequence[int],
    kernel: Sequence[int],
    *,
    channels: int = 2,
    filters: int = 3,
    bias: bool = True,
    group: int = 1,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
) -> onnx.ModelProto:
    rank = len(sizes)
    given = {"strides": strides, "dilations": dilations, "pads": pads}
    places = [
        (size + before + after - dilation * (width - 1) - 1) // stride + 1
        for size, width, stride, dilation, before, after in zip(
            sizes,
            kernel,
            strides or [1] * rank,
            dilations or [1] * rank,
            (pads or [0] * 2 * rank)[:rank],
            (pads or [0] * 2 * rank)[rank:],
            strict=True,
        )
    ]
    assert min(places) > 0
    inputs: dict[str, Shape] = {"x": ["N", channels, *sizes], "w": [filters, channels // group, *kernel]}
    inputs |= {"b": [filters]} if bias else {}
    attributes = {name: list(value) for name, value in given.items() if value is not None}
    attributes |= {"kernel_shape": list(kernel)} if strides else {}
    return one_node("Conv", inputs, ["N", filters, *places], group=group, **attributes)


@st.composite
def conv_models(draw: st.DrawFn) -> onnx.ModelProto:
    rank = draw(st.sampled_from([1, 2]))

    def some(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, dilations, strides, pads = some(1, 3), some(1, 2), some(1, 3), some(0, 2, 2 * rank)
    sizes = [
        dilation * (width - 1) + 1 + more for width, dilation, more in zip(kernel, dilations, some(0, 4), strict=True)
    ]
    return conv_model(
        sizes,
        kernel,
        channels=draw(st.integers(1, 3)),
        filters=draw(st.integers(1, 4)),
        bias=draw(st.booleans()),
        strides=strides,
        dilations=dilations,
        pads=pads,
    )


@settings(max_examples=60, deadline=None)
@given(model=conv_models())
def test_any_plain_convolution_is_unfolded_for_webgpu_and_has_its_bias_apart_for_coreml(
    model: onnx.ModelProto,
) -> None:
    unfolded, apart = (for_target(model, target) for target in ("webgpu", "coreml"))
    assert "Conv" not in operators(unfolded)
    assert operators(unfolded).count("MatMul") == 1
    assert [len(node.input) for node in apart.graph.node if node.op_type == "Conv"] == [2]
    for rewritten in (unfolded, apart):
        assert_same_numbers(model, rewritten)


CONVS: dict[str, Callable[[], onnx.ModelProto]] = {
    "signal": lambda: conv_model([9], [3]),
    "signal, strided and padded on one side": lambda: conv_model([9], [4], strides=[3], dilations=[1], pads=[0, 2]),
    "image": lambda: conv_model([6, 5], [3, 2]),
    "image, dilated": lambda: conv_model([8, 7], [3, 3], strides=[1, 2], dilations=[2, 3], pads=[0, 0, 0, 0]),
    "image, pads that all differ": lambda: conv_model([6, 5], [3, 2], pads=[0, 1, 2, 3]),
    "1x1": lambda: conv_model([4, 4], [1, 1], bias=False),
    "1x1, strided": lambda: conv_model([5, 4], [1, 1], strides=[2, 3], dilations=[1, 1], pads=[0, 0, 0, 0]),
    "one channel, one filter": lambda: conv_model([4], [2], channels=1, filters=1),
    "as wide as its input": lambda: conv_model([4, 3], [4, 3]),
    "volume": lambda: conv_model([4, 3, 5], [2, 1, 3], pads=[1, 0, 0, 0, 0, 1]),
}


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_gives_the_same_numbers_in_the_forms_of_a_target(name: str, target: str) -> None:
    model = CONVS[name]()
    before = model.SerializeToString()
    assert_same_numbers(model, for_target(model, target))
    assert model.SerializeToString() == before  # it was copied, not changed


@pytest.mark.parametrize(("channels", "group"), [(4, 2), (4, 4)])
def test_grouped_convolutions_stay_but_for_their_bias(channels: int, group: int) -> None:
    model = conv_model([6, 5], [3, 3], channels=channels, filters=4, group=group, pads=[1, 1, 1, 1])
    assert for_target(model, "webgpu") == model
    apart = for_target(model, "coreml")
    assert operators(apart) == ["Conv", "Reshape", "Add"]
    assert_same_numbers(model, apart)


def test_a_convolution_stays_unless_its_rows_and_nothing_else_are_those_of_the_batch() -> None:
    model = one_node("Conv", {"x": ["N", 2, 6], "w": [3, 2, "N"]}, ["N", 3, 6])
    assert for_target(model, "webgpu") == model
    turned = one_node("Conv", {"x": [2, "N", 6], "w": [3, "N", 4]}, [2, 3, 3])
    assert for_target(turned, "webgpu") == turned
    fixed = one_node("Conv", {"x": [2, 3, 6], "w": [4, 3, 2]}, [2, 4, 5])
    assert for_target(fixed, "webgpu") == fixed


@pytest.mark.parametrize("target", OTHERS)
def test_a_convolution_without_bias_is_left_alone_or_gets_none(target: str) -> None:
    rewritten = for_target(conv_model([6], [3], bias=False), target)
    assert "Add" not in operators(rewritten)
    assert rewritten.graph.input[-1].name == "w"


SUMMANDS: dict[str, Shape | None] = {
    "none": None,
    "for each column": [4],
    "for each column, as a row": [1, 4],
    "one number": [1],
    "a scalar": [],
    "for each place": ["N", 4],
}


@pytest.mark.parametrize("summand", SUMMANDS)
@pytest.mark.parametrize("scales", [{}, {"alpha": 0.5}, {"beta": -2.0}, {"alpha": 0.25, "beta": 3.0}], ids=str)
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_gemm_is_a_matrix_product_for_coreml(
    summand: str, scales: Mapping[str, float], trans_a: int, trans_b: int
) -> None:
    inputs: dict[str, Shape] = {"a": [5, "N"] if trans_a else ["N", 5], "b": [4, 5] if trans_b else [5, 4]}
    shape = SUMMANDS[summand]
    inputs |= {} if shape is None else {"c": shape}
    turns = {name: 1 for name, turned in (("transA", trans_a), ("transB", trans_b)) if turned}
    model = one_node("Gemm", inputs, ["N", 4], **turns, **scales)
    rewritten = for_target(model, "coreml")
    found = operators(rewritten)
    assert found.count("MatMul") == 1
    assert found.count("Transpose") == trans_a + trans_b
    assert found.count("Mul") == ("alpha" in scales) + ("beta" in scales and shape is not None)
    assert {*found} <= {"MatMul", "Transpose", "Mul", "Add"}
    assert_same_numbers(model, rewritten)
    assert for_target(model, "webgpu") == model


def test_a_sum_over_the_rows_is_a_matrix_product_too() -> None:
    """The gradient of a linear layer's weight."""
    model = one_node("Gemm", {"x": ["N", 5], "d": ["N", 4]}, [5, 4], transA=1)
    rewritten = for_target(model, "coreml")
    assert operators(rewritten) == ["Transpose", "MatMul"]
    assert_same_numbers(model, rewritten)


def test_an_empty_name_stands_for_no_summand() -> None:
    model = one_node("Gemm", {"a": ["N", 5], "b": [5, 4]}, ["N", 4])
    model.graph.node[0].input.append("")
    assert operators(for_target(model, "coreml")) == ["MatMul"]


# --- whole networks ---


def network() -> LocalNetwork:
    """Plain, strided, depthwise and 1x1 convolutions, with and without bias; linear layers read the blocks out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [
            LocalBlock(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2))),
            LocalBlock(
                nn.Sequential(
                    nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 6, 2, 2)
                )
            ),
        ]
        return LocalNetwork(blocks, input_shape=ROW, classes=CLASSES, name="mixed")


def export(folder: Path, **chosen: Any) -> Artifact:
    row = TensorSpec("x", ROW)
    given = ExportSettings(optimizer=optimizer_spec("adamw"), training=TrainingDefaults(replay_fraction=0.0), **chosen)
    return open_artifact(export_network(network(), folder, preprocessing=Preprocessing(row, (), row), settings=given))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """For every target; the exporter checks each graph against torch."""
    folder = tmp_path_factory.mktemp("targets")
    return {target: export(folder / target, target=target) for target in TARGETS}


def graphs(artifact: Artifact) -> Iterator[tuple[GraphKind, onnx.ModelProto]]:
    for block in artifact.manifest.blocks:
        for kind, spec in block.graphs.items():
            yield kind, onnx.load_from_string(artifact.read(spec.file))


def losses(artifact: Artifact, updates: Updates) -> list[dict[str, float]]:
    engine = OnnxRuntime(1)
    size = 6 if updates == "fused" else 4
    planned = plan(artifact.manifest, Request(6, None, schedule="sweep", micro_batch=size, updates=updates))
    names = [block.name for block in artifact.manifest.blocks]
    trained = open_network(artifact, engine, trained=names, accumulate=updates == "accumulated")
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal((6 * STEPS, *ROW)).astype(np.float32), draw.integers(0, CLASSES, 6 * STEPS)
    rows = TrainingRows(
        PreprocessedRows(x, preprocessing_of(artifact.manifest)), y, MixedOrder(6 * STEPS, 0, 6, 0.0, seed=1)
    )
    trainer = Trainer(trained, planned, rows=rows, learning_rate=LearningRate(1e-2, "constant", STEPS), seed=0)
    return [dict(one.loss) for one in trainer.epoch(Position())]


@pytest.mark.parametrize("updates", ["fused", "accumulated"])
@pytest.mark.parametrize("target", OTHERS)
def test_a_network_trains_with_the_same_losses_in_the_forms_of_a_target(
    artifacts: Mapping[str, Artifact], target: str, updates: Updates
) -> None:
    expected = losses(artifacts["cpu"], updates)
    assert len(expected) == STEPS
    assert expected[-1] != pytest.approx(expected[0], rel=0.05)
    assert losses(artifacts[target], updates) == [pytest.approx(loss, rel=1e-4) for loss in expected]


def test_no_convolution_is_left_for_webgpu_but_grouped_ones(artifacts: Mapping[str, Artifact]) -> None:
    def groups(artifact: Artifact) -> set[int]:
        nodes = [node for _, model in graphs(artifact) for node in model.graph.node if node.op_type == "Conv"]
        return {one.i for node in nodes for one in node.attribute if one.name == "group"}

    assert groups(artifacts["cpu"]) == groups(artifacts["coreml"]) == {1, 4}
    assert groups(artifacts["webgpu"]) == {4}


def test_no_gemm_and_no_bias_of_a_convolution_is_left_for_coreml(artifacts: Mapping[str, Artifact]) -> None:
    def refused(artifact: Artifact) -> set[str]:
        return {
            node.op_type
            for _, model in graphs(artifact)
            for node in model.graph.node
            if node.op_type == "Gemm" or (node.op_type == "Conv" and len(node.input) > 2)
        }

    assert refused(artifacts["cpu"]) == {"Conv", "Gemm"}
    assert refused(artifacts["coreml"]) == set()


@pytest.mark.parametrize("target", OTHERS)
def test_graphs_for_a_target_have_the_same_ports_and_only_operators_that_may_be_used(
    artifacts: Mapping[str, Artifact], target: str
) -> None:
    pairs = list(zip(graphs(artifacts["cpu"]), graphs(artifacts[target]), strict=True))
    assert len(pairs) == 2 * 4
    for (kind, plain), (_, other) in pairs:
        for role in ("input", "output"):
            ports = ({one.name: one for one in getattr(model.graph, role)} for model in (plain, other))
            assert next(ports) == next(ports), kind
        assert {*operators(other)} <= OPERATORS
        if kind == "apply":
            assert other == plain


@pytest.mark.parametrize("target", OTHERS)
def test_other_forms_are_more_nodes_for_the_same_work(artifacts: Mapping[str, Artifact], target: str) -> None:
    plain, other = (artifacts[name].manifest.blocks[0].graphs["step"] for name in ("cpu", target))
    assert other.nodes > plain.nodes
    assert other.work == plain.work  # the same products, in another order


def test_the_manifest_names_the_target(artifacts: Mapping[str, Artifact]) -> None:
    assert [one.manifest.metadata.get("target") for one in artifacts.values()] == [None, "coreml", "webgpu"]


def test_an_unknown_target_is_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^unknown target `tpu`$") as caught:
        export(tmp_path / "artifact", target="tpu")
    assert caught.value.hint == "known: cpu, coreml, webgpu"
    assert list(tmp_path.iterdir()) == []


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {
        str(path.relative_to(artifact.path)): path.read_bytes()
        for path in sorted(artifact.path.rglob("*"))
        if path.is_file()
    }


def test_without_a_target_an_artifact_is_byte_for_byte_what_it_is_for_the_cpu(
    artifacts: Mapping[str, Artifact], tmp_path: Path
) -> None:
    assert contents(export(tmp_path / "artifact")) == contents(artifacts["cpu"])


def test_the_same_network_and_target_give_the_same_bytes(artifacts: Mapping[str, Artifact], tmp_path: Path) -> None:
    again = contents(export(tmp_path / "artifact", target="webgpu"))
    assert again == contents(artifacts["webgpu"]) != contents(artifacts["cpu"])


def test_the_command_line_passes_the_target_on(tiny: TinyRun, tmp_path: Path) -> None:
    result = edgeff("export", tiny.run, "--out", tmp_path / "artifact", "--target", "coreml", "--no-replay")
    assert result.exit_code == 0, result.output
    artifact = open_artifact(tmp_path / "artifact")
    assert artifact.manifest.metadata["target"] == "coreml"
    assert "Gemm" not in {one for _, model in graphs(artifact) for one in operators(model)}
    assert edgeff("export", tiny.run, "--out", tmp_path / "other", "--target", "qnn").exit_code == 2
