"""What a person meets who gives `train-on-device` a budget: refusals in one line, and changes that are told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from click.testing import Result
from tiny_artifact import make_rows, write_tiny
from tiny_run import TinyRun, edgeff

from edgeff.artifact import Artifact
from edgeff.cli_budget import budget_over_floor, free_bytes
from edgeff.devices import DetectedMachine
from edgeff.errors import EngineError
from edgeff.runtime import trainer as trainer_module
from edgeff.units import format_bytes

MIB = 2**20
Run = Callable[..., CompletedProcess[str]]


@dataclass(frozen=True)
class Made:
    artifact: Artifact
    data: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    x, y = make_rows(200)
    np.savez(folder / "rows.npz", x=x, y=y)
    return Made(write_tiny(folder / "tiny"), folder / "rows.npz")


def arguments(made: Made, out: Path, *more: object) -> list[str]:
    base = ("train-on-device", made.artifact.path, "--data", made.data, "--out", out, "--threads", 1, "--epochs", 2)
    return [str(argument) for argument in (*base, *more)]


def refused(result: Result | CompletedProcess[str], code: int = 1) -> tuple[str, str]:
    """Message and hint, the last lines of stderr."""
    assert (result.exit_code if isinstance(result, Result) else result.returncode) == code, result.stderr
    assert "Traceback" not in result.stderr
    found = re.search(r"^Error: ([^\n]+)\n\nhint: ([^\n]+)\n\Z", result.stderr, re.MULTILINE)
    assert found, result.stderr
    return found[1], found[2]


def in_process(made: Made, out: Path, *more: object) -> Result:
    return edgeff(*arguments(made, out, *more))


def test_the_floor_is_taken_off_once_from_what_a_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is available lacks this process already, whether its profile is named or found."""
    machine = DetectedMachine(
        "Linux", "x86_64", cores=2, cpu="Some CPU", ram_bytes=200 * MIB, mem_available_bytes=100 * MIB
    )
    monkeypatch.setattr("edgeff.devices.detect", lambda: machine)
    named, found = (budget_over_floor(None, name, 60 * MIB) for name in ("generic-x86-2core", None))
    assert named == found == 160 * MIB * 70 // 100 - 60 * MIB


def test_features_of_the_run_itself_do_not_count_as_taken(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "run")
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "features.block2.bin").open("wb") as stream:
        stream.truncate(64 * MIB)  # no blocks of the disk are taken by it
    assert abs(free_bytes(tmp_path / "run") - free - 32 * MIB) < 16 * MIB


# --- what holds nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["9" * 30, "9" * 5000, "99999999999 GiB"])
def test_a_budget_beyond_all_machines_is_refused(made: Made, tmp_path: Path, budget: str) -> None:
    message, hint = refused(in_process(made, tmp_path / "out", "--budget", budget))
    assert message == f"a budget of `{budget[:40]}` is more than any machine has"
    assert hint == "write for example `--budget 32MiB`"


def test_a_budget_below_the_floor_of_the_whole_process_is_refused(made: Made, tmp_path: Path, run_device: Run) -> None:
    message, hint = refused(run_device("-m", "edgeff", *arguments(made, tmp_path / "a", "--budget", "9MiB", "--total")))
    assert re.fullmatch(r"the process takes [\d.]+ MiB before it trains, the budget for all of it is 9 MiB", message)
    assert hint == "give more, or leave out `--total` where the budget is for training alone"


def test_a_total_budget_that_leaves_too_little_names_one_that_works(
    made: Made, tmp_path: Path, run_device: Run
) -> None:
    runs = count()

    def train(budget: str) -> CompletedProcess[str]:
        out = tmp_path / f"run{next(runs)}"
        return run_device("-m", "edgeff", *arguments(made, out, "--budget", budget, "--total", "--json"))

    def too_little() -> CompletedProcess[str]:
        floor = re.search(r"takes ([\d.]+) MiB", train("1MiB").stderr)
        assert floor
        return train(f"{float(floor[1]) + 2}MiB")

    # What can be given back of the floor depends on what other processes use of it at the time: between two processes
    # it may grow beyond the budget, or shrink so far that the run fits.
    needed = r"Error: beside [\d.]+ MiB of the process itself the run needs [\d,]+ bytes, the budget is [\d,]+; "
    tries = (too_little() for _ in range(8))
    _, hint = refused(next(done for done in tries if re.match(needed, done.stderr)))
    advice = re.fullmatch(r"give it `--budget (\d+MiB) --total`", hint)
    assert advice
    done = train(advice[1])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["measured"]["peak_bytes"] <= int(advice[1].removesuffix("MiB")) * MIB


def test_a_refusal_names_the_block_its_bytes_at_the_smallest_micro_batch_and_its_three_largest_tensors(
    tiny: TinyRun, tmp_path: Path
) -> None:
    command = ("train-on-device", tiny.artifact, "--data", tiny.own, "--out", tmp_path / "out", "--budget", "1MiB")
    message, hint = refused(edgeff(*command, "--batch-size", 192))
    assert re.fullmatch(
        r"the run needs [\d,]+ bytes, the budget is 1,048,576; most goes to block `block\d`: [\d.]+ [KM]iB "
        r"at micro-batch 1 \((`\w+` of \w+|gradient and state of `[\w.]+`|weight `[\w.]+`) [\d.]+ [KM]?i?B"
        r"(, (`\w+` of \w+|gradient and state of `[\w.]+`|weight `[\w.]+`) [\d.]+ [KM]?i?B){2}\)",
        message,
    )
    assert re.fullmatch(r"give it `--budget \d+MiB`; the smallest budget that works is [\d,]+ bytes", hint)
    assert not (tmp_path / "out").exists()


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["block1"], "--block-budget takes NAME=BYTES, got `block1`"),
        (["=4MiB"], "--block-budget takes NAME=BYTES, got `=4MiB`"),
        (["block1=4MiB", "block1=5MiB"], "--block-budget names `block1` twice"),
    ],
)
def test_a_block_budget_of_another_form_is_wrong_usage(
    made: Made, tmp_path: Path, given: list[str], message: str
) -> None:
    result = in_process(made, tmp_path / "out", *(part for one in given for part in ("--block-budget", one)))
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: {message}\n")


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("block9=4MiB", "there is no block `block9` to give a budget to", "its blocks: block1, block2"),
        ("block1=", "`` is not a number of bytes", "write for example `32MiB`, `512KiB` or `33554432`"),
        ("block1=-1", "`-1` is not a number of bytes", "write for example `32MiB`, `512KiB` or `33554432`"),
        ("block1=0", "a budget of 0 bytes holds nothing", "write for example `--block-budget block1=32MiB`"),
        ("block2=1KiB", "block `block2` needs ", "give it `--block-budget block2=1MiB`"),
    ],
)
def test_a_block_budget_that_makes_no_sense_is_refused(
    made: Made, tmp_path: Path, given: str, message: str, hint: str
) -> None:
    found = refused(in_process(made, tmp_path / "out", "--block-budget", given))
    assert found[0].startswith(message)
    assert found[1] == hint
    assert not (tmp_path / "out").exists()


# --- devices ----------------------------------------------------------------------------------------------------------


def own_profile(folder: Path, app_ram: str) -> Path:
    """That of a Raspberry Pi with other app RAM; none where the text is empty."""
    lines = (resources.files("edgeff.devices") / "profiles" / "pi4-1gb.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("app_ram ")]
    at = next(number for number, line in enumerate(kept) if line.startswith("ram "))
    ram = f'app_ram = {{ value = "{app_ram}", basis = "estimate", source = "a test" }}'
    path = folder / "my-board.toml"
    path.write_text("\n".join([*kept[:at], *([ram] if app_ram else []), *kept[at:]]).replace("pi4-1gb", "my-board"))
    return path


@pytest.mark.parametrize("command", ["report", "train-on-device"])
def test_a_profile_without_ram_is_refused(made: Made, tmp_path: Path, command: str) -> None:
    profile = own_profile(tmp_path, "")
    more = () if command == "report" else ("--data", made.data, "--out", tmp_path / "out")
    message, _ = refused(edgeff(command, made.artifact.path, "--device", profile, *more))
    assert message == f"device profile `{profile}` lacks `app_ram`"
    assert not (tmp_path / "out").exists()


def test_a_device_whose_ram_is_below_the_floor_is_refused(made: Made, tmp_path: Path) -> None:
    message, hint = refused(in_process(made, tmp_path / "out", "--device", own_profile(tmp_path, "1 MB")))
    assert re.fullmatch(r"the floor alone is \d+ bytes, the app RAM of `my-board` is 1000000", message)
    assert hint == "choose a device with more RAM"


# --- a budget that changes --------------------------------------------------------------------------------------------


def smallest(made: Made, tmp_path: Path, *more: object) -> int:
    _, hint = refused(in_process(made, tmp_path / "asked", "--budget", "1", *more))
    found = re.search(r"the smallest budget that works is ([\d,]+) bytes", hint)
    assert found
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("schedule", ["sweep", "stage"])
def test_a_change_by_the_control_file_is_told_and_the_run_keeps_to_it(
    made: Made, tmp_path: Path, run_device: Run, schedule: str
) -> None:
    options = ("--schedule", schedule, "--batch-size", 96)
    low, control = smallest(made, tmp_path, *options), tmp_path / "control.json"
    control.write_text(json.dumps({"budget": low}))
    command = arguments(made, tmp_path / "run", *options, "--budget", "64MiB", "--control", control, "--json")
    done = run_device("-m", "edgeff", *command)
    assert done.returncode == 0, done.stderr
    assert re.search(
        rf"^the budget is {re.escape(format_bytes(low))} now: on with micro-batch \d+, [\d.]+ MiB planned$",
        done.stderr,
        re.MULTILINE,
    )
    found = json.loads(done.stdout)
    assert found["plan"]["budget_bytes"] == low
    assert found["training_bytes"] <= low


def test_a_control_file_that_asks_for_too_little_stops_the_run_which_resume_takes_up(
    made: Made, tmp_path: Path, run_device: Run
) -> None:
    control, out = tmp_path / "control.json", tmp_path / "run"
    control.write_text('{"budget": "64 KiB"}')
    options = ("--budget", "64MiB", "--control", control, "--json")
    message, hint = refused(run_device("-m", "edgeff", *arguments(made, out, *options)), 75)
    assert re.match(
        r"the budget is 64 KiB now: the run needs [\d,]+ bytes by schedule `\w+`, the budget is 65,536; ", message
    )
    told = r"the smallest budget that works is [\d,]+ bytes; raise it where it was lowered, and go on by `--resume`"
    assert re.fullmatch(told, hint)
    assert (out / "checkpoint.safetensors").exists()
    refused(run_device("-m", "edgeff", *arguments(made, out, *options, "--resume")), 75)
    control.write_text('{"budget": "48 MiB"}')
    done = run_device("-m", "edgeff", *arguments(made, out, *options, "--resume"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["budget_bytes"] == 48 * MIB
    whole = run_device("-m", "edgeff", *arguments(made, tmp_path / "whole", "--budget", "64MiB"))
    assert whole.returncode == 0, whole.stderr
    assert (out / "best.safetensors").read_bytes() == (tmp_path / "whole" / "best.safetensors").read_bytes()


def test_a_control_file_of_a_total_budget_counts_the_floor(made: Made, tmp_path: Path, run_device: Run) -> None:
    control = tmp_path / "control.json"
    options = ("--budget", "128MiB", "--total", "--control", control, "--json")
    control.write_text('{"budget": "96 MiB"}')
    done = run_device("-m", "edgeff", *arguments(made, tmp_path / "run", *options))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plan"]["budget_bytes"] == 96 * MIB - found["floor_bytes"]
    control.write_text('{"budget": "1 MiB"}')
    message, _ = refused(run_device("-m", "edgeff", *arguments(made, tmp_path / "below", *options)))
    assert re.match(r"the process takes [\d.]+ MiB before it trains, the budget for all of it is 1 MiB", message)

    def too_little(number: int) -> CompletedProcess[str]:
        """On a budget of 3 MiB over the floor of the last process; that of the next may be another."""
        control.write_text('{"budget": "1 MiB"}')
        below = run_device("-m", "edgeff", *arguments(made, tmp_path / f"below{number}", *options))
        floor = re.search(r"takes ([\d.]+) MiB", below.stderr)
        assert floor
        control.write_text(json.dumps({"budget": int((float(floor[1]) + 3) * MIB)}))
        return run_device("-m", "edgeff", *arguments(made, tmp_path / f"little{number}", *options))

    tries = (too_little(number) for number in range(8))
    _, hint = refused(next(done for done in tries if "with `--total`" in done.stderr))
    assert re.search(r"these bytes stand over the floor: with `--total` [\d.]+ MiB come on top$", hint)


@pytest.mark.parametrize("text", ["what?", '{"budget": -1}', '{"budget": 0}', f'{{"budget": {"9" * 30}}}', "[" * 4096])
def test_nonsense_in_the_control_file_is_one_warning(made: Made, tmp_path: Path, run_device: Run, text: str) -> None:
    control = tmp_path / "control.json"
    control.write_text(text)
    command = arguments(made, tmp_path / "run", "--budget", "64MiB", "--control", control, "--json")
    done = run_device("-m", "edgeff", *command)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: ") == 1
    assert f"warning: `{control}` is not understood and is ignored; write for example " in done.stderr
    assert json.loads(done.stdout)["plan"]["budget_bytes"] == 64 * MIB


# --- a system without memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [MemoryError(), EngineError("onnxruntime failed in `a.onnx`: bad allocation")], ids=["numpy", "engine"]
)
def test_a_system_that_gives_no_more_memory_is_told_of_in_one_line(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(trainer_module.Trainer, "epoch", fail)
    message, hint = refused(in_process(made, tmp_path / "out"))
    assert message.startswith("the system gave the run no more memory")
    assert "--resume" in hint
