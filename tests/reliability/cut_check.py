"""Records a small run, cuts the power everywhere, and looks at what can be opened and gone on with."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from kills import files_of
from power_cuts import Recorder, states, write_state
from small_run import small_run

from edgeff.errors import RunError
from edgeff.runtime.checkpoint import CHECKPOINT, PREVIOUS, RunFolder, read_checkpoint
from edgeff.runtime.events import Finished
from edgeff.runtime.network import open_on_disk
from edgeff.runtime.store import BlockFiles
from edgeff.runtime.tensor_stream import read_all_tensors


@dataclass(frozen=True)
class CutCheck:
    """What was found.

    Attributes:
        states: Looked at.
        resumed: Of these, gone on with to the end.
        failures: In words.
    """

    states: int
    resumed: int
    failures: tuple[str, ...]


def check_cuts(artifact, rows, folder, schedule, *, epochs, part, resumed_every, seed, patch) -> CutCheck:
    """Cut the power in a run.

    Args:
        artifact: To train.
        rows: `.npz`.
        folder: To work in.
        schedule: Of the run.
        epochs: Of the run.
        part: Of the states that are looked at, from 0 to 1.
        resumed_every: Of those, every so many is gone on with.
        seed: Of the choice.
        patch: A pytest `MonkeyPatch`.
    """
    recorder, whole = Recorder(), folder / "recorded"
    _record(small_run(artifact, rows, whole, schedule, epochs), recorder, patch)
    good = _that_count(whole)
    failures, seen, ended = [], 0, 0
    run = small_run(artifact, rows, folder / "cut", schedule, epochs)
    # With nothing in memory: the tensors are compared with those of the file.
    network = open_on_disk(run.artifact, run.engine, BlockFiles(run.folder.path, run.artifact))
    for number, content in states(recorder, seed, part):
        write_state(run.folder.path, content)
        seen += 1
        # What a process that saw the call return may rely on, and what was under way at most.
        sure = [mark for place, mark in recorder.marks if place <= number]
        coming = [mark for place, mark in recorder.marks if place > number][:1]
        why = _opens(run.folder, network, sure[-1:] + coming, bool(sure))
        if why:
            failures.append(f"{schedule}: cut after change {number} of {len(recorder.changes)}: {why}")
        if seen % resumed_every == 0 and not why:
            events = list(run.run(resume=True))
            ended += 1
            if not isinstance(events[-1], Finished) or _that_count(run.folder.path) != good:
                failures.append(f"{schedule}: cut after change {number}: went on to other bytes")
    assert recorder.marks, "no checkpoint was written"
    return CutCheck(seen, ended, tuple(failures))


def _that_count(run) -> dict[str, bytes]:
    """Not the checkpoint before the last: a cut at the very end may leave an older one."""
    return {name: data for name, data in files_of(run).items() if name != PREVIOUS}


def _record(run, recorder, patch) -> None:
    """Run, and note after every checkpoint what it holds."""
    real = RunFolder.write_checkpoint

    def noting(folder, network, checkpoint, **options):
        real(folder, network, checkpoint, **options)
        arrays = {name: array.copy() for name, array in network.resident().items()}
        recorder.mark((checkpoint.position, checkpoint.best, arrays))

    with patch.context() as patched:
        patched.setattr(RunFolder, "write_checkpoint", noting)
        recorder.install(patched.setattr)
        for _ in run.run():
            pass


def _opens(folder, network, expected, any_saved) -> str:
    """Why the folder does not open as one of the expected checkpoints; empty where it does."""
    if folder.is_blank():
        return "the whole run is lost" if any_saved else ""
    try:
        if folder.result() is not None:
            return "" if folder.best.exists() else "finished without its weights"
        folder.facts()
        found, _ = folder.load_checkpoint(network)
        if found is None:
            return "the checkpoint is lost" if any_saved else ""
        folder.check_best(network, found.best)
    except RunError as error:
        return str(error)
    held = _tensors(folder)
    for position, best, arrays in expected:
        if (found.position, found.best) == (position, best):
            same = held.keys() == arrays.keys() and all(np.array_equal(held[name], arrays[name]) for name in arrays)
            return "" if same else "the tensors are not those of the checkpoint"
    return f"found {found.position}, needed one of {[position for position, _, _ in expected]}"


def _tensors(folder) -> dict[str, np.ndarray]:
    """Of the newest whole checkpoint."""
    for path in (folder.path / CHECKPOINT, folder.path / PREVIOUS):
        try:
            read_checkpoint(path)
        except RunError:
            continue
        return read_all_tensors(path)
    return {}
