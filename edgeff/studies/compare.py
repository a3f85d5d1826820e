"""`compare`: local learning beside back-propagation on one backbone and recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgeff.artifact import open_artifact
from edgeff.errors import ModelError
from edgeff.export import ExportSettings, export_network
from edgeff.pretrain_job import Prepared, PretrainJob, prepare
from edgeff.pretrain_settings import Mode
from edgeff.recipe import Recipe, read_recipe
from edgeff.runtime.plan import plan
from edgeff.runtime.plan_parts import Request, Schedule
from edgeff.studies.findings import Findings, Row, base_below, number, points
from edgeff.studies.picture import Panel
from edgeff.studies.training import Outcome, StudySettings, mean, mean_rate, over_seeds, run_name, spread

_GLOBAL: tuple[Mode, ...] = ("bp-deepsup", "bp")
_SCHEDULES: tuple[Schedule, ...] = ("sweep", "stage")
# Settings that say how blocks are made and what they compare.
_OF_THE_RULE = ("layers", "losses", "micro_batch")


def compare(settings: StudySettings) -> Findings:
    """Each recipe's local learning, and back-propagation with and without deep supervision on the first one's backbone.

    Raises:
        ModelError: No recipe is given, or some differ by more than their blocks and what these learn from.
    """
    if not settings.recipes:
        raise ModelError("study `compare` needs a recipe", hint="for example `--recipe hapt-cpu`")
    recipes = [read_recipe(name) for name in settings.recipes]
    rows = list(_rows(recipes, settings))
    accuracies: dict[str | float, float] = {str(row["method"]): 100 * number(row, "test_accuracy") for row in rows}
    return Findings(
        name=f"compare-{recipes[0].name}",
        title=f"Local learning and back-propagation on {recipes[0].name}",
        rows=rows,
        panels=[Panel("test accuracy, % (mean)", {"accuracy": accuracies}, base=base_below(accuracies.values()))],
        paragraph=_paragraph(rows),
    )


def _rows(recipes: list[Recipe], settings: StudySettings) -> Iterator[Row]:
    first = PretrainJob.of_recipe(recipes[0])
    jobs: dict[str, tuple[str, PretrainJob]] = {}
    for recipe in recipes:
        job, name = PretrainJob.of_recipe(recipe), local_name(recipe)
        _check_comparable(recipe.name, job, recipes[0].name, first)
        jobs[f"{name} ({recipe.name})" if name in jobs else name] = (recipe.name, job)
    for mode in _GLOBAL:
        jobs[mode] = (recipes[0].name, global_job(first, mode))
    for method, (source, job) in jobs.items():
        outcomes = over_seeds(job, run_name(source, method), settings)
        yield _row(source, method, outcomes, prepare(job, data_dir=settings.data_dir))


def _check_comparable(name: str, job: PretrainJob, first_name: str, first: PretrainJob) -> None:
    """Refuse a recipe whose accuracy would differ from the first one's for other reasons than how it learns."""
    own, others = _in_common(job), _in_common(first)
    differing = [key for key in own if own[key] != others[key]]
    if differing:
        raise ModelError(
            f"recipes `{name}` and `{first_name}` differ in {', '.join(differing)}",
            hint="compare recipes that differ in their blocks and in what these learn from, and in nothing else",
        )


def _in_common(job: PretrainJob) -> dict[str, object]:
    """What has to be the same in all that is compared, by a name for people."""
    settings = {key: value for key, value in job.settings.as_dict().items() if key not in _OF_THE_RULE}
    names = ("data", "test", "validation", "preset", "width", "input_shape")
    return {**{name: getattr(job, name) for name in names}, **settings}


def global_job(job: PretrainJob, mode: Mode) -> PretrainJob:
    """Back-propagation on a job's network: joined layers, relations and coarse targets are of local learning alone.

    Auxiliary layers stay: they are part of the readout, through which back-propagation learns, too.
    """
    rule = {key: value for key, value in job.rule.items() if not key.startswith(("relation", "probe", "super_"))}
    return replace(job, rule=rule).with_settings(mode=mode, layers="1-layer", losses="last")


def local_name(recipe: Recipe) -> str:
    """What a recipe's local learning is called: DTG-FF where nothing of the rule is changed but what a readout sees."""
    changes = [f"{key.replace('_', ' ')} {value}" for key, value in recipe.rule.items()]
    layers = str(recipe.options.get("layers", "1-layer"))
    name = "DTG-FF" if all(key.startswith("auxiliary") for key in recipe.rule) else "local"
    return ", ".join([name, *([] if layers == "1-layer" else [layers]), *changes])


def _row(recipe: str, method: str, outcomes: list[Outcome], prepared: Prepared) -> Row:
    tests, planned = [one.test_accuracy for one in outcomes], training_bytes(prepared)
    return {
        "recipe": recipe,
        "method": method,
        "seeds": len(outcomes),
        "test_accuracy": mean(tests),
        "spread": spread(tests),
        "validation_accuracy": mean([one.validation_accuracy for one in outcomes]),
        "last_readout": mean([one.readout_accuracy[-1] for one in outcomes]),
        "parameters": outcomes[0].parameters,
        "planned_bytes": planned["sweep"],
        "stage_bytes": planned["stage"],
        "rows_per_s": mean_rate(outcomes),
        "epochs": outcomes[0].epochs,
    }


def training_bytes(prepared: Prepared) -> dict[Schedule, int]:
    """Planned bytes of training the job's network on a device, as small as can be, by schedule.

    `sweep`: every batch through all blocks; `stage`: one block after another (docs/memory.md). Batch and optimiser are
    the job's, with one row at a time where no rows are compared.
    """
    network = prepared.settings.prepare(prepared.network)
    with tempfile.TemporaryDirectory() as folder:
        spec = ExportSettings(optimizer=prepared.settings.optimizer_spec())
        path = export_network(network, Path(folder) / "a", preprocessing=prepared.preprocessing, settings=spec)
        manifest = open_artifact(path).manifest
    request = Request(batch_size=prepared.settings.batch_size, prefer="memory")
    return {one: plan(manifest, replace(request, schedule=one)).planned_bytes for one in _SCHEDULES}


def _paragraph(rows: list[Row]) -> str:
    by_method, validated = (
        {str(row["method"]): number(row, key) for row in rows} for key in ("test_accuracy", "validation_accuracy")
    )
    local = {method: accuracy for method, accuracy in by_method.items() if method not in _GLOBAL}
    best = max(local, key=lambda method: validated[method])
    said = [
        f"{method} is at {100 * accuracy:.2f} %, {points(accuracy - by_method['bp-deepsup'])} back-propagation with "
        f"deep supervision and {points(accuracy - by_method['bp'])} back-propagation"
        for method, accuracy in local.items()
    ]
    seeds = rows[0]["seeds"]
    return (
        f"Test accuracy, mean of {seeds} seed{'s' * (seeds != 1)}: {'; '.join(said)}. The best local objective on "
        f"validation data is {best}. Nothing was chosen on test data, which each run looked at once."
    )
