"""ONNX files with the inputs and outputs that a manifest says, for tests that run nothing."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

DTYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}


def model_bytes(inputs, outputs, **initializers):
    """Outputs are copies of the first input, whatever their shapes; ports are `(name, shape, dtype)`."""
    nodes = [helper.make_node("Identity", [inputs[0][0]], [name]) for name, _, _ in outputs]
    infos = [
        [helper.make_tensor_value_info(name, DTYPES[dtype], shape) for name, shape, dtype in ports]
        for ports in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    graph = helper.make_graph(nodes, "graph", *infos, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(deterministic=True)


def graph_bytes(manifest, block, kind):
    """The file of a block's graph."""
    spec = block.graphs[kind]
    ports = [[(name, *_port(manifest, block, kind, name)) for name in names] for names in (spec.inputs, spec.outputs)]
    return model_bytes(*ports)


def _port(manifest, block, kind, name):
    role, _, rest = name.removeprefix("new.").partition(".")
    if kind == "apply" and role != "rate":
        return ["N"], "float32"
    if role in ("parameter", "gradient", "state", "buffer"):
        tensor = rest.partition(".")[2] if role == "state" else rest
        found = next(spec for spec in (*block.parameters, *block.buffers) if spec.name == tensor)
        return list(found.shape), found.dtype
    if role in ("x", "handover"):
        row = block.input if role == "x" else block.handover
        return ["N", *row.shape], row.dtype
    return {
        "y": (["N"], "int64"),
        "row_weight": (["N"], "float32"),
        "seed": ([], "int64"),
        "log_probabilities": (["N", len(manifest.classes)], "float32"),
    }.get(role, ([], "float32"))


def inference_bytes(manifest, room=600):
    """The inference template, with room for weights inside."""
    row = ("x", ["N", *manifest.input.shape], manifest.input.dtype)
    outputs = [("log_probabilities", ["N", len(manifest.classes)], "float32"), ("label", ["N"], "int64")]
    return model_bytes([row], outputs, room=np.zeros(room, np.uint8))


def graph_files(manifest):
    """Every ONNX file that a manifest refers to, by path."""
    graphs = {
        graph.file: graph_bytes(manifest, block, kind)
        for block in manifest.blocks
        for kind, graph in block.graphs.items()
    }
    return graphs | {manifest.inference.file: inference_bytes(manifest)}
