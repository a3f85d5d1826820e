"""Commands that show: what they print, and where."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from click.testing import Result
from tiny_run import CLASSES, TinyRun, edgeff

from edgeff import __version__
from edgeff.artifact import open_artifact
from edgeff.cli import COMMANDS
from edgeff.cli_report import device_of, report_on
from edgeff.devices import load_profile, profile_names
from edgeff.runtime import measure
from edgeff.runtime.measure import Measured
from edgeff.units import format_bytes

Run = Callable[..., CompletedProcess[str]]


def printed(result: Result) -> str:
    """What a command that succeeds writes: all of it to stdout."""
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


# --- help ---


def test_help_lists_every_command_with_its_line() -> None:
    shown = printed(edgeff("--help"))
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", shown, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_every_option_a_meaning(command: str) -> None:
    shown = printed(edgeff(command, "--help"))
    assert shown.startswith(f"Usage: main {command} ")
    parts = re.findall(r"^  (\w+)  ", shown.partition("\nCommands:\n")[2], re.MULTILINE)
    for page in [printed(edgeff(command, part, "--help")) for part in parts] or [shown]:
        assert "--json" in page


def test_the_version_is_that_of_the_package() -> None:
    assert printed(edgeff("--version")) == f"edgeff, version {__version__}\n"


def test_help_on_a_device_takes_less_than_a_third_of_a_second(device_python: Path) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([str(device_python), "-m", "edgeff", "--help"], cwd="/", check=True, capture_output=True)
        return time.perf_counter() - began

    # The best of five: other processes and a cold disk can only make a run slower, never faster than edgeff is.
    assert min(seconds() for _ in range(5)) < 0.3


def test_help_imports_neither_numpy_nor_onnxruntime(run_device: Run) -> None:
    code = (
        "import sys; from edgeff.cli import main; main(['--help'], standalone_mode=False); "
        "print(sorted({'numpy', 'onnxruntime', 'safetensors'} & set(sys.modules)))"
    )
    assert run_device("-c", code).stdout.endswith("[]\n")


# --- inspect ---


def test_inspect_shows_what_goes_in_what_learns_and_what_was_checked(tiny: TinyRun) -> None:
    shown = printed(edgeff("inspect", tiny.artifact))
    digest = open_artifact(tiny.artifact).manifest_sha256
    for line in (
        rf"artifact +{re.escape(str(tiny.artifact))}",
        r"name +har-cnn",
        rf"written by +edgeff {re.escape(__version__)}, artifact format 5",
        rf"manifest +sha256 {digest}",
        r"input +one row is int16 6 x 32",
        r"features +one row is float32 6 x 32",
        rf"classes +3: {', '.join(CLASSES)}",
        r"replay +24 rows travel along",
        r"checked +against torch autograd .+",
        r"block1 +float32 6 x 32 -> float32 8 x 32 +348 .+",
        r"block4 +float32 16 x 8 -> - .+",
        r"inference\.onnx +[\d.]+ KiB",
    ):
        assert re.search(f"^{line}$", shown, re.MULTILINE), line


def test_inspect_prints_json(tiny: TinyRun) -> None:
    found = json.loads(printed(edgeff("inspect", tiny.artifact, "--json")))
    assert found["path"] == str(tiny.artifact)
    assert found["classes"] == list(CLASSES)
    assert [block["name"] for block in found["blocks"]] == ["block1", "block2", "block3", "block4"]
    assert found["replay_rows"] == 24
    assert found["files"]["inference.onnx"] == (tiny.artifact / "inference.onnx").stat().st_size


# --- report ---


def test_report_shows_the_blocks_then_a_device_in_full_then_a_microcontrollers_tensor_bytes(tiny: TinyRun) -> None:
    shown = printed(edgeff("report", tiny.artifact, "--device", "pi-zero-2w", "--device", "stm32h743"))
    parts = shown.removesuffix("\n").split("\n\n")
    assert parts[0] == "har-cnn: training bytes per block"
    assert re.findall(r"^block\d", parts[1], re.MULTILINE) == ["block1", "block2", "block3", "block4"]
    assert re.search(r"^block1  1\.36 KiB  1\.36 KiB +2\.72 KiB  .+ x N$", parts[1], re.MULTILINE)
    assert parts[2].startswith("what each method takes at the least on any device, batch 32; ")
    assert re.findall(r"^(stage|sweep|last-block) ", parts[3], re.MULTILINE) == ["stage", "sweep", "last-block"]
    assert parts.pop(4).startswith("a run keeps its 24 replay rows in memory too: ")
    assert parts[4] == "`edgeff export --baselines` adds back-propagation's rows"
    assert parts[5] == "pi-zero-2w (Raspberry Pi Zero 2 W): budget ~181 MiB, floor 57.2 MiB"
    assert re.search(r"^sweep +yes   \d+ +[\d.]+ MiB +- +- +- +- +~[\d.]+ ms +4 blocks at once", parts[6], re.MULTILINE)
    assert len(re.findall(r"^sweep +block\d", parts[7], re.MULTILINE)) == 4
    assert re.fullmatch(
        r"stm32h743: tensors alone \([\d.]+ KiB at micro-batch 1\) would fit; "
        r"onnxruntime does not run on STM32H743; runtimes that can train something there: AIfES, .+",
        parts[8],
    )


def test_report_on_all_devices_has_a_line_for_each(tiny: TinyRun) -> None:
    shown = printed(edgeff("report", tiny.artifact))
    for name in profile_names():
        assert len(re.findall(rf"^{re.escape(name)}(?: |:)", shown, re.MULTILINE)) == 1, name
    assert re.search(r"^pi-zero-2w +57\.2 MiB  ~181 MiB +fits \d+ +fits \d+ +fits \d+$", shown, re.MULTILINE)
    assert re.search(r"^stm32h743 +1 MiB +[\d.]+ KiB  would fit  ", shown, re.MULTILINE)
    assert "\ngeneric-x86-2core: takes what the machine has: run `edgeff devices --detect` there\n" in shown


def test_report_prints_json_of_every_device(tiny: TinyRun) -> None:
    found = json.loads(printed(edgeff("report", tiny.artifact, "--json")))
    assert found["artifact"] == str(tiny.artifact)
    assert found["batch_size"] == 32
    assert [device["device"] for device in found["devices"]] == list(profile_names())
    by_name = {device["device"]: device for device in found["devices"]}
    zero = by_name["pi-zero-2w"]
    assert zero["budget_bytes"] == 250_000_000 - zero["floor_bytes"]
    for method in zero["methods"]:
        assert method["fits"] == (method["reason"] == "")
        assert 0 < method["planned_bytes"] <= zero["budget_bytes"]
    assert by_name["stm32f746"]["methods"] == []
    assert by_name["stm32f746"]["tensor_bytes"] > 0
    assert "--detect" in by_name["generic-x86-2core"]["reason"]


def test_report_plans_for_another_batch_size(tiny: TinyRun) -> None:
    found = json.loads(printed(edgeff("report", tiny.artifact, "--device", "pi-zero-2w", "--batch-size", 5, "--json")))
    assert found["batch_size"] == 5
    assert all(1 <= method["micro_batch"] <= 5 for method in found["devices"][0]["methods"])
    result = edgeff("report", tiny.artifact, "--batch-size", 0)
    assert result.exit_code == 2
    assert "--batch-size" in result.stderr


def test_a_device_whose_memory_does_not_suffice_is_told_so_with_what_is_needed(tiny: TinyRun, tmp_path: Path) -> None:
    profile = load_profile("pi-zero-2w")
    assert profile.app_ram is not None
    small = replace(profile, app_ram=replace(profile.app_ram, value=60_500_000))
    report, _ = report_on(open_artifact(tiny.artifact), "artifact", [small], None, measure=False)
    (one,) = report.devices
    assert one.device.budget_bytes == 500_000
    for row, least in zip(one.rows, report.least, strict=True):
        assert (row.fits, row.micro_batch, row.planned_bytes) == (False, None, least.planned_bytes)
        assert re.match(r"the run needs [\d,]+ bytes by schedule `\w+`, the budget is 500,000; ", row.reason)
    none = device_of(replace(profile, app_ram=replace(profile.app_ram, value=1_000)))
    assert none.budget_bytes == 0
    assert none.refusal.startswith("the floor alone is ")


def test_report_takes_a_profile_of_ones_own(tiny: TinyRun, tmp_path: Path) -> None:
    own = tmp_path / "my-board.toml"
    catalogue = (resources.files("edgeff.devices") / "profiles" / "pi4-1gb.toml").read_text()
    own.write_text(catalogue.replace("pi4-1gb", "my-board"))
    shown = printed(edgeff("report", tiny.artifact, "--device", own))
    assert re.search(r"^my-board \(.+\): budget ~515 MiB, floor 57\.2 MiB$", shown, re.MULTILINE)
    own.unlink()
    result = edgeff("report", tiny.artifact, "--device", own)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: cannot read device profile `{own}`: ")


def test_a_device_that_is_named_twice_is_shown_once(tiny: TinyRun) -> None:
    twice = ("--device", "pi4-1gb", "--device", "pi4-1gb")
    assert len(json.loads(printed(edgeff("report", tiny.artifact, *twice, "--json")))["devices"]) == 1


def test_report_writes_one_html_file_and_says_so(tiny: TinyRun, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    shown = printed(edgeff("report", tiny.artifact, "--html", page))
    assert re.fullmatch(rf"{re.escape(str(page))}: {len(profile_names())} devices, [\d.]+ [KM]iB\n", shown)
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert text.count('class="device card"') == len(profile_names())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    found = json.loads(printed(edgeff("report", tiny.artifact, "--device", "pi4-1gb", "--html", page, "--json")))
    assert [device["device"] for device in found["devices"]] == ["pi4-1gb"]
    assert page.read_text().count('class="device card"') == 1


def test_an_html_file_that_cannot_be_written_is_refused_before_anything_is_planned(
    tiny: TinyRun, tmp_path: Path
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("precious")
    for path, message, hint in (
        (tmp_path / "none" / "r.html", f"there is no folder `{tmp_path / 'none'}`", "make the folder first"),
        (tmp_path, "it is a folder", "name a file, for example `--html report.html`"),
    ):
        result = edgeff("report", tmp_path / "no-artifact", "--html", path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"Error: cannot write `{path}`: {message}\n\nhint: {hint}\n"
    result = edgeff("report", tiny.artifact, "--html", other)
    assert result.stderr == f"Error: `{other}` exists and is not an HTML file\n\nhint: give `--html` another name\n"
    assert other.read_text() == "precious"


def test_measure_takes_the_budget_and_batch_of_the_report_and_each_plan_once(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def measure_method(path: Path, method: str, *, batch_size: int, budget_bytes: int) -> Measured:
        asked.append((path, method, batch_size, budget_bytes))
        return Measured(method, "onnxruntime 1.0", batch_size, 16, 70 * 2**20, 6 * 2**20, 8 * 2**20, 50.0)

    monkeypatch.setattr(measure, "measure_method", measure_method)
    devices = ("--device", "pi-zero-2w", "--device", "pi5-8gb", "--device", "stm32h743")
    result = edgeff("report", tiny.artifact, *devices, "--batch-size", 16, "--measure", "--json")
    assert result.exit_code == 0, result.output
    budget = 250_000_000 - 60_000_000
    assert asked == [(tiny.artifact, method, 16, budget) for method in ("stage", "sweep", "last-block")]
    zero, larger, micro = json.loads(result.stdout)["devices"]
    for device in (zero, larger):
        assert [(method["measured_bytes"], method["ratio"]) for method in device["methods"]] == [(6 * 2**20, 0.75)] * 3
    assert micro["methods"] == []


@pytest.mark.slow
def test_measure_sets_what_was_measured_beside_the_plan(tiny: TinyRun) -> None:
    result = edgeff("report", tiny.artifact, "--device", "pi-zero-2w", "--device", "stm32h743", "--measure", "--json")
    assert result.exit_code == 0, result.output
    zero, micro = json.loads(result.stdout)["devices"]
    for method in zero["methods"]:
        assert method["not_measured"] == ""
        assert method["measured_bytes"] == method["measured"]["training_bytes"] > 0
        assert method["measured"]["floor_bytes"] > 10 * 2**20
        assert method["measured"]["planned_bytes"] == method["planned_bytes"]
        assert method["ratio"] == pytest.approx(
            method["measured_bytes"] / method["measured"]["planned_bytes"], abs=1e-3
        )
    assert micro["methods"] == []


# --- devices ---


def test_devices_lists_the_catalogue_one_line_each() -> None:
    lines = printed(edgeff("devices")).splitlines()
    assert lines[0].split() == ["id", "class", "RAM", "app", "RAM", "CPU", "trains", "on", "onnxruntime"]
    assert sorted(line.split()[0] for line in lines[1:]) == sorted(profile_names())


def test_devices_shows_one_with_the_source_of_every_figure() -> None:
    shown = printed(edgeff("devices", "pi-zero-2w"))
    assert shown.startswith("pi-zero-2w: Raspberry Pi Zero 2 W\n")
    assert re.search(r"^app RAM +250 MB +estimate +\w", shown, re.MULTILINE)
    assert re.search(r"^trains +yes, on CPU$", shown, re.MULTILINE)


def test_devices_prints_json_of_all_or_of_one() -> None:
    everything = json.loads(printed(edgeff("devices", "--json")))
    assert [profile["id"] for profile in everything] == list(profile_names())
    one = json.loads(printed(edgeff("devices", "pi-zero-2w", "--json")))
    assert one == next(profile for profile in everything if profile["id"] == "pi-zero-2w")
    assert one["app_ram"]["value"] == 250_000_000
    assert one["can_train"] is True


def test_devices_detects_this_machine() -> None:
    found = json.loads(printed(edgeff("devices", "--detect", "--json")))
    assert set(found) == {"machine", "unsupported", "profile", "reason", "differences"}
    shown = printed(edgeff("devices", "--detect"))
    ram = found["machine"]["ram_bytes"]
    if ram is not None:
        assert re.search(rf"^RAM +{re.escape(format_bytes(ram))}$", shown, re.MULTILINE)
    assert re.search(rf"^profile +{found['profile'] or 'none'}\b", shown, re.MULTILINE)
