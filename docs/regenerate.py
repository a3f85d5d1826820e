"""Keeps the docs true: runs their examples, pastes what they print, and writes `docs/commands.md`.

Run `.venv/bin/python docs/regenerate.py` after a change that shows in an output; `--slow` runs the slow examples
instead. The tests run the same examples and compare.

A fenced block is run when its first words are one of these; it runs in the folder of the examples before it:

    console               commands after `$ `, in the workstation environment; below them what they print on stdout
    console device        the same in the device environment, which has no torch
    console ... fails     the command fails, and what stands below it is its message on stderr
    console ... in=DIR    in that folder
    console ... slow      takes minutes and needs EDGEFF_DATA_DIR; skipped otherwise
    python file=NAME      a file to be written
    python [device]       run; a `text` block after it holds what it prints
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
EXAMPLES = (ROOT / "README.md", DOCS / "guide.md", DOCS / "compiler.md")
COMMANDS = DOCS / "commands.md"
_PROMPT = "$ "
_TIMEOUT_S = 900


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page.

    Attributes:
        words: After the backticks.
        lines: Between them.
        first: Number of the line below the opening backticks, from 0.
    """

    words: tuple[str, ...]
    lines: tuple[str, ...]
    first: int

    @property
    def python(self) -> Path:
        """The interpreter of the environment that the block is for."""
        return ROOT / (".venv-device" if "device" in self.words else ".venv") / "bin" / "python"

    def option(self, name: str) -> str:
        """What follows `name=`, or nothing."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")), "")


@dataclass(frozen=True)
class Found:
    """What an example printed, and the fence that should say so."""

    fence: Fence
    lines: tuple[str, ...]


class ExampleError(AssertionError):
    """An example that did not end as its page says."""


def fences(text: str) -> list[Fence]:
    r"""The fenced blocks of a page, in order.

    >>> fences("a\n```console slow\n$ true\n```\n")
    [Fence(words=('console', 'slow'), lines=('$ true',), first=2)]
    """
    found, words, first = [], None, 0
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if words is None:
            words, first = tuple(line[3:].split()), number + 1
        else:
            found.append(Fence(words, tuple(lines[first:number]), first))
            words = None
    return found


def run_page(text: str, work: Path, *, slow: bool = False) -> Iterator[Found]:
    """Run the examples of a page in order.

    Args:
        text: The page.
        work: An empty folder.
        slow: Run only those that are marked slow, else only the others.

    Yields:
        What each printed.

    Raises:
        ExampleError: A command failed, or did not where it should.
    """
    link = work / "examples"
    if not link.exists():
        link.symlink_to(ROOT / "examples")  # the README's commands are given in the root of the repository
    before: Fence | None = None
    printed: tuple[str, ...] = ()
    for fence in fences(text):
        kind = fence.words[:1]
        if kind == ("text",) and before is not None:
            yield Found(fence, printed)
        before = None
        if ("slow" in fence.words) != slow:
            continue
        if kind == ("console",):
            yield Found(fence, _run_console(fence, work / fence.option("in")))
        elif kind == ("python",) and fence.option("file"):
            (work / fence.option("file")).write_text("\n".join(fence.lines) + "\n")
        elif kind == ("python",):
            code = "\n".join(fence.lines)
            before, printed = fence, _run([str(fence.python), "-c", code], fence, work / fence.option("in"))


def _run_console(fence: Fence, folder: Path) -> tuple[str, ...]:
    """The block as it should read: every command with what it printed."""
    lines: list[str] = []
    for command in commands(fence):
        words = ["bash", "-e", "-o", "pipefail", "-c", " ".join(part.rstrip("\\") for part in command)]
        lines += [(_PROMPT if number == 0 else "") + part for number, part in enumerate(command)]
        lines += _run(words, fence, folder)
    return tuple(lines)


def commands(fence: Fence) -> list[list[str]]:
    """The lines of each command of a console block, without the prompt; a backslash goes on in the next line."""
    found: list[list[str]] = []
    goes_on = False
    for line in fence.lines:
        if line.startswith(_PROMPT):
            found.append([line.removeprefix(_PROMPT)])
        elif goes_on:
            found[-1].append(line)
        goes_on = (goes_on or line.startswith(_PROMPT)) and line.endswith("\\")
    return found


def _run(words: list[str], fence: Fence, folder: Path) -> tuple[str, ...]:
    path = f"{fence.python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
    fails = "fails" in fence.words
    if (done.returncode != 0) != fails:
        raise ExampleError(f"`{words[-1]}` ended with {done.returncode}: {done.stderr}")
    return tuple(line.rstrip() for line in (done.stderr if fails else done.stdout).splitlines())


def with_outputs(text: str, found: list[Found]) -> str:
    """The page with what its examples printed."""
    lines = text.splitlines()
    for each in sorted(found, key=lambda one: one.fence.first, reverse=True):
        lines[each.fence.first : each.fence.first + len(each.fence.lines)] = each.lines
    return "\n".join(lines) + "\n"


def masked(lines: tuple[str, ...]) -> list[str]:
    """Lines without what differs from machine to machine: numbers, units of bytes, the width of columns.

    >>> masked(("run:  accuracy 0.93, 1.5 MiB",))
    ['run: accuracy #, #']
    """
    plain = [re.sub(r"\b[0-9a-f]{64}\b", "#", line) for line in lines]
    plain = [re.sub(r"~?-?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?([KMG]i?)?B\b)?", "#", line) for line in plain]
    return [" ".join(re.sub("-{2,}", "--", line).split()) for line in plain]


def commands_page() -> str:
    """`docs/commands.md`: what `--help` says, command by command."""
    from edgeff.cli import COMMANDS as NAMES
    from edgeff.cli import main

    # With the group's settings, as from a command line: click keeps the help option that it made first.
    settings = {**main.context_settings, "terminal_width": 100, "max_content_width": 100}
    context = click.Context(main, info_name="edgeff", **settings)
    parts = [
        "# Commands",
        "Written by `.venv/bin/python docs/regenerate.py` from `edgeff <command> --help`. Results go to stdout,\n"
        "progress and messages to stderr. Exit codes: 0, 1 (failed), 2 (usage), 75 (stopped, to be gone on with).\n"
        "Tables have a JSON form (`--json`).",
    ]
    for name in NAMES:
        command = main.get_command(context, name)
        assert command is not None
        parts += _help(command, name, context)
    return "\n\n".join(parts) + "\n"


def _help(command: click.Command, name: str, parent: click.Context) -> list[str]:
    """The help of a command, and of those below it."""
    own = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    lines = "\n".join(line.rstrip() for line in command.get_help(own).splitlines())
    found = [f"## {own.command_path}\n\n```text\n{lines}\n```"]
    if isinstance(command, click.Group):
        for below in command.list_commands(own):
            inner = command.get_command(own, below)
            found += [] if inner is None else _help(inner, below, own)
    return found


def main() -> None:
    """Write all pages anew."""
    parser = argparse.ArgumentParser(description="Run the examples of the docs and paste what they print.")
    parser.add_argument("--slow", action="store_true", help="the slow examples instead of the others")
    parser.add_argument("pages", nargs="*", type=Path, default=EXAMPLES)
    arguments = parser.parse_args()
    COMMANDS.write_text(commands_page())
    for page in arguments.pages:
        text = page.read_text()
        with tempfile.TemporaryDirectory() as work:
            page.write_text(with_outputs(text, list(run_page(text, Path(work), slow=arguments.slow))))
        print(f"wrote {shlex.quote(str(page))}")


if __name__ == "__main__":
    main()
