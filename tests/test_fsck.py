"""`edgeff fsck`: whole, damaged and left-over files, and what `--resume` would do, which it then does."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_run import TinyRun, edgeff

from edgeff.errors import RunError
from edgeff.lock import locked
from edgeff.runtime import fsck as fsck_module
from edgeff.runtime.fsck import examine


def train(tiny: TinyRun, out: Path, *more: object):
    names = ("train-on-device", tiny.artifact, "--data", tiny.own, "--out", out, "--epochs", 2, "--threads", 1)
    return edgeff(*names, "--checkpoint-steps", 2, *more)


@pytest.fixture(scope="module")
def runs(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and two that were stopped, in a sweep and in stages."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(tiny, folder / "finished").exit_code == 0
    assert train(tiny, folder / "sweep", "--max-steps", 9).exit_code == 75
    assert (
        train(tiny, folder / "stage", "--schedule", "stage", "--features", "float32", "--max-steps", 40).exit_code == 75
    )
    return folder


@pytest.fixture
def copy(runs: Path, tmp_path: Path):
    def make(name: str) -> Path:
        return Path(shutil.copytree(runs / name, tmp_path / name))

    return make


def test_a_finished_run_is_told_of_file_by_file(copy) -> None:
    result = edgeff("fsck", copy("finished"))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["file", "size", "state", "what"]
    names = ["best.safetensors", "checkpoint.safetensors", "previous.safetensors", "result.json", "run.json"]
    assert [line.split()[0] for line in lines[2:7]] == names
    assert all(" whole " in line for line in lines[2:7])
    assert lines[7:] == ["the run is finished"]
    assert result.stderr == ""


def test_a_run_that_was_stopped_goes_on_from_where_it_says(tiny: TinyRun, copy) -> None:
    run = copy("sweep")
    result = edgeff("fsck", run)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "`--resume` goes on from `checkpoint.safetensors`, after step 9"
    found = json.loads(edgeff("fsck", run, "--json").stdout)
    assert (found["next"], found["source"], found["in_use"]) == ("goes on", "checkpoint.safetensors", False)
    assert found["position"]["step"] == 9
    assert {file["state"] for file in found["files"]} == {"whole"}
    assert train(tiny, run, "--resume").exit_code == 0


def test_blocks_and_features_of_stages_are_told_of(copy) -> None:
    found = {file.name: (file.state, file.note) for file in examine(copy("stage")).files}
    assert any(name.startswith("block.") and what == ("whole", "a finished block") for name, what in found.items())
    assert any(name.endswith(".bin") and what[0] == "spare" for name, what in found.items())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_finished_block_that_is_lost_is_told_of_and_not_replaced_by_what_the_artifact_has(
    tiny: TinyRun, copy, spoil
) -> None:
    run = copy("stage")
    spoil(run / "block.block1.safetensors")
    result = edgeff("fsck", run)
    assert "a block that is finished is missing or damaged" in result.stdout + result.stderr
    resumed = train(tiny, run, "--schedule", "stage", "--features", "float32", "--resume")
    assert resumed.exit_code == 1
    assert "what block `block1` had learnt is lost" in resumed.stderr


def test_a_file_that_goes_while_it_is_looked_at_is_no_damage(copy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy("sweep")
    gone = run / "features.block1.bin"
    gone.touch()
    look = fsck_module._state

    def racing(folder: object, path: Path, found: object) -> object:
        gone.unlink(missing_ok=True)
        return look(folder, path, found)  # type: ignore[arg-type]

    monkeypatch.setattr(fsck_module, "_state", racing)
    found = examine(run)
    assert "features.block1.bin" not in {file.name for file in found.files}
    assert not found.damaged


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_gone_on_from(tiny: TinyRun, copy) -> None:
    run = copy("sweep")
    damage(run / "checkpoint.safetensors")
    result = edgeff("fsck", run)
    assert result.exit_code == 1
    assert "its checksum does not fit" in result.stdout
    assert result.stdout.splitlines()[-1] == "`--resume` goes on from `previous.safetensors`, after step 8"
    assert train(tiny, run, "--resume").exit_code == 0


def as_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda run: (run / "run.json").write_text("{"), "`run.json` is missing or damaged"),
        (lambda run: (run / "run.json").unlink(), "`run.json` is missing or damaged"),
        (lambda run: [damage(run / f"{name}.safetensors") for name in ("checkpoint", "previous")], "no checkpoint is"),
        (
            lambda run: [
                *((run / f"{name}.safetensors").unlink() for name in ("checkpoint", "previous")),
                (run / "best.5.safetensors").write_bytes(next(run.glob("best.*")).read_bytes()),
            ],
            "its checkpoints are missing",
        ),
        (
            lambda run: [as_a_pipe(run / f"{name}.safetensors") for name in ("checkpoint", "previous")],
            "no checkpoint is whole",
        ),
        (lambda run: as_a_pipe(run / "run.json"), "`run.json` is missing or damaged"),
        (lambda run: (run / "result.json").write_text("{}"), "`result.json` is damaged"),
        (
            lambda run: [path.unlink() for path in run.glob("best.*")],
            "the best weights so far are missing or damaged",
        ),
        (
            lambda run: [damage(path) for path in run.glob("best.*")],
            "the best weights so far are missing or damaged",
        ),
    ],
)
def test_a_run_that_cannot_be_gone_on_with_is_lost_and_why(tiny: TinyRun, copy, spoil, why: str) -> None:
    run = copy("sweep")
    spoil(run)
    result = edgeff("fsck", run)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith(f"the run cannot be gone on with: {why}")
    assert train(tiny, run, "--resume").exit_code == 1


def test_a_finished_run_without_its_weights_is_lost(tiny: TinyRun, copy) -> None:
    run = copy("finished")
    (run / "best.safetensors").unlink()
    assert examine(run).next == "lost"
    result = train(tiny, run, "--resume")
    assert result.exit_code == 1
    assert "is finished, but its weights are lost" in result.stderr


@pytest.mark.parametrize("spoil", [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_damage_and_is_passed_over(tiny: TinyRun, copy, spoil) -> None:
    run = copy("sweep")
    (run / "checkpoint.safetensors").unlink()
    spoil(run / "checkpoint.safetensors")
    assert [file.note for file in examine(run).damaged] == [f"`{run / 'checkpoint.safetensors'}` is no file"]
    assert "after step 8" in edgeff("fsck", run).stdout
    if not (run / "checkpoint.safetensors").is_dir():  # a folder's name cannot be taken by a file
        assert train(tiny, run, "--resume").exit_code == 0


def test_what_an_interruption_left_and_what_is_not_the_run_s_is_no_damage(copy) -> None:
    run = copy("sweep")
    (run / ".checkpoint.safetensors.tmp").write_bytes(b"half")
    (run / "notes.txt").write_text("mine")
    (run / "\x1b[2Jx").write_text("")
    found = examine(run)
    states = {file.name: file.state for file in found.files}
    assert states[".checkpoint.safetensors.tmp"] == "spare"
    assert states["notes.txt"] == "unknown"
    assert not found.damaged
    assert "\x1b" not in edgeff("fsck", run).stdout


def test_a_file_of_another_artifact_is_told_of(copy, runs: Path) -> None:
    run = copy("sweep")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "manifest_sha256": "0" * 64}))
    assert all("belongs to another artifact" in file.note for file in examine(run).damaged)
    assert examine(run).damaged


def test_a_run_that_has_not_begun_and_one_that_is_in_use(copy, tmp_path: Path) -> None:
    (tmp_path / "blank").mkdir()
    assert edgeff("fsck", tmp_path / "blank").stdout == "the run has no checkpoint yet: `--resume` begins it again\n"
    run = copy("sweep")
    with locked(run / "run.json", what="it"):
        assert "a process works in this folder now" in edgeff("fsck", run).stdout


def test_what_is_no_run_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^there is no folder `.*none`$"):
        examine(tmp_path / "none")
    result = edgeff("fsck", tiny.run)
    assert result.exit_code == 1
    assert "is a run of `edgeff pretrain`" in result.stderr
