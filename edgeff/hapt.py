"""HAPT: smartphone signals of human activities, as windows that are cut on demand.

The folder holds `experiments.csv` (recordings and whose they are), `labels_int8.npy.xz` (a label per sample) and
`signals_diff_int16.npy.xz` (first differences in time, channel by channel). The signal is decoded once into the cache,
in time order, so that a window is one stretch of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeff.arrays import NpyHeader, checked_rows, npy_rows, read_npy_header
from edgeff.cache import hold, open_stream, reading, unpacked
from edgeff.class_names import ACTIVITIES
from edgeff.dataset import Dataset, Numbers
from edgeff.errors import DataError
from edgeff.rows import Array, FileRows, Rows, select_rows, window_rows

WINDOW = 128  # samples: 2.56 s at 50 Hz
STEP = 64  # half a window
CHANNELS = 6  # accelerometer x, y, z, then gyroscope x, y, z, in sensor counts
# The people whom the UCI HAR data set, recorded with the same people, keeps for testing.
TEST_USERS = (2, 4, 9, 10, 12, 13, 18, 20, 24)

HAPT_SPLITS = ("train", "test", "all", "user-<number>")

_TABLE = "experiments.csv"
_LABELS = "labels_int8.npy.xz"
_SIGNALS = "signals_diff_int16.npy.xz"
_BLOCK_SAMPLES = 1 << 14


@dataclass(frozen=True)
class _Recording:
    number: int
    user: int
    start: int
    length: int


@dataclass(frozen=True)
class _Windows:
    """Windows of one recording: their first samples in it, and their labels 0..5."""

    recording: _Recording
    starts: Numbers
    y: Numbers


def is_hapt_folder(folder: Path) -> bool:
    """Whether the three files are there."""
    return all((folder / name).is_file() for name in (_TABLE, _LABELS, _SIGNALS))


def read_hapt(folder: Path, split: str) -> Dataset:
    """Windows of 128 samples, step 64, that lie within one recording and wholly within one of six activities.

    Args:
        folder: Has the three files.
        split: `all`, `test` (people 2, 4, 9, 10, 12, 13, 18, 20, 24), `train` (the others) or `user-<number>`.

    Returns:
        Rows int16 (128, 6) in sensor counts; labels in the order of `ACTIVITIES`; groups are the people, sequences the
        recordings, spans the windows' samples.

    Raises:
        DataError: Malformed, an unknown split, or files that do not fit together.
    """
    signal, labels = _signal(folder / _SIGNALS), npy_rows(folder / _LABELS)
    recordings = _recordings(folder / _TABLE, len(signal))
    if labels.shape != (len(signal),) or labels.dtype != np.int8:
        raise DataError(
            f"`{folder / _LABELS}` holds {labels.dtype.name} of shape {labels.shape}, needed int8 of ({len(signal)},)"
        )
    users = _users(split, folder, sorted({recording.user for recording in recordings}))
    cut = [_cut(recording, labels) for recording in recordings if recording.user in users]
    return _dataset(folder.name, window_rows(signal, WINDOW), cut)


def _dataset(name: str, windows: Rows, cut: list[_Windows]) -> Dataset:
    starts = np.concatenate([each.starts for each in cut])
    counts = [len(each.starts) for each in cut]
    offsets = np.repeat(np.array([each.recording.start for each in cut], np.int64), counts)
    return Dataset(
        name=name,
        x=select_rows(windows, offsets + starts),
        y=np.concatenate([each.y for each in cut]),
        classes=ACTIVITIES,
        groups=np.repeat(np.array([each.recording.user for each in cut], np.int64), counts),
        sequence=np.repeat(np.array([each.recording.number for each in cut], np.int64), counts),
        span=np.stack([starts, starts + WINDOW], axis=1),
    )


def _users(split: str, folder: Path, users: list[int]) -> set[int]:
    number = split.removeprefix("user-")
    chosen = {
        "all": set(users),
        "train": set(users) - set(TEST_USERS),
        "test": set(users) & set(TEST_USERS),
        f"user-{number}": {user for user in users if str(user) == number},
    }.get(split)
    if not chosen:
        known = ", ".join(str(user) for user in users)
        raise DataError(
            f"`{folder}` has no split `{split}`",
            hint=f"there are `train`, `test`, `all`, and `user-<number>` with {known}",
        )
    return chosen


def _cut(recording: _Recording, labels: Rows) -> _Windows:
    """Windows of a recording whose samples all have the same label 1..6."""
    own = labels[recording.start : recording.start + recording.length]
    changes = np.concatenate([[0], np.cumsum(own[1:] != own[:-1])])  # label changes up to each sample
    starts = np.arange(0, recording.length - WINDOW + 1, STEP)
    first = own[starts].astype(np.int64)
    keep = (changes[starts] == changes[starts + WINDOW - 1]) & (first >= 1) & (first <= len(ACTIVITIES))
    return _Windows(recording, starts[keep], first[keep] - 1)


# --- the files ---


def _recordings(path: Path, samples: int) -> list[_Recording]:
    with reading(path, "table of recordings"), path.open(newline="", encoding="utf-8") as file:
        table = csv.reader(file)
        if next(table, None) != ["experiment", "user", "start", "length"]:
            raise ValueError("its first line is not `experiment,user,start,length`")
        recordings = [_recording(line, row, samples) for row, line in enumerate(table)]
        if not recordings:
            raise EOFError("it has no recordings")
    return recordings


def _recording(line: list[str], row: int, samples: int) -> _Recording:
    if len(line) != 4:
        raise ValueError(f"row {row} has {len(line)} columns, needed 4")
    number, user, start, length = (int(text) for text in line)
    if max(abs(number), abs(user)) > np.iinfo(np.int64).max:
        raise ValueError(f"row {row} has a number beyond 64 bits")
    if start < 0 or length < 1 or start + length > samples:
        raise ValueError(f"row {row} has samples {start}..{start + length}, but the signal has {samples}")
    return _Recording(number, user, start, length)


def _signal(path: Path) -> Rows:
    """(samples, 6) int16 in time order."""
    with open_stream(path, "npy file") as stream:
        header = read_npy_header(stream, f"`{path}`")
    if header.dtype != np.dtype("<i2") or len(header.shape) != 2 or header.shape[0] != CHANNELS:
        raise DataError(f"`{path}` holds {header.dtype.name} of shape {header.shape}, needed int16 of (6, samples)")
    if header.shape[1] < WINDOW:
        raise DataError(f"`{path}` has {header.shape[1]} samples, needed {WINDOW} or more")
    shape = (header.shape[1], CHANNELS)
    return hold(path, "hapt-signal", shape, header.dtype, lambda: _time_major(path, header))


def _time_major(path: Path, header: NpyHeader) -> Iterator[Array]:
    samples = header.shape[1]
    with unpacked(path, "npy file", header.nbytes + header.data_bytes) as plain:
        flat = checked_rows(FileRows(plain, header.nbytes, (CHANNELS * samples,), header.dtype), "differences")
        last = np.zeros(CHANNELS, np.int16)
        for first in range(0, samples, _BLOCK_SAMPLES):
            past = min(first + _BLOCK_SAMPLES, samples)
            steps = np.stack([flat[c * samples + first : c * samples + past] for c in range(CHANNELS)], axis=1)
            steps[0] += last  # carries the sum over from the block before, modulo 2**16 as it was encoded
            block = np.cumsum(steps, axis=0, dtype=np.int16)
            last = block[-1]
            yield block
