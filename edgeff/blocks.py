"""Blocks: the unit that learns. A transform with a readout and a loss of its own, or several of them as one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.fusion import LogProbabilitySum
from edgeff.goodness import PooledGoodness
from edgeff.handover import LayerNormHandover
from edgeff.objective import CrossEntropyObjective, Objective
from edgeff.parts import Description, Part, describe_part
from edgeff.probe import Shape, evaluating, first_line, probe_transform, refuse_batch_norm
from edgeff.projection import FixedProjection, LearnedProjection, Projection
from edgeff.relation import Relation
from edgeff.temperature import FixedTemperature, LearnedTemperature, Temperature

Losses = Literal["last", "all"]


class Reading(NamedTuple):
    """What a readout makes of N rows.

    Attributes:
        scores: (N, K), over the temperature.
        embedding: (N, E) of the block's relation; None without one.
    """

    scores: Tensor
    embedding: Tensor | None = None


class Readout(nn.Module):
    """Activation (N, *row) -> scores (N, K): auxiliary layers, goodness, projection onto the classes, temperature."""

    auxiliary: nn.Module | None

    def __init__(
        self, goodness: Part, projection: nn.Module, temperature: Temperature, auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.goodness = goodness
        self.projection = projection
        self.temperature = temperature

    def build(self, activation: Tensor, classes_count: int) -> None:
        """Size the projection to the goodness of an example activation, and check that scores come out (N, K).

        Raises:
            ModelError: The parts do not fit the activation or one another.
        """
        rows = activation.shape[0]
        goodness = self.measure(activation)
        if goodness.ndim != 2 or goodness.shape[0] != rows:
            raise ModelError(f"goodness must be of shape (N, D), got {tuple(goodness.shape)} for N = {rows}")
        try:
            if isinstance(self.projection, Projection):
                self.projection.build(goodness.shape[1], classes_count)
            scores = self.temperature(self.projection(goodness), goodness)
        except RuntimeError as error:
            raise ModelError(
                f"the projection does not take goodness of shape (N, {goodness.shape[1]}): {first_line(error)}"
            ) from error
        if tuple(scores.shape) != (rows, classes_count):
            raise ModelError(f"scores must be of shape (N, {classes_count}), got {tuple(scores.shape)} for N = {rows}")

    def measure(self, activation: Tensor) -> Tensor:
        """Goodness (N, D)."""
        return self.goodness(activation if self.auxiliary is None else self.auxiliary(activation))

    def forward(self, activation: Tensor) -> Tensor:
        """Scores (N, K), already divided by the temperature."""
        goodness = self.measure(activation)
        return self.temperature(self.projection(goodness), goodness)

    def describe(self) -> Description:
        """The parts and their settings."""
        return {
            **({} if self.auxiliary is None else {"auxiliary": describe_part(self.auxiliary)}),
            "goodness": describe_part(self.goodness),
            "projection": describe_part(self.projection),
            "temperature": describe_part(self.temperature),
        }


class Block(nn.Module):
    """What a network and the compiler know of a block.

    Attributes:
        name: Unique in its network.
        input_shape: One row that comes in.
        handover_shape: One row that is passed on.
    """

    name: str
    input_shape: Shape
    handover_shape: Shape

    def build(self, input_shape: Shape, classes_count: int, *, input_dtype: torch.dtype = torch.float32) -> None:
        """Infer shapes from a probe of two rows, and create what depends on them."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Reading, ...]]:
        """Hand-over (N, *handover_shape), not detached, and the reading of each readout."""
        raise NotImplementedError

    def loss(self, readings: tuple[Reading, ...], y: Tensor, row_weight: Tensor) -> Tensor:
        """Sum over rows of row_weight (N,) times the row's loss; y (N,) int64. A scalar."""
        raise NotImplementedError

    def readout_log_probabilities(self, readings: tuple[Reading, ...]) -> tuple[Tensor, ...]:
        """Log-probabilities (N, K) of each readout."""
        return tuple(torch.log_softmax(reading.scores, dim=1) for reading in readings)

    def log_probabilities(self, readings: tuple[Reading, ...]) -> Tensor:
        """What the block adds to the network's prediction, (N, K)."""
        raise NotImplementedError

    def describe(self) -> Description:
        """JSON-able parts and settings."""
        raise NotImplementedError

    def leaves(self) -> tuple[LocalBlock, ...]:
        """The local blocks inside, in order."""
        raise NotImplementedError

    @property
    def readouts_count(self) -> int:
        """How many readouts it has."""
        raise NotImplementedError

    @property
    def compares_rows(self) -> bool:
        """Whether what a row teaches depends on the rows beside it."""
        return any(leaf.relation is not None for leaf in self.leaves())


class LocalBlock(Block):
    """A transform with its own readout and loss.

    Args:
        transform: Any module from (N, *row) to (N, *row) whose rows do not depend on one another: no batch norm.
        name: Letters, digits, `_` and `-`; None for `block1`, `block2`, ... by position.
        auxiliary: A module between activation and goodness that is no part of what is handed over; None for none.
        goodness: From the activation to (N, D); None for `PooledGoodness()`.
        projection: `learned`, `fixed` (seed 0), or a module from (N, D) to (N, K).
        temperature: `learned`, a number, or a part that scales scores (N, K) and may look at goodness (N, D).
        objective: Of the scores; None for `CrossEntropyObjective()`.
        relation: A loss that compares the rows of a batch, besides the objective; None for none.
        probe: The readout learns from the activation and does not teach it: only the relation does.
        handover: None for `LayerNormHandover()`.

    Raises:
        ModelError: A part that is unknown; a probe without a relation, which would have nothing to learn from.
    """

    readout: Readout | None
    relation: Relation | None

    def __init__(
        self,
        transform: nn.Module,
        *,
        name: str | None = None,
        auxiliary: nn.Module | None = None,
        goodness: Part | None = None,
        projection: Literal["learned", "fixed"] | nn.Module = "learned",
        temperature: Literal["learned"] | float | Temperature = "learned",
        objective: Objective | None = None,
        relation: Relation | None = None,
        probe: bool = False,
        handover: Part | None = None,
    ) -> None:
        super().__init__()
        if probe and relation is None:
            raise ModelError("a block whose readout is a probe needs a relation to learn from")
        self.name = name or ""
        self.transform = transform
        self.readout = Readout(
            goodness or PooledGoodness(), _projection(projection), _temperature(temperature), auxiliary
        )
        self.objective: Objective = objective or CrossEntropyObjective()
        self.relation = relation
        self.probe = probe
        self.handover: Part = handover or LayerNormHandover()

    def without_readout(self) -> LocalBlock:
        """A block around the same transform and hand-over that has no scores: an inner layer of back-propagation."""
        block = copy.copy(self)
        block._modules = {**self._modules, "readout": None, "relation": None}
        return block

    def with_scores_alone(self) -> LocalBlock:
        """This block, or where it has a relation one that learns from its scores alone: the end of back-propagation."""
        if self.relation is None:
            return self
        block = copy.copy(self)
        block._modules = {**self._modules, "relation": None}
        block.probe = False
        return block

    def build(self, input_shape: Shape, classes_count: int, *, input_dtype: torch.dtype = torch.float32) -> None:
        """Infer shapes from a probe of two rows, and create the projection.

        Raises:
            ModelError: Batch norm, a transform that fails on such rows, whose rows depend on one another, or that does
                not return one tensor with a batch axis; parts that do not fit.
        """
        self.input_shape = tuple(input_shape)
        try:
            for part in (self.transform, self.readout):
                if part is not None:
                    refuse_batch_norm(part)
            with evaluating(self), torch.no_grad():
                activation = probe_transform(self.transform, self.input_shape, input_dtype)
                if self.readout is not None:
                    self.readout.build(activation, classes_count)
                if self.relation is not None:
                    self.relation.build(activation)
                handover = self.handover(activation)
        except ModelError as error:
            raise ModelError(f"block `{self.name or '(unnamed)'}`: {error}", hint=error.hint) from error
        self.handover_shape = tuple(handover.shape[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Reading, ...]]:
        """Hand-over (N, *handover_shape), not detached, and the readout's reading; none without a readout."""
        activation = self.transform(x)
        handover = self.handover(activation)
        if self.readout is None:
            return handover, ()
        scores = self.readout(activation.detach() if self.probe else activation)
        return handover, (Reading(scores, None if self.relation is None else self.relation(activation)),)

    def loss(self, readings: tuple[Reading, ...], y: Tensor, row_weight: Tensor) -> Tensor:
        """Sum over rows of row_weight (N,) times the row's loss; y (N,) int64. A scalar."""
        (scores, embedding), *_ = readings
        loss = self.objective(scores, y, row_weight)
        if self.relation is None or embedding is None:
            return loss
        return loss + self.relation.loss(embedding, y, row_weight, scores.shape[1])

    def readout_log_probabilities(self, readings: tuple[Reading, ...]) -> tuple[Tensor, ...]:
        """Log-probabilities (N, K) of the readout; an objective may have its own way from scores to them."""
        own = getattr(self.objective, "log_probabilities", None)
        return super().readout_log_probabilities(readings) if own is None else (own(readings[0].scores),)

    def log_probabilities(self, readings: tuple[Reading, ...]) -> Tensor:
        """Log-probabilities (N, K) of the readout."""
        return self.readout_log_probabilities(readings)[0]

    def describe(self) -> Description:
        """Parts and settings."""
        return {
            "kind": "local",
            "transform": describe_part(self.transform),
            **({} if self.readout is None else self.readout.describe()),
            "objective": describe_part(self.objective) if self.readout is not None else None,
            **({} if self.relation is None else {"relation": describe_part(self.relation), "probe": self.probe}),
            "handover": describe_part(self.handover),
        }

    def leaves(self) -> tuple[LocalBlock, ...]:
        """Itself."""
        return (self,)

    @property
    def readouts_count(self) -> int:
        """1, or 0 without a readout."""
        return 0 if self.readout is None else 1


class ChainedBlock(Block):
    """Several blocks that learn as one: the gradient runs through all of them.

    Args:
        blocks: In order; hand-over normalisation stays between them, detaching does not.
        losses: `last`: only the last block's readout and relation are kept and learned from. `all`: the losses are
            summed.
        name: As for `LocalBlock`.
        fusion: How the readouts make up the block's log-probabilities (only with `all`).
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        losses: Losses = "last",
        name: str | None = None,
        fusion: LogProbabilitySum | None = None,
    ) -> None:
        super().__init__()
        if not blocks:
            raise ModelError("a chained block needs at least one block, got none")
        if losses not in ("last", "all"):
            raise ModelError(f"losses must be `last` or `all`, got `{losses}`")
        leaves = [leaf for block in blocks for leaf in block.leaves()]
        if losses == "last":
            leaves = [*(leaf.without_readout() for leaf in leaves[:-1]), leaves[-1]]
        self.name = name or ""
        self.losses = losses
        self.layers = nn.ModuleList(leaves)
        self.fusion = fusion or LogProbabilitySum()

    def leaves(self) -> tuple[LocalBlock, ...]:
        """The local blocks inside, in order."""
        return tuple(cast(LocalBlock, layer) for layer in self.layers)

    @property
    def readouts_count(self) -> int:
        """How many of its blocks have a readout."""
        return sum(leaf.readouts_count for leaf in self.leaves())

    def build(self, input_shape: Shape, classes_count: int, *, input_dtype: torch.dtype = torch.float32) -> None:
        """Build the inner blocks in order.

        Raises:
            ModelError: As `LocalBlock.build`; or the last block has no readout.
        """
        self.input_shape, shape, dtype = tuple(input_shape), tuple(input_shape), input_dtype
        for index, leaf in enumerate(self.leaves(), start=1):
            leaf.name = leaf.name or f"{self.name or 'layer'}-{index}"
            leaf.build(shape, classes_count, input_dtype=dtype)
            shape, dtype = leaf.handover_shape, torch.float32
        if self.leaves()[-1].readout is None:
            raise ModelError(f"block `{self.name}`: its last layer has no readout to learn from")
        self.handover_shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Reading, ...]]:
        """Hand-over (N, *handover_shape), not detached, and the reading of each readout."""
        readings: tuple[Reading, ...] = ()
        for leaf in self.leaves():
            x, own = leaf(x)
            readings += own
        return x, readings

    def loss(self, readings: tuple[Reading, ...], y: Tensor, row_weight: Tensor) -> Tensor:
        """Sum of the readouts' losses, each summed over rows with row_weight (N,); y (N,) int64. A scalar."""
        learning = [leaf for leaf in self.leaves() if leaf.readout is not None]
        losses = [leaf.loss((own,), y, row_weight) for leaf, own in zip(learning, readings, strict=True)]
        return sum(losses[1:], start=losses[0])

    def readout_log_probabilities(self, readings: tuple[Reading, ...]) -> tuple[Tensor, ...]:
        """Log-probabilities (N, K) of each readout."""
        learning = [leaf for leaf in self.leaves() if leaf.readout is not None]
        return tuple(leaf.readout_log_probabilities((own,))[0] for leaf, own in zip(learning, readings, strict=True))

    def log_probabilities(self, readings: tuple[Reading, ...]) -> Tensor:
        """Weighted sum (N, K) of the readouts' log-probabilities."""
        return self.fusion.fuse(self.readout_log_probabilities(readings))

    def describe(self) -> Description:
        """The inner blocks and how their losses combine."""
        return {
            "kind": "chained",
            "losses": self.losses,
            "fusion": describe_part(self.fusion),
            "layers": [{"name": leaf.name, **leaf.describe()} for leaf in self.leaves()],
        }


def _projection(choice: Literal["learned", "fixed"] | nn.Module) -> nn.Module:
    if isinstance(choice, nn.Module):
        return choice
    if choice not in ("learned", "fixed"):
        raise ModelError(f"projection must be `learned`, `fixed` or a module, got `{choice}`")
    return LearnedProjection() if choice == "learned" else FixedProjection()


def _temperature(choice: Literal["learned"] | float | Temperature) -> Temperature:
    if choice == "learned":
        return LearnedTemperature()
    if isinstance(choice, int | float):
        return FixedTemperature(float(choice))
    if not callable(choice):
        raise ModelError(f"temperature must be `learned`, a number or a part, got `{choice}`")
    return choice
