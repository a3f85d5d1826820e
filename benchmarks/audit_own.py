"""The audit's rows on stock onnxruntime: edgeff's methods, and the baselines in its own artifact."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from audit_peers import REPEATS, ROOT, Skipped, output

NAME = "onnxruntime"
DEVICE = ROOT / ".venv-device"
CUDA = ROOT / ".venv-cuda"


def own_row(method: str, batch: int, micro_batch: int, folder: Path) -> dict[str, Any]:
    """One row: the median by training bytes of `edgeff.runtime.measure` in fresh processes of the device environment.

    Raises:
        Skipped: It cannot be had.
    """
    if not (DEVICE / ".ready").is_file():
        raise Skipped("no environment `.venv-device`: run `make test`")
    words = [str(DEVICE / "bin" / "python"), "-m", "edgeff.runtime.measure", str(folder / "artifact")]
    words += ["--method", method, "--batch", str(batch), "--micro-batch", str(micro_batch), "--threads", "1"]
    words += ["--prefer", "memory"]  # like the peers: what takes least
    found = [json.loads(output(words, dict(os.environ)).splitlines()[-1]) for _ in range(REPEATS)]
    runs = sorted(found, key=lambda one: int(one["training_bytes"]))
    middle = runs[len(runs) // 2]
    return {
        "runtime": middle["runtime"],
        "micro_batch": middle["micro_batch"],
        "floor_bytes": int(statistics.median(one["floor_bytes"] for one in runs)),
        "training_bytes": middle["training_bytes"],
        "planned_bytes": middle["planned_bytes"],
        "rows_per_s": round(statistics.median(one["rows_per_s"] for one in runs), 1),
        "settings": {},
    }
