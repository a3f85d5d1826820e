"""Folders of JPEG and PNG files: one folder for each class, and Tiny ImageNet's own layout.

An image is decoded when it is asked for, by Pillow, which is imported then and not before (the extra `edgeff[images]`).
It becomes a row uint8 (3, height, width): colour planes R, G, B. Grey, palette and CMYK images are turned into RGB;
transparency and the orientation that a camera wrote are ignored.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeff.cache import reading
from edgeff.dataset import Dataset
from edgeff.errors import DataError
from edgeff.rows import Array, Index, row_index

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SPLITS = ("train", "val", "test")
TINY_SPLITS = ("train", "val")
LARGEST_SIZE = 4096
# Decoded as RGB, an image of this many pixels takes 192 MiB; the largest of ImageNet has 54 million.
LARGEST_PIXELS = 1 << 26
_SUFFIXES = (".jpg", ".jpeg", ".png")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_TEXT_BYTES = 1 << 24
# What Pillow raises on files that are cut short, edited or something else altogether.
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error, zlib.error)


# --- rows ---


@dataclass(frozen=True, eq=False)
class FileNames:
    """Names of many files in little memory: a path as Python has it takes 100 bytes and more.

    Attributes:
        text: The names, one after the other.
        ends: Where each ends in the text, int64 (names,).
    """

    text: bytes
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, names: Iterable[str]) -> FileNames:
        """The names, in that order."""
        text, ends = bytearray(), []
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        return cls(bytes(text), np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int, /) -> str:
        begin = int(self.ends[number - 1]) if number else 0
        return os.fsdecode(self.text[begin : int(self.ends[number])])


@dataclass(frozen=True, eq=False)
class ImageRows:
    """Images of a folder as rows; decoded when asked for.

    Attributes:
        folder: Where the files lie.
        names: Paths of the files in it, one for each row.
        image: Height and width of every row.
        resized: Whether an image is cut and resized to that; else one of another size is refused.
    """

    folder: Path
    names: FileNames
    image: tuple[int, int]
    resized: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, 3, height, width)."""
        return (len(self), 3, *self.image)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: Index, /) -> Array:
        index = row_index(key, len(self))
        out = np.empty((len(index), *self.shape[1:]), np.uint8)
        for position, row in enumerate(index.tolist()):
            path = self.folder / self.names[row]
            with _opened(path) as image:
                if not self.resized:
                    self.check_size(path, image)
                out[position] = np.asarray(self._pixels(image), np.uint8).transpose(2, 0, 1)
        return out

    def _pixels(self, image: Image) -> Image:
        colour = image.convert("RGB")
        if not self.resized:
            return colour
        width, height = colour.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        # Cut first: a filter over a box of the whole image would take in what lies beside the box.
        square = colour.crop((left, top, left + side, top + side))
        return square.resize(self.image[::-1], _pillow().Resampling.BILINEAR)

    def check_size(self, path: Path, image: Image) -> None:
        """Refuse an image that is not of the size of a row."""
        if image.size[::-1] != self.image:
            height, width = self.image
            raise DataError(
                f"`{path}` has {image.size[0]} x {image.size[1]} pixels, the images before it {width} x {height}",
                hint="say to which size all are cut and resized: `FOLDER@64`, `FOLDER:val@64`",
            )

    def check_sizes(self) -> ImageRows:
        """The rows themselves, once the beginning of every file was read and tells that size."""
        for row in range(len(self)):
            path = self.folder / self.names[row]
            with _opened(path) as image:
                self.check_size(path, image)
        return self


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "folders of images need Pillow", hint="install it with `pip install 'edgeff[images]'`"
        ) from error
    return Image


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """An image whose beginning was read."""
    pillow = _pillow()
    try:
        with path.open("rb") as file, pillow.open(file, formats=("JPEG", "PNG")) as image:
            _check_image(path, image)
            yield image
    except (pillow.DecompressionBombError, *_BROKEN) as error:
        raise _broken(path, error) from error


def _check_image(path: Path, image: Image) -> None:
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise DataError(f"`{path}` claims {width} x {height} pixels, at most {LARGEST_PIXELS:,} are read")
    if image.mode not in _MODES:
        raise DataError(f"`{path}` has pixels of the kind `{image.mode}`, needed 8 bits or less for each colour")
    if image.format == "PNG" and (depth := _depth(path)) > 8:
        raise DataError(
            f"`{path}` has {depth} bits for each colour, needed 8 or less",
            hint="how 16 bits become 8 is for you to say: convert it",
        )


def _depth(path: Path) -> int:
    """Bits of a PNG's colours, of which Pillow drops the lower half unasked: byte 24, behind signature and size."""
    with path.open("rb") as file:
        file.seek(24)
        return file.read(1)[0]


def _broken(path: Path, error: BaseException) -> DataError:
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"`{path}` cannot be read: {error.strerror}", hint="check the path and its permissions")
    # Pillow's own message shows the open file as Python does.
    unknown = type(error).__name__ == "UnidentifiedImageError"
    reason = "it begins like neither" if unknown else " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"`{path}` is not a valid JPEG or PNG file: {reason.rstrip('.')}",
        hint="it is cut short, damaged or something else: get it again, or leave it out",
    )


def _dataset(folder: Path, names: FileNames, y: list[int], classes: tuple[str, ...], size: int | None) -> Dataset:
    if size is not None:
        if not 1 <= size <= LARGEST_SIZE:
            raise DataError(f"images of `{folder}` are to have {size:,} pixels, needed 1..{LARGEST_SIZE:,}")
        _pillow()  # so that a lack of it is told now
        rows = ImageRows(folder, names, (size, size), resized=True)
    else:
        with _opened(folder / names[0]) as image:
            rows = ImageRows(folder, names, (image.size[1], image.size[0]), resized=False)
        rows.check_sizes()
    return Dataset(folder.name, rows, np.array(y, np.int64), classes)


# --- one folder for each class ---


def _entries(folder: Path, *, folders: bool) -> list[str]:
    """Names of the folders, or of the images, in a folder, sorted; what begins with a dot is left out."""
    with reading(folder, "folder"), os.scandir(folder) as found:
        return sorted(entry.name for entry in found if _is_entry(entry, folders))


def _is_entry(entry: os.DirEntry[str], folders: bool) -> bool:
    if entry.name.startswith("."):
        return False
    return entry.is_dir() if folders else entry.name.lower().endswith(_SUFFIXES) and entry.is_file()


def _has_an_image(folder: Path) -> bool:
    with os.scandir(folder) as found:
        return any(_is_entry(entry, False) for entry in found)


def is_class_folder(folder: Path) -> bool:
    """Whether it has folders in it with images directly in them."""
    return folder.is_dir() and any(_has_an_image(folder / name) for name in _entries(folder, folders=True))


def is_split_folder(folder: Path) -> bool:
    """Whether its folder `train` is such a folder."""
    return is_class_folder(folder / "train")


def read_class_folder(folder: Path, size: int | None, classes: tuple[str, ...] = ()) -> Dataset:
    """All images of a folder of class folders.

    Args:
        folder: Holds a folder for each class, with JPEG or PNG files directly in it.
        size: Side of a row in pixels: the square in the middle of an image, as long as its shorter side, is resized to
            that (bilinear with antialiasing). None leaves images as they are; then all must be of one size, and the
            beginning of every file is read to check that.
        classes: In the order of their labels; empty for the names of the folders, sorted.

    Returns:
        x uint8 (images, 3, height, width), decoded when asked for, class by class and sorted by name.

    Raises:
        DataError: A class without images, a folder that is no class, other sizes, not an image, or no Pillow.
    """
    found = _entries(folder, folders=True)
    names = classes or tuple(found)
    odd = [name for name in found if not name.isprintable()]
    if odd:
        raise DataError(f"`{folder}` has a folder `{odd[0]}`, whose name cannot be shown", hint="rename it")
    others = sorted(set(found).difference(names))
    if others:
        raise DataError(f"`{folder}` has a folder `{others[0]}`, which is none of the {len(names)} classes of `train`")
    here = set(found)
    return _of_classes(folder, [(label, name) for label, name in enumerate(names) if name in here], names, size)


def _of_classes(folder: Path, found: list[tuple[int, str]], classes: tuple[str, ...], size: int | None) -> Dataset:
    if not found:
        raise DataError(f"`{folder}` has no folders of classes, needed one for each class with its images in it")
    paths: list[FileNames] = []
    y: list[int] = []
    for label, name in found:
        images = _entries(folder / name, folders=False)
        if not images:
            raise DataError(f"`{folder / name}` holds no images, needed files that end in {', '.join(_SUFFIXES)}")
        paths.append(FileNames.of(f"{name}/{image}" for image in images))
        y += [label] * len(images)
    return _dataset(folder, _joined(paths), y, classes, size)


def _joined(parts: list[FileNames]) -> FileNames:
    ends, begin = [], 0
    for part in parts:
        ends.append(part.ends + begin)
        begin += len(part.text)
    return FileNames(b"".join(part.text for part in parts), np.concatenate(ends))


def read_split_folder(folder: Path, split: str, size: int | None) -> Dataset:
    """A split (`train`, `val`, `test`), each a folder of class folders; labels are those of `train`."""
    half = folder / split
    if not half.is_dir():
        raise DataError(f"`{folder}` has no images of the split `{split}`: needed a folder `{split}` in it")
    return read_class_folder(half, size, tuple(_entries(folder / "train", folders=True)))


# --- Tiny ImageNet ---


def is_tiny_imagenet(folder: Path) -> bool:
    """Whether it has Tiny ImageNet's list of classes and its folder `train`."""
    return (folder / "wnids.txt").is_file() and (folder / "train").is_dir()


def read_tiny_imagenet(folder: Path, split: str, size: int | None) -> Dataset:
    """A split of Tiny ImageNet's official layout.

    Args:
        folder: Holds `wnids.txt`, `train/<wnid>/images/`, `val/images/`, `val/val_annotations.txt`, and `words.txt` or
            not, which gives the names of the classes.
        split: `train` or `val`; the official `test` has no labels.
        size: As of `read_class_folder`.

    Returns:
        x uint8 (images, 3, height, width), decoded when asked for; labels in the order of `wnids.txt`.

    Raises:
        DataError: A missing folder or list, images without a label or labels without an image, or as of
            `read_class_folder`.
    """
    wnids = _lines(folder / "wnids.txt")
    odd = [wnid for wnid in wnids if not _is_plain(wnid)]
    if odd or not wnids or len(set(wnids)) < len(wnids):
        raise DataError(
            f"`{folder / 'wnids.txt'}` is no list of classes, each once on a line of its own"
            + (f": it has {odd[0][:80]!r}" if odd else "")
        )
    classes = _words(folder / "words.txt", wnids)
    if split == "train":
        at = folder / "train"
        there = set(_entries(at, folders=True))
        missing = [wnid for wnid in wnids if wnid not in there]
        if missing:
            raise DataError(f"`{at}` has no folder `{missing[0]}`, a class of `wnids.txt`")
        return _of_classes(at, [(label, f"{wnid}/images") for label, wnid in enumerate(wnids)], classes, size)
    names, y = _annotations(folder / "val" / "val_annotations.txt", wnids)
    at = folder / "val" / "images"
    unlike = sorted(set(names).symmetric_difference(_entries(at, folders=False)))
    if unlike:
        raise DataError(
            f"`{unlike[0]}` is not both an image in `{at}` and a line of `val_annotations.txt`",
            hint="the folder is not whole: unpack Tiny ImageNet's file again",
        )
    return _dataset(at, FileNames.of(names), y, classes, size)


def _is_plain(name: str) -> bool:
    """Whether a text can be the name of a file in a folder, and of no other."""
    return name.isprintable() and "/" not in name and "\\" not in name and not name.startswith(".") and bool(name)


def _lines(path: Path) -> list[str]:
    with reading(path, "list"), path.open("rb") as file:
        data = file.read(_TEXT_BYTES + 1)
        if len(data) > _TEXT_BYTES:
            raise ValueError(f"it has more than {_TEXT_BYTES:,} bytes")
        return [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]


def _words(path: Path, wnids: list[str]) -> tuple[str, ...]:
    """What the classes are called: `wnid`, tab, words; a class that is not there keeps its number as its name."""
    if not path.is_file():
        return tuple(wnids)
    words = dict(line.split("\t", 1) for line in _lines(path) if "\t" in line)
    return tuple(words.get(wnid, wnid).strip() for wnid in wnids)


def _annotations(path: Path, wnids: list[str]) -> tuple[list[str], list[int]]:
    """Names of images and their labels: lines of name, tab, wnid, and what else follows (a box)."""
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    names: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        name, wnid, *_ = [*line.split("\t"), ""]
        if not _is_plain(name) or wnid not in labels or name in names:
            raise DataError(
                f"line {number} of `{path}` must have an image, once, and a class of `wnids.txt`, got {line[:80]!r}"
            )
        names[name] = labels[wnid]
    if not names:
        raise DataError(f"`{path}` has no labels")
    return list(names), list(names.values())
