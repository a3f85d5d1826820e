"""SVHN's MATLAB files give their images and digits, without being held, and damaged ones a `DataError`."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mat_files import element, header, matrix, packed, svhn_bytes

from edgeff.class_names import DIGITS
from edgeff.data import open_dataset
from edgeff.errors import DataError
from edgeff.matlab import read_mat
from edgeff.rows import row_blocks
from edgeff.svhn import read_svhn

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), np.uint8)
LABELS = np.array([1, 9, 10, 2, 5, 10, 3, 4, 6, 7, 8, 1], np.uint8)
DIGIT = [1, 9, 0, 2, 5, 0, 3, 4, 6, 7, 8, 1]
X = matrix("X", IMAGES.transpose(2, 3, 1, 0))
Y = matrix("y", LABELS[:, None])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path / "cache"))


def put(folder: Path, data: bytes, name: str = "train_32x32.mat") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def error_of(call: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
@pytest.mark.parametrize("labels", ["u1", "f8", "i4", "u8"])
def test_images_and_digits_are_those_of_the_file(
    tmp_path: Path, order: str, pack: bool, held_bytes: int, labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeff.cache.IN_MEMORY_BYTES", held_bytes)
    path = put(tmp_path, svhn_bytes(IMAGES, LABELS.astype(labels), order, pack=pack))

    dataset = open_dataset(str(path), data_dir=None)

    np.testing.assert_array_equal(dataset.x[:], IMAGES)
    np.testing.assert_array_equal(dataset.x[np.array([7, -1, 0])], IMAGES[[7, -1, 0]])
    np.testing.assert_array_equal(dataset.select(np.array([3])).x[:], IMAGES[3:4])
    assert dataset.x[:2].flags.c_contiguous
    assert dataset.y.tolist() == DIGIT
    assert (dataset.classes, dataset.input.shape, dataset.input.dtype) == (DIGITS, (3, 32, 32), "uint8")
    assert len(list((tmp_path / "cache").glob("*"))) == (0 if not pack or held_bytes else 2)


def test_a_pixel_is_where_matlab_has_it(tmp_path: Path) -> None:
    x = np.zeros((32, 32, 3, 2), np.uint8)
    x[5, 9, 2, 1] = 77  # row, column, colour, image
    path = put(tmp_path, header() + packed(matrix("X", x)) + packed(matrix("y", np.array([[1], [2]], np.uint8))))
    assert np.argwhere(read_svhn(path).x[:]).tolist() == [[1, 2, 5, 9]]


def test_variables_may_come_in_any_order_and_classes_wider_than_their_numbers(tmp_path: Path) -> None:
    wide = matrix("y", LABELS[:, None], kind=6)  # double, kept as bytes
    dataset = read_svhn(put(tmp_path, header() + packed(wide) + X))
    assert dataset.y.tolist() == DIGIT
    np.testing.assert_array_equal(dataset.x[:], IMAGES)


def test_few_labels_that_stand_in_their_tag_are_read(tmp_path: Path) -> None:
    for pack in (False, True):
        dataset = read_svhn(put(tmp_path, svhn_bytes(IMAGES[:3], LABELS[:3], pack=pack)))
        assert dataset.y.tolist() == DIGIT[:3]


@pytest.mark.parametrize("folder", ["svhn", "SVHN"])
def test_the_known_name_has_three_splits(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    put(tmp_path / folder, svhn_bytes(IMAGES[:8], LABELS[:8]))
    put(tmp_path / folder, svhn_bytes(IMAGES[8:], LABELS[8:]), "test_32x32.mat")

    assert [len(open_dataset(spec, data_dir=tmp_path)) for spec in ("svhn", "svhn:train", "svhn:test")] == [8, 8, 4]
    error = error_of(lambda: open_dataset("svhn:extra", data_dir=tmp_path))
    assert str(error).endswith("has no images of the split `extra`: needed `extra_32x32.mat`")
    error = error_of(lambda: open_dataset("svhn:val", data_dir=tmp_path))
    assert error.hint == "its splits: `train`, `test`, `extra`"


def test_images_are_inflated_once_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 8_000  # 24 MB
    images, labels = np.resize(IMAGES, (count, 3, 32, 32)), np.resize(LABELS, count)
    path = put(tmp_path, svhn_bytes(images, labels))

    tracemalloc.start()
    try:
        dataset = read_svhn(path)
        for first, block in row_blocks(dataset.x):
            assert (block == images[first : first + len(block)]).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20

    # The second time nothing of the packed images is read.
    inflated: list[int] = []
    monkeypatch.setattr("edgeff.matlab.CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr("edgeff.matlab.MatArray._parts", lambda self: inflated.append(self.packed) or [])
    monkeypatch.setattr("edgeff.cache.IN_MEMORY_BYTES", 0)
    assert len(read_mat(path, ("X", "y"))["X"].rows()) == count
    assert inflated == []


def shaped(shape: tuple[int, ...], data: bytes, code: int = 2, kind: int = 9, name: bytes = b"X") -> bytes:
    """A variable that says what it likes."""
    content = element(6, struct.pack("<2I", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, content + element(1, name) + element(code, data))


def test_what_is_no_matlab_v5_file_is_refused(tmp_path: Path) -> None:
    def said(data: bytes) -> str:
        return str(error_of(lambda: read_svhn(put(tmp_path, data)))).partition("` ")[2]

    for data in (b"", b"\x89HDF", header()[:127], bytes(128), header(version=0x0300)):
        assert said(data).endswith("has no header of a MATLAB v5 file")
    assert said(header(version=0x0200)) == "is a MATLAB v7.3 file, needed v5 to v7"
    for data in (header(), header() + X):
        assert "has no variable `" in said(data) or said(data).startswith("has no variable")
    damaged = "is not a valid MATLAB v5 file: "
    assert said(header() + X + b"\0\0\0") == damaged + "needed 8 more bytes, got 3"
    assert (
        said(header() + struct.pack("<2I", 14, 99)) == damaged + "a variable claims 99 bytes, of which the file has 0"
    )
    assert said(header() + element(6, bytes(8))) == damaged + "its variables have type 6, needed 14 or 15"
    assert said(header() + packed(element(6, bytes(8)))) == damaged + "a packed variable has type 6, needed 14"
    assert said(header() + packed(packed(X))) == damaged + "a packed variable has type 15, needed 14"
    assert said(header() + X + X) == "has a variable `X`, needed `X` and `y` and no others, each once"
    assert said(header() + matrix("Z", LABELS[None])) == (
        "has a variable `Z`, needed `X` and `y` and no others, each once"
    )


@pytest.mark.parametrize("pack", [bytes, packed])
@pytest.mark.parametrize(
    ("variable", "needle"),
    [
        (shaped((32, 32, 3, 2**31 - 1), bytes(6144)), "its header claims 6,144 in an element with 6,144 left"),
        (shaped((32, 32, 3, 1), bytes(6144)), "needs 3,072 bytes, its header claims 6,144"),
        (shaped((2**31 - 1,) * 32, bytes(8)), "its header claims 8 in an element with 8 left"),
        (shaped((32, 32, 3, -2), bytes(8)), "its header claims the shape (32, 32, 3, -2)"),
        (shaped((6144,), bytes(6144)), "its header claims the shape (6144,)"),
        (shaped((0, 2), b""), "its header claims rows that hold nothing"),
        (shaped((1,) * 33, bytes(1)), "its header has an element of type 5 and 132 bytes"),
        (shaped((2, 1), bytes(2), code=16), "has numbers of type 16"),
        (shaped((2, 1), bytes(2), kind=1), "a variable has class 1, or is complex"),
        (matrix("X", LABELS[None], flags=8), "a variable has class 9, or is complex"),
        (shaped((2, 1), bytes(2), name=b"x" * 64), "its header has an element of type 1 and 64 bytes"),
        (shaped((2, 1), bytes(2), name=b"\xff"), "'ascii' codec can't decode byte 0xff"),
        (element(14, element(5, bytes(8))), "its header has an element of type 5 and 8 bytes"),
        (element(14, element(6, bytes(16))), "its header has an element of type 6 and 16 bytes"),
        (element(14, struct.pack("<2I", 5 << 16 | 6, 0)), "a small element claims 5 bytes"),
        (element(14, b""), "more bytes, got 0"),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], variable: bytes, needle: str
) -> None:
    assert needle in str(error_of(lambda: read_svhn(put(tmp_path, header() + pack(variable)))))


def test_damaged_packed_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(x: bytes) -> str:
        path = put(tmp_path, header() + packed(Y) + struct.pack("<2I", 15, len(x)) + x)
        return str(error_of(lambda: read_svhn(path))).partition("file: ")[2]

    for held_bytes in (1 << 20, 0):
        monkeypatch.setattr("edgeff.cache.IN_MEMORY_BYTES", held_bytes)
        whole = zlib.compress(X)
        assert said(whole[:-40]) == "it ends inside its compressed data"
        assert said(whole[:-4] + bytes(4)).startswith("Error -3 while decompressing data: incorrect data check")
        assert said(whole + b"\0") == "bytes follow its compressed data"
        assert said(zlib.compress(X[:-8])).startswith("needed ")
        assert said(zlib.compress(X + b"\0")) == "an element holds more than its array"
        assert said(b"").startswith("it ends inside")
        assert not [path for path in (tmp_path / "cache").glob("*") if path.stat().st_size > 20_000]


def test_a_packed_claim_beyond_what_the_file_can_hold_takes_no_memory(tmp_path: Path) -> None:
    images = 2**20
    claim = struct.pack("<2I", 14, 3072 * images + 64)
    begin = shaped((32, 32, 3, images), b"")[8:-8] + struct.pack("<2I", 2, 3072 * images)
    y = matrix("y", np.ones((images, 1), np.uint8))
    path = put(tmp_path, header() + packed(claim + begin + bytes(100)) + packed(y))
    tracemalloc.start()
    try:
        error = error_of(lambda: read_svhn(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "claims to hold 3,221,225,472 bytes of rows" in str(error)
    assert peak < 24 << 20


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (IMAGES.astype("u2"), LABELS, "`X` in `{}` is uint16 of shape (32, 32, 3, 12), needed uint8"),
        (IMAGES[:, :2], LABELS, "`X` in `{}` is uint8 of shape (32, 32, 2, 12), needed uint8 of shape (32, 32, 3, im"),
        (IMAGES, LABELS[:5], "`y` in `{}` has shape (5, 1), needed (12, 1): one for each image"),
        (IMAGES, LABELS % 10, "`{}` has label 0 in row 2, needed 1..10"),
        (IMAGES, LABELS + 1, "`{}` has label 11 in row 2, needed 1..10"),
        (IMAGES, LABELS.astype("i1") - 9, "`{}` has label -8 in row 0, needed a whole number 1..10"),
        (IMAGES, LABELS.astype("f8") + 0.5, "`{}` has label 1.5 in row 0, needed a whole number 1..10"),
        (IMAGES, LABELS * np.inf, "`{}` has label inf in row 0, needed a whole number 1..10"),
        (IMAGES, LABELS * np.nan, "`{}` has label nan in row 0, needed a whole number 1..10"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, x: np.ndarray, y: np.ndarray, said: str) -> None:
    path = put(tmp_path, svhn_bytes(x, y))
    assert str(error_of(lambda: read_svhn(path))).startswith(said.format(path))


def test_images_that_are_not_four_dimensional_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path, header() + matrix("X", IMAGES[0]) + Y)
    assert "is uint8 of shape (3, 32, 32), needed uint8" in str(error_of(lambda: read_svhn(path)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(svhn_bytes(IMAGES[:1], LABELS[:1], pack=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(120, 260))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    with contextlib.suppress(DataError):
        assert read_svhn(put(tmp_path, bytes(whole[:cut]))).check().x[:].shape == (1, 3, 32, 32)
