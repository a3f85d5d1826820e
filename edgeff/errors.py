"""The one tree of errors a user can cause.

A message is one line: what is wrong, by name, with what was needed and what was got. The hint says what to do about it.
The command line prints both and exits with `exit_code`; anything that is not an `EdgeffError` is a defect of edgeff.
"""

from __future__ import annotations


class EdgeffError(Exception):
    """Something the user can mend.

    Args:
        message: One line without a full stop.
        hint: What to do, printed as a paragraph of its own; empty for none.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ArtifactError(EdgeffError):
    """An artifact that is missing, damaged, edited, or of a format this version does not read."""


class DataError(EdgeffError):
    """Data that are missing, unreadable, or do not fit the model."""


class DeviceError(EdgeffError):
    """An unknown or malformed device profile, or a device edgeff cannot train on."""


class BudgetError(EdgeffError):
    """A memory budget that cannot hold."""


class ExportError(EdgeffError):
    """A model that cannot be lowered to a training graph."""


class EngineError(EdgeffError):
    """onnxruntime is missing, or refused a graph."""


class RunError(EdgeffError):
    """A run folder or checkpoint that cannot be used, or a run that had to stop."""


class ModelError(EdgeffError):
    """A model definition, preset or recipe that does not make sense."""
