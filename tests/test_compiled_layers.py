"""Every kind of layer that a device can train: its graphs against torch, and what is refused by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeff.errors import ExportError, ModelError
from edgeff.export.check import TOLERANCE, check_block, relative_error, run_in_place, session
from edgeff.export.graphs import BlockGraphs, compile_block
from edgeff.export.inplace import in_place_pairs, unsafe_readers
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec

SIGNAL, IMAGE, CLASSES = (6, 32), (4, 12, 12), 5


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Joined(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


class Gated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, ::2] * torch.sigmoid(x[:, :, 1::2])


class CentredOverTheBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def conv(channels: int = 8, *after: nn.Module, **options: object) -> nn.Sequential:
    settings_ = {"kernel_size": 3, "padding": 1, **options}
    return nn.Sequential(nn.Conv2d(4, channels, **settings_), *(after or (nn.ReLU(),)))  # type: ignore[arg-type]


LAYERS = {
    "conv": (lambda: conv(), IMAGE),
    "conv stride": (lambda: conv(stride=2), IMAGE),
    "conv uneven": (lambda: conv(8, nn.GELU("tanh"), kernel_size=(3, 5), stride=(2, 3), padding=(0, 1)), IMAGE),
    "conv dilation": (lambda: conv(8, nn.SiLU(), dilation=2, padding=2), IMAGE),
    "conv groups": (lambda: conv(8, nn.LeakyReLU(0.1), groups=2), IMAGE),
    "conv 1x1": (lambda: conv(8, nn.Tanh(), kernel_size=1, padding=0), IMAGE),
    "depthwise": (lambda: conv(4, nn.GELU(), nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), groups=4), IMAGE),
    "depthwise doubled": (lambda: conv(8, nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), groups=4, stride=2), IMAGE),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(6, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)), SIGNAL),
    "conv1d same": (lambda: nn.Sequential(nn.Conv1d(6, 8, 5, padding="same"), nn.ELU(), nn.AvgPool1d(3, 2, 1)), SIGNAL),
    "max pool": (lambda: conv(8, nn.ReLU(), nn.MaxPool2d(2)), IMAGE),
    "max pool overlapping": (lambda: conv(8, nn.MaxPool2d(3, 2, 1), nn.Hardswish()), IMAGE),
    "max pool ceil": (lambda: conv(8, nn.MaxPool2d(5, 5, ceil_mode=True), nn.Softplus()), IMAGE),
    "average pool": (lambda: conv(8, nn.AvgPool2d(2), nn.ReLU6()), IMAGE),
    "average pool padded": (lambda: conv(8, nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Mish()), IMAGE),
    "average pool ceil": (lambda: conv(8, nn.AvgPool2d(5, 3, ceil_mode=True), nn.ReLU()), IMAGE),
    "adaptive average": (lambda: conv(8, nn.AdaptiveAvgPool2d(5), nn.Sigmoid()), IMAGE),
    "adaptive average dividing": (lambda: conv(8, nn.AdaptiveAvgPool2d(3), nn.GELU()), IMAGE),
    "adaptive average 1d": (lambda: nn.Sequential(nn.Conv1d(6, 8, 3), nn.AdaptiveAvgPool1d(7), nn.SiLU()), SIGNAL),
    "adaptive max": (lambda: conv(8, nn.AdaptiveMaxPool2d(4), nn.Tanh()), IMAGE),
    "linear and layer norm": (
        lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 32), nn.ReLU(), nn.LayerNorm(32)),
        SIGNAL,
    ),
    "residual": (
        lambda: nn.Sequential(
            Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.ReLU())), nn.ReLU()
        ),
        IMAGE,
    ),
    "concat": (lambda: Joined(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 1)), IMAGE),
    "attention": (lambda: nn.Sequential(nn.Linear(32, 16), Residual(Attention(16, 4)), nn.LayerNorm(16)), SIGNAL),
    "strided slices": (lambda: nn.Sequential(nn.Conv1d(6, 8, 3, padding=1), Gated()), SIGNAL),
    "prelu": (lambda: conv(8, nn.PReLU(8)), IMAGE),
    "dropout": (lambda: conv(8, nn.ReLU(), nn.Dropout(0.3), nn.Dropout2d(0.2)), IMAGE),
}


def built(transform: nn.Module, shape: tuple[int, ...], tokens: bool = False) -> nn.Module:
    torch.manual_seed(0)
    kind = {"input_dtype": "int64"} if tokens else {}
    return LocalNetwork([LocalBlock(transform)], input_shape=shape, classes=CLASSES, **kind).blocks[0]  # type: ignore[arg-type, no-any-return]


def checked(block: nn.Module, kind: str, *, dropout: bool = False, tokens: bool = False) -> BlockGraphs:
    spec = optimizer_spec(kind)
    dtype = "int64" if tokens else "float32"
    graphs = compile_block(block, optimizer_spec=spec, input_dtype=dtype, last=False, dropout=dropout)
    assert check_block(block, graphs, spec=spec, input_dtype=dtype, classes=CLASSES) <= TOLERANCE
    return graphs


@pytest.mark.parametrize("name", LAYERS)
def test_graphs_of_a_layer_agree_with_torch(name: str) -> None:
    make, shape = LAYERS[name]
    block = built(make(), shape)
    graphs = checked(block, "adamw" if len(name) % 2 else "sgd", dropout=name == "dropout")
    for model in graphs.models.values():
        assert all(not unsafe_readers(model, source, target) for source, target in in_place_pairs(model))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_embedding_and_transformer_layer_over_tokens_agree_with_torch() -> None:
    layers = nn.Sequential(
        nn.Embedding(20, 16, padding_idx=0),
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True),
    )
    checked(built(layers, (7,), tokens=True), "adamw", tokens=True)


@pytest.mark.parametrize("name", ["conv stride", "depthwise", "max pool overlapping", "attention", "residual"])
def test_accumulated_gradients_are_those_of_backward(name: str) -> None:
    """Independent of `check`: loss.backward() on the module itself."""
    make, shape = LAYERS[name]
    block = built(make(), shape).eval()
    graphs = compile_block(block, optimizer_spec=optimizer_spec("sgd"), input_dtype="float32", last=True)
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, *shape, generator=draw), torch.randint(0, CLASSES, (6,), generator=draw)
    _, scores = block(x)
    loss = torch.nn.functional.cross_entropy(scores[0], y)
    loss.backward()
    feeds = {"x": x.numpy(), "y": y.numpy(), "row_weight": np.full(6, 1 / 6, np.float32)}
    feeds |= {f"parameter.{n}": p.detach().numpy() for n, p in block.named_parameters()}
    feeds |= {f"buffer.{n}": b.numpy() for n, b in block.named_buffers()}
    feeds |= {f"gradient.{n}": np.zeros(p.shape, np.float32) for n, p in block.named_parameters()}
    found = run_in_place(graphs.models["accumulate"], session(graphs.models["accumulate"]), feeds)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for n, p in block.named_parameters():
        assert p.grad is not None
        assert relative_error(found[f"new.gradient.{n}"], p.grad.numpy()) <= 1e-5, n


@pytest.mark.parametrize("losses", ["last", "all"])
def test_a_whole_network_as_one_block_agrees_with_torch(losses: str) -> None:
    blocks = [LocalBlock(conv()), LocalBlock(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))]
    network = LocalNetwork(blocks, input_shape=IMAGE, classes=CLASSES).regroup("whole", losses)  # type: ignore[arg-type]
    assert len(network.blocks) == 1
    checked(network.blocks[0], "adamw")


def test_a_barrier_orders_a_reader_that_is_no_ancestor_and_without_it_the_reader_is_found() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 6, 3), nn.PReLU(6))  # the slope is read again, reshaped, on the way back
    graphs = checked(built(layers, IMAGE), "sgd")
    model = graphs.models["step"]
    held = [node for node in model.graph.node if node.op_type == "Where" and node.output[0].endswith(".held")]
    assert held
    target = held[0].output[0].removesuffix(".held")
    (writer,) = (node for node in model.graph.node if target in node.output)
    writer.input[1] = held[0].input[1]  # as if there were no barrier
    assert unsafe_readers(model, target.removeprefix("new."), target)


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        (
            lambda: nn.ConvTranspose2d(4, 8, 3),
            IMAGE,
            "block `block1`: operator `aten.convolution` cannot be lowered: transposed convolutions are not supported",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.Upsample(scale_factor=2)),
            IMAGE,
            "block `block1` uses operator `aten.index.Tensor`, which has no ONNX translation",
        ),
    ],
)
def test_what_cannot_be_lowered_is_refused_by_block_and_operator(
    layers: object, shape: tuple[int, ...], message: str
) -> None:
    block = built(layers(), shape)  # type: ignore[operator]
    with pytest.raises(ExportError) as raised:
        compile_block(block, optimizer_spec=optimizer_spec("sgd"), input_dtype="float32", last=True)
    assert str(raised.value) == message
    assert raised.value.hint


def test_batch_norm_is_refused_with_the_reason_and_a_hint_at_group_norm() -> None:
    with pytest.raises(ModelError, match="BatchNorm") as raised:
        built(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)), IMAGE)
    assert "GroupNorm" in raised.value.hint


def test_a_forward_that_looks_at_other_rows_of_its_batch_is_refused() -> None:
    with warnings.catch_warnings(), pytest.raises((ExportError, ModelError)):
        block = built(nn.Sequential(CentredOverTheBatch(), nn.Conv2d(4, 8, 3)), IMAGE)
        checked(block, "sgd")


def test_a_wrong_graph_is_found_and_named() -> None:
    block = built(conv(), IMAGE)
    spec = optimizer_spec("sgd")
    graphs = compile_block(block, optimizer_spec=spec, input_dtype="float32", last=False)
    (relu,) = (node for node in graphs.models["forward"].graph.node if node.op_type == "Relu")
    relu.op_type = "Tanh"
    with pytest.raises(ExportError, match=r"block `block1`: output `\w+` of graph `forward` differs from torch by"):
        check_block(block, graphs, spec=spec, input_dtype="float32", classes=CLASSES)


ACTIVATIONS = [nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Tanh]


@st.composite
def random_blocks(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...]]:
    """One to three layers with random settings that fit a random map."""
    channels, side = draw(st.integers(1, 4)) * 2, draw(st.integers(6, 11))
    shape = (channels, side, side)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        out = draw(st.integers(1, 4)) * 2
        groups = draw(st.sampled_from([1, 2, channels]))
        out = out * groups if out % groups else out
        kernel, stride = draw(st.sampled_from([1, 3])), draw(st.integers(1, 2))
        layers.append(nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, groups=groups))
        channels, side = out, (side - 1) // stride + 1
        # A group of few numbers has a variance near zero, and float32 itself then loses its digits, in torch too.
        if channels // 2 * side * side >= 32 and draw(st.booleans()):
            layers.append(nn.GroupNorm(draw(st.sampled_from([1, 2])), channels))
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
        pool = draw(st.sampled_from(["none", "max", "average", "overlapping", "adaptive"]))
        if pool != "none" and side >= 4:
            layers.append(
                {
                    "max": nn.MaxPool2d(2),
                    "average": nn.AvgPool2d(2),
                    "overlapping": nn.MaxPool2d(3, 2, 1),
                    "adaptive": nn.AdaptiveAvgPool2d(3),
                }[pool]
            )
            side = {"max": side // 2, "average": side // 2, "overlapping": (side - 1) // 2 + 1, "adaptive": 3}[pool]
    return nn.Sequential(*layers), shape


@given(random_blocks(), st.sampled_from(["adamw", "sgd"]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_random_blocks_agree_with_torch(drawn: tuple[nn.Sequential, tuple[int, ...]], kind: str) -> None:
    layers, shape = drawn
    checked(built(layers, shape), kind)
