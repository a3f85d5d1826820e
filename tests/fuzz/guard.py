"""What has to hold while a reader reads an untrusted file, whatever is in the file.

It raises nothing but an `EdgeffError` with a message of one line; it comes back within `TIME_LIMIT_S`; it takes no more
than `MEMORY_CAP_BYTES` beyond what the process had; it opens nothing outside the folder of the target (its cache folder
lies in there); and it runs no code, starts no process and imports no module. Everything else is a `Finding`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.base import Odd, Target, attempt

from edgeff.cifar import _ALLOWED

TIME_LIMIT_S = 5.0
# Resident bytes that one input may add, and bytes of one file that it may have written. No more than four times this is
# given to the process at all, so that what is asked for and never touched is noticed too.
MEMORY_CAP_BYTES = 256 * 2**20

# Audit events whose first arguments are paths, and how many.
_PATHS = {
    "open": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.listdir": 1,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.scandir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "shutil.copyfile": 2,
    "shutil.move": 2,
    "shutil.rmtree": 1,
}
_CODE = re.compile(
    r"exec|import|code\.__new__|function\.__new__|marshal\.load.*|ctypes\..*|os\.(system|exec|fork|forkpty|spawn|kill|"
    r"posix_spawn|startfile|putenv|chdir).*|pty\..*|subprocess\..*|socket\..*|urllib\..*|http\..*|webbrowser\..*|"
    r"syslog\..*|mmap\..*|resource\.setrlimit|signal\..*|sys\.(settrace|setprofile|addaudithook)"
)


class Escape(BaseException):
    """Raised inside a reader that does what it may not; no reader catches it."""


class Hang(BaseException):
    """Raised inside a reader that does not come back."""


@dataclass(frozen=True)
class Finding:
    """What an input brought about.

    Attributes:
        kind: `crash`, `hang`, `memory`, `disk`, `outside`, `code` or `message`.
        what: In a line.
        place: Function of edgeff it came from; the same bug has the same kind and place.
        detail: A traceback.
    """

    kind: str
    what: str
    place: str
    detail: str = ""

    @property
    def key(self) -> str:
        """Names the bug, as a file name."""
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{self.kind}-{self.place}")
        return f"{plain[:80]}-{hashlib.sha256(f'{self.kind} {self.place}'.encode()).hexdigest()[:8]}"


class Guard:
    """Runs targets and watches them. One for a process: an audit hook cannot be taken out again.

    Args:
        folder: Where targets may read and write.
        seconds: That one input may take; what does not come back by then is interrupted.
    """

    def __init__(self, folder: Path, *, seconds: float = TIME_LIMIT_S) -> None:
        self.folder = folder.resolve()
        self._seconds = seconds
        self._watching = False
        self._escapes: list[Finding] = []
        self._unraisable: list[str] = []
        self._root = str(self.folder)
        os.chdir(self.folder)  # names relative to an open folder are looked up there
        sys.addaudithook(self._hook)
        sys.unraisablehook = lambda found: self._unraisable.append(
            f"{type(found.exc_value).__name__}: {found.exc_value}"
        )
        signal.signal(signal.SIGALRM, self._interrupt)

    def limit(self) -> None:
        """Give this process no more memory and no larger files than the cap allows."""
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for limit, most in (
            (resource.RLIMIT_AS, size + 4 * MEMORY_CAP_BYTES),
            (resource.RLIMIT_FSIZE, MEMORY_CAP_BYTES),
        ):
            _, hard = resource.getrlimit(limit)  # stays, for processes that this one starts to merge corpora
            resource.setrlimit(limit, (most, hard))

    def check(self, target: Target, data: bytes) -> Finding | None:
        """Run a target on an input; what it did wrong, or None."""
        self._escapes.clear()
        self._unraisable.clear()
        before = _begin_peak()
        began = time.perf_counter()
        found = self._run(target, data)
        seconds = time.perf_counter() - began
        grown = _peak() - before
        self._empty_cache()
        if self._escapes:
            return self._escapes[0]
        if found is None and grown > MEMORY_CAP_BYTES:
            found = Finding("memory", f"{grown:,} bytes taken, the cap is {MEMORY_CAP_BYTES:,}", target.name)
        if found is None and seconds > self._seconds:
            found = Finding("hang", f"{seconds:.1f} s, the limit is {self._seconds:g} s", target.name)
        if found is None and self._unraisable:
            found = Finding("crash", f"while an object was destroyed: {self._unraisable[0]}", target.name)
        return found

    def _run(self, target: Target, data: bytes) -> Finding | None:
        try:
            with self._watch():
                attempt(lambda: target.read(data, self.folder / target.name))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return _of_error(*_kind(error), error)
        return None

    def _empty_cache(self) -> None:
        """So that an input is never answered from what another of the same size left a moment ago."""
        if (self.folder / "cache").is_dir():
            for path in (self.folder / "cache").iterdir():
                path.unlink()

    @contextmanager
    def _watch(self) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, *_: object) -> None:
        raise Hang(f"not back after {self._seconds:g} s")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in _PATHS:
            for path in arguments[: _PATHS[event]]:
                if not self._inside(path):
                    self._escape("outside", f"{event} {path!r}")
        elif event == "pickle.find_class":
            if arguments not in _ALLOWED:
                self._escape("code", f"{event} {arguments!r}")
        elif _CODE.fullmatch(event):
            self._escape("code", f"{event} {str(arguments)[:200]}")

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:  # an open file; where it lies was looked at when it was opened
            return True
        real = os.path.realpath(os.fsdecode(path))
        return real == self._root or real.startswith(self._root + os.sep)

    def _escape(self, kind: str, what: str) -> None:
        self._watching = False
        frames = traceback.extract_stack()
        self._escapes.append(Finding(kind, what, _place(frames), "".join(traceback.format_list(frames[-20:]))))
        raise Escape(what)


def _kind(error: BaseException) -> tuple[str, str]:
    """The kind of finding an error is, and what happened."""
    if isinstance(error, Odd):
        return error.kind, str(error)
    if isinstance(error, Hang):
        return "hang", str(error)
    if isinstance(error, MemoryError):
        return "memory", "it asked for more memory than there is"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "disk", f"a file of more than {MEMORY_CAP_BYTES:,} bytes"
    return "crash", " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _of_error(kind: str, what: str, error: BaseException) -> Finding:
    cause = error.__cause__ if isinstance(error, Odd) and error.__cause__ else error
    place = _place(traceback.extract_tb(cause.__traceback__))
    place = f"{type(error).__name__}-{place}" if kind == "crash" else place
    return Finding(kind, what, place, "".join(traceback.format_exception(error))[-4000:])


def _place(frames: traceback.StackSummary) -> str:
    """The innermost function of edgeff, else of whatever there is beside the harness."""
    readers = [one for one in frames if Path(one.filename).name not in ("guard.py", "base.py")]
    own = [one for one in readers if any(f"/{part}/" in one.filename for part in ("edgeff", "runtime", "devices"))]
    own = [one for one in own if "/tests/" not in one.filename and "/site-packages/" not in one.filename]
    innermost = (own or readers or frames or [None])[-1]
    return f"{Path(innermost.filename).stem}.{innermost.name}" if innermost else "nowhere"


def _begin_peak() -> int:
    """Forget the largest size this process had, and return the size it has."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:  # a system that does not let us; the peak is then that of all inputs so far
        return _peak()
    return _field("VmRSS")


def _peak() -> int:
    return _field("VmHWM")


def _field(name: str) -> int:
    with open("/proc/self/status") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(name)), 0)
