"""Exchanging nodes of a graph for others that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeff.export.ir import Dim, Rows
from edgeff.export.workspace import Known

# Gives the nodes that are to stand in a node's place, or that node alone.
Rule = Callable[["Rewriting", onnx.NodeProto], Iterator[onnx.NodeProto]]


class Rewriting:
    """A copy of a model in which nodes are exchanged.

    Args:
        model: With `value_info` for its inner tensors; it is not changed.
        prefix: Of the names of new tensors.
    """

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._known = Known(model)
        self._constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        self._prefix = prefix
        self._count = 0

    def apply(self, rules: Mapping[str, Rule], chosen: Callable[[int], bool] = lambda index: True) -> onnx.ModelProto:
        """Exchange nodes.

        Args:
            rules: By operator.
            chosen: Whether the node with that number may be exchanged.

        Returns:
            The model, without constants that nothing reads any more.
        """
        graph = self._model.graph
        nodes = [
            new
            for index, node in enumerate(list(graph.node))
            for new in (rules[node.op_type](self, node) if node.op_type in rules and chosen(index) else (node,))
        ]
        made = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(made)
        read = {name for node in made for name in node.input} | {value.name for value in graph.output}
        constants = [one for one in graph.initializer if one.name in read]
        del graph.initializer[:]
        graph.initializer.extend(constants)
        return self._model

    def shape(self, name: str) -> tuple[Dim, ...]:
        """Of a tensor, rows included."""
        return self._known.shape(name)

    def sizes(self, name: str) -> list[int]:
        """Of a tensor but for its first axis."""
        return [int(str(size)) for size in self._known.shape(name)[1:]]

    def values(self, name: str) -> np.ndarray | None:
        """Of a constant."""
        return self._constants.get(name)

    def constant(self, values: Any, dtype: str) -> str:
        """Name of a new constant."""
        name = self._name()
        self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def tensor(self, shape: Sequence[Dim]) -> str:
        """Name of a new float32 tensor."""
        name = self._name()
        dims = [str(dim) if isinstance(dim, Rows) else dim for dim in shape]
        self._model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
        return name

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}_{self._count}"


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
