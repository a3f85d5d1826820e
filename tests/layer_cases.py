"""Blocks with one kind of layer or setting each, and how tests compile and run them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeff.export.dropout import seeded_dropout
from edgeff.export.graphs import BlockGraphs, compile_block
from edgeff.manifest import OptimizerSpec
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import moment_factors, optimizer_spec, rates, slots

SIGNAL, IMAGE, TOKENS, CLASSES = (6, 32), (4, 12, 12), (7,), 5
ADAMW, SGD = optimizer_spec("adamw"), optimizer_spec("sgd", weight_decay=1e-3)
SEED, RATE, STEP = 5, 1e-2, 4


class Of(nn.Module):
    """A forward written as a function of the input and some modules."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def residual(*inner: nn.Module) -> nn.Module:
    return Of(lambda x, m: x + m(x), nn.Sequential(*inner))


def attention(width: int, heads: int) -> nn.Module:
    return Of(lambda x, m: m(x, x, x, need_weights=False)[0], nn.MultiheadAttention(width, heads, batch_first=True))


def causal(x: Tensor, m: nn.Module) -> Tensor:
    return F.scaled_dot_product_attention(m(x), x, x, is_causal=True)


def conv(*after: nn.Module, channels: int = 8, kernel: Any = 3, padding: Any = 1, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, channels, kernel, padding=padding, **options), *after)


def conv1d(*after: nn.Module, channels: int = 8, kernel: int = 5, padding: Any = 2, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv1d(6, channels, kernel, padding=padding, **options), *after)


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, **options)


@dataclass(frozen=True)
class Case:
    """A transform to be built anew in each test, and the row it takes."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    tokens: bool = False
    dropout: bool = False

    @property
    def input_dtype(self) -> str:
        return "int64" if self.tokens else "float32"

    def block(self) -> LocalBlock:
        torch.manual_seed(0)
        return block_of(self.make(), self.shape, input_dtype=self.input_dtype)


def block_of(transform: nn.Module, shape: tuple[int, ...], *, input_dtype: Any = "float32", **parts: Any) -> LocalBlock:
    """One built block, `block1`, for rows of `shape` and five classes."""
    blocks = [LocalBlock(transform, **parts)]
    network = LocalNetwork(blocks, input_shape=shape, classes=CLASSES, input_dtype=input_dtype)
    return network.sequence[0].leaves()[0]


def compiled(
    block: nn.Module, spec: OptimizerSpec = ADAMW, *, input_dtype: str = "float32", last: bool = False, **options: Any
) -> BlockGraphs:
    return compile_block(block, optimizer_spec=spec, input_dtype=input_dtype, last=last, **options)


def rows_for(case: Case, count: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and unequal row weights."""
    draw = torch.Generator().manual_seed(seed)
    shape = (count, *case.shape)
    x = torch.randint(0, 20, shape, generator=draw) if case.tokens else torch.randn(shape, generator=draw)
    y = torch.randint(0, CLASSES, (count,), generator=draw)
    return x, y, (torch.rand(count, generator=draw) + 0.5) / count


def starting_feeds(graphs: BlockGraphs, spec: OptimizerSpec = ADAMW) -> dict[str, np.ndarray]:
    """Weights as they are, optimiser state and gradient sums of zero, the rates of the first step."""
    weights = {name: tensor.detach().numpy().copy() for name, tensor in graphs.parameters.items()}
    return {
        **{f"parameter.{name}": array for name, array in weights.items()},
        **{f"buffer.{name}": tensor.detach().numpy() for name, tensor in graphs.buffers.items()},
        **{f"gradient.{name}": np.zeros_like(array) for name, array in weights.items()},
        **{f"state.{slot}.{name}": np.zeros_like(array) for name, array in weights.items() for slot in slots(spec)},
        **rate_feeds(spec, 1e-3, 1),
    }


# What torch calls the optimisers' state.
_SLOTS = {"momentum": "exp_avg", "squares": "exp_avg_sq", "velocity": "momentum_buffer"}


def drawn_state(graphs: BlockGraphs, spec: OptimizerSpec) -> dict[str, np.ndarray]:
    """Optimiser state well above zero: AdamW's first step from zero is a sign, which rounding may decide."""
    draw = np.random.default_rng(3)
    shapes = {name: tuple(tensor.shape) for name, tensor in graphs.parameters.items()}
    return {
        f"state.{slot}.{name}": ((0.1 * draw.standard_normal(shape) ** 2 + 0.01) / factor).astype(np.float32)
        for name, shape in shapes.items()
        for slot, factor in moment_factors(spec).items()
    }


def torchs_step(
    block: LocalBlock, spec: OptimizerSpec, state: Mapping[str, np.ndarray], batch: tuple[Tensor, Tensor, Tensor]
) -> dict[str, np.ndarray]:
    """Loss, hand-over, log-probabilities, gradients, new weights and new state by autograd and `torch.optim`."""
    twin = copy.deepcopy(block)
    x, y, row_weight = batch
    handover, scores = twin(x)
    loss = twin.loss(scores, y, row_weight)
    loss.backward()
    found = {"loss": loss, "handover": handover, "log_probabilities": twin.log_probabilities(scores)}
    own = {name: value for name, value in twin.named_parameters() if value.requires_grad}
    found |= {f"new.gradient.{name}": value.grad.clone() for name, value in own.items() if value.grad is not None}
    optimizer = _torchs_optimizer(spec, own, state)
    optimizer.step()
    for name, value in own.items():
        found[f"new.parameter.{name}"] = value
        theirs = optimizer.state[value]
        found |= {
            f"new.state.{slot}.{name}": theirs[_SLOTS[slot]] / factor for slot, factor in moment_factors(spec).items()
        }
    return {name: value.detach().numpy() for name, value in found.items()}


def _torchs_optimizer(
    spec: OptimizerSpec, own: Mapping[str, Tensor], state: Mapping[str, np.ndarray]
) -> torch.optim.Optimizer:
    known, decay = spec.settings, spec.settings["weight_decay"]
    made: torch.optim.Optimizer
    if spec.kind == "sgd":
        made = torch.optim.SGD(own.values(), RATE, momentum=known["momentum"], weight_decay=decay)
    else:
        betas = (known["beta1"], known["beta2"])
        made = torch.optim.AdamW(own.values(), RATE, betas, known["epsilon"], weight_decay=decay)
    for name, value in own.items():
        made.state[value] = {"step": torch.tensor(STEP - 1.0)}
        for slot, factor in moment_factors(spec).items():
            made.state[value][_SLOTS[slot]] = torch.tensor(state[f"state.{slot}.{name}"]) * factor
    return made


def errors(
    block: LocalBlock,
    graphs: BlockGraphs,
    spec: OptimizerSpec,
    batch: tuple[Tensor, Tensor, Tensor],
    *,
    dropout: bool = False,
) -> dict[str, float]:
    """How far every output of the graphs that learn is from what torch gives, by `<graph> <output>`.

    Asks nothing of `edgeff.export.check`.
    """
    state = drawn_state(graphs, spec)
    with seeded_dropout(block, torch.tensor(SEED)) if dropout else contextlib.nullcontext():
        expected = torchs_step(block, spec, state, batch)
    x, y, row_weight = batch
    given = {"x": x, "y": y, "row_weight": row_weight, "seed": np.int64(SEED)}
    feeds = {**starting_feeds(graphs, spec), **state, **rate_feeds(spec, RATE, STEP), **given}
    # A gradient that is 0 but for rounding (of a bias before a normalisation, say) is held against the largest one.
    least = 0.05 * max(np.abs(value).max() for name, value in expected.items() if name.startswith("new.gradient."))
    return {
        f"{kind} {name}": difference(
            value.reshape(expected[name].shape) if "gradient" in name else value,
            expected[name],
            least=least if "gradient" in name else 1e-6,
        )
        for kind in ("step", "accumulate", "fast_accumulate")
        if kind in graphs.models
        for name, value in Runner(graphs.models[kind])(feeds).items()
    }


def rate_feeds(spec: OptimizerSpec, learning_rate: float, step: int) -> dict[str, np.ndarray]:
    return {f"rate.{name}": np.float32(value) for name, value in rates(spec, learning_rate, step).items()}


class Runner:
    """A graph on onnxruntime, fed by name; feeds it does not take are ignored."""

    def __init__(self, model: onnx.ModelProto | bytes, *, optimized: bool = True) -> None:
        content = model if isinstance(model, bytes) else model.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        inputs = self.session.get_inputs()
        self.sums = {value.name: value.shape for value in inputs if value.name.startswith("gradient.")}

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arrays = {name: np.asarray(feeds[name]) for name in self.inputs}
        # A sum of gradients may come as the matrix that its parts come out as.
        arrays |= {name: arrays[name].reshape(shape) for name, shape in self.sums.items()}
        found = self.session.run(self.outputs, arrays)
        return dict(zip(self.outputs, found, strict=True))


def renewed(feeds: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The feeds of the next run: every `new.X` takes the place of `X`."""
    return {**feeds, **{name.removeprefix("new."): value for name, value in found.items() if name.startswith("new.")}}


def difference(found: np.ndarray, expected: np.ndarray, *, least: float = 1e-6) -> float:
    """Largest difference over the largest expected value, or over `least` where that is more.

    Not the function of `edgeff.export.check`: tests do not ask the code they test.
    """
    assert found.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0.0)), least)
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)) / scale


CASES: Mapping[str, Case] = {
    # convolution
    "conv": Case(lambda: conv(nn.ReLU())),
    "conv without bias": Case(lambda: conv(nn.ReLU(inplace=True), bias=False)),
    "conv stride": Case(lambda: conv(nn.GELU(), stride=2)),
    "conv uneven": Case(lambda: conv(nn.GELU("tanh"), kernel=(3, 5), stride=(2, 3), padding=(0, 1))),
    "conv dilation": Case(lambda: conv(nn.SiLU(), dilation=2, padding=2)),
    "conv groups": Case(lambda: conv(nn.LeakyReLU(0.1), groups=2)),
    "conv one channel": Case(lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()), (1, 9, 8)),
    "conv 1x1": Case(lambda: conv(nn.Tanh(), kernel=1, padding=0)),
    "conv same, even kernel": Case(lambda: nn.Sequential(nn.ConstantPad2d((1, 2, 1, 2), 0.0), conv(kernel=4))),
    "conv 3d": Case(lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Flatten(2)), (2, 5, 6, 7)),
    # of many channels, which have a `fast_accumulate` graph (`tests/test_winograd.py`)
    "conv wide": Case(lambda: nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()), (32, 16, 17)),
    "convs wide": Case(
        lambda: nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=(2, 0), bias=False), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)
        ),
        (64, 8, 6),
    ),
    "two convs": Case(lambda: conv(nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU())),
    "depthwise": Case(lambda: conv(nn.Tanh(), nn.Conv2d(4, 8, 1), nn.ReLU(), channels=4, groups=4)),
    "depthwise doubled": Case(lambda: conv(nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), groups=4, stride=2)),
    "depthwise wide": Case(
        lambda: conv(nn.ReLU(), channels=8, groups=4, kernel=(3, 5), padding=(0, 3), dilation=(2, 1)), (4, 5, 33)
    ),
    "depthwise of long rows": Case(lambda: conv(nn.ReLU(), channels=4, groups=4), (4, 5, 33)),
    "two convs, 1x1 behind": Case(lambda: conv(nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU())),
    "conv1d": Case(lambda: conv1d(nn.ReLU(), nn.MaxPool1d(2)), SIGNAL),
    "conv1d same": Case(lambda: conv1d(nn.ReLU(), padding="same"), SIGNAL),
    "conv1d strided groups": Case(lambda: conv1d(nn.ELU(), stride=2, groups=2, dilation=2), SIGNAL),
    # linear
    "linear": Case(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU()), SIGNAL),
    "linear over tokens": Case(lambda: nn.Sequential(nn.Linear(32, 16, bias=False), nn.ReLU()), SIGNAL),
    "two linears": Case(lambda: nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 6)), (9,)),
    # activations
    "relu6": Case(lambda: conv(nn.ReLU6())),
    "hardtanh": Case(lambda: conv(nn.Hardtanh())),
    "sigmoid": Case(lambda: conv(nn.Sigmoid())),
    "log sigmoid": Case(lambda: conv(nn.LogSigmoid())),
    "elu": Case(lambda: conv(nn.ELU(0.3))),
    "selu": Case(lambda: conv(nn.SELU())),
    "hardswish": Case(lambda: conv(nn.Hardswish())),
    "hard sigmoid": Case(lambda: conv(nn.Hardsigmoid())),
    "softplus": Case(lambda: conv(nn.Softplus(2.0, 3.0))),
    "mish": Case(lambda: conv(nn.Mish())),
    "leaky relu": Case(lambda: conv(nn.LeakyReLU())),
    "prelu": Case(lambda: conv(nn.PReLU(8))),
    "gated": Case(lambda: conv(nn.GLU(1))),
    "softmax": Case(lambda: conv(nn.Softmax(1))),
    # pooling
    "max pool": Case(lambda: conv(nn.ReLU(), nn.MaxPool2d(2))),
    "max pool with gaps": Case(lambda: conv(nn.MaxPool2d(2, 3)), (4, 10, 10)),
    "max pool overlapping": Case(lambda: conv(nn.MaxPool2d(3, 2))),
    "max pool padded": Case(lambda: conv(nn.MaxPool2d(3, 2, 1))),
    "max pool dilated": Case(lambda: conv(nn.MaxPool2d(2, dilation=2))),
    "max pool ceil": Case(lambda: conv(nn.MaxPool2d(5, 5, ceil_mode=True))),
    "max pool ceil past the end": Case(lambda: conv(nn.MaxPool2d(2, 3, 1, ceil_mode=True)), (4, 4, 7)),
    "average pool": Case(lambda: conv(nn.AvgPool2d(2))),
    "average pool overlapping": Case(lambda: conv(nn.AvgPool2d(3, 1))),
    "average pool padded": Case(lambda: conv(nn.AvgPool2d(3, 2, 1))),
    "average pool without pads": Case(lambda: conv(nn.AvgPool2d(3, 2, 1, count_include_pad=False))),
    "average pool ceil": Case(lambda: conv(nn.AvgPool2d(5, 3, ceil_mode=True))),
    "average pool ceil past the end": Case(lambda: conv(nn.AvgPool2d(2, 3, 1, ceil_mode=True)), (4, 4, 7)),
    "average pool 1d": Case(lambda: conv1d(nn.AvgPool1d(3, 2, 1)), SIGNAL),
    "adaptive average dividing": Case(lambda: conv(nn.AdaptiveAvgPool2d(3))),
    "adaptive average": Case(lambda: conv(nn.AdaptiveAvgPool2d((5, None)))),
    "adaptive average 1d": Case(lambda: conv1d(nn.AdaptiveAvgPool1d(7)), SIGNAL),
    "adaptive max": Case(lambda: conv(nn.AdaptiveMaxPool2d(4))),
    # normalisation
    "group norm": Case(lambda: conv(nn.GroupNorm(2, 8), nn.ReLU())),
    "group norm, plain": Case(lambda: conv(nn.GroupNorm(4, 8, affine=False))),
    "layer norm": Case(lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 8)), SIGNAL),
    "layer norm of maps": Case(lambda: conv(nn.LayerNorm((8, 12, 12)))),
    "layer norm without bias": Case(lambda: conv(nn.LayerNorm(12, bias=False))),
    "rms norm": Case(lambda: nn.Sequential(nn.Linear(32, 8), nn.RMSNorm(8)), SIGNAL),
    # structure
    "residual": Case(lambda: nn.Sequential(residual(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(1, 4)), nn.ReLU())),
    "concat": Case(
        lambda: Of(lambda x, a, b: torch.cat([a(x), b(x)], 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 1))
    ),
    "strided slices": Case(lambda: Of(lambda x, m: m(x)[..., ::2] * m(x)[..., 1::2].sigmoid(), conv1d()), SIGNAL),
    "negative slices": Case(lambda: Of(lambda x, m: m(x)[:, -3:, 1:-2], conv())),
    "one token": Case(lambda: Of(lambda x, m: m(x)[:, -1], nn.Linear(32, 6)), SIGNAL),
    "shuffles": Case(lambda: conv(nn.ChannelShuffle(2), nn.PixelShuffle(2), nn.ZeroPad2d(1))),
    "repeat": Case(lambda: Of(lambda x, m: m(x).repeat(1, 2), nn.Linear(9, 6)), (9,)),
    "largest of tokens": Case(lambda: Of(lambda x, m: m(x).amax(1), nn.Linear(32, 6)), SIGNAL),
    "masked": Case(lambda: Of(lambda x, m: m(x).masked_fill(x[:, :6] > 0, -1.0), nn.Linear(9, 6)), (9,)),
    "one weight twice": Case(lambda: Of(lambda x, m: m(torch.tanh(m(x))), nn.Linear(9, 9)), (9,)),
    # attention and tokens
    "attention": Case(
        lambda: nn.Sequential(nn.Linear(32, 16), residual(attention(16, 4)), nn.LayerNorm(16), nn.Linear(16, 8)), SIGNAL
    ),
    "causal attention": Case(lambda: Of(causal, nn.Linear(32, 32)), SIGNAL),
    "transformer": Case(lambda: nn.Sequential(nn.Linear(32, 16), encoder(activation="gelu", norm_first=True)), SIGNAL),
    "embedding": Case(lambda: nn.Sequential(nn.Embedding(20, 8), nn.Flatten()), TOKENS, tokens=True),
    "embedding with padding": Case(
        lambda: nn.Sequential(nn.Embedding(20, 16, padding_idx=0), encoder()), TOKENS, tokens=True
    ),
    "token ids as numbers": Case(
        lambda: Of(lambda x, m: m(x) * (x.clamp(min=2.5) / 3)[..., None], nn.Embedding(20, 8)), TOKENS, tokens=True
    ),
    # dropout
    "dropout off": Case(lambda: conv(nn.ReLU(), nn.Dropout(0.3))),
    "dropout": Case(lambda: conv(nn.ReLU(), nn.Dropout(0.3), nn.Dropout2d(0.2)), dropout=True),
    "dropout of a transformer": Case(lambda: nn.Sequential(nn.Linear(32, 16), encoder()), SIGNAL, dropout=True),
}
