"""Work in several threads at once: onnxruntime lets go of Python while a graph runs.

No gradient crosses a block's edge, so while one micro-batch passes a block, the one before it may pass the next. Every
block takes the micro-batches in their order, whoever brings them: what it sums up is the same to the last bit, however
many are under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Thread

from edgeff.errors import EngineError


class Abandoned(Exception):
    """What was waited for does not come: another worker was stopped or has failed."""


class Turns:
    """Who may go where: the numbers 0, 1, 2, ... pass each place one after another."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._passed: dict[int, int] = {}
        self._abandoned = False

    @contextmanager
    def turn(self, place: int, number: int) -> Iterator[None]:
        """Wait until all smaller numbers are through with a place, and have it.

        Raises:
            Abandoned: They never will be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._passed.get(place, 0) == number)
            if self._abandoned:
                raise Abandoned
        yield
        with self._changed:
            self._passed[place] = number + 1
            self._changed.notify_all()

    def abandon(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()


def run_at_once(jobs: Sequence[Callable[[], None]], abandon: Callable[[], None] = lambda: None) -> None:
    """Run each job in a thread of its own, the first in the caller's, and return when all have ended.

    Args:
        jobs: To run; what one raises is raised here, that of the first where several do.
        abandon: Called as soon as one has raised.

    Raises:
        EngineError: The system starts no more threads.
    """
    raised: dict[int, BaseException] = {}

    def run(number: int, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            raised[number] = error
            abandon()

    started: list[Thread] = []
    try:
        for number, job in enumerate(jobs[1:], 1):
            started.append(_started(Thread(target=run, args=(number, job), daemon=True)))
        for job in jobs[:1]:
            run(0, job)
        for thread in started:
            thread.join()
    except BaseException:  # a signal's, too: nothing may run on in the caller's arrays
        abandon()
        for thread in started:
            thread.join()
        raise
    failed = [error for _, error in sorted(raised.items())]
    if failed:
        raise next((error for error in failed if not isinstance(error, Abandoned)), failed[0])


def _started(thread: Thread) -> Thread:
    try:
        thread.start()
    except RuntimeError as error:
        raise EngineError("the system starts no more threads", hint="give `--threads 1`") from error
    return thread
