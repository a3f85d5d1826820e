"""What the audits and the workers of their peers agree on. Imports nothing but the standard library and numpy.

A worker is a script that the peer's own interpreter runs, in a fresh process for every measurement:

    .venv-bench-mnn/bin/python benchmarks/peer_mnn.py JOB

JOB is a `Job` as a JSON object; the last line on stdout is a `Found` as one; exit status 0. Any other status, and the
last line on stderr says why. What is measured, in every worker alike (`measure`):

1. The peer is imported, and two batches of random rows with labels lie in memory.
2. The floor is read (`VmRSS`) and the peak reset (5 into `/proc/self/clear_refs`). Nothing of the network is there yet.
3. The network is built with its optimiser, and three updates are made on whole batches, AdamW (MeZO: plain steps),
   float32, one thread.
4. Training bytes are the peak (`VmHWM`) over the floor. Code that a library reads in after the floor counts; it is told
   apart as `code_bytes` (growth of `RssFile`).
5. Every small parameter must have moved and every loss be finite; otherwise the worker fails.

Rows per second leave the first update out, in which peers compile, plan and choose kernels.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

UPDATES, WARM_UP = 3, 1
LEARNING_RATE, BETA1, BETA2, EPSILON, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 1e-4
# MeZO (Malladi et al., arXiv 2305.17333): size of the perturbation, and the rate of its plain steps.
MEZO_EPSILON, MEZO_RATE = 1e-3, 1e-5
# Larger parameters are not looked at: reading them out would add to the peak.
_LOOKED_AT = 4096

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        network: A name of `networks.reference`.
        method: `bp`, `bp+accumulation`, ..., `mezo`.
        batch: Rows of an update.
        micro_batch: Rows that go through the network at once.
        folder: Where `audit_files` has put the network's files.
        settings: The peer's own, such as the number of checkpointed segments; `lean_allocator` is already in force.
        threads: Of the peer.
    """

    network: str
    method: str
    batch: int
    micro_batch: int
    folder: str
    settings: Mapping[str, Any]
    threads: int = 1

    def network_file(self) -> dict[str, Any]:
        """The network as `audit_files` describes it: shape, classes, blocks."""
        found: dict[str, Any] = json.loads((Path(self.folder) / "network.json").read_text())
        return found


@dataclass(frozen=True)
class Found:
    """What a measurement found; `version` is the peer's."""

    version: str
    floor_bytes: int
    training_bytes: int
    code_bytes: int
    rows_per_s: float
    losses: tuple[float, ...]


class Trainer(Protocol):
    """A network with its optimiser."""

    def update(self, x: Any, y: Any) -> float:
        """One update on a batch, x (batch, *row) and y (batch,); the mean loss before it."""

    def parameters(self) -> Sequence[Callable[[], Array]]:
        """A reader for each `small` parameter, which copies it."""


def small(shape: Sequence[int]) -> bool:
    """Whether a parameter of this shape is looked at before and after training."""
    return math.prod(shape) <= _LOOKED_AT


def map_shape(row: Sequence[int]) -> tuple[int, ...]:
    """A signal (C, L) as a map (C, 1, L), for peers that know no other; other rows as they are."""
    return (row[0], 1, row[1]) if len(row) == 2 else tuple(row)


def micro_batches(job: Job) -> list[slice]:
    """The rows of each micro-batch."""
    return [slice(start, start + job.micro_batch) for start in range(0, job.batch, job.micro_batch)]


def rows(job: Job) -> tuple[Array, Array]:
    """Two batches of random rows x (2, batch, *row), float32, with labels y (2, batch), int64."""
    network, draw = job.network_file(), np.random.default_rng(0)
    x = draw.standard_normal((2, job.batch, *network["shape"]), dtype=np.float32)
    return x, draw.integers(0, network["classes"], (2, job.batch))


def measure(job: Job, version: str, build: Callable[[Job], Trainer]) -> Found:
    """Measure in this process.

    Raises:
        SystemExit: The peer trained nothing, or a loss is not finite.
    """
    x, y = rows(job)
    floor = measure_from_here()
    trainer = build(job)
    before = [read() for read in trainer.parameters()]
    losses, began = [], 0.0
    for update in range(UPDATES):
        if update == WARM_UP:
            began = time.perf_counter()
        losses.append(trainer.update(x[update % 2], y[update % 2]))
    seconds = time.perf_counter() - began
    taken, code = floor.training_bytes(), floor.code_bytes()
    check_learning(losses, before, [read() for read in trainer.parameters()])
    return Found(version, floor.resident, taken, code, (UPDATES - WARM_UP) * job.batch / seconds, tuple(losses))


@dataclass(frozen=True)
class Floor:
    """A process before it has anything of a network: resident bytes, and those of them that are pages of files."""

    resident: int
    files: int

    def training_bytes(self) -> int:
        """By how much the most that was resident since is over it."""
        return _status("VmHWM") - self.resident

    def code_bytes(self) -> int:
        """By how much the resident pages of files have grown: code that a library has read in since."""
        return max(0, _status("RssFile") - self.files)


def measure_from_here() -> Floor:
    """Let the kernel count the peak from now on."""
    floor = Floor(_status("VmRSS"), _status("RssFile"))
    Path("/proc/self/clear_refs").write_text("5")
    return floor


def check_learning(losses: Sequence[float], before: Sequence[Array], after: Sequence[Array]) -> None:
    """Check that something was learnt.

    Raises:
        SystemExit: A loss is not finite, or a parameter is what it was.
    """
    if not all(map(math.isfinite, losses)):
        raise SystemExit(f"a loss is not finite: {losses}")
    still = sum(bool(np.array_equal(one, other)) for one, other in zip(before, after, strict=True))
    if still or not before:
        raise SystemExit(f"{still} of {len(before)} parameters did not move")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def serve(version: str, build: Callable[[Job], Trainer]) -> None:
    """Be a worker: read the job, measure, print."""
    found = measure(Job(**json.loads(sys.argv[1])), version, build)
    print(json.dumps(asdict(found)), flush=True)
