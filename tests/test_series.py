"""UCR and UEA text files become rows of float32; every line that is not as it should be is refused by row number."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeff.cache import IN_MEMORY_BYTES
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.readers import read_folder
from edgeff.rows import FileRows
from edgeff.series import read_series

PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
UEA_HEADER = "# about it\n@problemName Test\n@timeStamps false\n@univariate false\n@classLabel true walk run\n@data\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path / "cache"))


def series(path: Path, text: str, **options: int) -> Dataset:
    path.write_bytes(PACK.get(path.suffix, bytes)(text.encode()))
    return read_series(path, **options).check().check_values()


def refusal(path: Path, text: str) -> str:
    with pytest.raises(DataError) as caught:
        series(path, text)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize("pack", PACK)
def test_a_ucr_file_has_the_label_first(tmp_path: Path, pack: str) -> None:
    dataset = series(tmp_path / f"a.tsv{pack}", "10\t1.5\t-2e-1\n-1\t3\t4\n2.0000000e+00\t5\t6\n10\t7\t8\n")

    np.testing.assert_array_equal(dataset.x[:], np.array([[1.5, -0.2], [3, 4], [5, 6], [7, 8]], np.float32))
    assert dataset.x.dtype == np.float32
    assert dataset.classes == ("-1", "2", "10")
    assert dataset.y.tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("pack", PACK)
def test_a_uea_file_has_channels_and_then_the_label(tmp_path: Path, pack: str) -> None:
    dataset = series(tmp_path / f"a.ts{pack}", UEA_HEADER + "1,2,3:4,5,6:walk\n7,8,9:10,11,12:run\n")

    np.testing.assert_array_equal(dataset.x[:], np.arange(1, 13, dtype=np.float32).reshape(2, 2, 3))
    assert dataset.classes == ("run", "walk")
    assert dataset.y.tolist() == [1, 0]


def test_a_byte_order_mark_is_no_part_of_the_first_label(tmp_path: Path) -> None:
    assert series(tmp_path / "a.tsv", "\ufeff1\t2\t3\n2\t2\t3\n").classes == ("1", "2")


def test_a_univariate_uea_file_has_one_channel(tmp_path: Path) -> None:
    assert series(tmp_path / "a.ts", UEA_HEADER + "1,2,3:walk\n").x.shape == (1, 1, 3)


def test_series_of_different_length_are_padded_with_zeros_to_the_longest(tmp_path: Path) -> None:
    dataset = series(tmp_path / "a.ts", UEA_HEADER + "1:2:walk\n3,4,5:6,7,8:run\n9,10:11,12:run\n")

    np.testing.assert_array_equal(
        dataset.x[:], [[[1, 0, 0], [2, 0, 0]], [[3, 4, 5], [6, 7, 8]], [[9, 10, 0], [11, 12, 0]]]
    )


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_requested_length_cuts_the_end_or_pads(tmp_path: Path, length: int) -> None:
    uea = series(tmp_path / "a.ts", UEA_HEADER + "1,2,3:4,5,6:walk\n7,8:9,10:run\n", length=length)
    ucr = series(tmp_path / "a.tsv", "1\t1\t2\t3\n", length=length)

    wide = np.array([[[1, 2, 3, 0, 0], [4, 5, 6, 0, 0]], [[7, 8, 0, 0, 0], [9, 10, 0, 0, 0]]])
    np.testing.assert_array_equal(uea.x[:], wide[:, :, :length])
    np.testing.assert_array_equal(ucr.x[:], wide[0, :1, :length])


def test_both_halves_of_a_problem_have_the_same_labels_and_length(tmp_path: Path) -> None:
    (tmp_path / "a_TRAIN.tsv.xz").write_bytes(lzma.compress(b"3\t1\t2\n1\t3\t4\n"))
    (tmp_path / "a_TEST.tsv").write_bytes(b"2\t5\t6\n3\t7\t8\n")
    train, test = read_folder(tmp_path, "train"), read_folder(tmp_path, "test")

    assert train.classes == test.classes == ("1", "2", "3")
    assert (train.y.tolist(), test.y.tolist()) == ([2, 0], [1, 2])


def test_both_halves_of_a_uea_problem_are_padded_alike(tmp_path: Path) -> None:
    (tmp_path / "a_TRAIN.ts").write_text(UEA_HEADER + "1,2:walk\n")
    (tmp_path / "a_TEST.ts").write_text(UEA_HEADER + "1,2,3:walk\n")

    assert read_folder(tmp_path, "").x.shape == read_folder(tmp_path, "test").x.shape == (1, 1, 3)


def test_a_folder_with_one_half_has_only_that_split(tmp_path: Path) -> None:
    (tmp_path / "a_TEST.tsv").write_bytes(b"2\t5\t6\n")
    assert len(read_folder(tmp_path, "test")) == 1
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path, "train")
    assert str(caught.value) == f"`{tmp_path}` has no single file whose name ends in `_TRAIN`"


def test_large_series_go_through_the_cache(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)
    text = "".join("1\t" + "\t".join(map(repr, row)) + "\n" for row in values.tolist())

    dataset = series(tmp_path / "a.tsv", text)

    assert values.nbytes > IN_MEMORY_BYTES
    assert isinstance(dataset.x, FileRows)
    np.testing.assert_array_equal(dataset.x[:], values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no rows"),
        ("\n\n", "it has no rows"),
        ("1 2 3\n", "row 0 has no tab, needed a label, then values, separated by tabs"),
        ("1\t2\t3\n1\t2\n", "row 1 has 1 values, needed 2 as in row 0"),
        ("1\t2\t3\n1\t2\t\n", "row 1 has a missing value"),
        ("1\t2\t3\n1\t2\t?\n", "row 1 has a missing value"),
        ("1\t2\t3\n1\tNaN\t3\n", "row 1 has a missing value (NaN) or Inf"),
        ("1\t2\t3\n1\t-inf\t3\n", "row 1 has a missing value (NaN) or Inf"),
        ("1\t2\t3\n1\t1e300\t3\n", "row 1 has a missing value (NaN) or Inf"),
        ("1\t2\t3\n1\tabc\t3\n", "row 1 holds `abc`, needed numbers"),
        ("1\t2\t3\n?\t2\t3\n", "row 1 has no label: `?`"),
        ("1\t2\t3\n NaN \t2\t3\n", "row 1 has no label: `NaN`"),
        ("1\t2\t3\n\t2\t3\n", "row 1 has no label: ``"),
    ],
)
def test_a_malformed_ucr_file_is_refused_by_row(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.tsv"
    assert refusal(path, text) == f"`{path}` is not a valid UCR file: {reason}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it ends before the line `@data`"),
        (UEA_HEADER, "it has no rows"),
        (UEA_HEADER.replace("@data", "1,2"), "`1,2` is in its header, needed only lines that begin with `@` or `#`"),
        (UEA_HEADER.replace("@timeStamps false", "@timeStamps true"), "its series have time stamps, needed evenly"),
        (UEA_HEADER.replace("true walk run", "false"), "its series have no class labels"),
        ("@targetlabel true\n" + UEA_HEADER, "its series have no class labels"),
        (UEA_HEADER + "1,2,3\n", "row 0 has no colon, needed channels and a label, separated by colons"),
        (UEA_HEADER + "1,2:walk\n1,2:1,2:walk\n", "row 1 has 2 channels, needed 1 as in row 0"),
        (UEA_HEADER + "1,2:1:walk\n", "row 0 has channels of 1 to 2 samples, needed the same"),
        (UEA_HEADER + "1,2:walk\n1,2:swim\n", "row 1 has label `swim`, which its header does not name"),
        (UEA_HEADER + "1,2:walk\n1,?:walk\n", "row 1 has a missing value"),
        (UEA_HEADER + "1,2:walk\n1,NaN:walk\n", "row 1 has a missing value (NaN) or Inf"),
        (UEA_HEADER + "1,2:walk\n1,x:walk\n", "row 1 holds `x`, needed numbers"),
        (UEA_HEADER + "1,2:walk\n1,2:?\n", "row 1 has no label: `?`"),
    ],
)
def test_a_malformed_uea_file_is_refused_by_row(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.ts"
    assert refusal(path, text).startswith(f"`{path}` is not a valid UEA file: {reason}")


@pytest.mark.parametrize("name", ["a.tsv", "a.ts", "a.tsv.gz", "a.ts.xz"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACK.get(path.suffix, bytes)(b"\xff\xfe\x00\x80" * 10))
    with pytest.raises(DataError, match="can't decode byte"):
        read_series(path)


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeff.series._LINE_BYTES", 1000)
    assert "a line is longer than 1,000 bytes" in refusal(tmp_path / "a.tsv", "1\t" + "2" * 2000)
