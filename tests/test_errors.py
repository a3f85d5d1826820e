"""Wrong inputs through the command line: one line that says what is wrong, a hint, the exit code, and nothing lost."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from click.testing import Result
from tiny_run import CLASSES, TinyRun, edgeff, wave_arrays

from edgeff import __version__

Run = Callable[..., CompletedProcess[str]]


def refused(result: Result | CompletedProcess[str], exit_code: int = 1) -> tuple[str, str]:
    """The message and the hint of a command that failed as it should."""
    got = result.exit_code if isinstance(result, Result) else result.returncode
    assert got == exit_code, result
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    found = re.fullmatch(r"Error: (.+)\n\nhint: (.+)\n", result.stderr)
    assert found, result.stderr
    return found[1], found[2]


def adapt(tiny: TinyRun, out: Path, *more: object, data: object = None, artifact: object = None) -> Result:
    return edgeff(
        "train-on-device", artifact or tiny.artifact, "--data", data or tiny.own, "--out", out, "--epochs", 1, *more
    )


def saved(path: Path, **changed: object) -> Path:
    """A data set of 24 rows of which something is not as it should be; None leaves an array out."""
    arrays = {**wave_arrays(24, seed=2), **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.fixture
def copied(tiny: TinyRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.artifact, tmp_path / "copy"))


# --- artifacts ---


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_a_missing_artifact_is_refused(tmp_path: Path, command: str) -> None:
    assert refused(edgeff(command, tmp_path / "none")) == (
        f"`{tmp_path}/none` does not exist",
        "`edgeff export` writes an artifact",
    )


def test_a_truncated_file_in_an_artifact_is_refused(copied: Path) -> None:
    weights = copied / "weights.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-5])
    message, hint = refused(edgeff("inspect", copied))
    assert message == f"`weights.safetensors` in `{copied}` must have {size} bytes, got {size - 5}"
    assert hint


@pytest.mark.parametrize("file", ["weights.safetensors", "inference.onnx", "blocks/block2.step.onnx"])
def test_one_changed_byte_in_an_artifact_is_refused_by_every_command(
    tiny: TinyRun, copied: Path, tmp_path: Path, file: str
) -> None:
    content = bytearray((copied / file).read_bytes())
    content[-1] ^= 1
    (copied / file).write_bytes(content)
    out = tmp_path / "out"
    for result in (
        edgeff("inspect", copied),
        edgeff("report", copied),
        adapt(tiny, out, artifact=copied),
        edgeff("evaluate", copied, "--data", tiny.own),
        edgeff("finalize", copied, "--out", out),
    ):
        message, _ = refused(result)
        assert message.startswith(f"`{file}` in `{copied}` must have sha256 ")
    assert not out.exists()


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\3\4 and then the download broke off")
    assert refused(edgeff("inspect", path))[0] == f"`{path}` is no artifact: neither a folder nor a whole zip"


def test_an_artifact_of_a_newer_format_is_refused(copied: Path) -> None:
    manifest = copied / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 6}))
    message, hint = refused(edgeff("inspect", copied))
    assert message.endswith(
        f": artifact format 6 was written by edgeff {__version__}, this edgeff {__version__} reads format 5"
    )
    assert hint


# --- data ---


def test_rows_of_another_shape_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", x=np.zeros((24, 3, 32), np.int16))
    message, _ = refused(adapt(tiny, tmp_path / "out", data=data))
    assert message == "raw rows have shape (3, 32) and dtype int16, needed (6, 32) and int16"
    assert not (tmp_path / "out").exists()


def test_rows_of_another_dtype_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", x=np.zeros((24, 6, 32), np.float32))
    message, _ = refused(edgeff("evaluate", tiny.artifact, "--data", data))
    assert message == "raw rows have shape (6, 32) and dtype float32, needed (6, 32) and int16"


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range_is_refused_by_its_row(tiny: TinyRun, tmp_path: Path, label: int) -> None:
    y = np.arange(24) % 3
    y[7] = label
    data = saved(tmp_path / "d.npz", y=y, classes=None)
    message, _ = refused(adapt(tiny, tmp_path / "out", data=data))
    needed = "0..2" if label > 0 else "0 or more"
    assert message == f"`{data}` has label {label} in row 7, needed {needed}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_by_its_row(tiny: TinyRun, tmp_path: Path, value: float) -> None:
    x = np.zeros((24, 6, 32), np.float32)
    x[5, 2, 3] = value
    data = saved(tmp_path / "d.npz", x=x)
    message, hint = refused(adapt(tiny, tmp_path / "out", data=data))
    assert message == f"`{data}` has NaN or Inf in row 5"
    assert hint.startswith("leave such rows out")


def test_data_without_rows_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    nothing = np.zeros(0, np.int64)
    data = saved(tmp_path / "d.npz", x=np.zeros((0, 6, 32), np.int16), y=nothing, groups=nothing, sequence=nothing)
    message, _ = refused(adapt(tiny, tmp_path / "out", data=data))
    assert message == f"`{data}` has no rows: shape (0, 6, 32) with 0 labels"


def test_data_of_other_classes_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    data = saved(tmp_path / "d.npz", classes=np.array(["cat", "dog", "cow"]))
    message, _ = refused(adapt(tiny, tmp_path / "out", data=data))
    assert (
        message == f"`{data}` has the classes `cat`, `dog`, `cow`, needed {', '.join(f'`{name}`' for name in CLASSES)}"
    )


def test_an_unknown_data_set_is_refused_with_near_names(tiny: TinyRun, tmp_path: Path) -> None:
    message, hint = refused(adapt(tiny, tmp_path / "out", data="fashion-mnits"))
    assert message == "`fashion-mnits` is neither a file nor a known data set"
    assert "did you mean `fashion-mnist`" in hint


def test_a_known_data_set_that_is_not_there_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    message, _ = refused(adapt(tiny, tmp_path / "out", "--data-dir", tmp_path, data="mnist:test"))
    assert message.startswith(f"`mnist` is not in `{tmp_path}`")


# --- devices and budgets ---


@pytest.mark.parametrize("command", ["report", "train-on-device"])
def test_an_unknown_device_is_refused_with_near_names(tiny: TinyRun, tmp_path: Path, command: str) -> None:
    more = () if command == "report" else ("--data", tiny.own, "--out", tmp_path / "out")
    message, hint = refused(edgeff(command, tiny.artifact, "--device", "pi-zero-2", *more))
    assert message == "there is no device profile `pi-zero-2`"
    assert "`pi-zero-2w`" in hint


def test_a_microcontroller_is_refused_with_what_runs_there(tiny: TinyRun, tmp_path: Path) -> None:
    message, hint = refused(adapt(tiny, tmp_path / "out", "--device", "stm32h743"))
    assert message.startswith("edgeff cannot train on `stm32h743`: onnxruntime does not run on STM32H743; ")
    assert "AIfES" in message
    assert "`edgeff report`" in hint


def test_a_budget_that_cannot_hold_is_refused_with_the_one_that_works_and_that_one_works(
    tiny: TinyRun, tmp_path: Path, run_device: Run
) -> None:
    # In processes of their own: what training takes is measured, and a test process is no clean measure.
    def train(budget: str) -> CompletedProcess[str]:
        command = ("-m", "edgeff", "train-on-device", str(tiny.artifact), "--data", str(tiny.own))
        return run_device(
            *command, "--out", str(tmp_path / "out"), "--epochs", "1", "--threads", "1", "--budget", budget
        )

    message, hint = refused(train("64KiB"))
    found = re.fullmatch(
        r"the run needs ([\d,]+) bytes, the budget is 65,536; most goes to block `block\d`: .+", message
    )
    assert found
    assert found[1] in hint
    assert not (tmp_path / "out").exists()
    needed = int(found[1].replace(",", ""))
    refused(train(str(needed - 1)))
    assert not (tmp_path / "out").exists()
    result = train(str(needed))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("0", "a budget of 0 bytes holds nothing"),
        ("0.1", "a budget of 0 bytes holds nothing"),
        ("lots", "`lots` is not a number of bytes"),
        ("-5MiB", "`-5MiB` is not a number of bytes"),
        ("32 MoB", "`32 MoB` is not a number of bytes"),
        ("", "`` is not a number of bytes"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(tiny: TinyRun, tmp_path: Path, budget: str, message: str) -> None:
    got, hint = refused(adapt(tiny, tmp_path / "out", "--budget", budget))
    assert got == message
    assert "32MiB" in hint
    assert not (tmp_path / "out").exists()


def test_a_budget_beyond_that_of_the_device_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    # A large one: a test process, torch included, may already take more than a small device has.
    message, hint = refused(adapt(tiny, tmp_path / "out", "--device", "pi5-16gb", "--budget", "900GiB"))
    assert message.startswith("a budget of 900 GiB exceeds that of `pi5-16gb`: ")
    assert "`--budget " in hint


# --- settings ---


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epochs", 0, "a run of 0 epochs trains nothing, needed 1 or more"),
        ("--batch-size", 0, "a batch of 0 rows cannot be trained on, needed 1 or more"),
        ("--learning-rate", 0, "the learning rate must be above 0, got `0.0`"),
        ("--learning-rate", "nan", "the learning rate must be above 0, got `nan`"),
        ("--replay-fraction", 1, "the replay fraction must be from 0 to below 1, got `1.0`"),
        ("--guard-fraction", 1, "the guard fraction must be from 0 to below 1, got `1.0`"),
        ("--seed", -1, "the seed must be 0 or more, got `-1`"),
        ("--threads", 0, "`0` threads cannot run anything, needed 1 or more"),
        ("--blocks", "block1,block9", "the artifact has no block `block9`"),
        ("--blocks", ",", "no block is to be trained, needed 1 or more"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_before_anything_is_written(
    tiny: TinyRun, tmp_path: Path, option: str, value: object, message: str
) -> None:
    assert refused(adapt(tiny, tmp_path / "out", option, value))[0] == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("inspect",),
        ("evaluate", "artifact"),
        ("evaluate", "artifact", "--data", "d", "--micro-batch", "0"),
        ("devices", "pi4-1gb", "--detect"),
        ("train-on-device", "artifact", "--data", "d", "--out", "o", "--epochs", "many"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    result = edgeff(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "\nError: " in result.stderr
    assert "--help" in result.stderr


# --- what is not installed ---


def without(tmp_path: Path, module: str) -> dict[str, str]:
    """An environment whose Python does not find a module that is installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {module!r}:\n"
        f"            raise ModuleNotFoundError('No module named {module}', name={module!r})\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_without_onnxruntime_the_extra_that_has_it_is_named(tiny: TinyRun, tmp_path: Path, run_device: Run) -> None:
    arguments = ("-m", "edgeff", "evaluate", str(tiny.artifact), "--data", str(tiny.own))
    message, hint = refused(run_device(*arguments, env=without(tmp_path, "onnxruntime")))
    assert "onnxruntime" in message
    assert "edgeff[device]" in hint


def test_showing_commands_need_no_onnxruntime(tiny: TinyRun, tmp_path: Path, run_device: Run) -> None:
    environment = without(tmp_path, "onnxruntime")
    for arguments in (("inspect", tiny.artifact), ("report", tiny.artifact), ("devices",), ("devices", "--detect")):
        result = run_device("-m", "edgeff", *map(str, arguments), env=environment)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["export", "pretrain"])
def test_on_a_device_pretraining_and_export_name_the_extra_they_need(
    tiny: TinyRun, tmp_path: Path, run_device: Run, command: str
) -> None:
    arguments = [str(tiny.run)] if command == "export" else ["--preset", "mlp", "--data", str(tiny.own)]
    message, hint = refused(run_device("-m", "edgeff", command, *arguments, "--out", str(tmp_path / "out")))
    assert re.fullmatch(r"this command needs `(torch|onnx)`, which is not installed", message)
    assert hint == 'run `pip install "edgeff[workstation]"`'
    assert not (tmp_path / "out").exists()


# --- where results go ---


def test_what_is_there_already_is_left_alone(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("kept")
    for result in (
        adapt(tiny, out),
        edgeff("export", tiny.run, "--out", out),
        edgeff("finalize", tiny.artifact, "--out", out),
    ):
        assert refused(result)[0] == f"`{out}` exists already"
    assert refused(pretrained(tiny, tiny.run))[0] == f"`{tiny.run}` holds a run already"
    assert [path.name for path in out.iterdir()] == ["precious"]


def pretrained(tiny: TinyRun, out: Path, *more: object, network: tuple[object, ...] = ()) -> Result:
    chosen = network or ("--preset", "har-cnn", "--input-shape", "6,32", "--width", 0.25)
    return edgeff("pretrain", *chosen, "--data", tiny.own, "--out", out, "--epochs", 1, *more)


def test_a_folder_that_cannot_be_made_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    out = file / "out"
    for result in (
        adapt(tiny, out),
        edgeff("finalize", tiny.artifact, "--out", out),
        edgeff("export", tiny.run, "--out", out),
        pretrained(tiny, out),
    ):
        message, _ = refused(result)
        assert message.startswith(("cannot write ", "cannot write into "))
        assert "not a directory" in message.lower() or "file exists" in message.lower()
    assert file.read_text() == "kept"


# --- runs ---


@pytest.fixture
def run_folder(tiny: TinyRun, tmp_path: Path) -> Path:
    """A run as it is after its first checkpoint: not finished."""
    out = tmp_path / "run"
    assert adapt(tiny, out).exit_code == 0
    (out / "result.json").unlink()
    return out


def test_weights_of_another_artifact_are_refused(tiny: TinyRun, run_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    assert edgeff("export", tiny.run, "--out", other, "--batch-size", 16).exit_code == 0
    for result in (
        edgeff("evaluate", other, "--data", tiny.own, "--run", run_folder),
        edgeff("finalize", other, "--run", run_folder, "--out", tmp_path / "m.onnx"),
    ):
        assert refused(result)[0] == f"`{run_folder}/best.safetensors` belongs to another artifact"
    assert not (tmp_path / "m.onnx").exists()
    message, hint = refused(adapt(tiny, run_folder, "--resume", artifact=other))
    assert message == f"`{run_folder}` cannot be gone on with: its artifact differs"
    assert "run.json" in hint


def test_a_folder_that_is_no_run_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    message, _ = refused(edgeff("evaluate", tiny.artifact, "--data", tiny.own, "--run", tmp_path))
    assert message == f"`{tmp_path}` has no weights of a run yet"
    assert refused(edgeff("export", tmp_path, "--out", tmp_path / "a"))[0].startswith(
        f"`{tmp_path}` is not a run folder"
    )
    message, _ = refused(adapt(tiny, tmp_path / "none", "--resume"))
    assert message == f"there is no run to go on with at `{tmp_path}/none`"


def test_resuming_with_other_settings_or_data_is_refused(tiny: TinyRun, run_folder: Path) -> None:
    message, _ = refused(adapt(tiny, run_folder, "--resume", "--seed", 5))
    assert message == f"`{run_folder}` cannot be gone on with: its setting `seed` was 0, and now it is 5"
    message, _ = refused(adapt(tiny, run_folder, "--resume", data=tiny.train))
    assert message == f"`{run_folder}` cannot be gone on with: its data differs"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tiny: TinyRun, run_folder: Path) -> None:
    for path in run_folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    message, _ = refused_after_notes(adapt(tiny, run_folder, "--resume"))
    assert message == f"no checkpoint in `{run_folder}` is whole"


def refused_after_notes(result: Result) -> tuple[str, str]:
    """As `refused`, after lines of progress on stderr."""
    assert result.exit_code == 1
    found = re.search(r"^Error: (.+)\n\nhint: (.+)\n\Z", result.stderr, re.MULTILINE)
    assert found, result.stderr
    return found[1], found[2]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tiny: TinyRun, tmp_path: Path) -> None:
    adapt(tiny, tmp_path / "whole", "--epochs", 3)
    out = tmp_path / "run"
    stopped = adapt(tiny, out, "--epochs", 3, "--checkpoint-steps", 1, "--max-steps", 3)
    assert stopped.exit_code == 75, stopped.stderr
    checkpoint = out / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    result = adapt(tiny, out, "--epochs", 3, "--checkpoint-steps", 1, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "warning: " in result.stderr
    assert "the checkpoint before it is used" in result.stderr
    assert (out / "best.safetensors").read_bytes() == (tmp_path / "whole" / "best.safetensors").read_bytes()


def test_where_there_is_no_memory_a_command_says_so(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("edgeff.runtime.evaluate.evaluate", none)
    message, hint = refused(edgeff("evaluate", tiny.artifact, "--data", tiny.own))
    assert message == "the system has not enough memory for this"
    assert "--micro-batch" in hint


# --- pretraining ---


def test_an_unknown_preset_is_refused_with_near_names(tiny: TinyRun, tmp_path: Path) -> None:
    message, hint = refused(pretrained(tiny, tmp_path / "out", network=("--preset", "har-cn")))
    assert message == "unknown preset `har-cn`"
    assert "`har-cnn`" in hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("code", "function", "message"),
    [
        ("def build():\n    return 1\n", "build", "must return a `LocalNetwork`, got `int`"),
        ("def build():\n    raise KeyError('x')\n", "build", "failed: KeyError: 'x'"),
        ("def build(:\n", "build", "cannot be imported: SyntaxError"),
        ("", "build", "has no function `build`"),
    ],
)
def test_a_bad_factory_is_refused(tiny: TinyRun, tmp_path: Path, code: str, function: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    got, _ = refused(pretrained(tiny, tmp_path / "out", network=("--model", f"{file}:{function}")))
    assert message in got
    assert not (tmp_path / "out").exists()


def test_a_factory_without_a_function_or_a_file_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    message, _ = refused(pretrained(tiny, tmp_path / "out", network=("--model", "mine.py")))
    assert message == "`mine.py` is not of the form `path/to/file.py:function`"
    message, _ = refused(pretrained(tiny, tmp_path / "out", network=("--model", f"{tmp_path}/none.py:build")))
    assert message == f"no file `{tmp_path}/none.py`"


@pytest.mark.parametrize("network", [("--width", "1"), ("--preset", "mlp", "--model", "a.py:b")])
def test_preset_and_model_exclude_each_other_and_one_is_needed(
    tiny: TinyRun, tmp_path: Path, network: tuple[str, ...]
) -> None:
    result = pretrained(tiny, tmp_path / "out", network=network)
    assert result.exit_code == 2
    assert "give either --preset or --model" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--epochs", 0), ("--batch-size", 0), ("--learning-rate", 0), ("--input-shape", "six")]
)
def test_a_pretraining_setting_that_makes_no_sense_is_refused(
    tiny: TinyRun, tmp_path: Path, option: str, value: object
) -> None:
    message, _ = refused(pretrained(tiny, tmp_path / "out", option, value))
    assert f"`{value}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--epochs", 0), ("--batch-size", 0), ("--learning-rate", 0), ("--momentum", 0.9)]
)
def test_an_export_setting_that_makes_no_sense_is_refused(
    tiny: TinyRun, tmp_path: Path, option: str, value: object
) -> None:
    message, _ = refused(edgeff("export", tiny.run, "--out", tmp_path / "out", option, value))
    assert option[2:].replace("-", "_") in message.replace(" ", "_")
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_of_pretraining_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny.run, tmp_path / "run"))
    (run / "checkpoint.pt").write_bytes(b"not a checkpoint")
    message, hint = refused(pretrained(tiny, run, "--resume"))
    assert "checkpoint.pt" in message
    assert hint
