"""Readers of the files of a run, of the file that changes its budget, and of files of features."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import words
from fuzz.artifact_targets import tiny_files, write_files
from fuzz.base import Target, attempt, joined, parts, put

from edgeff.artifact import Artifact, open_artifact
from edgeff.dataset import Dataset
from edgeff.errors import EngineError
from edgeff.providers import CPU
from edgeff.rows import row_blocks
from edgeff.runtime.adapt import Adaptation, adaptation_request
from edgeff.runtime.checkpoint import BEST, CHECKPOINT, RESULT, RUN, Checkpoint, RunFolder, read_weights
from edgeff.runtime.control import Control
from edgeff.runtime.device_memory import Copies
from edgeff.runtime.features import FeatureFile
from edgeff.runtime.network import open_network, open_on_disk
from edgeff.runtime.plan import plan
from edgeff.runtime.providers import KINDS, ProviderKind
from edgeff.runtime.settings import AdaptSettings
from edgeff.runtime.store import BlockFiles
from edgeff.runtime.tensor_stream import write_tensors
from edgeff.runtime.trainer import Position

_FEATURE_ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


@dataclass
class NoEngine:
    """Stands in for onnxruntime: whatever needs a graph ends there."""

    name: str = "none"
    threads: int = 1

    def reserve(self, size: int) -> None:
        """Nothing."""

    keeps_gradients: bool = False
    moments: str = "sums"
    has_copies: bool = False
    provider: ProviderKind = KINDS[CPU]
    copies: Copies = field(default_factory=Copies)
    placements: dict[str, Any] = field(default_factory=dict)

    def memory(self) -> None:
        """None of its own."""

    def load(self, model: bytes, name: str, memory: Any = None, **more: Any) -> Any:
        raise EngineError(f"no engine for `{name}`")


@cache
def _artifact(folder: Path) -> Artifact:
    return open_artifact(write_files(folder / "artifact", tiny_files()))


@cache
def _adaptation(folder: Path, run: Path, schedule: str = "sweep") -> Adaptation:
    artifact = _artifact(folder)
    rows = np.random.default_rng(1).normal(size=(16, *artifact.manifest.input.shape)).astype(np.float32)
    data = Dataset("demo", rows, np.arange(16) % 4)
    settings = AdaptSettings(epochs=2, batch_size=4, learning_rate=0.1, schedule=schedule, replay_fraction=0.25)
    request = adaptation_request(artifact.manifest, settings, len(data), budget_bytes=1 << 26, schedule=schedule)
    return Adaptation(artifact, data, settings, request, plan(artifact.manifest, request), NoEngine(), RunFolder(run))


def _begin(folder: Path, schedule: str) -> bytes:
    """A run begun in a folder that is emptied first; what its `run.json` holds."""
    run = folder / schedule
    write_files(run, {})
    attempt(lambda: list(_adaptation(folder, run, schedule).run()))
    for path in run.iterdir():
        if path.name != RUN:
            path.unlink()
    return (run / RUN).read_bytes()


def prepare(folder: Path) -> None:
    """A run of each schedule, stopped before its first update."""
    for schedule in ("sweep", "stage"):
        _begin(folder, schedule)


def _restore(folder: Path, schedule: str, files: dict[str, bytes]) -> Adaptation:
    """A run with just these files beside its `run.json`, which they may replace."""
    run = folder / schedule
    for path in run.iterdir():
        if path.name != RUN or RUN in files:
            path.unlink()
    if not (run / RUN).exists() and RUN not in files:
        _begin(folder, schedule)
    for name, data in files.items():
        put(run / name, data)
    return _adaptation(folder, run, schedule)


def _look(adaptation: Adaptation) -> None:
    """What `edgeff fsck` says of the folder."""
    from edgeff.cli_fsck import _as_text
    from edgeff.runtime.fsck import examine

    found = attempt(lambda: examine(adaptation.folder.path))
    if found:
        attempt(lambda: _as_text(found))


def read_run(data: bytes, folder: Path) -> None:
    """What a run began with."""
    adaptation = _restore(folder, "sweep", {RUN: data, RESULT: b"{}"})
    _look(adaptation)
    attempt(adaptation.folder.facts)
    attempt(lambda: list(adaptation.run(resume=True)))


def read_result(data: bytes, folder: Path) -> None:
    """What a run came to, as the command shows it."""
    from edgeff.cli_drive import result_text

    adaptation = _restore(folder, "sweep", {RESULT: data})
    _look(adaptation)
    events = attempt(lambda: list(adaptation.run(resume=True)))
    if events:
        measured = {"run": "run", "floor_bytes": 1, "budget_bytes": 2, "training_bytes": 3}
        attempt(lambda: result_text({**measured, **events[-1].result}))


def _tensor_file(data: bytes) -> bytes:
    """A file as it is, or one with the given facts (`H`), the tensors of the input's second part, and its checksum."""
    if data[:1] != b"H":
        return data
    text, body = parts(data[1:], 2)
    try:
        facts = json.loads(text)
        stream = io.BytesIO()
        write_tensors(stream, _tensors(body), facts)
        return stream.getvalue()
    except (ValueError, RecursionError):
        return data[1:]


def _tensors(body: bytes) -> dict[str, np.ndarray]:
    """Those of the small artifact, with a state; the bytes say which are missing or changed."""
    shapes = {"w": (6, 4), "b": (4,), "shift": (4,)}
    every = {f"block{n}.{name}": np.zeros((4, 4) if n == 2 and name == "w" else shape, np.float32) for n in (1, 2)
             for name, shape in shapes.items()}  # fmt: skip
    every |= {f"state/velocity/{name}": array for name, array in every.items() if not name.endswith("shift")}
    for code, name in zip(body, list(every), strict=False):
        if code % 4 == 1:
            del every[name]
        elif code % 4 == 2:
            every[name] = every[name].reshape(-1)
        elif code % 4 == 3:
            every[name] = np.full(every[name].shape, np.nan, np.float32)
    return every


def read_checkpoint(data: bytes, folder: Path) -> None:
    """A checkpoint, from which a run of either schedule goes on."""
    schedule = "stage" if re.search(rb'"stage\\?"[,}]|"stage\\?", ', data) else "sweep"
    files = {CHECKPOINT: _tensor_file(data)}
    files |= {f"best.{epoch}.safetensors": _best(folder, epoch) for epoch in range(3)}
    adaptation = _restore(folder, schedule, files)
    _look(adaptation)
    attempt(lambda: list(adaptation.run(resume=True)))


@cache
def _best(folder: Path, epoch: int) -> bytes:
    """Good weights after an epoch."""
    artifact = _artifact(folder)
    with tempfile.TemporaryDirectory() as name:
        run = RunFolder(Path(name))
        run.write_best(open_network(artifact, NoEngine()), epoch)
        return next(run.path.glob("best*")).read_bytes()


def read_best(data: bytes, folder: Path) -> None:
    """The weights that a run chose, and a finished block's."""
    artifact = _artifact(folder)
    content = _tensor_file(data)
    put(folder / BEST, content)
    weights = attempt(lambda: read_weights(folder, artifact.manifest_sha256))
    if weights is not None:
        attempt(lambda: open_network(artifact, NoEngine(), weights=weights))
    files = BlockFiles(folder, artifact)
    put(files.path(artifact.manifest.blocks[0]), content)
    network = open_on_disk(artifact, NoEngine(), files)
    attempt(lambda: dict(network.weights()))


def read_control(data: bytes, folder: Path) -> None:
    """A new budget; whatever else is in the file is a ValueError that the run tells of."""
    path = put(folder / "control.json", data)
    try:
        budget = Control(path).budget()
    except ValueError as error:
        if type(error) is not ValueError or "is not understood and is ignored" not in str(error):
            raise
        return
    assert budget is None or 1 <= budget < 2**63


def read_features(data: bytes, folder: Path) -> None:
    """Features that were begun: the facts beside them, and what is there of the file."""
    facts, content = parts(data, 2)
    kind = next((kind for kind in ("uint8", "float16") if kind.encode() in facts), "float32")
    file = FeatureFile(folder / "features.block2.bin", kind, (3,), 2, "made from")  # type: ignore[arg-type]
    put(folder / "features.block2.json", facts)
    put(file.path, content)
    for _ in range(2):  # as it lies there, and filled up
        rows = attempt(file.read)
        if rows is not None:
            attempt(lambda rows=rows: [None for _ in row_blocks(rows)])
        attempt(lambda: list(file.fill(_FEATURE_ROWS, 1)))


# --- good inputs ---


def _with_folder(make: Callable[[Path], list[bytes]]) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        with tempfile.TemporaryDirectory() as name:
            return make(Path(name))

    return seeds


def _run_seeds(folder: Path) -> list[bytes]:
    return [_begin(folder, "sweep")]


def _result_seeds() -> list[bytes]:
    judged = {"accuracy": 0.5, "log_loss": 1.0, "per_class": [0.5, None], "per_block": {"block1": 0.5}, "rows": 4}
    result = {"schedule": "sweep", "best_epoch": 1, "epochs": 2, "guard": [judged, judged], "seconds": 1.5,
              "planned_bytes": 10, "training_bytes": 11, "rows_per_s": 2.0, "disk": {"written_bytes": 5}}  # fmt: skip
    return [json.dumps(one).encode() for one in (result, result | {"guard": []}, result | {"schedule": "stage"})]


def _facts_of(file: bytes) -> bytes:
    """The facts of a file of tensors."""
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    return str(header["__metadata__"]["edgeff"]).encode()


def _checkpoint_seeds(folder: Path) -> list[bytes]:
    artifact = _artifact(folder)
    judged = {"accuracy": 0.5, "log_loss": 1.0, "per_class": [0.5, None], "per_block": {"block1": 0.5}, "rows": 4}
    found = []
    for schedule, position in (
        ("sweep", Position(2, 1, 5)),
        ("stage", Position(1, 2, 2, 0)),
        ("stage", Position(stage=1)),
    ):
        trained = [block.name for block in artifact.manifest.blocks] if schedule == "sweep" else []
        settings = _adaptation(folder, folder / "run", schedule).settings
        facts = Checkpoint(artifact.manifest_sha256, position, settings.as_dict(), {"history": [judged, judged]})
        run = RunFolder(write_files(folder / "made", {}))
        run.path.mkdir(parents=True)
        run.write_checkpoint(open_network(artifact, NoEngine(), trained=trained), facts)
        content = (run.path / CHECKPOINT).read_bytes()
        found += [content, b"H" + joined(_facts_of(content), bytes(8))]
    return found


def _best_seeds(folder: Path) -> list[bytes]:
    best = _best(folder, 1)
    block = json.dumps({"format": "edgeff-block", "version": 1, "manifest_sha256": _artifact(folder).manifest_sha256})
    return [best, b"H" + joined(_facts_of(best), bytes(8)), b"H" + joined(block.encode(), bytes(8))]


def _feature_seeds(folder: Path) -> list[bytes]:
    found = []
    for kind in ("float32", "float16", "uint8"):
        file = FeatureFile(folder / f"{kind}.bin", kind, (3,), 2, "made from")  # type: ignore[arg-type]
        list(file.fill(_FEATURE_ROWS, 1))
        facts, content = file.path.with_suffix(".json").read_bytes(), file.path.read_bytes()
        found += [joined(facts, content), joined(facts, content[: len(content) // 2])]
    return found


def _control_seeds() -> list[bytes]:
    return [b'{"budget": "12MiB"}', b'{"budget": 1234567}', b'{"budget": "1.5 kB"}']


RUN_TARGETS = (
    Target("run-json", read_run, _with_folder(_run_seeds), prepare, words.RUN, "json", 4096),
    Target("result-json", read_result, _result_seeds, prepare, words.RUN, "json", 4096),
    Target("checkpoint", read_checkpoint, _with_folder(_checkpoint_seeds), prepare, words.RUN, "json", 8192),
    Target("best", read_best, _with_folder(_best_seeds), words=words.RUN, form="json", largest=4096),
    Target("control", read_control, _control_seeds, words=words.JSON, form="json", largest=8192),
    Target("features", read_features, _with_folder(_feature_seeds), words=words.JSON, form="json", largest=2048),
)
