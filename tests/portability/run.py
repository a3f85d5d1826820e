"""The same twenty updates wherever they can be had on this machine, compared with PyTorch's: `make test-portability`.

Prints one line for each cell: the largest relative difference of a loss to PyTorch's (over all updates, blocks, cases
and ways of updating), the versions it ran on, what was trained. Ends with 1 where a cell fails. What cannot be had here
is skipped, and says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests are no package
from portability.cells import CELLS, Cell, Failed
from portability.comparison import TOLERANCE, Losses
from portability.environments import Skipped
from portability.networks import STEPS, cases, torch_losses, write_cases
from portability.report import Result, judged, line, summary


def tried(cell: Cell, folder: Path, expected: Mapping[str, Losses]) -> Result:
    """What comes of a cell."""
    began = time.perf_counter()
    try:
        found = cell.run(folder)
    except Skipped as reason:
        result = Result(cell.name, "skipped", str(reason))
    except Failed as reason:
        result = Result(cell.name, "failed", str(reason))
    else:
        result = judged(cell.name, found.versions, expected, found.losses)
    return replace(result, seconds=time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the results there too.")
    parser.add_argument("--only", choices=[cell.name for cell in CELLS], help="One cell.")
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="edgeff-portability-") as name:
        trained = cases()
        expected = {case.name: torch_losses(case) for case in trained}
        print(f"{STEPS} updates; the losses may differ from PyTorch's by {TOLERANCE:.0e} of their size", flush=True)
        for cell in CELLS:
            if given.only in (None, cell.name):
                folder = Path(name, cell.target)
                if not folder.exists():
                    folder.mkdir()
                    write_cases(trained, folder, cell.target)
                results.append(tried(cell, folder, expected))
                print(line(results[-1]), flush=True)
    print(summary(results))
    if given.json:
        found = {"steps": STEPS, "tolerance": TOLERANCE, "cells": [result.as_json() for result in results]}
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(any(result.state == "failed" for result in results))


if __name__ == "__main__":
    main()
