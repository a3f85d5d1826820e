"""What a transform makes of a few rows: shapes, and the proof that it treats every row by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgeff.errors import ModelError

Shape = tuple[int, ...]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode is back afterwards."""
    training = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, mode in training.items():
            inner.training = mode


def refuse_batch_norm(transform: nn.Module) -> None:
    """Raise a ModelError that names the first batch norm inside a transform."""
    for name, module in transform.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ModelError(
                f"`{type(module).__name__}` (transform `{name or '.'}`) needs statistics of a whole batch, which "
                "breaks batch size 1 and micro-batches",
                hint="use `torch.nn.GroupNorm`, which normalises each row by itself, or leave it out and pretrain with "
                "`--batch-norm`, which is folded into the weights",
            )


def probe_transform(transform: nn.Module, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The activation of two rows; refuses a transform that does not treat rows one by one."""
    rows = _probe_rows(transform, shape, dtype)
    one, two, three = (_activation(transform, rows[:count]) for count in (1, 2, 3))
    for count, activation in ((1, one), (2, two), (3, three)):
        if activation.ndim < 2 or activation.shape[0] != count or activation.shape[1:] != two.shape[1:]:
            raise ModelError(
                f"the transform must map (N, *row) to (N, *row), got {tuple(activation.shape)} for N = {count}",
                hint="keep the batch axis first, and the shape of a row independent of the number of rows",
            )
    near = 1e-4 * float(three.abs().max().clamp(min=1e-6))
    if not torch.allclose(three, _activation(transform, rows), rtol=1e-3, atol=near):
        raise ModelError(
            "the transform gives other values for the same rows: its forward draws random numbers",
            hint="use `torch.nn.Dropout` as a layer, which is turned off where it has to be, not its function",
        )
    if not torch.allclose(one, three[:1], rtol=1e-3, atol=near):
        raise ModelError(
            "the transform's output for a row depends on the other rows of the batch, which breaks micro-batches",
            hint="normalise each row by itself, for example with `torch.nn.GroupNorm`",
        )
    return two


def _probe_rows(transform: nn.Module, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Three rows (3, *shape) from a generator of their own; zeros for tokens, which any vocabulary has."""
    if not dtype.is_floating_point:
        return torch.zeros((3, *shape), dtype=dtype)
    own = next((p.dtype for p in transform.parameters() if p.dtype.is_floating_point), dtype)
    return torch.randn((3, *shape), generator=torch.Generator().manual_seed(0)).to(own)


def _activation(transform: nn.Module, rows: Tensor) -> Tensor:
    try:
        activation = transform(rows)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ModelError(
            f"the transform fails on rows of shape {tuple(rows.shape[1:])} ({rows.dtype}): {first_line(error)}",
            hint="check `input_shape` and the block before this one; a transform takes one tensor and gives one",
        ) from error
    if not isinstance(activation, Tensor) or not activation.dtype.is_floating_point:
        got = f"a tensor of {activation.dtype}" if isinstance(activation, Tensor) else f"`{type(activation).__name__}`"
        raise ModelError(
            f"the transform must return one floating-point tensor, got {got}",
            hint="layers that give several, such as recurrent ones, cannot be trained on a device",
        )
    return activation


def first_line(error: Exception) -> str:
    """The first line of an error's text without its full stop, for use inside a message of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
