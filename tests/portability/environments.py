"""Environments of the cells: made by the Makefile's rules or by npm, each once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODE_EXAMPLE = ROOT / "examples/node"
# To make one takes a minute; a server that does not answer must not hold up the others for ever.
_TIMEOUT_S = 600


class Skipped(Exception):
    """A cell that cannot be had on this machine; the text says why."""


def run_or_skip(command: Sequence[str]) -> str:
    """What a command prints that makes something.

    Raises:
        Skipped: The program is not here, or it failed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise Skipped(f"no `{command[0]}` here") from error
    except subprocess.TimeoutExpired as error:
        raise Skipped(f"`{command[0]}` took more than {_TIMEOUT_S} s") from error
    if done.returncode:
        raise Skipped(f"`{Path(command[0]).name}` failed: {telling(done.stdout + done.stderr)}")
    return done.stdout


def telling(output: str) -> str:
    """The line of an output that says most likely what went wrong: the first that calls itself an error, or the last.

    >>> telling("ERROR: no such package\\n\\nmake: *** [Makefile:9: all] Error 1\\n")
    'ERROR: no such package'
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    errors = [line for line in lines if line.lower().startswith(("error", "e:", "npm error"))]
    return errors[0] if errors else lines[-1]


def python_of(environment: str) -> Path:
    """The interpreter of an environment, which the Makefile has a rule for.

    Raises:
        Skipped: It cannot be made here.
    """
    run_or_skip(["make", f"{environment}/.ready"])
    return ROOT / environment / "bin/python"


def install_node_modules() -> None:
    """Install what the example for node needs, beside it.

    Raises:
        Skipped: There is no npm, or it cannot.
    """
    if not shutil.which("node"):
        raise Skipped("no `node` here")
    options = ("--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund")
    run_or_skip(["npm", "install", *options, "--prefix", str(NODE_EXAMPLE)])
