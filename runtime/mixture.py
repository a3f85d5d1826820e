"""The rows of a run: the user's, checked, with some held out as a guard, and replay rows mixed into the others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeff.artifact import Artifact
from edgeff.checked_rows import check_rows
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.manifest import Manifest
from edgeff.rows import JoinedRows, Rows, cast_rows, select_rows
from edgeff.runtime.features import PreprocessedRows
from edgeff.runtime.guard import guard_split
from edgeff.runtime.network import preprocessing_of
from edgeff.runtime.order import MixedOrder
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.update import TrainingRows

# Rows whose values tell a data set from another with the same labels.
_LOOKED_AT = 64


@dataclass(frozen=True)
class RunRows:
    """The rows of a run.

    Attributes:
        training: Replay rows and the user's own.
        guard: Held out.
        left_out: Rows of the user's that are in neither, because they overlap the guard.
    """

    training: TrainingRows
    guard: Dataset
    left_out: int = 0


def prepare_rows(
    artifact: Artifact, dataset: Dataset, settings: AdaptSettings, judged_by: Dataset | None = None
) -> RunRows:
    """Check, split and mix the rows.

    Args:
        artifact: What is trained.
        dataset: The user's rows.
        settings: Of the run.
        judged_by: Rows to judge by; None to hold some of the user's out.

    Raises:
        DataError: The rows do not fit the artifact or do not suffice, or it lacks the replay rows.
        RunError: A fraction outside 0..1.
    """
    check_rows(artifact.manifest, dataset)
    own, held_out = guard_split(dataset, settings.guard_fraction)
    guard = dataset.select(held_out)
    if judged_by is not None:
        check_rows(artifact.manifest, judged_by)
        guard = judged_by
    _check_not_one_class(artifact.manifest, dataset, settings)
    dtype = np.dtype(artifact.manifest.input.dtype)
    guard = replace(guard, x=cast_rows(guard.x, dtype))
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
    x = JoinedRows((*parts, cast_rows(select_rows(dataset.x, own), dtype)))
    order = MixedOrder(
        own_rows=len(own),
        replay_rows=replay_rows,
        batch_size=settings.batch_size,
        replay_fraction=settings.replay_fraction,
        seed=settings.seed,
    )
    y = np.concatenate([*labels, dataset.y[own]])
    training = TrainingRows(PreprocessedRows(x, preprocessing_of(artifact.manifest)), y, order)
    return RunRows(training, guard, len(dataset) - len(own) - len(held_out))


def _check_not_one_class(manifest: Manifest, dataset: Dataset, settings: AdaptSettings) -> None:
    """Refuse rows of one class alone: a model learns from them to say nothing else, and a guard of them agrees."""
    if settings.replay_fraction or len(np.unique(dataset.y)) > 1:
        return
    name = manifest.classes[int(dataset.y[0])]
    raise DataError(
        f"all {len(dataset):,} rows of `{dataset.name}` are of the class `{name}`: a model learns from them to say "
        "nothing else",
        hint="give rows of other classes too, or train with replay rows (`--replay-fraction`)",
    )


def described(dataset: Dataset) -> dict[str, Any]:
    """What tells rows from others: their labels, and some of them; all of them would have to be read once more."""
    labels = hashlib.sha256(dataset.y.tobytes()).hexdigest()
    some = np.linspace(0, len(dataset) - 1, min(len(dataset), _LOOKED_AT)).astype(np.int64)
    sample = hashlib.sha256()
    for number in some:  # one by one: together they may be more than the budget
        sample.update(np.ascontiguousarray(dataset.x[number : number + 1]).tobytes())
    return {"name": dataset.name, "rows": len(dataset), "labels_sha256": labels, "sample_sha256": sample.hexdigest()}
