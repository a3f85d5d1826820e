"""What `edgeff train-on-device` does: adapt to the user's rows, and keep the result only if it is better.

Some of the user's rows are held out as a guard. The rest are trained on, mixed with replay rows from the artifact so
that what was learnt before is not forgotten. The guard is evaluated before training and after every epoch, and the
weights of the best of these are kept: those the network came with, when training did not help.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeff import __version__
from edgeff.artifact import Artifact
from edgeff.dataset import Dataset
from edgeff.errors import RunError
from edgeff.manifest import Manifest
from edgeff.runtime.allocator import AllocatorMode
from edgeff.runtime.checkpoint import RunFolder
from edgeff.runtime.engine import Engine
from edgeff.runtime.events import Event, Finished, Notice
from edgeff.runtime.guard import SPLITTING_BYTES
from edgeff.runtime.meter import Meter
from edgeff.runtime.mixture import described, prepare_rows
from edgeff.runtime.network import check_block_names
from edgeff.runtime.plan_parts import Plan, Request
from edgeff.runtime.provider_check import check_provider
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.stage_run import StageRun
from edgeff.runtime.stops import Stop, never
from edgeff.runtime.sweep_run import SweepRun

RUN_FORMAT = "edgeff-run-on-device"


@dataclass(frozen=True)
class Adaptation:
    """A run, ready to start.

    Attributes:
        artifact: What is adapted.
        dataset: The user's rows.
        settings: Of the run.
        request: What the plan was made for.
        plan: Made for them.
        engine: What runs the graphs.
        folder: The run's files.
        meter: Measures memory, if wanted.
        allocator: How the C allocator was set, for the result.
        asked_budget: A new budget in bytes over the floor, or None while nothing changed; asked after every update.
            Raises ValueError where what was asked is not understood.
        guard: Rows of their own to judge by; None to hold out some of the user's, as the settings say.
        skipped: Rows of the user's that were left out before, by what is wrong with them; for the result.
        writes_per_hour: Bound in bytes for checkpoints and best weights (`edgeff.runtime.wear`); None for none.
    """

    artifact: Artifact
    dataset: Dataset
    settings: AdaptSettings
    request: Request
    plan: Plan
    engine: Engine
    folder: RunFolder
    meter: Meter | None = None
    allocator: AllocatorMode | None = None
    asked_budget: Callable[[], int | None] = lambda: None
    writes_per_hour: int | None = None
    guard: Dataset | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)

    def run(self, *, resume: bool = False, stop: Stop = never) -> Iterator[Event]:
        """Adapt.

        Args:
            resume: Go on with the run in the folder; without a whole checkpoint there, from its beginning.
            stop: Asked between micro-batches; a reason ends the run with a checkpoint.

        Yields:
            What happens, `Finished` or `Stopped` last.

        Raises:
            RunError: The folder is in use, its run is of something else, or a loss is not finite.
            BudgetError: The budget cannot be kept, or nothing fits into a new one; a checkpoint is written before.
            DataError: The rows cannot be split or read.
            EngineError: A graph cannot be run.
        """
        rows = None
        if not resume or self.folder.is_blank():
            rows = prepare_rows(self.artifact, self.dataset, self.settings, self.guard)
            self.folder.create(self._facts())
        elif not self.folder.path.is_dir():
            self.folder.facts()
        with self.folder.locked():
            if rows is None:
                yield from self._check_resumed()
                finished = self.folder.result()
                if finished is not None:
                    self.folder.check_published()
                    yield Finished(finished)
                    return
            rows = rows or prepare_rows(self.artifact, self.dataset, self.settings, self.guard)
            check_provider(self.artifact, self.engine, self.plan)
            self.engine.reserve(self.plan.arena_bytes)
            kind = StageRun if self.plan.schedule == "stage" else SweepRun
            yield from kind(self, rows, stop).events()

    def _facts(self) -> dict[str, Any]:
        return {
            "format": RUN_FORMAT,
            "version": 1,
            "edgeff_version": __version__,
            "artifact": str(self.artifact.path.resolve()),
            "manifest_sha256": self.artifact.manifest_sha256,
            "settings": self.settings.as_dict(),
            "data": described(self.dataset),
            **({} if self.guard is None else {"guard_data": described(self.guard)}),
            "engine": self.engine.name,
            "threads": self.engine.threads,
            "micro_batch": self.plan.micro_batch,
        }

    def _check_resumed(self) -> Iterator[Notice]:
        """Refuse to go on with another run; tell of what may change the last bits of the result."""
        began, now = self.folder.facts(), self._facts()
        for key, what in (
            ("format", "format"),
            ("manifest_sha256", "artifact"),
            ("data", "data"),
            ("guard_data", "guard data"),
        ):
            if _identity(began.get(key)) != _identity(now.get(key)):
                raise _other_run(self.folder.path, f"{what} differs")
        settings = began.get("settings")
        for key, value in now["settings"].items():
            if not isinstance(settings, dict) or settings.get(key) != value:
                # Both values: who goes on may have left an option out.
                was = settings.get(key) if isinstance(settings, dict) else None
                changed = f"was {json.dumps(was)}, and now it is {json.dumps(value)}"
                raise _other_run(self.folder.path, f"setting `{key}` {changed}")
        for key in ("engine", "threads", "micro_batch"):
            if began.get(key) != now[key]:
                yield Notice(
                    f"the run began with {key.replace('_', '-')} {began.get(key)}, now it is {now[key]}: "
                    "the result may differ in its last bits"
                )


def adaptation_request(
    manifest: Manifest,
    settings: AdaptSettings,
    rows: int,
    *,
    budget_bytes: int | None,
    known_bytes: int | None = None,
    **more: Any,
) -> Request:
    """What a run asks of the planner.

    Args:
        manifest: Of the artifact.
        settings: Of the run.
        rows: How many the user has.
        budget_bytes: Over the floor; None for no limit.
        known_bytes: Of their labels, groups, recordings and spans, and of rows to judge by; None for labels alone.
        **more: Other attributes of the request.

    Raises:
        RunError: The settings name an unknown block, or none that any prediction depends on.
        BudgetError: The budget holds nothing.
    """
    if settings.blocks is not None:
        check_block_names(manifest, settings.blocks)
        _refuse_to_learn_for_nothing(manifest, settings.blocks)
    replay = manifest.replay.rows if manifest.replay and settings.replay_fraction else 0
    known = 8 * rows if known_bytes is None else known_bytes
    return Request(
        batch_size=settings.batch_size,
        budget_bytes=budget_bytes,
        trained=settings.blocks,
        rows=rows + replay,
        # Held are numbers of the rows to train on, joined labels and one order; raw rows of the replay ones alone.
        row_bytes=replay * manifest.input.nbytes + 3 * 8 * (rows + replay) + int(known * (1 + settings.guard_fraction)),
        splitting_bytes=known + SPLITTING_BYTES * rows,
        **more,
    )


def _refuse_to_learn_for_nothing(manifest: Manifest, names: Sequence[str]) -> None:
    last = manifest.last_predicting.name
    known = [block.name for block in manifest.blocks]
    if names and min(known.index(name) for name in names) > known.index(last):
        listed = ", ".join(f"`{name}`" for name in names)
        raise RunError(
            f"training {listed} would change no prediction: `{last}` is the last block that takes part in it",
            hint="name that one, or an earlier one",
        )


def engine_request(engine: Engine) -> dict[str, Any]:
    """What an engine asks of the planner; attributes of the request.

    One with copies of its own runs in memory of its own; one that keeps gradients sums them in any case. What a
    provider takes for itself nobody can tell beforehand, and which forms are fast on it neither.
    """
    if not engine.has_copies:
        return {}
    summed = {"updates": "accumulated"} if engine.keeps_gradients else {}
    memory = engine.memory() is not None
    return {"arena": False, "engine_copies": True, "fast": False, "uniform": memory, **summed}


def _identity(described: object) -> object:
    """Without the name: the same rows may be found by another path."""
    return {**described, "name": ""} if isinstance(described, dict) else described


def _other_run(path: Path, what: str) -> RunError:
    return RunError(
        f"`{path}` cannot be gone on with: its {what}",
        hint="give what the run began with (see its `run.json`), or begin another run in another folder",
    )
