"""`coarse-fine`: the same images under coarse and fine labels, with random groups as the control.

Where a gap to back-propagation grows with the number of classes, is it their number or what they mean? Coarse labels
and random groups of the same sizes have as many classes as one another, and differ in their meaning alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeff.class_names import CIFAR100_COARSE
from edgeff.data import open_dataset
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.studies.findings import Findings, Row, number
from edgeff.studies.k_conflict import METHODS, Data, prepared
from edgeff.studies.label_sets import in_groups, of_classes, random_groups
from edgeff.studies.picture import Panel
from edgeff.studies.training import StudySettings, mean, run_prepared, spread

# Vehicles and animals of CIFAR-10, in the order of its labels.
CIFAR10_GROUPS = (0, 0, 1, 1, 1, 1, 1, 1, 0, 0)
ROWS_PER_CLASS = {"cifar10": 1000, "cifar100": 400}
_TEST_PER_CLASS = 500
FINE, COARSE, RANDOM = "fine", "coarse", "random groups"
LABELS = (FINE, COARSE, RANDOM)


def coarse_fine(settings: StudySettings) -> Findings:
    """CIFAR-100's 100 and 20 labels where it is at hand, else CIFAR-10's ten and two.

    Raises:
        DataError: Neither is at hand.
    """
    name, train, test, groups = _data(settings)
    rows = list(_rows(name, train, test, groups, settings))
    series: dict[str, dict[str | float, float]] = {}
    for row in rows:
        series.setdefault(str(row["method"]), {})[str(row["labels"])] = 100 * number(row, "test_accuracy")
    return Findings(
        "coarse-fine",
        f"The same images of {name} under three sets of labels",
        rows,
        [Panel("test accuracy, % (mean over seeds)", series)],
        _paragraph(name, rows),
    )


def _data(settings: StudySettings) -> tuple[str, Dataset, Dataset, tuple[int, ...]]:
    try:
        train, test = (open_dataset(f"cifar100:{part}", data_dir=settings.data_dir) for part in ("train", "test"))
    except DataError as error:
        settings.report(f"CIFAR-100 is left out: {error}")
        train, test = (open_dataset(f"cifar10:{part}", data_dir=settings.data_dir) for part in ("train", "test"))
        return "cifar10", train, test, CIFAR10_GROUPS
    return "cifar100", train, test, CIFAR100_COARSE


def _rows(name: str, train: Dataset, test: Dataset, groups: tuple[int, ...], settings: StudySettings) -> Iterator[Row]:
    found: dict[tuple[str, str], list[float]] = {}
    for labels in LABELS:
        for method in METHODS:
            found[labels, method] = []
            for seed in range(settings.seeds):
                own, other = _labelled((train, test), name, labels, groups, seed)
                classes = len(groups) if labels == FINE else max(groups) + 1
                ready = prepared((own, other), "image-cnn", classes, method, seed, settings)
                run = f"{name}-{labels.replace(' ', '-')}-{method}-seed{seed}"
                found[labels, method].append(run_prepared(ready, run, settings).test_accuracy)
    for (labels, trained), accuracies in found.items():
        ahead = [own - other for own, other in zip(accuracies, found[labels, "bp"], strict=True)]
        yield {
            "labels": labels,
            "classes": len(groups) if labels == FINE else max(groups) + 1,
            "method": trained,
            "seeds": settings.seeds,
            "test_accuracy": mean(accuracies),
            "ahead_of_bp": mean(ahead),
            "spread": spread(ahead),
        }


def _labelled(data: Data, name: str, labels: str, groups: tuple[int, ...], seed: int) -> Data:
    """The same rows for every set of labels: they are drawn by the fine ones."""
    every = range(len(groups))
    parts = zip(data, (ROWS_PER_CLASS[name], _TEST_PER_CLASS), strict=True)
    own, other = (of_classes(part, list(every), count, seed) for part, count in parts)
    if labels == FINE:
        return own, other
    chosen = groups if labels == COARSE else random_groups(groups, seed)
    return in_groups(own, chosen), in_groups(other, chosen)


def _paragraph(name: str, rows: list[Row]) -> str:
    gap = {str(row["labels"]): 100 * number(row, "ahead_of_bp") for row in rows if row["method"] == "local"}
    count = next(row["classes"] for row in rows if row["labels"] == COARSE)
    return (
        f"On {name}, local learning less back-propagation is {gap[FINE]:+.2f} points with the fine labels, "
        f"{gap[COARSE]:+.2f} with {count} coarse classes that mean something and {gap[RANDOM]:+.2f} with {count} "
        f"random groups of the same sizes. Between the last two only the meaning differs: "
        f"{abs(gap[COARSE] - gap[RANDOM]):.2f} points; between fine and coarse both meaning and number do: "
        f"{abs(gap[FINE] - gap[COARSE]):.2f}."
    )
