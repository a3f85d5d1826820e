"""Artifacts on disk: written whole or not at all, and verified whole before anything is used.

An artifact is all that `edgeff.export` and `edgeff.runtime` share. `docs/artifact-format.md` is its specification.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgeff import disk
from edgeff.artifact_checks import CHUNK_BYTES, check_hashes, check_listing, check_replay, check_weights
from edgeff.atomic import error_text, write_hint
from edgeff.baselines import BASELINE_BLOCK, BASELINES, KEY_PREFIX, baseline_file
from edgeff.container import Container, Folder, Zip, is_zip
from edgeff.engine_files import check_engine
from edgeff.engines import ENGINES, ONNXRUNTIME, engine_manifest
from edgeff.errors import ArtifactError
from edgeff.json_node import HINT, Node
from edgeff.manifest import FileSpec, Manifest
from edgeff.manifest_json import MAX_MANIFEST_BYTES, from_json, to_json
from edgeff.manifest_rules import MANIFEST_FILE, weight_specs
from edgeff.onnx_files import check_onnx_files
from edgeff.signature_files import require_signature
from edgeff.tensor_file import fill_from, read_index, read_tensor

# Zip has no earlier date; any fixed one makes the same artifact the same bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_FILE_MODE = 0o100644


@dataclass(frozen=True)
class Artifact:
    """A verified artifact. Nothing of it but the manifest is held in memory.

    Attributes:
        path: The folder or zip.
        manifest: What it says about itself.
        manifest_sha256: Of the bytes of `manifest.json`. As the manifest has the hash of every other file, this names
            the whole artifact.
        container: How its files are read.
        key_prefix: What the names of tensors begin with that their keys in the weights file lack.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    container: Container = field(repr=False)
    key_prefix: str = ""

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The baselines (`edgeff.baselines`) that travel along."""
        return tuple(name for name in BASELINES if baseline_file(name) in self.manifest.files)

    def baseline(self, name: str) -> Artifact:
        """Back-propagation through the whole network: the same weights, another manifest.

        Raises:
            ArtifactError: There is none of that name, its manifest breaks a rule, or it is not of this artifact.
        """
        file = baseline_file(name)
        data = self.read(file)
        manifest = _manifest_of(self.path, file, data)
        _check_baseline(file, manifest, self.manifest)
        check_onnx_files(self.container, manifest)
        return Artifact(self.path, manifest, hashlib.sha256(data).hexdigest(), self.container, KEY_PREFIX)

    @property
    def engines(self) -> tuple[str, ...]:
        """What its blocks can be trained by (`edgeff.engines`)."""
        return tuple(name for name in ENGINES if name == ONNXRUNTIME or engine_manifest(name) in self.manifest.files)

    def for_engine(self, name: str) -> Artifact:
        """The same artifact with the graphs that an engine updates by.

        Raises:
            ArtifactError: It has none for that engine, or they break a rule.
        """
        if name == ONNXRUNTIME:
            return self
        if name not in self.engines:
            raise ArtifactError(
                f"`{self.path}` has nothing for the engine `{name}`",
                hint=f"export it again with `--engine {name}`, or leave `--engine` out: any onnxruntime trains it",
            )
        file = engine_manifest(name)
        manifest = _manifest_of(self.path, file, self.read(file))
        check_engine(file, manifest, self.manifest, self.container)
        # Files of the artifact that only it lists may be read too, and runs are of the artifact whatever the engine.
        return replace(self, manifest=replace(manifest, files=self.manifest.files))

    def read(self, file: str) -> bytes:
        """All bytes of a file.

        Raises:
            ArtifactError: The artifact has no such file, or it cannot be read.
        """
        self._check_listed(file)
        return self.container.read(file)

    def path_of(self, file: str) -> Path | None:
        """Where a file lies on disk; None when the artifact is a zip, whose files only `read` reaches.

        Raises:
            ArtifactError: The artifact has no such file.
        """
        self._check_listed(file)
        return self.container.path_of(file)

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Parameters and buffers by `<block>.<name>`; only those asked for are read and held.

        Args:
            names: Keys of the weights file; None for all.

        Raises:
            ArtifactError: The weights file has no such tensor, or cannot be read.
        """
        return self._tensors(self.manifest.weights, names)

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Read parameters and buffers into arrays that exist, C-contiguous, by `<block>.<name>`.

        Raises:
            ArtifactError: The weights file has no such tensor, of that shape and dtype, or cannot be read.
        """
        file = self.manifest.weights
        with self.container.open(file) as stream:
            index = read_index(stream, self.manifest.files[file].bytes, file)
            for key, array in arrays.items():
                name = key.removeprefix(self.key_prefix)
                if name not in index or (index[name].spec.shape, index[name].spec.dtype) != (
                    array.shape,
                    array.dtype.name,
                ):
                    raise ArtifactError(f"`{file}` lacks the tensor `{name}`", hint=HINT)
                fill_from(stream, index[name], array)

    def replay(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Replay rows: raw `x` (rows, *input.shape) of the input's dtype and labels `y` (rows,) int64; None without.

        Raises:
            ArtifactError: The replay file cannot be read.
        """
        if self.manifest.replay is None:
            return None
        found = self._tensors(self.manifest.replay.file, ("x", "y"))
        return found["x"], found["y"]

    def _tensors(self, file: str, names: Iterable[str] | None) -> dict[str, np.ndarray]:
        with self.container.open(file) as stream:
            index = read_index(stream, self.manifest.files[file].bytes, file)
            wanted = list(index) if names is None else list(names)
            for name in wanted:
                if name not in index:
                    raise ArtifactError(f"`{file}` lacks the tensor `{name}`", hint=HINT)
            return {name: read_tensor(stream, index[name]) for name in wanted}

    def _check_listed(self, file: str) -> None:
        if file not in self.manifest.files and file != MANIFEST_FILE:
            raise ArtifactError(f"`{self.path}` has no file `{file}`", hint="`edgeff inspect` lists its files")


def open_artifact(path: Path, trusted: Collection[bytes] = ()) -> Artifact:
    """Open a folder or zip and verify all of it: manifest, listing, sizes, hashes, graphs, weights, replay rows.

    Holds at most the manifest and a chunk of a file in memory.

    Args:
        path: The folder or zip.
        trusted: Public Ed25519 keys, one of which must have signed it; none to ask for no signature.

    Raises:
        ArtifactError: It is not there, damaged, edited, or of a format this version does not read.
        SignatureError: A signature is asked for, and there is none by a key that is trusted.
    """
    container = _container(path)
    sizes = container.sizes()
    data = _manifest_bytes(path, container, sizes)
    if trusted:  # before anything else of it is believed
        require_signature(path, hashlib.sha256(data).hexdigest(), trusted)
    manifest = _manifest_of(path, MANIFEST_FILE, data)
    check_listing(path, sizes, manifest.files)
    with container.at_once() as opened:
        check_hashes(path, opened, manifest.files)
        check_onnx_files(opened, manifest)
        check_weights(opened, manifest)
        check_replay(opened, manifest)
    return Artifact(path, manifest, hashlib.sha256(data).hexdigest(), container)


def _manifest_of(path: Path, file: str, data: bytes) -> Manifest:
    try:
        return from_json(data.decode())
    except UnicodeDecodeError as error:
        raise ArtifactError(f"`{file}` of `{path}` is not UTF-8: {error.reason}", hint=HINT) from error
    except ArtifactError as error:
        raise ArtifactError(f"`{file}` of `{path}`: {error}", hint=error.hint) from error


def _check_baseline(file: str, baseline: Manifest, manifest: Manifest) -> None:
    """Check that a baseline is of the artifact's files and weights."""
    for path, spec in baseline.files.items():
        if manifest.files.get(path) != spec:
            raise ArtifactError(f"`{file}` lists `{path}` otherwise than `{MANIFEST_FILE}`", hint=HINT)
    names = [block.name for block in baseline.blocks]
    if names != [BASELINE_BLOCK] or baseline.weights != manifest.weights:
        raise ArtifactError(f"`{file}` must have one block `{BASELINE_BLOCK}` over `{manifest.weights}`", hint=HINT)
    known = weight_specs(manifest)
    for key, tensor in weight_specs(baseline).items():
        own = known.get(key.removeprefix(KEY_PREFIX))
        if own is None or (own.shape, own.dtype) != (tensor.shape, tensor.dtype):
            raise ArtifactError(f"`{file}` has the tensor `{key}`, which is not in `{manifest.weights}`", hint=HINT)


def _container(path: Path) -> Container:
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise ArtifactError(f"`{path}` does not exist", hint="`edgeff export` writes an artifact")
    if path.is_file() and is_zip(path):
        return Zip(path)
    raise ArtifactError(
        f"`{path}` is no artifact: neither a folder nor a whole zip", hint="`edgeff export` writes an artifact"
    )


def _manifest_bytes(path: Path, container: Container, sizes: Mapping[str, int]) -> bytes:
    if MANIFEST_FILE not in sizes:
        raise ArtifactError(f"`{path}` has no `{MANIFEST_FILE}`", hint="`edgeff export` writes an artifact")
    if sizes[MANIFEST_FILE] > MAX_MANIFEST_BYTES:
        raise ArtifactError(
            f"`{MANIFEST_FILE}` of `{path}` must have at most {MAX_MANIFEST_BYTES} bytes, got {sizes[MANIFEST_FILE]}",
            hint=HINT,
        )
    return container.read(MANIFEST_FILE)


def write_artifact(manifest: Manifest, files: Mapping[str, bytes | Path], out: Path) -> Path:
    """Write an artifact, whole or not at all; the same input gives the same bytes.

    It is written beside `out` under a temporary name, opened and verified as a reader would, and then renamed.

    Args:
        manifest: Its `files` are filled in here.
        files: Contents, or where to copy them from, by path inside the artifact; all but `manifest.json`.
        out: A folder to make, or, when it ends in `.zip`, a file.

    Returns:
        `out`.

    Raises:
        ArtifactError: `out` exists, cannot be written, or what was to be written breaks a rule of the format.
    """
    if os.path.lexists(out):
        raise ArtifactError(f"`{out}` exists already", hint="remove it, or write to another place")
    for file in files:
        Node(file, "file to write", MANIFEST_FILE).file()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            staged = _stage(manifest, files, Path(temporary, "artifact"))
            if out.suffix == ".zip":
                staged = _pack(staged, Path(temporary, "artifact.zip"))
            open_artifact(staged)
            os.rename(staged, out)
            disk.sync_folder(out.parent)
    except OSError as error:
        raise ArtifactError(f"cannot write `{out}`: {error_text(error)}", hint=write_hint(error)) from error
    return out


def _stage(manifest: Manifest, files: Mapping[str, bytes | Path], folder: Path) -> Path:
    folder.mkdir()
    written = {file: _write_file(folder / file, source) for file, source in sorted(files.items())}
    text = to_json(replace(manifest, files=written))
    from_json(text)  # names the broken rule before anything else can go wrong
    _write_file(folder / MANIFEST_FILE, text.encode())
    for directory, _, _ in os.walk(folder):
        disk.sync_folder(Path(directory))
    return folder


def _write_file(path: Path, source: bytes | Path) -> FileSpec:
    """Write and hash a file in chunks, and force it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with _source_stream(source) as reading, open(path, "xb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            digest.update(chunk)
            writing.write(chunk)
        disk.sync(writing)
        return FileSpec(writing.tell(), digest.hexdigest())


def _source_stream(source: bytes | Path) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _pack(folder: Path, target: Path) -> Path:
    sizes = Folder(folder).sizes()
    with open(target, "xb") as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            for file in sorted(sizes):
                member = _member(file, sizes[file])
                with open(folder / file, "rb") as reading, archive.open(member, "w") as writing:
                    shutil.copyfileobj(reading, writing, CHUNK_BYTES)
        disk.sync(stream)
    return target


def _member(file: str, size: int) -> zipfile.ZipInfo:
    """A stored member whose header depends on nothing but its name and size."""
    member = zipfile.ZipInfo(file, _ZIP_DATE)
    member.create_system = _UNIX
    member.external_attr = _FILE_MODE << 16
    member.file_size = size
    return member
