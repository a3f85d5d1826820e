"""What an ONNX file of an artifact may use: standard operators alone, or those of onnxruntime-training too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeff.errors import ArtifactError
from edgeff.onnx_limits import shown_bytes
from edgeff.onnx_operators import DESCRIBED_OPERATORS, OPERATORS, TRAINING_OPERATORS

_DEFAULT_DOMAINS = (b"", b"ai.onnx")


@dataclass(frozen=True)
class Dialect:
    """Rules in which ONNX files differ.

    Attributes:
        operators: Names by their bytes, by domain; the default one is empty.
        described: Operators whose results the file must give the shapes of, which it may of no other inner tensor.
        sequences: Inputs may be sequences of tensors.
    """

    operators: Mapping[bytes, Mapping[bytes, str]]
    described: frozenset[str] = frozenset()
    sequences: bool = False

    def operators_of(self, domain: bytes) -> Mapping[bytes, str]:
        """What may be used of a domain.

        Raises:
            ArtifactError: Nothing may.
        """
        found = self.operators.get(b"" if domain in _DEFAULT_DOMAINS else domain)
        if found is None:
            allowed = ", ".join(f"`{name.decode() or 'ai.onnx'}`" for name in self.operators)
            raise ArtifactError(f"the domain {shown_bytes(domain)} is not allowed, only {allowed}")
        return found


def _by_bytes(*names: frozenset[str]) -> dict[bytes, str]:
    return {name.encode(): name for one in names for name in one}


PLAIN = Dialect({b"": _by_bytes(OPERATORS)})
TRAINING = Dialect(
    {
        b"": _by_bytes(OPERATORS, TRAINING_OPERATORS[""]),
        **{domain.encode(): _by_bytes(names) for domain, names in TRAINING_OPERATORS.items() if domain},
    },
    described=DESCRIBED_OPERATORS,
    sequences=True,
)
