from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeff.augment import ROTATION_RAD, cut_out, shake_signals, shift_images, small_rotations
from edgeff.errors import ModelError


def test_shifted_images_are_windows_of_the_padded_image() -> None:
    images = torch.arange(1.0, 1 + 4 * 2 * 16 * 8).reshape(4, 2, 16, 8)
    shifted = shift_images(images, np.random.default_rng(0), flip=False)
    padded = torch.nn.functional.pad(images, (1, 1, 2, 2))
    for image, found in zip(padded, shifted, strict=True):
        windows = [image[:, top : top + 16, left : left + 8] for top in range(5) for left in range(3)]
        assert any(torch.equal(found, window) for window in windows)


def test_about_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(8.0).reshape(1, 1, 1, 8).expand(400, 1, 1, 8)
    falling = (shift_images(images, np.random.default_rng(0), flip=True)[:, 0, 0, 3:5].diff(dim=1) < 0).sum()
    assert 150 < int(falling) < 250
    assert int((shift_images(images, np.random.default_rng(0), flip=False)[:, 0, 0, 3:5].diff(dim=1) < 0).sum()) == 0


def test_small_images_are_not_shifted() -> None:
    images = torch.randn(3, 1, 7, 7)
    assert torch.equal(shift_images(images, np.random.default_rng(0), flip=False), images)


def test_a_square_of_half_the_size_is_cut_out_and_may_reach_over_the_edge() -> None:
    images = torch.ones(500, 2, 16, 8)
    holes = cut_out(images, np.random.default_rng(0)) == 0.0
    assert torch.equal(holes[:, 0], holes[:, 1])  # of all channels
    heights, widths = holes[:, 0].any(dim=2).sum(dim=1), holes[:, 0].any(dim=1).sum(dim=1)
    assert torch.equal(holes[:, 0].sum(dim=(1, 2)), heights * widths)  # a rectangle
    assert (int(heights.min()), int(heights.max())) == (4, 8)
    assert (int(widths.min()), int(widths.max())) == (2, 4)
    hit = holes[:, 0].float().mean(dim=0)  # every place is hit, none much more often than another
    assert 0.05 < float(hit.min()) <= float(hit.max()) < 0.35
    assert torch.equal(images, torch.ones_like(images))


def test_rotations_are_rotations_by_small_angles() -> None:
    turned = small_rotations(2000, np.random.default_rng(0)).astype(np.float64)
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turned.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(turned), 1.0, atol=1e-6)
    angles = np.arccos(np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert np.sqrt((angles**2).mean()) == pytest.approx(ROTATION_RAD, rel=0.05)


def test_gravity_turns_with_the_axes_and_keeps_about_its_length() -> None:
    rows = np.zeros((500, 6, 4), np.float32)
    rows[:, 0] = 1.0  # 1 g along x, at rest
    shaken = shake_signals(rows, 6, np.random.default_rng(0))
    length = np.linalg.norm(shaken[:, :3], axis=1)
    np.testing.assert_allclose(length.mean(), 1.0, atol=0.02)
    assert 0.03 < length.std() < 0.07
    tilt = np.degrees(np.arccos(np.clip(shaken[:, 0] / length, -1, 1)))
    assert 4.0 < tilt.mean() < 12.0
    # The gyroscope at rest stays at rest.
    np.testing.assert_allclose(shaken[:, 3:], 0.0, atol=1e-6)


def test_all_sensors_of_a_row_turn_together() -> None:
    rng = np.random.default_rng(0)
    rows = np.tile(rng.standard_normal((200, 3, 4)).astype(np.float32), (1, 2, 1))
    shaken = shake_signals(rows, 6, np.random.default_rng(1))
    first, second = (part.reshape(200, -1) for part in (shaken[:, :3], shaken[:, 3:]))
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_signals_keep_shape_and_dtype_in_either_layout(dtype: type[np.generic]) -> None:
    rows = (np.random.default_rng(0).random((5, 128, 6)) * 250).astype(dtype)
    shaken = shake_signals(rows, 6, np.random.default_rng(1))
    assert shaken.shape == rows.shape
    assert shaken.dtype == rows.dtype
    assert not np.array_equal(shaken, rows)
    turned = shake_signals(rows.transpose(0, 2, 1), 6, np.random.default_rng(1)).transpose(0, 2, 1)
    np.testing.assert_array_equal(turned, shaken)


def test_integers_stop_at_their_limits() -> None:
    shaken = shake_signals(np.full((50, 1, 8), 255, np.uint8), 1, np.random.default_rng(0))
    assert shaken.max() == 255
    assert shaken.min() > 180


def test_a_single_channel_is_scaled_and_blurred_but_not_turned() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 1, 140)).astype(np.float32)
    shaken = shake_signals(rows, 1, np.random.default_rng(1))
    correlation = [np.corrcoef(before[0], after[0])[0, 1] for before, after in zip(rows, shaken, strict=True)]
    assert min(correlation) > 0.99


def test_rows_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ModelError, match=r"`shift` takes rows of shape \(channels, height, width\), got \(6, 128\)"):
        shift_images(torch.zeros(2, 6, 128), np.random.default_rng(0), flip=True)
    with pytest.raises(ModelError, match=r"`signal` takes raw rows with an axis of 6 channels .*, got \(3, 100\)"):
        shake_signals(np.zeros((2, 3, 100)), 6, np.random.default_rng(0))
