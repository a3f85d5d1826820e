"""The rows of a run: the user's, checked, with some held out as a guard, and replay rows mixed into the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeff.artifact import Artifact
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.manifest import Manifest
from edgeff.rows import JoinedRows, Rows, row_blocks, select_rows
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.guard import guard_split
from edgeff.runtime.network import preprocessing_of
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.trainer import TrainingRows


@dataclass(frozen=True)
class RunRows:
    """The rows of a run.

    Attributes:
        training: Replay rows and the user's own.
        guard: Held out.
    """

    training: TrainingRows
    guard: Dataset


def prepare_rows(artifact: Artifact, dataset: Dataset, settings: AdaptSettings) -> RunRows:
    """Check, split and mix the rows.

    Raises:
        DataError: The rows do not fit the artifact or do not suffice, or it lacks the replay rows.
        RunError: A fraction outside 0..1.
    """
    check_dataset(artifact.manifest, dataset)
    own, guard = guard_split(dataset, settings.guard_fraction)
    # Replay rows first: joined rows take the dtype of their first part, and that of replay rows is the model's.
    parts: list[Rows] = []
    labels = []
    if settings.replay_fraction:
        found = artifact.replay()
        if found is None:
            raise DataError(
                f"`{artifact.path}` has no replay rows, {settings.replay_fraction:g} of each batch was to be such",
                hint="give `--replay-fraction 0`, or export the model with replay rows",
            )
        parts, labels = [found[0]], [found[1]]
    replay_rows = sum(len(part) for part in parts)
    x = JoinedRows((*parts, select_rows(dataset.x, own)))
    order = MixedOrder(
        own_rows=len(own),
        replay_rows=replay_rows,
        batch_size=settings.batch_size,
        replay_fraction=settings.replay_fraction,
        seed=settings.seed,
    )
    y = np.concatenate([*labels, dataset.y[own]])
    return RunRows(
        TrainingRows(PreprocessedRows(x, preprocessing_of(artifact.manifest)), y, order), dataset.select(guard)
    )


def check_dataset(manifest: Manifest, dataset: Dataset) -> None:
    """Check that rows and labels are such as the artifact was made for; every row is read once.

    Raises:
        DataError: They are not: labels or class names, row shape or dtype, NaN or Inf.
    """
    dataset.check()
    classes = len(manifest.classes)
    if int(dataset.y.max()) >= classes:
        row = int(dataset.y.argmax())
        raise DataError(f"`{dataset.name}` has label {dataset.y[row]} in row {row}, the model has 0..{classes - 1}")
    numbered = tuple(str(label) for label in range(classes))
    if dataset.classes and manifest.classes != numbered and dataset.classes != manifest.classes:
        raise DataError(
            f"`{dataset.name}` has the classes {_listed(dataset.classes)}, the model {_listed(manifest.classes)}",
            hint="labels must count the model's classes, in its order",
        )
    preprocessing = preprocessing_of(manifest)
    for first, block in row_blocks(dataset.x):
        preprocessing.check_raw(block, numbers=np.arange(first, first + len(block)))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names[:5]) + (", ..." if len(names) > 5 else "")
