"""A run of many updates: nothing may grow, whatever the clock on the wall does and whoever trains beside it.

As a program: `long_run.py ARTIFACT FOLDER UPDATES`. Prints one line of JSON: what the process held after a tenth of the
updates and at the end.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from edgeff.artifact import open_artifact
from edgeff.dataset import Dataset
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.meter import Meter
from edgeff.runtime.plan import plan
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.stops import StopConditions
from edgeff.runtime.trainer import Progress

_ROWS, _BATCH = 4000, 8


def held(folder: Path) -> dict[str, int]:
    """What this process and its folder take now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "resident_bytes": int(status["VmRSS"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
        "disk_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "disk_files": len(list(folder.iterdir())),
    }


def jumping_clock():
    """A wall clock that is set by hours, to and fro, with every look at it."""
    real, jumps = time.time, itertools.cycle((0, 7_200, -86_400, 3_600_000))
    return lambda: real() + next(jumps)


def main(artifact: str, folder: str, updates: str) -> None:
    time.time = jumping_clock()
    rng = np.random.default_rng(0)
    opened = open_artifact(Path(artifact))
    x = rng.normal(size=(_ROWS, *opened.manifest.input.shape)).astype(np.float32)
    rows = Dataset("rows", x, rng.integers(0, len(opened.manifest.classes), _ROWS))
    settings = AdaptSettings(
        epochs=int(updates) * _BATCH // _ROWS * 11 // 10 + 1,  # the guard's rows are not trained on
        batch_size=_BATCH,
        learning_rate=0.001,
        guard_fraction=0.01,
        checkpoint_steps=100,
    )
    request = adaptation_request(opened.manifest, settings, len(rows), budget_bytes=None, schedule="sweep")
    run = Adaptation(
        opened,
        rows,
        settings,
        request,
        plan(opened.manifest, request),
        OnnxRuntime(1),
        RunFolder(Path(folder)),
        meter=Meter(),
        writes_per_hour=1 << 30,
    )
    early, began, stop = {}, time.perf_counter(), StopConditions(max_steps=int(updates))
    for event in run.run(stop=stop):
        if isinstance(event, Progress):
            stop.count_step()
            if event.position.step == int(updates) // 10:
                early = held(run.folder.path)
            last = event
    found = {"updates": last.position.step, "seconds": time.perf_counter() - began, "early": early}
    print(json.dumps({**found, "late": held(run.folder.path), "loss": last.loss, "learning_rate": last.learning_rate}))


if __name__ == "__main__":
    main(*sys.argv[1:])
