"""The same graphs on the oldest onnxruntime promised, on the training build, and on the newest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from layer_cases import ADAMW, CASES, RATE, SEED, STEP, Runner, compiled, difference, drawn_state, rate_feeds, rows_for
from layer_cases import starting_feeds as starting

RUN = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime
folder, out = map(Path, sys.argv[1:])
for path in folder.rglob("*.onnx"):
    feeds = np.load(path.with_name("feeds.npz"))
    run = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in run.get_outputs()]
    found = run.run(names, {value.name: feeds[value.name] for value in run.get_inputs()})
    np.savez(out / f"{path.parent.name} {path.stem}.npz", **dict(zip(names, found)))
print(onnxruntime.__version__)
"""
# Among them every operator whose kernels differ between versions: windows past the end, scattered sums, norms.
CHOSEN = (
    "conv1d strided groups",
    "depthwise doubled",
    "max pool overlapping",
    "max pool with gaps",
    "max pool ceil past the end",
    "average pool ceil past the end",
    "average pool without pads",
    "adaptive average",
    "group norm",
    "layer norm of maps",
    "embedding with padding",
    "dropout",
)

Results = dict[tuple[str, str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """A folder of graphs with their feeds, and what the onnxruntime of this environment makes of them."""
    folder, here = tmp_path_factory.mktemp("graphs"), {}
    for name in CHOSEN:
        case = CASES[name]
        graphs = compiled(case.block(), input_dtype=case.input_dtype, dropout=case.dropout)
        x, y, row_weight = (tensor.numpy() for tensor in rows_for(case, 6))
        feeds = {**starting(graphs), **drawn_state(graphs, ADAMW), **rate_feeds(ADAMW, RATE, STEP)}
        feeds |= {"x": x, "y": y, "row_weight": row_weight, "seed": np.array(SEED)}
        # What `apply` takes is a run of numbers, of whichever tensor: here those of all tensors of its role.
        for role in ("parameter", "gradient", "state.momentum", "state.squares"):
            feeds[role] = np.concatenate([feeds[key].ravel() for key in sorted(feeds) if key.startswith(f"{role}.")])
        (folder / name).mkdir()
        np.savez(folder / name / "feeds.npz", **feeds)
        for kind, model in graphs.models.items():
            (folder / name / f"{kind}.onnx").write_bytes(model.SerializeToString())
            here[name, kind] = Runner(model)(feeds)
    return folder, here


@pytest.mark.parametrize(("python", "version"), [("old_python", "1.17."), ("device_python", "1.")])
def test_other_versions_of_onnxruntime_load_the_graphs_and_give_the_same_numbers(
    python: str, version: str, written: tuple[Path, Results], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, here = written
    command = [str(request.getfixturevalue(python)), "-c", RUN, str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(version)
    for (name, kind), expected in here.items():
        with np.load(tmp_path / f"{name} {kind}.npz") as found:
            assert set(found) == set(expected)
            for output, values in expected.items():
                least = 0.1 if "gradient" in output else 1e-6  # a gradient that is 0 but for rounding stays so
                assert difference(found[output], values, least=least) <= 1e-5, (name, kind, output)
