"""What the readers of an artifact's ONNX files share: caps, data types, names, and what numbers say of sizes.

Every cap is far above what the exporter writes, and bounds what reading a file can take.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgeff.errors import ArtifactError
from edgeff.protobuf_stream import field_key

# Of a block's graph, which is held whole while it is loaded.
MAX_GRAPH_BYTES = 256 * 2**20
# Of any other file: the inference template has all weights inside, and protobuf itself ends here.
MAX_FILE_BYTES = 2**31 - 1
MAX_NODES = 65_536
MAX_PORTS = 65_536
MAX_INITIALIZERS = 65_536
# Tensors of a graph: inputs, initialisers and outputs of nodes.
MAX_TENSORS = 131_072
# Fields of the large messages, all of a file together: what bounds the time that a file of empty fields takes.
MAX_FIELDS = 2**20
MAX_NODE_BYTES = 64 * 1024
MAX_ALL_NODES_BYTES = 32 * 2**20
MAX_PORT_BYTES = 4096
MAX_NODE_TENSORS = 1024
MAX_ATTRIBUTES = 32
MAX_NAME_BYTES = 256
MAX_AXES = 8
# Of a dimension, of the elements of a tensor, and of a whole number that decides about one.
MAX_ELEMENTS = 2**31
# Numbers of a tensor that do not stand as plain bytes.
MAX_TYPED_BYTES = 64 * 1024

# TensorProto.DataType of the dtypes that a manifest knows.
DTYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}


_NAME = re.compile(rb"[!-~]{1,256}")


def fields(wire_type: int, names: Mapping[int, str]) -> dict[int, str]:
    """Names by key, of fields given by number."""
    return {field_key(number, wire_type): name for number, name in names.items()}


class Numbers(NamedTuple):
    """What whole numbers say of the size that they may give a tensor.

    Attributes:
        largest: The largest absolute value; 0 without numbers.
        product: Of the absolute values, zeros left out: elements of the tensor that has them as its shape.
    """

    largest: int = 0
    product: int = 1


def numbers_of(values: Sequence[int]) -> Numbers:
    """What the values of a tensor or attribute say."""
    if not values:
        return Numbers()
    largest = max(max(values), -min(values))
    # More numbers than that are no shape, nor the padding of one on both sides.
    if len(values) > 2 * MAX_AXES:
        return Numbers(largest, MAX_ELEMENTS + 1)
    return Numbers(largest, math.prod(abs(value) or 1 for value in values))


def checked_name(name: bytes, what: str) -> bytes:
    """A name as it is.

    Raises:
        ArtifactError: It is empty, too long, or has other characters than printable ASCII.
    """
    if not _NAME.fullmatch(name):
        raise ArtifactError(
            f"{what} is called {shown_bytes(name)}, needed 1 to {MAX_NAME_BYTES} printable ASCII characters"
        )
    return name


def shown_bytes(raw: bytes) -> str:
    """Bytes of a file as a message shows them: short, on one line, without control characters."""
    text = ascii(raw.decode("latin-1"))[1:-1]
    return f"`{text}`" if len(text) <= 80 else f"`{text[:77]}...`"
