"""Reading protobuf's wire format without its library, trusting no number in it.

A message is a row of fields, each a key (field number and wire type) and a value. Protobuf's own parsers are lenient:
they merge a message that is given twice, take the last of two numbers, keep what they do not know, and accept a number
in more bytes than it needs. Two readers that are lenient in different ways see different files, and a check can be
passed by one and mean nothing to the other. So what is read here has every field known, every single one given once,
and every number in its shortest form. Groups, which protobuf itself gave up, are refused.

`read_message` takes a small message from memory, `FieldStream` a large one from a seekable stream, of which no more is
held than is asked for. Nothing here is allocated by a number of the file: lengths are compared with what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from edgeff.errors import ArtifactError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_WIDTHS = {FIXED64: 8, FIXED32: 4}
_WIRE_TYPES = ("a number", "8 bytes", "bytes", "a group", "a group", "4 bytes", "an unknown type", "an unknown type")
_MAX_VARINT_BYTES = 10
_CHUNK_BYTES = 64 * 1024


def field_key(number: int, wire_type: int) -> int:
    """The key that a field begins with."""
    return number << 3 | wire_type


@dataclass(frozen=True)
class Message:
    """What a kind of message may hold.

    Attributes:
        name: Of the kind, for messages to people: `a node`.
        single: Names of the fields that may be given once, by key.
        repeated: Names of the fields that may be given any number of times, by key.
        refused: Names of known fields that may not be given, by number.
    """

    name: str
    single: Mapping[int, str]
    repeated: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    known: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", frozenset((*self.single, *self.repeated)))

    def width(self, key: int) -> int:
        """Bytes of a field that is neither a number nor has a length.

        Raises:
            ArtifactError: No other wire type is allowed.
        """
        if key & 7 not in _WIDTHS:
            raise self.refusal(key)
        return _WIDTHS[key & 7]

    def twice(self, key: int) -> ArtifactError:
        """The error for a single field that is given again."""
        return ArtifactError(f"{self.name} has `{self.single[key]}` twice")

    def refusal(self, key: int) -> ArtifactError:
        """The error for a key that may not be there."""
        number, wire_type = key >> 3, key & 7
        names = {known >> 3: name for known, name in (*self.single.items(), *self.repeated.items())}
        if number in self.refused:
            return ArtifactError(f"{self.name} must not have `{self.refused[number]}`")
        what = f"`{names[number]}`" if number in names else f"the unknown field {number}"
        return ArtifactError(f"{self.name} has {what} as {_WIRE_TYPES[wire_type]}")


def read_message(data: bytes, message: Message) -> dict[int, list[Any]]:
    """All fields of a message in memory.

    Args:
        data: The message; its length bounds what is made of it.
        message: What it may hold.

    Returns:
        Values by key, in order: an int from 0 to 2**64 - 1 for `VARINT`, bytes for the others.

    Raises:
        ArtifactError: It is malformed, or holds what it may not.
    """
    found: dict[int, list[Any]] = {}
    position, size = 0, len(data)
    while position < size:
        # Nearly every key and length has one byte: graphs have tens of thousands of them.
        key = data[position]
        position += 1
        if key > 127:
            key, position = _varint(data, position - 1)
        wire_type = key & 7
        value: int | bytes
        if wire_type == VARINT:
            value, position = _varint(data, position)
        else:
            if wire_type == LENGTH:
                length = data[position] if position < size else 128
                position += 1
                if length > 127:
                    length, position = _varint(data, position - 1)
            else:
                length = message.width(key)
            end = position + length
            if end > size:
                raise _past_the_end()
            value, position = data[position:end], end
        if key not in found:
            found[key] = [value]
        elif key in message.single:
            raise message.twice(key)
        else:
            found[key].append(value)
    if not message.known.issuperset(found):
        raise message.refusal(next(key for key in found if key not in message.known))
    return found


def packed_varints(data: bytes) -> list[int]:
    """Numbers from 0 to 2**64 - 1 that stand one after another.

    Raises:
        ArtifactError: They are malformed.
    """
    found, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        found.append(value)
    return found


def signed(value: int) -> int:
    """A varint as the int64 that it stands for.

    >>> signed(2**64 - 1)
    -1
    """
    return value - 2**64 if value >= 2**63 else value


class FieldStream:
    """Fields of large messages in a seekable stream.

    Args:
        stream: The whole file.
        size: Its bytes.
        max_fields: How many may be read of it, over all messages.
    """

    def __init__(self, stream: IO[bytes], size: int, max_fields: int) -> None:
        self._stream = stream
        self.size = size
        self._fields_left = max_fields
        self._held, self._held_from = b"", 0

    def fields(self, start: int, end: int, message: Message) -> Iterator[tuple[int, int, int]]:
        """The fields of a message that stands at `start` to `end`, one after another; between them, others may be read.

        Yields:
            A key, and the value of a `VARINT` with the place after it; for the others start and end of their bytes.

        Raises:
            ArtifactError: It is malformed, or holds what it may not.
        """
        given: set[int] = set()
        position = start
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ArtifactError("the file has too many fields")
            head = self.bytes(position, min(position + 2 * _MAX_VARINT_BYTES, end))
            key, read = _varint(head, 0)
            if key not in message.known:
                raise message.refusal(key)
            if key in message.single:
                if key in given:
                    raise message.twice(key)
                given.add(key)
            wire_type = key & 7
            if wire_type in (VARINT, LENGTH):
                value, read = _varint(head, read)
            else:
                value = _WIDTHS[wire_type]
            position += read
            if wire_type == VARINT:
                yield key, value, position
                continue
            begin, position = position, position + value
            if position > end:
                raise _past_the_end()
            yield key, begin, position

    def bytes(self, start: int, end: int) -> bytes:
        """The bytes of a stretch, which the caller has found short enough to hold.

        Raises:
            ArtifactError: The stream ends early.
        """
        if start < self._held_from or end > self._held_from + len(self._held):
            self._stream.seek(start)
            self._held, self._held_from = self._stream.read(max(end - start, _CHUNK_BYTES)), start
        data = self._held[start - self._held_from : end - self._held_from]
        if len(data) != end - start:
            raise _past_the_end()
        return data


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and the place after it."""
    try:
        value = data[position]
        if value < 128:
            return value, position + 1
        value &= 127
        for index in range(1, _MAX_VARINT_BYTES):
            byte = data[position + index]
            value |= (byte & 127) << 7 * index
            if byte < 128:
                break
        else:
            raise ArtifactError("a number has more than 10 bytes")
    except IndexError:
        raise ArtifactError("the file ends inside a number") from None
    if byte == 0 or value >= 2**64:
        raise ArtifactError("a number is not in its shortest form")
    return value, position + index + 1


def _past_the_end() -> ArtifactError:
    return ArtifactError("a field reaches past the end of what it stands in")
