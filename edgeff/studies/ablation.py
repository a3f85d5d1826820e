"""`ablation`: each of DTG-FF's three ingredients left out, and all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from edgeff.pretrain_job import PretrainJob
from edgeff.recipe import read_recipe
from edgeff.rule import Setting
from edgeff.studies.findings import Findings, Row, base_below, number, points
from edgeff.studies.picture import Panel
from edgeff.studies.training import Outcome, StudySettings, mean, over_seeds, run_name, spread

DEFAULT_RECIPE = "hapt-cpu"
# What is changed of the rule. Fusion is no matter of training: without it, the last block alone predicts.
VARIANTS: Mapping[str, Mapping[str, Setting]] = {
    "DTG-FF": {},
    "temperature fixed at 1": {"temperature": "fixed"},
    "hand-over not normalised": {"handover": "none"},
    "neither": {"temperature": "fixed", "handover": "none"},
}


def ablation(settings: StudySettings) -> Findings:
    """The rule with an ingredient left out, on one recipe; every variant with fusion and with its last block alone."""
    recipe = read_recipe(settings.recipes[0] if settings.recipes else DEFAULT_RECIPE)
    rows = list(_rows(PretrainJob.of_recipe(recipe), recipe.name, settings))
    series: dict[str, dict[str | float, float]] = {"fused": {}, "last block alone": {}}
    for row in rows:
        series[str(row["prediction"])][str(row["rule"])] = 100 * number(row, "test_accuracy")
    every = [value for values in series.values() for value in values.values()]
    return Findings(
        name=f"ablation-{recipe.name}",
        title=f"DTG-FF without one of its ingredients, on {recipe.name}",
        rows=rows,
        panels=[Panel("test accuracy, % (mean over seeds)", series, base=base_below(every))],
        paragraph=_paragraph(rows),
    )


def _rows(job: PretrainJob, recipe: str, settings: StudySettings) -> Iterator[Row]:
    for rule, changes in VARIANTS.items():
        changed = replace(job, rule={**job.rule, **changes})
        outcomes = over_seeds(changed, run_name(recipe, rule), settings)
        yield _row(rule, "fused", outcomes, [one.test_accuracy for one in outcomes])
        yield _row(rule, "last block alone", outcomes, [one.readout_accuracy[-1] for one in outcomes])


def _row(rule: str, prediction: str, outcomes: list[Outcome], accuracies: list[float]) -> Row:
    return {
        "rule": rule,
        "prediction": prediction,
        "seeds": len(outcomes),
        "test_accuracy": mean(accuracies),
        "spread": spread(accuracies),
        "epochs": outcomes[0].epochs,
    }


def _paragraph(rows: list[Row]) -> str:
    found = {(str(row["rule"]), str(row["prediction"])): number(row, "test_accuracy") for row in rows}
    whole = found["DTG-FF", "fused"]
    said = [f"{rule} is {points(found[rule, 'fused'] - whole)} it" for rule in VARIANTS if rule != "DTG-FF"]
    last = f"without fusion the last block is {points(found['DTG-FF', 'last block alone'] - whole)} it"
    return f"The whole rule reaches {100 * whole:.2f} %; {'; '.join(said)}; {last}."
