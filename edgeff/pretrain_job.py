"""A pretraining from names to a tested network: what `edgeff pretrain`, recipes and studies have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from edgeff.data import open_dataset
from edgeff.dataset import Dataset
from edgeff.errors import ModelError
from edgeff.feed import batches_count, check_fit
from edgeff.learner import Evaluation
from edgeff.model import LocalNetwork
from edgeff.preprocess import Preprocessing, fit_preprocessing
from edgeff.presets import PRESETS, load_factory, preset
from edgeff.pretrain import PretrainProgress, PretrainResult, evaluate_network, pretrain
from edgeff.pretrain_settings import PretrainSettings
from edgeff.recipe import Recipe
from edgeff.rule import Setting
from edgeff.split import train_validation_split

VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class PretrainJob:
    """What is trained, on what, and how.

    Attributes:
        data: Training data, as `edgeff.data.open_dataset` takes it.
        settings: Of the training; the seed also draws the weights and the split.
        preset: A network by name, or
        factory: `path/to/file.py:function`; one of the two.
        validation: Data to choose the epoch on; None for a tenth of the training data.
        test: Data that the kept network is tested on; None for none.
        input_shape: `C,H,W` of a preset's input; None for its own, or the data's.
        width: Factor on a preset's channels.
        rule: Settings of `edgeff.rule.LocalRule`, for a preset.
    """

    data: str
    settings: PretrainSettings
    preset: str | None = None
    factory: str | None = None
    validation: str | None = None
    test: str | None = None
    input_shape: str | None = None
    width: float = 1.0
    rule: Mapping[str, Setting] = field(default_factory=dict)

    @classmethod
    def of_recipe(cls, recipe: Recipe, *, seed: int = 0, **changes: Any) -> PretrainJob:
        """The job that a recipe describes.

        Args:
            recipe: With data and a preset.
            seed: Of the run.
            **changes: Settings of `PretrainSettings` that count instead of the recipe's.

        Raises:
            ModelError: A setting that cannot be, or a recipe without data or preset.
        """
        known = {one.name for one in fields(PretrainSettings)}
        settings = {name: value for name, value in recipe.options.items() if name in known}
        rest: dict[str, Any] = {name: value for name, value in recipe.options.items() if name not in known}
        for needed in ("data", "preset"):
            if needed not in rest:
                raise ModelError(f"recipe `{recipe.name}` does not say which {needed} to use")
        return cls(settings=PretrainSettings.from_dict(settings | {"seed": seed} | changes), rule=recipe.rule, **rest)

    def with_settings(self, **changes: Any) -> PretrainJob:
        """The same job with other settings of `PretrainSettings`."""
        return replace(self, settings=replace(self.settings, **changes))


@dataclass(frozen=True)
class Prepared:
    """A job with its data opened and its network built.

    Attributes:
        network: With fresh weights.
        train: Raw rows to learn from.
        validation: Raw rows to choose on.
        test: Raw rows to test on, or None.
        preprocessing: Fitted to the training rows.
        settings: Of the training.
    """

    network: LocalNetwork
    train: Dataset
    validation: Dataset
    test: Dataset | None
    preprocessing: Preprocessing
    settings: PretrainSettings

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.settings.epochs * batches_count(len(self.train), self.settings.batch_size)

    def run(
        self,
        out: Path | None,
        *,
        resume: bool = False,
        progress: Callable[[PretrainProgress], None] | None = None,
    ) -> tuple[PretrainResult, Evaluation | None]:
        """Pretrain, then look at the test data once, by the network that is kept.

        Raises:
            EdgeffError: As `edgeff.pretrain.pretrain`.
        """
        result = pretrain(
            self.network,
            self.train,
            self.validation,
            self.preprocessing,
            self.settings,
            out=out,
            resume=resume,
            progress=progress,
        )
        if self.test is None:
            return result, None
        # A GPU does not say which token id an `Embedding` has no vector for.
        device = "cpu" if self.network.input_dtype == "int64" else self.settings.device
        tested = evaluate_network(result.network, self.test, self.preprocessing, device=device)
        result.network.cpu()
        return result, tested


def prepare(job: PretrainJob, *, data_dir: Path | None) -> Prepared:
    """Open a job's data and build its network.

    Raises:
        DataError: Data that are not there or malformed.
        ModelError: A network that cannot be built, or that does not fit the data.
    """
    rows = open_dataset(job.data, data_dir=data_dir)
    test = open_dataset(job.test, data_dir=data_dir) if job.test else None
    seed = job.settings.seed
    network = build_network(job, rows)
    if job.validation:
        train, held_out = rows, open_dataset(job.validation, data_dir=data_dir)
    else:
        train, held_out = train_validation_split(rows, VALIDATION_SHARE, seed)
    preprocessing = fit_preprocessing(train, network.input_shape, dtype=network.input_dtype)
    if test is not None:  # before the hours that training may take, which looks at the others itself
        check_fit(network, preprocessing, test)
    return Prepared(network, train, held_out, test, preprocessing, job.settings)


def build_network(job: PretrainJob, rows: Dataset) -> LocalNetwork:
    """A job's network, for the classes and the shape of its data.

    Raises:
        ModelError: As `edgeff.presets`; not exactly one of preset and factory; a rule for a network that has its own.
    """
    if (job.preset is None) == (job.factory is None):
        raise ModelError("a network comes either from a preset or from a file of one's own")
    if job.factory is not None:
        if job.rule:
            raise ModelError("a rule is for presets; a network of one's own says itself what its blocks learn from")
        # A factory draws its weights as torch does by default: from the global generator, which is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.settings.seed)
            return load_factory(job.factory)
    name = str(job.preset)
    classes = rows.classes or int(rows.y.max()) + 1
    shape = preset_shape(name, job.input_shape, rows)
    return preset(name, input_shape=shape, classes=classes, width=job.width, rule=job.rule, seed=job.settings.seed)


def preset_shape(name: str, text: str | None, rows: Dataset) -> tuple[int, ...] | None:
    """The shape asked for; else channels first what the rows have, where they differ from what the preset takes.

    Args:
        name: Of the preset.
        text: `C,H,W`, or None for what follows from the rows.
        rows: Raw rows.

    Returns:
        The shape; None for the preset's own.

    Raises:
        ModelError: The text is no shape.
    """
    if text is not None:
        try:
            return tuple(int(part) for part in text.split(","))
        except ValueError as error:
            raise ModelError(f"`{text}` is not a shape", hint="write for example `--input-shape 3,32,32`") from error
    chosen = PRESETS.get(name)
    row = tuple(rows.x.shape[1:])
    if chosen is None or _holds(row, chosen.input_shape):
        return None
    if not chosen.axes:
        return (prod(row),)
    if len(row) == len(chosen.axes) - 1:
        return (1, *row)
    # Fewer channels than places along any other axis is what tells which axis is which.
    return (row[-1], *row[:-1]) if len(row) == len(chosen.axes) and row[-1] < row[0] else row


def _holds(row: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a row has the axes of a shape in some order, those of length 1 left out, or is such a row laid flat."""
    if len(row) == 1 or len(shape) == 1:
        return prod(row) == prod(shape)
    axes, wanted = (sorted(size for size in sizes if size > 1) for sizes in (row, shape))
    return axes == wanted
