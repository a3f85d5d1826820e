"""CIFAR in all its forms gives the same rows, and its pickles run nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeff import cifar
from edgeff.cifar import read_cifar_pickle
from edgeff.class_names import CIFAR10, CIFAR100
from edgeff.data import open_dataset
from edgeff.errors import DataError
from edgeff.readers import read_file, read_folder
from edgeff.rows import FileRows

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 3, 32, 32), np.uint8)
LABELS = np.array([3, 9, 0, 1, 5, 2, 2, 7, 8, 4, 6, 9], np.uint8)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(tmp_path / "cache"))


def binary(images: np.ndarray, *labels: np.ndarray) -> bytes:
    return np.concatenate([*(each[:, None] for each in labels), images.reshape(len(images), -1)], axis=1).tobytes()


def pickled(images: np.ndarray, labels: np.ndarray, key: str = "labels", protocol: int = 2) -> bytes:
    batch = {"data": images.reshape(len(images), -1), key: labels.tolist(), "filenames": ["a.png"] * len(images)}
    return pickle.dumps(batch, protocol)


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 wrote the official files: protocol 2, byte strings, numpy under its old name."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    shape = b"K" + bytes([len(images)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    dtype += b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    content = images.tobytes()
    array += b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", len(content)) + content + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def residuals(images: np.ndarray) -> bytes:
    planes = images.transpose(1, 0, 2, 3).copy()  # (3, images, 32, 32)
    planes[0] -= planes[1]
    planes[2] -= planes[1]
    rows = np.diff(planes, axis=2, prepend=np.zeros_like(planes[:, :, :1]))
    coded = np.diff(rows, axis=3, prepend=np.zeros_like(rows[:, :, :, :1]))
    target = io.BytesIO()
    np.save(target, coded)
    return lzma.compress(target.getvalue(), preset=0)


def five(write: Callable[[np.ndarray, np.ndarray], bytes], folder: Path, pattern: str, test: str) -> None:
    """Ten images in five training batches, two in the test batch."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(5):
        part = slice(2 * number, 2 * number + 2)
        (folder / pattern.format(number + 1)).write_bytes(write(IMAGES[part], LABELS[part]))
    (folder / test).write_bytes(write(IMAGES[10:], LABELS[10:]))


def binary_folder(folder: Path) -> None:
    five(binary, folder / "cifar-10-batches-bin", "data_batch_{}.bin", "test_batch.bin")


def pickle_folder(folder: Path) -> None:
    five(python2_pickle, folder, "data_batch_{}", "test_batch")


def xz_folder(folder: Path) -> None:
    five(lambda images, _: residuals(images), folder, "data_batch_{}.npy.xz", "test_batch.npy.xz")
    np.save(folder / "train_labels.npy", LABELS[:10])
    np.save(folder / "test_labels.npy", LABELS[10:])


@pytest.mark.parametrize("make", [binary_folder, pickle_folder, xz_folder])
@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
def test_every_form_of_the_folder_gives_the_same_rows(
    tmp_path: Path, make: Callable[[Path], None], held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeff.cache.IN_MEMORY_BYTES", held_bytes)
    make(tmp_path / "cifar10")

    for split, part in (("train", slice(0, 10)), ("test", slice(10, 12))):
        dataset = open_dataset(f"cifar10:{split}", data_dir=tmp_path)
        np.testing.assert_array_equal(dataset.x[:], IMAGES[part])
        np.testing.assert_array_equal(dataset.x[np.array([1, 0])], IMAGES[part][[1, 0]])
        assert dataset.y.tolist() == LABELS[part].tolist()
        assert dataset.classes == CIFAR10
        assert (dataset.input.shape, dataset.input.dtype) == ((3, 32, 32), "uint8")


def test_the_official_folder_is_found_under_its_own_name(tmp_path: Path) -> None:
    binary_folder(tmp_path)
    assert len(open_dataset("cifar10", data_dir=tmp_path)) == 10
    assert len(read_folder(tmp_path, "test")) == 2


@pytest.mark.parametrize("form", ["binary", "pickles"])
def test_cifar100_has_the_fine_labels(tmp_path: Path, form: str) -> None:
    fine = np.arange(88, 100, dtype=np.uint8)
    folder = tmp_path / ("cifar-100-binary" if form == "binary" else "cifar-100-python")
    folder.mkdir()
    for name, part in (("train", slice(0, 8)), ("test", slice(8, 12))):
        if form == "binary":
            (folder / f"{name}.bin").write_bytes(binary(IMAGES[part], LABELS[part], fine[part]))
        else:
            (folder / name).write_bytes(pickled(IMAGES[part], fine[part], "fine_labels"))

    dataset = open_dataset("cifar100:test", data_dir=tmp_path)

    np.testing.assert_array_equal(dataset.x[:], IMAGES[8:])
    assert dataset.y.tolist() == [96, 97, 98, 99]
    assert [dataset.classes[label] for label in dataset.y] == ["willow_tree", "wolf", "woman", "worm"]


def test_there_are_a_hundred_class_names_in_order() -> None:
    assert len(CIFAR100) == len(set(CIFAR100)) == 100
    assert list(CIFAR100) == sorted(CIFAR100)


def test_a_binary_file_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "batch.bin"
    path.write_bytes(binary(IMAGES, LABELS))
    dataset = read_file(path)

    assert isinstance(dataset.x, FileRows)
    np.testing.assert_array_equal(dataset.x[3:6], IMAGES[3:6])
    path.write_bytes(binary(IMAGES, LABELS * 0, LABELS))
    assert read_file(path).classes == CIFAR100


@pytest.mark.parametrize("content", [b"", bytes(3072), binary(IMAGES, LABELS)[:-1]])
def test_a_binary_file_of_another_size_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "batch.bin"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert str(caught.value) == (
        f"`{path}` has {len(content):,} bytes, needed a multiple of 3,073 (CIFAR-10) or 3,074 (CIFAR-100)"
    )


def test_a_label_beyond_the_classes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "batch.bin"
    path.write_bytes(binary(IMAGES, LABELS + 1))
    with pytest.raises(DataError) as caught:
        read_file(path).check()
    assert str(caught.value) == "`batch.bin` has label 10 in row 1, needed 0..9"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_that_python3_wrote_are_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickled(IMAGES, LABELS, protocol=protocol))
    dataset = read_file(tmp_path / "data_batch_1")
    np.testing.assert_array_equal(dataset.x[:], IMAGES)
    assert dataset.y.tolist() == LABELS.tolist()


class Runs:
    """Pickles as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        (Runs(os.system, "echo ran"), "posix.system"),
        (Runs(eval, "1"), "builtins.eval"),
        (Runs(getattr, "a", "b"), "builtins.getattr"),
        ({"data": Runs(np.zeros, 3)}, "numpy.zeros"),
        ({"data": Runs(np.load, "x")}, "numpy.load"),
        (bytearray(b"x"), "builtins.bytearray"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused(tmp_path: Path, batch: object, name: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(batch, 4))
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"`{path}` is a pickle that asks for `")
    assert name.split(".")[-1] in str(caught.value)
    assert str(caught.value).endswith("`, which edgeff does not load")
    assert caught.value.hint.startswith("a pickle can run any program")


def test_a_pickle_cannot_change_what_it_may_name(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x05stateK\x01sb.")
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert str(caught.value) == f"`{path}` is not a valid CIFAR pickle: it sets attributes"
    assert vars(cifar._reconstruct) == {}


_ARRAY = pickled(IMAGES, LABELS)
BROKEN_PICKLES = {
    "nothing more": b"\x80\x02",
    "cut": _ARRAY[:-100],
    "no dictionary": pickle.dumps([1, 2]),
    "no data": pickle.dumps({"labels": [1]}),
    "no labels": pickle.dumps({"data": IMAGES.reshape(12, -1)}, 2),
    "too few labels": pickled(IMAGES, LABELS[:5]),
    "labels that are text": pickle.dumps({"data": IMAGES.reshape(12, -1), "labels": ["1"] * 12}, 2),
    "labels beyond int64": pickle.dumps({"data": IMAGES.reshape(12, -1), "labels": [2**70] * 12}, 2),
    "another dtype": pickle.dumps({"data": IMAGES.reshape(12, -1).view(np.int8), "labels": LABELS.tolist()}, 2),
    "another shape": pickle.dumps({"data": IMAGES[:, 0], "labels": LABELS.tolist()}, 2),
    "data that are no array": pickle.dumps({"data": b"abc", "labels": [1]}, 2),
    "objects": pickle.dumps({"data": np.array([[None] * 3072] * 2), "labels": [1, 2]}, 2),
    "a memory place beyond all": b"\x80\x02}r\xff\xff\xff\xff.",
    "a claim of many bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc",
    "an unknown command": b"\x80\x02\xff.",
    "an empty stack": b"\x80\x02R.",
    "an extension": b"\x80\x02\x82\x01.",
    "attributes of a function": b"\x80\x02cnumpy\nndarray\n}U\x05stateK\x01sb.",
    "an outside object": b"\x80\x02K\x01Q.",
}


@pytest.mark.parametrize("damage", BROKEN_PICKLES)
def test_a_broken_pickle_is_a_data_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(BROKEN_PICKLES[damage])
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert f"`{path}`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_is_changed_in_a_pickle_it_is_read_or_a_data_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([python2_pickle(IMAGES[:2], LABELS[:2]), pickled(IMAGES[:2], LABELS[:2])]))
    # The commands stand at both ends; between them is one long array.
    place = st.integers(0, 250) | st.integers(len(whole) - 60, len(whole) - 1)
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(place)] = data.draw(st.integers(0, 255))
    (tmp_path / "data_batch_1").write_bytes(bytes(broken))

    with contextlib.suppress(DataError):
        read_cifar_pickle(tmp_path / "data_batch_1").check()


@pytest.mark.parametrize("content", [lzma.compress(b"hello"), residuals(IMAGES)[:-40], b"hello"])
def test_a_broken_batch_of_residuals_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    xz_folder(tmp_path)
    (tmp_path / "test_batch.npy.xz").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path, "test")
    assert str(tmp_path / "test_batch.npy.xz") in str(caught.value)
    assert caught.value.hint


def test_residuals_of_another_shape_are_refused(tmp_path: Path) -> None:
    xz_folder(tmp_path)
    target = io.BytesIO()
    np.save(target, IMAGES)
    (tmp_path / "test_batch.npy.xz").write_bytes(lzma.compress(target.getvalue()))
    with pytest.raises(DataError, match=r"holds uint8 of shape \(12, 3, 32, 32\), needed uint8 of shape \(3, images"):
        read_folder(tmp_path, "test")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_decoded_test_batch_is_the_official_one(
    data_dir: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (data_dir / "cifar10").is_dir():
        pytest.skip(f"no `cifar10` in {data_dir}")
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(shared_cache))
    dataset = open_dataset("cifar10:test", data_dir=data_dir)

    content = binary(dataset.x[:], dataset.y.astype(np.uint8))

    # The checksum that https://www.cs.toronto.edu/~kriz/cifar.html's `test_batch.bin` has.
    assert hashlib.md5(content).hexdigest() == "803d5f7f4d78ea53de84dbe85f74fb6d"
