"""A run on the device that has begun: what both schedules have in common."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeff import __version__, disk
from edgeff.errors import BudgetError, RunError
from edgeff.runtime.allocator import return_free_memory
from edgeff.runtime.block_meter import BlockMeter
from edgeff.runtime.checkpoint import Checkpoint
from edgeff.runtime.device_memory import Copies
from edgeff.runtime.evaluate import Evaluation, evaluate
from edgeff.runtime.events import Event, GuardResult, Notice, Placed, Replanned, Stopped
from edgeff.runtime.guard import best_epoch
from edgeff.runtime.meter import Meter
from edgeff.runtime.mixture import RunRows
from edgeff.runtime.network import Network
from edgeff.runtime.providers import told
from edgeff.runtime.stops import Interrupted, Stop
from edgeff.runtime.trainer import LearningRate, Position, Trainer
from edgeff.runtime.update import NonFiniteLossError, TrainingRows
from edgeff.runtime.watch import Change, Watch
from edgeff.runtime.wear import WriteBound, planned_writes

if TYPE_CHECKING:
    from edgeff.runtime.adapt import Adaptation

# Why an epoch ended: at its end, for a reason to stop, for another plan, or because a loss was not finite.
Ended = Literal["done", "stopped", "replanned", "rolled back"]
# A block whose learning rate was halved so often still has losses that are not finite: the run ends.
_LOWEST_FACTOR = 1 / 8
# At this factor going back to the newest checkpoint did not help: it goes back to the one before.
_OLDER_FACTOR = 1 / 4


class Run:
    """A run that has begun.

    Args:
        run: What is to be done.
        rows: Of the run.
        stop: Reasons to stop, asked between micro-batches.
    """

    def __init__(self, run: Adaptation, rows: RunRows, stop: Stop) -> None:
        self._run = run
        self._rows = rows
        self._stop = stop
        self._plan = run.plan
        self._history: list[Evaluation] = []
        self._began = time.perf_counter()
        self._rows_trained, self._seconds = 0, 0.0
        self._judged, self._saved = 0, Position()
        # The rows are split by now.
        request = dataclasses.replace(run.request, splitting_bytes=0)
        self._watch = Watch(run.artifact.manifest, request, run.meter, run.asked_budget)
        self._block_meter = BlockMeter(run.meter) if run.meter else None
        self._rate_factors: dict[str, float] = {}
        self._bound = WriteBound(run.writes_per_hour)
        self._checkpoint_bytes, self._written_before = 0, disk.written_bytes()
        self._copies, self._placement_told = Copies(), False

    def _trainer(self, network: Network, rows: TrainingRows, only: int | None = None, stage: int = 0) -> Trainer:
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
            stop=self._stop,
            rate_factors=self._rate_factors,
            stage=stage,
        )

    def _epoch(self, trainer: Trainer, start: Position) -> Generator[Event, None, tuple[Ended, Position]]:
        """Train to the end of an epoch; returns why it ended, and the position, which is saved where it was stopped."""
        try:
            return (yield from self._updates(trainer, start))
        except NonFiniteLossError as error:
            return "rolled back", (yield from self._roll_back(trainer, error))

    def _updates(self, trainer: Trainer, start: Position) -> Generator[Event, None, tuple[Ended, Position]]:
        position = start
        if (yield from self._look(trainer.settled, position)):
            return "replanned", position
        try:
            if self._stop():
                raise Interrupted
            for progress in trainer.epoch(position):
                yield progress
                yield from self._tell_placement()
                self._copies = progress.copies
                self._rows_trained, self._seconds = self._rows_trained + progress.rows, self._seconds + progress.seconds
                position = progress.position
                if position.batch == progress.batches:
                    continue  # the guard comes before the checkpoint; let the trainer unload its graphs
                if self._stop():
                    raise Interrupted
                self._save_now_and_then(trainer, position)
                if (yield from self._look(trainer.settled, position)):
                    return "replanned", position
        except Interrupted:
            self._save_unsaved(trainer.settled(), position)
            return "stopped", position
        self._check_sound(trainer.settled(), position)
        return_free_memory()  # the graphs are gone: let their place serve the next ones
        return "done", position

    def _tell_placement(self) -> Iterator[Event]:
        engine = self._run.engine
        if engine.placements and not self._placement_told:
            yield Placed(told(engine.provider, engine.placements))
        self._placement_told = True

    def _roll_back(self, trainer: Trainer, error: NonFiniteLossError) -> Generator[Event, None, Position]:
        """Go back to the last good state, with half the learning rate for the block.

        Returns:
            The position, which is saved.

        Raises:
            NonFiniteLossError: It was halved often enough.
        """
        factor = self._rate_factors.get(error.block, 1.0) / 2
        if factor < _LOWEST_FACTOR:
            raise error
        network, stage = trainer.network, trainer.stage
        network.forget_gradients()
        found = self._run.folder.load_state(network, stage=stage, older=factor == _OLDER_FACTOR)
        self._restore(found)
        if found is None:  # from the beginning of the stage: what was judged since is forgotten
            self._history, self._judged = self._history[: stage + 1], stage
        self._rate_factors[error.block] = factor
        position = found.position if found else Position(stage=stage)
        self._save(network, position, in_place=True)
        yield Notice(
            f"{error}: back to step {position.step}, and on with {factor:g} of the learning rate for `{error.block}`"
        )
        return position

    def _check_sound(self, network: Network, position: Position) -> None:
        """Refuse weights that are not finite: no checkpoint and no judgement may come of them."""
        block = network.first_not_finite()
        if block is not None:
            raise NonFiniteLossError(block, position.step, f"a weight of block `{block}` is not finite")

    def _look(self, settled: Callable[[], Network], position: Position) -> Generator[Event, None, bool]:
        """Whether there is another plan now, for the caller to follow; a run whose budget cannot be kept is saved."""
        try:
            change = self._watch.look(self._plan)
        except ValueError as error:
            yield Notice(str(error))
            return False
        except BudgetError:
            self._save_sound(settled(), position)
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
        """Evaluate the guard and keep the weights if they are the best so far.

        Raises:
            Interrupted: There was a reason to stop; nothing was kept.
        """
        guard = self._rows.guard
        if not len(guard):
            self._write_best(network, epoch)
            return
        return_free_memory()  # the training graphs are gone: let their place serve the others
        evaluation = evaluate(network, guard.x, guard.y, micro_batch=self._plan.evaluation_rows, stop=self._stop)
        return_free_memory()
        self._history.append(evaluation)
        best = self._best(epoch)
        if best == epoch:
            self._write_best(network, epoch)
        yield GuardResult(epoch, evaluation, best)

    def _write_best(self, network: Network, epoch: int) -> None:
        before = disk.written_bytes()
        self._run.folder.write_best(network, epoch)
        self._bound.count(disk.written_bytes() - before)
        self._judged = epoch

    def _best(self, epoch: int) -> int:
        return best_epoch([evaluation.accuracy for evaluation in self._history]) if self._history else epoch

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint:
            self._history = _history_from(checkpoint.guard, self._run.folder.path)
            self._judged, self._saved = checkpoint.best, checkpoint.position
            for block, factor in checkpoint.rate_factors.items():
                self._rate_factors[block] = min(factor, self._rate_factors.get(block, factor))

    def _save_now_and_then(self, trainer: Trainer, position: Position) -> None:
        every = self._run.settings.checkpoint_steps
        if every and position.step % every == 0:
            self._save_if_allowed(trainer.settled(), position)

    def _save_if_allowed(self, network: Network, position: Position) -> None:
        """Save, unless that would wear out the disk: then the next time. Without a first one nothing can be gone on."""
        if self._bound.allows(self._checkpoint_bytes) or not self._run.folder.has_checkpoint():
            self._save_sound(network, position)

    def _save_unsaved(self, network: Network, position: Position) -> None:
        """Save what there is to lose."""
        if position != self._saved:
            self._save_sound(network, position)

    def _save_sound(self, network: Network, position: Position) -> None:
        self._check_sound(network, position)
        self._save(network, position)

    def _save(self, network: Network, position: Position, *, in_place: bool = False) -> None:
        checkpoint = Checkpoint(
            manifest_sha256=self._run.artifact.manifest_sha256,
            position=position,
            settings=self._run.settings.as_dict(),
            # Without times: the files of a resumed run are the same, byte for byte, as those of one that was not.
            guard={"history": [_without_times(evaluation) for evaluation in self._history]},
            best=self._best(self._judged),
            rate_factors=self._rate_factors,
            moments=network.engine.moments,
        )
        before = disk.written_bytes()
        self._run.folder.write_checkpoint(network, checkpoint, in_place=in_place)
        self._saved = position
        self._checkpoint_bytes = disk.written_bytes() - before
        self._bound.count(self._checkpoint_bytes)

    def _stopped(self) -> Stopped:
        return Stopped(self._saved, self._stop())

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
                "left_out": self._rows.left_out,
                "skipped": dict(run.skipped),
            },
            "seconds": time.perf_counter() - self._began,
            "rows_per_s": self._rows_trained / self._seconds if self._seconds else 0.0,
            "engine": run.engine.name,
            "threads": run.engine.threads,
            "provider": self._provider(),
            "allocator": run.allocator.name if run.allocator else None,
            "rate_factors": dict(self._rate_factors),
            "disk": self._written(),
            "budget_bytes": self._watch.budget_bytes,
            "planned_bytes": self._plan.planned_bytes,
            "plan": dataclasses.asdict(self._plan),
            "blocks": self._measured_blocks(),
            "measured": _measured(run.meter),
        }
        run.folder.publish_best(self._best(judged))
        run.folder.write_result(result)
        return result

    def _provider(self) -> dict[str, Any]:
        """What ran operators: its share of the nodes of every graph, and what it cost to pass tensors to it."""
        engine = self._run.engine
        graphs = {name: one and dataclasses.asdict(one) for name, one in sorted(engine.placements.items())}
        return {"name": engine.provider.name, "graphs": graphs, "copies_per_step": dataclasses.asdict(self._copies)}

    def _written(self) -> dict[str, Any]:
        """What went to the disk, beside what was planned."""
        run = self._run
        planned = planned_writes(
            run.artifact.manifest,
            run.settings,
            run.plan,
            updates=self._rows.training.order.batches_per_epoch,
            bound=run.writes_per_hour,
        )
        return {
            **dataclasses.asdict(planned),
            "checkpoint_every_s": planned.checkpoint_every_s,
            "written_bytes": disk.written_bytes() - self._written_before,
        }

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


def _measured(meter: Meter | None) -> dict[str, Any] | None:
    if meter is None:
        return None
    reading = meter.read()
    return {**dataclasses.asdict(reading), "training_bytes": reading.training_bytes}


def _without_times(evaluation: Evaluation) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(evaluation).items() if key != "rows_per_s"}


def _history_from(guard: Mapping[str, Any], path: Path) -> list[Evaluation]:
    """What the guard has seen so far, as a checkpoint says.

    Raises:
        RunError: It says something else.
    """
    try:
        return [_evaluation_from(values) for values in guard["history"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"the checkpoint in `{path}` is damaged: what the guard has seen is no such thing",
            hint="begin again in another folder",
        ) from error


def _evaluation_from(values: Mapping[str, Any]) -> Evaluation:
    if not isinstance(values["accuracy"], int | float):
        raise TypeError("an accuracy that is no number")
    return Evaluation(**{**values, "per_class": tuple(values["per_class"])})
