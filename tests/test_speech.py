"""Speech Commands: no speaker is in both halves."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np
import pytest

from edgeff.data import open_dataset
from edgeff.errors import DataError
from edgeff.readers import read_folder

HEAD = "row,label,speaker,file\n"
LINES = "0,_silence_,,s0\n1,_silence_,,s1\n2,go,0000000a,g\n3,no,ffffffff,n\n4,yes,00000006,y\n5,_silence_,,s5\n"
FEATURES = np.arange(6 * 49 * 40).reshape(6, 49, 40).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path / "cache"))
    target = io.BytesIO()
    np.save(target, FEATURES)
    (tmp_path / "logmel_uint8.npy.xz").write_bytes(lzma.compress(target.getvalue()))
    (tmp_path / "index.csv").write_text(HEAD + LINES)
    return tmp_path


@pytest.mark.parametrize(
    ("split", "rows"), [("all", [0, 1, 2, 3, 4, 5]), ("test", [0, 2, 3, 5]), ("train", [1, 4]), ("", [1, 4])]
)
def test_speakers_divide_into_halves_and_silence_by_row(folder: Path, split: str, rows: list[int]) -> None:
    dataset = read_folder(folder, split).check()

    np.testing.assert_array_equal(dataset.x[:], FEATURES[rows])
    assert dataset.classes == ("_silence_", "go", "no", "yes")
    assert dataset.y.tolist() == np.array([0, 0, 1, 2, 3, 0])[rows].tolist()
    assert dataset.groups is not None
    assert dataset.groups.tolist() == np.array([-1, -2, 10, 2**32 - 1, 6, -6])[rows].tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line is not `row,label,speaker,file`"),
        (HEAD + "1,go,0000000a,g\n", "row 0 is `1,go,0000000a,g`, needed row number, label, speaker and file"),
        (HEAD + "0,go\n", "row 0 is `0,go`, needed row number, label, speaker and file"),
        (HEAD + "0,go,nobody,g\n", "invalid literal for int()"),
        (HEAD + "0,go,0000000a,g\n", "has 1 rows, needed 6 as in `logmel_uint8.npy.xz`"),
    ],
)
def test_a_malformed_index_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "index.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_folder(folder, "all")
    assert str(folder / "index.csv") in str(caught.value)
    assert message in str(caught.value)


def test_an_unknown_split_is_refused(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_folder(folder, "user-1")
    assert (str(caught.value), caught.value.hint) == (
        f"`{folder}` has no split `user-1`",
        "its splits: `train`, `test`, `all`",
    )


def test_the_real_set_divides_as_its_description_says(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (data_dir / "speech-commands-v2-test").is_dir():
        pytest.skip(f"no `speech-commands-v2-test` in {data_dir}")
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path))
    train, test = (open_dataset(f"speech-commands:{split}", data_dir=data_dir) for split in ("train", "test"))

    assert (len(train), len(test), len(train.classes)) == (4165, 725, 12)
    assert train.groups is not None
    assert test.groups is not None
    assert not set(train.groups.tolist()) & set(test.groups.tolist())
