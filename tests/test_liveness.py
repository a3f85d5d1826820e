"""The bytes that `edgeff.export.memory` finds in a graph, counted again in another way.

Here nothing is read from shapes that the exporter wrote: onnxruntime runs every graph, and every inner tensor is taken
out and weighed. Then allocation and release are acted out, by counting who still has to read a tensor. Which nodes are
run as one is read from the graph that onnxruntime makes of it. The order of the nodes, in which both count, is held
against the one in which onnxruntime says that it ran them.
"""

from __future__ import annotations

import copy
import json
import math
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_cases import ADAMW, CASES, SGD, Case, block_of, compiled, rows_for, starting_feeds
from onnx import helper
from test_random_blocks import Drawn, random_blocks

from edgeff.export.graphs import BlockGraphs, apply_model
from edgeff.export.memory import bytes_alive, run_order, tensors_of, transient
from edgeff.export.order import ENDS, Costs
from edgeff.manifest import GraphKind, OptimizerSpec

ROWS = (1, 3, 8)
KINDS: tuple[GraphKind, ...] = ("step", "accumulate", "forward", "fast_accumulate")
# Their result shows what their operand holds.
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
# What only puts nodes into an order is a number or a truth value.
ORDERING_BYTES = 8
Feeds = Mapping[str, np.ndarray]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Nothing is optimised: nodes are those of the file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# Runs graphs `<number>.onnx` of a folder with the arrays of `<number>.npz`; prints, of each, its nodes as they ran.
TELL_ORDERS = """
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
orders = []
for number in range(int(sys.argv[2])):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(folder / f"{number}.onnx"), options)
    session.run(None, dict(np.load(folder / f"{number}.npz")))
    events = json.loads(Path(session.end_profiling()).read_text())
    names = [event["name"] for event in events if event.get("cat") == "Node"]
    end = "_kernel_time"
    orders.append([int(name.removeprefix("node_").removesuffix(end)) for name in names if name.endswith(end)])
print(json.dumps(orders))
"""


def orders_of_runs(graphs: Sequence[tuple[onnx.ModelProto, Feeds]], folder: Path, python: str) -> list[list[int]]:
    """Numbers of the nodes as the onnxruntime of an interpreter ran them, by its profile."""
    for number, (model, feeds) in enumerate(graphs):
        named = copy.deepcopy(model)
        for place, node in enumerate(named.graph.node):
            node.name = f"node_{place}"
        onnx.save(named, folder / f"{number}.onnx")
        np.savez(folder / f"{number}.npz", **{value.name: feeds[value.name] for value in model.graph.input})
    command = [python, "-c", TELL_ORDERS, str(folder), str(len(graphs))]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=300)
    assert done.returncode == 0, done.stderr
    orders: list[list[int]] = json.loads(done.stdout)
    return orders


def all_tensors(model: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """Inputs, constants, and the result of every node, by name."""
    open_ = copy.deepcopy(model)
    outputs = {value.name for value in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if name and name not in outputs]
    open_.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    running = session(open_)
    names = [value.name for value in running.get_outputs()]
    found = running.run(names, {value.name: feeds[value.name] for value in model.graph.input})
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    return {**feeds, **constants, **dict(zip(names, map(np.asarray, found), strict=True))}


def merged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that onnxruntime makes of one."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "made.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def run_as_one(model: onnx.ModelProto, made: onnx.ModelProto) -> dict[str, str]:
    """What a convolution or Gemm gives that onnxruntime runs with the Relu after it: its own name -> the Relu's."""
    relus = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Relu"}
    results = [node.output[0] for node in made.graph.node if node.op_type in ("FusedConv", "FusedGemm")]
    return {relus[name]: name for name in results if name in relus}


def read_the_other_way_round(model: onnx.ModelProto, made: onnx.ModelProto) -> set[str]:
    """Transposed matrices that only products read; onnxruntime does not make them."""
    orders = {node.output[0]: list(node.attribute[0].ints) for node in model.graph.node if node.op_type == "Transpose"}
    readers = [(name, node.op_type) for node in model.graph.node for name in node.input]
    turned = {name for name, order in orders.items() if order[:-2] == sorted(order)[:-2]}
    turned -= {name for name, operator in readers if operator != "MatMul"} | {one.name for one in model.graph.output}
    assert not turned & {name for node in made.graph.node for name in node.output}
    return turned


def workspace(node: onnx.NodeProto, tensors: Mapping[str, np.ndarray]) -> int:
    """What a kernel takes for itself: a convolution unfolds its input, one of rows by stripes; Where lays out both."""
    attributes: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "Where":
        return 2 * tensors[node.output[0]].nbytes
    if node.op_type == "ConvTranspose":
        operand, weight = (tensors[name] for name in node.input[:2])
        return math.prod(weight.shape[1:]) * math.prod(operand.shape[2:]) * 4
    if node.op_type != "Conv":
        return 0
    weight, out = tensors[node.input[1]], tensors[node.output[0]]
    places = math.prod(out.shape[2:])
    if {*weight.shape[2:], *attributes["strides"]} == {1} and not any(attributes["pads"]):
        return 0
    many_filters = weight.shape[0] // attributes.get("group", 1) > places
    return places * math.prod(weight.shape[1:]) * 4 if many_filters else 128 * 128 * 4


def most_alive(model: onnx.ModelProto, order: Sequence[int], tensors: Mapping[str, np.ndarray]) -> int:
    """The most bytes held at once, by acting the run out; what the caller owns is not counted."""
    nodes, made = list(model.graph.node), merged(model)
    joined, turned = run_as_one(model, made), read_the_other_way_round(model, made)
    done = set(joined.values())  # by the node before
    reads = [[] if node.output[0] in done else [name for name in node.input if name] for node in nodes]
    makes = [[joined.get(name, name) for name in node.output if name and name not in done] for node in nodes]
    owned = {value.name for value in [*model.graph.input, *model.graph.output]}
    owned |= {one.name for one in model.graph.initializer}
    shown = {name: name for names in [*reads, *makes] for name in names}
    for node in nodes:
        if node.op_type in VIEWS or node.output[0] in turned:
            shown[node.output[0]] = shown[node.input[0]]
    described = {value.name for value in model.graph.value_info} | owned
    readers = Counter(shown[name] for names in reads for name in names)
    held: dict[str, int] = {}
    most = 0
    for number in order:
        for name in makes[number]:
            if name not in owned and shown[name] == name:
                assert name in described or tensors[name].nbytes <= ORDERING_BYTES
                held[name] = tensors[name].nbytes if name in described else 0
        most = max(most, sum(held.values()) + workspace(nodes[number], tensors))
        readers.subtract(shown[name] for name in reads[number])
        for name in [name for name in held if not readers[name]]:
            del held[name]
    return most


def feeds_for(graphs: BlockGraphs, kind: GraphKind, case: Case, rows: int, spec: OptimizerSpec) -> Feeds:
    x, y, row_weight = (value.numpy() for value in rows_for(case, rows))
    own = {"x": x, "y": y, "row_weight": row_weight, "seed": np.array(5, np.int64)}
    sums = [value for value in graphs.models[kind].graph.input if value.name.startswith("gradient.")]
    # Of whatever shape the graph wants them.
    own |= {one.name: np.zeros([dim.dim_value for dim in one.type.tensor_type.shape.dim], np.float32) for one in sums}
    return {name: np.asarray(value) for name, value in {**starting_feeds(graphs, spec), **own}.items()}


def assert_counts_agree(graphs: BlockGraphs, case: Case, spec: OptimizerSpec) -> None:
    """Every graph of a block, at several micro-batches."""
    for kind in (kind for kind in KINDS if kind in graphs.models):
        model = graphs.models[kind]
        read, moments = tensors_of(model), transient(model)
        order = run_order(read.sources, read.ends)
        for rows in ROWS:
            tensors = all_tensors(model, feeds_for(graphs, kind, case, rows, spec))
            expected = most_alive(model, order, tensors)
            assert max((one.at(rows) for one in moments), default=0) == expected, (kind, rows)


def compile_case(name: str) -> BlockGraphs:
    case = CASES[name]
    return compiled(case.block(), ADAMW, input_dtype=case.input_dtype, dropout=case.dropout)


QUICK = (
    "conv uneven",
    "conv wide",
    "depthwise",
    "prelu",
    "max pool padded",
    "group norm",
    "concat",
    "attention",
    "embedding",
)
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", ALL)
def test_a_blocks_graphs_hold_what_is_alive_when_they_run(name: str) -> None:
    assert_counts_agree(compile_case(name), CASES[name], ADAMW)


@given(random_blocks(), st.sampled_from([ADAMW, SGD]))
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_random_blocks_hold_what_is_alive_when_they_run(drawn: Drawn, spec: OptimizerSpec) -> None:
    case = Case(lambda: drawn.layers, drawn.shape, tokens=drawn.input_dtype == "int64")
    block = block_of(drawn.layers, drawn.shape, input_dtype=drawn.input_dtype)
    assert_counts_agree(compiled(block, spec, input_dtype=drawn.input_dtype), case, spec)


def relu_blocks() -> onnx.ModelProto:
    """Convolutions and a Gemm with a Relu each; of one the Relu, of one its own result is given to the caller."""

    def described(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    def conv(source: str, weight: str, result: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [source, weight], [result], kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])

    nodes = [
        conv("x", "w1", "conv1"),
        helper.make_node("Relu", ["conv1"], ["handover"]),
        conv("handover", "w2", "conv2"),
        helper.make_node("Relu", ["conv2"], ["relu2"]),
        conv("relu2", "w3", "loss"),
        helper.make_node("Relu", ["loss"], ["relu3"]),
        helper.make_node("Mul", ["relu2", "relu3"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["means", "w4"], ["gemm"]),
        helper.make_node("Relu", ["gemm"], ["relu4"]),
        helper.make_node("Neg", ["relu4"], ["log_probabilities"]),
    ]
    weights = [described("w1", 6, 2, 3, 3), *(described(f"w{number}", 6, 6, 3, 3) for number in (2, 3))]
    maps = [described(name, "N", 6, 9, 9) for name in ("conv1", "conv2", "relu2", "relu3", "product")]
    flat = [described(name, "N", 6) for name in ("means", "gemm", "relu4")]
    given = [*(described(name, "N", 6, 9, 9) for name in ("loss", "handover")), described("log_probabilities", "N", 6)]
    graph = helper.make_graph(
        nodes,
        "relus",
        [described("x", "N", 2, 9, 9), *weights, described("w4", 6, 6)],
        given,
        value_info=[*maps, *flat],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_relu_takes_no_bytes_of_its_own_where_onnxruntime_runs_it_with_the_node_before() -> None:
    model = relu_blocks()
    assert run_as_one(model, merged(model)) == {"conv1": "handover", "conv2": "relu2", "gemm": "relu4"}
    read, moments = tensors_of(model), transient(model)
    assert [one.name for one in read.held] == ["conv2", "relu3", "product", "means", "gemm"]
    for rows in ROWS:
        draw = np.random.default_rng(0)
        sizes = [[dim.dim_value or rows for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
        feeds = {
            one.name: draw.standard_normal(size, np.float32) for one, size in zip(model.graph.input, sizes, strict=True)
        }
        expected = most_alive(model, run_order(read.sources, read.ends), all_tensors(model, feeds))
        assert max(one.at(rows) for one in moments) == expected


@pytest.mark.parametrize("environment", ["device_python", "old_python"])
@pytest.mark.parametrize("names", [QUICK, pytest.param(tuple(CASES), marks=pytest.mark.slow)], ids=["quick", "all"])
def test_onnxruntime_runs_the_nodes_in_the_order_that_is_counted_in(
    names: Sequence[str], environment: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of a device: the training build of the workstation runs a Size earlier than all others do."""
    python = request.getfixturevalue(environment)
    graphs = []
    for name in names:
        made = compile_case(name)
        graphs += [
            (made.models[kind], feeds_for(made, kind, CASES[name], 2, ADAMW)) for kind in KINDS if kind in made.models
        ]
    for (model, _), ran in zip(graphs, orders_of_runs(graphs, tmp_path, str(python)), strict=True):
        read = tensors_of(model)
        assert run_order(read.sources, read.ends) == ran


def test_the_shared_update_holds_what_is_alive_when_it_runs() -> None:
    for spec in (ADAMW, SGD):
        model = apply_model(spec)
        read, moments = tensors_of(model), transient(model)
        for numbers in (1, 16, 1000):
            shapes = {value.name: [numbers] * len(value.type.tensor_type.shape.dim) for value in model.graph.input}
            tensors = all_tensors(model, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
            expected = most_alive(model, run_order(read.sources, read.ends), tensors)
            assert max(one.at(numbers) for one in moments) == expected


@pytest.mark.parametrize("kind", ["accumulate", "forward"])
def test_what_an_order_costs_is_what_is_alive_in_it(kind: GraphKind) -> None:
    """Counted from its end, in one pass, it is what the pass over all lifetimes gives."""
    tensors = tensors_of(compiled(CASES["residual"].block()).models[kind])
    costs = Costs(tensors, 8)
    for first in ({}, {ENDS: tensors.ends[::-1]}):
        order = costs.file_order(first)
        alive = bytes_alive(tensors, costs.run(order), 8)
        assert costs.cost(order) == (max(alive), sum(alive))
        assert costs.cost(order, max(alive)) == costs.cost(order)
        assert costs.cost(order, max(alive) - 1)[0] > max(alive) - 1
