"""What a profile is made of: figures that carry their source, execution providers, accelerators.

A number about a device is worth what its source is worth, so no profile holds a bare one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Basis = Literal["sourced", "measured", "estimate"]
BASES: tuple[Basis, ...] = ("sourced", "measured", "estimate")

Training = Literal["yes", "no", "untested"]
TRAININGS: tuple[Training, ...] = ("yes", "no", "untested")

Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Figure(Generic[Value]):
    """A number and where it comes from.

    Attributes:
        value: In the unit that the field's name gives; bytes where it gives none.
        basis: `sourced` (vendor or documentation), `measured` (a named measurement) or `estimate`.
        source: Which document or measurement; for an estimate, how it was arrived at.
        text: The value as the profile writes it (`250 MB`), without a unit where it is a bare number.
    """

    value: Value
    basis: Basis
    source: str
    text: str

    @property
    def is_estimate(self) -> bool:
        """Whether a report must mark the number as an estimate."""
        return self.basis == "estimate"


@dataclass(frozen=True)
class Provider:
    """An onnxruntime execution provider of a device.

    Attributes:
        name: onnxruntime's name, such as `CPUExecutionProvider`.
        training: Whether it runs float32 graphs whose weights change from run to run; `untested`: nothing forbids it.
        note: What to know before using it; may be empty.
    """

    name: str
    training: Training
    note: str

    @property
    def short_name(self) -> str:
        """The name without the ending that all of them share.

        >>> Provider("CPUExecutionProvider", "yes", "").short_name
        'CPU'
        """
        return self.name.removesuffix("ExecutionProvider")


@dataclass(frozen=True)
class Accelerator:
    """A processor beside the CPU.

    Attributes:
        name: What it is called.
        training: Whether it can take part in training. Neural processing units do not: they run quantised graphs, or
            graphs with constant weights.
        detail: Speed or size as its maker states it; may be empty.
        basis: As in `Figure`, for the detail.
        source: As in `Figure`, for the detail.
    """

    name: str
    training: Training
    detail: str
    basis: Basis
    source: str
