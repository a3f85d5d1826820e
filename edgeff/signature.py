"""Signatures of artifacts: who exported this, proved by Ed25519.

A signature is a small file beside the artifact, `NAME.sig`. Signed is the sha256 of `manifest.json`, which names the
whole artifact, behind words that say what is signed, so that no signature of something else can be one of an artifact.
`cryptography` is imported only where a key is used. `docs/artifact-format.md` is the specification.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeff.errors import ArtifactError, SignatureError
from edgeff.json_node import Node, parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = "edgeff-signature"
FORMAT_VERSION = 1
SUFFIX = ".sig"
MAX_SIGNATURE_FILE_BYTES = 4096
MAX_KEY_FILE_BYTES = 16 * 1024
KEY_BYTES, SIGNATURE_BYTES = 32, 64

_DOMAIN = b"edgeff artifact signature 1\n"
_SIGN_HINT = "get the signature from whoever made the artifact, or sign it by `edgeff sign`"
_KEY_HINT = "make a pair by `edgeff sign --new-key FILE.pem`, or by `openssl genpkey -algorithm ed25519`"


@dataclass(frozen=True)
class Signature:
    """A signature of an artifact.

    Attributes:
        manifest_sha256: Of the bytes of `manifest.json`, as lower-case hexadecimal digits.
        public_key: Of who signed; 32 bytes.
        signature: Of `message_of(manifest_sha256)`; 64 bytes.
    """

    manifest_sha256: str
    public_key: bytes
    signature: bytes


def message_of(manifest_sha256: str) -> bytes:
    """What is signed for an artifact."""
    return _DOMAIN + bytes.fromhex(manifest_sha256)


def signature_path(artifact: Path) -> Path:
    """Where the signature of an artifact lies: beside the folder or zip, whatever the path to it looks like.

    >>> signature_path(Path("/models/demo.zip")).as_posix()
    '/models/demo.zip.sig'
    """
    whole = Path(os.path.abspath(artifact))
    return whole.with_name(whole.name + SUFFIX)


# --- the file ---------------------------------------------------------------------------------------------------------


def to_text(signature: Signature) -> str:
    """The file of a signature."""
    fields = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "manifest_sha256": signature.manifest_sha256,
        "public_key": base64.b64encode(signature.public_key).decode(),
        "signature": base64.b64encode(signature.signature).decode(),
    }
    return json.dumps(fields, indent=2) + "\n"


def from_bytes(data: bytes, name: str) -> Signature:
    """Read the file of a signature; `name` is what it is called in messages.

    Raises:
        SignatureError: It has another form than `to_text` gives.
    """
    if len(data) > MAX_SIGNATURE_FILE_BYTES:
        raise SignatureError(f"`{name}` has more than {MAX_SIGNATURE_FILE_BYTES} bytes", hint=_SIGN_HINT)
    try:
        return _from_root(replace(parse_json(data.decode(), name), path=name))
    except UnicodeDecodeError as error:
        raise SignatureError(f"`{name}` is not UTF-8: {error.reason}", hint=_SIGN_HINT) from error
    except ArtifactError as error:
        raise SignatureError(str(error), hint=_SIGN_HINT) from error


def _from_root(root: Node) -> Signature:
    fields = root.fields("format", "version", "manifest_sha256", "public_key", "signature")
    fields["format"].choice([FORMAT])
    fields["version"].integer(FORMAT_VERSION, FORMAT_VERSION)
    return Signature(
        fields["manifest_sha256"].digest(),
        _decoded(fields["public_key"], KEY_BYTES),
        _decoded(fields["signature"], SIGNATURE_BYTES),
    )


def _decoded(node: Node, size: int) -> bytes:
    text = node.text()
    try:
        data = base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        data = b""
    # One form for each value: some decoders pass over stray bits at the end.
    if len(data) != size or base64.b64encode(data).decode() != text:
        raise node.error(f"{size} bytes in base64")
    return data


# --- keys -------------------------------------------------------------------------------------------------------------


def new_key() -> tuple[bytes, bytes]:
    """A new pair of keys in PEM, as openssl writes them: the private one (PKCS8), and the public one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


def public_key_of(data: bytes, name: str) -> bytes:
    """The 32 bytes of a public key in PEM; `name` is what its file is called in messages.

    Raises:
        SignatureError: It is no public Ed25519 key.
    """
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_bounded(data, name))
    except (ValueError, UnsupportedAlgorithm, InternalError) as error:
        raise SignatureError(f"`{name}` is no public key in PEM", hint=_KEY_HINT) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"`{name}` is no Ed25519 key", hint=_KEY_HINT)
    return key.public_bytes_raw()


def sign(manifest_sha256: str, private_pem: bytes, name: str) -> Signature:
    """Sign an artifact.

    Args:
        manifest_sha256: Names it.
        private_pem: A private key in PEM (PKCS8), without a password.
        name: Of the key's file, for messages.

    Raises:
        SignatureError: It is no such key.
    """
    key = _private_key_of(private_pem, name)
    return Signature(manifest_sha256, key.public_key().public_bytes_raw(), key.sign(message_of(manifest_sha256)))


def _private_key_of(data: bytes, name: str) -> Ed25519PrivateKey:
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_bounded(data, name), password=None)
    except TypeError as error:  # what it raises where a password is missing
        raise SignatureError(
            f"the key `{name}` has a password",
            hint=f"sign with a copy without: `openssl pkey -in {name} -out COPY.pem`",
        ) from error
    except (ValueError, UnsupportedAlgorithm, InternalError) as error:
        raise SignatureError(f"`{name}` is no private key in PEM", hint=_KEY_HINT) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"`{name}` is no Ed25519 key", hint=_KEY_HINT)
    return key


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > MAX_KEY_FILE_BYTES:
        raise SignatureError(f"`{name}` has more than {MAX_KEY_FILE_BYTES} bytes", hint=_KEY_HINT)
    return data


# --- checking ---------------------------------------------------------------------------------------------------------


def check_signature(signature: Signature, manifest_sha256: str, trusted: Collection[bytes], name: str) -> None:
    """Check that a signature is of an artifact and by a key that is trusted.

    Args:
        signature: To check.
        manifest_sha256: Of the artifact that is there.
        trusted: Public keys.
        name: Of the signature's file, for messages.

    Raises:
        SignatureError: It is not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature.manifest_sha256 != manifest_sha256:
        raise SignatureError(
            f"`{name}` signs another artifact: manifest sha256 {signature.manifest_sha256}, got {manifest_sha256}",
            hint=_SIGN_HINT,
        )
    if signature.public_key not in trusted:
        shown = base64.b64encode(signature.public_key).decode()
        raise SignatureError(
            f"`{name}` is by the key {shown}, which is none of those required",
            hint="get an artifact by a key that you trust; to trust this one, give its file to `--require-signature`",
        )
    try:
        Ed25519PublicKey.from_public_bytes(signature.public_key).verify(
            signature.signature, message_of(manifest_sha256)
        )
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(f"`{name}` holds a signature that is not by its key", hint=_SIGN_HINT) from error
