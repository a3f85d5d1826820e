"""Measured memory of the process: its floor, what training adds, and the peak.

*Floor* is what is resident once everything is imported and the engine has started, before an artifact is opened.
*Training bytes* are the resident peak since then, minus the floor. Both count whole pages of the process, shared
libraries included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc_pid_clear_refs(5): the peak becomes what is resident now
_MACOS = "darwin"


@dataclass(frozen=True)
class Residency:
    """Resident bytes of the process now, and the most there were since the peak was last reset.

    Attributes:
        resident_bytes: Now.
        peak_bytes: The most.
        source: As in `MemoryReading`.
        file_bytes: Of what is resident now, pages of files; 0 where the system does not tell.
    """

    resident_bytes: int
    peak_bytes: int
    source: str
    file_bytes: int = 0


@dataclass(frozen=True)
class MemoryReading:
    """What was measured.

    Attributes:
        floor_bytes: Resident when the meter was started.
        resident_bytes: Resident now.
        peak_bytes: Most resident since the meter was started.
        source: `VmHWM` (exact); `VmHWM, not reset` (the peak may date from before the meter was started, so that
            training bytes are too high rather than too low); `getrusage` (the same, and nothing is known of what is
            resident now); `none`.
        code_bytes: Of what is resident now over the floor, pages of files: program code that ran for the first time.
            How much is read with it depends on what the system has cached; the rest is the same in every run.
    """

    floor_bytes: int
    resident_bytes: int
    peak_bytes: int
    source: str
    code_bytes: int = 0

    @property
    def training_bytes(self) -> int:
        """Peak over the floor."""
        return self.peak_bytes - self.floor_bytes


class Meter:
    """Measures from the moment it is made; make it after all imports, with the engine started.

    Args:
        probe: Reads the process.
        reset: Sets the peak back; returns whether it could.
    """

    def __init__(self, probe: Callable[[], Residency] | None = None, reset: Callable[[], bool] | None = None) -> None:
        self._probe = probe or residency
        self._reset = reset or reset_peak
        exact = self._reset()
        start = self._probe()
        self._floor = start.resident_bytes
        self._file_floor = start.file_bytes
        self._peak = start.resident_bytes
        self._lap = start.resident_bytes
        # A peak that the kernel cannot forget: it tells of a lap only when it rises.
        self._stale = 0 if exact else start.peak_bytes
        self._source = (
            start.source if exact else f"{start.source}, not reset" if start.source == "VmHWM" else start.source
        )

    @property
    def floor_bytes(self) -> int:
        """Resident when the meter was started."""
        return self._floor

    def read(self) -> MemoryReading:
        """Measure now."""
        now = self._probe()
        self._see(now)
        return self._reading(now, self._peak)

    def recent(self) -> MemoryReading:
        """Measure now, with the peak since the last lap."""
        now = self._probe()
        self._see(now)
        return self._reading(now, self._lap)

    def lap(self) -> None:
        """Begin to count anew what is recent."""
        now = self._probe()
        self._see(now)
        self._stale = 0 if self._reset() else now.peak_bytes
        self._lap = self._resident(now)

    def rise(self, run: Callable[[], None]) -> int:
        """Bytes that the resident peak rises while something runs; 0 where the kernel does not tell."""
        before = self._probe()
        self._see(before)
        exact = self._reset()
        run()
        after = self._probe()
        self._see(after)
        return max(0, after.peak_bytes - before.resident_bytes) if exact else 0

    def _reading(self, now: Residency, peak: int) -> MemoryReading:
        code = max(0, now.file_bytes - self._file_floor)
        return MemoryReading(self._floor, now.resident_bytes, peak, self._source, code)

    def _see(self, now: Residency) -> None:
        # The kernel's count may fall behind by some pages, and so read less than it did before.
        self._peak = max(self._peak, now.peak_bytes)
        self._lap = max(self._lap, now.peak_bytes if now.peak_bytes > self._stale else self._resident(now))

    def _resident(self, now: Residency) -> int:
        """What is resident now; the floor where nothing tells."""
        return now.resident_bytes if now.source == "VmHWM" else self._floor


def residency() -> Residency:
    """Resident bytes of this process, from the best source there is."""
    try:
        return parse_status(_STATUS.read_text())
    except (OSError, KeyError, ValueError):
        return _from_getrusage()


def parse_status(text: str) -> Residency:
    r"""Read the text of `/proc/self/status`.

    Raises:
        KeyError: It lacks VmRSS or VmHWM.

    >>> parse_status("VmHWM:\t     200 kB\nVmRSS:\t     100 kB\nRssFile:\t      40 kB\n")
    Residency(resident_bytes=102400, peak_bytes=204800, source='VmHWM', file_bytes=40960)
    """
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields.setdefault("RssFile", "0 kB")  # Linux 4.5 and later
    resident, peak, file = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "RssFile"))
    return Residency(resident, peak, "VmHWM", file)


def reset_peak() -> bool:
    """Let the kernel count the peak from now on; returns whether it does (some containers forbid it)."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _from_getrusage() -> Residency:
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return Residency(0, 0, "none")
    unit = 1 if sys.platform == _MACOS else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Residency(peak, peak, "getrusage")
