from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeff.errors import ModelError
from edgeff.temperature import ClarityTemperature, FixedTemperature, LearnedTemperature


def goodness_rows(rows: int = 4, features: int = 5) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_learned_temperature_starts_at_the_middle_and_stays_within_its_bounds() -> None:
    temperature = LearnedTemperature(0.5, 1.5)
    assert temperature.value().item() == pytest.approx(1.0)
    for alpha, bound in ((60.0, 1.5), (-60.0, 0.5)):
        with torch.no_grad():
            temperature.alpha.fill_(alpha)
        assert temperature.value().item() == pytest.approx(bound)


def test_a_learned_temperature_divides_and_learns() -> None:
    temperature = LearnedTemperature().double()
    scores, goodness = goodness_rows(), goodness_rows().requires_grad_()
    torch.testing.assert_close(temperature(scores, goodness), scores / 1.05)  # the middle of 0.1..2
    alpha = temperature.alpha

    def scaled(scores: Tensor, alpha: Tensor) -> Tensor:
        return torch.func.functional_call(temperature, {"alpha": alpha}, (scores, goodness))

    assert torch.autograd.gradcheck(scaled, (scores.requires_grad_(), alpha))
    (found,) = torch.autograd.grad(temperature(scores, goodness).sum(), goodness, allow_unused=True)
    assert found is None


def test_a_fixed_temperature_divides() -> None:
    scores, goodness = torch.randn(2, 3), torch.randn(2, 7)
    assert FixedTemperature(1.0)(scores, goodness) is scores
    torch.testing.assert_close(FixedTemperature(2.0)(scores, goodness), scores / 2)


# --- clarity ----------------------------------------------------------------------------------------------------------


def naive_temperature(row: list[float], minimum: float, maximum: float) -> float:
    mean = math.fsum(row) / len(row)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in row) / len(row))
    clarity = min(max(deviation / (abs(mean) + 1e-6), 0.1), 10.0)
    return minimum + (maximum - minimum) / (1.0 + math.exp(-clarity))


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    bounds=st.sampled_from([(0.1, 2.0), (0.5, 0.75)]),
)
def test_clarity_is_how_unevenly_a_rows_goodness_is_spread(
    rows: list[list[float]], bounds: tuple[float, float]
) -> None:
    goodness = torch.tensor(rows, dtype=torch.float64)
    temperature = ClarityTemperature(*bounds)
    expected = [[naive_temperature(row, *bounds)] for row in rows]
    torch.testing.assert_close(temperature.value(goodness), torch.tensor(expected, dtype=torch.float64))
    scores = torch.randn(len(rows), 3, dtype=torch.float64)
    torch.testing.assert_close(temperature(scores, goodness), scores / temperature.value(goodness))


def test_clarity_ends_at_its_bounds() -> None:
    even, opposed = torch.full((1, 6), 3.0), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    temperature = ClarityTemperature()
    least, most = (0.1 + 1.9 / (1 + math.exp(-clarity)) for clarity in (0.1, 10.0))
    assert temperature.value(even).item() == pytest.approx(least)
    assert temperature.value(opposed).item() == pytest.approx(most)
    assert temperature.value(torch.zeros(1, 6)).item() == pytest.approx(least)


def test_no_gradient_goes_through_clarity() -> None:
    goodness = goodness_rows().requires_grad_()
    temperature = ClarityTemperature()
    scores = goodness * 2.0
    (found,) = torch.autograd.grad(temperature(scores, goodness).sum(), goodness)
    torch.testing.assert_close(found, (2.0 / temperature.value(goodness)).expand_as(goodness))
    (of_scores,) = torch.autograd.grad(temperature(goodness, goodness.detach()).sum(), goodness)
    torch.testing.assert_close(of_scores, (1.0 / temperature.value(goodness)).expand_as(goodness))


def test_the_clarity_of_a_row_does_not_depend_on_its_neighbours() -> None:
    goodness = goodness_rows(6)
    temperature = ClarityTemperature()
    assert torch.equal(temperature.value(goodness)[2:4], temperature.value(goodness[2:4]))
    assert len({round(value, 9) for value in temperature.value(goodness).flatten().tolist()}) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedTemperature(2.0, 1.0), "0 < minimum < maximum, got 2.0 and 1.0"),
        (lambda: LearnedTemperature(0.0, 1.0), "0 < minimum < maximum, got 0.0 and 1.0"),
        (lambda: FixedTemperature(0.0), "a positive value, got 0.0"),
        (lambda: FixedTemperature(math.nan), "a positive value, got nan"),
        (lambda: ClarityTemperature(2.0, 2.0), "ClarityTemperature needs 0 < minimum < maximum, got 2.0 and 2.0"),
        (lambda: ClarityTemperature(-0.1), "ClarityTemperature needs 0 < minimum < maximum, got -0.1 and 2.0"),
    ],
)
def test_temperatures_refuse_settings_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()  # type: ignore[operator]
