"""The two forms an artifact has on disk, a folder and an uncompressed zip, behind one small interface.

Both refuse whatever could make a path mean another file than it says: links, repeated members, compression, encryption.
A zip is read where it lies: nothing is unpacked, and no member is held in memory unless asked for.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from edgeff.atomic import error_text
from edgeff.errors import ArtifactError
from edgeff.json_node import MAX_PATH_PARTS, is_contained_path, shown

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ENCRYPTED_FLAG = 0x1
# Of the 30 bytes before a member's name only the lengths of name and extra field matter here.
_LOCAL_HEADER = struct.Struct("<26xHH")
# What `zipfile` raises on bytes that were changed: names that are no UTF-8, versions, methods and ciphers it does not
# know, lengths that lead out of the file.
_DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)
_COPY_HINT = "copy the artifact again, or export the model again"
_ZIP_HINT = "make it with `edgeff export --out NAME.zip`, or pack the folder's files with `zip -0 -X -D -r`"


class Container(Protocol):
    """Files by their path inside the artifact."""

    def at_once(self) -> AbstractContextManager[Container]:
        """The same, for reading many files: what tells where they are is read once."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every file there is.

        Raises:
            ArtifactError: Something is there that an artifact may not hold.
        """

    def read(self, file: str) -> bytes:
        """All bytes of a file.

        Raises:
            ArtifactError: The file cannot be read.
        """

    def open(self, file: str) -> AbstractContextManager[IO[bytes]]:
        """A seekable stream of a file's bytes, of which no more is held than is asked for.

        Raises:
            ArtifactError: The file cannot be read.
        """

    def path_of(self, file: str) -> Path | None:
        """Where the file lies on disk by itself; None in a zip."""


@dataclass(frozen=True)
class Folder:
    """An artifact as a folder of files."""

    path: Path

    def at_once(self) -> AbstractContextManager[Container]:
        """Itself: a file is found by its path."""
        return nullcontext(self)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file under the folder; links and special files are refused."""
        try:
            return dict(self._walk(self.path, ""))
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _walk(self, folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            file = prefix + entry.name
            if entry.is_symlink():
                raise ArtifactError(
                    f"`{self.path}` holds the link {shown(file)}", hint="an artifact holds files, not links to files"
                )
            if entry.is_dir():
                if prefix.count("/") >= MAX_PATH_PARTS:
                    raise ArtifactError(f"`{self.path}` has folders inside folders too deep", hint=_COPY_HINT)
                yield from self._walk(folder / entry.name, f"{file}/")
            elif entry.is_file():
                yield file, entry.stat().st_size
            else:
                raise ArtifactError(f"`{self.path}` holds {shown(file)}, which is no file", hint=_COPY_HINT)

    def read(self, file: str) -> bytes:
        """All bytes of the file."""
        with self.open(file) as stream:
            return stream.read()

    @contextmanager
    def open(self, file: str) -> Iterator[IO[bytes]]:
        """A stream of the file's bytes."""
        path = self.path_of(file)
        try:
            # A link that took a file's place since `sizes` looked must not be followed.
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
            with open(handle, "rb") as stream:
                yield stream
        except OSError as error:
            raise _unreadable(path, error) from error

    def path_of(self, file: str) -> Path:
        """Where the file lies."""
        return self.path.joinpath(*file.split("/"))


@dataclass(frozen=True)
class Zip:
    """An artifact as one zip whose members are stored as they are."""

    path: Path

    @contextmanager
    def at_once(self) -> Iterator[Container]:
        """With its directory read once, not for every member anew."""
        with self._reading() as archive:
            yield _OpenZip(self.path, archive)

    def sizes(self) -> dict[str, int]:
        """Bytes of every member; whatever is not a plain stored file is refused."""
        with self._reading() as archive:
            members = archive.infolist()
        found: dict[str, int] = {}
        for member in members:
            _check_member(self.path, member)
            if member.filename in found:
                raise ArtifactError(f"`{self.path}` holds `{member.filename}` twice", hint=_ZIP_HINT)
            found[member.filename] = member.file_size
        return found

    def read(self, file: str) -> bytes:
        """All bytes of the member, checked against the zip's checksum."""
        with self._reading() as archive, self._whole():
            return archive.read(self._member(archive, file))

    @contextmanager
    def open(self, file: str) -> Iterator[IO[bytes]]:
        """A stream of the member's bytes."""
        with self._reading() as archive, open(self.path, "rb") as whole:
            member = self._member(archive, file)
            with self._whole():
                archive.open(member).close()  # compares the member's own header with the directory
            with io.BufferedReader(_Window(whole, _data_start(whole, member), member.file_size)) as stream:
                yield stream

    def _member(self, archive: zipfile.ZipFile, file: str) -> zipfile.ZipInfo:
        try:
            return archive.getinfo(file)
        except KeyError as error:
            raise ArtifactError(f"`{self.path}` has no `{file}`", hint=_COPY_HINT) from error

    def path_of(self, file: str) -> None:
        """None: a member has no path of its own."""
        del file

    @contextmanager
    def _reading(self) -> Iterator[zipfile.ZipFile]:
        try:
            with self._whole():
                archive = zipfile.ZipFile(self.path)
            with archive:
                yield archive
        except OSError as error:
            raise _unreadable(self.path, error) from error

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Turn whatever `zipfile` raises on a damaged zip into one error; nothing else may run inside."""
        try:
            yield
        except _DAMAGED as error:
            raise ArtifactError(f"`{self.path}` is a damaged zip: {error}", hint=_COPY_HINT) from error


@dataclass(frozen=True)
class _OpenZip(Zip):
    """A zip whose directory has been read."""

    archive: zipfile.ZipFile

    @contextmanager
    def _reading(self) -> Iterator[zipfile.ZipFile]:
        try:
            yield self.archive
        except OSError as error:
            raise _unreadable(self.path, error) from error


def is_zip(path: Path) -> bool:
    """Whether a file ends as a zip does."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # the end of one part of several
        return False


class _Window(io.RawIOBase):
    """A part of a file as a file of its own.

    The stream that `zipfile` gives reads on, 16 MiB at a time, where it is told to seek; this one seeks.
    """

    def __init__(self, whole: IO[bytes], start: int, size: int) -> None:
        self._whole = whole
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer)[: max(0, self._size - self._position)]
        self._whole.seek(self._start + self._position)
        count: int = self._whole.readinto(target)  # type: ignore[attr-defined]  # files have it; IO[bytes] does not say so
        self._position += count
        return count


def _data_start(whole: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its own header, whose lengths may differ from those of the directory."""
    whole.seek(member.header_offset)
    header = whole.read(_LOCAL_HEADER.size)
    name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    return member.header_offset + _LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    # zipfile cuts a name at its first NUL, so what it shows may not be what other tools see.
    if member.filename != member.orig_filename or not is_contained_path(member.filename):
        raise ArtifactError(
            f"`{path}` holds {shown(member.orig_filename)}, which is no relative path inside the artifact",
            hint=_ZIP_HINT,
        )
    if member.flag_bits & _ENCRYPTED_FLAG:
        raise ArtifactError(f"`{path}` holds `{member.filename}` encrypted", hint=_ZIP_HINT)
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise ArtifactError(f"`{path}` holds `{member.filename}` compressed", hint=_ZIP_HINT)
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ArtifactError(
            f"`{path}` holds the link `{member.filename}`", hint="an artifact holds files, not links to files"
        )


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot read `{path}`: {error_text(error)}", hint=_COPY_HINT)
