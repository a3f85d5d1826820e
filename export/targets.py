"""Forms of a graph that an execution provider takes where it would leave the plain one to the CPU, or gets it wrong.

The weights of a graph that trains are inputs. Providers ask for more than that: CoreML takes such a convolution only
without a bias that changes, and no Gemm whose matrix changes, but any matrix product. WebGPU (`onnxruntime-ep-webgpu`
0.4.0) computes some convolutions of few channels wrongly, which a matrix product over the unfolded input avoids.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TypeVar

import onnx
from onnx import helper

from edgeff.export.ir import Dim, Rows
from edgeff.export.rewriting import Rewriting, Rule, attributes_of
from edgeff.providers import CPU

Result = TypeVar("Result")
Making = Generator[onnx.NodeProto, None, Result]


def for_target(model: onnx.ModelProto, target: str) -> onnx.ModelProto:
    """A graph in the forms of a target.

    Args:
        model: With `value_info` for its inner tensors.
        target: A name of `TARGETS`.
    """
    rules = TARGETS[target]
    return Rewriting(model, "target").apply(rules) if rules else model


def _unfolded(rewriting: Rewriting, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A convolution as one matrix product with its input unfolded: im2col."""
    attributes = attributes_of(node)
    taken, weight, out = (rewriting.shape(name) for name in (*node.input[:2], node.output[0]))
    fixed = all(isinstance(size, int) for size in (*weight, *taken[1:]))
    if attributes.get("group", 1) != 1 or not fixed or not isinstance(taken[0], Rows):
        yield node
        return
    filters, channels, *kernel = (int(str(size)) for size in weight)
    places = [int(str(size)) for size in out[2:]]
    padded = yield from _padded(rewriting, node.input[0], attributes.get("pads", [0] * 2 * len(kernel)))
    taps = yield from _taps(rewriting, padded, attributes, kernel, [taken[0], channels, *places])
    length, rows = math.prod(places), taken[0]
    joined = taps[0]
    if len(taps) > 1:
        joined = rewriting.tensor([rows, channels * len(taps), *places])
        yield helper.make_node("Concat", taps, [joined], name=joined, axis=1)
    flat = rewriting.tensor([rows, channels * len(taps), length])
    yield _reshaped(rewriting, joined, flat, [-1, channels * len(taps), length])
    # Channels of one tap lie together, as they do in the unfolded input.
    turned = rewriting.tensor([filters, *kernel, channels])
    yield helper.make_node("Transpose", [node.input[1]], [turned], name=turned, perm=[0, *range(2, 2 + len(kernel)), 1])
    matrix = rewriting.tensor([filters, channels * len(taps)])
    yield _reshaped(rewriting, turned, matrix, [filters, channels * len(taps)])
    product = rewriting.tensor([rows, filters, length])
    yield helper.make_node("MatMul", [matrix, flat], [product], name=product)
    if len(node.input) > 2:
        bias, plain = rewriting.tensor([filters, 1]), product
        yield _reshaped(rewriting, node.input[2], bias, [filters, 1])
        product = rewriting.tensor([rows, filters, length])
        yield helper.make_node("Add", [plain, bias], [product], name=product)
    yield _reshaped(rewriting, product, node.output[0], [-1, filters, *places])


def _padded(rewriting: Rewriting, name: str, pads: Sequence[int]) -> Making[str]:
    """The input with zeros around it; returns its name."""
    if not any(pads):
        return name
    axes = len(pads) // 2
    shape = rewriting.shape(name)
    sizes = [int(str(size)) + before + after for size, before, after in zip(shape[2:], pads, pads[axes:], strict=False)]
    padded = rewriting.tensor([*shape[:2], *sizes])
    both = rewriting.constant([0, 0, *pads[:axes], 0, 0, *pads[axes:]], "int64")
    yield helper.make_node("Pad", [name, both], [padded], name=padded)
    return padded


def _taps(
    rewriting: Rewriting,
    name: str,
    attributes: Mapping[str, Sequence[int]],
    kernel: Sequence[int],
    shape: Sequence[Dim],
) -> Making[list[str]]:
    """What each number of a filter meets, for every place; returns the names."""
    strides = attributes.get("strides", [1] * len(kernel))
    dilations = attributes.get("dilations", [1] * len(kernel))
    axes = rewriting.constant(range(2, 2 + len(kernel)), "int64")
    steps = rewriting.constant(strides, "int64")
    found = []
    for tap in range(math.prod(kernel)):
        starts: list[int] = []
        rest = tap
        for size, dilation in zip(reversed(kernel), reversed(dilations), strict=True):
            rest, place = divmod(rest, size)
            starts.insert(0, place * dilation)
        ends = [
            start + (int(str(count)) - 1) * stride + 1
            for start, count, stride in zip(starts, shape[2:], strides, strict=True)
        ]
        found.append(rewriting.tensor(shape))
        bounds = [rewriting.constant(values, "int64") for values in (starts, ends)]
        yield helper.make_node("Slice", [name, *bounds, axes, steps], [found[-1]], name=found[-1])
    return found


def _reshaped(rewriting: Rewriting, name: str, out: str, shape: Sequence[int]) -> onnx.NodeProto:
    return helper.make_node("Reshape", [name, rewriting.constant(shape, "int64")], [out], name=out)


def _bias_apart(rewriting: Rewriting, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A convolution without bias, to which that is added."""
    if len(node.input) < 3:
        yield node
        return
    out = rewriting.shape(node.output[0])
    plain, bias = rewriting.tensor(out), rewriting.tensor([out[1], *([1] * (len(out) - 2))])
    without = onnx.NodeProto()
    without.CopyFrom(node)
    del without.input[2:]
    without.output[0] = plain
    yield without
    yield _reshaped(rewriting, node.input[2], bias, [-1, *([1] * (len(out) - 2))])
    yield helper.make_node("Add", [plain, bias], list(node.output), name=f"{node.name}_bias")


def _gemm_as_product(rewriting: Rewriting, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A Gemm as a matrix product, with what is scaled, turned and added apart."""
    attributes = attributes_of(node)
    factors = []
    for name, turned in zip(node.input[:2], (attributes.get("transA"), attributes.get("transB")), strict=True):
        if turned:
            first, second = rewriting.shape(name)
            factors.append(rewriting.tensor([second, first]))
            yield helper.make_node("Transpose", [name], [factors[-1]], name=factors[-1], perm=[1, 0])
        else:
            factors.append(name)
    shape = rewriting.shape(node.output[0])
    added = len(node.input) > 2 and node.input[2]
    result = rewriting.tensor(shape) if added or attributes.get("alpha", 1.0) != 1.0 else node.output[0]
    yield helper.make_node("MatMul", factors, [result], name=result)
    if attributes.get("alpha", 1.0) != 1.0:
        scaled = rewriting.tensor(shape) if added else node.output[0]
        factor = rewriting.constant(attributes["alpha"], "float32")
        yield helper.make_node("Mul", [result, factor], [scaled], name=scaled)
        result = scaled
    if added:
        summand, beta = node.input[2], attributes.get("beta", 1.0)
        if beta != 1.0:
            summand = rewriting.tensor(rewriting.shape(node.input[2]))
            yield helper.make_node("Mul", [node.input[2], rewriting.constant(beta, "float32")], [summand], name=summand)
        yield helper.make_node("Add", [result, summand], list(node.output), name=f"{node.name}_sum")


TARGETS: Mapping[str, Mapping[str, Rule]] = {
    CPU: {},
    "coreml": {"Conv": _bias_apart, "Gemm": _gemm_as_product},
    "webgpu": {"Conv": _unfolded},
}

__all__ = ["CPU", "TARGETS", "for_target"]
