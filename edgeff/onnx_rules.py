"""What an ONNX file of an artifact must keep to before onnxruntime sees it: an artifact may come from a stranger.

The file is walked twice, once for everything but the nodes and once for the nodes, since a name must be known before a
node reads it and files have their nodes first. Data of tensors are passed over. `docs/artifact-format.md` numbers the
rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from edgeff.errors import ArtifactError
from edgeff.json_node import HINT
from edgeff.onnx_dialects import PLAIN, Dialect
from edgeff.onnx_limits import (
    MAX_ALL_NODES_BYTES,
    MAX_ELEMENTS,
    MAX_FIELDS,
    MAX_FILE_BYTES,
    MAX_INITIALIZERS,
    MAX_NODE_BYTES,
    MAX_NODES,
    MAX_PORT_BYTES,
    MAX_PORTS,
    MAX_TENSORS,
    Numbers,
    checked_name,
    fields,
    shown_bytes,
)
from edgeff.onnx_nodes import KnownAttributes, Node, read_node
from edgeff.onnx_operators import SHAPE_OPERATORS, SHAPE_READERS, SIZING_INPUTS
from edgeff.onnx_ports import OnnxPort, read_port
from edgeff.onnx_tensors import read_tensor
from edgeff.protobuf_stream import LENGTH, VARINT, FieldStream, Message, field_key, read_message

# What onnxruntime 1.17 loads, from the first opset in which the operators have the form that is checked here.
OPSETS = range(13, 19)
IR_VERSIONS = range(7, 10)

MODEL = Message(
    "the model",
    single={
        **fields(VARINT, {1: "ir_version", 5: "model_version"}),
        **fields(LENGTH, {2: "producer_name", 3: "producer_version", 4: "domain", 6: "doc_string", 7: "graph"}),
    },
    repeated=fields(LENGTH, {8: "opset_import"}),
    # onnxruntime may take settings of the session from `metadata_props`.
    refused={14: "metadata_props", 20: "training_info", 25: "functions", 26: "configuration"},
)
_IR_VERSION, _GRAPH, _OPSET_IMPORT = field_key(1, VARINT), field_key(7, LENGTH), field_key(8, LENGTH)
OPSET = Message("`opset_import`", single={field_key(1, LENGTH): "domain", field_key(2, VARINT): "version"})
_DOMAIN, _VERSION = field_key(1, LENGTH), field_key(2, VARINT)
GRAPH = Message(
    "the graph",
    single=fields(LENGTH, {2: "name", 10: "doc_string"}),
    repeated=fields(LENGTH, {1: "node", 5: "initializer", 11: "input", 12: "output"}),
    # Shapes of inner tensors are onnxruntime's to find, not the file's to claim.
    refused={13: "value_info", 14: "quantization_annotation", 15: "sparse_initializer", 16: "metadata_props"},
)
DESCRIBED_GRAPH = Message(
    "the graph",
    single=GRAPH.single,
    repeated={**GRAPH.repeated, field_key(13, LENGTH): "value_info"},
    refused={number: name for number, name in GRAPH.refused.items() if number != 13},
)
_VALUE_INFO = field_key(13, LENGTH)
_NODE, _INITIALIZER, _INPUT, _OUTPUT = (field_key(number, LENGTH) for number in (1, 5, 11, 12))
_MAX_OPSET_BYTES = 64
# Of every domain but the default one.
_OTHER_VERSION = 1


@dataclass(frozen=True)
class GraphPorts:
    """What goes into a graph and what comes out, in the order of the file."""

    inputs: tuple[OnnxPort, ...]
    outputs: tuple[OnnxPort, ...]


def check_onnx(
    stream: IO[bytes],
    size: int,
    file: str,
    *,
    limit: int = MAX_FILE_BYTES,
    known: KnownAttributes | None = None,
    dialect: Dialect = PLAIN,
    on_node: Callable[[Node], None] | None = None,
) -> GraphPorts:
    """Check an ONNX file.

    Args:
        stream: Seekable, of the whole file.
        size: Of the file.
        file: Its name, for messages.
        limit: Bytes that it may have.
        known: Attributes that were found good, to be shared by several files.
        dialect: What the file may use.
        on_node: Is told of every node, in order.

    Returns:
        Its inputs and outputs.

    Raises:
        ArtifactError: It breaks a rule; the message names file and place.
    """
    try:
        if size > limit:
            raise ArtifactError(f"it has {size} bytes, allowed at most {limit}")
        source = FieldStream(stream, size, MAX_FIELDS)
        graph = _graph_of(source, dialect)
        return _Walk(source, {} if known is None else known, on_node, dialect).graph(*graph)
    except ArtifactError as error:
        raise ArtifactError(f"`{file}`: {error}", hint=HINT) from error


def _graph_of(source: FieldStream, dialect: Dialect) -> tuple[int, int]:
    """Where the model's graph stands."""
    graph: tuple[int, int] | None = None
    opsets: list[bytes] = []
    ir_version = 0
    for key, begin, stop in source.fields(0, source.size, MODEL):
        if key == _GRAPH:
            graph = begin, stop
        elif key == _IR_VERSION:
            ir_version = begin
        elif key == _OPSET_IMPORT:
            opsets.append(_bounded(source, begin, stop, _MAX_OPSET_BYTES, "`opset_import`"))
            if len(opsets) > len(dialect.operators):
                raise ArtifactError(f"the model has more than {len(dialect.operators)} `opset_import`")
    if ir_version not in IR_VERSIONS:
        raise ArtifactError(f"IR version {ir_version} is not allowed, needed {_between(IR_VERSIONS)}")
    _check_opsets(opsets, dialect)
    if graph is None:
        raise ArtifactError("the model has no graph")
    return graph


def _check_opsets(opsets: list[bytes], dialect: Dialect) -> None:
    """Each domain once, each in a version that is known; the default one must be there."""
    versions: dict[bytes, int] = {}
    for data in opsets:
        found = read_message(data, OPSET)
        domain = found.get(_DOMAIN, [b""])[0]
        dialect.operators_of(domain)
        name = b"" if domain == b"ai.onnx" else domain
        if name in versions:
            raise ArtifactError("a domain has more than one `opset_import`")
        versions[name] = found.get(_VERSION, [0])[0]
    if versions.get(b"", 0) not in OPSETS:
        raise ArtifactError(f"opset {versions.get(b'', 0)} is not allowed, needed {_between(OPSETS)}")
    for domain, version in versions.items():
        if domain and version != _OTHER_VERSION:
            raise ArtifactError(f"version {version} of {shown_bytes(domain)} is not allowed, needed {_OTHER_VERSION}")


def _between(versions: range) -> str:
    return f"{versions.start} to {versions.stop - 1}"


def _bounded(source: FieldStream, begin: int, stop: int, limit: int, what: str) -> bytes:
    if stop - begin > limit:
        raise ArtifactError(f"{what} has {stop - begin} bytes, allowed at most {limit}")
    return source.bytes(begin, stop)


class _Walk:
    """One graph's names and what is known of the numbers behind them."""

    def __init__(
        self,
        source: FieldStream,
        known: KnownAttributes,
        on_node: Callable[[Node], None] | None,
        dialect: Dialect,
    ) -> None:
        self._source = source
        self._on_node = on_node
        self._dialect = dialect
        self._message = DESCRIBED_GRAPH if dialect.described else GRAPH
        # Inner tensors whose shape the file gives and that no node has made yet.
        self._described: set[bytes] = set()
        # The empty name stands for an input that is left out.
        self._defined = {b""}
        # Tensors with a whole number too large for a size, and those that are no shape for their numbers' product.
        self._large: set[bytes] = set()
        self._no_shape: set[bytes] = set()
        self._attributes = known

    def graph(self, begin: int, stop: int) -> GraphPorts:
        """Check a graph that stands at `begin` to `stop`."""
        ports = self._declarations(begin, stop)
        number = 0
        for key, first, last in self._source.fields(begin, stop, self._message):
            if key == _NODE:
                try:
                    self._node(_bounded(self._source, first, last, MAX_NODE_BYTES, "it"))
                except ArtifactError as error:
                    raise ArtifactError(f"node {number}: {error}") from error
                number += 1
        if self._described:
            name, makers = shown_bytes(min(self._described)), ", ".join(sorted(self._dialect.described))
            raise ArtifactError(f"the shape of {name} is given, which it may be of what `{makers}` makes alone")
        for port in ports.outputs:
            if port.name.encode() not in self._defined:
                raise ArtifactError(f"the output `{port.name}` is made by no node")
        return ports

    def _declarations(self, begin: int, stop: int) -> GraphPorts:
        """All but the nodes, which are counted."""
        counts = dict.fromkeys(_LIMITS, 0)
        ports: dict[int, list[OnnxPort]] = {_INPUT: [], _OUTPUT: []}
        node_bytes = 0
        for key, first, last in self._source.fields(begin, stop, self._message):
            if key in counts:
                counts[key] += 1
                if counts[key] > _LIMITS[key]:
                    raise ArtifactError(f"the graph has more than {_LIMITS[key]} of `{self._message.repeated[key]}`")
            if key == _NODE:
                node_bytes += last - first
            elif key == _INITIALIZER:
                self._initializer(first, last)
            elif key in ports:
                ports[key].append(self._port(first, last))
            elif key == _VALUE_INFO:
                self._describe(first, last)
        if node_bytes > MAX_ALL_NODES_BYTES:
            raise ArtifactError(f"the nodes have {node_bytes} bytes, allowed at most {MAX_ALL_NODES_BYTES}")
        for port in ports[_INPUT]:
            self._define(port.name.encode())
        _check_unique(ports[_OUTPUT])
        return GraphPorts(tuple(ports[_INPUT]), tuple(ports[_OUTPUT]))

    def _port(self, first: int, last: int) -> OnnxPort:
        data = _bounded(self._source, first, last, MAX_PORT_BYTES, "an input or output")
        return read_port(data, sequences=self._dialect.sequences)

    def _describe(self, first: int, last: int) -> None:
        name = read_port(_bounded(self._source, first, last, MAX_PORT_BYTES, "`value_info`")).name.encode()
        if name in self._described:
            raise ArtifactError(f"the shape of {shown_bytes(name)} is given twice")
        self._described.add(name)

    def _initializer(self, first: int, last: int) -> None:
        tensor = read_tensor(self._source, first, last)
        self._define(checked_name(tensor.name, "an initialiser"))
        self._remember(tensor.name, tensor.numbers)

    def _node(self, data: bytes) -> None:
        node = read_node(data, self._attributes, self._dialect)
        if not self._defined.issuperset(node.inputs):
            unknown = next(name for name in node.inputs if name not in self._defined)
            raise ArtifactError(f"it reads {shown_bytes(unknown)}, which nothing before it makes")
        if node.operator in SIZING_INPUTS:
            self._check_sizes(node)
        outputs = [checked_name(name, "an output") for name in node.outputs if name]
        for name in outputs:
            self._define(name)
        if node.operator in self._dialect.described:
            self._check_described(node.operator, outputs)
        if node.operator == "Constant":
            self._remember(node.outputs[0] if node.outputs else b"", node.numbers)
        elif node.numbers.largest > MAX_ELEMENTS or self._carries_large(node):
            self._large.update(outputs)
        if self._on_node is not None:
            self._on_node(node)

    def _check_described(self, operator: str, outputs: list[bytes]) -> None:
        """Take the shapes of what a node makes off those that the file gives."""
        for name in outputs:
            if name not in self._described:
                raise ArtifactError(f"the shape of {shown_bytes(name)}, which `{operator}` makes, is not given")
            self._described.remove(name)

    def _carries_large(self, node: Node) -> bool:
        """Whether a number that is too large for a size may be in what a node makes."""
        return bool(self._large) and node.operator not in SHAPE_READERS and not self._large.isdisjoint(node.inputs)

    def _check_sizes(self, node: Node) -> None:
        for position in SIZING_INPUTS[node.operator]:
            name = node.inputs[position] if position < len(node.inputs) else b""
            if name in self._large or (node.operator in SHAPE_OPERATORS and name in self._no_shape):
                raise ArtifactError(
                    f"`{node.operator}` takes a size from {shown_bytes(name)}, "
                    f"whose numbers allow more than {MAX_ELEMENTS} elements"
                )

    def _remember(self, name: bytes, numbers: Numbers) -> None:
        if numbers.largest > MAX_ELEMENTS:
            self._large.add(name)
        if numbers.product > MAX_ELEMENTS:
            self._no_shape.add(name)

    def _define(self, name: bytes) -> None:
        if name in self._defined:
            raise ArtifactError(f"the tensor {shown_bytes(name)} is made twice")
        if len(self._defined) > MAX_TENSORS:
            raise ArtifactError(f"the graph has more than {MAX_TENSORS} tensors")
        self._defined.add(name)


_LIMITS = {
    _NODE: MAX_NODES,
    _INITIALIZER: MAX_INITIALIZERS,
    _INPUT: MAX_PORTS,
    _OUTPUT: MAX_PORTS,
    _VALUE_INFO: MAX_PORTS,
}


def _check_unique(ports: list[OnnxPort]) -> None:
    seen: set[str] = set()
    for port in ports:
        if port.name in seen:
            raise ArtifactError(f"the output `{port.name}` is given twice")
        seen.add(port.name)
