"""Schedule `stage`: one block after another, each for all epochs, with only it in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from edgeff.runtime.allocator import return_free_memory
from edgeff.runtime.events import Event, Finished, Notice
from edgeff.runtime.mixture import RunRows, described
from edgeff.runtime.network import Network, open_on_disk
from edgeff.runtime.run import Ended, Run
from edgeff.runtime.stage_inputs import StageInputs
from edgeff.runtime.stops import Interrupted, Stop
from edgeff.runtime.store import BlockFiles
from edgeff.runtime.trainer import Position
from edgeff.runtime.update import TrainingRows, sums_gradients

if TYPE_CHECKING:
    from edgeff.runtime.adapt import Adaptation


class StageRun(Run):
    """One block after another, each for all epochs, with only it in memory."""

    def __init__(self, run: Adaptation, rows: RunRows, stop: Stop) -> None:
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
        for block in self._blocks[: position.stage]:
            self._files.require(run.artifact.manifest.blocks[block])
        inputs = StageInputs(run.folder.path, run.artifact, self._files, self._facts(), self._stop)
        try:
            if loaded:
                run.folder.check_best(on_disk, loaded.best)
            else:
                yield from self._judge(on_disk, 0)
            while position.stage < len(self._blocks):
                ended, position = yield from self._stage(on_disk, inputs, position)
                if ended == "stopped":
                    raise Interrupted
                if ended == "replanned":
                    self._begin_plan()
        except Interrupted:
            yield self._stopped()
            return
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
            if (yield from self._look(lambda: on_disk, position)):
                return "replanned", position
            self._files.forget(on_disk.manifest.blocks[block])
        rows = yield from self._inputs(on_disk, inputs, block)
        network = on_disk.holding(block, accumulate=sums_gradients(self._run.engine, [self._plan.blocks[block]]))
        if not begins:
            self._run.folder.load_checkpoint(network)
        trainer = self._trainer(network, rows, only=block, stage=position.stage)
        del rows, network
        while position.epoch <= self._run.settings.epochs:
            ended, position = yield from self._epoch(trainer, position)
            if ended == "replanned":
                self._save(trainer.network, position)
            if ended == "rolled back":
                continue
            if ended != "done":
                return ended, position
            position = Position(position.epoch + 1, 0, position.step, position.stage)
            # After the last epoch too: what follows may be interrupted.
            if self._stop():
                self._save(trainer.network, position)
                return "stopped", position
            self._save_if_allowed(trainer.network, position)
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
        own = described(self._run.dataset)["sample_sha256"]
        return f"{own} {labels} {len(self._rows.training.y)} {self._run.settings.guard_fraction}"
