"""Speech Commands as log-mel features: `logmel_uint8.npy.xz`, and `index.csv` with label and speaker of each clip."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from edgeff.arrays import npy_rows
from edgeff.cache import reading
from edgeff.dataset import Dataset
from edgeff.errors import DataError

_TABLE = "index.csv"
_FEATURES = "logmel_uint8.npy.xz"
_HEAD = ["row", "label", "speaker", "file"]
SPEECH_SPLITS = ("train", "test", "all")
# One speaker in five is kept for testing; clips of silence have no speaker and go by their row.
_TEST_ONE_IN = 5


def is_speech_folder(folder: Path) -> bool:
    """Whether both files are there."""
    return all((folder / name).is_file() for name in (_TABLE, _FEATURES))


def read_speech(folder: Path, split: str) -> Dataset:
    """Clips of spoken words; no speaker is in both `train` and `test`.

    Returns:
        Rows uint8 (49, 40), frame by mel band, level in dB plus 100; classes in alphabetical order; groups are the
        speakers (their hexadecimal number), and each clip of silence is a group of its own, -1 - row.

    Raises:
        DataError: Malformed, an unknown split, or files that do not fit together.
    """
    if split not in SPEECH_SPLITS:
        raise DataError(f"`{folder}` has no split `{split}`", hint=f"there are {', '.join(SPEECH_SPLITS)}")
    x, (labels, speakers) = npy_rows(folder / _FEATURES), _index(folder / _TABLE)
    if len(x) != len(labels):
        raise DataError(f"`{folder / _TABLE}` has {len(labels):,} rows, needed {len(x):,} as in `{_FEATURES}`")
    classes = tuple(sorted(set(labels)))
    numbers = {name: number for number, name in enumerate(classes)}
    y = np.array([numbers[label] for label in labels], np.int64)
    groups = np.array(speakers, np.int64)
    everything = Dataset(folder.name, x, y, classes, groups)
    if split == "all":
        return everything
    # -1 - row of a silence, turned back into its row.
    test = np.where(groups < 0, -1 - groups, groups) % _TEST_ONE_IN == 0
    return everything.select(test if split == "test" else ~test)


def _index(path: Path) -> tuple[list[str], list[int]]:
    labels: list[str] = []
    speakers: list[int] = []
    with reading(path, "index of clips"), path.open(newline="", encoding="utf-8") as file:
        table = csv.reader(file)
        if next(table, None) != _HEAD:
            raise ValueError(f"its first line is not `{','.join(_HEAD)}`")
        for row, line in enumerate(table):
            if len(line) != len(_HEAD) or line[0] != str(row):
                raise ValueError(f"row {row} is `{','.join(line)[:60]}`, needed row number, label, speaker and file")
            labels.append(line[1])
            speakers.append(int(line[2], 16) if line[2] else -1 - row)
            if abs(speakers[-1]) > np.iinfo(np.int64).max:
                raise ValueError(f"row {row} has a speaker beyond 64 bits")
    return labels, speakers
