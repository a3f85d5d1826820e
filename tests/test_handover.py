from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.handover import GroupNormHandover, LayerNormHandover, NoHandoverNorm, UnitNormHandover

NORMS = {"layer": LayerNormHandover(), "group": GroupNormHandover(3), "unit": UnitNormHandover()}
EVERY = pytest.mark.parametrize("handover", NORMS.values(), ids=NORMS)
SHAPES = ((6,), (6, 5), (6, 3, 4))


def activation(rows: int, *shape: int) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_layer_norm_hand_over_gives_each_row_mean_0_and_variance_1() -> None:
    a = torch.randn(3, 4, 5, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None] + 7.0
    rows = LayerNormHandover()(a).flatten(1)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.var(dim=1, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
    assert NoHandoverNorm()(a) is a


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layer_norm_hand_over_is_torchs_without_parameters(shape: tuple[int, ...]) -> None:
    a = activation(4, *shape)
    expected = nn.LayerNorm(shape, elementwise_affine=False, dtype=torch.float64)(a)
    torch.testing.assert_close(LayerNormHandover()(a), expected)


def test_maps_with_channels_last_stay_so_in_the_layer_norm_hand_over_and_are_the_same() -> None:
    a = activation(2, 4, 6, 5)
    handed = LayerNormHandover()(a.contiguous(memory_format=torch.channels_last))
    assert handed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(handed, LayerNormHandover()(a))
    for same in (activation(2, 4, 1, 1), activation(2, 1, 6, 5)):  # both layouts at once
        assert LayerNormHandover()(same).stride() == same.stride()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("groups", "used"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3)])
def test_the_group_norm_hand_over_is_torchs_with_as_many_groups_as_divide_the_channels(
    shape: tuple[int, ...], groups: int, used: int
) -> None:
    a = activation(4, *shape)
    expected = nn.GroupNorm(used, 6, affine=False).double()(a)
    torch.testing.assert_close(GroupNormHandover(groups)(a), expected)


@settings(deadline=None)
@given(channels=st.integers(1, 12), groups=st.integers(1, 12), places=st.integers(2, 5))
def test_the_group_norm_hand_over_gives_each_group_mean_0_and_its_own_variance(
    channels: int, groups: int, places: int
) -> None:
    a = activation(2, channels, places)
    used = max(count for count in range(1, groups + 1) if channels % count == 0)
    found = GroupNormHandover(groups, eps=1e-9)(a).tolist()
    size = channels // used
    for row, given_row in zip(found, a.tolist(), strict=True):
        for first in range(0, channels, size):
            numbers = [value for channel in row[first : first + size] for value in channel]
            before = [value for channel in given_row[first : first + size] for value in channel]
            mean = math.fsum(before) / len(before)
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in before) / len(before) + 1e-9)
            assert numbers == pytest.approx([(value - mean) / deviation for value in before], abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_unit_norm_hand_over_gives_each_row_a_mean_square_of_1(shape: tuple[int, ...]) -> None:
    a = activation(4, *shape) * torch.tensor([1.0, 10.0, 100.0, 1000.0]).double().reshape(-1, *(1 for _ in shape))
    found = UnitNormHandover()(a)
    torch.testing.assert_close((found**2).flatten(1).mean(dim=1), torch.ones(4).double(), atol=1e-4, rtol=0)
    for row, given_row in zip(found.flatten(1).tolist(), a.flatten(1).tolist(), strict=True):
        length = math.sqrt(math.fsum(value**2 for value in given_row) / len(given_row) + 1e-5)
        assert row == pytest.approx([value / length for value in given_row])


def test_the_unit_norm_hand_over_keeps_signs_and_zeros() -> None:
    a = torch.tensor([[0.0, 3.0, -4.0, 0.0]])
    found = UnitNormHandover(eps=0.0)(a)[0].tolist()
    assert found == pytest.approx([0.0, 1.2, -1.6, 0.0])
    assert UnitNormHandover()(torch.zeros(1, 4)).tolist() == [[0.0] * 4]


@EVERY
def test_a_hand_over_does_not_tell_how_large_the_activation_was(handover: Callable[[Tensor], Tensor]) -> None:
    # Else the next block could read off it what this one's goodness said.
    a = activation(4, 6, 5)
    torch.testing.assert_close(handover(1000.0 * a), handover(a), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(handover(a + 10.0 * a.abs()), handover(a), atol=1e-1)


@EVERY
def test_a_hand_over_treats_rows_one_by_one_and_has_no_parameters(handover: Callable[[Tensor], Tensor]) -> None:
    a = activation(4, 6, 5)
    torch.testing.assert_close(handover(a)[1:3], handover(a[1:3]))
    assert not isinstance(handover, nn.Module)


def test_a_group_norm_needs_a_group() -> None:
    with pytest.raises(ModelError, match="GroupNormHandover needs at least 1 group, got `0`"):
        GroupNormHandover(0)
