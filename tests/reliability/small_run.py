"""A small training run on the device, in this process or as one of its own that can be killed.

As a program: `small_run.py ARTIFACT ROWS FOLDER SCHEDULE EPOCHS begin|resume [AT KIND LENGTH]`. Prints `step N` for
every update and at the end `changes N`: how many changes it made to its files.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package
from faulty_disk import FaultyDisk

from edgeff.artifact import open_artifact
from edgeff.dataset import Dataset
from edgeff.errors import EdgeffError
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.plan import plan
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.trainer import Progress

# The most updates that are made again after an interruption.
CHECKPOINT_STEPS = 2


def small_run(artifact, rows, folder, schedule, epochs, **more):
    """A run over `.npz` rows, ready to start."""
    arrays = np.load(rows)
    dataset = Dataset("rows", arrays["x"], arrays["y"])
    settings = AdaptSettings(
        epochs=epochs,
        batch_size=8,
        learning_rate=0.05,
        replay_fraction=0.25,
        checkpoint_steps=CHECKPOINT_STEPS,
        seed=5,
        schedule=schedule,
    )
    opened = open_artifact(artifact)
    request = adaptation_request(
        opened.manifest, settings, len(dataset), budget_bytes=None, schedule=schedule, disk_bytes=1 << 30
    )
    made = plan(opened.manifest, request)
    return Adaptation(opened, dataset, settings, request, made, OnnxRuntime(1), RunFolder(folder), **more)


def main(artifact, rows, folder, schedule, epochs, mode, at="", kind="kill", length="1"):
    disk = FaultyDisk(int(at) if at else None, kind, int(length))
    run = small_run(Path(artifact), Path(rows), Path(folder), schedule, int(epochs))
    disk.install()
    try:
        for event in run.run(resume=mode == "resume"):
            if isinstance(event, Progress):
                position = event.position
                print(f"step {position.stage} {position.step}", flush=True)
    except EdgeffError as error:
        print(f"error {error}", flush=True)
    print(f"changes {len(disk.log)} injected {disk.injected}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
