"""The parent's side of a worker of the speed benchmark: its process, and what is asked of it (`speed_protocol`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Timer
from types import TracebackType
from typing import Any

from audit_peers import Skipped, why_ended
from speed_protocol import Ready, Taken

# A burst is about a second; a first update with compilation takes longest.
LIMIT_S = 900.0
_GRACE_S = 5.0


class Worker:
    """A process that trains when it is asked to. Use it in `with`: nothing of it is left behind.

    Args:
        words: Its command.
        environment: Of the process.
        limit_s: Seconds that an answer may take.

    Attributes:
        ready: What it said after its first update.
        first_step_s: Seconds from the start of the process until then.
    """

    ready: Ready
    first_step_s: float

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], *, limit_s: float = LIMIT_S) -> None:
        self._words, self._limit_s, self._late = words, limit_s, False
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (see `close`)
        began = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                text=True,
                # A group of its own, with which helpers of the worker go too.
                start_new_session=True,
            )
        except BaseException:
            self._errors.close()
            raise
        try:
            facts = self._answer("ready")
            self.first_step_s = time.perf_counter() - began
            self.ready = self._read_as(Ready, {key: value for key, value in facts.items() if key != "ready"})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def burst(self, updates: int) -> float:
        """The seconds that so many updates take.

        Raises:
            Skipped: It died, answers nonsense, or takes too long.
        """
        self._ask({"updates": updates})
        seconds = self._answer("seconds")["seconds"]
        if not isinstance(seconds, int | float) or not seconds > 0:
            raise Skipped(f"{self._name}: {updates} updates in `{seconds}` seconds")
        return float(seconds)

    def end(self) -> Taken:
        """What training took in all; the worker ends.

        Raises:
            Skipped: As for `burst`.
        """
        self._ask({"end": True})
        return self._read_as(Taken, self._answer("training_bytes"))

    def close(self) -> None:
        """End the process, if it has not ended, and whatever it started. Without stdin it ends by itself, tidily."""
        if self._process.returncode is None:
            with suppress(OSError):  # what is not written yet has no reader any more
                self._process.stdin.close()  # type: ignore[union-attr]
            self._wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    @property
    def _name(self) -> str:
        return os.path.basename(self._words[1])

    def _ask(self, question: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # a worker that died: its answer says so
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()

    def _answer(self, key: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        with self._deadline(self._limit_s):
            line = self._process.stdout.readline()
        if not line:
            raise Skipped(self._why_ended())
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or key not in answer:
            raise Skipped(f"{self._name}: answered `{line.strip()[:80]}`")
        return answer

    def _read_as(self, kind: Any, facts: Mapping[str, Any]) -> Any:
        try:
            return kind(**facts)
        except TypeError as error:
            raise Skipped(f"{self._name}: answered `{json.dumps(facts)[:80]}`") from error

    def _why_ended(self) -> str:
        late = self._late
        status = self._wait()
        if late:
            return f"{self._name}: no answer in {self._limit_s:g} s"
        if status == 0:
            return f"{self._name}: ended without an answer"
        self._errors.seek(0)
        return why_ended(self._words, status, self._errors.read())

    def _wait(self) -> int:
        """Wait a while for the process, then end it and what it started; its status."""
        with self._deadline(_GRACE_S):
            # It stays to be waited for: until then no other process can have its number, by which its group is ended.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._kill()
        return self._process.wait()

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """End the process if what is done here takes longer."""
        timer = Timer(seconds, self._kill_late)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _kill_late(self) -> None:
        self._late = True
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
