"""Signatures and keys on disk."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from edgeff import disk
from edgeff.atomic import error_text, write_atomically, write_hint
from edgeff.errors import SignatureError
from edgeff.signature import (
    MAX_KEY_FILE_BYTES,
    MAX_SIGNATURE_FILE_BYTES,
    Signature,
    check_signature,
    from_bytes,
    new_key,
    public_key_of,
    sign,
    signature_path,
    to_text,
)

_PRIVATE_MODE, _PUBLIC_MODE = 0o600, 0o644


def require_signature(artifact: Path, manifest_sha256: str, trusted: Collection[bytes]) -> None:
    """Check that the signature beside an artifact is of it and by a key that is trusted.

    Args:
        artifact: Folder or zip.
        manifest_sha256: Of the manifest that was read.
        trusted: Public keys.

    Raises:
        SignatureError: There is none, or it is not.
    """
    path = signature_path(artifact)
    if not path.is_file():
        raise SignatureError(
            f"`{artifact}` is not signed: there is no `{path}`",
            hint="get the signature from whoever made the artifact, or sign it by `edgeff sign`",
        )
    found = from_bytes(_read(path, MAX_SIGNATURE_FILE_BYTES), path.name)
    check_signature(found, manifest_sha256, trusted, path.name)


def trusted_keys(paths: Collection[Path]) -> tuple[bytes, ...]:
    """The public keys of some PEM files.

    Raises:
        SignatureError: One cannot be read, or is no public Ed25519 key.
    """
    return tuple(public_key_of(_read(path, MAX_KEY_FILE_BYTES), str(path)) for path in paths)


def write_signature(artifact: Path, manifest_sha256: str, private_key: Path) -> tuple[Path, Signature]:
    """Sign an artifact; the signature is written whole or not at all.

    Returns:
        Where it was written, and what.

    Raises:
        SignatureError: The artifact has a signature already, or the key cannot be used.
        RunError: The signature cannot be written.
    """
    path = signature_path(artifact)
    made = sign(manifest_sha256, _read(private_key, MAX_KEY_FILE_BYTES), str(private_key))
    if os.path.lexists(path):
        raise SignatureError(f"`{path}` exists already", hint="remove it to sign the artifact anew")
    write_atomically(path, to_text(made).encode())
    return path, made


def public_path(private: Path) -> Path:
    """Where the public key of a pair lies.

    >>> public_path(Path("keys/me.pem")).as_posix()
    'keys/me.pub.pem'
    """
    return private.with_name(f"{private.name.removesuffix('.pem')}.pub.pem")


def write_new_key(private: Path) -> Path:
    """Make a pair of keys, the private one readable by its owner alone; what exists is never written over.

    Returns:
        Where the public key was written.

    Raises:
        SignatureError: A file of that name exists, or cannot be written.
    """
    if not private.name:
        raise SignatureError(f"`{private}` is no name for a file", hint="write for example `--new-key me.pem`")
    public = public_path(private)
    for path in (private, public):
        if os.path.lexists(path):
            raise SignatureError(f"`{path}` exists already", hint="write the key to another file")
    private_pem, public_pem = new_key()
    # The public one first: a private key without the other is what would be missed.
    _create(public, public_pem, _PUBLIC_MODE)
    try:
        _create(private, private_pem, _PRIVATE_MODE)
    except BaseException:
        disk.remove(public)
        raise
    return public


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is new, with its rights from the first moment on."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        try:
            with open(handle, "wb") as stream:
                stream.write(data)
                disk.sync(stream)
        except BaseException:
            disk.remove(path)
            raise
        disk.sync_folder(path.parent)
    except OSError as error:
        raise SignatureError(f"cannot write `{path}`: {error_text(error)}", hint=write_hint(error)) from error


def _read(path: Path, limit: int) -> bytes:
    """At most one byte more than the limit, by which a file that is too large is told."""
    try:
        if path.exists() and not path.is_file():
            raise SignatureError(f"`{path}` is no file", hint="give the file of a key or signature")
        with path.open("rb") as stream:
            return stream.read(limit + 1)
    except OSError as error:
        raise SignatureError(
            f"cannot read `{path}`: {error_text(error)}", hint="check the path and its rights"
        ) from error
