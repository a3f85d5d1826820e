"""`adapt`: what a device can still learn: a new person, a new speaker, a drifted sensor, a new class, a few labels.

In every scenario a network is pretrained without what comes later, exported, and adapted on the device's runtime: by
local updates, by back-propagation through the whole network, by its last block alone, or not at all. What is measured
is accuracy on later rows of the new, and on the old: forgetting.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeff.artifact import Artifact, open_artifact
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.export import export_network
from edgeff.preprocess import fit_preprocessing
from edgeff.pretrain_job import Prepared, PretrainJob, prepare
from edgeff.pretrain_run import load_run
from edgeff.recipe import read_recipe
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import RunFolder, read_weights
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.evaluate import evaluate
from edgeff.runtime.network import open_network
from edgeff.runtime.plan import plan
from edgeff.runtime.settings import AdaptSettings
from edgeff.split import calibration_split, stratified_rows
from edgeff.studies.findings import Findings, Row, base_below, number
from edgeff.studies.picture import Panel
from edgeff.studies.training import StudySettings, mean, run_name, run_prepared

NONE, LAST, LOCAL, GLOBAL = "none", "last block", "local", "back-propagation"
METHODS = (NONE, LAST, LOCAL, GLOBAL)
FEW_PER_CLASS = 5
# A sensor that was knocked: one axis of each triple turned into another, and a gain that has changed.
DRIFT_DEGREES, DRIFT_GAIN = 25.0, 1.15
EPOCHS = 10
OLD_ROWS = 1000
# People of a scenario, for each seed.
CASES = 3


@dataclass(frozen=True)
class Scenario:
    """What is known beforehand and what comes later.

    Attributes:
        recipe: Of the pretraining.
        prepare: `(prepared, seed)` -> what is pretrained on, and the cases that come later.
        own_run: Something is changed of what the recipe trains on; otherwise scenarios share their pretraining.
    """

    recipe: str
    prepare: Callable[[Prepared, int], tuple[Prepared, list[Case]]]
    own_run: bool = False


@dataclass(frozen=True)
class Case:
    """One person, speaker, sensor or class.

    Attributes:
        name: For the folder of its runs.
        own: Labelled rows on the device.
        later: Rows of the same kind to test on.
    """

    name: str
    own: Dataset
    later: Dataset


def adapt(settings: StudySettings) -> Findings:
    """All scenarios whose data are at hand.

    Raises:
        DataError: None is.
    """
    rows: list[Row] = []
    for name, scenario in SCENARIOS.items():
        try:
            rows += _scenario(name, scenario, settings)
        except DataError as error:
            settings.report(f"{name} is left out: {error}")
    if not rows:
        raise DataError(
            "no data for any scenario are at hand", hint="give `--data-dir` with `hapt` or `speech-commands`"
        )
    series: dict[str, dict[str | float, float]] = {}
    for row in rows:
        series.setdefault(str(row["method"]), {})[str(row["scenario"])] = 100 * number(row, "new_accuracy")
    lowest = base_below(value for values in series.values() for value in values.values())
    return Findings(
        "adapt",
        "Adapting on the device: local updates, back-propagation, the last block alone",
        rows,
        [Panel("accuracy on later rows of the new, %", series, base=lowest)],
        _paragraph(rows),
    )


def _scenario(name: str, scenario: Scenario, settings: StudySettings) -> Iterator[Row]:
    found: dict[str, list[_Adapted]] = {method: [] for method in METHODS}
    recipe = read_recipe(scenario.recipe)
    for seed in range(settings.seeds):
        job = PretrainJob.of_recipe(recipe, seed=seed, **settings.machine)
        prepared, cases = scenario.prepare(prepare(job, data_dir=settings.data_dir), seed)
        run = run_name(recipe.name, name if scenario.own_run else "DTG-FF") + f"-seed{seed}"
        run_prepared(prepared, run, settings)
        own, whole = _artifacts(settings.out / "runs" / run)
        old = _old_rows(prepared, seed)
        for case in cases:
            for method in METHODS:
                settings.report(f"{name}, seed {seed}, {case.name}: {method}")
                found[method].append(_adapted(method, own, whole, case, old, seed, settings.epochs or EPOCHS))
    for method, runs in found.items():
        yield {
            "scenario": name,
            "method": method,
            "runs": len(runs),
            "new_accuracy": mean([run.new for run in runs]),
            "old_accuracy": mean([run.old for run in runs]),
            "forgotten": mean([run.old_before - run.old for run in runs]),
            "seconds": mean([run.seconds for run in runs]),
            "planned_bytes": max(run.planned_bytes for run in runs),
        }


@dataclass(frozen=True)
class _Adapted:
    new: float
    old: float
    old_before: float
    seconds: float
    planned_bytes: int


def _artifacts(run: Path) -> tuple[Artifact, Artifact]:
    """The run's network with its own blocks, and as one block."""
    done = load_run(run)
    replay = (done.replay_x, done.replay_y)
    own = done.network.predicting()
    kinds = {"local": own, "whole": own.regroup("whole", "last")}
    folders = {kind: run / f"artifact-{kind}" for kind in kinds}
    if folders["local"].exists() and len(open_artifact(folders["local"]).manifest.blocks) != len(own.blocks):
        for folder in folders.values():  # of an edgeff that left nothing out
            shutil.rmtree(folder, ignore_errors=True)
    for kind, network in kinds.items():
        if not folders[kind].exists():
            export_network(network, folders[kind], preprocessing=done.preprocessing, replay=replay)
    return open_artifact(folders["local"]), open_artifact(folders["whole"])


def _adapted(method: str, own: Artifact, whole: Artifact, case: Case, old: Dataset, seed: int, epochs: int) -> _Adapted:
    """Adapt on one core without a guard: every epoch counts, and the last one's weights are kept."""
    artifact = whole if method == GLOBAL else own
    engine = OnnxRuntime(1)
    weights: Mapping[str, np.ndarray] | None = None
    # Of the same artifact: the whole network as one block predicts by its last readout alone.
    before = evaluate(open_network(artifact, engine), old.x, old.y).accuracy
    seconds, planned_bytes = 0.0, 0
    if method != NONE:
        last = own.manifest.blocks[-1].name
        defaults = artifact.manifest.training
        settings = AdaptSettings(
            epochs=epochs,
            batch_size=defaults.batch_size,
            learning_rate=defaults.learning_rate,
            replay_fraction=defaults.replay_fraction,
            guard_fraction=0.0,
            seed=seed,
            blocks=(last,) if method == LAST else None,
        )
        request = adaptation_request(artifact.manifest, settings, len(case.own), budget_bytes=None)
        chosen = plan(artifact.manifest, replace(request, schedule="sweep"))
        planned_bytes = chosen.planned_bytes
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as parent:
            folder = RunFolder(Path(parent) / "run")
            for _ in Adaptation(artifact, case.own, settings, request, chosen, engine, folder).run():
                pass
            seconds = time.perf_counter() - began
            weights = read_weights(folder.best, artifact.manifest_sha256)
    network = open_network(artifact, engine, weights=weights)
    new, kept = (evaluate(network, rows.x, rows.y).accuracy for rows in (case.later, old))
    return _Adapted(new, kept, before, seconds, planned_bytes)


def _old_rows(prepared: Prepared, seed: int) -> Dataset:
    """Rows of what was known before: validation rows, at most `OLD_ROWS`, which nothing was trained on."""
    numbers = np.random.default_rng(seed).permutation(len(prepared.validation))[:OLD_ROWS]
    return prepared.validation.select(np.sort(numbers))


# --- scenarios: who or what comes later -------------------------------------------------------------------------------


def _people(prepared: Prepared, seed: int) -> tuple[Prepared, list[Case]]:
    """Each person of the test data, drawn by the seed: the earlier half of every activity, tested on the later."""
    cases = [Case(f"person {number}", *calibration_split(rows)) for number, rows in _some_groups(prepared, seed)]
    return prepared, cases


def _few_labels(prepared: Prepared, seed: int) -> tuple[Prepared, list[Case]]:
    """The same people with a handful of labelled rows of each class."""
    prepared, cases = _people(prepared, seed)
    few = [replace(case, own=case.own.select(stratified_rows(case.own.y, FEW_PER_CLASS, seed))) for case in cases]
    return prepared, few


def _drifted(prepared: Prepared, seed: int) -> tuple[Prepared, list[Case]]:
    """The same people after their sensor was turned and its gain has changed."""
    prepared, cases = _people(prepared, seed)
    return prepared, [replace(case, own=drifted(case.own), later=drifted(case.later)) for case in cases]


def drifted(dataset: Dataset) -> Dataset:
    """Raw inertial rows, channels in threes, turned about the first axis and scaled; the dtype stays."""
    x = np.asarray(dataset.x[np.arange(len(dataset))])
    angle = np.radians(DRIFT_DEGREES)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    time_last = x.shape[1] % 3 == 0
    signals = (x if time_last else x.transpose(0, 2, 1)).astype(np.float64)
    turned = np.einsum("ab,nsbt->nsat", DRIFT_GAIN * turn, signals.reshape(len(x), -1, 3, signals.shape[2]))
    moved = turned.reshape(signals.shape)
    moved = moved if time_last else moved.transpose(0, 2, 1)
    if x.dtype.kind in "iu":
        limits = np.iinfo(x.dtype)
        moved = np.clip(np.rint(moved), limits.min, limits.max)
    return replace(dataset, x=np.ascontiguousarray(moved.astype(x.dtype)))


def _new_class(prepared: Prepared, seed: int) -> tuple[Prepared, list[Case]]:
    """A class that pretraining never saw, drawn by the seed; the device gets rows of it, and has replay rows."""
    assert prepared.test is not None
    label = int(np.random.default_rng(seed).integers(len(prepared.network.classes)))
    before = replace(
        prepared,
        train=prepared.train.select(prepared.train.y != label),
        validation=prepared.validation.select(prepared.validation.y != label),
        test=prepared.test.select(prepared.test.y != label),
    )
    shape, dtype = prepared.network.input_shape, prepared.network.input_dtype
    before = replace(before, preprocessing=fit_preprocessing(before.train, shape, dtype=dtype))
    own, later = calibration_split(prepared.test.select(prepared.test.y == label))
    return before, [Case(f"class {prepared.network.classes[label]}", own, later)]


def _some_groups(prepared: Prepared, seed: int) -> Iterator[tuple[int, Dataset]]:
    """The test people with the most rows, in an order drawn by the seed."""
    test = prepared.test
    if test is None or test.groups is None:
        raise DataError("the test data do not say whom their rows come from")
    groups, counts = np.unique(test.groups[test.groups >= 0], return_counts=True)
    largest = groups[np.argsort(-counts, kind="stable")[: 2 * CASES]]
    for group in np.random.default_rng(seed).permutation(largest)[:CASES]:
        yield int(group), test.select(test.groups == group)


SCENARIOS: Mapping[str, Scenario] = {
    "new person": Scenario("hapt-cpu", _people),
    "few labels": Scenario("hapt-cpu", _few_labels),
    "drifted sensor": Scenario("hapt-cpu", _drifted),
    "new class": Scenario("hapt-cpu", _new_class, own_run=True),
    "new speaker": Scenario("speech-commands-cpu", _people),
}


def _paragraph(rows: list[Row]) -> str:
    said = []
    for scenario in dict.fromkeys(str(row["scenario"]) for row in rows):
        own = {str(row["method"]): row for row in rows if row["scenario"] == scenario}
        new = {method: 100 * number(row, "new_accuracy") for method, row in own.items()}
        local, whole = own[LOCAL], own[GLOBAL]
        said.append(
            f"{scenario}: {new[NONE]:.1f} % before; local updates {new[LOCAL]:.1f} %, back-propagation "
            f"{new[GLOBAL]:.1f} %, the last block alone {new[LAST]:.1f} %; forgotten of the old "
            f"{100 * number(local, 'forgotten'):+.1f}, {100 * number(whole, 'forgotten'):+.1f} and "
            f"{100 * number(own[LAST], 'forgotten'):+.1f} points"
        )
    return ". ".join(text[0].upper() + text[1:] for text in said) + "."
