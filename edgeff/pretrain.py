"""Pretraining on a workstation: every block by its own loss, or, as a baseline, the whole network by one.

The loop is short on purpose and reads top to bottom. A run is repeatable bit for bit on a CPU: every random draw of an
epoch comes from (seed, epoch), so a run that is resumed after an epoch ends as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from edgeff.batch_norm import folded_tensors, with_batch_norm
from edgeff.errors import DataError, RunError
from edgeff.feed import Feed, batches_count, check_fit
from edgeff.fusion import FusionName, LogProbabilitySum
from edgeff.learner import Evaluation, Learner, evaluate, learn_batch
from edgeff.model import LocalNetwork
from edgeff.pretrain_settings import Device, Keep, PretrainSettings
from edgeff.run_folder import EpochMetrics, RunFolder

if TYPE_CHECKING:
    from edgeff.dataset import Dataset
    from edgeff.preprocess import Preprocessing

__all__ = [
    "EpochMetrics",
    "Evaluation",
    "PretrainProgress",
    "PretrainResult",
    "PretrainSettings",
    "evaluate_network",
    "pretrain",
]


@dataclass(frozen=True)
class PretrainProgress:
    """A report during a run, after every step and after every epoch.

    Attributes:
        epoch: From 1.
        step: From 1, over the whole run.
        steps: Of the whole run.
        losses: Mean loss by block: of the step's batch, or of the epoch.
        rows_per_s: Rows trained per second since the epoch began.
        metrics: After an epoch, what was measured on validation data; else None.
    """

    epoch: int
    step: int
    steps: int
    losses: Mapping[str, float]
    rows_per_s: float
    metrics: EpochMetrics | None = None


@dataclass(frozen=True)
class PretrainResult:
    """What a run ends with.

    Attributes:
        network: With the weights and the fusion of the best epoch, on the CPU, in evaluation mode.
        history: One entry per epoch.
        best_epoch: Whose weights are kept: the highest validation accuracy, of equal ones the lowest loss; or the last.
    """

    network: LocalNetwork
    history: tuple[EpochMetrics, ...]
    best_epoch: int

    @property
    def best(self) -> EpochMetrics:
        """Metrics of the best epoch."""
        return self.history[self.best_epoch - 1]


@dataclass
class _Run:
    """What changes from epoch to epoch.

    Attributes:
        network: That is trained.
        kept: That is validated and kept: the same, or where batch norm was put into that one a network without it.
        learners: Of `network`.
    """

    network: LocalNetwork
    kept: LocalNetwork
    learners: list[Learner]
    history: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def checkpoint(self) -> dict[str, Any]:
        """Tensors and plain values, for `torch.load(..., weights_only=True)`."""
        return {
            "weights": _on_cpu(self.network.tensors()),
            "optimizers": [learner.state_dict() for learner in self.learners],
            "history": [metrics.as_dict() for metrics in self.history],
            "best_epoch": self.best_epoch,
            "best": self.best,
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up where a checkpoint was made."""
        self.network.load_tensors(checkpoint["weights"])
        for learner, state in zip(self.learners, checkpoint["optimizers"], strict=True):
            learner.load_state_dict(state)
        self.history = [EpochMetrics.from_dict(values) for values in checkpoint["history"]]
        self.best_epoch = checkpoint["best_epoch"]
        self.best = checkpoint["best"]

    def settle(self) -> None:
        """Give the network that is kept what the trained one has learned."""
        if self.kept is not self.network:
            self.kept.load_tensors(folded_tensors(self.network))

    def finish_epoch(self, metrics: EpochMetrics, keep: Keep) -> bool:
        """Note an epoch; whether its weights are to be kept instead of earlier ones."""
        self.history.append(metrics)
        better = keep == "last" or not self.best_epoch or _merit(metrics) > _merit(self.history[self.best_epoch - 1])
        if better:
            self.best_epoch, self.best = metrics.epoch, _on_cpu(self.kept.tensors())
        return better


def pretrain(
    network: LocalNetwork,
    train: Dataset,
    validation: Dataset,
    preprocessing: Preprocessing,
    settings: PretrainSettings,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Callable[[PretrainProgress], None] | None = None,
) -> PretrainResult:
    """Train a copy of a network and keep the weights that do best on validation data.

    Args:
        network: Left as it is.
        train: Raw rows to learn from.
        validation: Raw rows to choose the epoch, and the readouts of the prediction, on; never the test rows.
        preprocessing: From raw rows to the network's input.
        settings: Of the run; `mode` may regroup the network.
        out: Run folder, written after every epoch; None for none. See `edgeff.run_folder`.
        resume: Go on with the run in `out`, if there is one.
        progress: Called after every step and every epoch.

    Raises:
        ModelError: Network, preprocessing and settings do not fit one another.
        DataError: Data do not fit the network, have a token id that it does not know, or a data set has no rows.
        RunError: A loss that is not finite; a run folder that cannot be used; CUDA is asked for and missing.
    """
    check_fit(network, preprocessing, train, validation)
    device = torch_device(settings.device)
    prepared = settings.prepare(network)
    settings.check(prepared, len(train))
    trained = with_batch_norm(prepared) if settings.batch_norm else prepared
    feeds = (
        Feed(train, preprocessing, device=device, augment=settings.augment),
        Feed(validation, preprocessing, device=device),
    )
    steps = settings.epochs * batches_count(len(feeds[0]), settings.batch_size)
    for placed in (trained, prepared):
        _place(placed, device)
    run = _Run(trained, prepared, [Learner(block, settings, steps=steps) for block in trained.sequence])
    # What cannot be augmented is refused before a run folder is begun.
    next(iter(feeds[0].epoch(settings.batch_size, np.random.default_rng(0))))
    with ExitStack() as held:
        folder = None
        if out is not None:
            folder = RunFolder(out, network, prepared, settings, preprocessing, train, validation)
            checkpoint = held.enter_context(folder.opened(resume=resume))
            if checkpoint is not None:
                run.restore(checkpoint)
        held.enter_context(_threads(settings.threads))
        held.enter_context(_timed_convolutions(device))
        held.enter_context(_known_tokens(network))
        for epoch in range(len(run.history) + 1, settings.epochs + 1):
            metrics = _epoch(run, feeds, settings, epoch, progress or _ignore)
            better = run.finish_epoch(metrics, settings.keep)
            if folder is not None:
                folder.save(run.checkpoint(), better=better)
    return _result(run)


def _epoch(
    run: _Run,
    feeds: tuple[Feed, Feed],
    settings: PretrainSettings,
    epoch: int,
    progress: Callable[[PretrainProgress], None],
) -> EpochMetrics:
    """Train on all rows once, then measure on the validation rows."""
    train, validation = feeds
    per_epoch = batches_count(len(train), settings.batch_size)
    steps, first = settings.epochs * per_epoch, (epoch - 1) * per_epoch
    sums = dict.fromkeys((learner.block.name for learner in run.learners), 0.0)
    rows, began = 0, time.perf_counter()
    run.network.train()
    with _seeded(settings, epoch):
        rng = np.random.default_rng([settings.seed, epoch])
        for step, (x, y) in enumerate(train.epoch(settings.batch_size, rng), start=first + 1):
            losses = _finite(learn_batch(run.learners, x, y, step=step), epoch, step)
            rows += len(y)
            sums = {name: total + losses[name] * len(y) for name, total in sums.items()}
            progress(PretrainProgress(epoch, step, steps, losses, rows / (time.perf_counter() - began)))
    rows_per_s = rows / (time.perf_counter() - began)
    run.settle()
    measured = evaluate(run.kept, validation.in_order(), choose=settings.fusion)
    if not math.isfinite(measured.loss):
        raise _diverged(f"the loss on validation data is {measured.loss} after epoch {epoch}")
    means = {name: total / rows for name, total in sums.items()}
    metrics = EpochMetrics(epoch, means, measured)
    progress(PretrainProgress(epoch, first + per_epoch, steps, means, rows_per_s, metrics))
    return metrics


def _finite(losses: Mapping[str, Tensor], epoch: int, step: int) -> dict[str, float]:
    # One transfer for all blocks: on a GPU each would wait for the device.
    values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise _diverged(f"the loss of block `{name}` is {value} at step {step} (epoch {epoch})")
    return values


def _diverged(what: str) -> RunError:
    return RunError(what, hint="lower the learning rate, set a gradient clip, or look for rows that are not finite")


def _merit(metrics: EpochMetrics) -> tuple[float, float]:
    return metrics.validation.accuracy, -metrics.validation.loss


def _result(run: _Run) -> PretrainResult:
    network = run.kept.cpu().eval()
    convert_conv2d_weight_memory_format(network, torch.contiguous_format)
    network.load_tensors(run.best)
    network.fuse_readouts(LogProbabilitySum(run.history[run.best_epoch - 1].validation.readout_weights))
    return PretrainResult(network, tuple(run.history), run.best_epoch)


def evaluate_network(
    network: LocalNetwork,
    dataset: Dataset,
    preprocessing: Preprocessing,
    *,
    device: Device = "cpu",
    choose: FusionName | None = None,
) -> Evaluation:
    """Accuracy and loss of a network on a data set; the network ends on `device`, in evaluation mode.

    Args:
        network: Its fusion weights are set where `choose` is given.
        dataset: Raw rows with labels.
        preprocessing: From raw rows to the network's input.
        device: `cpu` or `cuda`.
        choose: How to choose the readouts of the prediction on these rows; for validation data only.

    Raises:
        ModelError: Network and preprocessing do not fit.
        DataError: The data do not fit the network, have a token id that it does not know, or there are no rows.
        RunError: CUDA is asked for and missing.
    """
    check_fit(network, preprocessing, dataset)
    feed = Feed(dataset, preprocessing, device=torch_device(device))
    with _known_tokens(network):
        return evaluate(network.to(device), feed.in_order(), choose=choose)


def _ignore(progress: PretrainProgress) -> None:
    del progress


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies: a tensor that is on the CPU already would go on changing."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}


def torch_device(name: Device) -> torch.device:
    """A device by name.

    Raises:
        RunError: CUDA is asked for and missing.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("device `cuda` is asked for, and torch finds none", hint="use device `cpu`")
    return torch.device(name)


def _place(network: LocalNetwork, device: torch.device) -> None:
    """Move a network; its convolutions are faster with channels last, which is a layout and no other value."""
    network.to(device)
    convert_conv2d_weight_memory_format(network, torch.channels_last)


@contextmanager
def _seeded(settings: PretrainSettings, epoch: int) -> Iterator[None]:
    """Torch's generators (dropout) seeded from (seed, epoch) inside, and as they were afterwards."""
    devices = [torch.cuda.current_device()] if settings.device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence([settings.seed, epoch]).generate_state(1, np.uint64)[0] >> 1))
        yield


@contextmanager
def _known_tokens(network: LocalNetwork) -> Iterator[None]:
    """Say what an `Embedding` on the CPU means when it finds no vector for a token id."""
    try:
        yield
    except IndexError as error:
        if network.input_dtype != "int64" or "out of range in self" not in str(error):
            raise
        raise DataError(
            f"network `{network.name}` cannot take the rows: {error}",
            hint="token ids count from 0 and stay below the `num_embeddings` of the first `Embedding`",
        ) from error


@contextmanager
def _timed_convolutions(device: torch.device) -> Iterator[None]:
    """On a GPU, convolutions of every shape are timed once inside, and then run by the fastest kernel."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Torch's threads inside, and what they were afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
