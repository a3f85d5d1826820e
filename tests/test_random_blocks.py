"""Blocks that nobody thought of: one to three random layers with random settings, checked against torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_cases import ADAMW, CLASSES, SGD, Of, attention, block_of, compiled, residual
from torch import nn

from edgeff.export.check import TOLERANCE, check_block
from edgeff.manifest import OptimizerSpec

Shape = tuple[int, ...]
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Tanh)
# Normalising few numbers may divide by a variance near zero, where float32 itself loses its digits, in torch too.
ENOUGH = 32


@dataclass(frozen=True)
class Drawn:
    """A random transform, and the rows it takes."""

    layers: nn.Sequential
    shape: Shape
    input_dtype: str


def after(layers: list[nn.Module], shape: Shape, input_dtype: str) -> Shape:
    """Shape of a row behind the layers."""
    with torch.no_grad():
        return tuple(nn.Sequential(*layers)(torch.zeros((1, *shape), dtype=getattr(torch, input_dtype))).shape[1:])


@st.composite
def convolutions(draw: st.DrawFn, shape: Shape, *, keep: bool = False) -> nn.Module:
    """Over a map of one or two axes; `keep` keeps its size and channels."""
    kind = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    channels, kernel = shape[0], draw(st.sampled_from([1, 3]))
    groups = draw(st.sampled_from([count for count in {1, 2, channels} if channels % count == 0]))
    dilation = draw(st.integers(1, 2)) if kernel == 3 and min(shape[1:]) >= 5 else 1
    padding = dilation * (kernel // 2)
    if keep:
        return kind(channels, channels, kernel, padding=padding, dilation=dilation, groups=groups)
    out, stride = groups * draw(st.integers(1, max(1, 8 // groups))), draw(st.integers(1, 2))
    bias, padding = draw(st.booleans()), draw(st.integers(0, padding)) if min(shape[1:]) >= 5 else padding
    return kind(channels, out, kernel, stride, padding, dilation, groups, bias)


@st.composite
def pools(draw: st.DrawFn, shape: Shape) -> nn.Module:
    flat = len(shape) == 2
    kind = draw(st.sampled_from(["max", "average", "overlapping", "adaptive"]))
    if kind == "max":
        return nn.MaxPool1d(2) if flat else nn.MaxPool2d(2)
    if kind == "average":
        kernel, stride, padding = draw(st.sampled_from([(2, 2, 0), (3, 1, 1), (3, 2, 1)]))
        return nn.AvgPool1d(kernel, stride, padding) if flat else nn.AvgPool2d(kernel, stride, padding)
    if kind == "overlapping":
        return nn.MaxPool1d(3, 2, 1) if flat else nn.MaxPool2d(3, 2, 1)
    size = draw(st.integers(1, 4))
    return nn.AdaptiveAvgPool1d(size) if flat else nn.AdaptiveAvgPool2d(size)


@st.composite
def joined(draw: st.DrawFn, shape: Shape) -> nn.Module:
    """Two convolutions side by side, their channels joined."""
    left, right = (draw(convolutions(shape, keep=True)) for _ in range(2))
    return Of(lambda x, a, b: torch.cat([a(x), b(x)], 1), left, right)


@st.composite
def layers_for(draw: st.DrawFn, shape: Shape) -> nn.Module:
    """One layer that takes rows of `shape`."""
    choices: list[st.SearchStrategy[nn.Module]] = []
    width = shape[-1]
    if len(shape) >= 2:
        choices += [convolutions(shape), joined(shape), convolutions(shape, keep=True).map(residual)]
        choices += [st.builds(nn.Flatten)]
        if min(shape[1:]) >= 4:
            choices += [pools(shape)] * 2
        groups = [count for count in (1, 2) if shape[0] % count == 0 and math.prod(shape) // count >= ENOUGH]
        choices += [st.sampled_from(groups).map(lambda count: nn.GroupNorm(count, shape[0]))] if groups else []
    if len(shape) <= 2:
        choices += [st.integers(2, 12).map(lambda out: nn.Linear(width, out))]
    if len(shape) == 2:
        choices += [st.just(8).map(lambda out: nn.Sequential(nn.Linear(width, out), residual(attention(out, 2))))]
    if width >= ENOUGH:
        choices += [st.builds(nn.LayerNorm, st.just(width))]
    return draw(st.one_of(choices))


@st.composite
def random_blocks(draw: st.DrawFn) -> Drawn:
    torch.manual_seed(draw(st.integers(0, 9)))
    start = draw(st.sampled_from(["map", "signal", "row", "tokens"]))
    side = draw(st.integers(6, 11))
    shape: Shape = {"map": (draw(st.integers(1, 6)), side, side + 1), "signal": (4, 5 * side)}.get(start, (side,))
    input_dtype = "int64" if start == "tokens" else "float32"
    layers: list[nn.Module] = [nn.Embedding(20, 8)] if start == "tokens" else []
    for _ in range(draw(st.integers(1, 3))):
        layers.append(draw(layers_for(after(layers, shape, input_dtype))))
        layers += draw(st.sampled_from([[], *([kind()] for kind in ACTIVATIONS)]))
        layers += draw(st.sampled_from([[], [], [nn.Dropout(0.3)]]))
    return Drawn(nn.Sequential(*layers), shape, input_dtype)


@given(random_blocks(), st.sampled_from([ADAMW, SGD]), st.booleans())
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_random_blocks_agree_with_torch(drawn: Drawn, spec: OptimizerSpec, dropout: bool) -> None:
    block = block_of(drawn.layers, drawn.shape, input_dtype=drawn.input_dtype)
    graphs = compiled(block, spec, input_dtype=drawn.input_dtype, dropout=dropout)
    assert check_block(block, graphs, spec=spec, input_dtype=drawn.input_dtype, classes=CLASSES).error <= TOLERANCE
