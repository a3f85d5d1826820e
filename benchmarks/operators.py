"""Where the time of a step goes, by operator over the training graphs of all blocks, from onnxruntime's profiler.

    .venv-device/bin/python benchmarks/operators.py ARTIFACT --rows 8

Each block's `accumulate` graph runs on random rows, one thread, or with `--fast` its `fast_accumulate` graph where it
has one; a graph that blocks share counts for each. Times are medians over the runs but the first. Operations are the
manifest's (two for each multiplication and addition of matrix products and convolutions), so that the last line tells
how far the whole is from what one core can do.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from edgeff.artifact import Artifact, open_artifact
from edgeff.table import table

RUNS = 20
_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--rows", type=click.IntRange(1), default=8, show_default=True, help="Micro-batch.")
@click.option("--fast", is_flag=True, help="Graphs that take less time and more bytes, of blocks that have one.")
@click.option("--most", type=click.IntRange(1), default=12, show_default=True, help="Operators to show.")
def main(artifact: Path, rows: int, fast: bool, most: int) -> None:
    """Print microseconds for each row of a step by operator."""
    opened = open_artifact(artifact)
    graphs = [
        (fast and block.graphs.get("fast_accumulate")) or block.graphs["accumulate"] for block in opened.manifest.blocks
    ]
    files = Counter(graph.file for graph in graphs)
    seconds: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    for file, blocks in files.items():
        for operator, (time, count) in by_operator(opened, file, rows).items():
            seconds[operator] += blocks * time
            nodes[operator] += blocks * count
    total = sum(seconds.values())
    lines = [
        (operator, f"{nodes[operator]}", f"{1e6 * time / rows:.0f}", f"{100 * time / total:.0f} %")
        for operator, time in seconds.most_common(most)
    ]
    work = sum(graph.work.at(rows) for graph in graphs)
    click.echo(table(("operator", "nodes", "us/row", "share"), lines))
    click.echo(f"all: {1e6 * total / rows:.0f} us/row in {sum(nodes.values())} nodes, {work / total / 1e9:.0f} GFLOP/s")


def by_operator(artifact: Artifact, file: str, rows: int) -> Mapping[str, tuple[float, int]]:
    """Seconds of one run and nodes, by operator."""
    with tempfile.TemporaryDirectory() as folder:
        events = profile(artifact.read(file), rows, Path(folder))
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1e6)
    found: dict[str, tuple[float, int]] = {}
    for (operator, _), values in times.items():
        time, count = found.get(operator, (0.0, 0))
        found[operator] = time + statistics.median(values[1:]), count + 1
    return found


def profile(model: bytes, rows: int, folder: Path) -> Sequence[Mapping[str, Any]]:
    """The profiler's events over some runs of a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_pattern, options.log_severity_level = 1, False, 3
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else rows for size in value.shape]
        numbers = 0.1 * draw.standard_normal(shape) if value.type == "tensor(float)" else draw.integers(0, 2, shape)
        feeds[value.name] = np.asarray(numbers, _DTYPES[value.type])
    for _ in range(RUNS):
        session.run(None, feeds)
    found: Sequence[Mapping[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return found


if __name__ == "__main__":
    main()
