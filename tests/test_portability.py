"""How the cells of `make test-portability` are judged, and the example for node where node is here."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from portability import worker
from portability.cells import CELLS, Cell, Failed, Found
from portability.comparison import TOLERANCE, largest_difference
from portability.environments import NODE_EXAMPLE, Skipped, run_or_skip
from portability.report import Result, judged, line, summary
from portability.run import tried
from tiny_artifact import Tiny, make_rows, write_tiny
from tiny_run import TinyRun

from edgeff.artifact import open_artifact
from edgeff.manifest import TensorSpec
from edgeff.optimizer import OPTIMIZERS
from edgeff.preprocess import Preprocessing
from edgeff.runtime.engine import OnnxRuntime
from edgeff.steps import apply_steps

EXPECTED = {"a": [{"block1": 2.0, "block2": 1.0}, {"block1": 1.5, "block2": 0.5}]}
SCRIPT = NODE_EXAMPLE / "train.mjs"
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node here")
needs_modules = pytest.mark.skipif(
    not shutil.which("node") or not (NODE_EXAMPLE / "node_modules").is_dir(),
    reason="no node, or not its modules: `make test-portability` installs them",
)


# --- comparison and report ---


def test_the_largest_difference_is_that_of_any_block_at_any_update() -> None:
    got = [{"block1": 2.0, "block2": 1.0}, {"block1": 1.5, "block2": 0.4}]
    assert largest_difference(EXPECTED["a"], EXPECTED["a"]) == 0.0
    assert largest_difference(EXPECTED["a"], got) == pytest.approx(0.2)
    assert largest_difference([{"a": 0.0}], [{"a": 0.25}]) == 0.25


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_as_far_away_as_can_be(loss: float) -> None:
    assert largest_difference([{"a": 1.0, "b": 1.0}], [{"a": loss, "b": 1.0}]) == math.inf
    assert largest_difference([{"a": 1.0, "b": 1.0}], [{"a": 1.0, "b": loss}]) == math.inf


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ([{"block1": 2.0, "block2": 1.0}], "1 updates, needed 2"),
        ([{"block1": 2.0}, {"block1": 1.5}], "update 1 has losses of block1, needed block1, block2"),
    ],
)
def test_fewer_updates_or_blocks_are_no_success(got: list[dict[str, float]], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        largest_difference(EXPECTED["a"], got)
    result = judged("here", [], EXPECTED, {"a": {"fused": got}})
    assert (result.state, result.reason) == ("failed", message)


@pytest.mark.parametrize("got", [{}, {"b": {"fused": EXPECTED["a"]}}])
def test_a_cell_that_trained_something_else_has_failed(got: Mapping[str, Any]) -> None:
    result = judged("here", [], EXPECTED, got)
    assert (result.state, result.reason) == ("failed", f"trained {', '.join(got) or 'nothing'}, needed a")


def scaled(factor: float) -> list[dict[str, float]]:
    return [{block: loss * factor for block, loss in losses.items()} for losses in EXPECTED["a"]]


def test_a_cell_passes_up_to_the_tolerance_and_its_line_says_what_was_compared() -> None:
    got = {"a": {"fused": EXPECTED["a"], "accumulated": scaled(1 + TOLERANCE / 2)}}
    assert line(judged("here", ["onnxruntime 1.2", "numpy 3"], EXPECTED, got)) == (
        "here                      passed   5.0e-05 (a, fused and accumulated); onnxruntime 1.2, numpy 3; 0 s"
    )


def test_a_cell_beyond_the_tolerance_says_where() -> None:
    got = {"a": {"fused": EXPECTED["a"], "accumulated": scaled(1 + TOLERANCE * 3)}}
    assert line(judged("here", ["onnxruntime 1.2"], EXPECTED, got)) == (
        "here                      failed   3.0e-04 in a accumulated is above 1e-04 (a, fused and accumulated); "
        "onnxruntime 1.2; 0 s"
    )


def test_the_json_of_a_result_is_json() -> None:
    result = judged("here", ["onnxruntime 1.2"], EXPECTED, {"a": {"fused": scaled(math.nan)}})
    found = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert found["differences"] == {"a": {"fused": None}}
    assert (found["state"], found["versions"]) == ("failed", ["onnxruntime 1.2"])


@pytest.mark.parametrize(("error", "state"), [(Skipped("no GPU"), "skipped"), (Failed("it crashed"), "failed")])
def test_a_cell_that_cannot_be_had_is_told_from_one_that_failed(tmp_path: Path, error: Exception, state: str) -> None:
    def run(folder: Path) -> Found:
        raise error

    result = tried(Cell("there", run), tmp_path, EXPECTED)
    assert (result.state, result.reason) == (state, str(error))
    assert summary([result]) == f"0 passed, {int(state == 'failed')} failed, {int(state == 'skipped')} skipped"


def test_a_cell_is_compared_with_what_was_expected(tmp_path: Path) -> None:
    found = Found(["onnxruntime 1.2"], {"a": {"fused": EXPECTED["a"]}})
    result = tried(Cell("there", lambda folder: found), tmp_path, EXPECTED)
    assert result == Result("there", "passed", "", found.versions, {"a": {"fused": 0.0}}, result.seconds)


def test_cells_are_told_apart_by_their_names() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["edgeff-no-such-program"], "no `edgeff-no-such-program` here"),
        (["sh", "-c", "echo E: no network >&2; echo more; exit 3"], "failed: E: no network$"),
        (["false"], "`false` failed: it said nothing"),
    ],
)
def test_what_cannot_be_made_says_why(command: list[str], reason: str) -> None:
    with pytest.raises(Skipped, match=reason):
        run_or_skip(command)


# --- the worker ---


def test_rows_are_taken_in_order_and_from_the_beginning_again() -> None:
    batches = list(worker.InOrder(rows=5, batch_size=4, batches_per_epoch=3).batches(1))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]


def test_a_provider_that_is_not_there_makes_a_cell_unavailable_and_none_is_the_cpu() -> None:
    assert worker.make_engine(None).provider.name == "cpu"
    with pytest.raises(worker.Unavailable, match="has no provider `cuda`; it has: cpu"):
        worker.make_engine("cuda")


# --- the example for node ---


def node(*arguments: object, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    command = ["node", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def node_losses(*arguments: object) -> list[dict[str, float]]:
    done = node(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(text) for text in done.stdout.splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def runtime_losses(artifact: Path, steps: int = 20) -> list[dict[str, float]]:
    case = {"steps": steps, "micro_batch": 1}
    return worker.train(open_artifact(artifact), OnnxRuntime(1), "fused", case)


@needs_modules
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_node_has_the_losses_of_the_runtime_with_sgd(tmp_path: Path, momentum: float) -> None:
    write_tiny(tmp_path / "artifact", Tiny(blocks=3, momentum=momentum, fusion=(1.0, 1.0, 1.0)))
    found = node_losses(tmp_path / "artifact")
    assert len(found) == 20
    assert largest_difference(runtime_losses(tmp_path / "artifact"), found) < 1e-5


@needs_modules
def test_node_has_the_losses_of_the_runtime_with_adamw(tiny: TinyRun) -> None:
    assert open_artifact(tiny.artifact).manifest.optimizer.kind == "adamw"
    assert largest_difference(runtime_losses(tiny.artifact), node_losses(tiny.artifact)) < TOLERANCE


@needs_modules
def test_node_trains_on_given_rows_in_batches_of_the_given_size(tmp_path: Path) -> None:
    write_tiny(tmp_path / "artifact", Tiny(replay_rows=0))
    write_tiny(tmp_path / "with-rows", Tiny(replay_rows=10))
    shutil.copy(tmp_path / "with-rows/replay.safetensors", tmp_path / "rows.safetensors")
    found = node_losses(tmp_path / "artifact", "--rows", tmp_path / "rows.safetensors", "--steps", 3)
    assert found == node_losses(tmp_path / "with-rows", "--steps", 3)
    assert found != node_losses(tmp_path / "with-rows", "--steps", 3, "--batch", 5)


@needs_modules
def test_node_prepares_rows_to_the_same_bits_as_edgeff(tmp_path: Path) -> None:
    """Every kind of step: raw rows through them there, or rows that went through them here, train alike."""
    steps = (
        {"kind": "transpose", "axes": [2, 0, 1]},
        {"kind": "cast", "dtype": "int64"},
        {"kind": "affine", "offset": [0.1, -7.3], "scale": [0.0017, 0.0031], "axis": 1},
        {"kind": "reshape", "shape": [6]},
        {"kind": "cast", "dtype": "float32"},
        {"kind": "affine", "offset": 0.3, "scale": 1.7},
    )
    raw = TensorSpec("raw", (2, 1, 3), "int16")
    Preprocessing(raw, steps, TensorSpec("x", (6,))).validate()
    x = np.random.default_rng(0).integers(-999, 999, (10, 2, 1, 3), np.int16)
    _, y = make_rows(10)
    found = []
    for name, rows, spec, applied in (
        ("raw", x, raw, steps),
        ("done", apply_steps(x, steps), TensorSpec("x", (6,)), ()),
    ):
        write_tiny(tmp_path / name)
        change(tmp_path / name, input=vars(spec), preprocessing=applied)
        safetensors.numpy.save_file({"x": np.ascontiguousarray(rows), "y": y}, tmp_path / f"{name}.safetensors")
        found.append(node_losses(tmp_path / name, "--rows", tmp_path / f"{name}.safetensors", "--steps", 2))
    assert found[0] == found[1]


@needs_modules
def test_node_ends_where_a_loss_is_not_finite(tmp_path: Path) -> None:
    write_tiny(tmp_path / "artifact")
    change(tmp_path / "artifact", training={**manifest_of(tmp_path / "artifact")["training"], "learning_rate": 1e38})
    done = node(tmp_path / "artifact")
    assert done.returncode == 1
    assert done.stderr.startswith("the loss of block `block1` is ")
    assert " at step " in done.stderr


def manifest_of(artifact: Path) -> dict[str, Any]:
    return json.loads((artifact / "manifest.json").read_text())  # type: ignore[no-any-return]


def change(artifact: Path, **keys: object) -> None:
    """Change keys of a manifest, which node does not check as strictly as edgeff."""
    (artifact / "manifest.json").write_text(json.dumps({**manifest_of(artifact), **keys}))


def save_rows(artifact: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Rows beside an artifact, as `--rows` takes them."""
    safetensors.numpy.save_file({"x": x, "y": y}, artifact.with_name("rows.safetensors"))


def spoil_weights(artifact: Path) -> None:
    path = artifact / "weights.safetensors"
    *before, last = path.read_bytes()
    path.write_bytes(bytes([*before, last ^ 1]))


ROWS, LABELS = make_rows(10)
NO_ARRAY = "`rows.safetensors`: `x` is F16, which node cannot hold"
BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (shutil.rmtree, "cannot read `artifact/manifest.json`: it does not exist"),
    (lambda path: (path / "manifest.json").write_text("{"), "`artifact/manifest.json` is not JSON"),
    (
        lambda path: change(path, format_version=6),
        "`artifact/manifest.json` must be an edgeff-artifact version 5, got edgeff-artifact version 6",
    ),
    (
        lambda path: change(path, preprocessing=[{"kind": "resize", "shape": [3]}]),
        "unknown preprocessing step `resize`, known: affine, transpose, reshape, cast",
    ),
    (
        lambda path: change(path, optimizer={"kind": "lion", "settings": {}}),
        f"unknown optimizer `lion`, known: {', '.join(OPTIMIZERS)}",
    ),
    (lambda path: change(path, replay=None), "the artifact has no replay rows: give rows by --rows FILE"),
    (spoil_weights, "`weights.safetensors` is not the file that the manifest lists: copy the artifact again"),
]
BAD_ROWS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, "cannot read `rows.safetensors`: it does not exist"),
    (
        lambda path: path.with_name("rows.safetensors").write_bytes(b"rows"),
        "`rows.safetensors` is not a safetensors file",
    ),
    (
        lambda path: path.with_name("rows.safetensors").write_bytes(b"\x02" + bytes(7) + b"??"),
        "`rows.safetensors` is not a safetensors file",
    ),
    (lambda path: save_rows(path, ROWS.astype(np.float16), LABELS), NO_ARRAY),
    (lambda path: save_rows(path, ROWS[:, :5].copy(), LABELS), "rows must be float32 [6], got float32 [5]"),
    (lambda path: save_rows(path, ROWS.astype(np.float64), LABELS), "rows must be float32 [6], got float64 [6]"),
    (
        lambda path: save_rows(path, ROWS, LABELS[:9].copy()),
        "labels must be int64 [10], one or more, got int64 [9]",
    ),
    (lambda path: save_rows(path, ROWS, LABELS + 1), "row 3 has the label 4, of 4 classes"),
]


def in_folder(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the example on the artifact of a folder, from there: messages name files as they are given."""
    command = ["node", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)


def assert_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{message}\n")


@needs_node
@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_node_refuses_a_broken_artifact_in_one_line(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    write_tiny(tmp_path / "artifact")
    spoil(tmp_path / "artifact")
    assert_one_line(in_folder(tmp_path, "artifact"), message)


@needs_node
@pytest.mark.parametrize(("save", "message"), BAD_ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_node_refuses_rows_that_do_not_fit_in_one_line(
    tmp_path: Path, save: Callable[[Path], Any], message: str
) -> None:
    write_tiny(tmp_path / "artifact")
    save(tmp_path / "artifact")
    assert_one_line(in_folder(tmp_path, "artifact", "--rows", "rows.safetensors"), message)


@needs_node
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: node train.mjs ARTIFACT [--rows FILE] [--steps 20] [--batch N]"),
        (["a", "b"], "usage: node train.mjs ARTIFACT [--rows FILE] [--steps 20] [--batch N]"),
        (["artifact", "--steps", "0"], "--steps must be a whole number above 0, got `0`"),
        (["artifact", "--batch", "1e3"], "--batch must be a whole number above 0, got `1e3`"),
    ],
)
def test_node_refuses_a_command_that_makes_no_sense(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_tiny(tmp_path / "artifact")
    assert_one_line(in_folder(tmp_path, *arguments), message)


@needs_node
def test_node_says_what_to_install(tmp_path: Path) -> None:
    write_tiny(tmp_path / "artifact")
    script = shutil.copy(SCRIPT, tmp_path)
    assert_one_line(
        node(tmp_path / "artifact", script=Path(script)),
        "onnxruntime-node is not installed: run `npm install --ignore-scripts` beside train.mjs",
    )
