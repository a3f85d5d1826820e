"""Forward-Forward with negative examples: a row is seen together with a label, and is good if the label is right."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgeff.blocks import LocalBlock, Reading
from edgeff.errors import ModelError
from edgeff.objective import TwoSidedObjective
from edgeff.parts import Description, Part
from edgeff.probe import Shape, evaluating, probe_transform, refuse_batch_norm
from edgeff.projection import NoProjection
from edgeff.temperature import FixedTemperature


class MeanSquare:
    """Goodness of a whole row: the mean of the squares of its activation (Hinton, arXiv 2212.13345, section 2)."""

    def __call__(self, activation: Tensor) -> Tensor:
        """Goodness (N, 1) of an activation (N, ...)."""
        return (activation * activation).flatten(1).mean(dim=1, keepdim=True)

    def describe(self) -> Description:
        """Name."""
        return {"part": "MeanSquare"}


class OverlayBlock(LocalBlock):
    """Forward-Forward's two-sided rule, for comparison: a class's score is the goodness of the row under its label.

    The label comes in as K more channels (features, for rows (D,)), 1 in the label's and 0 in the others. Learning runs
    the transform on every row under each of the K labels, and so does prediction: K times the work and the activations
    of any other rule here. Every wrong label is a negative, so that a negative never equals the true label. What is
    handed over is the activation under the neutral label, 1 / K in each channel, as at Hinton's test time.

    Args:
        transform: From (N, C + K, ...) to (N, ...).
        threshold: Of `TwoSidedObjective`.
        name: As for `LocalBlock`.
        handover: None for `LayerNormHandover()`.
    """

    def __init__(
        self, transform: nn.Module, *, threshold: float = 2.0, name: str | None = None, handover: Part | None = None
    ) -> None:
        super().__init__(
            transform,
            name=name,
            goodness=MeanSquare(),
            projection=NoProjection(),
            temperature=FixedTemperature(),
            objective=TwoSidedObjective(threshold),
            handover=handover,
        )

    def build(self, input_shape: Shape, classes_count: int, *, input_dtype: torch.dtype = torch.float32) -> None:
        """Infer shapes from a probe of two rows.

        Raises:
            ModelError: As `LocalBlock.build`; or rows of tokens, which no label can be laid over.
        """
        self.input_shape, self.classes_count = tuple(input_shape), classes_count
        try:
            if input_dtype != torch.float32:
                raise ModelError(
                    "a label cannot be laid over rows of tokens", hint="begin with a block of another kind"
                )
            refuse_batch_norm(self.transform)
            with evaluating(self), torch.no_grad():
                overlaid = (input_shape[0] + classes_count, *input_shape[1:])
                activation = probe_transform(self.transform, overlaid, input_dtype)
                self.handover_shape = tuple(self.handover(activation).shape[1:])
        except ModelError as error:
            raise ModelError(f"block `{self.name or '(unnamed)'}`: {error}", hint=error.hint) from error

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Reading, ...]]:
        """Hand-over (N, *handover_shape), not detached, and a reading with the goodness under each label (N, K)."""
        count = self.classes_count
        neutral = torch.full((1, count), 1.0 / count, dtype=x.dtype, device=x.device)
        handover = self.handover(self.transform(_overlay(x, neutral)))
        if self.readout is None:
            return handover, ()
        labels = torch.from_numpy(np.eye(count, dtype=np.float32)).to(x)
        every = torch.stack([_overlay(x, labels[label : label + 1]) for label in range(count)], dim=1)
        goodness = self.readout.measure(self.transform(every.flatten(0, 1)))
        return handover, (Reading(goodness.reshape(-1, count)),)


def _overlay(x: Tensor, label: Tensor) -> Tensor:
    """Rows (N, C, ...) with a label (1, K) as K more channels, (N, C + K, ...)."""
    places = x.shape[2:]
    planes = label.reshape(1, -1, *(1 for _ in places)).expand(x.shape[0], -1, *places)
    return torch.cat([x, planes], dim=1)
