"""Readers of ONNX graphs, and of signatures and keys.

A graph that passes the checks is given to onnxruntime and run: what they let through must not crash it, hang it, or
make it take memory beyond the cap.
"""

from __future__ import annotations

import hashlib
import io
import json
from functools import cache
from pathlib import Path

import numpy as np
from fuzz import words
from fuzz.artifact_targets import MANIFEST, tiny_files, with_truth, write_files
from fuzz.base import Target, attempt, put

from edgeff.artifact import Artifact, open_artifact
from edgeff.onnx_rules import check_onnx
from edgeff.runtime.engine import OnnxRuntime
from edgeff.signature import public_key_of, sign, to_text

STEP = "blocks/block1.step.onnx"
_ROWS = 3


@cache
def _engine() -> OnnxRuntime:
    return OnnxRuntime(1)


def _run(artifact: Artifact, graph: bytes) -> None:
    """Run a graph that was found good, with ones for what is trained."""
    spec = artifact.manifest.blocks[0].graphs["step"]
    loaded = _engine().load(graph, spec.file)
    arrays = {}
    for port in (*loaded.inputs, *loaded.outputs):
        shape = tuple(_ROWS if size is None else size for size in port.shape)
        if int(np.prod(shape)) > 1 << 16:
            return
        arrays[port.name] = np.zeros(shape, port.dtype) if "int" in port.dtype else np.ones(shape, port.dtype)
    loaded.bind(arrays).run()


def read_onnx(data: bytes, folder: Path) -> None:
    """A graph by itself, and as a block's in an artifact."""
    attempt(lambda: check_onnx(io.BytesIO(data), len(data), STEP))
    files = tiny_files(blocks=1) | {STEP: data}
    files[MANIFEST] = with_truth(files[MANIFEST], files)
    artifact = attempt(lambda: open_artifact(write_files(folder / "artifact", files)))
    if artifact:
        attempt(lambda: _run(artifact, data))


def warm_up(folder: Path) -> None:
    """Start onnxruntime."""
    _engine()


def onnx_seeds() -> list[bytes]:
    return [data for file, data in sorted(tiny_files(blocks=1).items()) if file.endswith(".onnx")]


# --- signatures ---


@cache
def _pair() -> tuple[bytes, bytes]:
    """Always the same pair of keys."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


@cache
def _manifest_sha256() -> str:
    return hashlib.sha256(tiny_files(blocks=1)[MANIFEST]).hexdigest()


def prepare_signed(folder: Path) -> None:
    """An artifact."""
    write_files(folder / "artifact", tiny_files(blocks=1))


def read_signature(data: bytes, folder: Path) -> None:
    """The signature beside an artifact."""
    put(folder / "artifact.sig", data)
    attempt(lambda: open_artifact(folder / "artifact", {public_key_of(_pair()[1], "key")}))


def read_key(data: bytes, folder: Path) -> None:
    """A key, as the public one and as the private one."""
    attempt(lambda: public_key_of(data, "key.pem"))
    attempt(lambda: sign(_manifest_sha256(), data, "key.pem"))


def signature_seeds() -> list[bytes]:
    good = to_text(sign(_manifest_sha256(), _pair()[0], "key"))
    other = to_text(sign("0" * 64, _pair()[0], "key"))
    return [good.encode(), other.encode(), json.dumps(json.loads(good)).encode()]


def key_seeds() -> list[bytes]:
    return list(_pair())


ONNX_TARGETS = (
    Target("onnx", read_onnx, onnx_seeds, warm_up, words.ONNX, "onnx", 4096),
    Target("signature", read_signature, signature_seeds, prepare_signed, words.JSON, "json", 4200),
    Target("signature-key", read_key, key_seeds, words=words.PEM, largest=1024),
)
