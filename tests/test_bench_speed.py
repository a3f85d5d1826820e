"""The speed benchmark: who takes part at which settings, how workers are asked, and what the command prints."""

from __future__ import annotations

import csv
import doctest
import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from edgeff import cli_bench_speed
from edgeff.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))  # scripts, no package
import audit_own
import audit_protocol
import speed
import speed_contenders
import speed_entry
import speed_growth
import speed_plot
import speed_search
import speed_torch
import speed_worker
import speed_worker_own
from audit_peers import Skipped
from audit_protocol import Job
from networks import reference
from speed_contenders import Cell, Contender, Speed
from speed_process import Worker
from speed_search import Choice, Variant

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
CELL = Cell("mlp", 8, 1)


def row(**values: Any) -> dict[str, Any]:
    """A measured row."""
    found = dict.fromkeys(speed.COLUMNS)
    found |= {"network": "mlp", "method": "bp", "runtime": "pytorch 2.13.0", "threads": 1, "batch": 8}
    found |= {"micro_batch": 8, "rows_per_s": 100.0, "training_bytes": 30 * MIB, "first_step_s": 2.04}
    return found | {"settings": {}, "ratio": 1.0, "floor_bytes": 50 * MIB, "rounds": [100.0], **values}


# --- who takes part ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [speed, speed_contenders, speed_growth, speed_plot, speed_search])
def test_the_examples_in_the_docstrings_are_right(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_cells_go_through_networks_then_batches_then_threads() -> None:
    cells = list(speed.cells(Speed(networks=["mlp", "vgg8"], batches=[8, 128], threads=[1, 2])))
    assert cells[:3] == [Cell("mlp", 8, 1), Cell("mlp", 8, 2), Cell("mlp", 128, 1)]
    assert len(cells) == 8


def test_edgeffs_methods_run_on_its_runtime_alone_and_back_propagation_everywhere() -> None:
    found = list(speed_contenders.contenders(speed.METHODS, speed.RUNTIMES))
    where = {method: [one.runtime for one in found if one.method == method] for method in speed.METHODS}
    assert where["bp"] == where["bp-deepsup"] == ["onnxruntime", "pytorch", "onnxruntime-training", "mnn"]
    assert all(where[method] == ["onnxruntime"] for method in ("sweep", "stage", "bp+accumulation", "mezo"))


def test_deep_supervision_is_refused_by_all_but_pytorch_with_a_reason() -> None:
    reasons = {one: speed_contenders.refusal(Contender("bp-deepsup", one), "cpu") for one in speed.RUNTIMES}
    assert reasons.pop("pytorch") is None
    assert all(reason and "last block's scores alone" in reason for reason in reasons.values())


def test_on_a_gpu_pytorch_and_onnxruntime_take_part() -> None:
    assert speed_contenders.refusal(Contender("bp", "pytorch"), "cuda") is None
    assert speed_contenders.refusal(Contender("sweep", "onnxruntime"), "cuda") is None
    assert speed_contenders.refusal(Contender("bp", "mnn"), "cuda") == "it is measured on the CPU alone"
    assert "ordinary memory" in str(speed_contenders.refusal(Contender("mezo", "onnxruntime"), "cuda"))
    assert speed_contenders.refusal(Contender("mezo", "onnxruntime"), "cpu") is None


def variants_of(method: str, runtime: str, fixed: int | None = None, *, maps: bool = True) -> list[Variant]:
    return speed_contenders.variants(Contender(method, runtime), 8, fixed, maps=maps)


def test_pytorch_is_tried_eager_and_compiled_with_channels_first_and_last_where_rows_are_maps() -> None:
    found = [tuple(one.settings.values()) for one in variants_of("bp", "pytorch")]
    assert found == [(False, False), (False, True), (True, False), (True, True)]
    assert [one.settings["channels_last"] for one in variants_of("bp", "pytorch", maps=False)] == [False, False]
    assert all(one.sizes == [1, 2, 4, 8] for one in variants_of("bp-deepsup", "pytorch"))


def test_our_plain_back_propagation_takes_the_whole_batch_and_a_given_micro_batch_holds_for_the_others() -> None:
    assert [one.sizes for one in variants_of("bp", "onnxruntime", 2)] == [[8]]
    assert [one.sizes for one in variants_of("sweep", "onnxruntime", 2)] == [[2]]
    assert [one.sizes for one in variants_of("sweep", "onnxruntime")] == [[1, 2, 4, 8]]


def test_mnns_own_step_is_tried_with_whole_batches_only() -> None:
    assert [(one.settings["own_adam"], one.sizes) for one in variants_of("bp", "mnn")] == [
        (True, [8]),
        (False, [1, 2, 4, 8]),
    ]
    assert [one.settings["own_adam"] for one in variants_of("bp", "mnn", 4)] == [False]


def test_pytorch_keeps_freed_memory_has_its_threads_and_compiles_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_contenders, "interpreter", lambda peer: Path("/venv/bin/python"))
    contender, cell = Contender("bp", "pytorch"), Cell("mlp", 8, 2)
    settings = {"compile": True}
    words, first = speed_contenders.launch(contender, cell, settings, 4, tmp_path)
    _, second = speed_contenders.launch(contender, cell, settings, 4, tmp_path)
    assert (words[0], Path(words[1]).name, words[2]) == ("/venv/bin/python", "speed_worker.py", "speed_torch")
    assert Job(**json.loads(words[3])) == Job("mlp", "bp", 8, 4, str(tmp_path), settings, 2)
    assert (first["OMP_NUM_THREADS"], first["MALLOC_MMAP_MAX_"]) == ("2", "0")
    assert first["TORCHINDUCTOR_CACHE_DIR"] != second["TORCHINDUCTOR_CACHE_DIR"]


def test_our_own_worker_runs_in_the_device_environment_with_the_allocator_as_users_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / ".venv-device"
    device.mkdir()
    monkeypatch.setattr(audit_own, "DEVICE", device)
    with pytest.raises(Skipped, match=r"no environment `\.venv-device`: run `make test`"):
        speed_contenders.launch(Contender("sweep", "onnxruntime"), CELL, {}, 4, tmp_path)
    (device / ".ready").touch()
    words, environment = speed_contenders.launch(Contender("sweep", "onnxruntime"), CELL, {}, 4, tmp_path)
    assert (words[0], Path(words[1]).name) == (str(device / "bin" / "python"), "speed_worker_own.py")
    assert "MALLOC_MMAP_MAX_" not in environment
    gpu = tmp_path / ".venv-cuda"
    monkeypatch.setattr(audit_own, "CUDA", gpu)
    with pytest.raises(Skipped, match=r"no environment `\.venv-cuda`: run `make \.venv-cuda/\.ready`"):
        speed_contenders.launch(Contender("sweep", "onnxruntime"), CELL, {"device": "cuda"}, 4, tmp_path)
    gpu.mkdir()
    (gpu / ".ready").touch()
    words, _ = speed_contenders.launch(Contender("sweep", "onnxruntime"), CELL, {"device": "cuda"}, 4, tmp_path)
    assert words[0] == str(gpu / "bin" / "python")
    assert Job(**json.loads(words[2])).settings == {"device": "cuda"}


# --- how long, and at which settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("update_s", "updates"), [(0.001, 1000), (0.3, 3), (7.0, 1)])
def test_a_burst_has_as_many_updates_as_take_about_the_time(update_s: float, updates: int) -> None:
    asked: list[int] = []

    def burst(count: int) -> float:
        asked.append(count)
        return count * update_s

    assert speed_search.calibrated(burst, 1.0) == pytest.approx(updates, rel=0.01)
    assert sum(asked) * update_s <= max(1.0, update_s)


def test_a_slow_first_update_does_not_make_bursts_too_short() -> None:
    seconds = iter([0.19, 0.02, 0.2])
    assert speed_search.calibrated(lambda count: next(seconds), 1.0) == 150


class Speeds:
    """Rows per second by setting and micro-batch; what was asked for is kept. None fails."""

    def __init__(self, **by_setting: Mapping[int, float | None]) -> None:
        self.by_setting = by_setting
        self.asked: list[tuple[str, int]] = []

    def __call__(self, settings: Mapping[str, Any], size: int) -> float:
        self.asked.append((settings["name"], size))
        found = self.by_setting[settings["name"]].get(size)
        if found is None:
            raise Skipped(f"{settings['name']} has no {size}")
        return found

    def variants(self) -> list[Variant]:
        return [Variant(sorted(sizes), {"name": name}) for name, sizes in self.by_setting.items()]


def test_the_search_goes_down_from_the_whole_batch_until_two_sizes_in_a_row_are_slower() -> None:
    speeds = Speeds(eager={1: 99, 2: 99, 4: 5, 8: 6, 16: 9, 32: 8})
    assert speed_search.fastest(speeds, speeds.variants()) == Choice({"name": "eager"}, 16, 9)
    assert [size for _, size in speeds.asked] == [32, 16, 8, 4]


def test_further_settings_are_tried_around_the_best_size_so_far() -> None:
    speeds = Speeds(eager={4: 7, 8: 9, 16: 8, 32: 7}, compiled={4: 8, 8: 10, 16: 11, 32: 12})
    assert speed_search.fastest(speeds, speeds.variants()) == Choice({"name": "compiled"}, 32, 12)
    assert [size for name, size in speeds.asked if name == "compiled"] == [8, 4, 16, 32]


def test_settings_that_fail_are_passed_over_and_if_all_do_the_first_reason_is_told() -> None:
    speeds = Speeds(eager={4: 7, 8: None}, compiled={4: None, 8: None})
    assert speed_search.fastest(speeds, speeds.variants()).micro_batch == 4
    speeds = Speeds(eager={8: None}, compiled={8: None})
    with pytest.raises(Skipped, match="eager has no 8"):
        speed_search.fastest(speeds, speeds.variants())


def test_the_best_settings_are_changed_where_that_is_faster_alone() -> None:
    def speed(settings: Mapping[str, Any], size: int) -> float:
        if "bad" in settings:
            raise Skipped("no such thing")
        return 5.0 + 2 * settings.get("passive", 0) - settings.get("slow", 0)

    best = Choice({"name": "eager"}, 4, 5.0)
    found = speed_search.refined(speed, best, [{"slow": 1}, {"bad": 1}, {"passive": 1}])
    assert found == Choice({"name": "eager", "passive": 1}, 4, 7.0)


def test_pytorch_may_let_its_threads_sleep_where_it_has_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_contenders, "interpreter", lambda peer: Path("/venv/bin/python"))
    contender = Contender("bp", "pytorch")
    assert speed_contenders.refinements(contender, 1) == []
    assert speed_contenders.refinements(Contender("bp", "mnn"), 2) == []
    (change,) = speed_contenders.refinements(contender, 2)
    _, environment = speed_contenders.launch(contender, CELL, change, 4, tmp_path)
    assert environment["OMP_WAIT_POLICY"] == "passive"


# --- workers ----------------------------------------------------------------------------------------------------------

READY = 'print(json.dumps({"ready": True, "version": "3.1", "micro_batch": 4, "floor_bytes": 1000}), flush=True)\n'
HEAD = "import json, os, signal, subprocess, sys\n"
SERVE = """
for line in sys.stdin:
    asked = json.loads(line)
    with open(sys.argv[1], "a") as log:
        log.write(f"{sys.argv[2]} {line}")
    if "updates" in asked:
        print(json.dumps({"seconds": asked["updates"] * float(sys.argv[3])}), flush=True)
    else:
        print(json.dumps({"training_bytes": 7, "settings": {"extra": 1}}), flush=True)
        break
"""


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., Worker]:
    """A worker that is a given program, which logs what it is asked and takes so long for an update."""

    def start(program: str, update_s: float = 0.5, limit_s: float = 60) -> Worker:
        script = tmp_path / "worker.py"
        script.write_text(HEAD + program)
        words = [sys.executable, str(script), str(tmp_path / "log"), "it", str(update_s)]
        return Worker(words, dict(os.environ), limit_s=limit_s)

    return start


def test_a_worker_says_when_it_is_ready_and_how_long_updates_took(started: Callable[..., Worker]) -> None:
    with started(READY + SERVE) as worker:
        assert (worker.ready.version, worker.ready.micro_batch, worker.ready.floor_bytes) == ("3.1", 4, 1000)
        assert 0 < worker.first_step_s < 60
        assert worker.burst(6) == 3.0
        taken = worker.end()
    assert (taken.training_bytes, taken.settings) == (7, {"extra": 1})


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("sys.exit('no such network')", "worker.py: no such network"),
        ("os.kill(os.getpid(), 11)", "worker.py: ended by signal 11"),
        ("pass", "worker.py: ended without an answer"),
        ("print('Hello from a library')", "worker.py: answered `Hello from a library`"),
        ("print('[1]')", "worker.py: answered `[1]`"),
        ('print(\'{"ready": true, "speed": 3}\')', 'worker.py: answered `{"speed": 3}`'),
    ],
)
def test_a_worker_that_does_not_get_ready_is_skipped_with_the_reason(
    started: Callable[..., Worker], program: str, reason: str
) -> None:
    with pytest.raises(Skipped) as caught:
        started(program)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("sys.stdin.readline(); sys.exit('out of memory')", "worker.py: out of memory"),
        ("sys.stdin.readline(); print('{}')", "worker.py: answered `{}`"),
        ("sys.stdin.readline(); print('{\"seconds\": 0}')", "worker.py: 6 updates in `0` seconds"),
        ("sys.exit('gone')", "worker.py: gone"),
    ],
)
def test_a_worker_that_fails_in_a_burst_is_skipped_with_the_reason(
    started: Callable[..., Worker], program: str, reason: str
) -> None:
    with started(READY + program) as worker, pytest.raises(Skipped) as caught:
        worker.burst(6)
    assert str(caught.value) == reason


def test_a_worker_that_does_not_answer_in_time_is_ended(started: Callable[..., Worker]) -> None:
    with pytest.raises(Skipped, match=r"no answer in 0\.3 s"):
        started("signal.pause()", limit_s=0.3)


def test_nothing_of_a_worker_is_left_behind_not_even_what_it_started(
    started: Callable[..., Worker], tmp_path: Path
) -> None:
    helper = "helper = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    tell = "open(sys.argv[1], 'w').write(f'{os.getpid()} {helper.pid}')\n"
    with started(helper + tell + READY + SERVE):
        handles = [os.pidfd_open(int(pid)) for pid in (tmp_path / "log").read_text().split()]
        assert select.select(handles, [], [], 0)[0] == []
    for handle in handles:
        # A handle is ready once its process has ended.
        assert select.select([handle], [], [], 10)[0] == [handle]
        os.close(handle)


def test_what_libraries_print_in_a_worker_is_no_answer(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from speed_protocol import Ready, Taken, answers, serve\n"
        "channel = answers()\nprint('chatter', flush=True)\nos.system('echo more chatter')\n"
        "serve(channel, Ready('1', 2, 3), lambda updates: updates / 4, lambda: Taken(5))\n"
    )
    with Worker([sys.executable, str(script)], dict(os.environ)) as worker:
        assert worker.burst(2) == 0.5
        assert worker.end().training_bytes == 5


# --- a cell -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """The rows of a cell whose workers are given programs by runtime; with seconds for an update."""
    monkeypatch.setattr(speed_entry, "write_files", lambda contender, network, folder: None)
    monkeypatch.setattr(speed_entry, "exported_s", lambda network, folder: 1.5)
    (tmp_path / "network.json").write_text(json.dumps({"shape": [784]}))

    def run(programs: Mapping[str, tuple[str, float]], **chosen: Any) -> list[dict[str, Any]]:
        def launch(one: Contender, cell: Cell, settings: Any, size: int, folder: Path) -> Any:
            program, update_s = programs[one.runtime]
            script = tmp_path / f"{one.runtime}.py"
            script.write_text(HEAD + program)
            return [sys.executable, str(script), str(tmp_path / "log"), one.runtime, str(update_s)], dict(os.environ)

        monkeypatch.setattr(speed_entry, "launch", launch)
        given = {"methods": ["bp"], "runtimes": list(programs), "micro_batch": 8, "rounds": 2, **chosen}
        return speed.cell_rows(CELL, Speed(**given), tmp_path, lambda text: None)

    return run


def test_contenders_of_a_cell_run_by_turns_and_their_speed_is_over_that_of_pytorch(
    fake_cell: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    found = fake_cell({"onnxruntime": (READY + SERVE, 0.25), "onnxruntime-training": (READY + SERVE, 0.5)})
    assert [one["ratio"] for one in found] == [None, None]
    (tmp_path / "log").unlink()
    own, torchs = fake_cell({"onnxruntime": (READY + SERVE, 0.25), "pytorch": (READY + SERVE, 0.5)})
    assert (own["rows_per_s"], own["ratio"], own["rounds"]) == (32.0, 2.0, [32.0, 32.0])
    assert (torchs["rows_per_s"], torchs["ratio"], torchs["runtime"]) == (16.0, 1.0, "pytorch 3.1")
    assert (torchs["training_bytes"], torchs["floor_bytes"], torchs["skipped"]) == (7, 1000, None)
    assert torchs["settings"] == {"compile": False, "channels_last": False, "extra": 1}
    asked = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    bursts = [name for name, question in asked if question in ('{"updates": 4}', '{"updates": 2}')]
    assert bursts[-4:] == ["onnxruntime", "pytorch"] * 2
    assert [name for name, question in asked if "end" in question] == ["onnxruntime", "pytorch"]


def test_the_median_of_the_rounds_is_the_row(fake_cell: Callable[..., list[dict[str, Any]]]) -> None:
    uneven = READY + "".join(
        f"sys.stdin.readline(); print('{{\"seconds\": {seconds}}}', flush=True)\n" for seconds in (1, 1, 8, 2)
    )
    (found,) = fake_cell({"onnxruntime": (uneven + SERVE, 0.5)}, rounds=3)
    assert found["rounds"] == [8.0, 1.0, 4.0]
    assert found["rows_per_s"] == 4.0


def test_a_contender_that_dies_leaves_a_skipped_row_and_the_others_go_on(
    fake_cell: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    pid = "open(sys.argv[1] + '.pid', 'w').write(str(os.getpid()))\n"
    dies = pid + READY + "sys.stdin.readline(); print('{\"seconds\": 1}', flush=True)\nsys.exit('it broke')"
    own, other = fake_cell({"onnxruntime": (dies, 0.5), "pytorch": (READY + SERVE, 0.5)})
    assert (own["skipped"], own["rows_per_s"], own["training_bytes"]) == ("onnxruntime.py: it broke", None, None)
    assert (other["skipped"], other["rows_per_s"]) == (None, 16.0)
    assert list(own) == list(other) == list(speed.COLUMNS)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "log.pid").read_text()), 0)


def test_a_refused_contender_starts_nothing(fake_cell: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    (refused,) = fake_cell({"mnn": (READY + SERVE, 0.5)}, methods=["bp-deepsup"])
    assert refused["skipped"] == "its network is made with the last block's scores alone"
    assert not (tmp_path / "log").exists()


def test_the_time_of_an_export_stands_in_the_rows_of_local_learning(
    fake_cell: Callable[..., list[dict[str, Any]]],
) -> None:
    found = fake_cell({"onnxruntime": (READY + SERVE, 0.5)}, methods=["sweep", "stage", "mezo"])
    assert [one["export_s"] for one in found] == [1.5, 1.5, None]


# --- what is trained --------------------------------------------------------------------------------------------------


def test_a_wide_network_has_four_convolutions_of_its_width() -> None:
    network = reference("wide12")
    shapes = [tuple(block.leaves()[0].transform[0].weight.shape) for block in network.sequence]
    assert shapes == [(12, 3, 3, 3), *[(12, 12, 3, 3)] * 3]
    assert (network.input_shape, network.name) == ((3, 32, 32), "wide12")


def torch_losses(method: str, micro_batch: int = 4, network: str = "wide4", **settings: Any) -> list[float]:
    """The losses of two updates on the same rows."""
    job = Job(network, method, 4, micro_batch, "", settings)
    x = np.random.default_rng(0).standard_normal((1, 4, *reference(network).input_shape), dtype=np.float32)
    ((rows, labels),) = speed_torch.placed(job, x, np.array([[0, 1, 2, 3]]))
    trainer = speed_torch.Trainer(job)
    return [trainer.update(rows, labels) for _ in range(2)]


def test_no_setting_of_pytorch_changes_what_is_learnt() -> None:
    plain = torch_losses("bp")
    assert plain[1] < plain[0]
    for other in (torch_losses("bp", 2), torch_losses("bp", channels_last=True)):
        assert other == pytest.approx(plain, rel=1e-4)


def test_deep_supervision_sums_the_losses_of_all_blocks_and_learns_through_all() -> None:
    whole = reference("wide4").regroup("whole", "all").sequence[0]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32))
    loss = whole.loss(whole(x)[1], torch.arange(4), torch.full((4,), 0.25))
    first, second = torch_losses("bp-deepsup", 2)
    assert first == pytest.approx(float(loss.detach()), rel=1e-5)
    assert second < first


def test_a_burst_makes_its_updates_on_both_batches_by_turns_and_goes_on_where_the_last_ended() -> None:
    seen: list[str] = []

    class Fake:
        def update(self, x: str, y: str) -> float:
            seen.append(x + y)
            return 1.0

    burst = speed_worker.bursts(Fake(), [("a", "1"), ("b", "2")])
    assert burst(3) > 0
    burst(2)
    assert seen == ["a1", "b2", "a1", "b2", "a1"]


def test_a_first_update_that_changes_nothing_is_noticed() -> None:
    class Lazy:
        def update(self, x: Any, y: Any) -> float:
            return 1.0

        def parameters(self) -> list[Callable[[], Any]]:
            return [lambda: np.ones(3)]

    with pytest.raises(SystemExit, match="1 of 1 parameters did not move"):
        speed_worker.first_update(Lazy(), (0, 0))


def test_the_peak_of_training_counts_from_the_floor_on() -> None:
    floor = audit_protocol.measure_from_here()
    before = floor.training_bytes()
    # Beyond what the allocator may have lying about: it asks the system for as much at once.
    kept = np.ones(64 * MIB, np.uint8)
    assert 60 * MIB < floor.training_bytes() - before < 72 * MIB
    assert kept.all()


def test_our_own_rows_come_batch_after_batch_again_and_again() -> None:
    batches = speed_worker_own.Turns(6, 0, 3, 0.0, 0).batches(1)
    assert [next(batches).tolist() for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    many = speed_worker_own.Repeated(np.arange(6), 15)
    assert (len(many), many[10:].tolist(), many[np.array([7, 0])].tolist()) == (15, [4, 5, 0, 1, 2], [1, 0])


# --- text and picture -------------------------------------------------------------------------------------------------

ROWS = [
    row(network="deep4", method="sweep", runtime="onnxruntime 1.32.0", rows_per_s=250.4, ratio=2.5, export_s=4.21),
    row(network="deep4", settings={"compile": True, "channels_last": False}, rounds=[95.0, 110.0, 100.0]),
    row(network="deep8", method="sweep", runtime="onnxruntime 1.32.0", rows_per_s=125.2, ratio=None, export_s=8.42)
    | {"training_bytes": 60 * MIB, "settings": {"at": 0.25}},
    row(network="deep4", method="bp-deepsup", runtime="mnn", skipped="it cannot") | {"rows_per_s": None},
    row(network="deep8", method="bp-deepsup", runtime="mnn", threads=2, skipped="it cannot") | {"rows_per_s": None},
]
TEXT = """\
network  batch  threads  method  runtime             micro-batch  rows/s  spread  ratio  training  first step  settings
-------  -----  -------  ------  ------------------  -----------  ------  ------  -----  --------  ----------  --------
deep4    8      1        sweep   onnxruntime 1.32.0  8            250     0%      2.50   30 MiB    2.0 s
deep4    8      1        bp      pytorch 2.13.0      8            100     15%     1.00   30 MiB    2.0 s       compile
deep8    8      1        sweep   onnxruntime 1.32.0  8            125     0%      -      60 MiB    2.0 s       at 0.25
exported: deep4 in 4.2 s
exported: deep8 in 8.4 s

networks        batch  threads  method  runtime             size  time per row  training bytes  first step  export
--------------  -----  -------  ------  ------------------  ----  ------------  --------------  ----------  ------
deep4 to deep8  8      1        sweep   onnxruntime 1.32.0  x2    x2            x2              x1          x2

skipped: bp-deepsup, mnn (network, batch x threads: deep4 8x1, deep8 8x2): it cannot"""


def test_the_table_has_measured_rows_then_exports_growth_and_what_was_skipped() -> None:
    assert cli_bench_speed.rows_text(ROWS, speed.growth(ROWS)) == TEXT


def test_growth_is_told_of_contenders_that_have_two_sizes_alone() -> None:
    (one,) = speed_growth.growth([*ROWS, row(network="mlp"), row(network="vgg8")])
    assert (one.family, one.sizes, one.method) == ("deep", (4, 8), "sweep")
    assert one.factors == {"time per row": 2.0, "training bytes": 2.0, "first step": 1.0, "export": 2.0}


def texts(root: ElementTree.Element, tag: str = "text") -> list[str]:
    return [one.text or "" for one in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def attributes(root: ElementTree.Element, tag: str, name: str) -> list[str]:
    return [one.attrib[name] for one in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def test_a_network_is_drawn_as_bars_as_long_as_what_they_stand_for() -> None:
    fast = row(method="a < b", runtime="onnxruntime 1.32.0", rows_per_s=200.0, training_bytes=None)
    root = ElementTree.fromstring(speed_plot.plot([fast, row(), row(network="vgg8", skipped="why")]))
    assert [text for text in texts(root) if "thread" in text] == ["mlp, batch 8, 1 thread"]
    assert {"a < b, onnxruntime 1.32.0", "bp, pytorch 2.13.0", "200", "100", "30 MiB", "2.0 s"} <= set(texts(root))
    first, second, *_ = [float(width) for width in attributes(root, "rect", "width")[1:]]
    assert first == pytest.approx(2 * second)
    assert len(attributes(root, "rect", "width")) == 1 + 2 + 1 + 2


def test_a_family_is_drawn_as_lines_over_its_sizes() -> None:
    root = ElementTree.fromstring(speed_plot.plot(ROWS))
    assert [text for text in texts(root) if "thread" in text] == ["deep<N>, batch 8, 1 thread"]
    sweep, *_ = attributes(root, "polyline", "points")
    (left, top), (right, bottom) = [map(float, point.split(",")) for point in sweep.split()]
    assert left < right
    assert top < bottom  # fewer rows per second, so further down
    assert "sweep, onnxruntime 1.32.0, 8: 125" in texts(root, "title")


def test_nothing_measured_is_a_picture_too() -> None:
    assert texts(ElementTree.fromstring(speed_plot.plot([row(skipped="why")]))) == []


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Speed]:
    """The command with given rows; what it asks for is kept."""
    found: list[Speed] = []

    def rows(chosen: Speed, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        found.append(chosen)
        say("mlp: searching")
        yield from ROWS

    monkeypatch.setattr(speed, "rows", rows)
    return found


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["bench", "speed", *words])


def test_the_command_prints_the_table_and_tells_what_goes_on_on_stderr(asked: list[Speed]) -> None:
    result = run()
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{TEXT}\n", "mlp: searching\n")
    assert asked == [Speed()]


def test_json_is_a_line_for_each_row_with_these_keys_first(asked: list[Speed]) -> None:
    lines = [json.loads(line) for line in run("--json").stdout.splitlines()]
    first = ["network", "method", "runtime", "threads", "batch", "micro_batch"]
    first += ["rows_per_s", "training_bytes", "first_step_s"]
    assert all(list(line)[: len(first)] == first for line in lines)
    assert [list(line)[len(first) :] for line in lines] == [
        ["settings", "export_s", "ratio", "skipped", "floor_bytes", "rounds"]
    ] * len(ROWS)
    assert lines[1]["settings"] == {"compile": True, "channels_last": False}


def test_rows_go_to_a_csv_file_and_a_picture_as_well(asked: list[Speed], tmp_path: Path) -> None:
    assert run("--out", str(tmp_path / "rows.csv"), "--plot", str(tmp_path / "rows.svg")).exit_code == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == list(speed.COLUMNS)
    assert (found[1]["settings"], found[1]["rounds"]) == (
        '{"compile": true, "channels_last": false}',
        "[95.0, 110.0, 100.0]",
    )
    assert (tmp_path / "rows.svg").read_text() == speed_plot.plot(ROWS)


def test_a_picture_that_cannot_be_drawn_is_told_of_before_hours_of_measuring(
    asked: list[Speed], tmp_path: Path
) -> None:
    (tmp_path / "old.svg").write_text("old")
    for place, message in ((tmp_path / "old.svg", "exists"), (tmp_path / "no" / "a.svg", "No such file")):
        result = run("--plot", str(place))
        assert (result.exit_code, message in result.stderr) == (1, True)
    assert (tmp_path / "old.svg").read_text() == "old"
    assert asked == []


def test_options_choose_what_is_measured(asked: list[Speed]) -> None:
    words = ["--network", "deep3", "--network", "wide32", "--method", "bp", "--runtime", "mnn", "--batch", "16"]
    words += ["--threads", "1", "--micro-batch", "4", "--rounds", "3", "--burst", "0.2"]
    assert run(*words).exit_code == 0
    assert asked == [Speed(("deep3", "wide32"), ("bp",), ("mnn",), (16,), (1,), 4, 3, 0.2)]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--network", "wide0"], "unknown network `wide0`", "deep<N> and wide<C>"),
        (["--method", "adam"], "unknown method `adam`", "bp-deepsup"),
        (["--runtime", "tflite"], "unknown runtime `tflite`", "onnxruntime-training"),
        (
            ["--method", "sweep", "--runtime", "mnn"],
            "nothing to measure: `sweep` does not run on `mnn`",
            "`bp` and `bp-deepsup` are measured on other runtimes than `onnxruntime`",
        ),
        (["--plot", "/nowhere/rows.svg"], "cannot write `/nowhere/rows.svg`: No such file or directory", "--help"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    asked: list[Speed], words: Sequence[str], message: str, hint: str
) -> None:
    result = run(*words)
    assert result.exit_code == 1
    assert f"Error: {message}\n\nhint: " in result.stderr
    assert hint in result.stderr


def test_a_gpu_is_asked_for_in_vain_where_onnxruntime_has_none(
    asked: list[Speed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "providers", lambda: ["AzureExecutionProvider", "CPUExecutionProvider"])
    result = run("--provider", "cuda")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: the onnxruntime of `.venv-cuda` has no CUDAExecutionProvider, "
        "it has AzureExecutionProvider, CPUExecutionProvider\n\n"
        "hint: leave `--provider` out to measure on the CPU\n"
    )
    monkeypatch.setattr(speed, "providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert run("--provider", "cuda").exit_code == 0
    assert [one.provider for one in asked] == ["cuda"]


def test_the_onnxruntime_that_is_asked_says_what_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_own, "CUDA", audit_own.DEVICE)
    assert "CPUExecutionProvider" in speed.providers()


def test_without_an_environment_for_it_a_gpu_cannot_be_asked_for(
    asked: list[Speed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_own, "CUDA", tmp_path / ".venv-cuda")
    result = run("--provider", "cuda")
    assert result.exit_code == 1
    assert (
        "Error: no onnxruntime tells what it can run on: no environment `.venv-cuda`: run `make .venv-cuda/.ready`"
        in result.stderr
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of PyTorch's own modules
def test_what_pytorch_compiles_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert torch_losses("bp-deepsup", compile=True) == pytest.approx(torch_losses("bp-deepsup"), rel=1e-4)


@pytest.mark.slow
def test_our_runtime_and_pytorch_are_measured_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = speed_entry.variants
    # To compile takes half a minute each time.
    monkeypatch.setattr(speed_entry, "variants", lambda *given, **more: every(*given, **more)[:1])
    words = ["--network", "wide4", "--batch", "8", "--threads", "1", "--micro-batch", "4", "--rounds", "1"]
    words += ["--method", "sweep", "--method", "stage", "--method", "bp", "--method", "bp-deepsup", "--method", "mezo"]
    words += ["--runtime", "onnxruntime", "--runtime", "pytorch", "--burst", "0.02"]
    result = run(*words, "--json", "--plot", str(tmp_path / "rows.svg"))
    assert result.exit_code == 0, result.stderr
    found = {
        (one["method"], one["runtime"].split()[0]): one
        for one in (json.loads(line) for line in result.stdout.splitlines())
    }
    skipped = {key: one["skipped"] for key, one in found.items() if one["skipped"]}
    assert list(skipped) == [("bp-deepsup", "onnxruntime")]
    for key, one in found.items():
        if key not in skipped:
            assert one["rows_per_s"] > 0
            assert 0 < one["training_bytes"] < 400 * MIB
            assert 0 < one["first_step_s"] < 60
            assert one["micro_batch"] == (8 if key == ("bp", "onnxruntime") else 4)
    assert found["bp", "pytorch"]["ratio"] == 1.0
    assert found["sweep", "onnxruntime"]["export_s"] > 0
    assert 0 < found["stage", "onnxruntime"]["settings"]["features_share"] < 1
    assert len(texts(ElementTree.fromstring((tmp_path / "rows.svg").read_text()))) > len(found)
