"""Checkpointing rewrites a graph: the same results, fewer bytes at once, and really computed twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from layer_cases import ADAMW, CLASSES
from torch import nn

from edgeff.errors import ExportError
from edgeff.export.check import check_block, check_standard, make_trial, run_in_place, session
from edgeff.export.checkpointing import can_be_checkpointed, checkpointed, peak_bytes
from edgeff.export.graphs import BlockGraphs, compile_block, in_order
from edgeff.export.inplace import in_place_pairs, unsafe_readers
from edgeff.model import LocalBlock, LocalNetwork

ROWS = 8


def layer(incoming: int, *more: nn.Module) -> LocalBlock:
    return LocalBlock(nn.Sequential(nn.Conv2d(incoming, 6, 3, padding=1), nn.ReLU(), *more))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


NETWORKS = {
    "plain": lambda: [layer(3), *(layer(6) for _ in range(7))],
    "pooled": lambda: [
        layer(3),
        *(layer(6) for _ in range(6)),
        layer(6, nn.MaxPool2d(2)),
        layer(6),
        layer(6, nn.MaxPool2d(2)),
        layer(6),
    ],
    # The scale of a norm is read again where activations are made again, after its own update could have been made.
    "normalised": lambda: [
        LocalBlock(nn.Sequential(nn.Conv2d(incoming, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU()))
        for incoming in (3, 6, 6, 6)
    ],
    "residual": lambda: [layer(3), LocalBlock(Residual()), LocalBlock(Residual()), layer(6)],
}


def whole(name: str) -> tuple[nn.Module, BlockGraphs]:
    torch.manual_seed(0)
    network = LocalNetwork(NETWORKS[name](), input_shape=(3, 16, 16), classes=CLASSES)
    block = network.regroup("whole", "last").sequence[0]
    return block, compile_block(block, optimizer_spec=ADAMW, input_dtype="float32", last=True, ordered=False)


def again_in_order(graphs: BlockGraphs, kind: Any) -> onnx.ModelProto:
    return in_order({kind: checkpointed(graphs.models[kind], ROWS)}, block="network")[kind]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["accumulate", "step"])
def test_the_results_are_the_same_with_fewer_bytes_alive(name: str, kind: str) -> None:
    block, graphs = whole(name)
    plain = in_order({kind: graphs.models[kind]}, block="network")[kind]  # type: ignore[index,dict-item]
    again = again_in_order(graphs, kind)
    trial = make_trial(block, graphs, ADAMW, "float32", CLASSES, ROWS, seed=0)
    expected = run_in_place(plain, session(plain), trial.feeds)
    found = run_in_place(again, session(again), trial.feeds)
    assert list(found) == list(expected)
    for output, value in expected.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6 * np.abs(value).max(), err_msg=output)
    assert peak_bytes(again, ROWS) < 0.9 * peak_bytes(plain, ROWS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpointed_network_passes_every_check_of_an_export(name: str) -> None:
    block, graphs = whole(name)
    others = {kind: model for kind, model in graphs.models.items() if kind in ("apply", "forward")}
    models = in_order(others, block="network")
    models |= {kind: again_in_order(graphs, kind) for kind in ("accumulate", "step")}
    for kind, model in models.items():
        onnx.checker.check_model(model, full_check=True)
        check_standard(model, block="network", kind=kind)
        assert not any(unsafe_readers(model, source, target) for source, target in in_place_pairs(model))
    rewritten = BlockGraphs(models, graphs.parameters, graphs.buffers)
    assert check_block(block, rewritten, spec=ADAMW, input_dtype="float32", classes=CLASSES).error <= 1e-5


def test_onnxruntime_does_not_merge_the_second_computation_with_the_first(tmp_path: Path) -> None:
    _, graphs = whole("plain")
    again = again_in_order(graphs, "accumulate")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(again.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    convolutions = optimized["Conv"] + optimized["FusedConv"]
    # Eight layers; all but those of the last segment, and what leads up to a cut, run twice.
    assert 8 + 4 <= convolutions < 16


@pytest.mark.slow
def test_a_longer_network_holds_about_the_root_of_its_length_more() -> None:
    def peak(depth: int, again: bool) -> int:
        torch.manual_seed(0)
        blocks = [layer(3), *(layer(6) for _ in range(depth - 1))]
        network = LocalNetwork(blocks, input_shape=(3, 16, 16), classes=CLASSES).regroup("whole", "last")
        graphs = compile_block(
            network.sequence[0], optimizer_spec=ADAMW, input_dtype="float32", last=True, ordered=False
        )
        if again:
            return peak_bytes(again_in_order(graphs, "accumulate"), ROWS)
        return peak_bytes(in_order({"accumulate": graphs.models["accumulate"]}, block="network")["accumulate"], ROWS)

    assert peak(16, again=False) > 3 * peak(4, again=False)
    assert peak(16, again=True) < 2.5 * peak(4, again=True)


def test_a_network_without_a_place_to_cut_is_refused() -> None:
    torch.manual_seed(0)
    network = LocalNetwork([LocalBlock(nn.Flatten())], input_shape=(4,), classes=CLASSES)
    block = network.sequence[0]
    model = compile_block(block, optimizer_spec=ADAMW, input_dtype="float32", last=True, ordered=False).models[
        "accumulate"
    ]
    uncut = onnx.ModelProto()
    uncut.CopyFrom(model)
    loss = next(node for node in uncut.graph.node if "loss" in node.output)
    keep = [node for node in uncut.graph.node if node.output[0] == loss.output[0]]
    del uncut.graph.node[:]
    uncut.graph.node.extend(keep)
    assert not can_be_checkpointed(uncut)
    with pytest.raises(ExportError, match="nothing to checkpoint"):
        checkpointed(uncut)
