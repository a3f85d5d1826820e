from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.goodness import ChannelGroups, PooledGoodness, largest_divisor
from edgeff.objective import CrossEntropyObjective
from edgeff.temperature import LearnedTemperature


@given(length=st.integers(1, 64), limit=st.integers(1, 16))
def test_the_largest_divisor_divides_and_no_larger_one_within_the_limit_does(length: int, limit: int) -> None:
    found = largest_divisor(length, limit)
    assert length % found == 0
    assert found <= limit
    assert all(length % other for other in range(found + 1, min(limit, length) + 1))


# --- pooled -----------------------------------------------------------------------------------------------------------


# No deadline: the first call of a torch operator takes long.
@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 13), min_size=1, max_size=3).map(tuple),
    cells=st.integers(1, 6),
    power=st.sampled_from([1, 2]),
)
def test_pooled_goodness_keeps_the_mean_of_every_channel(shape: tuple[int, ...], cells: int, power: int) -> None:
    a = torch.randn(3, *shape, dtype=torch.float64)
    goodness = PooledGoodness(cells=cells, power=power)  # type: ignore[arg-type]
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
        ({"cells": (2, 2)}, (3, 8), "the grid has cells for 2 axes, the activation has 1"),
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
        (lambda: PooledGoodness(cells=(2, 0)), r"cells of at least 1, got `\(2, 0\)`"),
        (lambda: PooledGoodness(power=3), "power 1 or 2, got `3`"),  # type: ignore[arg-type]
        (lambda: PooledGoodness(layout="rows"), "layout `channels` or `tokens`, got `rows`"),  # type: ignore[arg-type]
        (lambda: ChannelGroups(3, power=0), "ChannelGroups needs power 1 or 2, got `0`"),  # type: ignore[arg-type]
    ],
)
def test_goodness_refuses_settings_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()  # type: ignore[operator]


# --- groups of channels -----------------------------------------------------------------------------------------------


def naive_groups(a: Tensor, classes: int, power: int) -> list[list[float]]:
    """Class k has the channels from `k C / K` rounded down, up to those of the next class."""
    channels = a.shape[1]
    scores = []
    for row in a.tolist():
        found = []
        for label in range(classes):
            own = [c for c in range(channels) if c * classes // channels == label]
            numbers = [value**power for c in own for value in torch.tensor(row[c]).flatten().tolist()]
            found.append(math.fsum(numbers) / len(numbers))
        scores.append(found)
    return scores


@settings(deadline=None)
@given(
    classes=st.integers(1, 6),
    more=st.integers(0, 7),
    places=st.lists(st.integers(1, 3), max_size=2),
    power=st.sampled_from([1, 2]),
)
def test_a_class_has_the_mean_of_its_own_group_of_channels(
    classes: int, more: int, places: list[int], power: int
) -> None:
    a = torch.randn(3, classes + more, *places, dtype=torch.float32).double()
    found = ChannelGroups(classes, power=power)(a)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(naive_groups(a, classes, power), dtype=torch.float64))


@given(classes=st.integers(1, 12), more=st.integers(0, 40))
def test_groups_of_channels_are_consecutive_and_as_even_as_can_be(classes: int, more: int) -> None:
    # One channel at a time: the class that it counts for, and one over the size of its group.
    channels = classes + more
    found = ChannelGroups(classes)(torch.eye(channels, dtype=torch.float64))
    group = found.argmax(dim=1).tolist()
    assert group == sorted(group)
    sizes = [group.count(label) for label in range(classes)]
    assert max(sizes) - min(sizes) <= 1
    assert [(row > 0).sum().item() for row in found] == [1] * channels
    assert found.max(dim=1).values.tolist() == pytest.approx([1 / sizes[label] for label in group])


def test_groups_of_channels_have_gradients_that_finite_differences_give() -> None:
    a = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    for power in (1, 2):
        assert torch.autograd.gradcheck(ChannelGroups(3, power=power), (a,))  # type: ignore[arg-type]


def test_groups_of_channels_need_a_channel_for_every_class() -> None:
    with pytest.raises(ModelError, match="needs a channel for each of 4 classes, the activation has 3") as caught:
        ChannelGroups(4)(torch.zeros(2, 3, 5))
    assert "widen the block" in caught.value.hint
    assert ChannelGroups(4)(torch.ones(2, 4, 5)).tolist() == [[1.0] * 4] * 2


# --- credit -----------------------------------------------------------------------------------------------------------


def _goodness_loss(goodness: Tensor, matrix: Tensor, temperature: LearnedTemperature, y: Tensor) -> Tensor:
    weight = torch.full((len(y),), 1.0 / len(y), dtype=torch.float64)
    return CrossEntropyObjective()(temperature(goodness @ matrix, goodness), y, weight)


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
