"""Who takes part in the speed benchmark: which method on which runtime, with which settings, started how."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import audit
import audit_own
from audit_peers import PEERS, ROOT, Skipped, interpreter, prepare
from audit_protocol import Job
from speed_search import Settings, Variant, sizes_of

OWN = audit_own.NAME
METHODS = ("sweep", "stage", "bp", "bp+accumulation", "bp-deepsup", "mezo")
RUNTIMES = (OWN, *PEERS)
NETWORKS = audit.NETWORKS
BATCHES, THREADS = (8, 128), (1, 2)
PROVIDERS = ("cpu", "cuda")
LOCAL = ("sweep", "stage")
# On every runtime; others are edgeff's own methods, or what a peer's `bp` has among its settings.
EVERYWHERE = ("bp", "bp-deepsup")
REFUSED = {
    ("bp-deepsup", OWN): "an artifact's baselines have the last block's scores alone",
    ("bp-deepsup", "onnxruntime-training"): "its graph is made with the last block's scores alone",
    ("bp-deepsup", "mnn"): "its network is made with the last block's scores alone",
}
# Freed memory stays with the process: by default glibc maps large tensors anew for every operator, and the system
# zeroes them. PyTorch's back-propagation of `deep8` at batch 128 took half the time.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}


@dataclass(frozen=True)
class Speed:
    """What to measure.

    Attributes:
        networks: Names of `networks.reference`.
        methods: Of `METHODS`.
        runtimes: Of `RUNTIMES`.
        batches: Rows of an update.
        threads: Of every runtime.
        micro_batch: For all that have one; None for the fastest of each.
        rounds: Bursts of every contender.
        burst_s: Seconds that a burst is to take.
        provider: `cpu`, or `cuda` for onnxruntime's and PyTorch's rows alone.
    """

    networks: Sequence[str] = NETWORKS
    methods: Sequence[str] = METHODS
    runtimes: Sequence[str] = RUNTIMES
    batches: Sequence[int] = BATCHES
    threads: Sequence[int] = THREADS
    micro_batch: int | None = None
    rounds: int = 5
    burst_s: float = 1.0
    provider: str = "cpu"


@dataclass(frozen=True)
class Cell:
    """What contenders are compared on.

    Attributes:
        network: A name of `networks.reference`.
        batch: Rows of an update.
        threads: Of every runtime.
    """

    network: str
    batch: int
    threads: int

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Contender:
    """A method on a runtime."""

    method: str
    runtime: str

    def __str__(self) -> str:
        return f"{self.method} on {self.runtime}"


def contenders(methods: Sequence[str], runtimes: Sequence[str]) -> Iterator[Contender]:
    """In the order of the table."""
    for method in methods:
        for runtime in runtimes:
            if runtime == OWN or method in EVERYWHERE:
                yield Contender(method, runtime)


def refusal(contender: Contender, provider: str) -> str | None:
    """Why a runtime cannot take part with a method; None where it can."""
    reason = REFUSED.get((contender.method, contender.runtime))
    if reason is not None or provider == "cpu":
        return reason
    if contender.method == "mezo":
        return "its steps move weights in ordinary memory alone"
    return None if contender.runtime in (OWN, "pytorch") else "it is measured on the CPU alone"


def variants(contender: Contender, batch: int, fixed: int | None, *, maps: bool) -> list[Variant]:
    """The settings to try.

    Args:
        contender: Whose.
        batch: Rows of an update.
        fixed: The one micro-batch to try; None for all.
        maps: Whether rows are maps, whose channels may come last.
    """
    sizes = sizes_of(batch, fixed)
    if contender.runtime == OWN:
        return [Variant([batch] if contender.method == "bp" else sizes)]
    if contender.runtime == "pytorch":
        orders = (False, True) if maps else (False,)
        found = [{"compile": compiled, "channels_last": last} for compiled in (False, True) for last in orders]
        return [Variant(sizes, settings) for settings in found]
    if contender.runtime == "mnn":
        # Its own step takes a whole batch.
        whole = [Variant([batch], {"own_adam": True})] if batch in sizes else []
        return [*whole, Variant(sizes, {"own_adam": False})]
    return [Variant(sizes, {"arena": arena, "memory_order": False}) for arena in (True, False)]


def refinements(contender: Contender, threads: int) -> list[Settings]:
    """Changes of the best settings that are tried in the end.

    PyTorch's threads wait for each other by spinning, which is fastest while each has a core of its own; where another
    program takes one for a while, they hold each other up ten times as long as threads that sleep.
    """
    return [{"passive_wait": True}] if contender.runtime == "pytorch" and threads > 1 else []


def launch(
    contender: Contender, cell: Cell, settings: Settings, micro_batch: int, folder: Path
) -> tuple[list[str], dict[str, str]]:
    """The command and environment of a contender's worker; files that it starts from are made.

    Args:
        contender: Whose.
        cell: What it trains on.
        settings: Of its runtime.
        micro_batch: Rows that go through at once.
        folder: With the network's files.

    Raises:
        Skipped: It cannot be had.
    """
    job = Job(cell.network, contender.method, cell.batch, micro_batch, str(folder), settings, cell.threads)
    benchmarks, words = ROOT / "benchmarks", json.dumps(asdict(job))
    if contender.runtime == OWN:
        python = device_python(str(settings.get("device", "cpu")))
        return [str(python), str(benchmarks / "speed_worker_own.py"), words], dict(os.environ)
    peer = PEERS[contender.runtime]
    python = interpreter(peer)
    prepare(peer, python, job)
    module = "speed_torch" if peer.name == "pytorch" else Path(peer.worker).stem
    environment = {**os.environ, **KEPT_MEMORY, "OMP_NUM_THREADS": str(cell.threads)}
    if settings.get("passive_wait"):
        environment["OMP_WAIT_POLICY"] = "passive"
    if settings.get("compile"):
        # Nothing is compiled yet, as on a user's first run; and no more compilers at once than threads.
        environment["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-", dir=folder)
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(cell.threads)
    return [str(python), str(benchmarks / "speed_worker.py"), module, words], environment


def device_python(provider: str) -> Path:
    """The interpreter of an environment whose onnxruntime has a provider.

    Raises:
        Skipped: It is not there.
    """
    folder, target = (
        (audit_own.DEVICE, "test") if provider == "cpu" else (audit_own.CUDA, f"{audit_own.CUDA.name}/.ready")
    )
    if not (folder / ".ready").is_file():
        raise Skipped(f"no environment `{folder.name}`: run `make {target}`")
    return folder / "bin" / "python"
