from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeff.errors import ModelError
from edgeff.fusion import LogProbabilitySum, choose_fusion
from edgeff.goodness import (
    CrossEntropyObjective,
    FixedProjection,
    FixedTemperature,
    LayerNormHandover,
    LearnedProjection,
    LearnedTemperature,
    NoHandoverNorm,
    PooledGoodness,
    describe_part,
    largest_divisor,
)


@given(length=st.integers(1, 64), limit=st.integers(1, 16))
def test_the_largest_divisor_divides_and_no_larger_one_within_the_limit_does(length: int, limit: int) -> None:
    found = largest_divisor(length, limit)
    assert length % found == 0
    assert found <= limit
    assert all(length % other for other in range(found + 1, min(limit, length) + 1))


# No deadline: the first call of a torch operator takes long.
@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 13), min_size=1, max_size=3).map(tuple),
    cells=st.integers(1, 6),
    power=st.sampled_from([1, 2]),
)
def test_pooled_goodness_keeps_the_mean_of_every_channel(shape: tuple[int, ...], cells: int, power: int) -> None:
    a = torch.randn(3, *shape, dtype=torch.float64)
    goodness = PooledGoodness(cells=cells, power=power)
    pooled = goodness(a)
    assert pooled.shape == (3, shape[0] * math.prod(goodness.grid(shape)))
    # Cells are of equal size and cover the map, so the mean of a channel's cells is the mean of the channel.
    expected = (a**power).reshape(3, shape[0], -1).mean(dim=2)
    torch.testing.assert_close(pooled.reshape(3, shape[0], -1).mean(dim=2), expected)


def test_pooled_goodness_has_the_mean_of_each_cell_in_reading_order() -> None:
    a = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    assert PooledGoodness(cells=2)(a).tolist() == [[2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]]
    assert PooledGoodness(cells=1, power=2)(torch.tensor([[[1.0, 3.0]]])).tolist() == [[5.0]]


def test_pooled_goodness_averages_tokens_and_leaves_features_unpooled() -> None:
    tokens = torch.randn(2, 5, 3)
    torch.testing.assert_close(PooledGoodness(layout="tokens")(tokens), tokens.mean(dim=1))
    features = torch.randn(2, 7)
    torch.testing.assert_close(PooledGoodness(power=2)(features), features**2)
    torch.testing.assert_close(PooledGoodness(layout="tokens")(features), features)


def test_pooled_goodness_takes_cells_for_each_axis() -> None:
    assert PooledGoodness(cells=(5, 4)).grid((64, 25, 20)) == (5, 4)


@pytest.mark.parametrize(
    ("arguments", "row", "message"),
    [
        ({"cells": (2, 2)}, (3, 8), "PooledGoodness has cells for 2 axes, the activation has 1"),
        ({}, (3, 4, 4, 4), r"PooledGoodness takes rows \(D,\), .* got \(3, 4, 4, 4\)"),
        ({"layout": "tokens"}, (3, 4, 4), r"PooledGoodness takes rows .* got \(3, 4, 4\)"),
    ],
)
def test_pooled_goodness_refuses_rows_it_cannot_pool(
    arguments: dict[str, object], row: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        PooledGoodness(**arguments)(torch.zeros(2, *row))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PooledGoodness(cells=0), "cells of at least 1, got `0`"),
        (lambda: PooledGoodness(power=3), "power 1 or 2, got `3`"),  # type: ignore[arg-type]
        (lambda: PooledGoodness(layout="rows"), "layout `channels` or `tokens`, got `rows`"),  # type: ignore[arg-type]
        (lambda: FixedProjection(law="cauchy"), "law `orthonormal` or `normal`, got `cauchy`"),  # type: ignore[arg-type]
        (lambda: LearnedTemperature(2.0, 1.0), "0 < minimum < maximum, got 2.0 and 1.0"),
        (lambda: FixedTemperature(0.0), "a positive value, got 0.0"),
        (lambda: CrossEntropyObjective(1.0), r"label smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_parts_refuse_settings_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()  # type: ignore[operator]


def test_a_fixed_projection_is_a_buffer_with_orthonormal_columns_that_its_seed_decides() -> None:
    first, again, other = (FixedProjection(seed) for seed in (1, 1, 2))
    for projection in (first, again, other):
        projection.build(12, 5)
    torch.testing.assert_close(first.matrix.T @ first.matrix, torch.eye(5))
    assert torch.equal(first.matrix, again.matrix)
    assert not torch.equal(first.matrix, other.matrix)
    assert list(first.parameters()) == []
    assert list(first.state_dict()) == ["matrix"]


@pytest.mark.parametrize(("size", "law"), [(4, "orthonormal"), (4000, "normal")])
def test_a_normal_projection_has_variance_one_over_its_length(size: int, law: str) -> None:
    projection = FixedProjection(0, law=law)  # type: ignore[arg-type]
    projection.build(size, 10)
    assert projection.matrix.shape == (size, 10)
    assert float(projection.matrix.std()) == pytest.approx(size**-0.5, rel=0.35 if size == 4 else 0.02)


def test_drawing_a_projection_leaves_the_generator_of_torch_alone() -> None:
    before = torch.get_rng_state()
    FixedProjection(3).build(8, 4)
    assert torch.equal(before, torch.get_rng_state())


def test_a_learned_projection_is_a_linear_map() -> None:
    projection = LearnedProjection()
    projection.build(6, 3)
    goodness = torch.randn(2, 6)
    expected = goodness @ projection.linear.weight.T + projection.linear.bias
    torch.testing.assert_close(projection(goodness), expected)
    without = LearnedProjection(bias=False)
    without.build(6, 3)
    assert [name for name, _ in without.named_parameters()] == ["linear.weight"]


def test_a_learned_temperature_starts_at_the_middle_and_stays_within_its_bounds() -> None:
    temperature = LearnedTemperature(0.5, 1.5)
    assert temperature.value().item() == pytest.approx(1.0)
    for alpha, bound in ((60.0, 1.5), (-60.0, 0.5)):
        with torch.no_grad():
            temperature.alpha.fill_(alpha)
        assert temperature.value().item() == pytest.approx(bound)


def test_a_fixed_temperature_divides() -> None:
    scores = torch.randn(2, 3)
    assert FixedTemperature(1.0)(scores) is scores
    torch.testing.assert_close(FixedTemperature(2.0)(scores), scores / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_objective_equals_torchs_cross_entropy(smoothing: float) -> None:
    scores, y, weight = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2]), torch.rand(5)
    expected = nn.functional.cross_entropy(scores, y, reduction="none", label_smoothing=smoothing) @ weight.double()
    torch.testing.assert_close(CrossEntropyObjective(smoothing)(scores, y, weight), expected)


def _goodness_loss(
    goodness: torch.Tensor, matrix: torch.Tensor, temperature: LearnedTemperature, y: torch.Tensor
) -> torch.Tensor:
    weight = torch.full((len(y),), 1.0 / len(y), dtype=torch.float64)
    return CrossEntropyObjective()(temperature(goodness @ matrix), y, weight)


def test_credit_equals_its_closed_form_and_finite_differences() -> None:
    torch.manual_seed(0)
    rows, features, classes = 3, 6, 4
    goodness = torch.randn(rows, features, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(features, classes, dtype=torch.float64)
    temperature = LearnedTemperature().double()
    with torch.no_grad():
        temperature.alpha.fill_(0.3)
    y = torch.tensor([2, 0, 1])
    loss = _goodness_loss(goodness, matrix, temperature, y)
    credit, slope = torch.autograd.grad(loss, (goodness, temperature.alpha))

    # dL/dg = R (p - e_y) / T and dL/dalpha = -(p - e_y).s / T^2 * dT/dalpha, each row weighted by 1/N.
    with torch.no_grad():
        scores, value = goodness @ matrix, temperature.value()
        error = torch.softmax(scores / value, dim=1) - nn.functional.one_hot(y, classes)
        sigmoid = torch.sigmoid(temperature.alpha)
        steepness = (temperature.maximum - temperature.minimum) * sigmoid * (1 - sigmoid)
        torch.testing.assert_close(credit, error @ matrix.T / value / rows)
        torch.testing.assert_close(slope, -(error * scores).sum() / value**2 * steepness / rows)
        # The bound that docs/method.md states.
        norm = torch.linalg.matrix_norm(matrix, ord=2)
        assert bool(((credit * rows).norm(dim=1) <= 2**0.5 * norm / value).all())

        small = 1e-6
        for row in range(rows):
            for column in range(features):
                shift = torch.zeros_like(goodness)
                shift[row, column] = small
                above, below = (_goodness_loss(goodness + sign * shift, matrix, temperature, y) for sign in (1, -1))
                assert float((above - below) / (2 * small)) == pytest.approx(float(credit[row, column]), abs=1e-9)
        alpha = float(temperature.alpha)
        found = []
        for sign in (1, -1):
            temperature.alpha.fill_(alpha + sign * small)
            found.append(_goodness_loss(goodness, matrix, temperature, y))
        assert float((found[0] - found[1]) / (2 * small)) == pytest.approx(float(slope), abs=1e-9)


def test_the_layer_norm_hand_over_gives_each_row_mean_0_and_variance_1() -> None:
    a = torch.randn(3, 4, 5, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None] + 7.0
    rows = LayerNormHandover()(a).flatten(1)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.var(dim=1, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
    assert NoHandoverNorm()(a) is a


def test_fusion_sums_weighted_log_probabilities() -> None:
    one, two, three = (torch.randn(2, 3) for _ in range(3))
    torch.testing.assert_close(LogProbabilitySum().fuse([one, two, three]), one + two + three)
    torch.testing.assert_close(LogProbabilitySum((0.0, 1.0, 0.5)).fuse([one, two, three]), two + 0.5 * three)
    torch.testing.assert_close(LogProbabilitySum(first_block=2).fuse([one, two, three]), three)
    assert LogProbabilitySum(first_block=2).for_count(1) == (1.0,)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "fusion has 1 weights, the network has 2 readouts"),
        ((0.0, 0.0), "one above"),
        ((2.0, -1.0), "weights of at least 0"),
    ],
)
def test_fusion_refuses_weights_that_make_no_prediction(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LogProbabilitySum(weights).for_count(2)


def _sure_of(labels: list[int], strength: float) -> torch.Tensor:
    return torch.log_softmax(strength * nn.functional.one_hot(torch.tensor(labels), 3).float(), dim=1)


def test_the_chosen_fusion_is_the_range_that_is_right_most_often() -> None:
    y = torch.tensor([0, 1, 2, 0])
    wrong, right = _sure_of([1, 2, 0, 1], 9.0), _sure_of(y.tolist(), 1.0)
    assert choose_fusion([wrong, right, right, wrong], y).weights == (0.0, 1.0, 1.0, 0.0)


def test_of_equally_good_ranges_the_longest_is_chosen_and_then_the_last() -> None:
    y = torch.tensor([0, 1, 2])
    right, wrong = _sure_of([0, 1, 2], 1.0), _sure_of([1, 2, 0], 9.0)
    assert choose_fusion([right, right], y).weights == (1.0, 1.0)
    assert choose_fusion([right, wrong, right], y).weights == (0.0, 0.0, 1.0)
    assert choose_fusion([right, right, wrong, right], y).weights == (1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "part",
    [
        PooledGoodness(cells=(2, 3)),
        LearnedProjection(),
        FixedProjection(4),
        LearnedTemperature(),
        FixedTemperature(2.0),
        CrossEntropyObjective(0.1),
        LayerNormHandover(),
        NoHandoverNorm(),
        LogProbabilitySum((1.0, 0.0)),
    ],
)
def test_every_part_says_its_name_and_settings_as_json(part: object) -> None:
    described = describe_part(part)
    assert described["part"] == type(part).__name__
    json.dumps(described, allow_nan=False)


def test_a_foreign_part_is_described_by_its_class_and_text() -> None:
    described = describe_part(nn.Sequential(nn.Linear(2, 3)))
    assert described["part"] == "Sequential"
    assert "Linear(in_features=2, out_features=3" in described["text"]
