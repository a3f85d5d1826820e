"""`systems`: the paper's audit of memory and speed, at 224 x 224 and the same batch for everyone.

The paper of DTG-FF (arXiv 2606.06539, abstract) found back-propagation with gradient accumulation ahead on an 8 GB
machine: 4.18 GB and 157 images per second against 7.90 GB and 138. Which network and batch it took is not known; here
it is a preset on images of 224 x 224. Bytes and rows per second need no real images. Every measurement is a process of
its own, and all rows of the table are measured by turns: a machine that slows down for a while slows all of them. On a
GPU all of them run on PyTorch, within the paper's 8 GB.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgeff.dataset import Dataset
from edgeff.errors import RunError
from edgeff.export import ExportSettings, export_network
from edgeff.preprocess import fit_preprocessing
from edgeff.presets import preset
from edgeff.pretrain import torch_device
from edgeff.runtime.measure import Measured, check_interpreter, measure_method
from edgeff.studies.findings import Findings, Row, number
from edgeff.studies.picture import Panel
from edgeff.studies.torch_process import LOCAL, METHODS, DoesNotFit, TorchMeasured, measure_torch
from edgeff.studies.training import StudySettings
from edgeff.units import format_bytes

PRESET, SHAPE, CLASSES = "vgg8", (3, 224, 224), 100
BATCH = 32
OWN = ("stage", "sweep")
# Between a method and the budget that it was planned for.
_WITHIN = " within "


@dataclass(frozen=True)
class Setting:
    """How large everything is on a device.

    Attributes:
        width: Factor on the preset's channels.
        micro_batches: In which back-propagation may cut a batch, and local learning does: as small as can be, and one
            at which kernels run at their best.
        budget_bytes: Within which a sweep is planned besides, as a person would ask for one.
        limit_bytes: Of a GPU's memory.
    """

    width: float
    micro_batches: tuple[int, ...]
    budget_bytes: int | None = None
    limit_bytes: int | None = None


# On a GPU as PyTorch comes: it convolves in TF32 where the GPU has that.
PRECISIONS = {"cpu": "float32", "cuda": "float32 (convolutions in TF32)"}
SETTINGS = {
    "cpu": Setting(0.25, (1, 4), budget_bytes=90 * 2**20),
    "cuda": Setting(1.0, (1, 4, 8), limit_bytes=8 * 10**9),
}


def systems(settings: StudySettings) -> Findings:
    """Local learning on edgeff's runtime and on PyTorch, and back-propagation on both; on a GPU on PyTorch alone."""
    torch_device(settings.device)
    if settings.device_python is not None:
        check_interpreter(str(settings.device_python))
    setting = SETTINGS[settings.device]
    turns = _turns_of_torch(setting, settings)
    with tempfile.TemporaryDirectory() as folder:
        if settings.device == "cpu":
            turns += _turns_of_runtime(_artifact(Path(folder) / "artifact", setting, settings), setting, settings)
        rows = _by_turns(turns, settings)
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


@dataclass(frozen=True)
class _Turn:
    """A row of the table to be measured again and again: what for people, and how."""

    what: str
    measure: Callable[[], Row]


def _by_turns(turns: Sequence[_Turn], settings: StudySettings) -> list[Row]:
    """Every row once, as often as there are seeds; its medians. A row that does not fit is left out."""
    measured: dict[str, list[Row]] = {turn.what: [] for turn in turns}
    too_large: set[str] = set()
    for number_of_round in range(1, settings.seeds + 1):
        for turn in turns:
            if turn.what in too_large:
                continue
            settings.report(f"measuring {turn.what}, {number_of_round} of {settings.seeds}")
            try:
                measured[turn.what].append(turn.measure())
            except DoesNotFit as error:
                too_large.add(turn.what)
                settings.report(str(error))
    return [_middle(measured[turn.what]) for turn in turns if turn.what not in too_large]


def _middle(rows: Sequence[Row]) -> Row:
    """The row with the median of bytes, with the median of all speeds."""
    half = len(rows) // 2
    middle = sorted(rows, key=lambda row: number(row, "training_bytes"))[half]
    return {**middle, "rows_per_s": sorted(number(row, "rows_per_s") for row in rows)[half]}


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


def _turns_of_runtime(artifact: Path, setting: Setting, settings: StudySettings) -> list[_Turn]:
    turns = [
        _Turn(
            f"{method} at micro-batch {size} on edgeff's runtime",
            partial(_on_runtime, artifact, method, settings, micro_batch=size),
        )
        for method, size in _planned(OWN, setting)
    ]
    if setting.budget_bytes is None:
        return turns
    within = partial(_on_runtime, artifact, "sweep", settings, budget_bytes=setting.budget_bytes)
    return [*turns, _Turn(f"sweep{_WITHIN}{format_bytes(setting.budget_bytes)} on edgeff's runtime", within)]


def _on_runtime(
    artifact: Path,
    method: str,
    settings: StudySettings,
    *,
    micro_batch: int | None = None,
    budget_bytes: int | None = None,
) -> Row:
    own = measure_method(
        artifact,
        method,
        batch_size=BATCH,
        micro_batch=micro_batch,
        budget_bytes=budget_bytes,
        threads=settings.threads or 1,
        repeats=1,
        python=str(settings.device_python or sys.executable),
    )
    return _row(method if budget_bytes is None else f"{method}{_WITHIN}{format_bytes(budget_bytes)}", own)


def _turns_of_torch(setting: Setting, settings: StudySettings) -> list[_Turn]:
    return [
        _Turn(f"{method} at micro-batch {size} on PyTorch", partial(_on_torch, method, size, setting, settings))
        for method, size in _planned((LOCAL,), setting)
    ]


def _on_torch(method: str, size: int, setting: Setting, settings: StudySettings) -> Row:
    own = measure_torch(
        PRESET,
        {"input_shape": SHAPE, "classes": CLASSES, "width": setting.width},
        method,
        batch=BATCH,
        micro_batch=size,
        threads=settings.threads or 1,
        device=settings.device,
        limit_bytes=setting.limit_bytes,
    )
    return _row(method, own)


def _row(method: str, own: Measured | TorchMeasured) -> Row:
    return {
        "method": method,
        "runtime": own.runtime,
        "batch": BATCH,
        "micro_batch": own.micro_batch,
        "floor_bytes": own.floor_bytes,
        "training_bytes": own.training_bytes,
        "rows_per_s": own.rows_per_s,
    }


def _paragraph(rows: list[Row]) -> str:
    local = [row for row in rows if _is_local(row)]
    others = [row for row in rows if not _is_local(row)]
    if not local or not others:
        raise RunError("too little fits on the GPU to compare anything", hint="free its memory, or take a larger one")
    small, rival = (min(part, key=lambda row: number(row, "training_bytes")) for part in (local, others))
    fast, quick = (max(part, key=lambda row: number(row, "rows_per_s")) for part in (local, others))
    met = any(_half_and_no_slower(row, quick) for row in local)
    return (
        f"The smallest local run ({_named(small)}) takes {_mib(small)} over its floor, that of back-propagation "
        f"({_named(rival)}) {_mib(rival)}: {_ratio(small, rival, 'training_bytes')} times that. The fastest local run "
        f"({_named(fast)}) learns from {_speed(fast)} in {_mib(fast)}, the fastest of back-propagation "
        f"({_named(quick)}) from {_speed(quick)} in {_mib(quick)}: {_ratio(fast, quick, 'rows_per_s')} times that, in "
        f"{_ratio(fast, quick, 'training_bytes')} times the bytes. The aim, a local run in half the bytes of the "
        f"fastest back-propagation at no fewer rows per second, {'is' if met else 'is not'} met."
    )


def _is_local(row: Row) -> bool:
    return str(row["method"]).partition(_WITHIN)[0] in (*OWN, LOCAL)


def _half_and_no_slower(row: Row, quick: Row) -> bool:
    smaller = 2 * number(row, "training_bytes") <= number(quick, "training_bytes")
    return smaller and number(row, "rows_per_s") >= number(quick, "rows_per_s")


def _ratio(own: Row, other: Row, key: str) -> str:
    return f"{number(own, key) / number(other, key):.2f}"


def _named(row: Row) -> str:
    return f"{row['method']}, {row['runtime']}, micro-batch {row['micro_batch']}"


def _mib(row: Row) -> str:
    return f"{number(row, 'training_bytes') / 2**20:,.0f} MiB"


def _speed(row: Row) -> str:
    return f"{number(row, 'rows_per_s'):.3g} rows/s"
