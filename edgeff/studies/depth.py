"""`depth`: how accuracy goes from block to block, by local learning and by back-propagation with deep supervision."""

from __future__ import annotations

from collections.abc import Iterator

from edgeff.pretrain_job import PretrainJob
from edgeff.recipe import Recipe, read_recipe
from edgeff.studies.compare import global_job, local_name
from edgeff.studies.findings import Findings, Row, number, points
from edgeff.studies.picture import Panel
from edgeff.studies.training import StudySettings, mean, over_seeds, run_name

DEFAULT_RECIPE = "hapt-cpu"
FUSED = "fused"


def depth(settings: StudySettings) -> Findings:
    """Test accuracy of each readout by itself, and of the prediction, on one recipe."""
    recipe = read_recipe(settings.recipes[0] if settings.recipes else DEFAULT_RECIPE)
    rows = list(_rows(recipe, settings))
    series: dict[str, dict[str | float, float]] = {}
    for row in rows:
        if row["block"] != FUSED:
            series.setdefault(str(row["method"]), {})[number(row, "block")] = 100 * number(row, "test_accuracy")
    lowest = min(value for values in series.values() for value in values.values())
    return Findings(
        name=f"depth-{recipe.name}",
        title=f"Accuracy by depth on {recipe.name}",
        rows=rows,
        panels=[Panel("test accuracy of each block's readout, %, over its number", series, base=lowest)],
        paragraph=_paragraph(rows),
    )


def _rows(recipe: Recipe, settings: StudySettings) -> Iterator[Row]:
    job = PretrainJob.of_recipe(recipe)
    deep = global_job(job, "bp-deepsup")
    for method, changed in {local_name(recipe): job, "bp-deepsup": deep}.items():
        outcomes = over_seeds(changed, run_name(recipe.name, method), settings)
        common: Row = {"method": method, "seeds": len(outcomes)}
        for place in range(len(outcomes[0].readout_accuracy)):
            accuracy = mean([one.readout_accuracy[place] for one in outcomes])
            yield {**common, "block": place + 1, "test_accuracy": accuracy}
        yield {**common, "block": FUSED, "test_accuracy": mean([one.test_accuracy for one in outcomes])}


def _paragraph(rows: list[Row]) -> str:
    said = []
    for method in dict.fromkeys(str(row["method"]) for row in rows):
        own = [row for row in rows if row["method"] == method]
        readouts = [number(row, "test_accuracy") for row in own if row["block"] != FUSED]
        fused = number(own[-1], "test_accuracy")
        best = max(range(len(readouts)), key=lambda place: readouts[place])
        said.append(
            f"{method}: the first block reads {100 * readouts[0]:.2f} %, the best, {best + 1} of {len(readouts)}, "
            f"{100 * readouts[best]:.2f} %, the last {100 * readouts[-1]:.2f} %; fused, {100 * fused:.2f} %, "
            f"{points(fused - readouts[-1])} the last"
        )
    return ". ".join(said) + "."
