"""The one tree of errors a user can cause.

A message is one line: what is wrong, by name, with what was needed and what was got. The hint says what to do about it.
The command line prints both and exits with `exit_code`; anything that is not an `EdgeffError` is a defect of edgeff.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

# Controls, lone surrogates (which no terminal takes) and line breaks: messages repeat what files hold.
_ESCAPED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_LONGEST = 4096


def _on_one_line(text: str) -> str:
    """The text on one line, in UTF-8, and no longer than anybody reads; other signs as Python writes them."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in _ESCAPED else one for one in text
    )


def one_line(error: Exception) -> str:
    """What an error of another library says, on one line of bounded length, for use inside a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")


def did_you_mean(name: str, known: Iterable[str], *, most: int = 2) -> str:
    """A hint: the known names that look like `name`, `most` of them; where none does, all that are known.

    >>> did_you_mean("har-cn", ["har-cnn", "mlp"]), did_you_mean("x", ["har-cnn", "mlp"])
    ('did you mean `har-cnn`?', 'known: har-cnn, mlp')
    """
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=most, cutoff=0.6)
    return f"did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else f"known: {', '.join(names)}"


class EdgeffError(Exception):
    """Something the user can mend.

    Args:
        message: One line without a full stop.
        hint: What to do, printed as a paragraph of its own; empty for none.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(_on_one_line(message))
        self.hint = _on_one_line(hint)


class ArtifactError(EdgeffError):
    """An artifact that is missing, damaged, edited, or of a format this version does not read."""


class DataError(EdgeffError):
    """Data that are missing, unreadable, or do not fit the model."""


class DeviceError(EdgeffError):
    """An unknown or malformed device profile, or a device edgeff cannot train on."""


class BudgetError(EdgeffError):
    """A memory budget that cannot hold."""


class LoweredBudgetError(BudgetError):
    """A budget that was lowered while a run was going, below what it needs: it stopped with a checkpoint.

    The exit code is that of `StoppedError`: the run is to be gone on with once there is more memory.
    """

    exit_code = 75


class ExportError(EdgeffError):
    """A model that cannot be lowered to a training graph."""


class EngineError(EdgeffError):
    """onnxruntime is missing, or refused a graph."""


class RunError(EdgeffError):
    """A run folder or checkpoint that cannot be used, or a run that had to stop."""


class StoppedError(RunError):
    """A run that was asked to stop, and did so where nothing is lost; it is to be gone on with.

    Its exit code is that of sysexits.h for what is to be tried again (EX_TEMPFAIL), so that who runs it in slices can
    tell this from a failure.
    """

    exit_code = 75


class ModelError(EdgeffError):
    """A model definition, preset or recipe that does not make sense."""


class SignatureError(EdgeffError):
    """A signature that is missing, malformed, or not by a key that is trusted; or a key that cannot be used."""
