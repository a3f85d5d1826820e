"""A worker of the memory audit: onnxruntime-training 1.19.2. See `audit_protocol` for what is measured.

It starts from the files of `ort_artifacts`. Without `lazy_reset_grad` its gradients add up, which is accumulation.
Settings: `arena`, onnxruntime's own allocator; `memory_order`, its node order for memory. PyTorch stays outside.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from audit_protocol import LEARNING_RATE, Array, Job, map_shape, micro_batches, serve, small
from torch_stub import install

install()
import onnxruntime  # noqa: E402
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402


class Trainer:
    """The network as one graph, with its optimiser."""

    def __init__(self, job: Job) -> None:
        self.job = job
        folder = Path(job.folder) / f"ort-{job.micro_batch}"
        options = session_options(
            bool(job.settings.get("arena")), bool(job.settings.get("memory_order")), threads=job.threads
        )
        self.state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
        self.module = Module(str(folder / "training_model.onnx"), self.state, session_options=options)
        self.optimizer = Optimizer(str(folder / "optimizer_model.onnx"), self.module)
        self.optimizer.set_learning_rate(LEARNING_RATE)
        self.module.train()

    def parameters(self) -> list[Callable[[], Array]]:
        """Readers of small parameters."""
        names = [name for name, parameter in self.state.parameters if small(parameter.data.shape)]
        return [lambda name=name: np.array(self.state.parameters[name].data) for name in names]  # type: ignore[misc]

    def update(self, x: Array, y: Array) -> float:
        """One update. Gradients are of micro-batch means, so their sum is larger by a factor, which AdamW undoes."""
        parts = micro_batches(self.job)
        x = x.reshape(len(x), *map_shape(x.shape[1:]))
        losses = [float(self.module(x[part], y[part])) for part in parts]
        self.optimizer.step()
        self.module.lazy_reset_grad()
        return sum(losses) / len(parts)


def session_options(arena: bool, memory_order: bool, *, threads: int) -> onnxruntime.SessionOptions:
    """Threads of an operator, and the two settings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = arena
    # A plan of earlier runs' shapes takes one large block; with the arena off it only adds to the peak.
    options.enable_mem_pattern = arena
    if memory_order:
        options.execution_order = onnxruntime.ExecutionOrder.MEMORY_EFFICIENT
    return options


def set_up(threads: int) -> str:
    """Errors alone are told; the version. Sessions take the threads from the job."""
    del threads
    onnxruntime.set_default_logger_severity(3)
    return str(onnxruntime.__version__)


if __name__ == "__main__":
    serve(set_up(1), Trainer)
