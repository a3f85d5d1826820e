"""A contender of a cell on its way to a row of the speed benchmark: its settings, its process, its bursts."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import audit
from audit_peers import Skipped
from speed_contenders import LOCAL, OWN, Cell, Contender, Speed, launch, refinements, refusal, variants
from speed_process import Worker
from speed_search import Choice, Settings, calibrated, fastest, refined

COLUMNS = (
    *("network", "method", "runtime", "threads", "batch", "micro_batch", "rows_per_s", "training_bytes"),
    *("first_step_s", "settings", "export_s", "ratio", "skipped", "floor_bytes", "rounds"),
)
Row = dict[str, Any]
Say = Callable[[str], None]


class Entry:
    """A contender of a cell. A step that cannot be taken makes its row a skipped one, and no further step is taken.

    Args:
        contender: Who.
        cell: What it trains on.
        chosen: How it is measured.
        folder: For the network's files.

    Attributes:
        row: What is known of it so far, with all columns.
    """

    def __init__(self, contender: Contender, cell: Cell, chosen: Speed, folder: Path) -> None:
        self._contender, self._cell, self._chosen, self._folder = contender, cell, chosen, folder
        self._choice: Choice | None = None
        self._worker: Worker | None = None
        self._updates = 1
        self._rounds: list[float] = []
        self.row: Row = dict.fromkeys(COLUMNS)
        self.row |= {"network": cell.network, "method": contender.method, "runtime": contender.runtime}
        self.row |= {"threads": cell.threads, "batch": cell.batch, "settings": {}, "rounds": []}

    def search(self, say: Say) -> None:
        """Make the network's files, and find the fastest settings."""
        self._attempt(lambda: self._search(say))

    def begin(self) -> None:
        """Start the process that is measured, and find out how many updates make a burst."""
        self._attempt(self._begin)

    def burst(self) -> None:
        """One more burst."""
        self._attempt(lambda: self._rounds.append(self._rate(self._running, self._updates)))

    def finish(self) -> None:
        """Ask for what training took, end the process, and fill in the row."""
        self._attempt(self._finish)

    def stop(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _attempt(self, step: Callable[[], None]) -> None:
        if self.row["skipped"]:
            return
        try:
            step()
        except Skipped as error:
            self.row["skipped"] = str(error)
            self.stop()

    def _search(self, say: Say) -> None:
        contender, cell = self._contender, self._cell
        reason = refusal(contender, self._chosen.provider)
        if reason is not None:
            raise Skipped(reason)
        write_files(contender, cell.network, self._folder)
        if contender.method in LOCAL:
            self.row["export_s"] = exported_s(cell.network, self._folder)
        shape = json.loads((self._folder / "network.json").read_text())["shape"]
        found = variants(contender, cell.batch, self._chosen.micro_batch, maps=len(shape) == 3)
        if len(found) == 1 and len(found[0].sizes) == 1:
            self._choice = Choice(found[0].settings, found[0].sizes[0], 0.0)
        else:

            def speed(settings: Settings, size: int) -> float:
                return self._tried(settings, size, say)

            self._choice = refined(speed, fastest(speed, found), refinements(contender, cell.threads))

    def _tried(self, settings: Settings, size: int, say: Say) -> float:
        """Rows per second of a short burst in a process of its own."""
        what = f"{self._cell}: {self._contender}, micro-batch {size}{_shown(settings)}"
        try:
            with self._start(settings, size) as worker:
                found = self._rate(worker, calibrated(worker.burst, self._chosen.burst_s / 2))
        except Skipped as error:
            say(f"{what}: {error}")
            raise
        say(f"{what}: {found:.0f} rows/s")
        return found

    def _begin(self) -> None:
        assert self._choice is not None
        self._worker = worker = self._start(self._choice.settings, self._choice.micro_batch)
        self.row |= {
            "runtime": f"{self._contender.runtime} {worker.ready.version}",
            "micro_batch": worker.ready.micro_batch,
            "first_step_s": round(worker.first_step_s, 2),
            "floor_bytes": worker.ready.floor_bytes,
            "settings": dict(self._choice.settings),
        }
        self._updates = calibrated(worker.burst, self._chosen.burst_s)

    def _start(self, settings: Settings, size: int) -> Worker:
        if self._chosen.provider != "cpu":
            settings = {**settings, "device": self._chosen.provider}
        return Worker(*launch(self._contender, self._cell, settings, size, self._folder))

    @property
    def _running(self) -> Worker:
        assert self._worker is not None
        return self._worker

    def _rate(self, worker: Worker, updates: int) -> float:
        return updates * self._cell.batch / worker.burst(updates)

    def _finish(self) -> None:
        taken = self._running.end()
        self.stop()
        self.row["rows_per_s"] = round(statistics.median(self._rounds), 1)
        self.row["rounds"] = [round(one, 1) for one in self._rounds]
        # What a GPU holds is not resident in the process.
        self.row["training_bytes"] = taken.training_bytes if self._chosen.provider == "cpu" else None
        self.row["settings"] |= taken.settings


def write_files(contender: Contender, network: str, folder: Path) -> None:
    """What a contender's worker starts from, once for a network.

    Raises:
        Skipped: It cannot be written.
    """
    folder.parent.mkdir(exist_ok=True)
    audit.write("network", network, folder, "network.json")
    if contender.runtime == OWN:
        audit.write("artifact", network, folder, "artifact")


def exported_s(network: str, folder: Path) -> float:
    """Seconds of a process that exports a network's artifact without baselines, measured once.

    Raises:
        Skipped: It failed.
    """
    record = folder / "exported.json"
    if not record.exists():
        began = time.perf_counter()
        audit.write("exported", network, folder, "exported")
        record.write_text(json.dumps(round(time.perf_counter() - began, 2)))
    return float(json.loads(record.read_text()))


def _shown(settings: Settings) -> str:
    return "".join(f", {name.replace('_', '-')} {'on' if value else 'off'}" for name, value in settings.items())
