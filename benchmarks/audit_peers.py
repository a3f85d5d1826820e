"""Runtimes of the memory audit other than edgeff's own: where each is, what it can do, which settings are tried."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audit_protocol import Found, Job

ROOT = Path(__file__).resolve().parent.parent
REPEATS, TIMEOUT_S = 3, 3600
# glibc gives each block above this its own mapping and returns it when freed; without, freed blocks stay resident.
LEAN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

Settings = Mapping[str, Any]
# Setting -> its values to try, the first of each being where the search begins.
Dials = Mapping[str, Sequence[Any]]


class Skipped(Exception):
    """A row that cannot be had; the text says why."""


@dataclass(frozen=True)
class Peer:
    """A runtime.

    Attributes:
        name: In `--runtime`.
        python: Its interpreter, below the checkout.
        worker: Its script.
        dials: Settings to try for a method and a number of blocks.
        refused: Methods that it cannot run, and why.
        prepare: Words of a command that writes further files, for a folder and a micro-batch; None for none.
        target: What that command writes.
    """

    name: str
    python: str
    worker: str
    dials: Callable[[str, int], Dials]
    refused: Mapping[str, str] = field(default_factory=dict)
    prepare: tuple[str, ...] | None = None
    target: str = ""


def segments(method: str, blocks: int) -> Dials:
    """How often to divide the blocks where activations are computed again."""
    if "checkpointing" not in method:
        return {}
    return {"segments": sorted({count for count in (2, 3, 4, 6, 8, 12, blocks) if count <= blocks})}


def torch_dials(method: str, blocks: int) -> Dials:
    """Segments, then whose convolutions, then the kernel of AdamW."""
    kernels = {} if method == "mezo" else {"fused_adamw": (False, True)}
    return {**segments(method, blocks), "onednn": (True, False), **kernels}


def mnn_dials(method: str, blocks: int) -> Dials:
    """Segments; for plain back-propagation MNN's own optimiser or ours."""
    return {"own_adam": (True, False)} if method == "bp" else segments(method, blocks)


def ort_dials(method: str, blocks: int) -> Dials:
    """The arena, and the order of nodes."""
    del method, blocks
    return {"arena": (False, True), "memory_order": (False, True)}


_NO_RECOMPUTATION = "its training API computes nothing again; only ORTModule does, inside PyTorch"
PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("pytorch", ".venv", "peer_torch.py", torch_dials),
        Peer(
            "onnxruntime-training",
            ".venv-bench-ort",
            "peer_ort_training.py",
            ort_dials,
            refused={
                "bp+checkpointing": _NO_RECOMPUTATION,
                "bp+accumulation+checkpointing": _NO_RECOMPUTATION,
                "bp+fused-updates": "its optimiser is a session of its own, after all gradients are in their buffers",
                "mezo": "forward passes alone: the row of stock onnxruntime",
            },
            prepare=("ort_artifacts.py",),
            target="ort-{micro_batch}",
        ),
        Peer(
            "mnn",
            ".venv-bench-mnn",
            "peer_mnn.py",
            mnn_dials,
            refused={"bp+fused-updates": "all gradients of an expression come out of one evaluation, at once"},
        ),
    )
}


def interpreter(peer: Peer) -> Path:
    """The peer's Python.

    Raises:
        Skipped: Its environment is not there.
    """
    folder = ROOT / peer.python
    if not (folder / ".ready").is_file():
        target = "test" if peer.python == ".venv" else "bench-setup"
        raise Skipped(f"no environment `{peer.python}`: run `make {target}`")
    return folder / "bin" / "python"


def measured(peer: Peer, job: Job) -> Found:
    """One measurement in a fresh process, its allocator set as `lean_allocator` says.

    Raises:
        Skipped: The worker failed.
    """
    python = interpreter(peer)
    prepare(peer, python, job)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(LEAN if job.settings.get("lean_allocator") else {})}
    words = [str(python), str(ROOT / "benchmarks" / peer.worker), json.dumps(asdict(job))]
    return Found(**json.loads(output(words, environment).splitlines()[-1]))


def prepare(peer: Peer, python: Path, job: Job) -> None:
    """Files that the worker starts from, made once."""
    if peer.prepare is None or (Path(job.folder) / peer.target.format(micro_batch=job.micro_batch)).exists():
        return
    script, *rest = peer.prepare
    output([str(python), str(ROOT / "benchmarks" / script), *rest, job.folder, str(job.micro_batch)], dict(os.environ))


def output(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a command prints.

    Raises:
        Skipped: It failed; with the last line that it wrote to stderr.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise Skipped(f"took longer than {TIMEOUT_S} s") from error
    except OSError as error:
        raise Skipped(f"`{words[0]}` cannot be run: {error.strerror}") from error
    if done.returncode:
        raise Skipped(why_ended(words, done.returncode, done.stderr))
    return done.stdout


def why_ended(words: Sequence[str], status: int, stderr: str) -> str:
    """Why a command ended with another status than 0: its signal, or the last line that it wrote to stderr."""
    name = words[2] if words[1] == "-m" else Path(words[1]).name
    if status < 0:
        return f"{name}: ended by signal {-status}"
    lines = [line for line in stderr.splitlines() if line.strip()] or [f"status {status}"]
    return f"{name}: {lines[-1].strip()}"


def best_settings(run: Callable[[Settings], Found], dials: Dials) -> tuple[dict[str, Any], Found]:
    """Turn dial after dial to where the fewest training bytes are, from the first value of each.

    A value that fails is passed over; if the beginning fails, so does the row.
    """
    best: dict[str, Any] = {name: values[0] for name, values in dials.items()}
    found = run(best)
    for name, values in dials.items():
        for value in values[1:]:
            tried = {**best, name: value}
            try:
                other = run(tried)
            except Skipped:
                continue
            if other.training_bytes < found.training_bytes:
                best, found = tried, other
    return best, found


def peer_row(
    peer: Peer, network: str, method: str, batch: int, micro_batch: int, folder: Path, blocks: int
) -> dict[str, Any]:
    """The row of a peer at its best settings: the median of fresh processes by training bytes.

    Raises:
        Skipped: The peer cannot run it.
    """
    if method in peer.refused:
        raise Skipped(peer.refused[method])

    def run(settings: Settings) -> Found:
        return measured(peer, Job(network, method, batch, micro_batch, str(folder), settings))

    settings, first = best_settings(run, {**peer.dials(method, blocks), "lean_allocator": (True, False)})
    runs = sorted([first, *(run(settings) for _ in range(REPEATS - 1))], key=lambda one: one.training_bytes)
    middle = runs[len(runs) // 2]
    return {
        "runtime": f"{peer.name} {middle.version}",
        "micro_batch": micro_batch,
        "floor_bytes": int(statistics.median(one.floor_bytes for one in runs)),
        "training_bytes": middle.training_bytes,
        "planned_bytes": None,
        "rows_per_s": round(statistics.median(one.rows_per_s for one in runs), 1),
        "settings": {**settings, "code_bytes": middle.code_bytes},
    }
