"""What came of the cells, as lines for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from portability.comparison import TOLERANCE, Losses, largest_difference

State = Literal["passed", "failed", "skipped"]
_NAME_WIDTH, _STATE_WIDTH = 26, 9


@dataclass(frozen=True)
class Result:
    """What came of a cell.

    Attributes:
        name: Of the cell.
        state: `passed`, `failed` or `skipped`.
        reason: Why, where it did not pass.
        versions: Of what it ran on.
        differences: By case and way of updating, the largest relative difference of a loss.
        seconds: It took, making its environment included.
    """

    name: str
    state: State
    reason: str = ""
    versions: Sequence[str] = ()
    differences: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    def worst(self) -> tuple[float, str]:
        """The largest difference of all, and where; of a cell that compared something."""
        return max((value, f"{case} {way}") for case, ways in self.differences.items() for way, value in ways.items())

    def as_json(self) -> dict[str, Any]:
        """JSON has no Inf: null stands for it."""
        differences = {
            case: {way: value if math.isfinite(value) else None for way, value in ways.items()}
            for case, ways in self.differences.items()
        }
        return {**vars(self), "versions": list(self.versions), "differences": differences}


def judged(
    name: str, versions: Sequence[str], expected: Mapping[str, Losses], got: Mapping[str, Mapping[str, Losses]]
) -> Result:
    """The result of a cell that ran to its end.

    Args:
        name: Of the cell.
        versions: Of what it ran on.
        expected: Losses by case.
        got: Losses by case and way of updating.
    """
    if got.keys() != expected.keys():
        return Result(name, "failed", f"trained {', '.join(got) or 'nothing'}, needed {', '.join(expected)}", versions)
    try:
        differences = {
            case: {way: largest_difference(expected[case], losses) for way, losses in ways.items()}
            for case, ways in got.items()
        }
    except ValueError as error:
        return Result(name, "failed", str(error), versions)
    passed = Result(name, "passed", "", versions, differences)
    largest, where = passed.worst()
    if largest > TOLERANCE:
        return replace(passed, state="failed", reason=f"{largest:.1e} in {where} is above {TOLERANCE:.0e}")
    return passed


def line(result: Result) -> str:
    """One line for a cell.

    >>> line(Result("CUDA provider", "skipped", "no GPU"))
    'CUDA provider             skipped  no GPU'
    """
    outcome = result.reason or f"{result.worst()[0]:.1e}"
    if result.differences:
        outcome += f" ({_compared(result.differences)})"
    parts = [outcome, ", ".join(result.versions), "" if result.state == "skipped" else f"{result.seconds:.0f} s"]
    return f"{result.name:<{_NAME_WIDTH}}{result.state:<{_STATE_WIDTH}}{'; '.join(filter(None, parts))}"


def _compared(differences: Mapping[str, Mapping[str, float]]) -> str:
    """The cases and ways of updating.

    >>> _compared({"a": {"fused": 0.0, "accumulated": 0.0}, "b": {"fused": 0.0, "accumulated": 0.0}})
    'a and b, fused and accumulated'
    """
    ways = dict.fromkeys(way for one in differences.values() for way in one)
    return f"{' and '.join(differences)}, {' and '.join(ways)}"


def summary(results: Sequence[Result]) -> str:
    """The last line.

    >>> summary([Result("a", "passed"), Result("b", "skipped", "no GPU")])
    '1 passed, 0 failed, 1 skipped'
    """
    states = [result.state for result in results]
    return ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "skipped"))
