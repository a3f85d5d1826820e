"""The memory audit: which rows there are, how a peer is run and tuned, and what the command prints. No peer is run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from edgeff import bench_checkout
from edgeff.cli import main
from edgeff.errors import EdgeffError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))  # scripts, no package
import audit
import audit_files
import audit_own
import audit_peers
import audit_protocol
from audit_peers import Peer, Skipped
from audit_protocol import Found, Job
from networks import reference

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20


def found(training_bytes: int = MIB, rows_per_s: float = 10.0) -> Found:
    return Found("1.0", 50 * MIB, training_bytes, 0, rows_per_s, (2.0, 1.9, 1.8))


def row(training_bytes: int = MIB, **values: Any) -> dict[str, Any]:
    return {
        "runtime": "fake 1.0",
        "floor_bytes": 50 * MIB,
        "training_bytes": training_bytes,
        "rows_per_s": 10.0,
        **values,
    }


# --- which rows -------------------------------------------------------------------------------------------------------


def test_edgeffs_methods_run_on_its_own_runtime_alone_and_baselines_on_all() -> None:
    cells = list(audit.cells(audit.Audit(networks=["mlp"])))
    where = {method: [cell.runtime for cell in cells if cell.method == method] for method in audit.METHODS}
    assert where["stage"] == where["sweep"] == where["last-block"] == ["onnxruntime"]
    assert all(where[method] == list(audit.RUNTIMES) for method in audit.BASELINES)


def test_har_cnn_is_measured_at_batch_8_too_unless_a_batch_is_given() -> None:
    def batches(**given: Any) -> set[tuple[str, int]]:
        return {(cell.network, cell.batch) for cell in audit.cells(audit.Audit(**given))}

    assert batches(networks=["har-cnn", "mlp"]) == {("har-cnn", 128), ("har-cnn", 8), ("mlp", 128)}
    assert batches(networks=["har-cnn"], batches=[32]) == {("har-cnn", 32)}


def sizes_of(method: str, batch: int = 128, **given: Any) -> list[tuple[int, bool]]:
    cell = audit.Cell("mlp", batch, method, "mnn")
    found = audit.cell_rows(cell, audit.Audit(**given), lambda size: row(size, micro_batch=size))
    return [(one["micro_batch"], one["best"]) for one in found]


@pytest.mark.parametrize("method", audit.WHOLE_BATCH)
def test_a_method_that_updates_on_a_whole_batch_has_one_row(method: str) -> None:
    assert sizes_of(method, micro_batches=(4, 32), best=True) == [(128, False)]


def test_other_methods_have_a_row_for_each_micro_batch_and_one_for_the_best() -> None:
    assert sizes_of("bp+accumulation", micro_batches=(4, 32), best=True) == [(4, False), (32, False), (1, True)]
    assert sizes_of("sweep", batch=8, micro_batches=(4, 16, 32)) == [(4, False), (8, False)]


def test_the_best_micro_batch_is_the_one_with_the_fewest_bytes_and_larger_ones_are_not_tried_in_vain() -> None:
    asked, sizes = [], {1: 100, 2: 90, 4: 92, 8: 120, 16: 140, 32: 10}

    def measure(size: int) -> dict[str, Any]:
        asked.append(size)
        return row(sizes[size])

    assert audit.best_of(measure, list(sizes))["training_bytes"] == 90
    assert asked == [1, 2, 4, 8, 16]


def test_a_size_that_fails_does_not_end_the_search_but_if_all_fail_the_row_is_skipped() -> None:
    def measure(size: int) -> dict[str, Any]:
        if size < 4:
            raise Skipped(f"no rows of {size}")
        return row(size)

    assert audit.best_of(measure, [1, 2, 4, 8])["training_bytes"] == 4
    with pytest.raises(Skipped, match="no rows of 2"):
        audit.best_of(measure, [1, 2])


def test_a_row_that_cannot_be_had_says_why_and_has_all_columns() -> None:
    def refuse(size: int) -> dict[str, Any]:
        raise Skipped("it is too hot")

    skipped = audit.finished(audit.Cell("mlp", 128, "bp", "mnn"), 128, refuse)
    assert skipped["skipped"] == "it is too hot"
    assert list(skipped) == list(audit.COLUMNS)
    assert skipped["training_bytes"] is None


# --- peers ------------------------------------------------------------------------------------------------------------


def test_dials_are_turned_one_after_the_other_to_the_fewest_bytes() -> None:
    def run(settings: Mapping[str, Any]) -> Found:
        return found(abs(settings["segments"] - 4) * 10 + (5 if settings["lean"] else 3))

    settings, best = audit_peers.best_settings(run, {"segments": (2, 4, 8), "lean": (True, False)})
    assert settings == {"segments": 4, "lean": False}
    assert best.training_bytes == 3


def test_a_setting_that_fails_is_passed_over_but_not_the_first() -> None:
    def run(settings: Mapping[str, Any]) -> Found:
        if settings["arena"] == "bad":
            raise Skipped("no such arena")
        return found()

    assert audit_peers.best_settings(run, {"arena": ("good", "bad")})[0] == {"arena": "good"}
    with pytest.raises(Skipped):
        audit_peers.best_settings(run, {"arena": ("bad", "good")})


def test_segments_are_tried_only_where_activations_are_computed_again_and_never_more_than_blocks() -> None:
    assert audit_peers.segments("bp+accumulation", 24) == {}
    assert audit_peers.segments("bp+checkpointing", 5) == {"segments": [2, 3, 4, 5]}


@pytest.fixture
def fake_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Peer]:
    """A peer in an environment with this interpreter, whose worker is a given program."""
    monkeypatch.setattr(audit_peers, "ROOT", tmp_path)
    (tmp_path / ".venv-fake" / "bin").mkdir(parents=True)
    (tmp_path / ".venv-fake" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv-fake" / ".ready").touch()
    (tmp_path / "benchmarks").mkdir()

    def make(program: str) -> Peer:
        (tmp_path / "benchmarks" / "worker.py").write_text(program)
        return Peer("fake", ".venv-fake", "worker.py", lambda method, blocks: {}, refused={"mezo": "it looks ahead"})

    return make


WORKER = """
import json, os, sys
job = json.loads(sys.argv[1])
lean = "MALLOC_TRIM_THRESHOLD_" in os.environ
print("chatter of a library")
print(json.dumps({"version": "3.1", "floor_bytes": 1000, "training_bytes": job["micro_batch"] * (2 if lean else 3),
    "code_bytes": 7, "rows_per_s": 5.0, "losses": [1.0, float(os.environ["OMP_NUM_THREADS"])]}))
"""


def job(**values: Any) -> Job:
    return Job(**{"network": "mlp", "method": "bp", "batch": 128, "micro_batch": 4, "folder": "", **values})


def test_a_workers_job_and_result_go_through_its_own_process(fake_peer: Callable[[str], Peer]) -> None:
    peer = fake_peer(WORKER)
    assert audit_peers.measured(peer, job(settings={"lean_allocator": True})).training_bytes == 8
    assert audit_peers.measured(peer, job(settings={"lean_allocator": False})).training_bytes == 12


def test_a_peers_row_is_at_its_best_settings_and_says_which(fake_peer: Callable[[str], Peer], tmp_path: Path) -> None:
    best = audit_peers.peer_row(fake_peer(WORKER), "mlp", "bp", 128, 4, tmp_path, blocks=3)
    assert best == {
        "runtime": "fake 3.1",
        "micro_batch": 4,
        "floor_bytes": 1000,
        "training_bytes": 8,
        "planned_bytes": None,
        "rows_per_s": 5.0,
        "settings": {"lean_allocator": True, "code_bytes": 7},
    }


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('2 of 9 parameters did not move')", "worker.py: 2 of 9 parameters did not move"),
        ("import os; os.kill(os.getpid(), 11)", "worker.py: ended by signal 11"),
        ("raise MemoryError", "worker.py: MemoryError"),
    ],
)
def test_a_worker_that_fails_makes_a_skipped_row(fake_peer: Callable[[str], Peer], program: str, reason: str) -> None:
    with pytest.raises(Skipped) as caught:
        audit_peers.measured(fake_peer(program), job(settings={}))
    assert str(caught.value) == reason


def test_a_method_that_a_peer_refuses_is_not_run(fake_peer: Callable[[str], Peer], tmp_path: Path) -> None:
    with pytest.raises(Skipped, match="it looks ahead"):
        audit_peers.peer_row(fake_peer("raise AssertionError"), "mlp", "mezo", 128, 4, tmp_path, blocks=3)


def test_a_peer_without_its_environment_is_skipped_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_peers, "ROOT", tmp_path)
    with pytest.raises(Skipped, match=r"no environment `\.venv-bench-mnn`: run `make bench-setup`"):
        audit_peers.interpreter(audit_peers.PEERS["mnn"])


def test_every_peer_runs_or_refuses_every_baseline_and_its_worker_is_there() -> None:
    for peer in audit_peers.PEERS.values():
        assert set(peer.refused) <= set(audit.BASELINES)
        assert (ROOT / "benchmarks" / peer.worker).is_file()
        assert all(peer.dials(method, 5) is not None for method in audit.BASELINES)


def test_our_own_row_is_the_median_of_what_the_measuring_module_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []
    waiting = [5, 2, 9]

    def output(words: Sequence[str], environment: Mapping[str, str]) -> str:
        asked.append(words)
        size = waiting.pop()
        return json.dumps(row(size, runtime="onnxruntime 1.32.0", micro_batch=4, planned_bytes=10 * size, blocks=[]))

    monkeypatch.setattr(audit_own, "output", output)
    monkeypatch.setattr(audit_own, "DEVICE", tmp_path)
    (tmp_path / ".ready").touch()
    own = audit_own.own_row("sweep", 128, 4, tmp_path)
    assert (own["training_bytes"], own["planned_bytes"], own["runtime"]) == (5, 50, "onnxruntime 1.32.0")
    assert len(asked) == 3
    assert " ".join(asked[0]).endswith(
        "artifact --method sweep --batch 128 --micro-batch 4 --threads 1 --prefer memory"
    )


# --- what is measured -------------------------------------------------------------------------------------------------


class FakeTrainer:
    """Halves its one parameter with every update, unless it is lazy."""

    def __init__(self, job: Job, *, lazy: bool = False, loss: float = 1.0) -> None:
        self.weight, self.factor, self.loss = np.ones(3), 1.0 if lazy else 0.5, loss
        self.seen: list[tuple[int, ...]] = []

    def parameters(self) -> list[Callable[[], Any]]:
        return [lambda: self.weight.copy()]

    def update(self, x: Any, y: Any) -> float:
        self.seen.append(x.shape)
        self.weight *= self.factor
        return self.loss


@pytest.fixture
def described(tmp_path: Path) -> Job:
    (tmp_path / "network.json").write_text(json.dumps({"shape": [3, 2], "classes": 4, "blocks": []}))
    return job(batch=8, folder=str(tmp_path), settings={})


def test_a_measurement_makes_three_updates_on_whole_batches(described: Job) -> None:
    trainers: list[FakeTrainer] = []

    def build(job: Job) -> FakeTrainer:
        trainers.append(FakeTrainer(job))
        return trainers[0]

    measured = audit_protocol.measure(described, "1.0", build)
    assert trainers[0].seen == [(8, 3, 2)] * 3
    assert measured.losses == (1.0, 1.0, 1.0)
    assert measured.floor_bytes > MIB


def test_what_a_network_takes_counts_and_what_was_there_before_does_not(described: Job) -> None:
    class Large(FakeTrainer):
        def __init__(self, job: Job) -> None:
            super().__init__(job)
            self.activations = np.ones(64 * MIB, np.uint8)

    small = audit_protocol.measure(described, "1.0", FakeTrainer).training_bytes
    large = audit_protocol.measure(described, "1.0", Large).training_bytes
    assert 56 * MIB < large - small < 72 * MIB


def test_a_peer_that_trains_nothing_is_noticed(described: Job) -> None:
    with pytest.raises(SystemExit, match="1 of 1 parameters did not move"):
        audit_protocol.measure(described, "1.0", lambda job: FakeTrainer(job, lazy=True))


def test_a_loss_that_is_not_finite_is_noticed(described: Job) -> None:
    with pytest.raises(SystemExit, match="not finite"):
        audit_protocol.measure(described, "1.0", lambda job: FakeTrainer(job, loss=float("nan")))


# --- the same network for every peer ----------------------------------------------------------------------------------


def _torch_operator(operator: Mapping[str, Any], x: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A described operator by torch's functions, on maps; signals have height 1."""
    functions, kind = torch.nn.functional, operator["op"]
    if kind in ("conv", "linear", "group_norm"):
        weight, bias = weights[operator["weight"]], weights[operator["bias"]]
    if kind == "conv":
        weight = weight[:, :, None] if weight.ndim == 3 else weight
        stride, padding = operator["stride"], operator["padding"]
        return functions.conv2d(x, weight, bias, stride, padding, groups=operator["groups"])
    if kind == "linear":
        return functions.linear(x.flatten(1), weight, bias)
    if kind == "group_norm":
        return functions.group_norm(x, operator["groups"], weight, bias, operator["eps"])
    if kind == "layer_norm":
        return functions.layer_norm(x, x.shape[1:], eps=operator["eps"])
    if kind == "temperature":
        span = operator["maximum"] - operator["minimum"]
        return x / (operator["minimum"] + span * torch.sigmoid(weights[operator["alpha"]]))
    if kind in ("max_pool", "avg_pool"):
        pool = functions.max_pool2d if kind == "max_pool" else functions.avg_pool2d
        return pool(x, operator["kernel"])
    assert kind == "relu"
    return functions.relu(x)


@pytest.mark.parametrize("name", ["har-cnn", "kws-dscnn", "deep2", "mlp"])
def test_a_described_network_gives_the_scores_of_the_network(name: str) -> None:
    whole = reference(name).regroup("whole", "last")
    x = torch.randn(2, *whole.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, ((scores, _),) = whole.sequence[0](x)
        rows = x[:, :, None] if x.ndim == 3 else x
        for operator in (operator for block in audit_files.describe(whole) for operator in block):
            rows = _torch_operator(operator, rows, whole.tensors())
    torch.testing.assert_close(rows, scores, atol=1e-5, rtol=1e-5)


def test_a_deep_network_is_the_same_in_every_process() -> None:
    first, second = reference("deep2").tensors(), reference("deep2").tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpointing_in_the_pytorch_worker_changes_no_loss() -> None:
    import peer_torch

    x, y = np.ones((8, 6, 128), np.float32), np.arange(8) % 6
    losses = []
    for method, size in (("bp", 8), ("bp+accumulation+checkpointing", 2), ("bp+fused-updates", 8)):
        trainer = peer_torch.Trainer(
            job(network="har-cnn", method=method, batch=8, micro_batch=size, settings={"segments": 2})
        )
        losses.append([trainer.update(x, y) for _ in range(2)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][1] < losses[0][0]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_rows(monkeypatch: pytest.MonkeyPatch) -> list[audit.Audit]:
    """The command with a measured and a skipped row; what it asks for is kept."""
    asked: list[audit.Audit] = []

    def rows(chosen: audit.Audit) -> Iterator[dict[str, Any]]:
        asked.append(chosen)
        cell = audit.Cell("mlp", 128, "bp", "mnn")
        yield audit.finished(cell, 8, lambda size: row(3 * MIB, settings={"segments": 2}))
        yield audit.finished(cell, 8, _raise_skipped)

    monkeypatch.setattr(audit, "rows", rows)
    return asked


def _raise_skipped(size: int) -> dict[str, Any]:
    raise Skipped("no environment")


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["bench", "memory", *words])


def test_rows_are_a_table_and_the_skipped_ones_are_told_below(fake_rows: list[audit.Audit]) -> None:
    result = run()
    assert result.exit_code == 0
    assert "mlp      bp      fake 1.0  128    8            50 MiB  3 MiB     -        10" in result.stdout
    assert result.stdout.endswith("skipped: mlp, bp, mnn, batch 128: no environment\n")


def test_json_is_a_line_for_each_row_with_every_column(fake_rows: list[audit.Audit]) -> None:
    lines = [json.loads(line) for line in run("--json").stdout.splitlines()]
    assert [list(line) for line in lines] == [list(audit.COLUMNS)] * 2
    assert lines[0]["settings"] == {"segments": 2}


def test_rows_go_to_a_file_as_well(fake_rows: list[audit.Audit], tmp_path: Path) -> None:
    assert run("--json", "--out", str(tmp_path / "rows.csv")).exit_code == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["training_bytes"], first["settings"]) == (str(3 * MIB), '{"segments": 2}')
    assert (second["training_bytes"], second["skipped"]) == ("", "no environment")


def test_options_choose_what_is_measured(fake_rows: list[audit.Audit]) -> None:
    words = ["--network", "deep3", "--method", "bp", "--runtime", "mnn", "--batch", "16", "--micro-batch", "4"]
    assert run(*words, "--best").exit_code == 0
    assert fake_rows == [audit.Audit(("deep3",), ("bp",), ("mnn",), (16,), (4,), best=True)]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--network", "resnet"], "unknown network `resnet`", "har-cnn"),
        (["--method", "adam"], "unknown method `adam`", "bp+accumulation"),
        (["--runtime", "tflite"], "unknown runtime `tflite`", "onnxruntime-training"),
    ],
)
def test_an_unknown_choice_is_named_with_what_is_known(words: list[str], message: str, hint: str) -> None:
    result = run(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {message}\n\nhint: known: ")
    assert hint in result.stderr


def test_what_was_measured_before_is_not_overwritten(fake_rows: list[audit.Audit], tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("hours of measuring\n")
    result = run("--out", str(rows))
    assert (result.exit_code, f"`{rows}` exists" in result.stderr) == (1, True)
    assert rows.read_text() == "hours of measuring\n"


def test_an_error_of_the_benchmark_is_not_said_to_be_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def rows(chosen: audit.Audit) -> Iterator[dict[str, Any]]:
        yield audit.finished(audit.Cell("mlp", 128, "bp", "mnn"), 8, lambda size: row(3 * MIB))
        raise PermissionError(13, "Permission denied", "/somewhere/else")

    monkeypatch.setattr(audit, "rows", rows)
    result = run("--out", str(tmp_path / "rows.csv"))
    assert result.exit_code == 1
    assert "/somewhere/else" in result.stderr
    assert "rows.csv" not in result.stderr
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2  # what was measured is kept


def test_a_worker_whose_interpreter_is_gone_makes_a_skipped_row() -> None:
    with pytest.raises(Skipped, match="`/nowhere/python` cannot be run: No such file or directory"):
        audit_peers.output(["/nowhere/python", "-c", "pass"], {})


def test_nothing_to_measure_is_no_empty_table() -> None:
    result = run("--method", "sweep", "--runtime", "mnn")
    assert result.exit_code == 1
    assert "nothing to measure: `sweep` does not run on `mnn`" in result.stderr


def test_a_file_that_cannot_be_written_is_named(fake_rows: list[audit.Audit], tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "nowhere" / "rows.csv"))
    assert result.exit_code == 1
    assert "cannot write" in result.stderr


def test_without_a_checkout_the_command_says_that_it_needs_one(tmp_path: Path) -> None:
    with pytest.raises(EdgeffError, match="needs a checkout of edgeff") as caught:
        bench_checkout.find_checkout([tmp_path])
    assert "clone the repository" in caught.value.hint
    assert bench_checkout.find_checkout([tmp_path, ROOT]) == ROOT
