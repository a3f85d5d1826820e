"""Schedule `sweep`: every batch passes all blocks."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from edgeff.runtime.events import Event, Finished, Notice
from edgeff.runtime.network import Network, open_network
from edgeff.runtime.run import Run
from edgeff.runtime.stops import Interrupted
from edgeff.runtime.trainer import Position
from edgeff.runtime.update import sums_gradients


class SweepRun(Run):
    """Every batch passes all blocks."""

    def events(self) -> Iterator[Event]:
        """See `Adaptation.run`."""
        run, manifest = self._run, self._run.artifact.manifest
        names = [block.name for block in manifest.blocks]
        network = open_network(
            run.artifact,
            run.engine,
            trained=names if run.settings.blocks is None else run.settings.blocks,
            accumulate=sums_gradients(run.engine, self._plan.blocks),
            groups=self._plan.groups,
        )
        loaded, warnings = run.folder.load_checkpoint(network)
        yield from (Notice(text) for text in warnings)
        self._restore(loaded)
        position = loaded.position if loaded else Position()
        try:
            if loaded:
                run.folder.check_best(network, loaded.best)
            else:
                yield from self._judge(network, 0)
            trainer = self._trainer(network, self._rows.training)
            del network  # the trainer's own may lose its gradient sums by another plan
            while position.epoch <= run.settings.epochs:
                ended, position = yield from self._epoch(trainer, position)
                if ended == "replanned":
                    trainer.change_plan(self._plan)
                    self._begin_plan()
                if ended == "done":
                    position = yield from self._end_epoch(trainer.network, position)
                if ended == "stopped" or (position.epoch <= run.settings.epochs and self._stop()):
                    self._save_unsaved(trainer.network, position)
                    raise Interrupted
        except Interrupted:
            yield self._stopped()
            return
        yield Finished(self._finish(run.settings.epochs))

    def _end_epoch(self, network: Network, position: Position) -> Generator[Event, None, Position]:
        """Judge, and save; where there is a reason to stop, save what is to be judged when the run goes on."""
        try:
            yield from self._judge(network, position.epoch)
        except Interrupted:
            self._save(network, position)
            raise
        position = Position(epoch=position.epoch + 1, batch=0, step=position.step)
        if self._stop():
            self._save(network, position)
        else:
            self._save_if_allowed(network, position)
        return position
