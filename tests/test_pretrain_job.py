"""From names to a network: which shape a preset takes for rows of some shape."""

from __future__ import annotations

import numpy as np
import pytest

from edgeff.dataset import Dataset
from edgeff.pretrain_job import preset_shape


@pytest.mark.parametrize(
    ("name", "row", "shape"),
    [
        ("har-cnn", (6, 128), None),
        ("har-cnn", (128, 6), None),
        ("har-cnn", (768,), None),
        ("har-cnn", (256, 3), (3, 256)),  # as many numbers as the preset's own
        ("vgg8", (32, 32, 3), None),
        ("vgg8", (3072,), None),
        ("vgg8", (48, 64), (1, 48, 64)),
        ("image-cnn", (28, 28), None),
        ("image-cnn", (1, 28, 28), None),
        ("kws-dscnn", (49, 40), None),
        ("mlp", (28, 28), None),
        ("mlp", (10, 3), (30,)),
    ],
)
def test_a_preset_takes_its_own_shape_where_the_rows_have_its_axes(
    name: str, row: tuple[int, ...], shape: tuple[int, ...] | None
) -> None:
    rows = Dataset("rows", np.zeros((2, *row), np.float32), np.zeros(2, np.int64))
    assert preset_shape(name, None, rows) == shape
