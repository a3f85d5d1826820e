"""Recipes for data that are not at hand: each runs on a few small files in the data's official form."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mat_files import svhn_bytes
from PIL import Image

from edgeff.pretrain_job import PretrainJob, prepare
from edgeff.recipe import read_recipe

RNG = np.random.default_rng(0)


def images(rows: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (rows, *shape), dtype=np.uint8)


def mnist(folder: Path) -> None:
    (folder / "mnist").mkdir()
    for split, rows in (("train", 40), ("t10k", 20)):
        pixels, labels = images(rows, 28, 28), (np.arange(rows) % 10).astype(np.uint8)
        packed = gzip.compress(struct.pack(">IIII", 0x803, rows, 28, 28) + pixels.tobytes())
        (folder / "mnist" / f"{split}-images-idx3-ubyte.gz").write_bytes(packed)
        packed = gzip.compress(struct.pack(">II", 0x801, rows) + labels.tobytes())
        (folder / "mnist" / f"{split}-labels-idx1-ubyte.gz").write_bytes(packed)


def cifar100(folder: Path) -> None:
    (folder / "cifar100").mkdir()
    for split in ("train", "test"):
        rows = np.concatenate([np.arange(200)[:, None] % 20, np.arange(200)[:, None] % 100, images(200, 3072)], axis=1)
        (folder / "cifar100" / f"{split}.bin").write_bytes(rows.astype(np.uint8).tobytes())


def svhn(folder: Path) -> None:
    (folder / "svhn").mkdir()
    for split in ("train", "test"):
        content = svhn_bytes(images(40, 3, 32, 32), (np.arange(40) % 10 + 1).astype(np.uint8))
        (folder / "svhn" / f"{split}_32x32.mat").write_bytes(content)


def stl10(folder: Path) -> None:
    (folder / "stl10").mkdir()
    for split in ("train", "test"):
        (folder / "stl10" / f"{split}_X.bin").write_bytes(images(40, 3, 96, 96).tobytes())
        (folder / "stl10" / f"{split}_y.bin").write_bytes((np.arange(40) % 10 + 1).astype(np.uint8).tobytes())


def tiny_imagenet(folder: Path) -> None:
    root, names = folder / "tiny-imagenet", ["n01443537", "n01629819"]
    for name in names:
        (root / "train" / name / "images").mkdir(parents=True)
        for number in range(10):
            Image.fromarray(images(64, 64, 3)).save(root / "train" / name / "images" / f"{name}_{number}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(images(64, 64, 3)).save(root / "val" / "images" / f"val_{number}.JPEG")
    lines = [f"val_{number}.JPEG\t{names[number % 2]}\t0\t0\t62\t62\n" for number in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    (root / "words.txt").write_text("".join(f"{name}\tthing {name}\n" for name in names))


def pathmnist(folder: Path) -> None:
    arrays = {}
    for split, rows in (("train", 40), ("val", 18), ("test", 18)):
        arrays[f"{split}_images"] = images(rows, 28, 28, 3)
        arrays[f"{split}_labels"] = (np.arange(rows)[:, None] % 9).astype(np.uint8)
    np.savez(folder / "pathmnist.npz", **arrays)


def imagenet_100(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            (folder / "imagenet-100" / split / name).mkdir(parents=True)
            for number in range(6):
                Image.fromarray(images(240, 230, 3)).save(folder / "imagenet-100" / split / name / f"{number}.JPEG")


MADE: Mapping[str, Callable[[Path], None]] = {
    "mnist-cpu": mnist,
    "cifar100-cpu": cifar100,
    "svhn-cpu": svhn,
    "stl10-cpu": stl10,
    "tiny-imagenet-cpu": tiny_imagenet,
    "pathmnist-cpu": pathmnist,
    "imagenet-100-gpu": imagenet_100,
}


@pytest.mark.parametrize("name", MADE)
def test_a_recipe_runs_on_files_in_the_form_that_its_data_come_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where recipes for paths of one's own look
    MADE[name](tmp_path)
    job = PretrainJob.of_recipe(read_recipe(name), epochs=1, batch_size=16, threads=1)
    ready = prepare(replace(job, width=0.05), data_dir=tmp_path)
    result, tested = ready.run(None)
    assert tested is not None
    assert tested.rows == len(ready.test or ())
    assert result.history[0].train_loss["block1"] > 0.0
    assert ready.network.input_shape == ready.preprocessing.features.shape
