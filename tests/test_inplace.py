"""Hand-overs that are written over the rows they come from: which graphs promise it, and that runs learn the same."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from layer_cases import ADAMW
from torch import nn

from edgeff.artifact import Artifact, open_artifact
from edgeff.export.graphs import compile_block
from edgeff.export.inplace import HANDOVER, ROWS_IN, hands_over_in_place, unsafe_readers
from edgeff.export.ir import Graph, Rows
from edgeff.export.writer import export_network
from edgeff.goodness import PooledGoodness
from edgeff.handover import NoHandoverNorm
from edgeff.manifest import Manifest, TensorSpec
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.preprocess import Preprocessing
from edgeff.providers import CPU
from edgeff.runtime.buffers import allocate_buffers, buffer_bytes
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.network import Chain, Graphs, open_network
from edgeff.runtime.providers import CPU_PROVIDER, ProviderKind

KINDS = ("step", "accumulate", "forward", "fast_accumulate")


def network_of(*layers: nn.Module, row: tuple[int, ...], handover: object | None = None) -> LocalNetwork:
    torch.manual_seed(0)
    options = {} if handover is None else {"handover": handover}
    blocks = [LocalBlock(layer, goodness=PooledGoodness(cells=2), **options) for layer in layers]
    return LocalNetwork(blocks, input_shape=row, classes=3)


def convolution(ins: int, outs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(ins, outs, 3, padding=1), nn.ReLU())


def graphs_of(network: LocalNetwork, block: int = 0) -> dict[str, onnx.ModelProto]:
    made = compile_block(network.sequence[block], optimizer_spec=ADAMW, input_dtype="float32", last=False)
    return {kind: model for kind, model in made.models.items() if kind in KINDS}


def any_order(model: onnx.ModelProto, seed: int) -> list[onnx.NodeProto]:
    """The nodes in some order that their data allow."""
    draw = random.Random(seed)
    there = {value.name for value in [*model.graph.input, *model.graph.initializer]} | {""}
    left, order = list(model.graph.node), []
    while left:
        node = draw.choice([one for one in left if there.issuperset(one.input)])
        there |= set(node.output)
        left.remove(node)
        order.append(node)
    return order


def test_in_whatever_order_nodes_run_the_rows_are_read_before_they_are_written_over() -> None:
    graphs = graphs_of(network_of(convolution(8, 8), row=(8, 40, 40)))
    assert hands_over_in_place(graphs.values())
    for kind, model in graphs.items():
        assert not unsafe_readers(model, ROWS_IN, HANDOVER)
        for seed in range(5):
            order = any_order(model, seed)
            written = next(place for place, node in enumerate(order) if HANDOVER in node.output)
            views = {ROWS_IN}
            for place, node in enumerate(order):
                if views & set(node.input):
                    assert place < written, (kind, node.name)
                    views |= set(node.output) if node.op_type == "Reshape" else set()


def test_whoever_reads_the_rows_transposed_reads_the_rows() -> None:
    """onnxruntime lets a matrix product read what is transposed instead of the transposed."""
    graph = Graph()
    x, weight = graph.input("x", (Rows(1), 4, 6)), graph.input("parameter.w", (4, 4))
    turned = graph.transpose(x, [0, 2, 1])
    product = graph.node("MatMul", [turned, weight], [((Rows(1), 6, 4), "float32")])[0]
    graph.output("handover", product * 2.0)
    graph.output("late", graph.node("MatMul", [turned, weight * 2.0], [((Rows(1), 6, 4), "float32")])[0])
    assert [node.output[0] for node in unsafe_readers(graph.to_model("one"), ROWS_IN, HANDOVER)] == ["late"]


def test_a_hand_over_waits_for_small_tensors_and_holds_back_a_small_one() -> None:
    """What the sizes are taken of is held until then, and a Where lays out what it chooses from."""
    model = graphs_of(network_of(convolution(8, 8), row=(8, 40, 40)))["accumulate"]
    made = {node.output[0]: node for node in model.graph.node}
    waited = [node.input[0] for name, node in made.items() if name.startswith(f"{HANDOVER}.after_")]
    assert waited == ["new.gradient.transform.0.weight"]
    (held,) = (node for name, node in made.items() if name == f"{HANDOVER}.held")
    (spec,) = (value for value in model.graph.value_info if value.name == held.input[1])
    assert [dim.dim_param or dim.dim_value for dim in spec.type.tensor_type.shape.dim] == ["N", 1, 1, 1]


@pytest.mark.parametrize(
    ("layer", "row", "handover", "why"),
    [
        (convolution(2, 8), (2, 40, 40), None, "the hand-over is larger"),
        (convolution(4, 4), (4, 8, 8), None, "it is small: a wait would not be worth it"),
        (convolution(8, 8), (8, 40, 40), NoHandoverNorm(), "one operator convolves and hands over"),
        (nn.Sequential(nn.LayerNorm((8, 40, 40)), nn.ReLU()), (8, 40, 40), None, "arithmetic reads the rows"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_a_hand_over_stays_apart_where(layer: nn.Module, row: tuple[int, ...], handover: object, why: str) -> None:
    assert why
    assert not hands_over_in_place(graphs_of(network_of(layer, row=row, handover=handover)).values())


def test_a_last_block_and_graphs_without_rows_promise_nothing() -> None:
    network = network_of(convolution(8, 8), row=(8, 40, 40))
    last = compile_block(network.sequence[0], optimizer_spec=ADAMW, input_dtype="float32", last=True)
    assert not hands_over_in_place(last.models.values())
    assert not hands_over_in_place([last.models["apply"]])


# --- runs ---


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Four blocks: the second hands over as much as it takes, the third less."""
    third = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)))
    network = network_of(convolution(2, 8), convolution(8, 8), third, convolution(8, 2), row=(2, 48, 48))
    spec = TensorSpec("x", (2, 48, 48))
    out = tmp_path_factory.mktemp("in_place") / "artifact"
    return open_artifact(export_network(network, out, preprocessing=Preprocessing(spec, (), spec)))


def apart(manifest: Manifest) -> Manifest:
    return replace(manifest, blocks=tuple(replace(block, handover_in_place=False) for block in manifest.blocks))


def sums(
    artifact: Artifact, micro_batches: list[int], provider: str | ProviderKind = CPU
) -> tuple[list[np.ndarray], int]:
    """Gradient sums of all blocks after a batch of six rows, and bytes of the two stretches of hand-overs."""
    names = [block.name for block in artifact.manifest.blocks]
    network = open_network(artifact, OnnxRuntime(1, provider), trained=names, accumulate=True)
    buffers = allocate_buffers(artifact.manifest, 6, {})
    draw = np.random.default_rng(1)
    buffers.features[...] = draw.standard_normal(buffers.features.shape)
    buffers.y[...], buffers.row_weight[...] = draw.integers(0, 3, 6), 1 / 6
    graphs = Graphs(artifact, network.engine)
    chain = Chain(network, graphs, ["accumulate"] * 4, buffers, micro_batches=micro_batches)
    for part in chain.parts(6):
        part.call.run()
    found = [array for memory in network.memories for name, array in memory.arrays.items() if name[:8] == "gradient"]
    return found, sum(one.nbytes for one in buffers.handovers)


@pytest.mark.parametrize("micro_batches", [[6, 6, 6, 6], [3, 2, 4, 1]])
def test_a_batch_in_any_parts_gives_the_same_gradients_in_fewer_bytes(
    artifact: Artifact, micro_batches: list[int]
) -> None:
    assert [block.handover_in_place for block in artifact.manifest.blocks] == [False, True, True, False]
    found, bytes_ = sums(artifact, micro_batches)
    expected, bytes_apart = sums(replace(artifact, manifest=apart(artifact.manifest)), micro_batches)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_array_equal(one, other)
    assert (bytes_, bytes_apart) == (6 * 4 * 8 * 48 * 48, 2 * 6 * 4 * 8 * 48 * 48)
    assert buffer_bytes(apart(artifact.manifest), 6) - buffer_bytes(artifact.manifest, 6) == bytes_apart - bytes_


def test_where_a_provider_compiles_graphs_a_hand_over_is_written_over_the_rows_once_the_graph_has_run(
    artifact: Artifact,
) -> None:
    compiling = ProviderKind("stand-in", CPU_PROVIDER, in_place=False)
    found, _ = sums(artifact, [3, 2, 4, 1], compiling)
    expected, _ = sums(artifact, [3, 2, 4, 1])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    network = open_network(artifact, OnnxRuntime(1, compiling))
    buffers = allocate_buffers(artifact.manifest, 2, {})
    chain = Chain(network, Graphs(artifact, network.engine), ["forward"] * 3, buffers)
    calls = {part.block: part.call for part in chain.parts(2)}
    assert {block: [np.shares_memory(old, new) for old, new in call.renewed] for block, call in calls.items()} == {
        0: [],
        1: [False],
        2: [False],
    }


def test_a_block_that_begins_a_chain_writes_over_nothing(artifact: Artifact) -> None:
    """What it takes comes from elsewhere and may be asked for again."""
    manifest = artifact.manifest
    buffers = allocate_buffers(manifest, 2, {}, first=1, last=2)
    first, second = (buffers.bound_for(block, 0, 2, manifest) for block in (1, 2))
    assert not np.shares_memory(first["x"], first["handover"])
    assert second["x"].ctypes.data == first["handover"].ctypes.data == second["handover"].ctypes.data
