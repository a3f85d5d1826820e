"""One small network, made by the commands that a user gives: what tests of the command line share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from edgeff.cli import main

CLASSES = ("sit", "walk", "run")


@dataclass(frozen=True)
class TinyRun:
    """A pretrained run, its artifact and their data.

    Pretraining is short, so that a device has something left to learn. Tests read these files and write
    none.
    """

    train: Path
    own: Path
    run: Path
    artifact: Path


def wave_arrays(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` file: int16 rows (rows, 6, 32) of three classes, told apart by their frequency."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    phase = rng.uniform(0.0, 2.0 * np.pi, (rows, 6, 1))
    waves = np.sin(2.0 * np.pi * (1 + 2 * y)[:, None, None] * np.arange(32) / 32 + phase)
    x = np.round(1000 * (waves + 0.3 * rng.standard_normal((rows, 6, 32)))).astype(np.int16)
    order = rng.permutation(rows)
    columns = {"groups": np.arange(rows) // 40, "sequence": np.arange(rows) // 20}
    return {"x": x[order], "y": y[order], "classes": np.array(CLASSES), **columns}


def edgeff(*arguments: object) -> Result:
    """Run a command in this process; stdout and stderr apart, exceptions that no command should let out raised."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def make_tiny_run(folder: Path) -> TinyRun:
    """Pretrain and export in a folder."""
    made = TinyRun(folder / "train.npz", folder / "own.npz", folder / "run", folder / "artifact")
    np.savez(made.train, **wave_arrays(360, seed=0))
    np.savez(made.own, **wave_arrays(240, seed=1))
    network = ("--preset", "har-cnn", "--width", 0.25, "--input-shape", "6,32")
    settings = ("--epochs", 2, "--batch-size", 32, "--replay-rows", 24, "--threads", 1)
    for arguments in (
        ("pretrain", *network, "--data", made.train, "--out", made.run, *settings),
        ("export", made.run, "--out", made.artifact),
    ):
        result = edgeff(*arguments)
        assert result.exit_code == 0, result.output
    return made
