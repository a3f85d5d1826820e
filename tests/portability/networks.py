"""Two small networks as artifacts that carry their own rows, and the losses that PyTorch gives for them.

Between them they have both optimisers, every kind of preprocessing step, plain and depthwise convolutions, group
normalisation and max-pooling. Runs in the workstation environment.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from portability.comparison import Losses

from edgeff.export.writer import ExportSettings, export_network
from edgeff.learner import Learner, learn_batch
from edgeff.manifest import TensorSpec, TrainingDefaults
from edgeff.model import LocalNetwork
from edgeff.preprocess import Preprocessing
from edgeff.presets import preset
from edgeff.pretrain_settings import PretrainSettings
from edgeff.providers import CPU
from edgeff.steps import Step

STEPS = 20
# Fewer rows than twenty batches take, and no multiple of one: they are gone through several times.
_ROWS, _BATCH, _MICRO_BATCH = 50, 16, 6


@dataclass(frozen=True)
class Case:
    """A network, the rows it is trained on, and how.

    Attributes:
        name: Of the case.
        network: With the weights to start from.
        raw: One raw row.
        steps: From a raw row to the network's.
        settings: Optimiser and learning rate.
    """

    name: str
    network: LocalNetwork
    raw: TensorSpec
    steps: Sequence[Step]
    settings: PretrainSettings

    @property
    def preprocessing(self) -> Preprocessing:
        """Checked."""
        return Preprocessing(self.raw, tuple(self.steps), TensorSpec("x", tuple(self.network.input_shape))).validate()

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw rows of random numbers, and labels."""
        random = np.random.default_rng(7)
        limits = np.iinfo(self.raw.dtype)
        shape = (_ROWS, *self.raw.shape)
        x = random.integers(limits.min, limits.max, shape, self.raw.dtype, endpoint=True)
        return x, random.integers(0, len(self.network.classes), _ROWS)


def cases() -> tuple[Case, ...]:
    """What every cell trains."""
    return (
        Case(
            name="har-cnn",
            network=preset("har-cnn"),
            raw=TensorSpec("window", (128, 6), "int16"),
            steps=[
                {"kind": "affine", "offset": [-300.0, 0.0, 100.0, 0.5, 7.0, -9.0], "scale": [5e-5] * 6, "axis": 1},
                {"kind": "transpose", "axes": [1, 0]},
            ],
            settings=PretrainSettings(optimizer="adamw", schedule="constant", learning_rate=1e-3, weight_decay=1e-2),
        ),
        Case(
            name="depthwise",
            network=preset("kws-dscnn", input_shape=(1, 25, 20), width=0.25),
            raw=TensorSpec("frames", (25, 20), "uint8"),
            steps=[
                {"kind": "reshape", "shape": [1, 25, 20]},
                {"kind": "cast", "dtype": "float32"},
                {"kind": "affine", "offset": 127.5, "scale": 0.0136},
            ],
            settings=PretrainSettings(optimizer="sgd", schedule="constant", learning_rate=1e-2, weight_decay=1e-3),
        ),
    )


def write_cases(chosen: Sequence[Case], folder: Path, target: str = CPU) -> None:
    """Write into a folder the artifact of each case, under its name, and `cases.json`: how they are to be trained."""
    for case in chosen:
        training = TrainingDefaults(batch_size=_BATCH, learning_rate=case.settings.learning_rate)
        settings = ExportSettings(optimizer=case.settings.optimizer_spec(), training=training, target=target)
        out = folder / case.name
        export_network(case.network, out, preprocessing=case.preprocessing, settings=settings, replay=case.rows())
    how = {"steps": STEPS, "micro_batch": _MICRO_BATCH}
    (folder / "cases.json").write_text(json.dumps({case.name: how for case in chosen}))


def torch_losses(case: Case) -> Losses:
    """The losses of the same updates by autograd and `torch.optim`."""
    x, y = case.rows()
    features, labels = torch.from_numpy(case.preprocessing.apply(x)), torch.from_numpy(y)
    # A run of one step has no warm-up: the learning rate is the same throughout.
    learners = [Learner(block, case.settings, steps=1) for block in copy.deepcopy(case.network).sequence]
    found = []
    for step in range(STEPS):
        index = np.arange(step * _BATCH, (step + 1) * _BATCH) % _ROWS
        losses = learn_batch(learners, features[index], labels[index], step=step + 1)
        found.append({name: float(loss) for name, loss in losses.items()})
    return found
