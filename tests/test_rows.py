"""Rows that are read on demand behave as the array they stand for."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeff.errors import DataError
from edgeff.rows import (
    FileRows,
    JoinedRows,
    SelectedRows,
    cast_rows,
    is_row_dtype,
    row_blocks,
    row_index,
    select_rows,
    window_rows,
)

DTYPES = ("uint8", "int8", "<i2", ">i2", "<f4", ">f8", "<i8", "bool", "<f2")


def file_rows(path: Path, array: np.ndarray, *, before: int = 0, gap: int = 0) -> FileRows:
    """The array as a file, with `before` bytes of something else in front and `gap` bytes after each row."""
    content = b"?" * before + b"".join(array[row : row + 1].tobytes() + b"!" * gap for row in range(len(array)))
    path.write_bytes(content[: len(content) - gap] if len(array) else content)
    row_bytes = array[:1].nbytes if len(array) else 0
    return FileRows(path, before, array.shape, array.dtype, row_bytes + gap if gap else 0)


@st.composite
def arrays_and_keys(draw: st.DrawFn) -> tuple[np.ndarray, slice | np.ndarray]:
    rows = draw(st.integers(0, 9))
    row_shape = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    values = np.arange(rows * math.prod(row_shape)) % (2 if dtype.kind == "b" else 100)
    numbers = st.lists(st.integers(-rows, rows - 1), max_size=12) if rows else st.just([])
    ends = st.none() | st.integers(-12, 12)
    step = st.none() | st.integers(-3, 3).filter(bool)
    key = draw(
        st.builds(slice, ends, ends, step)
        | numbers.map(lambda chosen: np.array(chosen, np.int64))
        | st.lists(st.booleans(), min_size=rows, max_size=rows).map(lambda mask: np.array(mask, bool))
    )
    return values.reshape(rows, *row_shape).astype(dtype), key


@given(case=arrays_and_keys(), before=st.integers(0, 5), gap=st.integers(0, 3))
def test_file_rows_index_like_the_array(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[np.ndarray, slice | np.ndarray], before: int, gap: int
) -> None:
    array, key = case
    rows = file_rows(tmp_path_factory.mktemp("rows") / "rows.bin", array, before=before, gap=gap)

    got = rows[key]

    np.testing.assert_array_equal(got, array[key])
    assert got.dtype == rows.dtype == array.dtype.newbyteorder("=")
    assert (len(rows), rows.shape) == (len(array), array.shape)
    assert got.flags.writeable
    assert rows.end == (rows.path.stat().st_size if len(array) else before)


@given(case=arrays_and_keys(), chosen=st.data())
def test_selected_and_joined_rows_index_like_the_array(
    case: tuple[np.ndarray, slice | np.ndarray], chosen: st.DataObject
) -> None:
    array, key = case
    cut = chosen.draw(st.integers(0, len(array)))
    joined = JoinedRows((array[:cut], array[cut:]))
    np.testing.assert_array_equal(joined[key], array[key])
    assert (joined.shape, joined.dtype) == (array.shape, array.dtype)

    numbers = np.array(
        chosen.draw(st.lists(st.integers(0, len(array) - 1), max_size=9)) if len(array) else [], np.int64
    )
    if isinstance(key, slice):
        selected = select_rows(joined, numbers)
        np.testing.assert_array_equal(selected[key], array[numbers][key])
        assert selected.shape == array[numbers].shape


@given(case=arrays_and_keys())
def test_cast_rows_are_the_array_in_another_dtype(case: tuple[np.ndarray, slice | np.ndarray]) -> None:
    array, key = case
    rows = cast_rows(array, np.dtype(np.float32))
    np.testing.assert_array_equal(rows[key], array[key].astype(np.float32))
    assert (rows[key].dtype, rows.dtype) == (np.float32, np.float32)
    assert (len(rows), rows.shape) == (len(array), array.shape)
    assert cast_rows(rows, np.dtype(np.float32)) is rows


def test_rows_that_are_joined_or_cast_are_there_twice_only_a_few_at_a_time() -> None:
    source = np.zeros((400, 2000), np.float64)
    index = np.arange(300)
    for rows in (cast_rows(source, np.dtype(np.float32)), JoinedRows((source.astype(np.float32), source))):
        tracemalloc.start()
        got = rows[index]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert got.nbytes <= peak < 1.1 * got.nbytes


def test_a_selection_of_a_selection_is_one_selection() -> None:
    twice = select_rows(select_rows(np.arange(10), np.array([8, 6, 4, 2])), np.array([3, 0]))

    assert isinstance(twice, SelectedRows)
    assert isinstance(twice.rows, np.ndarray)
    assert twice[:].tolist() == [2, 8]


def test_a_selection_may_be_a_mask_or_count_from_the_end_and_must_exist() -> None:
    assert select_rows(np.arange(4), np.array([True, False, False, True]))[:].tolist() == [0, 3]
    assert select_rows(np.arange(4), np.array([-1, 0])).index.tolist() == [3, 0]
    with pytest.raises(IndexError):
        select_rows(np.arange(4), np.array([4]))


@pytest.mark.parametrize("kind", ["file", "array"])
def test_windows_are_the_stretches_of_the_signal(tmp_path: Path, kind: str) -> None:
    signal = np.arange(20, dtype=np.int16).reshape(10, 2)
    source = file_rows(tmp_path / "signal.bin", signal, before=7) if kind == "file" else signal

    windows = window_rows(source, 4)

    assert windows.shape == (7, 4, 2)
    np.testing.assert_array_equal(windows[np.array([0, 3, 6])], [signal[0:4], signal[3:7], signal[6:10]])
    np.testing.assert_array_equal(windows[:], [signal[first : first + 4] for first in range(7)])


def test_row_blocks_cover_all_rows_once_in_order() -> None:
    array = np.arange(10 * 3, dtype=np.float32).reshape(10, 3)

    blocks = list(row_blocks(array, block_bytes=4 * 12))

    assert [(first, len(block)) for first, block in blocks] == [(0, 4), (4, 4), (8, 2)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), array)


def test_reading_some_rows_holds_only_these(tmp_path: Path) -> None:
    rows = file_rows(tmp_path / "big.bin", np.zeros((4000, 1000), np.uint8))
    rows[:1]
    tracemalloc.start()
    rows[np.arange(0, 4000, 100)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 100_000


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (np.array([5]), "row numbers must lie in 0..4, got 5..5"),
        (np.array([0, -6]), "row numbers must lie in 0..4, got -6..0"),
        (np.array([0.5]), "rows are taken by a slice or a one-dimensional integer array, got float64"),
        (np.array([[0]]), "rows are taken by a slice or a one-dimensional integer array, got int64"),
        (np.array([True]), "rows are taken by a slice or a one-dimensional integer array, got bool"),
    ],
)
def test_keys_that_name_no_rows_are_refused(key: np.ndarray, message: str) -> None:
    with pytest.raises(IndexError) as caught:
        row_index(key, 5)
    assert str(caught.value) == message


def test_a_file_that_shrinks_after_opening_is_named(tmp_path: Path) -> None:
    rows = file_rows(tmp_path / "rows.bin", np.zeros((4, 8), np.uint8))
    rows.path.write_bytes(b"\0" * 20)

    np.testing.assert_array_equal(rows[:2], np.zeros((2, 8)))
    with pytest.raises(DataError) as caught:
        rows[1:4]
    assert str(caught.value) == (f"`{rows.path}` ends inside the rows read from row 1 on: needed 24 bytes, got 12")
    assert caught.value.hint == "the file became shorter after it was opened; start again"


def test_a_file_that_vanishes_after_opening_is_named(tmp_path: Path) -> None:
    rows = file_rows(tmp_path / "rows.bin", np.zeros((4, 8), np.uint8))
    rows.path.unlink()

    with pytest.raises(DataError) as caught:
        rows[:]
    assert str(caught.value) == f"`{rows.path}` cannot be read: No such file or directory"


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_can_be_rows(dtype: str) -> None:
    assert is_row_dtype(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "c8", "M8[s]", "uint32", [("a", "u1")]])
def test_other_dtypes_cannot_be_rows(dtype: object) -> None:
    assert not is_row_dtype(np.dtype(dtype))  # type: ignore[call-overload]
