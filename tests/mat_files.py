"""MATLAB v5 files as bytes, as MATLAB and others write them."""

from __future__ import annotations

import struct
import zlib

import numpy as np

CODES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12, "u8": 13}
CLASSES = {"f8": 6, "f4": 7, "i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13, "i8": 14, "u8": 15}


def header(order: str = "<", version: int = 0x0100) -> bytes:
    mark = b"IM" if order == "<" else b"MI"
    return b"MATLAB 5.0 MAT-file, made by a test".ljust(124) + struct.pack(f"{order}H", version) + mark


def element(kind: int, data: bytes, order: str = "<", *, small: bool = False) -> bytes:
    """Tag and data, padded to 8 bytes; `small` puts up to 4 bytes into the tag itself."""
    if small and 0 < len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}2I", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(name: str, array: np.ndarray, order: str = "<", *, kind: int = 0, flags: int = 0) -> bytes:
    """An element of one variable; `kind` is its class, where that is not the one of its numbers."""
    code = array.dtype.str[1:]
    content = element(6, struct.pack(f"{order}2I", (kind or CLASSES[code]) | flags << 8, 0), order)
    content += element(5, struct.pack(f"{order}{array.ndim}i", *array.shape), order)
    content += element(1, name.encode(), order, small=True)
    numbers = array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    return element(14, content + element(CODES[code], numbers, order, small=True), order)


def packed(variable: bytes, order: str = "<") -> bytes:
    """An element of zlib-packed bytes; it is not padded."""
    data = zlib.compress(variable)
    return struct.pack(f"{order}2I", 15, len(data)) + data


def svhn_bytes(images: np.ndarray, labels: np.ndarray, order: str = "<", *, pack: bool = True) -> bytes:
    """SVHN's form of uint8 (images, 3, 32, 32) and of labels that count from 1."""
    both = matrix("X", images.transpose(2, 3, 1, 0), order), matrix("y", labels.reshape(-1, 1), order)
    return header(order) + b"".join(packed(one, order) if pack else one for one in both)
