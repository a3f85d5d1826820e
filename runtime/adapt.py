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
from typing import Any, Literal

from edgeff import __version__
from edgeff.artifact import Artifact
from edgeff.dataset import Dataset
from edgeff.errors import BudgetError, RunError
from edgeff.manifest import Manifest
from edgeff.runtime.allocator import AllocatorMode, return_free_memory
from edgeff.runtime.block_meter import BlockMeter
from edgeff.runtime.checkpoint import Checkpoint, RunFolder
from edgeff.runtime.engine import Engine
from edgeff.runtime.evaluate import Evaluation, evaluate
from edgeff.runtime.events import Event, Finished, GuardResult, Notice, Replanned, Stopped
from edgeff.runtime.guard import best_epoch
from edgeff.runtime.meter import Meter
from edgeff.runtime.mixture import RunRows, prepare_rows
from edgeff.runtime.network import Network, check_block_names, open_network, open_on_disk
from edgeff.runtime.plan import Plan, Request
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.stage_inputs import StageInputs
from edgeff.runtime.store import BlockFiles
from edgeff.runtime.trainer import LearningRate, Position, Trainer, TrainingRows
from edgeff.runtime.watch import Change, Watch

RUN_FORMAT = "edgeff-run-on-device"
# Why an epoch ended: at its end, by a signal, or for another plan.
Ended = Literal["done", "stopped", "replanned"]


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

    def run(self, *, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Adapt.

        Args:
            resume: Go on with the run in the folder; without a whole checkpoint there, from its beginning.
            stop: Asked after every update; True ends the run with a checkpoint.

        Yields:
            What happens, `Finished` or `Stopped` last.

        Raises:
            RunError: The folder is in use, its run is of something else, or a loss is not finite.
            BudgetError: The budget cannot be kept, or nothing fits into a new one; a checkpoint is written before.
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


def adaptation_request(
    manifest: Manifest, settings: AdaptSettings, rows: int, *, budget_bytes: int | None, **more: Any
) -> Request:
    """What a run on `rows` rows of the user's asks of the planner; `more` are other attributes of the request.

    Raises:
        RunError: The settings name an unknown block.
        BudgetError: The budget holds nothing.
    """
    if settings.blocks is not None:
        check_block_names(manifest, settings.blocks)
    replay = manifest.replay.rows if manifest.replay and settings.replay_fraction else 0
    return Request(
        batch_size=settings.batch_size,
        budget_bytes=budget_bytes,
        trained=settings.blocks,
        rows=rows + replay,
        # Labels are held for all rows, with their joined copy and one order; raw rows for the replay ones alone.
        row_bytes=replay * manifest.input.nbytes + 3 * 8 * (rows + replay),
        **more,
    )


class _Run:
    """A run that has begun: what both schedules have in common."""

    def __init__(self, run: Adaptation, rows: RunRows, stop: Callable[[], bool]) -> None:
        self._run = run
        self._rows = rows
        self._stop = stop
        self._plan = run.plan
        self._history: list[Evaluation] = []
        self._began = time.perf_counter()
        self._rows_trained, self._seconds = 0, 0.0
        self._watch = Watch(run.artifact.manifest, run.request, run.meter, run.asked_budget)
        self._block_meter = BlockMeter(run.meter) if run.meter else None

    def _trainer(self, network: Network, rows: TrainingRows, only: int | None = None) -> Trainer:
        settings = self._run.settings
        steps = settings.epochs * rows.order.batches_per_epoch
        return Trainer(
            network,
            self._plan,
            rows=rows,
            learning_rate=LearningRate(settings.learning_rate, settings.lr_schedule, steps=steps),
            seed=settings.seed,
            meter=self._run.meter,
            block_meter=self._block_meter,
            only=only,
        )

    def _epoch(self, trainer: Trainer, start: Position) -> Generator[Event, None, tuple[Ended, Position]]:
        """Train to the end of an epoch; returns why it ended, and the position, which is saved where it was stopped."""
        position = start
        if (yield from self._look(trainer.network, position)):
            return "replanned", position
        for progress in trainer.epoch(position):
            yield progress
            self._rows_trained, self._seconds = self._rows_trained + progress.rows, self._seconds + progress.seconds
            position = progress.position
            if position.batch == progress.batches:
                continue  # the guard comes before the checkpoint; let the trainer unload its graphs
            if self._stop():
                self._save(trainer.network, position)
                return "stopped", position
            self._save_now_and_then(trainer.network, position)
            if (yield from self._look(trainer.network, position)):
                return "replanned", position
        return_free_memory()  # the graphs are gone: let their place serve the next ones
        return "done", position

    def _look(self, network: Network, position: Position) -> Generator[Event, None, bool]:
        """Whether there is another plan now, for the caller to follow; a run whose budget cannot be kept is saved."""
        try:
            change = self._watch.look(self._plan)
        except ValueError as error:
            yield Notice(str(error))
            return False
        except BudgetError:
            self._save(network, position)
            raise
        if change:
            yield from self._take(change)
        return change is not None

    def _take(self, change: Change) -> Iterator[Event]:
        self._plan = change.plan
        if self._block_meter:
            self._block_meter.forget()
        yield Replanned(change.plan, change.reason)

    def _begin_plan(self) -> None:
        """Measure anew, once what the plan before held is gone."""
        self._run.engine.reserve(self._plan.arena_bytes)
        return_free_memory()
        self._watch.changed()

    def _judge(self, network: Network, epoch: int) -> Iterator[Event]:
        """Evaluate the guard and keep the weights if they are the best so far."""
        guard = self._rows.guard
        if not len(guard):
            self._run.folder.write_best(network, epoch)
            return
        return_free_memory()  # the training graphs are gone: let their place serve the others
        evaluation = evaluate(network, guard.x, guard.y, micro_batch=self._plan.evaluation_rows)
        return_free_memory()
        self._history.append(evaluation)
        best = self._best(epoch)
        if best == epoch:
            self._run.folder.write_best(network, epoch)
        yield GuardResult(epoch, evaluation, best)

    def _best(self, epoch: int) -> int:
        return best_epoch([evaluation.accuracy for evaluation in self._history]) if self._history else epoch

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            self._history = [_evaluation_from(values) for values in checkpoint.guard["history"]]

    def _save_now_and_then(self, network: Network, position: Position) -> None:
        every = self._run.settings.checkpoint_steps
        if every and position.step % every == 0:
            self._save(network, position)

    def _save(self, network: Network, position: Position) -> None:
        checkpoint = Checkpoint(
            manifest_sha256=self._run.artifact.manifest_sha256,
            position=position,
            settings=self._run.settings.as_dict(),
            # Without times: the files of a resumed run are the same, byte for byte, as those of one that was not.
            guard={"history": [_without_times(evaluation) for evaluation in self._history]},
        )
        self._run.folder.write_checkpoint(network, checkpoint)

    def _finish(self, judged: int) -> dict[str, Any]:
        run = self._run
        order = self._rows.training.order
        result = {
            "edgeff_version": __version__,
            "schedule": self._plan.schedule,
            "best_epoch": self._best(judged),
            "epochs": run.settings.epochs,
            "guard": [dataclasses.asdict(evaluation) for evaluation in self._history],
            "rows": {
                "trained_on": order.own_rows,
                "replay": order.replay_rows,
                "guard": len(self._rows.guard),
                "left_out": len(run.dataset) - order.own_rows - len(self._rows.guard),
            },
            "seconds": time.perf_counter() - self._began,
            "rows_per_s": self._rows_trained / self._seconds if self._seconds else 0.0,
            "engine": run.engine.name,
            "threads": run.engine.threads,
            "allocator": run.allocator.name if run.allocator else None,
            "planned_bytes": run.plan.planned_bytes,
            "plan": dataclasses.asdict(self._plan),
            "blocks": self._measured_blocks(),
            "measured": _measured(run.meter),
        }
        run.folder.write_result(result)
        return result

    def _measured_blocks(self) -> list[dict[str, Any]]:
        """What each block took: its arrays, which are what they are, and by how much its runs raised the peak."""
        rises = self._block_meter.rises if self._block_meter else {}
        return [
            {
                "block": part.block,
                "planned_bytes": part.planned_bytes - part.session_bytes,
                "measured_bytes": part.resident_bytes + rises[number] if number in rises else None,
                "budget_bytes": part.budget_bytes,
            }
            for number, part in enumerate(self._plan.blocks)
            if part.graphs
        ]


class SweepRun(_Run):
    """Every batch passes all blocks."""

    def events(self) -> Iterator[Event]:
        """See `Adaptation.run`."""
        run, manifest = self._run, self._run.artifact.manifest
        names = [block.name for block in manifest.blocks]
        network = open_network(
            run.artifact,
            run.engine,
            trained=names if run.settings.blocks is None else run.settings.blocks,
            accumulate=any("accumulate" in part.graphs for part in self._plan.blocks),
        )
        loaded, warnings = run.folder.load_checkpoint(network)
        yield from (Notice(text) for text in warnings)
        self._restore(loaded)
        position = loaded.position if loaded else Position()
        if not loaded:
            yield from self._judge(network, 0)
        trainer = self._trainer(network, self._rows.training)
        del network  # the trainer's own may lose its gradient sums by another plan
        while position.epoch <= run.settings.epochs:
            ended, position = yield from self._epoch(trainer, position)
            if ended == "replanned":
                trainer.change_plan(self._plan)
                self._begin_plan()
                continue
            if ended == "done":
                yield from self._judge(trainer.network, position.epoch)
                position = Position(epoch=position.epoch + 1, batch=0, step=position.step)
                self._save(trainer.network, position)
            if ended == "stopped" or (position.epoch <= run.settings.epochs and self._stop()):
                yield Stopped(position)
                return
        yield Finished(self._finish(run.settings.epochs))


class StageRun(_Run):
    """One block after another, each for all epochs, with only it in memory."""

    def __init__(self, run: Adaptation, rows: RunRows, stop: Callable[[], bool]) -> None:
        super().__init__(run, rows, stop)
        self._files = BlockFiles(run.folder.path, run.artifact)
        self._blocks = [number for number, part in enumerate(run.plan.blocks) if part.trained]

    def events(self) -> Iterator[Event]:
        """See `Adaptation.run`."""
        run = self._run
        on_disk = open_on_disk(run.artifact, run.engine, self._files)
        loaded, warnings = run.folder.load_checkpoint(on_disk)
        yield from (Notice(text) for text in warnings)
        self._restore(loaded)
        position = loaded.position if loaded else Position()
        if not loaded:
            yield from self._judge(on_disk, 0)
        inputs = StageInputs(run.folder.path, run.artifact, self._files, self._facts())
        while position.stage < len(self._blocks):
            ended, position = yield from self._stage(on_disk, inputs, position)
            if ended == "stopped":
                yield Stopped(position)
                return
            if ended == "replanned":
                self._begin_plan()
        inputs.remove_all()
        yield Finished(self._finish(len(self._blocks)))

    def _stage(
        self, on_disk: Network, inputs: StageInputs, position: Position
    ) -> Generator[Event, None, tuple[Ended, Position]]:
        """Train one block to its end; returns why it ended, and the position, which is saved.

        For another plan the stage is left as by a stop and begun anew where it was: so nothing is held of the old one.
        """
        block = self._blocks[position.stage]
        begins = position == Position(stage=position.stage)
        if begins:
            if (yield from self._look(on_disk, position)):
                return "replanned", position
            self._files.forget(on_disk.manifest.blocks[block])
        rows = yield from self._inputs(on_disk, inputs, block)
        network = on_disk.holding(block, accumulate="accumulate" in self._plan.blocks[block].graphs)
        if not begins:
            self._run.folder.load_checkpoint(network)
        trainer = self._trainer(network, rows, only=block)
        del rows, network
        while position.epoch <= self._run.settings.epochs:
            ended, position = yield from self._epoch(trainer, position)
            if ended == "replanned":
                self._save(trainer.network, position)
            if ended != "done":
                return ended, position
            position = Position(position.epoch + 1, 0, position.step, position.stage)
            if position.epoch <= self._run.settings.epochs:
                self._save(trainer.network, position)
                if self._stop():
                    return "stopped", position
        memory = trainer.network.memory(block)
        self._files.write(memory)
        del trainer, memory
        position = Position(stage=position.stage + 1)
        yield from self._judge(on_disk, position.stage)
        self._save(on_disk, position)
        return "stopped" if position.stage < len(self._blocks) and self._stop() else "done", position

    def _inputs(self, on_disk: Network, inputs: StageInputs, block: int) -> Generator[Event, None, TrainingRows]:
        """What goes into a block; written to a file first where that is planned and there is room."""
        rows = self._rows.training
        notices = inputs.prepare(on_disk, rows.x, block, self._plan)
        yield from (Notice(text) for text in notices)
        if notices:  # to run blocks again takes other bytes than were planned
            yield from self._take(self._watch.without_files(self._plan))
            self._run.engine.reserve(self._plan.arena_bytes)
        return_free_memory()
        return TrainingRows(inputs.of(on_disk, rows.x, block, self._plan), rows.y, rows.order)

    def _facts(self) -> str:
        """Which rows these are."""
        labels = hashlib.sha256(self._rows.training.y.tobytes()).hexdigest()
        return f"{self._run.dataset.name} {labels} {len(self._rows.training.y)} {self._run.settings.guard_fraction}"


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
