"""Bytes as people write them."""

from __future__ import annotations

import re

from edgeff.errors import EdgeffError

_FACTORS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Read a number of bytes with an optional unit.

    Args:
        text: A decimal number, then nothing, `B`, `kB`, `MB`, `GB` (powers of 1000) or `KiB`, `MiB`, `GiB` (of 1024).

    Returns:
        Whole bytes, rounded down.

    Raises:
        EdgeffError: The text is not of that form.

    >>> parse_bytes("32MiB")
    33554432
    >>> parse_bytes("1.5 kB")
    1500
    """
    match = _PATTERN.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise EdgeffError(
            f"`{text}` is not a number of bytes", hint="write for example `32MiB`, `512KiB` or `33554432`"
        )
    whole, _, fraction = match[1].partition(".")
    # Integers throughout: a float would lose bytes above 2**53.
    return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)


def format_bytes(count: int) -> str:
    """Write bytes in the largest binary unit that leaves at least 1, with three significant digits.

    >>> format_bytes(33554432)
    '32 MiB'
    >>> format_bytes(1234567)
    '1.18 MiB'
    >>> format_bytes(-2048)
    '-2 KiB'
    """
    sign, size = ("-", -count) if count < 0 else ("", count)
    if size < 1024:
        return f"{sign}{size} B"
    for unit in ("KiB", "MiB", "GiB"):
        scaled = size / 1024
        if scaled < 1023.5 or unit == "GiB":
            break
        size = size / 1024  # type: ignore[assignment]
    digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
    number = f"{scaled:.{digits}f}"
    return f"{sign}{number.rstrip('0').rstrip('.') if digits else number} {unit}"
