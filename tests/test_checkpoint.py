"""The files of a run: written whole, checked whole, and enough to go on bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from tiny_artifact import Tiny, initial_weights, make_rows, write_tiny

from edgeff.artifact import open_artifact
from edgeff.errors import RunError
from edgeff.lock import is_locked
from edgeff.optimizer import moment_factors
from edgeff.runtime import checkpoint as checkpoint_module
from edgeff.runtime.checkpoint import BEST, CHECKPOINT, PREVIOUS, Checkpoint, RunFolder, read_checkpoint, read_weights
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.network import open_network
from edgeff.runtime.tensor_stream import read_all_tensors, read_facts, read_tensors_into, write_tensors
from edgeff.runtime.trainer import Position

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def engine():
    return OnnxRuntime(1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("artifact") / "tiny")


@pytest.fixture
def network(artifact, engine):
    found = open_network(artifact, engine, trained=["block1", "block2"])
    for seed, array in enumerate(found.resident().values()):
        array[...] = np.random.default_rng(seed).normal(size=array.shape)
    return found


@pytest.fixture
def folder(tmp_path):
    found = RunFolder(tmp_path / "run")
    found.create({"settings": {}})
    return found


def mark(artifact, step=7, **other):
    facts = {
        "manifest_sha256": artifact.manifest_sha256,
        "position": Position(2, 3, step),
        "settings": {"seed": 1},
        "guard": {"history": [0.5]},
    }
    return Checkpoint(**{**facts, **other})


def all_arrays(network):
    return network.resident()


def copies(network):
    return {name: array.copy() for name, array in all_arrays(network).items()}


# --- the file format ---


def test_the_safetensors_library_reads_what_was_written(tmp_path):
    tensors = {
        "a.w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "state/velocity/a.w": np.zeros((2, 3), np.float32),
        "scalar": np.array(3, np.int64),
        "none": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "file"
    with path.open("wb") as stream:
        write_tensors(stream, tensors, {"step": 3})
    found = safetensors.numpy.load_file(path)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with safetensors.safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["edgeff"]) == {"step": 3}
    assert read_facts(path) == {"step": 3}
    for name, array in read_all_tensors(path).items():
        np.testing.assert_array_equal(array, tensors[name])


def test_writing_makes_no_copy_of_the_tensors(tmp_path):
    import tracemalloc

    big = np.zeros(4_000_000, np.float32)
    with (tmp_path / "file").open("wb") as stream:
        tracemalloc.start()
        write_tensors(stream, {"big": big}, {})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < big.nbytes / 20


def written(path):
    with path.open("wb") as stream:
        write_tensors(stream, {"a": np.arange(5, dtype=np.float32), "b": np.ones(3, np.float32)}, {"step": 3})
    return path.read_bytes()


@pytest.fixture(scope="module")
def file_and_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "file"
    return path, written(path)


@settings(max_examples=200)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_bit_that_flipped_is_noticed_or_changes_nothing_that_is_read(file_and_bytes, place, bit):
    path, data = file_and_bytes
    place %= len(data)
    path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
    arrays = {"a": np.zeros(5, np.float32), "b": np.zeros(3, np.float32)}
    try:
        facts = read_facts(path)
    except RunError:
        return
    read_tensors_into(path, arrays)
    assert facts == {"step": 3}
    np.testing.assert_array_equal(arrays["a"], np.arange(5))
    np.testing.assert_array_equal(arrays["b"], np.ones(3))


@given(length=st.integers(0, 10**6))
def test_a_file_that_was_cut_short_is_noticed(file_and_bytes, length):
    path, data = file_and_bytes
    path.write_bytes(data[: length % len(data)])
    with pytest.raises(RunError, match="is damaged"):
        read_facts(path)


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path):
    path = tmp_path / "file"
    written(path)
    with pytest.raises(RunError, match=r"^`b` in `.*file` must be float32 \[4\], got float32 \[3\]$"):
        read_tensors_into(path, {"b": np.zeros(4, np.float32)})
    with pytest.raises(RunError, match=r"^`.*file` lacks the tensor `c`$"):
        read_tensors_into(path, {"c": np.zeros(4, np.float32)})


# --- checkpoints ---


def test_a_checkpoint_brings_back_arrays_and_position(artifact, engine, network, folder):
    folder.write_checkpoint(network, mark(artifact))
    other = open_network(artifact, engine, trained=["block1", "block2"])
    found, warnings = folder.load_checkpoint(other)
    assert found == mark(artifact)
    assert warnings == []
    for name, array in all_arrays(other).items():
        np.testing.assert_array_equal(array, all_arrays(network)[name])


def test_without_a_checkpoint_there_is_none_to_load(network, folder):
    assert folder.load_checkpoint(network) == (None, [])


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-4] + b"abcd"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_warning(artifact, engine, network, folder, damage):
    folder.write_checkpoint(network, mark(artifact, step=7))
    before = copies(network)
    network.memories[0].arrays["parameter.w"].fill(9)
    folder.write_checkpoint(network, mark(artifact, step=8))
    newest = folder.path / CHECKPOINT
    newest.write_bytes(damage(newest.read_bytes()))
    other = open_network(artifact, engine, trained=["block1", "block2"])
    found, (warning,) = folder.load_checkpoint(other)
    assert found.position.step == 7
    assert "`" + str(newest) + "` is damaged" in warning
    assert warning.endswith("; the checkpoint before it is used")
    for name, array in all_arrays(other).items():
        np.testing.assert_array_equal(array, before[name])


def test_when_all_checkpoints_are_damaged_the_run_cannot_go_on(artifact, network, folder):
    for step in (7, 8):
        folder.write_checkpoint(network, mark(artifact, step=step))
    for name in (CHECKPOINT, PREVIOUS):
        (folder.path / name).write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"^no checkpoint in `.*run` is whole$") as caught:
        folder.load_checkpoint(network)
    assert caught.value.hint


def test_a_checkpoint_of_another_artifact_is_refused(artifact, engine, network, folder, tmp_path):
    folder.write_checkpoint(network, mark(artifact))
    other = write_tiny(tmp_path / "other", weights=initial_weights(Tiny(), seed=1))
    assert other.manifest_sha256 != artifact.manifest_sha256
    with pytest.raises(RunError, match=r"^`.*checkpoint.safetensors` belongs to another artifact$"):
        folder.load_checkpoint(open_network(other, engine, trained=["block1", "block2"]))


def test_a_power_cut_while_writing_leaves_the_checkpoint_before(artifact, engine, network, folder, monkeypatch):
    folder.write_checkpoint(network, mark(artifact, step=7))
    before = copies(network)
    network.memories[0].arrays["parameter.w"].fill(9)

    class PowerCut(BaseException):
        pass

    real = os.replace

    def cut_at(call):
        """Let the power fail in the `call`-th rename: the first puts the old one aside, the second names the new."""
        calls = []

        def replace(source, target):
            calls.append(target)
            if len(calls) == call:
                raise PowerCut
            real(source, target)

        return replace

    def cut(*arguments):
        raise PowerCut

    moments = [
        (checkpoint_module, "write_tensors", cut),
        (os, "fsync", cut),
        *((os, "replace", cut_at(n)) for n in (1, 2)),
    ]
    for module, name, failing in moments:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            with pytest.raises(PowerCut):
                folder.write_checkpoint(network, mark(artifact, step=8))
        other = open_network(artifact, engine, trained=["block1", "block2"])
        found, _ = folder.load_checkpoint(other)
        assert found.position.step == 7
        for key, array in all_arrays(other).items():
            np.testing.assert_array_equal(array, before[key])


def test_between_the_two_renames_the_old_checkpoint_is_found_under_its_other_name(artifact, network, folder):
    folder.write_checkpoint(network, mark(artifact, step=7))
    os.replace(folder.path / CHECKPOINT, folder.path / PREVIOUS)
    found, warnings = folder.load_checkpoint(network)
    assert (found.position.step, warnings) == (7, [])


def test_a_checkpoint_of_a_later_version_is_passed_over_by_name(artifact, network, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "FORMAT_VERSION", 2)
        folder.write_checkpoint(network, mark(artifact))
    with pytest.raises(RunError, match=r"^no checkpoint in `.*run` is whole$"):
        folder.load_checkpoint(network)


class KeepsMeans(OnnxRuntime):
    """Stands in for onnxruntime-training, whose AdamW keeps means."""

    moments = "means"


@pytest.mark.parametrize(("written_by", "read_by"), [(OnnxRuntime, KeepsMeans), (KeepsMeans, OnnxRuntime)])
def test_state_in_the_form_of_another_engine_is_converted_and_in_its_own_left_alone(folder, written_by, read_by):
    artifact = open_artifact(ROOT / "zoo" / "ecg-cnn.zip")
    names = [block.name for block in artifact.manifest.blocks]
    network = open_network(artifact, written_by(1), trained=names)
    for seed, array in enumerate(network.resident().values()):
        array[...] = np.random.default_rng(seed).normal(size=array.shape)
    folder.write_checkpoint(network, mark(artifact, moments=network.engine.moments))
    same, other = (open_network(artifact, engine(1), trained=names) for engine in (written_by, read_by))
    for one in (same, other):
        folder.load_checkpoint(one)
    factors = moment_factors(artifact.manifest.optimizer)
    assert factors["momentum"] == pytest.approx(0.1)
    for name, array in network.resident().items():
        np.testing.assert_array_equal(same.resident()[name], array)
        factor = factors[name.split("/")[1]] if name.startswith("state/") else 1.0
        expected = array * (factor if read_by is KeepsMeans else 1 / factor)
        np.testing.assert_allclose(other.resident()[name], expected, rtol=1e-6)


@pytest.mark.parametrize("moments", ["medians", 3, ["sums"]])
def test_a_checkpoint_with_state_in_an_unknown_form_is_none(artifact, network, folder, moments):
    folder.write_checkpoint(network, mark(artifact, moments=moments))
    with pytest.raises(RunError, match=r"^no checkpoint in `.*run` is whole$"):
        folder.load_checkpoint(network)
    with pytest.raises(RunError, match=r"is not a checkpoint of version 1: a part is no such thing$"):
        read_checkpoint(folder.path / CHECKPOINT)


# --- the other files ---


def test_a_folder_that_holds_anything_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=rf"^`{tmp_path}` exists already$") as caught:
        RunFolder(tmp_path).create({})
    assert caught.value.hint == "choose another folder"
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError) as caught:
        RunFolder(tmp_path).create({})
    assert caught.value.hint == "go on with it by `--resume`, or choose another folder"


@pytest.mark.parametrize("left", [[], [".run.json.tmp"]])
def test_a_run_begins_in_an_empty_folder_and_where_one_was_cut_off_before_it_began(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("{")
    RunFolder(tmp_path).create({"seed": 1})
    assert RunFolder(tmp_path).facts() == {"seed": 1}


def test_a_folder_that_is_not_there_cannot_be_gone_on_with(tmp_path):
    with pytest.raises(RunError, match=r"^there is no run to go on with at `.*none`$"):
        RunFolder(tmp_path / "none").facts()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"^`.*` holds no run: it has no `run.json`$"):
        RunFolder(tmp_path).facts()


@pytest.mark.parametrize(("text", "why"), [("{", "it is not JSON"), ("[]", "it is not a JSON object")])
def test_a_damaged_run_file_is_refused(folder, text, why):
    (folder.path / "run.json").write_text(text)
    with pytest.raises(RunError, match=rf"run.json` is damaged: {why}$"):
        folder.facts()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"^cannot write `.*file/run`: "):
        RunFolder(tmp_path / "file" / "run").create({})


def test_the_best_weights_are_read_from_the_folder_or_the_file(artifact, network, folder):
    folder.write_best(network, epoch=3)
    folder.write_checkpoint(network, mark(artifact, best=3))
    for path in (folder.path, folder.best_after(3), folder.path / CHECKPOINT):
        found = read_weights(path, artifact.manifest_sha256)
        assert set(found) == set(network.weights())
        for name, array in found.items():
            np.testing.assert_array_equal(array, network.weights()[name])
    folder.publish_best(3)
    assert read_facts(folder.best)["epoch"] == 3
    assert read_weights(folder.path, artifact.manifest_sha256).keys() == found.keys()


def test_weights_of_another_artifact_are_refused(artifact, network, folder):
    folder.write_best(network, epoch=3)
    folder.write_checkpoint(network, mark(artifact, best=3))
    with pytest.raises(RunError, match=r"^`.*best.3.safetensors` belongs to another artifact$"):
        read_weights(folder.path, "0" * 64)


def test_only_best_weights_that_a_checkpoint_names_are_kept(artifact, network, folder):
    def kept():
        return sorted(path.name for path in folder.path.glob("best.*"))

    for epoch in range(3):
        folder.write_best(network, epoch)
        folder.write_checkpoint(network, mark(artifact, best=epoch))
    assert kept() == ["best.1.safetensors", "best.2.safetensors"]
    folder.write_checkpoint(network, mark(artifact, best=2))
    assert kept() == ["best.2.safetensors"]
    folder.write_best(network, 7)  # the power went before a checkpoint named it
    folder.write_checkpoint(network, mark(artifact, best=2))
    assert kept() == ["best.2.safetensors"]
    for epoch in range(3, 9):  # no checkpoint comes in between
        folder.write_best(network, epoch)
    assert kept() == ["best.2.safetensors", "best.8.safetensors"]
    folder.publish_best(2)
    folder.write_result({})
    assert kept() == ["best.safetensors"]
    folder.check_best(network, 2)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_best_weights_that_are_lost_are_told_of(artifact, network, folder, spoil):
    folder.write_best(network, 1)
    folder.check_best(network, 1)
    spoil(folder.best_after(1))
    with pytest.raises(RunError, match=r"^the best weights so far are lost: ") as caught:
        folder.check_best(network, 1)
    assert caught.value.hint


def test_a_state_of_another_stage_is_not_gone_back_to(artifact, engine, folder):
    network = open_network(artifact, engine, trained=["block1", "block2"])
    first = {name: array.copy() for name, array in network.weights().items()}
    network.memories[0].arrays["parameter.w"].fill(9)
    folder.write_checkpoint(network, mark(artifact))
    assert folder.load_state(network, stage=1, older=False) is None
    for name, array in network.weights().items():
        np.testing.assert_array_equal(array, first[name])
    assert folder.load_state(network, stage=0, older=True).position.stage == 0
    assert (network.memories[0].arrays["parameter.w"] == 9).all()


# --- two processes ---


def test_a_folder_is_one_process_s_at_a_time_and_nobody_s_after_it_died(artifact, folder):
    code = "import sys, pathlib; from edgeff.runtime.checkpoint import RunFolder\n"
    code += "with RunFolder(pathlib.Path(sys.argv[1])).locked(): print('has it', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(RunError, match=r"^the run in `.*run` is in use by another process$"), folder.locked():
            pass
        other.kill()
        other.wait(30)
    with folder.locked():
        assert is_locked(folder.path / "run.json")
    assert not is_locked(folder.path / "run.json")


# --- kill ---

RUN = """
import sys
from pathlib import Path
import numpy as np
from edgeff.artifact import open_artifact
from edgeff.dataset import Dataset
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.plan import plan
from edgeff.runtime.settings import AdaptSettings

artifact = open_artifact(Path(sys.argv[1]))
rows = np.load(sys.argv[2])
dataset = Dataset("rows", rows["x"], rows["y"])
settings = AdaptSettings(epochs=3, batch_size=8, learning_rate=0.1, replay_fraction=0.25, checkpoint_steps=2, seed=5)
request = adaptation_request(artifact.manifest, settings, len(dataset), budget_bytes=None)
planned = plan(artifact.manifest, request)
folder = RunFolder(Path(sys.argv[3]))
run = Adaptation(artifact, dataset, settings, request, planned, OnnxRuntime(1), folder)
for event in run.run(resume=sys.argv[4] == "resume"):
    print(type(event).__name__, flush=True)
    if sys.argv[5:]:
        sys.stdin.readline()
"""


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(artifact, device_python, tmp_path):
    x, y = make_rows(48, seed=3)
    np.savez(tmp_path / "rows.npz", x=x, y=y)

    def command(out, *mode):
        return [str(device_python), "-c", RUN, str(artifact.path), str(tmp_path / "rows.npz"), str(out), *mode]

    def whole_run(out, mode):
        return subprocess.run(command(out, mode), capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert whole_run(tmp_path / "whole", "begin").count("Progress") == 18
    mode = "begin"
    for events in (4, 3, 9):  # the first two in the middle of an epoch, between two checkpoints
        with subprocess.Popen(
            command(tmp_path / "killed", mode, "step"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process:
            for _ in range(events):
                assert process.stdout.readline()
                process.stdin.write("\n")
                process.stdin.flush()
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        mode = "resume"
    whole_run(tmp_path / "killed", "resume")
    for name in (BEST, CHECKPOINT, PREVIOUS):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("whole", "killed")]
    for result in results:
        for evaluation in result["guard"]:
            del evaluation["rows_per_s"]
    assert results[0]["guard"] == results[1]["guard"]
    assert results[0]["best_epoch"] == results[1]["best_epoch"]
