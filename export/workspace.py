"""What onnxruntime's CPU kernels allocate for themselves while they run, beside inputs and outputs.

Read from what kernels were seen to take (`benchmarks/workspace.py`) on one thread with onnxruntime 1.19.2 and 1.32; the
others take nothing that counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from edgeff.export.ir import Rows, Shape, size_of
from edgeff.manifest import Line

_FLOAT = 4
_DTYPE: Mapping[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
}
# A convolution unfolds its input stripe by stripe into this much.
_STRIPE_BYTES = 128 * 128 * _FLOAT


class Known:
    """Shapes and bytes of a model's tensors.

    Args:
        model: With `value_info` for its inner tensors; a dimension is a number, `N` or `<k>*N`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        values = [*model.graph.value_info, *model.graph.output, *model.graph.input]
        self._shapes = {value.name: _described(value) for value in values}
        self._shapes |= {one.name: (tuple(one.dims), _DTYPE[one.data_type]) for one in model.graph.initializer}

    def shape(self, name: str) -> Shape:
        """Of a tensor."""
        return self._shapes[name][0]

    def line(self, name: str) -> Line:
        """Bytes of a tensor; none for what only orders nodes and has no shape (`edgeff.export.inplace`)."""
        return size_of(*self._shapes[name]) if name in self._shapes else Line(0, 0)


def workspace(node: onnx.NodeProto, sizes: Known) -> Line:
    """Bytes a node's kernel takes for itself."""
    rule = _RULES.get(node.op_type)
    return rule(node, sizes) if rule else Line(0, 0)


def _conv(node: onnx.NodeProto, sizes: Known) -> Line:
    """The input is unfolded: as a whole, row by row, where there are more filters than places; else in stripes."""
    weight, out = sizes.shape(node.input[1]), sizes.shape(node.output[0])
    attributes = _attributes(node)
    filters, *kernel = (int(str(size)) for size in weight)
    places = math.prod(int(str(size)) for size in out[2:])
    groups = attributes.get("group", 1)
    plain = set(attributes["kernel_shape"]) | set(attributes["strides"]) == {1} and not any(attributes["pads"])
    if plain:
        return Line(0, 0)
    if filters // groups > places:
        return Line(places * math.prod(kernel) * _FLOAT, 0)
    return Line(_STRIPE_BYTES, 0)


def _conv_transpose(node: onnx.NodeProto, sizes: Known) -> Line:
    """All of one row's products before they are added up: places of the operand times numbers of a filter."""
    return _row_of_products(sizes, node.input[1], node.input[0])


def _where(node: onnx.NodeProto, sizes: Known) -> Line:
    """Both choices are laid out in full first."""
    out = sizes.line(node.output[0])
    return Line(2 * out.fixed_bytes, 2 * out.row_bytes)


def _conv_gradient(node: onnx.NodeProto, sizes: Known) -> Line:
    """onnxruntime-training: the input of one row and one group is unfolded as a whole."""
    return _row_of_products(sizes, node.input[2], node.input[0])


def _row_of_products(sizes: Known, weight: str, places: str) -> Line:
    """A float for each number of a filter at each place of one row of a tensor."""
    numbers = [*sizes.shape(weight)[1:], *sizes.shape(places)[2:]]
    return Line(math.prod(int(str(size)) for size in numbers) * _FLOAT, 0)


def _layer_norm_gradient(node: onnx.NodeProto, sizes: Known) -> Line:
    """onnxruntime-training: three more of the size of the input."""
    taken = sizes.line(node.input[1])
    return Line(3 * taken.fixed_bytes, 3 * taken.row_bytes)


_RULES: Mapping[str, Callable[[onnx.NodeProto, Known], Line]] = {
    "Conv": _conv,
    "ConvGrad": _conv_gradient,
    "ConvTranspose": _conv_transpose,
    "LayerNormalizationGrad": _layer_norm_gradient,
    "Where": _where,
}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _described(value: onnx.ValueInfoProto) -> tuple[Shape, str]:
    tensor = value.type.tensor_type
    return tuple(_dim(dim) for dim in tensor.shape.dim), _DTYPE[tensor.elem_type]


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | Rows:
    if not dim.dim_param:
        return int(dim.dim_value)
    factor, _, _ = dim.dim_param.rpartition("*")
    return Rows(int(factor or 1))
