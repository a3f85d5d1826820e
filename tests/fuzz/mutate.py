"""Changes to inputs: of bytes, and of JSON as what it says. The same random numbers give the same change."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

from fuzz.base import CUT
from fuzz.words import BYTES, DTYPES, FIELDS, SHAPES, VALUES

_NPY = b"\x93NUMPY\x01\x00"


def mutate(data: bytes, rng: random.Random, words: tuple[bytes, ...], form: str, largest: int) -> bytes:
    """One to four changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        changed = None
        if form == "json" and rng.random() < 0.7:
            changed = mutate_json(data, rng)
        elif form == "onnx" and rng.random() < 0.7:
            changed = mutate_onnx(data, rng)
        elif _NPY in data and rng.random() < 0.5:
            changed = mutate_npy(data, rng)
        data = mutate_bytes(data, rng, words) if changed is None else changed
    return data[:largest]


def mutate_bytes(data: bytes, rng: random.Random, words: tuple[bytes, ...]) -> bytes:
    """A change that knows nothing of what the bytes mean."""
    at = rng.randrange(len(data) + 1)
    past = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64)))
    piece = (
        rng.choice(words) if words and rng.random() < 0.5 else rng.choice((*BYTES, rng.randbytes(1), rng.randbytes(4)))
    )
    match rng.randrange(6):
        case 0:
            return data[:at] + piece + data[at:]
        case 1:
            return data[:at] + piece + data[at + len(piece) :]
        case 2:
            return data[:at] + data[past:]
        case 3:
            return data[:past] + data[at:]
        case 4:
            return data[:at]
        case _:
            flipped = bytes([data[at] ^ 1 << rng.randrange(8)]) if at < len(data) else b""
            return data[:at] + flipped + data[at + 1 :]


def mutate_json(data: bytes, rng: random.Random) -> bytes | None:
    """A change of one value or key of the JSON that the input is, or begins with; None where it is none."""
    lead = data[:1] if data[:1] == b"H" else b""
    text, cut, rest = data[len(lead) :].partition(CUT)
    try:
        root = json.loads(text)
        holders = list(_holders(root))
        if not holders:
            return lead + json.dumps(rng.choice(VALUES)).encode() + cut + rest
        _change(rng.choice(holders), holders, rng)
        return lead + json.dumps(root, separators=(",", ":")).encode() + cut + rest
    except (ValueError, RecursionError):
        return None


def mutate_npy(data: bytes, rng: random.Random) -> bytes:
    """A change of what one of the `.npy` headers in the input says, which still is of the length that it claims."""
    begin = rng.choice([at.start() for at in re.finditer(re.escape(_NPY), data)])
    length = int.from_bytes(data[begin + 8 : begin + 10], "little")
    header = data[begin + 10 : begin + 10 + length].decode("latin1")
    match rng.randrange(4):
        case 0:
            header = re.sub(r"'descr': ('[^']*'|[^,]*)", lambda _: f"'descr': {rng.choice(DTYPES)}", header)
        case 1:
            header = re.sub(r"\([\d, ]*\)", lambda _: rng.choice(SHAPES), header)
        case 2:
            header = re.sub(
                r"\d+", lambda found: str(int(found[0]) + rng.choice((1, -1, 2**32, 2**63, 1000))), header, count=9
            )
        case _:
            at = rng.randrange(len(header) + 1)
            header = header[:at] + rng.choice(("(", "[", "{", "-", "'", "\\", "1", ",", "\0", "_")) + header[at + 1 :]
    text = header.strip().encode("latin1", "replace")
    return data[: begin + 8] + len(text).to_bytes(2, "little") + text + data[begin + 10 + length :]


def mutate_onnx(data: bytes, rng: random.Random) -> bytes | None:
    """A change of one field somewhere in a model; None where it is none, or the onnx package is not there."""
    try:
        import onnx
        from google.protobuf.message import DecodeError, EncodeError
    except ImportError:
        return None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        messages = list(_messages(model))
        message = rng.choice(messages)
        _change_field(message, rng.choice(message.DESCRIPTOR.fields), messages, rng)
        return bytes(model.SerializeToString(deterministic=True))
    except (DecodeError, EncodeError, ValueError, TypeError, RecursionError):
        return None


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                yield from _messages(one)


def _change_field(message: Any, field: Any, messages: list[Any], rng: random.Random) -> None:
    """Give a field, which may not be there yet, another value, or take it away."""
    value = getattr(message, field.name)
    if rng.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None:
        alike = [one for one in messages if one.DESCRIPTOR is field.message_type]
        # As bytes: protobuf's library does not survive being told to copy a message into itself.
        other = rng.choice(alike).SerializeToString() if alike else b""
        if field.is_repeated and len(value) and rng.random() < 0.4:
            del value[rng.randrange(len(value))]
        elif field.is_repeated:
            value.add().ParseFromString(other)
        else:
            value.ParseFromString(other)
    else:
        names = [one for model in messages for one in _texts(model)]
        made = rng.choice((*FIELDS[field.cpp_type], *(names if field.cpp_type in (9,) else ())))
        if isinstance(made, str) and field.type == field.TYPE_BYTES:
            made = made.encode()
        if not field.is_repeated:
            setattr(message, field.name, made)
        elif len(value) and rng.random() < 0.7:
            value[rng.randrange(len(value))] = made
        else:
            value.append(made)


def _texts(message: Any) -> Iterator[str]:
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            yield from value if field.is_repeated else (value,)


def _holders(value: Any) -> list[Any]:
    found, left = [], [value]
    while left and len(found) < 10_000:
        one = left.pop()
        if isinstance(one, dict | list) and one:
            found.append(one)
            left += one.values() if isinstance(one, dict) else one
    return found


def _change(holder: Any, holders: list[Any], rng: random.Random) -> None:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    key = rng.choice(keys)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = _copy(rng.choice(holders))
        case 2 if isinstance(holder, list):
            holder.insert(key, _copy(holder[key]))
        case 2:
            holder[str(rng.choice(VALUES))] = holder.pop(key)
        case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] += rng.choice((1, -1, 256, 2**31, 0.5))
        case 4 if isinstance(holder[key], str) and holder[key]:
            at = rng.randrange(len(holder[key]))
            holder[key] = holder[key][:at] + rng.choice(("\n", ".", "/", "é", "\x7f", "0")) + holder[key][at + 1 :]
        case _:
            holder[key] = _copy(rng.choice(VALUES))


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))
