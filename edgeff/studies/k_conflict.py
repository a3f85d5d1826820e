"""`k-conflict`: does local learning gain on back-propagation as classes are added? On synthetic data, and on real.

The paper of DTG-FF (arXiv 2606.06539, abstract) reports opposite signs: ahead of back-propagation increasingly with the
number of classes K where a random network labels noise, behind it increasingly on images. How its synthetic task was
made is not known; here rows are standard normal, the teacher is a random network of two hidden layers, and the label is
its largest output less that output's mean, so that classes are about equally frequent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from edgeff.data import open_dataset
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.preprocess import fit_preprocessing
from edgeff.presets import preset
from edgeff.pretrain_job import VALIDATION_SHARE, Prepared, preset_shape
from edgeff.pretrain_settings import Mode, PretrainSettings
from edgeff.split import train_validation_split
from edgeff.studies.findings import Findings, Row, number
from edgeff.studies.label_sets import of_classes
from edgeff.studies.picture import Panel
from edgeff.studies.training import Report, StudySettings, mean, run_prepared, spread

SYNTHETIC_CLASSES = (2, 5, 10, 20, 50, 100)
REAL_CLASSES = (2, 4, 6, 8, 10)
# All sizes are held fixed but K: as many rows in all (synthetic), as many of each class (real).
SYNTHETIC_ROWS, TEST_ROWS, NUMBERS, TEACHER_UNITS = 12_000, 4_000, 64, 64
ROWS_PER_CLASS = 500
EPOCHS = 12
METHODS: tuple[Mode, ...] = ("local", "bp-deepsup", "bp")
_IMAGES = "cifar10"
Data = tuple[Dataset, Dataset]


def k_conflict(settings: StudySettings) -> Findings:
    """Sweeps over the number of classes; the real one runs where CIFAR-10 is at hand."""
    rows = list(_sweep("synthetic", "mlp", SYNTHETIC_CLASSES, teacher_data, settings))
    images = _real_data(settings.data_dir, settings.report)
    if images is not None:
        rows += _sweep("images", "image-cnn", REAL_CLASSES, partial(_subset, *images), settings)
    kinds = list(dict.fromkeys(str(row["data"]) for row in rows))
    panels = [
        Panel(
            f"{kind}: test accuracy less that of back-propagation, points, over the number of classes",
            {
                method: {
                    number(row, "classes"): 100 * number(row, "ahead_of_bp")
                    for row in rows
                    if row["data"] == kind and row["method"] == method
                }
                for method in METHODS[:2]
            },
        )
        for kind in kinds
    ]
    return Findings(
        "k-conflict", "Local learning less back-propagation, by the number of classes", rows, panels, _paragraph(rows)
    )


def teacher_data(classes: int, seed: int) -> Data:
    """Standard normal rows (N, 64) float32, labelled by a random network of two hidden layers of 64 ReLUs."""
    rng = np.random.default_rng([seed, classes])
    x = rng.standard_normal((SYNTHETIC_ROWS + TEST_ROWS, NUMBERS), dtype=np.float32)
    first, second, last = (
        (rng.standard_normal(shape) * np.sqrt(2.0 / shape[0])).astype(np.float32)
        for shape in ((NUMBERS, TEACHER_UNITS), (TEACHER_UNITS, TEACHER_UNITS), (TEACHER_UNITS, classes))
    )
    outputs = np.maximum(np.maximum(x @ first, 0.0) @ second, 0.0) @ last
    y = (outputs - outputs.mean(axis=0)).argmax(axis=1).astype(np.int64)
    everything = Dataset("teacher", x, y, tuple(str(label) for label in range(classes)))
    numbers = np.arange(len(x))
    return everything.select(numbers < SYNTHETIC_ROWS), everything.select(numbers >= SYNTHETIC_ROWS)


def _real_data(data_dir: Path | None, report: Report) -> Data | None:
    try:
        return open_dataset(f"{_IMAGES}:train", data_dir=data_dir), open_dataset(f"{_IMAGES}:test", data_dir=data_dir)
    except DataError as error:
        report(f"images are left out: {error}")
        return None


def _subset(train: Dataset, test: Dataset, count: int, seed: int) -> Data:
    """So many classes, drawn by the seed, with the same number of rows of each."""
    labels = sorted(np.random.default_rng([seed, count]).permutation(len(train.classes))[:count].tolist())
    return of_classes(train, labels, ROWS_PER_CLASS, seed), of_classes(test, labels, ROWS_PER_CLASS, seed)


def _sweep(
    kind: str, network: str, counts: tuple[int, ...], data: Callable[[int, int], Data], settings: StudySettings
) -> Iterator[Row]:
    for count in counts:
        found = {method: _accuracies(kind, network, count, method, data, settings) for method in METHODS}
        for method, accuracies in found.items():
            ahead = [own - other for own, other in zip(accuracies, found["bp"], strict=True)]
            yield {
                "data": kind,
                "classes": count,
                "method": method,
                "seeds": settings.seeds,
                "test_accuracy": mean(accuracies),
                "ahead_of_bp": mean(ahead),
                "spread": spread(ahead),
            }


def _accuracies(
    kind: str, network: str, count: int, method: Mode, data: Callable[[int, int], Data], settings: StudySettings
) -> list[float]:
    return [
        run_prepared(
            prepared(data(count, seed), network, count, method, seed, settings),
            f"{kind}-{count}-{method}-seed{seed}",
            settings,
        ).test_accuracy
        for seed in range(settings.seeds)
    ]


def prepared(data: Data, network: str, classes: int, method: Mode, seed: int, settings: StudySettings) -> Prepared:
    """A preset at half its width on some data: rows (D,), or images (C, H, W) or (H, W, C)."""
    own, test = data
    train, validation = train_validation_split(own, VALIDATION_SHARE, seed)
    shape = preset_shape(network, None, own)
    built = preset(network, input_shape=shape, classes=own.classes or classes, width=0.5, seed=seed)
    epochs = settings.epochs or EPOCHS
    chosen = PretrainSettings(epochs=epochs, batch_size=64, mode=method, seed=seed, **settings.machine)
    return Prepared(built, train, validation, test, fit_preprocessing(train, built.input_shape), chosen)


def _paragraph(rows: list[Row]) -> str:
    said = []
    for kind in dict.fromkeys(str(row["data"]) for row in rows):
        local = [row for row in rows if row["data"] == kind and row["method"] == "local"]
        first, last = local[0], local[-1]
        changes = [100 * number(row, "ahead_of_bp") for row in (first, last)]
        direction = "gains" if changes[1] > changes[0] else "loses"
        said.append(
            f"On {kind} data local learning is {changes[0]:+.2f} points from back-propagation at {first['classes']} "
            f"classes and {changes[1]:+.2f} at {last['classes']}: it {direction} with the number of classes"
        )
    return " ".join([f"{text}." for text in said] + _verdict(rows))


def _verdict(rows: list[Row]) -> list[str]:
    """Whether the paper's claim was seen: a growing lead on synthetic data and a growing gap on images."""
    ends = {}
    for kind in dict.fromkeys(str(row["data"]) for row in rows):
        local = [number(row, "ahead_of_bp") for row in rows if row["data"] == kind and row["method"] == "local"]
        ends[kind] = (local[0], local[-1])
    if len(ends) < 2:
        return []
    (first, last), (few, many) = ends.values()
    if last > max(first, 0.0) and many < min(few, 0.0):
        return ["The paper's opposite signs were found."]
    return ["The paper reports a growing lead on synthetic and a growing gap on real data; that was not found here."]
