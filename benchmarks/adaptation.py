"""How the defaults of `train-on-device` were chosen: on training people only, never on the demo's nine.

The 21 training people of HAPT are dealt into three folds of seven. For each fold a model is pretrained on the other
fourteen and adapts to each of the seven as the demo does: on the earlier half of every activity of every recording,
tested on the later half. Prints a line per setting: mean accuracy before and after, how much of the error went, the
worst change of anybody, and how many lost more than a point.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeff.artifact import Artifact, open_artifact
from edgeff.data import open_dataset
from edgeff.dataset import Dataset
from edgeff.export import export_network
from edgeff.preprocess import fit_preprocessing
from edgeff.presets import preset
from edgeff.pretrain import pretrain
from edgeff.pretrain_run import load_run
from edgeff.pretrain_settings import PretrainSettings
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder, read_weights
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.evaluate import evaluate
from edgeff.runtime.network import open_network
from edgeff.runtime.plan import plan
from edgeff.runtime.settings import AdaptSettings
from edgeff.split import calibration_split, train_validation_split
from edgeff.table import table

HAPT = Path(__file__).resolve().parent.parent / "examples" / "hapt"
DEFAULT = {"epochs": 10, "batch_size": 32, "learning_rate": 1e-3, "replay_fraction": 0.5, "guard_fraction": 0.25}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "no guard": {"guard_fraction": 0.0},
    "no guard, no replay": {"guard_fraction": 0.0, "replay_fraction": 0.0},
    "no guard, rate 3e-4": {"guard_fraction": 0.0, "learning_rate": 3e-4},
    "replay 25 %": {"replay_fraction": 0.25},
    "guard half": {"guard_fraction": 0.5},
    "rate 3e-4": {"learning_rate": 3e-4},
    "rate 2e-3": {"learning_rate": 2e-3},
    "20 epochs": {"epochs": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of folds and pretraining")
    arguments = parser.parse_args()
    changes: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        for person, artifact in unseen_people(Path(folder), arguments.seed):
            calibration, test = calibration_split(person)
            before = accuracy(artifact, test, None)
            for name, setting in SETTINGS.items():
                weights = adapt(artifact, calibration, AdaptSettings(**{**DEFAULT, **setting}))
                changes[name].append((before, accuracy(artifact, test, weights)))
    print(
        table(("setting", "before", "after", "error", "worst", "lost a point"), [row(*one) for one in changes.items()])
    )


def unseen_people(folder: Path, seed: int) -> Iterator[tuple[Dataset, Artifact]]:
    """Each training person, with a model that has never seen them."""
    rows = open_dataset(f"{HAPT}:train", data_dir=None)
    people = np.random.default_rng(seed).permutation(np.unique(rows.groups))
    for number, held_out in enumerate(np.split(people, 3)):
        train, validation = train_validation_split(rows.select(~np.isin(rows.groups, held_out)), 0.25, seed)
        run = folder / f"run-{number}"
        settings = PretrainSettings(epochs=12, augment="signal", seed=seed, fusion="sum")
        network = preset("har-cnn", classes=rows.classes, seed=seed)
        pretrain(network, train, validation, fit_preprocessing(train, (6, 128)), settings, out=run)
        done = load_run(run)
        replay = (done.replay_x, done.replay_y)
        out = folder / f"artifact-{number}"
        artifact = open_artifact(export_network(done.network, out, preprocessing=done.preprocessing, replay=replay))
        for person in held_out:
            yield rows.select(rows.groups == person), artifact


def adapt(artifact: Artifact, calibration: Dataset, settings: AdaptSettings) -> dict[str, np.ndarray]:
    """The weights that a run keeps."""
    request = adaptation_request(artifact.manifest, settings, len(calibration), budget_bytes=None)
    with tempfile.TemporaryDirectory() as parent:
        folder = RunFolder(Path(parent) / "run")
        planned = plan(artifact.manifest, request)
        run = Adaptation(artifact, calibration, settings, request, planned, OnnxRuntime(1), folder)
        for _ in run.run():
            pass
        return read_weights(folder.best, artifact.manifest_sha256)


def accuracy(artifact: Artifact, rows: Dataset, weights: Mapping[str, np.ndarray] | None) -> float:
    """Of the fused prediction; None for the artifact's own weights."""
    return evaluate(open_network(artifact, OnnxRuntime(1), weights=weights), rows.x, rows.y).accuracy


def row(name: str, changes: list[tuple[float, float]]) -> tuple[str, ...]:
    """One line of the table."""
    before, after = np.array(changes).T
    error = (1 - after.mean()) / (1 - before.mean()) - 1
    lost = int((after - before < -0.01).sum())
    worst = 100 * (after - before).min()
    return (
        name,
        f"{before.mean():.3f}",
        f"{after.mean():.3f}",
        f"{error:+.0%}",
        f"{worst:+.1f} points",
        f"{lost} of {len(changes)}",
    )


if __name__ == "__main__":
    main()
