"""Nodes of an ONNX file with their attributes, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import NamedTuple

from edgeff.errors import ArtifactError
from edgeff.onnx_dialects import PLAIN, Dialect
from edgeff.onnx_limits import (
    DTYPES,
    MAX_ATTRIBUTES,
    MAX_ELEMENTS,
    MAX_FIELDS,
    MAX_NAME_BYTES,
    MAX_NODE_TENSORS,
    Numbers,
    checked_name,
    fields,
    numbers_of,
    shown_bytes,
)
from edgeff.onnx_tensors import read_tensor
from edgeff.protobuf_stream import (
    FIXED32,
    LENGTH,
    VARINT,
    FieldStream,
    Message,
    field_key,
    packed_varints,
    read_message,
    signed,
)

_REMEMBERED, _REMEMBERED_BYTES = 4096, 256

NODE = Message(
    "a node",
    single=fields(LENGTH, {3: "name", 4: "op_type", 6: "doc_string", 7: "domain"}),
    repeated=fields(LENGTH, {1: "input", 2: "output", 5: "attribute"}),
    refused={8: "overload", 9: "metadata_props", 10: "device_configurations"},
)
_INPUT, _OUTPUT, _ATTRIBUTE = (field_key(number, LENGTH) for number in (1, 2, 5))
_OP_TYPE, _DOMAIN = (field_key(number, LENGTH) for number in (4, 7))

ATTRIBUTE = Message(
    "an attribute",
    single={
        **fields(LENGTH, {1: "name", 4: "s", 5: "t", 13: "doc_string"}),
        **fields(VARINT, {3: "i", 20: "type"}),
        **fields(FIXED32, {2: "f"}),
    },
    # Numbers stand one by one in files of proto2, packed in files of proto3.
    repeated={
        **fields(LENGTH, {7: "floats", 8: "ints"}),
        **fields(VARINT, {8: "ints"}),
        **fields(FIXED32, {7: "floats"}),
    },
    refused={
        6: "g",
        9: "strings",
        10: "tensors",
        11: "graphs",
        14: "tp",
        15: "type_protos",
        21: "ref_attr_name",
        22: "sparse_tensor",
        23: "sparse_tensors",
    },
)
_ATTRIBUTE_NAME, _ATTRIBUTE_TYPE = field_key(1, LENGTH), field_key(20, VARINT)
_S, _T, _I = field_key(4, LENGTH), field_key(5, LENGTH), field_key(3, VARINT)
_INTS = (field_key(8, VARINT), field_key(8, LENGTH))
_FLOATS = (field_key(7, FIXED32), field_key(7, LENGTH))
# AttributeProto.AttributeType of the values that may be given, with the keys that each may be given by.
_ATTRIBUTE_VALUES: Mapping[int, tuple[int, ...]] = {
    1: (field_key(2, FIXED32),),
    2: (_I,),
    3: (_S,),
    4: (_T,),
    6: _FLOATS,
    7: _INTS,
}
_ATTRIBUTE_NOTES = frozenset({_ATTRIBUTE_NAME, _ATTRIBUTE_TYPE, field_key(13, LENGTH)})
# Attributes that hold a data type.
_DTYPE_ATTRIBUTES = frozenset({b"to", b"dtype"})

# Attributes that were found good: name and numbers by their bytes. Most repeat.
KnownAttributes = dict[bytes, tuple[bytes, Numbers]]


class Node(NamedTuple):
    """A node, checked.

    Attributes:
        operator: Its name, whatever the domain.
        inputs: Names; empty for one that is left out.
        outputs: Names; empty for one that is left out.
        numbers: Of its attributes.
    """

    operator: str
    inputs: list[bytes]
    outputs: list[bytes]
    numbers: Numbers


def read_node(data: bytes, known: KnownAttributes, dialect: Dialect = PLAIN) -> Node:
    """A node of at most `MAX_NODE_BYTES`.

    Args:
        data: The message.
        known: Attributes that were found good; new ones are added.
        dialect: What it may use.

    Raises:
        ArtifactError: It breaks a rule.
    """
    found = read_message(data, NODE)
    operators = dialect.operators_of(found.get(_DOMAIN, [b""])[0])
    operator = operators.get(found.get(_OP_TYPE, [b""])[0])
    if operator is None:
        raise ArtifactError(f"the operator {shown_bytes(found.get(_OP_TYPE, [b''])[0])} is not allowed")
    inputs, outputs = found.get(_INPUT, []), found.get(_OUTPUT, [])
    attributes = found.get(_ATTRIBUTE, [])
    if len(inputs) + len(outputs) > MAX_NODE_TENSORS or len(attributes) > MAX_ATTRIBUTES:
        raise ArtifactError(
            f"it has {len(inputs) + len(outputs)} tensors and {len(attributes)} attributes, "
            f"allowed {MAX_NODE_TENSORS} and {MAX_ATTRIBUTES}"
        )
    numbers = _check_attributes(attributes, operator, known) if attributes else Numbers()
    return Node(operator, inputs, outputs, numbers)


def _check_attributes(attributes: list[bytes], operator: str, known: KnownAttributes) -> Numbers:
    names, largest, product = set(), 0, 1
    for data in attributes:
        name, numbers = known.get(data) or _read_attribute(data)
        if len(data) <= _REMEMBERED_BYTES and len(known) < _REMEMBERED:
            known[data] = name, numbers
        if name in names:
            raise ArtifactError(f"it has the attribute {shown_bytes(name)} twice")
        names.add(name)
        # The numbers of constants are held against what uses them.
        if numbers.largest > MAX_ELEMENTS and not operator.startswith("Constant"):
            raise ArtifactError(
                f"the attribute {shown_bytes(name)} has {numbers.largest}, allowed at most {MAX_ELEMENTS}"
            )
        largest, product = max(largest, numbers.largest), max(product, numbers.product)
    return Numbers(largest, product)


def _read_attribute(data: bytes) -> tuple[bytes, Numbers]:
    found = read_message(data, ATTRIBUTE)
    name = checked_name(found.get(_ATTRIBUTE_NAME, [b""])[0], "an attribute")
    kind = found.get(_ATTRIBUTE_TYPE, [0])[0]
    values = found.keys() - _ATTRIBUTE_NOTES
    if kind not in _ATTRIBUTE_VALUES or not values.issubset(_ATTRIBUTE_VALUES[kind]):
        raise ArtifactError(f"the attribute {shown_bytes(name)} has a value that is not of its type {kind}")
    if kind <= 4 and not values:
        raise ArtifactError(f"the attribute {shown_bytes(name)} has no value")
    if kind == 3:
        _check_text(name, found[_S][0])
    if kind == 4:
        return name, _attribute_tensor(found[_T][0])
    if name in _DTYPE_ATTRIBUTES and (kind != 2 or found[_I][0] not in DTYPES):
        raise ArtifactError(f"the attribute {shown_bytes(name)} is no allowed data type")
    if any(len(packed) % 4 for packed in found.get(_FLOATS[1], [])):
        raise ArtifactError(f"the attribute {shown_bytes(name)} ends inside a number")
    numbers = [*found.get(_I, []), *found.get(_INTS[0], [])]
    for packed in found.get(_INTS[1], []):
        numbers += packed_varints(packed)
    return name, numbers_of([signed(number) for number in numbers])


def _check_text(name: bytes, text: bytes) -> None:
    # `Constant` would make a tensor of texts of it.
    if name.startswith(b"value"):
        raise ArtifactError(f"the attribute {shown_bytes(name)} is a text, which no tensor may hold")
    if len(text) > MAX_NAME_BYTES:
        raise ArtifactError(
            f"the attribute {shown_bytes(name)} has {len(text)} bytes, allowed at most {MAX_NAME_BYTES}"
        )


def _attribute_tensor(data: bytes) -> Numbers:
    return read_tensor(FieldStream(BytesIO(data), len(data), MAX_FIELDS), 0, len(data)).numbers
