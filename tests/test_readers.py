"""Files and folders become data sets, and broken ones a `DataError` that names them."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeff.cache import IN_MEMORY_BYTES
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.readers import read_file, read_folder
from edgeff.rows import FileRows

X = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
Y = np.array([0, 2, 1, 0, 2], np.uint8)
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path / "cache"))


def npy_bytes(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def idx_bytes(array: np.ndarray) -> bytes:
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    big = array.astype(array.dtype.newbyteorder(">"))
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()


def error_of(call: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(".")
    return caught.value


def assert_holds(dataset: Dataset, x: np.ndarray = X, y: np.ndarray = Y) -> None:
    dataset.check().check_values()
    np.testing.assert_array_equal(dataset.x[:], x)
    assert dataset.x.dtype == x.dtype
    assert dataset.y.tolist() == y.tolist()


# --- npz ---


def test_a_stored_npz_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, x=X, y=Y)

    dataset = read_file(path)

    assert_holds(dataset)
    assert isinstance(dataset.x, FileRows)
    assert dataset.x.path == path
    assert (dataset.name, dataset.classes, dataset.groups) == ("mine.npz", (), None)


@pytest.mark.parametrize("rows", [5, 50_000])
def test_a_deflated_npz_is_unpacked(tmp_path: Path, rows: int) -> None:
    x, y = np.resize(X, (rows, 2, 3)), np.resize(Y, rows)
    np.savez_compressed(tmp_path / "mine.npz", x=x, y=y)

    dataset = read_file(tmp_path / "mine.npz")

    assert_holds(dataset, x, y)
    assert isinstance(dataset.x, FileRows) == (x.nbytes >= IN_MEMORY_BYTES)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_may_hold_classes_groups_sequence_and_span(tmp_path: Path, save: Callable[..., None]) -> None:
    span = np.array([[0, 4], [2, 6], [4, 8], [0, 4], [2, 6]])
    save(tmp_path / "mine.npz", x=X, y=Y, classes=["ä", "b", "c"], groups=[1, 1, 1, 2, 2], sequence=Y * 0, span=span)

    dataset = read_file(tmp_path / "mine.npz").check()

    assert dataset.classes == ("ä", "b", "c")
    assert dataset.groups is not None
    assert dataset.sequence is not None
    assert dataset.groups.tolist() == [1, 1, 1, 2, 2]
    assert dataset.sequence.dtype == np.int64
    np.testing.assert_array_equal(dataset.span, span)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", ">i8"])
def test_labels_may_be_whole_numbers_of_any_size(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "mine.npz", x=X, y=Y.astype(dtype))
    y = read_file(tmp_path / "mine.npz").check().y
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, Y)


def test_a_byte_order_mark_is_no_part_of_the_first_class_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "classes.txt").write_bytes("\ufeffstill\nmoving\nturning\n".encode())
    assert read_file(tmp_path / "x.npy").check().classes == ("still", "moving", "turning")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "has no array `y`"),
        ({"y": Y}, "has no array `x`"),
        (
            {"x": X, "y": Y, "z": Y},
            "has an array `z`, needed none but `x`, `y`, `classes`, `groups`, `sequence`, `span`",
        ),
        ({"x": X, "y": Y.astype(np.float32)}, "has dtype float32, needed whole numbers (an integer dtype)"),
        (
            {"x": X, "y": Y, "classes": np.arange(3)},
            "is a int64 array of shape (3,), needed a one-dimensional array of",
        ),
        ({"x": np.array(["a"] * 5), "y": Y}, "holds a str32 array of shape (5,), needed rows of numbers"),
        ({"x": np.float32(1), "y": Y}, "holds a float32 array of shape (), needed rows of numbers"),
        ({"x": X.astype(np.complex64), "y": Y}, "has dtype complex64, needed one of bool, uint8,"),
        ({"x": X, "y": Y.astype(np.uint64) + 2**63}, "which is more than 64 bits with a sign hold"),
        ({"x": X, "y": Y, "classes": np.array(["a", "b", "c"], object)}, "needed numbers, or text for names"),
        ({"x": np.asfortranarray(X), "y": Y}, "is in Fortran order, needed C order (rows one after the other)"),
        ({"x": np.array([{}] * 5, object), "y": Y}, "holds Python objects, needed numbers"),
    ],
)
def test_arrays_that_make_no_data_set_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays, allow_pickle=True)  # type: ignore[arg-type]
    assert message in str(error_of(lambda: read_file(tmp_path / "mine.npz")))


def test_labels_that_do_not_match_the_rows_are_counted(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=X, y=Y[:4])
    error = error_of(lambda: read_file(tmp_path / "mine.npz").check())
    assert str(error) == (
        "`mine.npz` has labels of shape (4,) and dtype int64, needed (5,) and int64: one for each row"
    )


def test_a_zip_of_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.txt", "hello")
    assert str(error_of(lambda: read_file(path))) == f"`{path}` holds `x.txt`, needed `.npy` members only"


def test_a_member_with_bytes_after_its_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy_bytes(X) + b"more")
        archive.writestr("y.npy", npy_bytes(Y))
    assert f"`x` in `{path}` has 252 bytes, needed 248" in str(error_of(lambda: read_file(path)))


def test_a_stored_member_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    header = npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (9999, 2)}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("y.npy", npy_bytes(Y))
        archive.writestr("x.npy", header)
        # What the directory at the end of the file will say.
        info = archive.infolist()[1]
        info.file_size = info.compress_size = len(header) + 9999 * 8
    error = error_of(lambda: read_file(path))
    assert f"but the file has {path.stat().st_size:,}" in str(error)
    assert str(error).startswith(f"`x` in `{path}` ends at byte 80,")


# --- npy pairs ---


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("name", ["x.npy", "x_train.npy", "test-x.npy"])
def test_rows_and_labels_may_lie_side_by_side(tmp_path: Path, name: str, pack: str) -> None:
    (tmp_path / (name + pack)).write_bytes(PACK[pack](npy_bytes(X)))
    np.save(tmp_path / name.replace("x", "y", 1).replace("tey", "tex"), Y)
    np.save(tmp_path / name.replace("x", "groups"), Y + 10)
    (tmp_path / "classes.txt").write_text("one\ntwo\n three \n\n", encoding="utf-8")

    dataset = read_file(tmp_path / (name + pack))

    assert_holds(dataset)
    assert isinstance(dataset.x, FileRows) == (not pack)
    assert dataset.classes == ("one", "two", "three")
    assert dataset.groups is not None
    assert dataset.groups.tolist() == (Y + 10).tolist()


def test_a_folder_with_x_and_y_is_a_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)

    assert_holds(read_folder(tmp_path, ""))
    assert str(error_of(lambda: read_folder(tmp_path, "test"))) == f"`{tmp_path}` has no split `test`"


@pytest.mark.parametrize("name", ["x.npy", "y.npy", "rows.npy"])
def test_rows_without_labels_are_refused(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / name, X)
    error = error_of(lambda: read_file(tmp_path / name))
    assert str(error) == f"`{tmp_path / name}` has no labels beside it"
    assert "`x_train.npy` and `y_train.npy`" in error.hint


def npy_with_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


BROKEN_NPY = {
    "nothing": b"",
    "another magic": b"PK\x03\x04" + npy_bytes(X),
    "version 3": b"\x93NUMPY\x03\x00" + npy_bytes(X)[8:],
    "cut in the header": npy_bytes(X)[:60],
    "cut in the data": npy_bytes(X)[:-1],
    "more than the data": npy_bytes(X) + b"?",
    "objects": npy_bytes(np.array([[None]] * 5)),
    "Fortran order": npy_bytes(np.asfortranarray(X)),
    "no dictionary": npy_with_header("5"),
    "a call": npy_with_header("__import__('os').getcwd()"),
    "text that does not parse": npy_with_header("{'shape': (5,"),
    "deep nesting": npy_with_header("(" * 5000),
    "no such dtype": npy_with_header("{'descr': 'q9', 'fortran_order': False, 'shape': (5,)}"),
    "a negative size": npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-5,)}"),
    "a size that is no number": npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}"),
    "more rows than fit into memory": npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2**70,)}"),
    "many rows": npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1180591620717411303424,)}"),
    "records": npy_with_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (5,)}", bytes(20)),
    "a long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{",
}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("damage", BROKEN_NPY)
def test_a_broken_npy_is_a_data_error(tmp_path: Path, damage: str, pack: str) -> None:
    path = tmp_path / f"x.npy{pack}"
    path.write_bytes(PACK[pack](BROKEN_NPY[damage]))
    np.save(tmp_path / "y.npy", Y)

    error = error_of(lambda: read_file(path))

    assert str(path) in str(error)
    assert error.hint


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=st.data(), name=st.sampled_from(["x.npy", "mine.npz", "t-images-idx3-ubyte", "a_TRAIN.ts", "a.tsv", "b.bin"])
)
def test_whatever_the_bytes_are_reading_gives_a_data_set_or_a_data_error(
    tmp_path: Path, data: st.DataObject, name: str
) -> None:
    target = io.BytesIO()
    np.savez_compressed(target, x=X, y=Y)
    whole = {
        "x.npy": npy_bytes(X),
        "mine.npz": target.getvalue(),
        "t-images-idx3-ubyte": idx_bytes(X),
        "a_TRAIN.ts": b"@problemName a\n@classLabel true p q\n@data\n1,2:3,4:p\n5,6:7,8:q\n",
        "a.tsv": b"1\t2.5\t3\n2\t4\t5\n",
        "b.bin": b"\x03" + bytes(3072),
    }[name]
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(bytes(broken[: data.draw(st.integers(0, len(broken)))]))
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx_bytes(Y))

    with contextlib.suppress(DataError):
        read_file(path).check().check_values().x[:]


# --- IDX ---


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_files_of_every_type_are_read(tmp_path: Path, dtype: str, pack: str) -> None:
    (tmp_path / f"train-images-idx3-ubyte{pack}").write_bytes(PACK[pack](idx_bytes(X.astype(dtype))))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(Y)))

    dataset = read_file(tmp_path / f"train-images-idx3-ubyte{pack}")

    assert_holds(dataset, X.astype(dtype))
    assert isinstance(dataset.x, FileRows) == (not pack)


def test_a_large_packed_idx_goes_through_the_cache(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2000, 28, 28), np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images), 1))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(2000, np.uint8))))

    dataset = read_folder(tmp_path, "train")

    assert isinstance(dataset.x, FileRows)
    assert dataset.x.path.parent == tmp_path / "cache"
    np.testing.assert_array_equal(dataset.x[:], images)


def test_a_folder_of_idx_files_has_two_splits(tmp_path: Path) -> None:
    for stem, first in (("train", 0), ("t10k", 2)):
        (tmp_path / f"{stem}-images.idx3-ubyte").write_bytes(idx_bytes(X[first:]))
        (tmp_path / f"{stem}-labels.idx1-ubyte").write_bytes(idx_bytes(Y[first:]))

    assert_holds(read_folder(tmp_path, ""))
    assert_holds(read_folder(tmp_path, "test"), X[2:], Y[2:])
    error = error_of(lambda: read_folder(tmp_path, "validation"))
    assert (str(error), error.hint) == (f"`{tmp_path}` has no split `validation`", "its splits: `train`, `test`")
    (tmp_path / "t10k-images.idx3-ubyte").unlink()
    assert "has no images of the split `test`" in str(error_of(lambda: read_folder(tmp_path, "test")))


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    for name, message in (
        ("a-images-idx3-ubyte", "needed `a-labels-idx1-ubyte`, `a-labels-idx1-ubyte.gz` or `a-labels-idx1-ubyte.xz`"),
        ("a-labels-idx1-ubyte", "needed a name with `images` in it"),
    ):
        path = tmp_path / name
        path.write_bytes(idx_bytes(X))
        assert str(error_of(lambda path=path: read_file(path))) == f"`{path}` has no labels beside it: {message}"  # type: ignore[misc]
        path.unlink()


BROKEN_IDX = {
    "nothing": b"",
    "another magic": b"\x01\x02" + idx_bytes(X)[2:],
    "an unknown type": b"\0\0\x0a\x03" + idx_bytes(X)[4:],
    "no axes": b"\0\0\x08\0",
    "cut in the sizes": idx_bytes(X)[:9],
    "cut in the data": idx_bytes(X)[:-1],
    "more than the data": idx_bytes(X) + b"?",
    "huge sizes": b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100),
}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("damage", BROKEN_IDX)
def test_a_broken_idx_is_a_data_error(tmp_path: Path, damage: str, pack: str) -> None:
    path = tmp_path / f"t-images-idx3-ubyte{pack}"
    path.write_bytes(PACK[pack](BROKEN_IDX[damage]))
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx_bytes(Y))

    error = error_of(lambda: read_file(path))

    assert str(path) in str(error)
    assert error.hint


# --- what is in no form ---


@pytest.mark.parametrize(
    ("name", "content"), [("photo.jpeg", b"\xff\xd8\xff\xe0rest"), ("notes", b"hello"), ("e", b"")]
)
def test_a_file_in_no_known_form_is_named_with_how_it_begins(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = error_of(lambda: read_file(path))
    assert str(error) == f"`{path}` is in no form that edgeff reads: it begins with {content[:4]!r}"
    assert error.hint.startswith("it reads `.npz`, `x.npy` with `y.npy` beside it, IDX")


def test_a_folder_in_no_known_form_is_named(tmp_path: Path) -> None:
    error = error_of(lambda: read_folder(tmp_path, ""))
    assert str(error) == f"`{tmp_path}` is a folder in no form that edgeff reads"
