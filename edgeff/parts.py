"""What every exchangeable part of a local objective has in common.

A block learns from statistics of its own activation `a` (N, ...). Goodness (`edgeff.goodness`) of it is projected onto
the classes (`edgeff.projection`), divided by a temperature (`edgeff.temperature`) and compared with the label
(`edgeff.objective`); rows may be compared with one another as well (`edgeff.relation`). What the block passes on is a
normalised copy of `a` (`edgeff.handover`). Each part is small, knows nothing of the others, and says what it is by
`describe()`; docs/method.md has the equations and sources, `edgeff.rule` chooses parts by name.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

Description = dict[str, Any]


class Part(Protocol):
    """Anything that maps a tensor to a tensor: an `nn.Module` or a frozen dataclass with `__call__`."""

    def __call__(self, values: Tensor, /) -> Tensor:
        """The mapped values."""


def describe_part(part: object) -> Description:
    """JSON-able name and settings of a part; of a foreign module its class and its text.

    >>> from edgeff.goodness import PooledGoodness
    >>> describe_part(PooledGoodness(cells=2))
    {'part': 'PooledGoodness', 'cells': 2, 'power': 1, 'layout': 'channels'}
    """
    describe = getattr(part, "describe", None)
    if callable(describe):
        described: Description = describe()
        return described
    return {"part": type(part).__name__, "text": " ".join(repr(part).split())}
