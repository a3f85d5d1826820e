"""Trained networks for studies: each run has a folder of its own, and is not trained again when a study is repeated."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeff.atomic import write_atomically
from edgeff.errors import RunError
from edgeff.pretrain import PretrainProgress
from edgeff.pretrain_job import Prepared, PretrainJob, prepare
from edgeff.pretrain_settings import Device

OUTCOME = "outcome.json"
Report = Callable[[str], None]


@dataclass(frozen=True)
class StudySettings:
    """What a study is told.

    Attributes:
        out: Folder of the table, the picture, and the runs below it.
        data_dir: Where known data sets lie.
        recipes: Names or files of the recipes it works with, where it works with recipes.
        seeds: How many runs of everything, seeds 0, 1, ...
        epochs: Instead of a recipe's or the study's own; 0 for those.
        threads: Of torch; None leaves them.
        device: Where torch trains: `cpu` or `cuda`.
        mixed_precision: bfloat16 on `cuda`.
        device_python: Interpreter of an environment as devices have it, whose onnxruntime is measured; None for this
            process's.
        report: Told what is going on, one line at a time.
    """

    out: Path
    data_dir: Path | None = None
    recipes: Sequence[str] = ()
    seeds: int = 3
    epochs: int = 0
    threads: int | None = None
    device: Device = "cpu"
    mixed_precision: bool = False
    device_python: Path | None = None
    report: Report = print

    @property
    def machine(self) -> dict[str, Any]:
        """Settings of `PretrainSettings` that say where and how torch trains."""
        threads = {"threads": self.threads} if self.threads else {}
        return {"device": self.device, "mixed_precision": self.mixed_precision, **threads}


@dataclass(frozen=True)
class Outcome:
    """What one run ended with.

    Attributes:
        validation_accuracy: Of the kept network.
        test_accuracy: Of the fused prediction on the test data.
        readout_accuracy: Of each readout by itself, on the test data.
        readout_weights: Of the fused prediction.
        rows_per_s: Trained rows per second of the last epoch, on this machine; None if trained elsewhere.
        epochs: Trained.
        parameters: Numbers that are trained.
    """

    validation_accuracy: float
    test_accuracy: float
    readout_accuracy: tuple[float, ...]
    readout_weights: tuple[float, ...]
    rows_per_s: float | None
    epochs: int
    parameters: int


def train(job: PretrainJob, name: str, settings: StudySettings) -> Outcome:
    """Train a job in `<out>/runs/<name>`, or go on with it; a run that is done is read.

    Raises:
        RunError: The folder has another run.
    """
    epochs = {"epochs": settings.epochs} if settings.epochs else {}
    job = job.with_settings(**settings.machine, **epochs)
    return run_prepared(prepare(job, data_dir=settings.data_dir), name, settings)


def run_prepared(prepared: Prepared, name: str, settings: StudySettings) -> Outcome:
    """As `train`, for data and a network that are there already; there must be test data."""
    folder = settings.out / "runs" / name
    rates: list[float] = []

    def progress(record: PretrainProgress) -> None:
        if record.metrics is not None:
            rates.append(record.rows_per_s)
            accuracy = record.metrics.validation.accuracy
            settings.report(f"{name}: epoch {record.epoch}/{prepared.settings.epochs}, validation {accuracy:.4f}")

    folder.parent.mkdir(parents=True, exist_ok=True)
    result, tested = prepared.run(folder, resume=True, progress=progress)
    if tested is None:
        raise RunError(f"run `{name}` has no test data")
    path = folder / OUTCOME
    before = json.loads(path.read_text())["rows_per_s"] if path.is_file() else None
    outcome = Outcome(
        validation_accuracy=result.best.validation.accuracy,
        test_accuracy=tested.accuracy,
        readout_accuracy=tested.readout_accuracy,
        readout_weights=tested.readout_weights,
        rows_per_s=rates[-1] if rates else before,
        epochs=len(result.history),
        parameters=sum(one.numel() for one in result.network.parameters() if one.requires_grad),
    )
    write_atomically(path, (json.dumps(asdict(outcome), indent=2) + "\n").encode())
    return outcome


def run_name(recipe: str, method: str) -> str:
    """Of a run's folder, without its seed: studies that train the same find it there."""
    return "-".join(f"{recipe}-{method}".replace(",", "").split())


def over_seeds(job: PretrainJob, name: str, settings: StudySettings) -> list[Outcome]:
    """A job with each seed."""
    return [
        train(replace(job, settings=replace(job.settings, seed=seed)), f"{name}-seed{seed}", settings)
        for seed in range(settings.seeds)
    ]


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return statistics.fmean(values)


def mean_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Mean of the rates that are known; None where none is."""
    rates = [one.rows_per_s for one in outcomes if one.rows_per_s]
    return mean(rates) if rates else None


def spread(values: Sequence[float]) -> float | None:
    """Their standard deviation (of a sample); None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None
