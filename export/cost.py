"""What a run of a graph costs, as a function of the micro-batch: arithmetic, and bytes that pass through memory.

Only matrix products and convolutions count as arithmetic; everything else is bound by the bytes it reads and writes.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper

from edgeff.export.inplace import VIEWS
from edgeff.export.ir import Rows, Shape
from edgeff.export.workspace import Known
from edgeff.manifest import Line, Work


def work_of(model: onnx.ModelProto) -> Work:
    """Multiplications plus additions of all matrix products and convolutions."""
    known = Known(model)
    found = [_work(node, known) for node in model.graph.node]
    return Work(sum(work.fixed for work in found), sum(work.per_row for work in found))


def traffic_of(model: onnx.ModelProto) -> Line:
    """Bytes of every node's operands and results, as if nothing stayed in a cache."""
    known = Known(model)
    moved = [
        known.line(name)
        for node in model.graph.node
        if node.op_type not in VIEWS
        for name in [*node.input, *node.output]
        if name
    ]
    return Line(sum(line.fixed_bytes for line in moved), sum(line.row_bytes for line in moved))


def _work(node: onnx.NodeProto, known: Known) -> Work:
    if node.op_type in ("Conv", "ConvTranspose"):
        # Every place of the map, the result's or the operand's, meets one filter of every group.
        places = known.shape(node.output[0] if node.op_type == "Conv" else node.input[0])
        filter_size = math.prod(_sizes(known.shape(node.input[1])[1:]))
        return _product(places, filter_size)
    if node.op_type == "ConvGrad":
        # The gradient of the filters, and of the input where that is asked for.
        one = _product(known.shape(node.input[0]), math.prod(_sizes(known.shape(node.input[2])[1:])))
        asked = sum(map(bool, node.output[:2]))
        return Work(asked * one.fixed, asked * one.per_row)
    if node.op_type == "MatMul":
        return _product(known.shape(node.output[0]), known.shape(node.input[0])[-1])
    if node.op_type == "Gemm":
        transposed = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        inner = known.shape(node.input[0])[0 if transposed.get("transA") else 1]
        return _product(known.shape(node.output[0]), inner)
    return Work(0, 0)


def _product(shape: Shape, inner: int | Rows) -> Work:
    """Two operations for each number of a shape and each of `inner`; at most one of them depends on the rows."""
    dims = [*shape, inner]
    operations = 2 * math.prod(dim.per_row if isinstance(dim, Rows) else dim for dim in dims)
    return Work(0, operations) if any(isinstance(dim, Rows) for dim in dims) else Work(operations, 0)


def _sizes(shape: Shape) -> list[int]:
    return [dim for dim in shape if isinstance(dim, int)]
