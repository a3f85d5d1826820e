"""Driving a run from the command line: its progress, signals, and what it came to in words."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeff.cli_progress import ProgressLine
from edgeff.errors import BudgetError, EngineError, RunError, StoppedError
from edgeff.units import format_bytes

if TYPE_CHECKING:
    from edgeff.runtime.adapt import Adaptation
    from edgeff.runtime.events import Event
    from edgeff.runtime.stops import StopConditions


def drive(adaptation: Adaptation, stop: StopConditions, *, resume: bool) -> Mapping[str, Any]:
    """Drive the run, showing its progress.

    Raises:
        StoppedError: There was a reason to stop.
        BudgetError: It would take more than its budget.
    """
    from edgeff.runtime.events import Finished, GuardResult, Notice, Placed, Replanned, Stopped
    from edgeff.runtime.trainer import Progress

    stage = adaptation.plan.schedule == "stage"
    with ProgressLine("train", adaptation.settings.epochs) as line:
        for event in _told_of_memory(adaptation.run(resume=resume, stop=stop)):
            if isinstance(event, Progress):
                stop.count_step()
                losses = " ".join(f"{name} {loss:.3f}" if stage else f"{loss:.3f}" for name, loss in event.loss.items())
                peak = "" if event.measured is None else f"  peak {format_bytes(event.measured.training_bytes)}"
                line.show(event.position.epoch, f"loss {losses}  {event.rows_per_s:.0f} rows/s{peak}")
            elif isinstance(event, GuardResult):
                what = f"{event.epoch} blocks done" if stage else f"epoch {event.epoch}"
                line.note(f"{what}  guard accuracy {event.evaluation.accuracy:.4f}")
            elif isinstance(event, Notice):
                line.note(f"warning: {event.text}")
            elif isinstance(event, Placed):
                line.note(event.text)
            elif isinstance(event, Replanned):
                planned, count = format_bytes(event.plan.planned_bytes), len(event.plan.groups)
                size = f"micro-batch {event.plan.micro_batch}" + (f" in {count} groups of blocks" if count > 1 else "")
                line.note(f"{event.reason}: on with {size}, {planned} planned")
            elif isinstance(event, Finished):
                return event.result
            elif isinstance(event, Stopped):
                raise StoppedError(
                    f"stopped {event.reason}, at step {event.position.step}: nothing is lost",
                    hint=f"go on by `edgeff train-on-device ... --out {adaptation.folder.path} --resume`",
                )
    raise AssertionError("a run ends with Finished or Stopped")


def _told_of_memory(events: Iterator[Event]) -> Iterator[Event]:
    """The same events; that the system has no memory left is something a user can mend.

    Raises:
        BudgetError: It has none.
    """
    hint = "the last checkpoint is kept: end other programs, or go on by `--resume` with a smaller `--budget`"
    try:
        yield from events
    except MemoryError as error:
        raise BudgetError("the system gave the run no more memory", hint=hint) from error
    except EngineError as error:
        if "alloc" not in str(error):
            raise
        raise BudgetError(f"the system gave the run no more memory: {error}", hint=hint) from error


@contextmanager
def noted_signals() -> Iterator[list[str]]:
    """Names of signals as they arrive: SIGINT and SIGTERM stop a run at the next consistent point, no process."""
    received: list[str] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {
        kind: signal.signal(kind, lambda number, _: received.append(signal.Signals(number).name)) for kind in kinds
    }
    try:
        yield received
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def result_text(found: Mapping[str, Any]) -> str:
    """What a run came to, for people; of a finished run that is gone on with it was read from `result.json`.

    Raises:
        RunError: That file holds something else.
    """
    try:
        return _result_lines(found)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise RunError(
            f"`{found['run']}` is finished, but its `result.json` is damaged or of another version of edgeff",
            hint="test its weights by `edgeff evaluate --run`",
        ) from error


def _result_lines(found: Mapping[str, Any]) -> str:
    best, guard = found["best_epoch"], found["guard"]
    rounds = f"{best} blocks done" if found["schedule"] == "stage" else f"epoch {best} of {found['epochs']}"
    kept = f"kept the weights of {rounds}" if best else "kept the weights it came with"
    judged = f": guard accuracy {guard[0]['accuracy']:.4f} before, {guard[best]['accuracy']:.4f} kept" if guard else ""
    return "\n".join(
        [
            f"{found['run']}: {kept}{judged}",
            f"floor {format_bytes(found['floor_bytes'])}, training bytes "
            f"measured {format_bytes(found['training_bytes'])}, planned {format_bytes(found['planned_bytes'])}, "
            f"budget {format_bytes(found['budget_bytes'])}; "
            f"{found['seconds']:.1f} s, {format_bytes(found['disk']['written_bytes'])} written to disk",
        ]
    )
