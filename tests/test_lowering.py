"""Every kind of layer: its graphs against torch, forward and gradient, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layer_cases import (
    ADAMW,
    CASES,
    CLASSES,
    IMAGE,
    SGD,
    SIGNAL,
    TOKENS,
    Of,
    block_of,
    compiled,
    conv,
    errors,
    rows_for,
)
from torch import nn

from edgeff.errors import ExportError, ModelError
from edgeff.export.check import TOLERANCE, check_block
from edgeff.export.ir import Rows
from edgeff.export.lowering import dim_of, dtype_of
from edgeff.export.tracing import TRACED_ROWS
from edgeff.model import LocalBlock, LocalNetwork, Losses


@pytest.mark.parametrize("name", CASES)
def test_graphs_of_a_layer_agree_with_torch(name: str) -> None:
    case, spec = CASES[name], (ADAMW, SGD)[list(CASES).index(name) % 2]
    block = case.block().eval()
    graphs = compiled(block, spec, input_dtype=case.input_dtype, dropout=case.dropout)
    # By the exporter's own check: bound in place, at two micro-batches, a batch in two parts.
    assert 0.0 < check_block(block, graphs, spec=spec, input_dtype=case.input_dtype, classes=CLASSES).error <= TOLERANCE
    # And once more without it.
    found = errors(block, graphs, spec, rows_for(case, 6), dropout=case.dropout)
    trained = {f"{kind}.{key}" for key, _ in block.named_parameters() for kind in ("gradient", "parameter")}
    assert {"loss", "handover", *(f"new.{key}" for key in trained)} <= {key.split(" ")[1] for key in found}
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("losses", ["last", "all"])
def test_a_whole_network_as_one_block_agrees_with_torch(losses: Losses) -> None:
    torch.manual_seed(0)
    blocks = [LocalBlock(conv(nn.ReLU())), LocalBlock(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))]
    network = LocalNetwork(blocks, input_shape=IMAGE, classes=CLASSES).regroup("whole", losses)
    (block,) = network.sequence
    graphs = compiled(block)
    assert any("layers.0.transform" in name for name in graphs.parameters)  # the gradient reaches the first layer
    assert check_block(block, graphs, spec=ADAMW, input_dtype="float32", classes=CLASSES).error <= TOLERANCE
    assert max(errors(block, graphs, ADAMW, rows_for(CASES["conv"], 6)).values()) <= TOLERANCE


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "transposed convolution": (
        lambda: nn.ConvTranspose2d(4, 8, 3),
        IMAGE,
        "block `block1`: operator `aten.convolution` cannot be lowered: transposed convolutions are not supported",
    ),
    "instance norm over the batch": (
        lambda: conv(nn.InstanceNorm2d(8)),
        IMAGE,
        "block `block1` uses operator `aten.native_batch_norm`, which has no ONNX translation",
    ),
    "instance norm with weights": (
        lambda: conv(nn.InstanceNorm2d(8, affine=True)),
        IMAGE,
        "block `block1`: operator `aten.repeat` cannot be lowered: a tensor cannot be repeated once per row",
    ),
    "nearest upsampling": (
        lambda: conv(nn.Upsample(scale_factor=2)),
        IMAGE,
        "block `block1` uses operator `aten.index.Tensor`, which has no ONNX translation",
    ),
    "bilinear upsampling": (
        lambda: conv(nn.Upsample(scale_factor=2, mode="bilinear")),
        IMAGE,
        "block `block1` uses operator `aten.upsample_bilinear2d`, which has no ONNX translation",
    ),
    "divisor of its own": (
        lambda: conv(nn.AvgPool2d(2, divisor_override=3)),
        IMAGE,
        "block `block1`: operator `aten.avg_pool2d` cannot be lowered: "
        "average pooling with `divisor_override` is not supported",
    ),
    "adaptive max that does not divide": (
        lambda: conv(nn.AdaptiveMaxPool2d(5)),
        IMAGE,
        "block `block1`: operator `aten.adaptive_max_pool2d` cannot be lowered: "
        "adaptive max pooling needs an output size that divides the input's",
    ),
    "wide dilated padding": (
        lambda: conv(nn.MaxPool2d(2, 1, padding=1, dilation=3, ceil_mode=True), nn.MaxPool2d(2, 4, 1, 4, False, True)),
        (4, 12, 11),
        "block `block1`: operator `aten.max_pool2d_with_indices` cannot be lowered: "
        "a dilated window that stands mostly outside the map is not supported",
    ),
    "half precision inside": (
        lambda: Of(lambda x, m: m(x).half().float(), nn.Linear(9, 6)),
        (9,),
        "block `block1`: operator `aten._to_copy` cannot be lowered: dtype torch.float16 is not supported",
    ),
    "recurrent layer": (
        lambda: Of(lambda x, m: m(x)[0], nn.LSTM(32, 6, batch_first=True)),
        SIGNAL,
        "block `block1` uses operator `aten.mkldnn_rnn_layer`, which has no ONNX translation",
    ),
    "a part changed in place": (
        lambda: conv(padding_mode="circular"),
        IMAGE,
        "block `block1` uses operator `aten.slice_scatter`, which has no ONNX translation",
    ),
    "order of values": (
        lambda: Of(lambda x, m: m(x).sort(1).values, nn.Linear(9, 6)),
        (9,),
        "block `block1` uses operator `aten.sort`, which has no ONNX translation",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lowered_is_refused_by_block_and_operator(name: str) -> None:
    make, shape, message = REFUSED[name]
    block = block_of(make(), shape)
    with pytest.raises(ExportError) as raised:
        compiled(block)
    assert str(raised.value) == message
    assert raised.value.hint in (
        "replace the layer, or leave its block out of training",
        "`docs/guide.md` lists the layers that can be trained on a device",
    )


def test_an_embedding_that_scales_by_frequency_is_refused() -> None:
    layers = nn.Sequential(nn.Embedding(20, 4, scale_grad_by_freq=True), nn.Flatten())
    with pytest.raises(ExportError, match="an embedding with `scale_grad_by_freq` is not supported"):
        compiled(block_of(layers, TOKENS, input_dtype="int64"), input_dtype="int64")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_batch_norm_is_refused_where_the_network_is_built(norm: type[nn.Module]) -> None:
    with pytest.raises(ModelError, match=f"`{norm.__name__}`") as raised:
        block_of(conv(norm(8)), IMAGE)
    assert "needs statistics of a whole batch, which breaks batch size 1 and micro-batches" in str(raised.value)
    assert "GroupNorm" in raised.value.hint


def test_a_block_without_parameters_is_refused() -> None:
    block = block_of(nn.ReLU(), (9,), projection="fixed", temperature=1.0)
    with pytest.raises(ExportError) as raised:
        compiled(block)
    assert str(raised.value) == "block `block1` has no parameters to train"
    assert raised.value.hint == "join it with its neighbour"


def test_parameters_of_another_dtype_are_refused() -> None:
    block = block_of(nn.Linear(9, 6), (9,))
    block.transform.double()
    with pytest.raises(ExportError) as raised:
        compiled(block)
    assert str(raised.value) == "block `block1`: parameter `transform.weight` is torch.float64, needed torch.float32"


@pytest.mark.parametrize("name", ["max pool ceil", "max pool ceil past the end", "average pool ceil past the end"])
def test_no_graph_leaves_it_to_onnxruntime_how_many_windows_there_are(name: str) -> None:
    for model in compiled(CASES[name].block()).models.values():
        assert "ceil_mode" not in {attribute.name for node in model.graph.node for attribute in node.attribute}


def test_a_dimension_is_a_number_or_a_multiple_of_the_rows() -> None:
    assert dim_of(TRACED_ROWS) == Rows(1)
    assert dim_of(12 * TRACED_ROWS) == Rows(12)
    assert dim_of(0) == 0
    assert dim_of(TRACED_ROWS + 1) == TRACED_ROWS + 1


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match=r"dtype torch\.complex64 is not supported"):
        dtype_of(torch.complex64)
