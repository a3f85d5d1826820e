"""What `edgeff train-on-device` does: adapt to the user's rows, and keep the result only if it is better.

Some of the user's rows are held out as a guard. The rest are trained on, mixed with replay rows from the artifact so
that what was learnt before is not forgotten. The guard is evaluated before training and after every epoch, and the
weights of the best of these are kept: those the network came with, when training did not help.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeff import __version__
from edgeff.artifact import Artifact
from edgeff.dataset import Dataset
from edgeff.errors import RunError
from edgeff.manifest import Manifest
from edgeff.runtime.allocator import AllocatorMode, return_free_memory
from edgeff.runtime.checkpoint import Checkpoint, RunFolder
from edgeff.runtime.engine import Engine
from edgeff.runtime.evaluate import Evaluation, evaluate
from edgeff.runtime.events import Event, Finished, GuardResult, Notice, Stopped
from edgeff.runtime.guard import best_epoch
from edgeff.runtime.meter import Meter
from edgeff.runtime.mixture import RunRows, prepare_rows
from edgeff.runtime.network import Network, check_block_names, open_network
from edgeff.runtime.plan import Plan, plan
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.trainer import LearningRate, Position, Trainer

RUN_FORMAT = "edgeff-run-on-device"


@dataclass(frozen=True)
class Adaptation:
    """A run, ready to start.

    Attributes:
        artifact: What is adapted.
        dataset: The user's rows.
        settings: Of the run.
        plan: Made for them.
        engine: What runs the graphs.
        folder: The run's files.
        meter: Measures memory, if wanted.
        allocator: How the C allocator was set, for the result.
    """

    artifact: Artifact
    dataset: Dataset
    settings: AdaptSettings
    plan: Plan
    engine: Engine
    folder: RunFolder
    meter: Meter | None = None
    allocator: AllocatorMode | None = None

    def run(self, *, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Adapt.

        Args:
            resume: Go on with the run in the folder; without a whole checkpoint there, from its beginning.
            stop: Asked after every update; True ends the run with a checkpoint.

        Yields:
            What happens, `Finished` or `Stopped` last.

        Raises:
            RunError: The folder is in use, its run is of something else, or a loss is not finite.
            DataError: The rows cannot be split or read.
            EngineError: A graph cannot be run.
        """
        if resume:
            yield from self._check_resumed()
            finished = self.folder.result()
            if finished is not None:
                yield Finished(finished)
                return
        rows = prepare_rows(self.artifact, self.dataset, self.settings)
        if not resume:
            self.folder.create(self._facts())
        yield from _Run(self, rows, stop).events()

    def _facts(self) -> dict[str, Any]:
        return {
            "format": RUN_FORMAT,
            "version": 1,
            "edgeff_version": __version__,
            "artifact": str(self.artifact.path.resolve()),
            "manifest_sha256": self.artifact.manifest_sha256,
            "settings": self.settings.as_dict(),
            "data": {
                "name": self.dataset.name,
                "rows": len(self.dataset),
                "labels_sha256": hashlib.sha256(self.dataset.y.tobytes()).hexdigest(),
            },
            "engine": self.engine.name,
            "threads": self.engine.threads,
            "micro_batch": self.plan.micro_batch,
        }

    def _check_resumed(self) -> Iterator[Notice]:
        """Refuse to go on with another run; tell of what may change the last bits of the result."""
        began, now = self.folder.facts(), self._facts()
        for key, what in (("format", "format"), ("manifest_sha256", "artifact"), ("data", "data")):
            if began.get(key) != now[key]:
                raise _other_run(self.folder.path, what)
        for key, value in now["settings"].items():
            if began.get("settings", {}).get(key) != value:
                raise _other_run(self.folder.path, f"setting `{key}`")
        for key in ("engine", "threads", "micro_batch"):
            if began.get(key) != now[key]:
                yield Notice(
                    f"the run began with {key.replace('_', '-')} {began.get(key)}, now it is {now[key]}: "
                    "the result may differ in its last bits"
                )


def plan_adaptation(
    manifest: Manifest, settings: AdaptSettings, rows: int, *, budget_bytes: int | None, threads: int = 1
) -> Plan:
    """The plan of a run on `rows` rows of the user's.

    Raises:
        BudgetError: It does not fit into the budget.
        RunError: The settings name an unknown block.
    """
    if settings.blocks is not None:
        check_block_names(manifest, settings.blocks)
    replay = manifest.replay.rows if manifest.replay and settings.replay_fraction else 0
    # Labels are held for all rows, with their joined copy and one order; raw rows for the replay ones alone.
    row_bytes = replay * manifest.input.nbytes + 3 * 8 * (rows + replay)
    return plan(
        manifest,
        budget_bytes=budget_bytes,
        batch_size=settings.batch_size,
        trained=settings.blocks,
        row_bytes=row_bytes,
        threads=threads,
    )


class _Run:
    """A run that has begun."""

    def __init__(self, run: Adaptation, rows: RunRows, stop: Callable[[], bool]) -> None:
        self._run = run
        self._rows = rows
        self._stop = stop
        self._history: list[Evaluation] = []
        self._began = time.perf_counter()
        manifest = run.artifact.manifest
        names = [block.name for block in manifest.blocks]
        self._network: Network = open_network(
            run.artifact,
            run.engine,
            trained=names if run.settings.blocks is None else run.settings.blocks,
            accumulate=run.plan.micro_batch < run.plan.batch_size,
        )
        order = rows.training.order
        self._trainer = Trainer(
            self._network,
            run.plan,
            rows=rows.training,
            learning_rate=LearningRate(
                run.settings.learning_rate,
                run.settings.schedule,
                steps=run.settings.epochs * order.batches_per_epoch,
            ),
            seed=run.settings.seed,
            meter=run.meter,
        )

    def events(self) -> Iterator[Event]:
        loaded, warnings = self._run.folder.load_checkpoint(self._network)
        yield from (Notice(text) for text in warnings)
        position = loaded.position if loaded else Position()
        self._history = [_evaluation_from(values) for values in loaded.guard["history"]] if loaded else []
        if not loaded:
            yield from self._judge(0)
        while position.epoch <= self._run.settings.epochs:
            stopped, position = yield from self._epoch(position)
            if stopped:
                yield Stopped(position)
                return
        yield Finished(self._finish())

    def _epoch(self, start: Position) -> Generator[Event, None, tuple[bool, Position]]:
        """Train to the end of an epoch and judge it; returns whether to stop, and the position saved."""
        every = self._run.settings.checkpoint_steps
        position = start
        for progress in self._trainer.epoch(start):
            yield progress
            position = progress.position
            if position.batch == progress.batches:
                continue  # the guard comes before the checkpoint; let the trainer unload its graphs
            if self._stop():
                self._save(position)
                return True, position
            if every and position.step % every == 0:
                self._save(position)
        yield from self._judge(start.epoch)
        position = Position(epoch=start.epoch + 1, batch=0, step=position.step)
        self._save(position)
        return position.epoch <= self._run.settings.epochs and self._stop(), position

    def _judge(self, epoch: int) -> Iterator[Event]:
        """Evaluate the guard and keep the weights if they are the best so far."""
        guard = self._rows.guard
        if not len(guard):
            self._run.folder.write_best(self._network, epoch)
            return
        return_free_memory()  # the training graphs are gone: let their place serve the others
        evaluation = evaluate(self._network, guard.x, guard.y, micro_batch=self._run.plan.micro_batch)
        return_free_memory()
        self._history.append(evaluation)
        best = self._best(epoch)
        if best == epoch:
            self._run.folder.write_best(self._network, epoch)
        yield GuardResult(epoch, evaluation, best)

    def _best(self, epoch: int) -> int:
        return best_epoch([evaluation.accuracy for evaluation in self._history]) if self._history else epoch

    def _save(self, position: Position) -> None:
        checkpoint = Checkpoint(
            manifest_sha256=self._run.artifact.manifest_sha256,
            position=position,
            settings=self._run.settings.as_dict(),
            # Without times: the files of a resumed run are the same, byte for byte, as those of one that was not.
            guard={"history": [_without_times(evaluation) for evaluation in self._history]},
        )
        self._run.folder.write_checkpoint(self._network, checkpoint)

    def _finish(self) -> dict[str, Any]:
        run = self._run
        order = self._rows.training.order
        result = {
            "edgeff_version": __version__,
            "best_epoch": self._best(run.settings.epochs),
            "epochs": run.settings.epochs,
            "guard": [dataclasses.asdict(evaluation) for evaluation in self._history],
            "rows": {
                "trained_on": order.own_rows,
                "replay": order.replay_rows,
                "guard": len(self._rows.guard),
                "left_out": len(run.dataset) - order.own_rows - len(self._rows.guard),
            },
            "seconds": time.perf_counter() - self._began,
            "engine": run.engine.name,
            "threads": run.engine.threads,
            "allocator": run.allocator.name if run.allocator else None,
            "planned_bytes": run.plan.planned_bytes,
            "plan": dataclasses.asdict(run.plan),
            "measured": _measured(run.meter),
        }
        run.folder.write_result(result)
        return result


def _measured(meter: Meter | None) -> dict[str, Any] | None:
    if meter is None:
        return None
    reading = meter.read()
    return {**dataclasses.asdict(reading), "training_bytes": reading.training_bytes}


def _without_times(evaluation: Evaluation) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(evaluation).items() if key != "rows_per_s"}


def _evaluation_from(values: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**{**values, "per_class": tuple(values["per_class"])})


def _other_run(path: Path, what: str) -> RunError:
    return RunError(
        f"`{path}` cannot be gone on with: its {what} differs",
        hint="give what the run began with (see its `run.json`), or begin another run in another folder",
    )
