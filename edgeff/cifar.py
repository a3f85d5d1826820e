"""CIFAR-10 and CIFAR-100 in the forms they come in: official binary files, official Python pickles, and an xz form.

Images are rows uint8 (3, 32, 32): colour planes R, G, B, as in the official files.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeff.arrays import NpyHeader, checked_rows, read_labels, read_npy_header
from edgeff.cache import hold, open_stream, reading, unpacked
from edgeff.class_names import CIFAR10, CIFAR100
from edgeff.dataset import Dataset, Numbers
from edgeff.errors import DataError
from edgeff.rows import Array, FileRows, JoinedRows, Rows

_IMAGE = (3, 32, 32)
_IMAGE_BYTES = 3072
# Above the largest official file (155 MB); a pickle is read whole.
_PICKLE_BYTES = 1 << 28
_BLOCK_ROWS = 256


def read_cifar_binary(path: Path) -> Dataset:
    """Official binary file: one label byte (CIFAR-100: coarse, then fine) before each image.

    CIFAR-100's files are called `train.bin` and `test.bin`; under other names the size of the file tells which it is.
    """
    with reading(path, "CIFAR binary file"):
        got = path.stat().st_size
    hundred = path.name in ("train.bin", "test.bin") or got % (_IMAGE_BYTES + 1) != 0
    label_bytes = 2 if hundred else 1
    stride = label_bytes + _IMAGE_BYTES
    if not got or got % stride:
        raise DataError(
            f"`{path}` has {got:,} bytes, needed a multiple of 3,073 (CIFAR-10) or 3,074 (CIFAR-100)",
            hint="it is cut short or is no CIFAR binary file: get it again",
        )
    rows = got // stride
    images = FileRows(path, label_bytes, (rows, *_IMAGE), np.dtype(np.uint8), stride)
    labels = FileRows(path, label_bytes - 1, (rows, 1), np.dtype(np.uint8), stride)
    y = labels[:].reshape(-1).astype(np.int64)
    return Dataset(path.name, images, y, CIFAR100 if hundred else CIFAR10)


# --- Python pickles ---


class _PickledArray:
    """Stands in for `numpy.ndarray`: keeps the state it is given and runs nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PickledDtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, of which a byte has none."""


def _reconstruct(*_: Any) -> _PickledArray:
    return _PickledArray()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError("it encodes text in another way than latin1")
    return text.encode("latin1")


# Everything that the official files name. Nothing of numpy runs: the stand-ins only keep what they are given.
_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _latin1,
}


# Commands that no batch has: sets, which find hashes (see `_set_items`), and an array as long as the file says.
_REFUSED_COMMANDS = frozenset(
    command[0] for command in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8)
)


class _Unpickler(pickle._Unpickler):
    """An unpickler that knows `_ALLOWED` and nothing else.

    The one written in Python on purpose: the one in C allocates a table as long as a number in the file says.
    """

    def find_class(self, module: str, name: str) -> Any:
        """One of the stand-ins."""
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]

    def load_build(self) -> None:
        """Give a stand-in its state; anything else on the stack keeps its attributes."""
        state, target = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, _PickledArray | _PickledDtype):
            raise pickle.UnpicklingError("it sets attributes")
        target.__setstate__(state)

    def load_setitem(self) -> None:
        """Put a value into a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Put values into a dictionary."""
        self._set_items(self.pop_mark())  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        """Make a dictionary."""
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.stack.append({})  # type: ignore[attr-defined]
        self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        # Tuples inside tuples take a few bytes each, and finding their hash may take forever or all of the stack.
        if not all(isinstance(key, str | bytes | int) for key in items[::2]):
            raise pickle.UnpicklingError("it has keys that are neither texts nor numbers")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Any]] = {
        **{code: load for code, load in pickle._Unpickler.dispatch.items() if code not in _REFUSED_COMMANDS},
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }

    def get_extension(self, code: int) -> None:
        """Refuse registered extensions."""
        raise _Refused(f"extension {code}")

    def persistent_load(self, pid: object) -> Any:
        """Refuse references to things outside the file."""
        raise _Refused("an object outside of it")


class _Refused(Exception):
    """A name that the unpickler does not know."""


def read_cifar_pickle(path: Path) -> Dataset:
    """Official Python batch file (`data_batch_1`, `test_batch`, `train`, `test`), read without running anything.

    Raises:
        DataError: A pickle that names anything beyond arrays of bytes, or is no CIFAR batch.
    """
    content = _unpickle(path)
    hundred = b"fine_labels" in content
    labels = content.get(b"fine_labels" if hundred else b"labels")
    pixels = _pixels(content.get(b"data"), path)
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"`{path}` has no list of labels, needed `labels` or `fine_labels`", hint=_NO_BATCH)
    if len(labels) != len(pixels):
        raise DataError(f"`{path}` has {len(labels):,} labels for {len(pixels):,} images", hint=_NO_BATCH)
    x = hold(path, "cifar-pickle", pixels.shape, pixels.dtype, lambda: [pixels])
    return Dataset(path.name, x, _label_array(labels, path), CIFAR100 if hundred else CIFAR10)


_NO_BATCH = "needed one of the official files of the Python version"


def _label_array(labels: list[int], path: Path) -> Numbers:
    with reading(path, "CIFAR pickle"):
        return np.array(labels, np.int64)


def _unpickle(path: Path) -> dict[bytes, Any]:
    with reading(path, "CIFAR pickle"):
        if path.stat().st_size > _PICKLE_BYTES:
            raise ValueError(f"it has more than {_PICKLE_BYTES:,} bytes")
        try:
            content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        except _Refused as refused:
            raise DataError(
                f"`{path}` is a pickle that asks for `{refused}`, which edgeff does not load",
                hint=f"a pickle can run any program; {_NO_BATCH}",
            ) from refused
        # What a pickle that was edited does to the unpickler's stack.
        except (AttributeError, LookupError, TypeError, AssertionError) as error:
            raise pickle.UnpicklingError("its commands make no sense") from error
    if not isinstance(content, dict):
        raise DataError(f"`{path}` holds no dictionary, needed a CIFAR batch", hint=_NO_BATCH)
    # Keys are byte strings where Python 2 wrote the file, text where Python 3 did.
    return {key.encode("utf-8", "replace") if isinstance(key, str) else key: value for key, value in content.items()}


def _pixels(array: Any, path: Path) -> Array:
    try:
        _, shape, dtype, fortran, data = array.state
        code = dtype.code
        usable = bytes(code, "ascii") if isinstance(code, str) else code
        if usable not in (b"u1", b"uint8") or fortran or len(shape) != 2 or shape[1] != _IMAGE_BYTES:
            raise ValueError("another shape or dtype")
        return np.frombuffer(data, np.uint8).reshape(shape[0], *_IMAGE)
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"`{path}` has no `data` of shape (images, 3072) and dtype uint8", hint=_NO_BATCH) from error


# --- the xz form: prediction residuals ---


def cifar_residual_rows(path: Path) -> Rows:
    """Images of one batch of reversible prediction residuals modulo 256, uint8 (3, images, 32, 32), as `.npy.xz`.

    Decoded: `x = cumsum(cumsum(r, axis=rows), axis=columns)`, then R and B are the differences to G, all modulo 256.
    """
    with open_stream(path, "npy file") as stream:
        header = read_npy_header(stream, f"`{path}`")
    if header.dtype != np.uint8 or len(header.shape) != 4 or (header.shape[0], *header.shape[2:]) != _IMAGE:
        raise DataError(
            f"`{path}` holds {header.dtype.name} of shape {header.shape}, needed uint8 of shape (3, images, 32, 32)"
        )
    shape = (header.shape[1], *_IMAGE)
    return hold(path, "cifar-residuals", shape, header.dtype, lambda: _decoded(path, header))


def _decoded(path: Path, header: NpyHeader) -> Iterator[Array]:
    images = header.shape[1]
    with unpacked(path, "npy file", header.nbytes + header.data_bytes) as plain:
        # Plane by plane in the file, image by image out of it.
        flat = checked_rows(FileRows(plain, header.nbytes, (3 * images, 32, 32), header.dtype), "residuals")
        for first in range(0, images, _BLOCK_ROWS):
            past = min(first + _BLOCK_ROWS, images)
            residuals = np.stack([flat[plane * images + first : plane * images + past] for plane in range(3)])
            # (3, block, 32, 32)
            planes = np.cumsum(np.cumsum(residuals, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
            planes[0] += planes[1]
            planes[2] += planes[1]
            yield planes.transpose(1, 0, 2, 3)


# --- folders ---


@dataclass(frozen=True)
class _Form:
    """One of the forms a CIFAR folder can have: the batch files of each split."""

    splits: Mapping[str, tuple[str, ...]]
    read: Callable[[Path], Dataset]


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
_FORMS = (
    _Form({"train": tuple(f"{name}.bin" for name in _FIVE), "test": ("test_batch.bin",)}, read_cifar_binary),
    _Form({"train": _FIVE, "test": ("test_batch",)}, read_cifar_pickle),
    _Form({"train": ("train.bin",), "test": ("test.bin",)}, read_cifar_binary),
    _Form({"train": ("train",), "test": ("test",)}, read_cifar_pickle),
)
_XZ_SPLITS = {"train": tuple(f"{name}.npy.xz" for name in _FIVE), "test": ("test_batch.npy.xz",)}
_INNER = ("", "cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python")


def cifar_folder(folder: Path) -> Path | None:
    """The folder itself, or the one inside it under the official name, where CIFAR's files lie; else None."""
    for inner in _INNER:
        if any((folder / inner / names[0]).is_file() for names in _all_test_names()):
            return folder / inner
    return None


def _all_test_names() -> list[tuple[str, ...]]:
    return [form.splits["test"] for form in _FORMS] + [_XZ_SPLITS["test"]]


def read_cifar_folder(folder: Path, split: str) -> Dataset:
    """A split of a folder that `cifar_folder` returned."""
    for form in _FORMS:
        if (folder / form.splits["test"][0]).is_file():
            return _joined([form.read(folder / name) for name in form.splits[split]])
    x = _join_rows([cifar_residual_rows(folder / name) for name in _XZ_SPLITS[split]])
    return Dataset(folder.name, x, read_labels(folder / f"{split}_labels.npy"), CIFAR10)


def _joined(batches: list[Dataset]) -> Dataset:
    y = np.concatenate([batch.y for batch in batches])
    return Dataset(batches[0].name, _join_rows([batch.x for batch in batches]), y, batches[0].classes)


def _join_rows(parts: list[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else JoinedRows(tuple(parts))
