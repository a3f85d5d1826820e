"""Readers that are wrong on purpose, for each kind of finding: where the harness lets one through, it finds nothing."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz.base import Target
from fuzz.guard import MEMORY_CAP_BYTES

from edgeff.errors import DataError

# What a wrong reader does only with this in the input: it has to be found first.
TRIGGER = b"!"


class _Runs:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("true",)


def _as_it_is(text: str) -> DataError:
    error = DataError("")
    error.args = (text,)  # past what every message goes through
    return error


class _LeavesAnError:
    def __del__(self) -> None:
        raise ValueError("planted")


def _crash(folder: Path) -> None:
    raise KeyError("planted")


def _warning(folder: Path) -> None:
    warnings.warn("planted", RuntimeWarning, stacklevel=1)


def _swallowed(folder: Path) -> None:
    _LeavesAnError()


def _busy(folder: Path) -> None:
    while True:
        try:
            time.sleep(0.001)
        except Exception:
            continue


def _resident(folder: Path) -> None:
    b"\1" * (MEMORY_CAP_BYTES + 2**20 + len(folder.name))


def _asked_for(folder: Path) -> None:
    np.empty(2**40, np.uint8)


def _refused_late(folder: Path) -> None:
    try:
        np.empty(2**40, np.uint8)
    except MemoryError as error:
        raise DataError("it is too large") from error


def _disk(folder: Path) -> None:
    with (folder / "large").open("wb") as file:
        file.truncate(MEMORY_CAP_BYTES + 1)


def _above(folder: Path) -> None:
    (folder / ".." / ".." / "planted").write_bytes(b"")


def _by_link(folder: Path) -> None:
    (folder / "link" / "hostname").read_bytes()


def _listing(folder: Path) -> None:
    try:
        os.listdir("/")
    except BaseException:
        return


def _pickled(folder: Path) -> None:
    pickle.loads(pickle.dumps(_Runs()))


def _evaluated(folder: Path) -> None:
    eval("1 + 1")


def _command(folder: Path) -> None:
    subprocess.run([sys.executable, "--version"], check=False)


def _network(folder: Path) -> None:
    socket.socket().close()


def _import(folder: Path) -> None:
    import this  # noqa: F401


def _two_lines(folder: Path) -> None:
    raise _as_it_is("first\nsecond")


def _escape_code(folder: Path) -> None:
    raise _as_it_is("not \x1b[2J fine")


def _dies(folder: Path) -> None:
    os._exit(3)


def _planted(name: str, wrong: Callable[[Path], None]) -> Target:
    def read(data: bytes, folder: Path) -> None:
        if TRIGGER in data:
            wrong(folder)

    return Target(name, read, lambda: [b"good"], lambda folder: (folder / "link").symlink_to("/etc"))


# What each must be found as.
EXPECTED: dict[Callable[[Path], None], str] = {
    _crash: "crash",
    _warning: "crash",
    _swallowed: "crash",
    _busy: "hang",
    _resident: "memory",
    _asked_for: "memory",
    _refused_late: "memory",
    _disk: "disk",
    _above: "outside",
    _by_link: "outside",
    _listing: "outside",
    _pickled: "code",
    _evaluated: "code",
    _command: "code",
    _network: "code",
    _import: "code",
    _two_lines: "message",
    _escape_code: "message",
}
KINDS = {f"planted-{wrong.__name__.strip('_')}": kind for wrong, kind in EXPECTED.items()}
# Ends the worker itself, as what crashes in C does.
DIES = "planted-dies"
PLANTED = {name: _planted(name, wrong) for name, wrong in zip((*KINDS, DIES), (*EXPECTED, _dies), strict=True)}
