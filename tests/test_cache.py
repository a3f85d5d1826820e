"""Compressed files are unpacked once, into a folder that may be lost at any time."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeff import cache
from edgeff.cache import IN_MEMORY_BYTES, cache_folder, hold, open_stream, stream_parts, unpacked
from edgeff.errors import DataError
from edgeff.rows import FileRows

LARGE = np.arange(IN_MEMORY_BYTES, dtype="<u2").reshape(-1, 64)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "signals.npy.xz"
    path.write_bytes(b"x" * 1000)
    return path


def held(source: Path, array: np.ndarray, calls: list[int]) -> object:
    def parts() -> Iterator[np.ndarray]:
        calls.append(1)
        yield from np.array_split(array, 7)

    return hold(source, "test", array.shape, array.dtype, parts)


def test_small_rows_are_held_and_no_file_is_written(source: Path, folder: Path) -> None:
    small = np.arange(12, dtype=">i2").reshape(4, 3)

    rows = held(source, small, [])

    assert isinstance(rows, np.ndarray)
    np.testing.assert_array_equal(rows, small)
    assert rows.dtype == np.int16
    assert not folder.exists()


def test_no_rows_at_all_are_held(source: Path) -> None:
    assert held(source, np.zeros((0, 3), np.float32), []).shape == (0, 3)  # type: ignore[attr-defined]


def test_large_rows_are_decoded_once_and_then_read_from_the_cache(source: Path, folder: Path) -> None:
    calls: list[int] = []
    first, second = held(source, LARGE, calls), held(source, LARGE, calls)

    assert isinstance(first, FileRows)
    assert first == second
    assert len(calls) == 1
    np.testing.assert_array_equal(first[:], LARGE)
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["signals"]
    np.testing.assert_array_equal(np.load(first.path, allow_pickle=False), LARGE)


@pytest.mark.parametrize("change", ["content", "time", "form"])
def test_another_source_is_another_cache_entry(source: Path, change: str) -> None:
    first = held(source, LARGE, [])
    if change == "content":
        facts = source.stat()
        source.write_bytes(b"y" * 1001)
        os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif change == "time":
        os.utime(source, ns=(1, 1))
    form = "other" if change == "form" else "test"
    second = hold(source, form, LARGE.shape, LARGE.dtype, lambda: [LARGE])

    assert isinstance(first, FileRows)
    assert isinstance(second, FileRows)
    assert first.path != second.path


@pytest.mark.parametrize("damage", ["cut", "header", "gone"])
def test_a_damaged_cache_entry_is_made_again(source: Path, damage: str) -> None:
    rows = held(source, LARGE, [])
    assert isinstance(rows, FileRows)
    content = rows.path.read_bytes()
    if damage == "gone":
        rows.path.unlink()
    else:
        rows.path.write_bytes(content[:-1] if damage == "cut" else b"?" + content[1:])

    calls: list[int] = []
    held(source, LARGE, calls)

    assert calls == [1]
    assert rows.path.read_bytes() == content


def test_a_decoder_that_fails_leaves_nothing_behind(source: Path, folder: Path) -> None:
    def parts() -> Iterator[np.ndarray]:
        yield LARGE[:5]
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        hold(source, "test", LARGE.shape, LARGE.dtype, parts)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("rows", [5, len(LARGE) + 1])
def test_parts_of_another_length_are_refused(source: Path, folder: Path, rows: int) -> None:
    with pytest.raises(DataError) as caught:
        hold(source, "test", (rows + (1 if rows == 5 else -1), 64), LARGE.dtype, lambda: [np.resize(LARGE, (rows, 64))])
    assert f"`{source}` holds {rows * 128:,} bytes of rows, needed " in str(caught.value)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_claim_that_no_compression_can_meet_is_refused_before_decoding(source: Path) -> None:
    with pytest.raises(DataError) as caught:
        hold(source, "test", (2**40,), np.dtype(np.uint8), lambda: pytest.fail("decoded"))
    assert str(caught.value) == (
        f"`{source}` claims to hold 1,099,511,627,776 bytes of rows, which its 1,000 bytes cannot"
    )


def test_a_full_disk_is_told_before_writing(source: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**20, 2**20 - 1024, 1024))
    with pytest.raises(DataError) as caught:
        held(source, LARGE, [])
    assert str(caught.value) == f"the cache folder `{folder}` has 1 KiB free, needed 2 MiB"
    assert "EDGEFF_CACHE_DIR" in caught.value.hint


def test_a_cache_folder_that_cannot_be_made_is_named(source: Path, folder: Path) -> None:
    folder.write_text("a file")
    for use in (lambda: held(source, LARGE, []), lambda: unpacked(source, "npy file", 1000).__enter__()):
        with pytest.raises(DataError) as caught:
            use()
        assert str(caught.value) == f"the cache folder `{folder}` cannot be used: File exists"
        assert caught.value.hint == "set `EDGEFF_CACHE_DIR` to a folder that can be written"


def test_the_cache_folder_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EDGEFF_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "edgeff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "edgeff"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), ("", bytes)])
def test_streams_unpack_by_the_name_of_the_file(tmp_path: Path, suffix: str, pack: object) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(pack(b"hello"))  # type: ignore[operator]

    with open_stream(path, "text") as stream:
        assert stream.read() == b"hello"
    with unpacked(path, "text", 1000) as plain:
        assert plain.read_bytes() == b"hello"
    assert not plain.exists()


def test_no_more_is_unpacked_than_there_should_be(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "zeros.xz"
    path.write_bytes(lzma.compress(bytes(50_000_000)))
    with pytest.raises(DataError) as caught, unpacked(path, "npy file", 1000):
        pytest.fail("unpacked")
    assert str(caught.value) == f"`{path}` is not a valid npy file: needed 1,000 bytes, got more"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("between", [b"", bytes(4), bytes(600_000)])
def test_an_xz_file_may_be_several_with_zeros_between(tmp_path: Path, between: bytes) -> None:
    path = tmp_path / "text.xz"
    path.write_bytes(lzma.compress(b"hello ") + between + lzma.compress(b"world" * 100_000) + between)
    with open_stream(path, "text") as stream:
        assert stream.read() == b"hello " + b"world" * 100_000


def test_an_xz_file_that_asks_for_gibibytes_to_be_unpacked_is_refused(tmp_path: Path) -> None:
    packed = bytearray(lzma.compress(b"hello"))
    begin, end = 12, 12 + 4 * packed[12]  # of the block's header, whose fifth byte says how large the dictionary is
    packed[begin + 4] = 40
    packed[end : end + 4] = zlib.crc32(packed[begin:end]).to_bytes(4, "little")
    path = tmp_path / "text.xz"
    path.write_bytes(packed)
    with pytest.raises(DataError) as caught, open_stream(path, "text") as stream:
        stream.read()
    assert str(caught.value) == f"`{path}` is not a valid text: Memory usage limit exceeded"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped", "begun"])
def test_broken_compression_is_a_data_error(tmp_path: Path, suffix: str, pack: object, damage: str) -> None:
    whole: bytes = pack(bytes(range(256)) * 50)  # type: ignore[operator]
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 8]) + whole[middle + 8 :]
    path = tmp_path / f"broken{suffix}"
    path.write_bytes({"cut": whole[:-9], "garbage": b"not compressed", "flipped": flipped, "begun": whole[:5]}[damage])

    with pytest.raises(DataError) as caught, open_stream(path, "IDX file") as stream:
        stream.read()
    assert str(caught.value).startswith(f"`{path}` is not a valid IDX file: ")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(("content", "got"), [(b"1234567", "got 7"), (b"123456789", "got more")])
def test_stream_parts_want_the_stream_to_end_with_the_data(tmp_path: Path, content: bytes, got: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"needed 8 bytes of data, {got}"), open_stream(path, "data file") as stream:
        list(stream_parts(stream, 8))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, open_stream(tmp_path / "none.xz", "data file"):
        pass
    assert str(caught.value) == f"`{tmp_path / 'none.xz'}` cannot be read: No such file or directory"


def test_defects_of_edgeff_are_not_taken_for_broken_files(tmp_path: Path) -> None:
    with pytest.raises(KeyError), cache.reading(tmp_path, "file"):
        {}["missing"]
