"""What the choices of a learning rule cost in planned bytes, on `har-cnn`: the table of docs/method.md.

For each rule: trained numbers, and the smallest plan of a sweep at batch 64 with AdamW. Where rows are compared, for
several numbers of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeff.artifact import open_artifact
from edgeff.dataset import Dataset
from edgeff.export import ExportSettings, export_network
from edgeff.preprocess import fit_preprocessing
from edgeff.presets import preset
from edgeff.rule import LocalRule
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request
from edgeff.table import table
from edgeff.units import format_bytes

BATCH = 64
RULES = (
    {},
    {"projection": "fixed"},
    {"projection": "hidden"},
    {"projection": "softmax"},
    {"projection": "prototypes"},
    {"goodness": "channel-groups"},
    {"auxiliary": 16},
    {"auxiliary": 16, "auxiliary_cells": 8},
    {"handover": "none"},
    {"objective": "forward-forward"},
    {"relation": "contrast"},
    {"relation": "similarity"},
)
ROWS_TOGETHER = (4, 16, 64)


def main() -> None:
    print(table(("rule", "rows together", "trained numbers", "planned"), list(rows())))


def rows() -> Iterator[tuple[str, str, str, str]]:
    """One for each rule, or for each number of rows that it compares."""
    for settings in RULES:
        rule = LocalRule.from_dict(settings)
        name = ", ".join(f"`{key}={value}`" for key, value in settings.items()) or "the default"
        for together in ROWS_TOGETHER if rule.relation != "none" else ROWS_TOGETHER[:1]:
            numbers, planned = cost(rule, together)
            shown = str(together) if rule.relation != "none" else "-"
            yield name, shown, f"{numbers:,}", format_bytes(planned)


def cost(rule: LocalRule, together: int) -> tuple[int, int]:
    """Trained numbers, and planned bytes."""
    network = preset("har-cnn", rule=rule)
    rng = np.random.default_rng(0)
    raw = Dataset("random", rng.integers(-99, 99, (8, 6, 128)).astype(np.int16), np.arange(8, dtype=np.int64) % 6)
    with tempfile.TemporaryDirectory() as folder:
        preprocessing = fit_preprocessing(raw, network.input_shape)
        settings = ExportSettings(rows_together=together)
        path = export_network(network, Path(folder) / "a", preprocessing=preprocessing, settings=settings)
        manifest = open_artifact(path).manifest
    smallest = plan(manifest, Request(batch_size=BATCH, schedule="sweep", prefer="memory"))
    return sum(block.parameter_bytes for block in manifest.blocks) // 4, smallest.planned_bytes


if __name__ == "__main__":
    main()
