"""`systems`: the paper's audit of memory and speed, at 224 x 224 and the same batch for everyone.

The paper of DTG-FF (arXiv 2606.06539, abstract) found back-propagation with gradient accumulation ahead on an 8 GB
machine: 4.18 GB and 157 images per second against 7.90 GB and 138. Which network and batch it took is not known; here
it is a preset on images of 224 x 224. Bytes and rows per second need no real images. Every row of the table is a
process of its own. On a GPU all of them run on PyTorch, within the paper's 8 GB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeff.dataset import Dataset
from edgeff.errors import RunError
from edgeff.export import ExportSettings, export_network
from edgeff.preprocess import fit_preprocessing
from edgeff.presets import preset
from edgeff.pretrain import torch_device
from edgeff.runtime.measure import measure_method
from edgeff.studies.findings import Findings, Row, number
from edgeff.studies.picture import Panel
from edgeff.studies.torch_process import LOCAL, METHODS, DoesNotFit, TorchMeasured, measure_torch
from edgeff.studies.training import StudySettings

PRESET, SHAPE, CLASSES = "vgg8", (3, 224, 224), 100
BATCH = 32
OWN = ("stage", "sweep")


@dataclass(frozen=True)
class Setting:
    """How large everything is on a device.

    Attributes:
        width: Factor on the preset's channels.
        micro_batches: In which back-propagation may cut a batch, and local learning does: as small as can be, and one
            at which kernels run at their best.
        limit_bytes: Of a GPU's memory.
    """

    width: float
    micro_batches: tuple[int, ...]
    limit_bytes: int | None = None


# On a GPU as PyTorch comes: it convolves in TF32 where the GPU has that.
PRECISIONS = {"cpu": "float32", "cuda": "float32 (convolutions in TF32)"}
SETTINGS = {"cpu": Setting(0.25, (1, 4)), "cuda": Setting(1.0, (1, 4, 8), 8 * 10**9)}


def systems(settings: StudySettings) -> Findings:
    """Local learning on edgeff's runtime and on PyTorch, and back-propagation on both; on a GPU on PyTorch alone."""
    torch_device(settings.device)
    setting = SETTINGS[settings.device]
    rows = list(_rows_of_torch(setting, settings))
    if settings.device == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            rows += _rows_of_runtime(_artifact(Path(folder) / "artifact", setting, settings), setting, settings)
    rows.sort(key=lambda row: number(row, "training_bytes"))
    names = {f"{row['method']}, {row['runtime']}, micro-batch {row['micro_batch']}": row for row in rows}
    mib: dict[str | float, float] = {name: number(row, "training_bytes") / 2**20 for name, row in names.items()}
    speed: dict[str | float, float] = {name: number(row, "rows_per_s") for name, row in names.items()}
    network = f"{PRESET} at width {setting.width:g} on {'x'.join(map(str, SHAPE))}"
    return Findings(
        name="systems",
        title=f"{network}, AdamW, {PRECISIONS[settings.device]}, batch {BATCH}",
        rows=rows,
        panels=[Panel("training bytes, MiB", {"": mib}), Panel("rows per second", {"": speed})],
        paragraph=_paragraph(rows),
    )


def _artifact(out: Path, setting: Setting, settings: StudySettings) -> Path:
    settings.report("compiling the network and its baselines")
    network = preset(PRESET, input_shape=SHAPE, classes=CLASSES, width=setting.width)
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    random = Dataset("random images", images, np.arange(2, dtype=np.int64))
    preprocessing = fit_preprocessing(random, SHAPE)
    return export_network(network, out, preprocessing=preprocessing, settings=ExportSettings(baselines=True))


def _planned(own: Sequence[str], setting: Setting) -> Iterator[tuple[str, int]]:
    """Methods, each with a micro-batch: those that cut a batch at every size, the others at the whole."""
    for method in (*own, *METHODS):
        cuts = method in own or METHODS[method][0]
        yield from ((method, size) for size in (setting.micro_batches if cuts else (BATCH,)))


def _rows_of_runtime(artifact: Path, setting: Setting, settings: StudySettings) -> Iterator[Row]:
    for method, size in _planned(OWN, setting):
        settings.report(f"measuring {method} at micro-batch {size} on edgeff's runtime")
        threads, repeats = settings.threads or 1, settings.seeds
        own = measure_method(artifact, method, batch_size=BATCH, micro_batch=size, threads=threads, repeats=repeats)
        yield _row(method, own.runtime, own.micro_batch, own.floor_bytes, own.training_bytes, own.rows_per_s)


def _rows_of_torch(setting: Setting, settings: StudySettings) -> Iterator[Row]:
    for method, size in _planned((LOCAL,), setting):
        settings.report(f"measuring {method} at micro-batch {size} on PyTorch")
        try:
            runs = [_on_torch(method, size, setting, settings) for _ in range(settings.seeds)]
        except DoesNotFit as error:
            settings.report(str(error))
            continue
        middle = sorted(runs, key=lambda run: run.training_bytes)[len(runs) // 2]
        speed = sorted(run.rows_per_s for run in runs)[len(runs) // 2]
        yield _row(method, middle.runtime, middle.micro_batch, middle.floor_bytes, middle.training_bytes, speed)


def _on_torch(method: str, size: int, setting: Setting, settings: StudySettings) -> TorchMeasured:
    return measure_torch(
        PRESET,
        {"input_shape": SHAPE, "classes": CLASSES, "width": setting.width},
        method,
        batch=BATCH,
        micro_batch=size,
        threads=settings.threads or 1,
        device=settings.device,
        limit_bytes=setting.limit_bytes,
    )


def _row(method: str, runtime: str, size: int, floor: int, training: int, speed: float) -> Row:
    return {
        "method": method,
        "runtime": runtime,
        "batch": BATCH,
        "micro_batch": size,
        "floor_bytes": floor,
        "training_bytes": training,
        "rows_per_s": speed,
    }


def _paragraph(rows: list[Row]) -> str:
    local = [row for row in rows if row["method"] in (*OWN, LOCAL)]
    others = [row for row in rows if row["method"] not in (*OWN, LOCAL)]
    if not local or not others:
        raise RunError("too little fits on the GPU to compare anything", hint="free its memory, or take a larger one")
    small, rival = (min(part, key=lambda row: number(row, "training_bytes")) for part in (local, others))
    fast, quick = (max(part, key=lambda row: number(row, "rows_per_s")) for part in (local, others))
    ratio = number(small, "training_bytes") / number(rival, "training_bytes")
    speed = number(fast, "rows_per_s") / float(quick["rows_per_s"] or 1)
    met = "is" if ratio <= 0.5 and speed >= 1.0 else "is not"
    return (
        f"The smallest local run ({_named(small)}) takes {_mib(small)} over its floor, that of back-propagation "
        f"({_named(rival)}) {_mib(rival)}: {ratio:.2f} times that. The fastest local run ({_named(fast)}) learns from "
        f"{_speed(fast)} in {_mib(fast)}, the fastest of back-propagation ({_named(quick)}) from {_speed(quick)} in "
        f"{_mib(quick)}: {speed:.2f} times that. The aim of half the bytes at no fewer rows per second {met} met."
    )


def _named(row: Row) -> str:
    return f"{row['method']}, {row['runtime']}, micro-batch {row['micro_batch']}"


def _mib(row: Row) -> str:
    return f"{number(row, 'training_bytes') / 2**20:,.0f} MiB"


def _speed(row: Row) -> str:
    return f"{number(row, 'rows_per_s'):.3g} rows/s"
