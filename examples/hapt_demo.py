"""The demo: a model pretrained on 21 people adapts to nine it has never seen, in a process without torch.

Every step is an `edgeff` command. Those of the device run under `--device-python`, an environment that has numpy and
onnxruntime only. `make demo` runs it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeff.data import open_dataset
from edgeff.dataset import Dataset
from edgeff.split import calibration_split
from edgeff.table import table
from edgeff.units import format_bytes, parse_bytes

HAPT = Path(__file__).resolve().parent / "hapt"
TEST_PEOPLE = (2, 4, 9, 10, 12, 13, 18, 20, 24)
DEVICE = "pi-zero-2w"
ZOO = "har-cnn"


@dataclass(frozen=True)
class Person:
    """What adaptation did for one person.

    Attributes:
        person: Number in the data set.
        windows: Tested on.
        calibration_windows: Adapted on, the guard's included.
        accuracy_before: Of the pretrained model.
        accuracy_after: Of what `train-on-device` kept.
        best_epoch: That it kept; 0 is the pretrained model.
        seconds: Of the adaptation.
        floor_bytes: Resident before the artifact was opened.
        training_bytes: Peak above that, measured in a process of its own.
        planned_bytes: What the plan said.
    """

    person: int
    windows: int
    calibration_windows: int
    accuracy_before: float
    accuracy_after: float
    best_epoch: int
    seconds: float
    floor_bytes: int
    training_bytes: int
    planned_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device-python", type=Path, required=True, help="interpreter of the device environment")
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="folder for what is made; emptied first")
    parser.add_argument("--json", type=Path, default=Path("demo.json"), help="where the result goes")
    parser.add_argument("--budget", default="32MiB", help="of each adaptation, over the floor")
    parser.add_argument("--epochs", type=int, default=12, help="of pretraining")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    artifact = prepare(arguments.work, arguments.epochs)
    people = [
        adapt(person, artifact, arguments.work, arguments.device_python, arguments.budget) for person in TEST_PEOPLE
    ]
    ready = from_zoo(arguments.work, arguments.device_python, arguments.budget)
    result = {**summary(people, parse_bytes(arguments.budget)), "zoo": asdict(ready)}
    print()
    print(people_table(people, result))
    print(
        f"`{ZOO}` of the zoo, pretrained for longer, person {ready.person}: accuracy {ready.accuracy_before:.3f} -> "
        f"{ready.accuracy_after:.3f}"
    )
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def prepare(work: Path, epochs: int) -> Path:
    """On the workstation: pretrain on the 21 training people, export, report."""
    run, artifact = work / "pretrained", work / "artifact"
    edgeff(
        sys.executable,
        "pretrain",
        "--preset",
        "har-cnn",
        "--data",
        f"{HAPT}:train",
        "--out",
        run,
        *PRETRAIN,
        "--epochs",
        epochs,
    )
    edgeff(sys.executable, "export", run, "--out", artifact)
    edgeff(sys.executable, "report", artifact, "--device", DEVICE)
    return artifact


PRETRAIN = ("--augment", "signal", "--replay-rows", 512)


def from_zoo(work: Path, python: Path, budget: str) -> Person:
    """On the device: take a network that comes with edgeff, and adapt it to the first person."""
    artifact = work / f"{ZOO}.zip"
    edgeff(python, "zoo", ZOO, "--out", artifact)
    return adapt(TEST_PEOPLE[0], artifact, work, python, budget)


def adapt(person: int, artifact: Path, work: Path, python: Path, budget: str) -> Person:
    """On the device: adapt to the earlier half of each activity of each recording, test on the later half."""
    rows = open_dataset(f"{HAPT}:user-{person}", data_dir=None)
    calibration, test = (save(part, work) for part in calibration_split(rows))
    run = work / f"{artifact.stem}-person-{person}"
    began = time.perf_counter()
    result = edgeff_json(
        python, "train-on-device", artifact, "--data", calibration, "--out", run, "--budget", budget, "--device", DEVICE
    )
    seconds = time.perf_counter() - began
    before = edgeff_json(python, "evaluate", artifact, "--data", test)
    after = edgeff_json(python, "evaluate", artifact, "--run", run, "--data", test)
    counts = result["rows"]
    return Person(
        person=person,
        windows=before["rows"],
        calibration_windows=counts["trained_on"] + counts["guard"],
        accuracy_before=before["accuracy"],
        accuracy_after=after["accuracy"],
        best_epoch=result["best_epoch"],
        seconds=seconds,
        floor_bytes=result["floor_bytes"],
        training_bytes=result["training_bytes"],
        planned_bytes=result["planned_bytes"],
    )


def save(rows: Dataset, work: Path) -> Path:
    """Write rows as a user would: raw windows and labels in an `.npz` file."""
    path = work / f"{rows.name.replace(':', '-').replace('/', '-').replace(' ', '-')}.npz"
    extra = {"sequence": rows.sequence, "span": rows.span}
    present = {name: values for name, values in extra.items() if values is not None}
    np.savez(path, x=rows.x[:], y=rows.y, classes=np.array(rows.classes), **present)
    return path


def summary(people: list[Person], budget_bytes: int) -> dict[str, Any]:
    """The result as `demo.json` holds it; accuracies are means over the people, bytes the largest of them."""
    return {
        "people": [asdict(person) for person in people],
        "accuracy_before": float(np.mean([person.accuracy_before for person in people])),
        "accuracy_after": float(np.mean([person.accuracy_after for person in people])),
        "floor_bytes": max(person.floor_bytes for person in people),
        "training_bytes": max(person.training_bytes for person in people),
        "planned_bytes": max(person.planned_bytes for person in people),
        "budget_bytes": budget_bytes,
    }


def people_table(people: list[Person], result: dict[str, Any]) -> str:
    """One line a person, the mean, and what it took."""
    rows = [
        (
            str(one.person),
            str(one.windows),
            f"{one.accuracy_before:.3f}",
            f"{one.accuracy_after:.3f}",
            f"{one.seconds:.1f}",
            format_bytes(one.planned_bytes),
            format_bytes(one.training_bytes),
        )
        for one in people
    ]
    before, after = result["accuracy_before"], result["accuracy_after"]
    rows.append(
        ("mean", "", f"{before:.3f}", f"{after:.3f}", f"{np.mean([one.seconds for one in people]):.1f}", "", "")
    )
    header = ("person", "windows", "before", "after", "seconds", "planned", "measured")
    lost = max(0.0, *(one.accuracy_before - one.accuracy_after for one in people))
    floor, measured, planned, budget = (
        format_bytes(result[key]) for key in ("floor_bytes", "training_bytes", "planned_bytes", "budget_bytes")
    )
    return "\n".join(
        [
            table(header, rows),
            "",
            f"mean error {1 - before:.3f} -> {1 - after:.3f} ({1 - (1 - after) / (1 - before):.0%} less); "
            f"the most anybody lost: {100 * lost:.1f} points",
            f"floor {floor}; training bytes at most {measured} measured, {planned} planned, {budget} allowed",
        ]
    )


def edgeff(python: Path | str, *arguments: object) -> None:
    """Run a command in the open."""
    words = [str(word) for word in arguments]
    print(f"$ edgeff {' '.join(words)}", flush=True)
    if subprocess.run([str(python), "-m", "edgeff", *words]).returncode:
        sys.exit(f"`edgeff {words[0]}` failed")


def edgeff_json(python: Path | str, *arguments: object) -> dict[str, Any]:
    """Run a command and read what it prints."""
    words = [str(word) for word in arguments]
    done = subprocess.run([str(python), "-m", "edgeff", *words, "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
