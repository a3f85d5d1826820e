"""What the commands of `edgeff bench` share: the benchmarks of a checkout, names that are known, rows in a file."""

from __future__ import annotations

import csv
import importlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import edgeff
from edgeff.errors import EdgeffError

Row = Mapping[str, Any]


def benchmark(name: str) -> Any:
    """A module of the checkout's benchmarks.

    Raises:
        EdgeffError: There is no checkout.
    """
    checkout = find_checkout([Path(edgeff.__file__).resolve().parent.parent, Path.cwd()])
    folder = str(checkout / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def find_checkout(candidates: Iterable[Path]) -> Path:
    """The first folder that is a checkout with benchmarks.

    Raises:
        EdgeffError: None is.
    """
    for folder in candidates:
        if (folder / "benchmarks" / "audit.py").is_file():
            return folder
    raise EdgeffError(
        "`edgeff bench` needs a checkout of edgeff, and this is an installation without one",
        hint="clone the repository and run the command in its root folder, or install it with `pip install -e`",
    )


def known_networks(names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The names, or all that are known where there are none; `deep<N>` and `wide<C>` are known in every size.

    Raises:
        EdgeffError: One is unknown.
    """
    unknown = [name for name in names if name not in known and not re.fullmatch(r"(deep|wide)[1-9]\d*", name)]
    if unknown:
        raise EdgeffError(f"unknown network `{unknown[0]}`", hint=f"known: {', '.join(known)}, deep<N> and wide<C>")
    return names or known


def known_names(kind: str, names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The names, or all that are known where there are none.

    Raises:
        EdgeffError: One is unknown.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise EdgeffError(f"unknown {kind} `{unknown[0]}`", hint=f"known: {', '.join(known)}")
    return names or known


def rows_into(out: Path | None, rows: Iterable[Row], columns: Sequence[str]) -> list[Row]:
    """All rows; each is written to a new CSV file as soon as it is there, if one is wanted; objects and lists as JSON.

    Raises:
        EdgeffError: The file is there already, or cannot be written.
    """
    if out is None:
        return list(rows)
    with _writing(out):
        file = out.open("x", newline="", encoding="utf-8")
    found = []
    with file:
        writer = csv.DictWriter(file, columns)
        with _writing(out):
            writer.writeheader()
        for row in rows:
            found.append(row)
            cells = {key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in row.items()}
            with _writing(out):
                writer.writerow(cells)
                file.flush()
    return found


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise EdgeffError(f"`{path}` exists", hint="choose another name: measurements are not overwritten") from error
    except OSError as error:
        raise EdgeffError(f"cannot write `{path}`: {error.strerror}") from error


def new_file(path: Path) -> None:
    """See that a file can be made there, before anything is measured for it.

    Raises:
        EdgeffError: It is there already, or cannot be made.
    """
    with _writing(path):
        path.open("x").close()


def write_text(path: Path, text: str) -> None:
    """Write a file that `new_file` made.

    Raises:
        EdgeffError: It cannot be written.
    """
    with _writing(path):
        path.write_text(text, encoding="utf-8")
