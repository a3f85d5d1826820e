"""ONNX files of strangers: a test for each MUST of `docs/artifact-format.md` from M46 on; onnx is the judge."""

import dataclasses
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from graph_files import graph_bytes, graph_files, inference_bytes, model_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, StringStringEntryProto, TensorProto, helper, numpy_helper
from test_artifact import GOLDEN, MANIFEST, contents, written
from tiny_artifact import Tiny, graph_model, inference_content, initial_weights
from tiny_run import TinyRun

from edgeff.artifact import open_artifact
from edgeff.container import Folder
from edgeff.errors import ArtifactError, ExportError
from edgeff.export.openable import check_openable
from edgeff.onnx_dialects import PLAIN, TRAINING
from edgeff.onnx_files import check_onnx_files
from edgeff.onnx_limits import DTYPES, MAX_ELEMENTS, MAX_NAME_BYTES, MAX_NODES
from edgeff.onnx_operators import (
    DESCRIBED_OPERATORS,
    OPERATORS,
    SHAPE_OPERATORS,
    SHAPE_READERS,
    SIZING_INPUTS,
    TRAINING_OPERATORS,
)
from edgeff.onnx_rules import IR_VERSIONS, OPSETS, check_onnx
from edgeff.protobuf_stream import FieldStream, Message, field_key, read_message

INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
OWN = "com.microsoft"


def domain_of(kind):
    """Where an operator stands that either dialect allows."""
    return OWN if kind in TRAINING_OPERATORS[OWN] else ""


def dialect_of(kind):
    """The first that allows an operator."""
    return PLAIN if kind in OPERATORS else TRAINING


def node(kind, inputs, *outputs, **attributes):
    return helper.make_node(kind, inputs, list(outputs), domain=domain_of(kind), **attributes)


def small_model():
    """A model with every kind of part: y = w * relu(x), reshaped, plus what a constant node and a fill give."""
    nodes = [
        node("Relu", ["x"], "r", name="relu"),
        node("Gemm", ["r", "w", ""], "g", alpha=0.5, transB=1),
        node("Reshape", ["g", "shape"], "y"),
        node("Constant", [], "c", value_float=2.0),
        node("ConstantOfShape", ["shape"], "z", value=helper.make_tensor("value", FLOAT, [1], [3.0])),
        node("Conv", ["z", "k"], "v", pads=[1, 1, 1, 1], auto_pad="NOTSET"),
    ]
    initializers = [
        numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w"),
        numpy_helper.from_array(np.array([-1, 2], np.int64), "shape"),
        helper.make_tensor("k", FLOAT, [1, 1, 1, 2], [1.0, 2.0]),
        helper.make_tensor("flags", TensorProto.BOOL, [2], [True, False]),
        helper.make_tensor("rows", INT64, [2], [5, -1]),
    ]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["N", 3])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["N", 2])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers, doc_string="for\ntests")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="edgeff")


def training_model():
    """The small model with what only a file for onnxruntime-training may have."""
    model = small_model()
    model.opset_import.append(helper.make_opsetid(OWN, 1))
    model.graph.node.append(node("ReluGrad", ["r", "x"], "rg"))
    model.graph.node.append(node("MaxPoolGrad", ["rg", "rows"], "mp", kernel_shape=[2]))
    model.graph.value_info.append(helper.make_tensor_value_info("mp", FLOAT, ["N", 3]))
    model.graph.input.append(helper.make_tensor_sequence_value_info("params", FLOAT, None))
    return model


def check(model, **options):
    data = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
    return check_onnx(io.BytesIO(data), len(data), "f.onnx", **options)


def refusal(model, **options):
    """What is said of a model, without the file's name."""
    with pytest.raises(ArtifactError) as caught:
        check(model, **options)
    assert caught.value.hint
    message = str(caught.value)
    assert message.startswith("`f.onnx`: ")
    assert message.isprintable()
    return message.removeprefix("`f.onnx`: ")


def changed(change, model=None):
    """The small model, or the given one, after a change."""
    model = model or small_model()
    change(model)
    return model


def varint(value):
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def bytes_field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def number_field(number, value):
    return varint(number << 3) + varint(value)


def in_graph(extra):
    """The small model with bytes added to its graph."""
    model = small_model()
    data = model.graph.SerializeToString(deterministic=True) + extra
    model.ClearField("graph")
    return model.SerializeToString(deterministic=True) + bytes_field(7, data)


# --- good files -------------------------------------------------------------------------------------------------------


def test_a_good_file_tells_its_inputs_and_outputs():
    ports = check(small_model())
    assert [(port.name, port.shape, port.dtype) for port in ports.inputs] == [("x", (None, 3), "float32")]
    assert [(port.name, port.shape, port.dtype) for port in ports.outputs] == [("y", (None, 2), "float32")]


def walked(data, dialect=PLAIN):
    """Operator, inputs and outputs of every node, as edgeff reads them."""
    nodes = []
    check_onnx(io.BytesIO(data), len(data), "f.onnx", dialect=dialect, on_node=nodes.append)
    return [(node.operator, [n.decode() for n in node.inputs], [n.decode() for n in node.outputs]) for node in nodes]


def parsed(data, dialect=PLAIN):
    """The same, as the onnx package reads them."""
    model = ModelProto.FromString(data)
    for one in model.graph.node:
        assert one.op_type.encode() in dialect.operators[one.domain.removeprefix("ai.onnx").encode()]
    return [(one.op_type, list(one.input), list(one.output)) for one in model.graph.node]


@pytest.mark.parametrize(("make", "dialect", "nodes"), [(small_model, PLAIN, 6), (training_model, TRAINING, 8)])
def test_a_file_is_read_as_the_onnx_package_reads_it(make, dialect, nodes):
    data = make().SerializeToString()
    assert walked(data, dialect) == parsed(data, dialect)
    assert len(walked(data, dialect)) == nodes


def test_every_file_of_an_exported_artifact_is_read_as_the_onnx_package_reads_it(tiny: TinyRun):
    files = sorted(tiny.artifact.rglob("*.onnx"))
    assert len(files) > 4
    for file in files:
        data = file.read_bytes()
        model = onnx.load_from_string(data)
        assert walked(data) == parsed(data)
        ports = check_onnx(io.BytesIO(data), len(data), file.name)
        for found, infos in ((ports.inputs, model.graph.input), (ports.outputs, model.graph.output)):
            assert [(port.name, port.dtype, port.shape) for port in found] == [port_of(info) for info in infos]


def port_of(info):
    kind = info.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return info.name, DTYPES[kind.elem_type], shape


@pytest.mark.parametrize("kind", ["step", "accumulate", "apply", "forward"])
def test_hand_written_graphs_are_read_as_the_onnx_package_reads_them(kind):
    data = graph_model(Tiny(seeded=True), 0, kind).SerializeToString()
    assert walked(data) == parsed(data)


def test_packed_numbers_of_proto3_are_read_like_those_of_proto2():
    dims = bytes_field(1, varint(2) + varint(3))
    tensor = dims + number_field(2, 1) + bytes_field(8, b"more") + bytes_field(9, bytes(24))
    attribute = bytes_field(1, b"pads") + bytes_field(8, varint(1) * 4) + number_field(20, 7)
    pool = bytes_field(1, b"z") + bytes_field(2, b"p") + bytes_field(4, b"LpPool") + bytes_field(5, attribute)
    assert walked(in_graph(bytes_field(5, tensor) + bytes_field(1, pool)))[-1] == ("LpPool", ["z"], ["p"])


def test_the_order_of_fields_does_not_matter():
    model = small_model()
    fields = [bytes_field(5, one.SerializeToString()) for one in model.graph.initializer]
    fields += [bytes_field(11, one.SerializeToString()) for one in model.graph.input]
    nodes = [bytes_field(1, one.SerializeToString()) for one in model.graph.node]
    outputs = [bytes_field(12, one.SerializeToString()) for one in model.graph.output]
    for graph in (b"".join([*outputs, *fields, *nodes]), b"".join([*nodes, *fields[::-1], *outputs])):
        data = bytes_field(8, number_field(2, 17)) + bytes_field(7, graph) + number_field(1, 8)
        assert len(walked(data)) == 6


@pytest.mark.parametrize(("make", "dialect"), [(small_model, PLAIN), (training_model, TRAINING)])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_byte_is_changed_a_file_is_refused_or_read_as_the_onnx_package_reads_it(make, dialect, data):
    changed = bytearray(make().SerializeToString(deterministic=True))
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position] ^= data.draw(st.integers(1, 255))
    agrees_or_refuses(bytes(changed), dialect)


@pytest.mark.parametrize(("make", "dialect"), [(small_model, PLAIN), (training_model, TRAINING)])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_is_cut_out_or_doubled_a_file_is_refused_or_read_as_the_onnx_package_reads_it(make, dialect, data):
    good = make().SerializeToString(deterministic=True)
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(good))] * 2)))
    at = data.draw(st.integers(0, len(good)))
    agrees_or_refuses(good[:start] + good[end:], dialect)
    agrees_or_refuses(good[:at] + good[start:end] + good[at:], dialect)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(ArtifactError):
        check(data)


def agrees_or_refuses(data, dialect):
    try:
        found = walked(data, dialect)
    except ArtifactError:
        return
    # Whatever is let through, the onnx package must read, and as the same nodes, of operators that are allowed.
    assert found == parsed(data, dialect)


# --- M46: the wire format ---------------------------------------------------------------------------------------------

SMALL = small_model().SerializeToString(deterministic=True)
MALFORMED = {
    "empty": (b"", "IR version 0 is not allowed, needed 7 to 9"),
    "a key that ends early": (SMALL + b"\x80", "the file ends inside a number"),
    "a length that ends early": (SMALL + b"\x1a\xff", "the file ends inside a number"),
    "a length past the end": (SMALL + b"\x1a\x05abc", "a field reaches past the end of what it stands in"),
    "a huge length": (SMALL + b"\x1a" + varint(2**63), "a field reaches past the end of what it stands in"),
    "11 bytes for a number": (SMALL + b"\x28" + b"\x80" * 10 + b"\x01", "a number has more than 10 bytes"),
    "a number above 64 bits": (SMALL + b"\x28" + b"\xff" * 9 + b"\x02", "a number is not in its shortest form"),
    "a number in two bytes for one": (SMALL + b"\x28\x81\x00", "a number is not in its shortest form"),
    "a group": (SMALL + b"\x3b\x3c", "the model has `graph` as a group"),
    "an unknown wire type": (SMALL + b"\x3f", "the model has `graph` as an unknown type"),
    "another wire type": (SMALL + number_field(7, 1), "the model has `graph` as a number"),
    "an unknown field": (SMALL + number_field(99, 1), "the model has the unknown field 99 as a number"),
    "field 0": (SMALL + b"\x00\x00", "the model has the unknown field 0 as a number"),
    "a second graph": (SMALL + bytes_field(7, b""), "the model has `graph` twice"),
    "a second IR version": (SMALL + number_field(1, 8), "the model has `ir_version` twice"),
    "a second name of the graph": (in_graph(bytes_field(2, b"again")), "the graph has `name` twice"),
    "two operators in a node": (
        in_graph(bytes_field(1, bytes_field(4, b"Relu") + bytes_field(4, b"Tanh"))),
        "node 6: a node has `op_type` twice",
    ),
    "two values in an attribute": (
        in_graph(bytes_field(1, bytes_field(4, b"Elu") + bytes_field(5, number_field(3, 1) * 2))),
        "node 6: an attribute has `i` twice",
    ),
    "two data types of a tensor": (
        in_graph(bytes_field(5, number_field(2, 1) + number_field(2, 1))),
        "a tensor has `data_type` twice",
    ),
    "a node cut off": (in_graph(b"\x0a\x09abc"), "a field reaches past the end of what it stands in"),
    "a float cut off": (
        in_graph(bytes_field(1, bytes_field(4, b"Elu") + bytes_field(5, b"\x15\x00\x00"))),
        "node 6: a field reaches past the end of what it stands in",
    ),
    "a group in a node": (in_graph(bytes_field(1, b"\x0b")), "node 6: a node has `input` as a group"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_m46_malformed_bytes_are_refused(case):
    data, message = MALFORMED[case]
    assert refusal(data) == message


def test_m46_a_second_graph_is_what_protobuf_would_merge():
    """So it is more than untidy: a check that takes one of them would not have seen the other's nodes."""
    hidden = bytes_field(7, bytes_field(1, bytes_field(4, b"Loop")))
    assert "Loop" in [one.op_type for one in ModelProto.FromString(SMALL + hidden).graph.node]
    assert refusal(SMALL + hidden) == "the model has `graph` twice"


@given(st.integers(0, 2**64 - 1), st.integers(1, 9))
def test_m46_every_number_has_one_form(value, more):
    message = Message("m", single={field_key(1, 0): "n"})
    assert read_message(number_field(1, value), message) == {field_key(1, 0): [value]}
    padded = varint(value)[:-1] + bytes([varint(value)[-1] | 128]) + b"\x80" * (more - 1) + b"\x00"
    with pytest.raises(ArtifactError):
        read_message(b"\x08" + padded, message)


def test_m46_a_stream_shorter_than_the_manifest_says_is_refused():
    with pytest.raises(ArtifactError, match="reaches past the end"):
        check_onnx(io.BytesIO(SMALL[:-3]), len(SMALL), "f.onnx")


# --- M47: caps --------------------------------------------------------------------------------------------------------


def test_m47_a_file_above_its_limit_is_not_even_read():
    assert refusal(SMALL, limit=100) == f"it has {len(SMALL)} bytes, allowed at most 100"


def test_m47_too_many_nodes_are_refused():
    extra = bytes_field(1, b"") * (MAX_NODES + 1 - 6)
    assert refusal(in_graph(extra)) == "the graph has more than 65536 of `node`"


def test_m47_a_large_node_is_refused():
    model = changed(lambda model: setattr(model.graph.node[2], "doc_string", "x" * 2**16))
    assert re.fullmatch(r"node 2: it has \d+ bytes, allowed at most 65536", refusal(model))


def test_m47_large_nodes_are_refused_together():
    extra = bytes_field(1, bytes_field(6, bytes(60_000))) * 600
    assert re.fullmatch(r"the nodes have \d+ bytes, allowed at most 33554432", refusal(in_graph(extra)))


def test_m47_a_node_with_too_many_tensors_is_refused():
    model = changed(lambda model: model.graph.node.append(node("Sum", ["x"] * 1024, "s")))
    assert refusal(model) == "node 6: it has 1025 tensors and 0 attributes, allowed 1024 and 32"


def test_m47_a_node_with_too_many_attributes_is_refused():
    model = changed(lambda model: model.graph.node.append(node("Elu", ["x"], "s", **{f"a{i}": 1 for i in range(33)})))
    assert refusal(model) == "node 6: it has 2 tensors and 33 attributes, allowed 1024 and 32"


def test_m47_empty_fields_without_end_are_refused_and_soon():
    tensor = bytes_field(1, b"") * 2**20
    assert refusal(in_graph(bytes_field(5, tensor))) == "the file has too many fields"


# --- M48: the model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 6, 10, 2**40])
def test_m48_other_ir_versions_are_refused(version):
    model = changed(lambda model: setattr(model, "ir_version", version))
    assert refusal(model) == f"IR version {version} is not allowed, needed 7 to 9"


@pytest.mark.parametrize("version", [0, 12, 19])
def test_m48_other_opsets_are_refused(version):
    model = changed(lambda model: setattr(model.opset_import[0], "version", version))
    assert refusal(model) == f"opset {version} is not allowed, needed 13 to 18"


def test_m48_what_the_exporter_writes_and_what_is_promised_is_allowed():
    from edgeff.export.ir import IR_VERSION, OPSET

    assert OPSET in OPSETS
    assert IR_VERSION in IR_VERSIONS
    assert (OPSETS[-1], IR_VERSIONS[-1]) == (18, 9)


def test_m48_other_domains_are_refused():
    model = changed(lambda model: setattr(model.opset_import[0], "domain", "com.microsoft"))
    assert refusal(model) == "the domain `com.microsoft` is not allowed, only `ai.onnx`"


def test_m48_a_second_domain_is_refused():
    model = changed(lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)))
    assert refusal(model) == "the model has more than 1 `opset_import`"


def test_m48_a_model_without_an_opset_or_a_graph_is_refused():
    assert refusal(changed(lambda model: model.ClearField("opset_import"))) == (
        "opset 0 is not allowed, needed 13 to 18"
    )
    assert refusal(changed(lambda model: model.ClearField("graph"))) == "the model has no graph"


def add_function(model):
    model.functions.add(name="f", domain="d")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (add_function, "functions"),
        (lambda model: model.training_info.add(), "training_info"),
        (
            lambda model: model.metadata_props.append(StringStringEntryProto(key="ort_config", value="{}")),
            "metadata_props",
        ),
        (lambda model: model.configuration.add(), "configuration"),
    ],
)
def test_m48_functions_training_settings_and_metadata_are_refused(change, name):
    assert refusal(changed(change)) == f"the model must not have `{name}`"


# --- M49: the graph ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["value_info", "quantization_annotation", "sparse_initializer", "metadata_props"])
def test_m49_what_a_graph_does_not_need_is_refused(name):
    assert refusal(changed(lambda model: getattr(model.graph, name).add())) == f"the graph must not have `{name}`"


def test_m49_an_output_that_nothing_makes_is_refused():
    model = changed(lambda model: setattr(model.graph.output[0], "name", "gone"))
    assert refusal(model) == "the output `gone` is made by no node"


def test_m49_an_output_given_twice_is_refused():
    model = changed(lambda model: model.graph.output.append(model.graph.output[0]))
    assert refusal(model) == "the output `y` is given twice"


# --- M50: nodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["If", "Loop", "Scan", "RandomNormal", "Dropout", "SequenceEmpty", "Optional", "StringNormalizer", "ImageDecoder"],
)
def test_m50_operators_that_are_not_on_the_list_are_refused_by_name(kind):
    model = changed(lambda model: model.graph.node.append(node(kind, ["x"], "more")))
    assert refusal(model) == f"node 6: the operator `{kind}` is not allowed"


def test_m50_a_node_without_an_operator_is_refused():
    assert refusal(in_graph(bytes_field(1, b""))) == "node 6: the operator `` is not allowed"


def test_m50_an_operators_name_cannot_forge_a_line():
    forged = bytes_field(1, bytes_field(4, b"Relu\n\x1b[31mfine"))
    assert refusal(in_graph(forged)) == "node 6: the operator `Relu\\n\\x1b[31mfine` is not allowed"


def test_m50_a_node_of_another_domain_is_refused():
    model = changed(lambda model: setattr(model.graph.node[0], "domain", "com.microsoft"))
    assert refusal(model) == "node 0: the domain `com.microsoft` is not allowed, only `ai.onnx`"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("overload", lambda one: setattr(one, "overload", "o")),
        ("metadata_props", lambda one: one.metadata_props.add()),
        ("device_configurations", lambda one: one.device_configurations.add()),
    ],
)
def test_m50_what_a_node_does_not_need_is_refused(name, change):
    assert refusal(changed(lambda model: change(model.graph.node[1]))) == f"node 1: a node must not have `{name}`"


def test_m50_a_node_that_reads_what_comes_later_is_refused():
    def swap(model):
        first = onnx.NodeProto()
        first.CopyFrom(model.graph.node[0])
        del model.graph.node[0]
        model.graph.node.append(first)

    assert refusal(changed(swap)) == "node 0: it reads `r`, which nothing before it makes"


@pytest.mark.parametrize("name", ["x", "w", "r"])
def test_m50_a_tensor_that_is_made_twice_is_refused(name):
    model = changed(lambda model: model.graph.node.append(node("Tanh", ["x"], name)))
    assert refusal(model) == f"node 6: the tensor `{name}` is made twice"


def test_m50_an_input_that_is_a_constant_too_is_refused():
    model = changed(lambda model: model.graph.initializer.append(numpy_helper.from_array(np.zeros(1), "x")))
    assert refusal(model) == "the tensor `x` is made twice"


@pytest.mark.parametrize("name", ["a b", "a\nb", "ä", "x" * (MAX_NAME_BYTES + 1)])
def test_m50_names_have_printable_ascii_characters(name):
    model = changed(lambda model: model.graph.node.append(node("Tanh", ["x"], name)))
    assert "needed 1 to 256 printable ASCII characters" in refusal(model)


def test_the_lists_have_the_operators_that_are_checked_by_name():
    every = OPERATORS.union(*TRAINING_OPERATORS.values())
    assert {*SIZING_INPUTS, *SHAPE_OPERATORS, *SHAPE_READERS, *DESCRIBED_OPERATORS, "Constant"} <= every
    assert {*SHAPE_READERS, "Constant"} <= OPERATORS
    assert set(SIZING_INPUTS) >= SHAPE_OPERATORS


def test_the_list_has_operators_of_onnx_that_have_no_graph_inside_and_make_tensors_alone():
    for name in OPERATORS:
        schema = onnx.defs.get_schema(name, OPSETS[-1])
        assert not any(one.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for one in schema.attributes.values())
        outputs = {kind for one in schema.outputs for kind in one.types}
        assert not any(kind.startswith(("seq(", "optional(", "map(")) for kind in outputs) or name == "Identity"


# --- M51: attributes --------------------------------------------------------------------------------------------------


def with_attribute(attribute, kind="Elu"):
    def change(model):
        one = node(kind, ["x"], "more")
        one.attribute.append(attribute)
        model.graph.node.append(one)

    return changed(change)


SUBGRAPH = helper.make_graph([], "inside", [], [])
BROKEN_ATTRIBUTES = {
    "a subgraph": (helper.make_attribute("body", SUBGRAPH), "an attribute must not have `g`"),
    "subgraphs": (helper.make_attribute("bodies", [SUBGRAPH]), "an attribute must not have `graphs`"),
    "a reference": (
        AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="beta"),
        "an attribute must not have `ref_attr_name`",
    ),
    "texts": (helper.make_attribute("keys", ["a"]), "an attribute must not have `strings`"),
    "tensors": (
        helper.make_attribute("many", [numpy_helper.from_array(np.zeros(1))]),
        "an attribute must not have `tensors`",
    ),
    "a type": (
        helper.make_attribute("kind", helper.make_tensor_type_proto(FLOAT, [1])),
        "an attribute must not have `tp`",
    ),
    "a sparse tensor": (
        AttributeProto(name="s", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=onnx.SparseTensorProto()),
        "an attribute must not have `sparse_tensor`",
    ),
    "no type": (AttributeProto(name="alpha", f=1.0), "the attribute `alpha` has a value that is not of its type 0"),
    "another type": (
        AttributeProto(name="alpha", f=1.0, type=AttributeProto.INT),
        "the attribute `alpha` has a value that is not of its type 2",
    ),
    "two values": (
        AttributeProto(name="alpha", f=1.0, i=1, type=AttributeProto.INT),
        "the attribute `alpha` has a value that is not of its type 2",
    ),
    "no value": (AttributeProto(name="alpha", type=AttributeProto.INT), "the attribute `alpha` has no value"),
    "no name": (
        AttributeProto(f=1.0, type=AttributeProto.FLOAT),
        "an attribute is called ``, needed 1 to 256 printable ASCII characters",
    ),
    "a text for a tensor": (
        helper.make_attribute("value_string", "a"),
        "the attribute `value_string` is a text, which no tensor may hold",
    ),
    "a long text": (
        helper.make_attribute("mode", "a" * 257),
        "the attribute `mode` has 257 bytes, allowed at most 256",
    ),
    "a cast to texts": (
        helper.make_attribute("to", TensorProto.STRING),
        "the attribute `to` is no allowed data type",
    ),
    "a huge number": (
        helper.make_attribute("pads", [0, -(2**40)]),
        f"the attribute `pads` has {2**40}, allowed at most {MAX_ELEMENTS}",
    ),
    "external data": (
        helper.make_attribute("value", TensorProto(data_type=1, data_location=1, dims=[1])),
        "a tensor has its data outside of the file",
    ),
    "external data by another name": (
        helper.make_attribute(
            "value", TensorProto(data_type=1, external_data=[StringStringEntryProto(key="location")])
        ),
        "a tensor must not have `external_data`",
    ),
    "a tensor of texts": (
        helper.make_attribute("value", helper.make_tensor("v", TensorProto.STRING, [1], [b"a"])),
        "a tensor must not have `string_data`",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ATTRIBUTES)
def test_m51_attributes_that_are_not_allowed_are_refused(case):
    attribute, message = BROKEN_ATTRIBUTES[case]
    assert refusal(with_attribute(attribute)) == f"node 6: {message}"


def test_m51_an_attribute_given_twice_is_refused():
    def twice(model):
        one = node("Elu", ["x"], "more", alpha=1.0)
        one.attribute.append(helper.make_attribute("alpha", 2.0))
        model.graph.node.append(one)

    assert refusal(changed(twice)) == "node 6: it has the attribute `alpha` twice"


# --- M52: tensors -----------------------------------------------------------------------------------------------------


def tensor(**fields):
    return TensorProto(**{"name": "t", "data_type": 1, "dims": [2], "raw_data": bytes(8)} | fields)


BROKEN_TENSORS = {
    "external data": (tensor(data_location=1), "a tensor has its data outside of the file"),
    "an entry of external data": (
        tensor(external_data=[StringStringEntryProto(key="location", value="/etc/passwd")]),
        "a tensor must not have `external_data`",
    ),
    "texts": (tensor(data_type=8, string_data=[b"a"]), "a tensor must not have `string_data`"),
    "texts as bytes": (tensor(data_type=8), "the tensor `t` has the data type 8, which is not allowed"),
    "another data type": (tensor(data_type=16), "the tensor `t` has the data type 16, which is not allowed"),
    "no data type": (TensorProto(name="t"), "the tensor `t` has the data type 0, which is not allowed"),
    "a segment": (tensor(segment=TensorProto.Segment(begin=0)), "a tensor must not have `segment`"),
    "unsigned data": (tensor(uint64_data=[1]), "a tensor must not have `uint64_data`"),
    "metadata": (tensor(metadata_props=[StringStringEntryProto(key="k")]), "a tensor must not have `metadata_props`"),
    "too few bytes": (tensor(raw_data=bytes(7)), "the tensor `t` must have 8 bytes of data, got 7"),
    "too many bytes": (tensor(raw_data=bytes(12)), "the tensor `t` must have 8 bytes of data, got 12"),
    "no data": (TensorProto(name="t", data_type=1, dims=[2]), "the tensor `t` must have 8 bytes of data, got 0"),
    "a negative size": (tensor(dims=[-2]), f"a tensor has the size -2, needed 0 to {MAX_ELEMENTS}"),
    "a huge size": (tensor(dims=[2**40]), f"a tensor has the size {2**40}, needed 0 to {MAX_ELEMENTS}"),
    "huge sizes together": (
        tensor(dims=[2**31, 2**31, 2**31]),
        f"the tensor `t` has {2**93} elements, allowed at most {MAX_ELEMENTS}",
    ),
    "too many axes": (tensor(dims=[1] * 9), "a tensor has more than 8 axes"),
    "data in two places": (
        tensor(float_data=[1.0, 2.0]),
        "the tensor `t` has its numbers in two places, or where those of float32 do not stand",
    ),
    "data where others stand": (
        TensorProto(name="t", data_type=1, dims=[1], int64_data=[1]),
        "the tensor `t` has its numbers in two places, or where those of float32 do not stand",
    ),
    "too few numbers": (
        TensorProto(name="t", data_type=7, dims=[2], int64_data=[1]),
        "the tensor `t` must have 2 numbers, got 1",
    ),
    "too few floats": (
        TensorProto(name="t", data_type=1, dims=[2], float_data=[1]),
        "the tensor `t` must have 8 bytes of data, got 4",
    ),
    "many numbers that are not plain bytes": (
        TensorProto(name="t", data_type=1, dims=[2**15], float_data=[0.0] * 2**15),
        "a tensor has more than 65536 bytes of numbers outside of `raw_data`",
    ),
    "a truth value of 2": (
        tensor(data_type=9, raw_data=b"\2\1"),
        "the tensor `t` has a truth value other than 0 and 1",
    ),
    "no name": (tensor(name=""), "an initialiser is called ``, needed 1 to 256 printable ASCII characters"),
    "a long name": (tensor(name="x" * 999), "a tensor's name or shape has 999 bytes, allowed at most 256"),
}


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_m52_tensors_that_are_not_what_they_say_are_refused(case):
    broken, message = BROKEN_TENSORS[case]
    assert refusal(changed(lambda model: model.graph.initializer.append(broken))) == message


@pytest.mark.parametrize("dtype", sorted(set(DTYPES.values())))
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_m52_a_tensor_of_every_dtype_is_read_as_bytes_and_as_numbers(dtype, shape):
    value = np.ones(shape, dtype)
    plain = numpy_helper.from_array(value, "t")
    typed = helper.make_tensor("t", plain.data_type, shape, value.ravel().tolist())
    for one in (plain, typed):
        check(changed(lambda model, one=one: model.graph.initializer.append(one)))


def test_m52_floats_that_are_split_inside_a_number_are_refused_as_protobuf_does():
    halves = bytes_field(4, bytes(2)) * 2
    data = in_graph(bytes_field(5, number_field(1, 1) + number_field(2, 1) + bytes_field(8, b"t") + halves))
    with pytest.raises(DecodeError):
        ModelProto.FromString(data)
    assert refusal(data) == "the tensor `t` must have 4 bytes of data, got 4"


def test_m52_large_data_are_passed_over_and_not_held():
    import tracemalloc

    model = changed(lambda model: model.graph.initializer.append(numpy_helper.from_array(np.zeros(2**22), "big")))
    data = io.BytesIO(model.SerializeToString())
    size = len(data.getvalue())
    tracemalloc.start()
    try:
        check_onnx(data, size, "f.onnx")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 2**25
    assert peak < 2**19


# --- M53: inputs and outputs ------------------------------------------------------------------------------------------


def with_input(info):
    return changed(lambda model: model.graph.input.append(info))


BROKEN_PORTS = {
    "a negative size": ([-1], f"`more` has the size -1, needed one number from 1 to {MAX_ELEMENTS}"),
    "no size": ([0], f"`more` has the size 0, needed one number from 1 to {MAX_ELEMENTS}"),
    "a huge size": ([2**31 + 1], f"`more` has the size {2**31 + 1}, needed one number from 1 to {MAX_ELEMENTS}"),
    "huge sizes together": (["N", 2**20, 2**20], f"`more` has {2**40} elements, allowed at most {MAX_ELEMENTS}"),
    "an open size inside": ([3, "M"], "`more` has an open size after its first axis"),
    "too many axes": ([1] * 9, "`more` has 9 axes, allowed at most 8"),
    "no shape": (None, "`more` must have a shape and an allowed data type"),
}


@pytest.mark.parametrize("case", BROKEN_PORTS)
def test_m53_inputs_with_other_shapes_are_refused(case):
    shape, message = BROKEN_PORTS[case]
    assert refusal(with_input(helper.make_tensor_value_info("more", FLOAT, shape))) == message


def test_m53_inputs_of_other_types_are_refused():
    texts = helper.make_tensor_value_info("more", TensorProto.STRING, [1])
    assert refusal(with_input(texts)) == "`more` must have a shape and an allowed data type"
    sequence = helper.make_tensor_sequence_value_info("more", FLOAT, [1])
    assert refusal(with_input(sequence)) == "`more` a type must not have `sequence_type`"


def test_m53_a_size_with_two_values_is_refused():
    dimension = number_field(1, 3) + bytes_field(2, b"N")
    kind = bytes_field(1, number_field(1, 1) + bytes_field(2, bytes_field(1, dimension)))
    data = in_graph(bytes_field(11, bytes_field(1, b"more") + bytes_field(2, kind)))
    assert refusal(data) == f"`more` has the size 3, needed one number from 1 to {MAX_ELEMENTS}"


# --- M54: sizes from constants ----------------------------------------------------------------------------------------

SIZED = {
    "ConstantOfShape": (["sizes"], {}),
    "Expand": (["x", "sizes"], {}),
    "Tile": (["x", "sizes"], {}),
    "Reshape": (["x", "sizes"], {}),
    "Pad": (["x", "sizes"], {}),
    "OneHot": (["x", "sizes", "x"], {}),
    "Range": (["x", "sizes", "x"], {}),
    "MaxUnpool": (["x", "x", "sizes"], {"kernel_shape": [2]}),
    "GatherElementsGrad": (["x", "sizes", "shape"], {"axis": 0}),
    "GatherGrad": (["sizes", "shape", "x"], {"axis": 0}),
    "GatherNDGrad": (["sizes", "shape", "x"], {}),
    "SliceGrad": (["x", "sizes", "shape", "shape"], {}),
}


def sized(kind, sizes, *before):
    def change(model):
        model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), "constant"))
        model.graph.node.extend(before or [node("Identity", ["constant"], "sizes")])
        inputs, attributes = SIZED[kind]
        names = ["constant" if name == "sizes" and not before and kind in SHAPE_OPERATORS else name for name in inputs]
        model.graph.node.append(node(kind, names, "out", **attributes))

    return changed(change)


def test_every_operator_that_takes_a_size_is_tried():
    assert set(SIZED) == set(SIZING_INPUTS)


@pytest.mark.parametrize("kind", SIZED)
def test_m54_a_size_beyond_the_limit_is_refused(kind):
    check(sized(kind, [1, 2]), dialect=dialect_of(kind))
    message = refusal(sized(kind, [1, 2**31 + 1]), dialect=dialect_of(kind))
    assert re.fullmatch(
        rf"node 7: `{kind}` takes a size from `\w+`, whose numbers allow more than 2147483648 elements", message
    )


@pytest.mark.parametrize("kind", sorted(SHAPE_OPERATORS))
def test_m54_sizes_that_are_too_large_together_are_refused(kind):
    dialect = dialect_of(kind)
    check(sized(kind, [-1, 2**15, 2**16]), dialect=dialect)
    assert "takes a size from `constant`" in refusal(sized(kind, [2, 2**15, 2**16]), dialect=dialect)
    assert "takes a size from `constant`" in refusal(sized(kind, [1] * 17), dialect=dialect)


def test_m54_a_size_that_is_computed_from_a_huge_number_is_refused():
    before = [node("Concat", ["shape", "constant"], "joined", axis=0), node("Abs", ["joined"], "sizes")]
    assert "takes a size from `sizes`" in refusal(sized("Expand", [2**40], *before))


def test_m54_the_size_of_what_holds_a_huge_number_may_be_taken():
    check(sized("Expand", [2**40], node("Shape", ["constant"], "sizes")))


@pytest.mark.parametrize(
    "constant",
    [
        node("Constant", [], "sizes", value_ints=[2**40]),
        node("Constant", [], "sizes", value_int=-(2**40)),
        node("Constant", [], "sizes", value=numpy_helper.from_array(np.array([2**40]))),
        node("ConstantOfShape", ["shape"], "sizes", value=helper.make_tensor("v", INT64, [1], [2**40])),
    ],
)
def test_m54_a_size_from_a_constant_in_a_node_is_refused(constant):
    assert "takes a size from `sizes`" in refusal(sized("Expand", [1], constant))


def test_a_huge_number_that_decides_about_no_size_is_allowed():
    check(sized("Expand", [1], node("Constant", [], "key", value_int=2**62), node("Identity", ["shape"], "sizes")))
    model = changed(lambda model: model.graph.initializer.append(numpy_helper.from_array(np.full(99, 2**62), "hash")))
    check(model)


# --- M60: the training dialect ----------------------------------------------------------------------------------------


def training_changed(change):
    return changed(change, training_model())


def training_refusal(change):
    return refusal(training_changed(change), dialect=TRAINING)


OWN_OPERATORS = [(domain, kind) for domain, kinds in TRAINING_OPERATORS.items() for kind in sorted(kinds)]


def in_domain(kind, domain):
    """A node that is added, whose shape is given where it must be."""

    def change(model):
        model.graph.node.append(helper.make_node(kind, ["x"], ["more"], domain=domain))
        if kind in DESCRIBED_OPERATORS:
            model.graph.value_info.append(helper.make_tensor_value_info("more", FLOAT, ["N", 3]))

    return change


def test_m60_a_good_training_file_tells_its_inputs_and_outputs():
    ports = check(training_model(), dialect=TRAINING)
    assert [(port.name, port.shape, port.dtype) for port in ports.inputs] == [
        ("x", (None, 3), "float32"),
        ("params", (None,), "sequence of float32"),
    ]
    assert [port.name for port in ports.outputs] == ["y"]


@pytest.mark.parametrize(("domain", "kind"), OWN_OPERATORS)
def test_m60_operators_of_onnxruntimes_own_are_allowed_in_their_own_domain_alone(domain, kind):
    check(training_changed(in_domain(kind, domain)), dialect=TRAINING)
    other = "" if domain else OWN
    assert training_refusal(in_domain(kind, other)) == f"node 8: the operator `{kind}` is not allowed"


@pytest.mark.parametrize(("domain", "kind"), OWN_OPERATORS)
def test_m50_operators_of_onnxruntimes_own_are_refused_in_plain_files(domain, kind):
    model = changed(lambda model: model.graph.node.append(helper.make_node(kind, ["x"], ["more"], domain=domain)))
    assert refusal(model) == (
        "node 6: the domain `com.microsoft` is not allowed, only `ai.onnx`"
        if domain
        else f"node 6: the operator `{kind}` is not allowed"
    )


@pytest.mark.parametrize("kind", ["PythonOp", "ATen", "YieldOp", "DropoutGrad", "Loop", "Attention", "Relu", "Send"])
def test_m60_other_operators_of_com_microsoft_are_refused(kind):
    assert training_refusal(in_domain(kind, OWN)) == f"node 8: the operator `{kind}` is not allowed"


@pytest.mark.parametrize("kind", ["If", "Loop", "Dropout", "ReluGrad", "SequenceEmpty"])
def test_m60_the_plain_list_is_no_longer_than_it_was(kind):
    assert training_refusal(in_domain(kind, "")) == f"node 8: the operator `{kind}` is not allowed"


OTHER_DOMAINS = ["ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft.nchwc", "com.ms", "COM"]


@pytest.mark.parametrize("domain", OTHER_DOMAINS)
def test_m60_other_domains_are_refused_in_nodes_and_in_imports(domain):
    message = f"the domain `{domain}` is not allowed, only `ai.onnx`, `com.microsoft`"
    assert training_refusal(in_domain("Relu", domain)) == f"node 8: {message}"
    assert training_refusal(lambda model: setattr(model.opset_import[1], "domain", domain)) == message


@pytest.mark.parametrize("version", [0, 2, 2**40])
def test_m60_other_versions_of_com_microsoft_are_refused(version):
    message = training_refusal(lambda model: setattr(model.opset_import[1], "version", version))
    assert message == f"version {version} of `com.microsoft` is not allowed, needed 1"


@pytest.mark.parametrize(("first", "second"), [("", ""), ("", "ai.onnx"), (OWN, OWN)])
def test_m60_a_domain_that_is_imported_twice_is_refused(first, second):
    def change(model):
        del model.opset_import[:]
        model.opset_import.extend([helper.make_opsetid(first, 17), helper.make_opsetid(second, 17)])

    assert training_refusal(change) == "a domain has more than one `opset_import`"


def test_m60_there_are_no_more_imports_than_domains():
    message = training_refusal(lambda model: model.opset_import.append(helper.make_opsetid(OWN, 1)))
    assert message == "the model has more than 2 `opset_import`"


def test_m60_the_plain_domain_must_be_imported_too():
    assert training_refusal(lambda model: model.opset_import.remove(model.opset_import[0])) == (
        "opset 0 is not allowed, needed 13 to 18"
    )
    check(training_changed(lambda model: model.opset_import.reverse()), dialect=TRAINING)


def described(name, dtype=FLOAT, shape=("N", 3)):
    return lambda model: model.graph.value_info.append(helper.make_tensor_value_info(name, dtype, shape))


def test_m60_what_ends_the_process_without_a_shape_must_have_one():
    message = training_refusal(lambda model: model.graph.ClearField("value_info"))
    assert message == "node 7: the shape of `mp`, which `MaxPoolGrad` makes, is not given"


@pytest.mark.parametrize("name", ["r", "x", "w", "rg", "y", "nothing"])
def test_m60_shapes_of_other_tensors_may_not_be_given(name):
    message = f"the shape of `{name}` is given, which it may be of what `MaxPoolGrad` makes alone"
    assert training_refusal(described(name)) == message


def test_m60_a_shape_may_be_given_once():
    assert training_refusal(described("mp")) == "the shape of `mp` is given twice"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (described("more", TensorProto.STRING), "`more` must have a shape and an allowed data type"),
        (described("more", shape=["N", "M"]), "`more` has an open size after its first axis"),
        (described("more", shape=["N", 2**20, 2**20]), f"`more` has {2**40} elements, allowed at most {MAX_ELEMENTS}"),
        (
            lambda model: model.graph.value_info.append(helper.make_tensor_sequence_value_info("more", FLOAT, None)),
            "`more` a type must not have `sequence_type`",
        ),
    ],
)
def test_m60_a_shape_that_is_given_keeps_the_rules_of_inputs(change, message):
    assert training_refusal(change) == message


def sequence_of(kind):
    return lambda model: model.graph.input.append(onnx.ValueInfoProto(name="more", type=kind))


def of_tensors(dtype, shape=None):
    return helper.make_sequence_type_proto(helper.make_tensor_type_proto(dtype, shape))


@pytest.mark.parametrize("kind", [of_tensors(FLOAT), of_tensors(FLOAT, [])])
def test_m60_an_input_may_be_a_sequence_of_float32_tensors(kind):
    ports = check(training_changed(sequence_of(kind)), dialect=TRAINING)
    assert (ports.inputs[-1].name, ports.inputs[-1].dtype) == ("more", "sequence of float32")
    assert refusal(changed(sequence_of(kind))) == "`more` a type must not have `sequence_type`"


@pytest.mark.parametrize(
    "kind",
    [
        of_tensors(INT64),
        of_tensors(TensorProto.STRING),
        of_tensors(FLOAT, [2]),
        of_tensors(FLOAT, ["N"]),
        helper.make_sequence_type_proto(of_tensors(FLOAT)),
        helper.make_sequence_type_proto(helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, None))),
    ],
)
def test_m60_other_sequences_are_refused(kind):
    assert training_refusal(sequence_of(kind)) == "`more` a type must not have `sequence_type`"


EVERY_REFUSAL = {
    **{f"malformed: {name}": data for name, (data, _) in MALFORMED.items()},
    **{f"attribute: {name}": with_attribute(one) for name, (one, _) in BROKEN_ATTRIBUTES.items()},
    **{
        f"tensor: {name}": changed(lambda model, one=one: model.graph.initializer.append(one))
        for name, (one, _) in BROKEN_TENSORS.items()
    },
    **{
        f"port: {name}": with_input(helper.make_tensor_value_info("more", FLOAT, shape))
        for name, (shape, _) in BROKEN_PORTS.items()
    },
}


@pytest.mark.parametrize("case", EVERY_REFUSAL)
def test_what_is_refused_of_bytes_attributes_tensors_and_inputs_is_refused_in_training_files_too(case):
    assert refusal(EVERY_REFUSAL[case], dialect=TRAINING) == refusal(EVERY_REFUSAL[case])


def test_no_operator_is_on_both_lists():
    """So an operator's name tells what is checked of it, whatever its domain."""
    kinds = [kind for _, kind in OWN_OPERATORS]
    assert len(kinds) == len(set(kinds))
    assert OPERATORS.isdisjoint(kinds)


def said_by_onnxruntime(kind, domain):
    """What it says of a node without inputs: how many it needs, if it knows the operator."""
    import onnxruntime

    outputs = [helper.make_tensor_value_info("y", FLOAT, [1])]
    graph = helper.make_graph([helper.make_node(kind, [], ["y"], domain=domain)], "one", [], outputs)
    imports = [helper.make_opsetid("", OPSETS[-1]), helper.make_opsetid(OWN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return str(caught.value)


@pytest.mark.parametrize(("domain", "kind"), OWN_OPERATORS)
def test_onnxruntime_training_has_every_operator_of_its_own_that_is_allowed(domain, kind):
    assert "has input size 0 not in range" in said_by_onnxruntime(kind, domain)


def test_an_operator_that_onnxruntime_training_does_not_have_would_be_noticed():
    for domain in ("", OWN):
        assert "not in range" not in said_by_onnxruntime("GradOfNothing", domain)


# --- M55, M56: what the manifest says ---------------------------------------------------------------------------------

STEP = "blocks/head.step.onnx"


def opened_with(tmp_path, file, data):
    """Open the golden artifact with another file in it that its manifest knows."""
    out = written(tmp_path)
    (out / file).write_bytes(data)
    path = out / "manifest.json"
    root = json.loads(path.read_text(encoding="utf-8"))
    root["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(root), encoding="utf-8")
    return open_artifact(out)


def artifact_refusal(tmp_path, file, data):
    with pytest.raises(ArtifactError) as caught:
        opened_with(tmp_path, file, data)
    assert caught.value.hint
    return str(caught.value)


def step_with(name, *, shape=None, dtype=None, new_name=None):
    """The step graph of `head` with one input or output changed."""
    model = ModelProto.FromString(graph_bytes(MANIFEST, MANIFEST.blocks[1], "step"))
    for infos in (model.graph.input, model.graph.output):
        for index, info in enumerate(infos):
            if info.name == name:
                _, old_dtype, old_shape = port_of(info)
                kinds = {value: key for key, value in DTYPES.items()}
                size = ["N" if one is None else one for one in old_shape] if shape is None else shape
                infos[index].CopyFrom(helper.make_tensor_value_info(new_name or name, kinds[dtype or old_dtype], size))
    return model


WRONG_PORTS = {
    "x": ({"shape": ["N", 2, 4, 5]}, "float32 [rows, 2, 4, 4], got float32 [rows, 2, 4, 5]"),
    "y": ({"dtype": "int32"}, "int64 [rows], got int32 [rows]"),
    "row_weight": ({"shape": [1]}, "float32 [rows], got float32 [1]"),
    "rate.keep": ({"shape": [1]}, "float32 [], got float32 [1]"),
    "parameter.transform.weight": ({"shape": [32, 3]}, "float32 [3, 32], got float32 [32, 3]"),
    "state.momentum.transform.weight": ({"shape": [3, 2**20]}, "float32 [3, 32], got float32 [3, 1048576]"),
    "new.parameter.transform.weight": ({"dtype": "float64"}, "float32 [3, 32], got float64 [3, 32]"),
    "loss": ({"shape": ["N"]}, "float32 [], got float32 [rows]"),
    "log_probabilities": ({"shape": ["N", 4]}, "float32 [rows, 3], got float32 [rows, 4]"),
}


@pytest.mark.parametrize("name", WRONG_PORTS)
def test_m55_a_shape_or_dtype_that_is_not_the_manifests_is_refused(tmp_path, name):
    change, told = WRONG_PORTS[name]
    data = step_with(name, **change).SerializeToString()
    assert artifact_refusal(tmp_path, STEP, data) == f"`{STEP}`: `{name}` must be {told}"


def accumulate_with(shape):
    model = ModelProto.FromString(graph_bytes(MANIFEST, MANIFEST.blocks[1], "accumulate"))
    for infos in (model.graph.input, model.graph.output):
        for info in infos:
            if info.name.endswith("gradient.transform.weight"):
                info.CopyFrom(helper.make_tensor_value_info(info.name, FLOAT, shape))
    return model.SerializeToString()


def test_m55_a_sum_of_gradients_may_be_a_matrix_of_as_many_numbers(tmp_path):
    file = "blocks/head.accumulate.onnx"
    opened_with(tmp_path / "good", file, accumulate_with([32, 3]))
    message = artifact_refusal(tmp_path / "bad", file, accumulate_with([32, 4]))
    assert message == (f"`{file}`: `gradient.transform.weight` must be float32 [3, 32], got float32 [32, 4]")


@pytest.mark.parametrize(
    ("name", "new_name", "message"),
    [
        ("y", "z", "lacks input `y`"),
        ("y", "a", "has an unknown input `a`"),
        ("loss", "lost", "lacks output `loss`"),
    ],
)
def test_m55_other_names_than_the_manifests_are_refused(tmp_path, name, new_name, message):
    model = step_with(name, new_name=new_name)
    for one in model.graph.node:
        one.output[0] = new_name if one.output[0] == name else one.output[0]
    assert artifact_refusal(tmp_path, STEP, model.SerializeToString()) == f"`{STEP}` {message}"


def test_m55_another_order_than_the_manifests_is_refused(tmp_path):
    model = step_with("y")
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(inputs[::-1])
    message = artifact_refusal(tmp_path, STEP, model.SerializeToString())
    assert message == f"`{STEP}` has its inputs in another order than the manifest"


@pytest.mark.parametrize("shape", [[4], ["N", 1]])
def test_m55_apply_takes_runs_of_any_length(tmp_path, shape):
    file = "blocks/head.apply.onnx"
    model = ModelProto.FromString(graph_bytes(MANIFEST, MANIFEST.blocks[1], "apply"))
    for info in model.graph.input:
        if info.name == "gradient":
            info.CopyFrom(helper.make_tensor_value_info("gradient", FLOAT, shape))
    message = artifact_refusal(tmp_path, file, model.SerializeToString())
    assert message.startswith(f"`{file}`: `gradient` must be float32 [rows], got float32 [")


ROW, LABEL = ("x", ["N", 8, 8], "uint8"), ("label", ["N"], "int64")
SCORES = ("log_probabilities", ["N", 3], "float32")
WRONG_TEMPLATES = {
    "another row": (
        [("x", ["N", 8, 9], "uint8")],
        [SCORES, LABEL],
        ": `x` must be uint8 [rows, 8, 8], got uint8 [rows, 8, 9]",
    ),
    "another dtype": (
        [("x", ["N", 8, 8], "float32")],
        [SCORES, LABEL],
        ": `x` must be uint8 [rows, 8, 8], got float32 [rows, 8, 8]",
    ),
    "two inputs": ([ROW, ("z", ["N"], "int64")], [SCORES, LABEL], " must have one input, got 2"),
    "no label": ([ROW], [SCORES], " lacks output `label`"),
    "other classes": (
        [ROW],
        [("log_probabilities", ["N", 4], "float32"), LABEL],
        ": `log_probabilities` must be float32 [rows, 3], got float32 [rows, 4]",
    ),
}


@pytest.mark.parametrize("case", WRONG_TEMPLATES)
def test_m56_a_template_that_does_not_fit_the_manifest_is_refused(tmp_path, case):
    inputs, outputs, message = WRONG_TEMPLATES[case]
    data = model_bytes(inputs, outputs, room=np.zeros(600, np.uint8))
    assert artifact_refusal(tmp_path, "inference.onnx", data) == f"`inference.onnx`{message}"


def test_m56_the_input_of_a_template_may_have_any_name_and_its_outputs_any_order(tmp_path):
    data = model_bytes([("picture", *ROW[1:])], [LABEL, SCORES], room=np.zeros(600, np.uint8))
    opened_with(tmp_path, "inference.onnx", data)


# --- where it is checked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "demo.zip"])
def test_files_are_checked_when_an_artifact_is_opened(tmp_path, name):
    bad = changed(lambda model: model.graph.node.append(node("Loop", ["x"], "more"))).SerializeToString()
    with pytest.raises(ArtifactError, match=rf"^`{STEP}`: node 6: the operator `Loop` is not allowed$"):
        written(tmp_path, name, files=contents() | {STEP: bad})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["extra.onnx", "baselines/bp.step.ONNX"])
def test_files_that_nothing_refers_to_are_checked_too(tmp_path, file):
    written(tmp_path, "good", files=contents() | {file: SMALL})
    with pytest.raises(ArtifactError, match=rf"^`{file}`: "):
        written(tmp_path, "bad", files=contents() | {file: SMALL[:-1]})


def test_a_graph_is_checked_whatever_its_file_is_called(tmp_path):
    blocks = list(MANIFEST.blocks)
    graphs = dict(blocks[1].graphs)
    graphs["step"] = dataclasses.replace(graphs["step"], file="step.bin")
    blocks[1] = dataclasses.replace(blocks[1], graphs=graphs)
    manifest = dataclasses.replace(MANIFEST, blocks=tuple(blocks))
    files = {file: data for file, data in contents().items() if file != STEP}
    written(tmp_path, "good", manifest, files | {"step.bin": contents()[STEP]})
    with pytest.raises(ArtifactError, match=r"^`step.bin`: "):
        written(tmp_path, "bad", manifest, files | {"step.bin": b"\xff"})


def test_a_baselines_graphs_are_held_against_its_own_manifest(tiny: TinyRun, tmp_path):
    """The artifact's own blocks stand in for a baseline's: other shapes, same names."""
    artifact = open_artifact(tiny.artifact)
    block = artifact.manifest.blocks[0]
    wider = dataclasses.replace(
        block, parameters=tuple(dataclasses.replace(one, shape=(*one.shape, 2)) for one in block.parameters)
    )
    other = dataclasses.replace(artifact.manifest, blocks=(wider, *artifact.manifest.blocks[1:]))
    with pytest.raises(ArtifactError, match=r"`parameter\..*` must be float32 "):
        check_onnx_files(Folder(tiny.artifact), other)


def test_the_exporter_refuses_what_a_device_would_and_names_the_operator():
    good, bad = (
        small_model().SerializeToString(),
        changed(lambda model: model.graph.node.append(node("Det", ["x"], "more"))).SerializeToString(),
    )
    check_openable({"a.onnx": good})
    with pytest.raises(ExportError) as caught:
        check_openable({"a.onnx": good, "b.onnx": bad})
    assert str(caught.value) == (
        "the graph would not open on a device: `b.onnx`: node 6: the operator `Det` is not allowed"
    )
    assert caught.value.hint


def test_a_stream_of_fields_reads_messages_inside_messages():
    inner = Message("inner", single={field_key(2, 0): "n"})
    outer = Message("outer", single={field_key(1, 2): "inner"})
    data = bytes_field(1, number_field(2, 300))
    source = FieldStream(io.BytesIO(data), len(data), 9)
    found = [list(source.fields(begin, end, inner)) for _, begin, end in source.fields(0, len(data), outer)]
    assert [[(key, value) for key, value, _ in one] for one in found] == [[(field_key(2, 0), 300)]]


def test_the_golden_manifests_files_are_good(tmp_path):
    assert set(graph_files(MANIFEST)) <= set(contents())
    assert GOLDEN.is_file()
    assert len(check(inference_bytes(MANIFEST)).outputs) == 2
    content, _ = inference_content(Tiny(), initial_weights(Tiny()))
    assert len(check(content).inputs) == 1
    assert isinstance(open_artifact(written(tmp_path)).path, Path)
