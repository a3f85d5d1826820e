"""Random changes of training rows that leave the label true; every draw comes from a generator the caller seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgeff.errors import ModelError

# Standard deviations of the changes to a signal: how much the wearing of a sensor differs between people.
ROTATION_RAD = math.radians(10.0)
GAIN = 0.05
# Relative to each channel's own standard deviation in its row.
NOISE = 0.02


def shift_images(images: Tensor, rng: np.random.Generator, *, flip: bool) -> Tensor:
    """Move each image by up to an eighth of its size, filling with 0, and mirror about half of them left to right.

    Args:
        images: (N, C, H, W), any device.
        rng: Draws offsets and mirrorings.
        flip: Whether to mirror at all.

    Raises:
        ModelError: Rows of another rank.
    """
    if images.ndim != 4:
        raise ModelError(
            f"augmentation `shift` takes rows of shape (channels, height, width), got {tuple(images.shape[1:])}",
            hint="choose augmentation `none` or `signal`",
        )
    rows, _, height, width = images.shape
    reach = (height // 8, width // 8)
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    top, left = (
        torch.from_numpy(rng.integers(0, 2 * far + 1, size=(rows, 1)) + np.arange(size)).to(images.device)
        for far, size in zip(reach, (height, width), strict=True)
    )
    if flip:
        left = torch.where(torch.from_numpy(rng.random((rows, 1)) < 0.5).to(images.device), left.flip(1), left)
    each = torch.arange(rows, device=images.device)[:, None, None]
    # Indices around a slice put the indexed axes first: (N, H, W, C).
    return padded[each, :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2).contiguous()


def cut_out(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image with a square of 0 in it, half as high and wide as the image, whose centre is anywhere.

    Cutout (DeVries and Taylor, arXiv 1708.04552): what lies beyond the edge of the image is cut off, so that the square
    takes between a sixteenth and a quarter of it. Standardised images have mean 0.

    Args:
        images: (N, C, H, W), any device.
        rng: Draws the centres.
    """
    rows, _, height, width = images.shape
    inside = [
        np.abs(np.arange(size) + 0.5 - rng.uniform(0, size, size=(rows, 1))) < size / 4 for size in (height, width)
    ]
    square = torch.from_numpy(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    return images.masked_fill(square.to(images.device), 0.0)


def shake_signals(rows: NDArray[Any], channels: int, rng: np.random.Generator) -> NDArray[Any]:
    """Turn, scale and blur raw signals a little.

    Channels that come in threes are the axes of sensors in one rigid case: all threes of a row turn together. Rows must
    be raw, not standardised: acceleration carries gravity, which has to turn with the axes.

    Args:
        rows: (N, channels, time) or (N, time, channels), any numeric dtype.
        channels: Which of the two axes is the channels': the one of this length.
        rng: Draws.

    Returns:
        The same shape and dtype; integers are rounded and clipped.

    Raises:
        ModelError: Rows of another shape.
    """
    if rows.ndim != 3 or channels not in rows.shape[1:]:
        raise ModelError(
            f"augmentation `signal` takes raw rows with an axis of {channels} channels and one of time, "
            f"got {tuple(rows.shape[1:])}",
            hint="choose augmentation `none` or `shift`",
        )
    time_last = rows.shape[1] == channels
    signals = (rows if time_last else rows.transpose(0, 2, 1)).astype(np.float32)
    noise = NOISE * signals.std(axis=2, keepdims=True)
    sensors = signals.reshape(len(rows), -1, 3 if channels % 3 == 0 else 1, signals.shape[2])
    sensors = sensors * rng.normal(1.0, GAIN, size=(*sensors.shape[:2], 1, 1)).astype(np.float32)
    if sensors.shape[2] == 3:
        sensors = small_rotations(len(rows), rng)[:, None] @ sensors
    shaken = sensors.reshape(signals.shape) + noise * rng.standard_normal(signals.shape, dtype=np.float32)
    return _as_dtype(shaken if time_last else shaken.transpose(0, 2, 1), rows.dtype)


def small_rotations(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rotation matrices (count, 3, 3): axis uniform on the sphere, angle normal with deviation `ROTATION_RAD`.

    Rodrigues' formula: R = I + sin(angle) K + (1 - cos(angle)) K^2, K the cross-product matrix of the axis.
    """
    axes = rng.standard_normal((count, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = rng.normal(0.0, ROTATION_RAD, size=(count, 1, 1))
    cross = np.zeros((count, 3, 3))
    for row, column, axis, sign in ((0, 1, 2, -1), (0, 2, 1, 1), (1, 2, 0, -1)):
        cross[:, row, column] = sign * axes[:, axis]
        cross[:, column, row] = -sign * axes[:, axis]
    turned = np.eye(3) + np.sin(angles) * cross + (1.0 - np.cos(angles)) * (cross @ cross)
    return turned.astype(np.float32)


def _as_dtype(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind not in "iu":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
