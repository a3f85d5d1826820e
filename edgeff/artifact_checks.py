"""What an artifact's files must hold to be what its manifest says: sizes, hashes, weights, replay rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from edgeff.container import Container
from edgeff.errors import ArtifactError
from edgeff.json_node import HINT, shown
from edgeff.manifest import FileSpec, Manifest, TensorSpec
from edgeff.manifest_rules import MANIFEST_FILE, weight_specs
from edgeff.tensor_file import check_values, read_index, read_tensor

CHUNK_BYTES = 2**20


def check_listing(path: Path, sizes: Mapping[str, int], files: Mapping[str, FileSpec]) -> None:
    """Check that an artifact holds the files its manifest lists, of the listed size, and no other.

    Raises:
        ArtifactError: A file is missing, not listed, or of another size.
    """
    for file, spec in files.items():
        if file not in sizes:
            raise ArtifactError(f"`{path}` lacks `{file}`", hint=HINT)
        if sizes[file] != spec.bytes:
            raise ArtifactError(f"`{file}` in `{path}` must have {spec.bytes} bytes, got {sizes[file]}", hint=HINT)
    for file in sizes:
        if file not in files and file != MANIFEST_FILE:
            raise ArtifactError(
                f"`{path}` holds {shown(file)}, which its manifest does not list",
                hint="move the file out of the artifact",
            )


def check_hashes(path: Path, container: Container, files: Mapping[str, FileSpec]) -> None:
    """Check the sha256 of every listed file, reading each in chunks.

    Raises:
        ArtifactError: A file is not the one that was exported.
    """
    for file, spec in files.items():
        with container.open(file) as stream:
            got = sha256_of(stream)
        if got != spec.sha256:
            raise ArtifactError(f"`{file}` in `{path}` must have sha256 {spec.sha256}, got {got}", hint=HINT)


def sha256_of(stream: IO[bytes]) -> str:
    """The sha256 of what is left of a stream, as lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def check_weights(container: Container, manifest: Manifest) -> None:
    """Check that the weights file holds exactly the parameters and buffers, with finite values.

    Raises:
        ArtifactError: A tensor is missing, unknown, of another shape or dtype, or not finite.
    """
    _check_tensors(container, manifest, manifest.weights, weight_specs(manifest))


def check_replay(container: Container, manifest: Manifest) -> None:
    """Check that the replay file holds `x` and `y` for its rows, and that every label is a class.

    Raises:
        ArtifactError: It does not.
    """
    if manifest.replay is None:
        return
    file, rows = manifest.replay.file, manifest.replay.rows
    needed = {
        "x": TensorSpec("x", (rows, *manifest.input.shape), manifest.input.dtype),
        "y": TensorSpec("y", (rows,), "int64"),
    }
    _check_tensors(container, manifest, file, needed)
    with container.open(file) as stream:
        labels = read_tensor(stream, read_index(stream, manifest.files[file].bytes, file)["y"])
    wrong = labels[(labels < 0) | (labels >= len(manifest.classes))]
    if len(wrong):
        raise ArtifactError(
            f"`{file}`: labels in `y` must be 0 to {len(manifest.classes) - 1}, got {np.min(wrong)}", hint=HINT
        )


def _check_tensors(container: Container, manifest: Manifest, file: str, needed: Mapping[str, TensorSpec]) -> None:
    with container.open(file) as stream:
        index = read_index(stream, manifest.files[file].bytes, file)
        for name, spec in needed.items():
            if name not in index:
                raise ArtifactError(f"`{file}` lacks the tensor `{name}`", hint=HINT)
            got = index[name].spec
            if (got.dtype, got.shape) != (spec.dtype, spec.shape):
                raise ArtifactError(
                    f"`{file}`: `{name}` must be {spec.dtype} {list(spec.shape)}, got {got.dtype} {list(got.shape)}",
                    hint=HINT,
                )
        for name, tensor in index.items():
            if name not in needed:
                raise ArtifactError(f"`{file}` holds the tensor `{name}`, which the manifest does not name", hint=HINT)
            check_values(stream, tensor, file)
