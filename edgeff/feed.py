"""Batches for a training loop on torch: rows out of a data set, preprocessed, augmented, on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeff.augment import cut_out, shake_signals, shift_images
from edgeff.errors import DataError, ModelError
from edgeff.manifest import ITEM_BYTES
from edgeff.model import LocalNetwork
from edgeff.pretrain_settings import Augment

if TYPE_CHECKING:
    from edgeff.dataset import Dataset
    from edgeff.preprocess import Preprocessing

# Features of a data set that are smaller than this are computed once and kept on the device.
CACHE_BYTES = 2 * 2**30
Index = NDArray[np.int64]


class Feed:
    """Batches of one data set.

    Args:
        dataset: Raw rows and labels.
        preprocessing: From raw rows to what the network takes.
        device: Where the batches are wanted.
        augment: `signal` changes raw rows, the others change features.

    Raises:
        DataError: Rows of another form than the preprocessing takes, or a value that is not finite.
    """

    def __init__(
        self, dataset: Dataset, preprocessing: Preprocessing, *, device: torch.device, augment: Augment = "none"
    ) -> None:
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.device = device
        self.augment = augment
        self.y = torch.from_numpy(np.ascontiguousarray(dataset.y, dtype=np.int64)).to(device)
        self._kept = self._keep() if self._fits() else None

    def __len__(self) -> int:
        return len(self.dataset.x)

    def _fits(self) -> bool:
        features = self.preprocessing.features
        row_bytes = math.prod(features.shape) * ITEM_BYTES[features.dtype]
        return self.augment != "signal" and row_bytes * len(self) <= CACHE_BYTES

    def _keep(self) -> Tensor:
        features = self.preprocessing.features
        kept = torch.empty((len(self), *features.shape), dtype=getattr(torch, features.dtype), device=self.device)
        for index in even_batches(np.arange(len(self)), 1024):
            kept[torch.from_numpy(index).to(self.device)] = self._features(index, None)
        return kept

    def _features(self, index: Index, rng: np.random.Generator | None) -> Tensor:
        raw = np.asarray(self.dataset.x[index])
        self.preprocessing.check_raw(raw, numbers=index)
        if self.augment == "signal" and rng is not None:
            raw = shake_signals(raw, self.preprocessing.features.shape[0], rng)
        return torch.from_numpy(np.ascontiguousarray(self.preprocessing.apply(raw))).to(self.device)

    def batch(self, index: Index, rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Features (n, *row) and labels (n,) int64 of some rows; augmented where a generator is given."""
        where = torch.from_numpy(index).to(self.device)
        x = self._kept[where] if self._kept is not None else self._features(index, rng)
        if rng is not None and self.augment.startswith("shift"):
            x = shift_images(x, rng, flip=self.augment != "shift")
            x = cut_out(x, rng) if self.augment == "shift-flip-cutout" else x
        return x, self.y[where]

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows once, in random order, augmented."""
        for index in even_batches(rng.permutation(len(self)), batch_size):
            yield self.batch(index, rng)

    def in_order(self, batch_size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows once, as they are."""
        for index in even_batches(np.arange(len(self)), batch_size):
            yield self.batch(index)


def batches_count(rows: int, batch_size: int) -> int:
    """How many batches `even_batches` makes."""
    return -(-rows // batch_size)


def even_batches(index: Index, batch_size: int) -> list[Index]:
    """Consecutive parts of at most `batch_size`, as equal as can be: a small last batch would be a noisy step.

    >>> [len(part) for part in even_batches(np.arange(10), 4)]
    [4, 3, 3]
    """
    return np.array_split(index, batches_count(len(index), batch_size))


def check_fit(network: LocalNetwork, preprocessing: Preprocessing, *datasets: Dataset) -> None:
    """Refuse data that the network cannot take.

    Raises:
        ModelError: Features of another shape or dtype than the network's input.
        DataError: No rows, raw rows of another shape than the preprocessing takes, labels out of range, or other class
            names.
    """
    features = preprocessing.features
    if tuple(features.shape) != network.input_shape or features.dtype != network.input_dtype:
        raise ModelError(
            f"network `{network.name}` takes rows of {network.input_shape} {network.input_dtype}, "
            f"preprocessing gives {tuple(features.shape)} {features.dtype}"
        )
    for dataset in datasets:
        _check_dataset(network, preprocessing, dataset)


def _check_dataset(network: LocalNetwork, preprocessing: Preprocessing, dataset: Dataset) -> None:
    dataset.check()
    if not preprocessing.takes(dataset.x.shape[1:], dataset.x.dtype):
        raise DataError(
            f"data set `{dataset.name}` has rows of {tuple(dataset.x.shape[1:])} {dataset.x.dtype.name}, "
            f"preprocessing takes {tuple(preprocessing.input.shape)} {preprocessing.input.dtype}"
        )
    count = len(network.classes)
    if len(dataset.y) and not (int(dataset.y.min()) >= 0 and int(dataset.y.max()) < count):
        raise DataError(
            f"data set `{dataset.name}` has labels {int(dataset.y.min())}..{int(dataset.y.max())}, "
            f"network `{network.name}` has classes 0..{count - 1}"
        )
    if not dataset.is_named_as(network.classes):
        raise DataError(
            f"classes of data set `{dataset.name}` are {list(dataset.classes)}, "
            f"those of network `{network.name}` are {list(network.classes)}",
            hint="give the network the data set's classes, in its order",
        )
