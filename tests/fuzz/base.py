"""What a target is, and the few things that all of them need."""

from __future__ import annotations

import errno
import traceback
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from edgeff.errors import EdgeffError

Value = TypeVar("Value")
# Between the files of an input that is more than one file, and between a mode and a file.
CUT = b"\n%%\n"


class Odd(AssertionError):
    """An `EdgeffError` that no user should see."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: Of the target, of its folder, and of its folders in the corpus.
        read: Puts the bytes where the reader expects them, below the folder, and reads all there is to read.
        seeds: Good inputs.
        prepare: Puts what does not change into the folder; called once.
        words: What inputs are made of.
        form: `json` where the input (or its first part) is JSON, `onnx` where it is a model, to change it as such.
        largest: Bytes of an input.
    """

    name: str
    read: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]
    prepare: Callable[[Path], None] = lambda folder: None
    words: tuple[bytes, ...] = ()
    form: Literal["bytes", "json", "onnx"] = "bytes"
    largest: int = 16384


def attempt(read: Callable[[], Value]) -> Value | None:
    """What it reads; None where it refuses as it should.

    Raises:
        Odd: It refuses with a text that is not one line, or because memory or disk were used up.
    """
    try:
        return read()
    except EdgeffError as error:
        for text in (str(error), error.hint):
            if odd_text(text):
                raise Odd("message", f"{type(error).__name__}: {text[:200]!r}") from error
        _check_causes(error)
        return None


def odd_text(text: str) -> str:
    """What of a text no message should hold; empty for nothing."""
    return next((one for one in text if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")), "")


def _check_causes(error: BaseException) -> None:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MemoryError) and not _of_the_parser(cause):
            raise Odd("memory", "it was refused only when there was no more memory") from error
        if isinstance(cause, OSError) and cause.errno in (errno.EFBIG, errno.ENOSPC):
            raise Odd("disk", "it was refused only when there was no more room for a file") from error
        cause = cause.__cause__ or cause.__context__


def _of_the_parser(error: MemoryError) -> bool:
    """Python's parser says MemoryError of what is nested too deeply."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code.co_filename.endswith("ast.py")


def parts(data: bytes, count: int) -> list[bytes]:
    """The files of an input; missing ones are empty."""
    found = data.split(CUT, count - 1)
    return found + [b""] * (count - len(found))


def joined(*files: bytes) -> bytes:
    """The input that `parts` takes apart."""
    return CUT.join(files)


def put(path: Path, data: bytes) -> Path:
    """Write a file."""
    path.write_bytes(data)
    return path
