"""The reader's rules on ONNX files, held against what is exported: an artifact that exports opens on every device."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

from edgeff.errors import ArtifactError, ExportError
from edgeff.onnx_dialects import PLAIN, Dialect
from edgeff.onnx_limits import MAX_FILE_BYTES
from edgeff.onnx_rules import check_onnx


def check_openable(
    files: Mapping[str, bytes],
    *,
    limit: int = MAX_FILE_BYTES,
    dialect: Dialect = PLAIN,
    hint: str = "write the layer in simpler operations",
) -> None:
    """Check ONNX files as a device will.

    Args:
        files: Contents by path inside the artifact.
        limit: Bytes that each may have.
        dialect: What they may use.
        hint: What to do where they do not.

    Raises:
        ExportError: A device would refuse one: an operator that is not allowed, or a graph that is too large.
    """
    for file, content in files.items():
        try:
            check_onnx(BytesIO(content), len(content), file, limit=limit, dialect=dialect)
        except ArtifactError as error:
            raise ExportError(f"the graph would not open on a device: {error}", hint=hint) from error
