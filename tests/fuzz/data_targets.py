"""Readers of data sets, and of device profiles."""

from __future__ import annotations

import gzip
import io
import lzma
import zipfile
from pathlib import Path

from fuzz import data_seeds as seeds
from fuzz import words
from fuzz.base import Target, attempt, parts, put
from mat_files import packed

from edgeff.data import open_dataset
from edgeff.devices import default_budget_bytes, load_profile, require_trainable
from edgeff.devices.show import profile_table, profile_text, to_json
from edgeff.rows import row_blocks

# The first byte of an input: plain, packed here, or packed already.
_PLAIN, _GZIP, _XZ, _GZIP_AS_IT_IS, _XZ_AS_IT_IS = b"0", b"1", b"2", b"3", b"4"
_SUFFIX = {_GZIP: ".gz", _XZ: ".xz", _GZIP_AS_IT_IS: ".gz", _XZ_AS_IT_IS: ".xz"}


def _pack(mode: bytes, data: bytes) -> bytes:
    if mode == _GZIP:
        return gzip.compress(data, 1)
    return _xz(data) if mode == _XZ else data


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def _read_all(spec: str | Path) -> None:
    """Open a data set and read every row of it."""
    dataset = attempt(lambda: open_dataset(str(spec), data_dir=None))
    if dataset is not None:
        attempt(lambda: [None for _ in row_blocks(dataset.x)])
        attempt(lambda: dataset.select(dataset.y == 0).x[:1])


def _fresh(folder: Path) -> Path:
    """An empty folder of that name."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


def read_npz(data: bytes, folder: Path) -> None:
    """An archive as it is, or one of the given members."""
    mode, content = data[:1], data[1:]
    if mode == _GZIP:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, member in zip(("x", "y", "classes", "span"), parts(content, 4), strict=True):
                if member:
                    archive.writestr(f"{name}.npy", member)
        content = target.getvalue()
    _read_all(put(folder / "mine.npz", content))


def read_npy(data: bytes, folder: Path) -> None:
    """Rows, labels and names of classes."""
    mode, (x, y, names) = data[:1], parts(data[1:], 3)
    at = _fresh(folder / "pair")
    put(at / "y.npy", y)
    if names:
        put(at / "classes.txt", names)
    _read_all(put(at / f"x.npy{_SUFFIX.get(mode, '')}", _pack(mode, x)))


def read_idx(data: bytes, folder: Path) -> None:
    """Images and labels."""
    mode, (images, labels) = data[:1], parts(data[1:], 2)
    at = _fresh(folder / "idx")
    put(at / "t10k-labels-idx1-ubyte", labels)
    _read_all(put(at / f"t10k-images-idx3-ubyte{_SUFFIX.get(mode, '')}", _pack(mode, images)))


def read_cifar_binary(data: bytes, folder: Path) -> None:
    """A file whose name says nothing, and one that is CIFAR-100's."""
    _read_all(put(folder / "data_batch_1.bin", data))
    _read_all(put(folder / "test.bin", data))


def read_cifar_pickle(data: bytes, folder: Path) -> None:
    """A batch that Python wrote."""
    at = _fresh(folder / "batches")
    put(at / "test_batch", data)
    _read_all(f"{at}:test")
    _read_all(at / "test_batch")


def read_cifar_residuals(data: bytes, folder: Path) -> None:
    """A batch of residuals and its labels."""
    mode, (residuals, labels) = data[:1], parts(data[1:], 2)
    at = _fresh(folder / "residuals")
    put(at / "test_batch.npy.xz", residuals if mode == _XZ_AS_IT_IS else _xz(residuals))
    put(at / "test_labels.npy", labels)
    _read_all(f"{at}:test")


def read_mat(data: bytes, folder: Path) -> None:
    """A file as it is, or its header and variables to be packed here."""
    mode, content = data[:1], data[1:]
    if mode == _GZIP:
        lead, *variables = parts(content, 3)
        content = lead + b"".join(packed(variable) for variable in variables if variable)
    at = _fresh(folder / "svhn")
    _read_all(put(at / "test_32x32.mat", content))
    _read_all(f"{at}:test")


def _read_series(data: bytes, folder: Path, suffix: str) -> None:
    mode, (train, test) = data[:1], parts(data[1:], 2)
    at = _fresh(folder / "series")
    put(at / f"P_TRAIN{suffix}{_SUFFIX.get(mode, '')}", _pack(mode, train))
    if test:
        put(at / f"P_TEST{suffix}", test)
        _read_all(f"{at}:test")
    _read_all(f"{at}:train")
    attempt(lambda: open_dataset(str(at), data_dir=None, length=3))


def read_ucr(data: bytes, folder: Path) -> None:
    """Both halves of a problem."""
    _read_series(data, folder, ".tsv")


def read_uea(data: bytes, folder: Path) -> None:
    """Both halves of a problem."""
    _read_series(data, folder, ".ts")


def read_hapt(data: bytes, folder: Path) -> None:
    """Table, labels and signals."""
    mode, (table, labels, signals) = data[:1], parts(data[1:], 3)
    pack = bytes if mode == _XZ_AS_IT_IS else _xz
    put(folder / "experiments.csv", table)
    put(folder / "labels_int8.npy.xz", pack(labels))
    put(folder / "signals_diff_int16.npy.xz", pack(signals))
    _read_all(f"{folder}:all")
    _read_all(f"{folder}:user-1")


def read_speech(data: bytes, folder: Path) -> None:
    """Index and features."""
    mode, (index, features) = data[:1], parts(data[1:], 2)
    put(folder / "index.csv", index)
    put(folder / "logmel_uint8.npy.xz", features if mode == _XZ_AS_IT_IS else _xz(features))
    _read_all(f"{folder}:all")
    _read_all(f"{folder}:test")


def read_device(data: bytes, folder: Path) -> None:
    """A profile, and what is shown of it."""
    path = put(folder / "small.toml", data)
    profile = attempt(lambda: load_profile(str(path)))
    if profile is not None:
        attempt(lambda: require_trainable(profile))
        attempt(lambda: default_budget_bytes(profile, 1 << 20))
        for show in (profile_text, to_json):
            attempt(lambda show=show: show(profile))
        attempt(lambda: profile_table((profile,)))


DATA_TARGETS = (
    Target("npz", read_npz, seeds.npz, words=words.NPZ),
    Target("npy", read_npy, seeds.npy, words=words.NPY, largest=4096),
    Target("idx", read_idx, seeds.idx, words=words.IDX),
    Target("cifar-binary", read_cifar_binary, seeds.cifar_binary, largest=6200),
    Target("cifar-pickle", read_cifar_pickle, seeds.cifar_pickle, words=words.PICKLE, largest=8192),
    Target("cifar-residuals", read_cifar_residuals, seeds.cifar_residuals, words=words.NPY, largest=8192),
    Target("mat", read_mat, seeds.mat, words=words.MAT, largest=8192),
    Target("ucr", read_ucr, seeds.ucr, words=words.UCR, largest=4096),
    Target("uea", read_uea, seeds.uea, words=words.UEA, largest=4096),
    Target("hapt", read_hapt, seeds.hapt, words=words.CSV, largest=8192),
    Target("speech", read_speech, seeds.speech, words=words.CSV, largest=4096),
    Target("device", read_device, seeds.device, words=words.TOML, largest=4096),
)
