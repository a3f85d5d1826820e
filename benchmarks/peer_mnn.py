"""A worker of the memory audit: MNN 3.6.1. See `audit_protocol` for what is measured.

MNN gives gradients of any expression (`optim.Grad().grad`), so accumulation and checkpointing can be built on it.
Settings: `segments`, into how many parts the blocks are divided where activations are computed again; `own_adam`, MNN's
`ADAM.step` (only for whole batches without segments; its weight decay is L2) in place of our AdamW.

MNN evaluates lazily: reading each gradient by itself would run the network anew for each, so all are read as one
vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import MNN
import MNN.expr as F
import MNN.nn
import MNN.optim
import numpy as np
from audit_protocol import (
    BETA1,
    BETA2,
    EPSILON,
    LEARNING_RATE,
    MEZO_EPSILON,
    MEZO_RATE,
    WEIGHT_DECAY,
    Array,
    Job,
    map_shape,
    micro_batches,
    serve,
    small,
)
from mnn_network import Operator, Var, constant, cross_entropy, plain, through

# Numbers that an update works on at once.
_PIECE = 65536


class Trainer:
    """The network as expressions, with its optimiser."""

    def __init__(self, job: Job) -> None:
        self.job, network = job, job.network_file()
        self.classes = network["classes"]
        self.parts = divided(network["blocks"], int(job.settings.get("segments", 1)))
        self.weights = load_weights(job, network["blocks"])
        # What `read` gives is the tensor itself: weights are changed in place.
        self.values = {name: weight.read().reshape(-1) for name, weight in self.weights.items()}
        self.updates, self.module = 0, None
        if job.settings.get("own_adam"):
            self.module = _Parameters(list(self.weights.values()))
            self.optimizer = MNN.optim.ADAM(
                self.module, LEARNING_RATE, BETA1, BETA2, WEIGHT_DECAY, EPSILON, MNN.optim.Regularization_Method.L2
            )
        elif job.method != "mezo":
            self.moments = [{name: np.zeros_like(one) for name, one in self.values.items()} for _ in range(2)]
            self.gradients = {name: np.zeros_like(one) for name, one in self.values.items()}

    def parameters(self) -> list[Callable[[], Array]]:
        """Readers of small parameters."""
        return [lambda one=one: copied(one) for one in self.weights.values() if small(one.shape)]  # type: ignore[misc]

    def update(self, x: Array, y: Array) -> float:
        """One update."""
        self.updates += 1
        x = x.reshape(len(x), *map_shape(x.shape[1:]))
        parts = [(x[part], y[part]) for part in micro_batches(self.job)]
        if self.job.method == "mezo":
            return self.mezo(parts)
        if self.module is not None:
            return self.own_step(*parts[0])
        for gradient in self.gradients.values():
            gradient.fill(0)
        loss = sum(self.accumulate(*part) for part in parts)
        self.adamw()
        return loss

    def accumulate(self, x: Array, y: Array) -> float:
        """Add these rows' gradients; their part of the mean loss."""
        inputs, rows = [x], x
        for part in self.parts[:-1]:
            inputs.append(rows := copied(plain(through(part, constant(rows), self.weights))))
        loss, above = 0.0, None
        for number in reversed(range(len(self.parts))):
            below = constant(inputs.pop())
            output = through(self.parts[number], below, self.weights)
            goal = cross_entropy(output, self.one_hot(y), self.job.batch) if above is None else plain(output)
            found, above = self.backward(self.parts[number], goal, above, below if number else None)
            loss = found if number == len(self.parts) - 1 else loss
        return loss

    def backward(
        self, part: Sequence[Operator], goal: Var, above: Array | None, below: Var | None
    ) -> tuple[float, Array | None]:
        """Gradients of a part from that of its output, added up; the goal's first number, and the input's gradient."""
        names = names_of(part)
        asked = [self.weights[name] for name in names]
        if below is not None:
            below.fix_as_trainable()
            asked.append(below)
        start = F.const([1.0], [], F.NCHW) if above is None else constant(above)
        found, gradients = MNN.optim.Grad().grad([goal], [start], asked)
        if len(found) != len(asked):
            raise SystemExit(f"MNN has gradients of {len(found)} of {len(asked)} tensors")
        tail = [] if above is not None else [F.reshape(goal, [-1])]
        vector = F.concat([F.reshape(plain(one), [-1]) for one in gradients] + tail, 0)
        numbers, place = vector.read(), 0
        for name in names:
            size = self.values[name].size
            self.gradients[name] += numbers[place : place + size]
            place += size
        passed = None if below is None else np.array(numbers[place : place + below.size]).reshape(below.shape)
        return float(numbers[-1]), passed

    def one_hot(self, y: Array) -> Var:
        """Labels as rows of zeros and a one."""
        return constant(np.eye(self.classes, dtype=np.float32)[y])

    def adamw(self) -> None:
        """One step of AdamW, in pieces so that its temporaries are small."""
        step = LEARNING_RATE / (1 - BETA1**self.updates)
        root = math.sqrt(1 - BETA2**self.updates)
        for name, value in self.values.items():
            for start in range(0, value.size, _PIECE):
                piece = slice(start, start + _PIECE)
                gradient = self.gradients[name][piece]
                mean, square = (moments[name][piece] for moments in self.moments)
                mean += (1 - BETA1) * (gradient - mean)
                square += (1 - BETA2) * (gradient * gradient - square)
                value[piece] *= 1 - LEARNING_RATE * WEIGHT_DECAY
                value[piece] -= step * mean / (np.sqrt(square) / root + EPSILON)

    def own_step(self, x: Array, y: Array) -> float:
        """MNN's own step, which differentiates, updates and tells whether it could."""
        loss = cross_entropy(through(self.parts[0], constant(x), self.weights), self.one_hot(y), self.job.batch)
        if not self.optimizer.step(loss):
            raise SystemExit("MNN's step trained nothing")
        return float(loss.read())

    def mezo(self, parts: Sequence[tuple[Array, Array]]) -> float:
        """Two forward passes, at weights plus and minus one draw of noise, and a step along that noise."""
        self.add_noise(MEZO_EPSILON)
        above = sum(self.forward(*part) for part in parts)
        self.add_noise(-2 * MEZO_EPSILON)
        below = sum(self.forward(*part) for part in parts)
        self.add_noise(MEZO_EPSILON - MEZO_RATE * (above - below) / (2 * MEZO_EPSILON))
        return (above + below) / 2

    def forward(self, x: Array, y: Array) -> float:
        """These rows' part of the mean loss."""
        rows = constant(x)
        for part in self.parts:
            rows = through(part, rows, self.weights)
        return float(cross_entropy(rows, self.one_hot(y), self.job.batch).read())

    def add_noise(self, scale: float) -> None:
        """Add this update's noise, drawn anew from its seed in pieces."""
        draw = np.random.default_rng(self.updates)
        for value in self.values.values():
            for start in range(0, value.size, _PIECE):
                piece = value[start : start + _PIECE]
                piece += np.float32(scale) * draw.standard_normal(piece.size, dtype=np.float32)


class _Parameters(MNN.nn.Module):  # type: ignore[misc]
    """What MNN's optimiser asks of a module: its parameters."""

    def __init__(self, weights: Sequence[Var]) -> None:
        super().__init__()
        for weight in weights:
            self._add_parameter(weight)


def copied(one: Var) -> Array:
    """An expression's numbers. What `read` gives must not outlive the expression, whose memory it is."""
    return np.array(one.read())


def divided(blocks: Sequence[Sequence[Operator]], segments: int) -> list[list[Operator]]:
    """The operators of the blocks in at most so many parts."""
    size = math.ceil(len(blocks) / segments)
    return [list(chain(*blocks[start : start + size])) for start in range(0, len(blocks), size)]


def names_of(operators: Sequence[Operator]) -> list[str]:
    """The parameters of some operators."""
    return [operator[key] for operator in operators for key in ("weight", "bias", "alpha") if key in operator]


def load_weights(job: Job, blocks: Sequence[Sequence[Operator]]) -> dict[str, Any]:
    """Parameters by name; kernels of signals as kernels of height 1, a scalar as one number."""
    found = {}
    with np.load(f"{job.folder}/weights.npz") as stored:
        for name in (name for block in blocks for name in names_of(block)):
            array = stored[name].reshape(1) if stored[name].ndim == 0 else stored[name]
            array = array[:, :, None] if array.ndim == 3 else array
            found[name] = constant(np.ascontiguousarray(array))
            found[name].fix_as_trainable()
    return found


def set_up(threads: int) -> str:
    """Evaluate lazily on so many threads; MNN's version."""
    F.lazy_eval(True)
    F.set_lazy_mode(0)
    F.set_global_executor_config(0, 0, threads)  # CPU, normal precision
    return str(MNN.version())


if __name__ == "__main__":
    serve(set_up(1), Trainer)
