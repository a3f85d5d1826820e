"""Folders of images: classes, splits and Tiny ImageNet's layout, decoded when asked for; what is damaged is named."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeff import image_folder
from edgeff.data import open_dataset
from edgeff.errors import DataError
from edgeff.image_folder import FileNames
from edgeff.rows import row_blocks

RANDOM = np.random.default_rng(0)


def pixels(height: int = 8, width: int = 8) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, array: np.ndarray) -> np.ndarray:
    """Write an image; returns the row that it becomes as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def error_of(call: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def opened(spec: object) -> object:
    return open_dataset(str(spec), data_dir=None)


def classes_in(folder: Path, *, cat: str = "cat", dog: str = "dog") -> list[np.ndarray]:
    return [
        save(folder / cat / "1.PNG", pixels()),
        save(folder / cat / "2.jpg", pixels()),
        save(folder / dog / "a.JPEG", pixels()),
    ]


# --- one folder for each class ---


def test_folders_of_classes_are_read_sorted(tmp_path: Path) -> None:
    rows = classes_in(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_text("no image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("none")

    dataset = open_dataset(str(tmp_path), data_dir=None)

    np.testing.assert_array_equal(dataset.x[:], np.stack(rows))
    np.testing.assert_array_equal(dataset.x[np.array([2, -3])], np.stack([rows[2], rows[0]]))
    assert dataset.x[:0].shape == (0, 3, 8, 8)
    assert dataset.y.tolist() == [0, 0, 1]
    assert dataset.classes == ("cat", "dog")
    assert (dataset.input.shape, dataset.input.dtype) == ((3, 8, 8), "uint8")
    error = error_of(lambda: opened(f"{tmp_path}:train"))
    assert (str(error), error.hint) == (f"`{tmp_path}` has no split `train`", "its splits: none")


def test_splits_have_the_labels_of_the_training_half(tmp_path: Path) -> None:
    classes_in(tmp_path / "train")
    row = save(tmp_path / "val" / "dog" / "b.png", pixels())

    assert len(open_dataset(str(tmp_path), data_dir=None)) == 3
    assert len(open_dataset(f"{tmp_path}:train", data_dir=None)) == 3
    val = open_dataset(f"{tmp_path}:val", data_dir=None)
    assert (val.y.tolist(), val.classes) == ([1], ("cat", "dog"))
    np.testing.assert_array_equal(val.x[:], row[None])
    assert str(error_of(lambda: opened(f"{tmp_path}:test"))) == (
        f"`{tmp_path}` has no images of the split `test`: needed a folder `test` in it"
    )
    save(tmp_path / "val" / "eel" / "b.png", pixels())
    assert str(error_of(lambda: opened(f"{tmp_path}:val"))) == (
        f"`{tmp_path / 'val'}` has a folder `eel`, which is none of the 2 classes of `train`"
    )
    (tmp_path / "test").mkdir()
    assert "has no folders of classes" in str(error_of(lambda: opened(f"{tmp_path}:test")))


def test_a_size_takes_the_square_in_the_middle_and_resizes_it(tmp_path: Path) -> None:
    wide, tall = np.zeros((8, 16, 3), np.uint8), np.zeros((24, 8, 3), np.uint8)
    wide[:, 4:12], tall[8:16] = (10, 20, 30), (40, 50, 60)
    save(tmp_path / "a" / "1.png", wide)
    save(tmp_path / "a" / "2.png", tall)
    small = save(tmp_path / "b" / "3.png", pixels(4, 4))

    for spec, size in ((f"{tmp_path}@4", 4), (f"{tmp_path}@12", 12)):
        dataset = open_dataset(spec, data_dir=None)
        x = dataset.x[:]
        assert (dataset.name, x.shape, dataset.x.shape) == (spec, (3, 3, size, size), (3, 3, size, size))
        assert (x[0] == np.array([10, 20, 30]).reshape(3, 1, 1)).all()
        assert (x[1] == np.array([40, 50, 60]).reshape(3, 1, 1)).all()
    np.testing.assert_array_equal(open_dataset(f"{tmp_path}@4", data_dir=None).x[2:], small[None])

    for size in (0, 4097):
        assert "pixels, needed 1..4,096" in str(error_of(lambda size=size: opened(f"{tmp_path}@{size}")))
    classes_in(tmp_path / "splits" / "train")
    assert open_dataset(f"{tmp_path}/splits:train@5", data_dir=None).input.shape == (3, 5, 5)


def test_a_shrunk_image_is_the_mean_of_what_it_was(tmp_path: Path) -> None:
    fine = np.zeros((64, 64, 3), np.uint8)
    fine[::2, ::2] = 255  # without antialiasing 0 or 255
    save(tmp_path / "a" / "1.png", fine)
    save(tmp_path / "b" / "1.png", fine)
    x = open_dataset(f"{tmp_path}@4", data_dir=None).x[:]
    assert ((x > 55) & (x < 75)).all()


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    classes_in(tmp_path)
    save(tmp_path / "dog" / "b.png", pixels(8, 9))
    error = error_of(lambda: opened(tmp_path))
    assert str(error) == f"`{tmp_path / 'dog' / 'b.png'}` has 9 x 8 pixels, the images before it 8 x 8"
    assert error.hint.startswith("say to which size all are cut and resized")
    assert len(open_dataset(f"{tmp_path}@8", data_dir=None)) == 4


def test_a_size_belongs_to_folders_of_images_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.zeros((2, 2)), y=[0, 1])
    assert "is a file and takes no size `@8`" in str(error_of(lambda: opened(f"{tmp_path}/mine.npz@8")))
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    np.save(tmp_path / "y.npy", [0, 1])
    assert str(error_of(lambda: opened(f"{tmp_path}@8"))) == f"`{tmp_path}` takes no size `@8`"
    folder = tmp_path / "at@8"
    folder.mkdir()
    (tmp_path / "x.npy").rename(folder / "x.npy")
    (tmp_path / "y.npy").rename(folder / "y.npy")
    assert len(open_dataset(str(folder), data_dir=None)) == 2
    assert "is neither a file nor a known data set" in str(error_of(lambda: opened(f"{tmp_path}/none@8")))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(pixels()[:, :, 0]),
        Image.fromarray(pixels()).convert("P"),
        Image.fromarray(pixels()).convert("1"),
        Image.fromarray(pixels()).convert("RGBA"),
        Image.fromarray(pixels()).convert("CMYK"),
    ],
    ids=lambda image: image.mode,
)
def test_other_kinds_of_pixels_become_rgb(tmp_path: Path, image: Image.Image) -> None:
    name = "1.jpg" if image.mode == "CMYK" else "1.png"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / name)
    expected = np.asarray(Image.open(tmp_path / "a" / name).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(open_dataset(str(tmp_path), data_dir=None).x[:], np.stack([expected] * 2))


def test_pixels_that_a_byte_cannot_hold_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", np.zeros((8, 8), np.uint16))
    assert "has pixels of the kind `I;16`, needed 8 bits or less" in str(error_of(lambda: opened(tmp_path)))


def test_colours_of_16_bits_are_refused_which_pillow_would_cut_off(tmp_path: Path) -> None:
    classes_in(tmp_path)
    path = tmp_path / "cat" / "deep.png"
    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    with Image.open(path) as image:
        assert image.mode == "RGB"  # of eight bits each
    assert "deep.png` has 16 bits for each colour, needed 8 or less" in str(error_of(lambda: opened(tmp_path)))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_images_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    classes_in(tmp_path)
    path = tmp_path / "cat" / f"3{suffix}"
    save(path, pixels(64, 64))
    whole = path.read_bytes()

    def said(data: bytes) -> str:
        path.write_bytes(data)
        dataset = open_dataset(f"{tmp_path}@8", data_dir=None)
        return str(error_of(lambda: dataset.x[:]))

    for data in (b"", b"GIF89a" + whole, b"not an image", whole[:20], whole[: len(whole) // 2]):
        assert said(data).startswith(f"`{path}` is not a valid JPEG or PNG file: ")
        assert "0x" not in said(data)
    bmp = io.BytesIO()
    Image.fromarray(pixels()).save(bmp, "BMP")
    assert said(bmp.getvalue()) == f"`{path}` is not a valid JPEG or PNG file: it begins like neither"
    path.write_bytes(b"not an image")
    assert "it begins like neither" in str(error_of(lambda: opened(tmp_path)))

    path.write_bytes(whole)
    dataset = open_dataset(f"{tmp_path}@8", data_dir=None)
    path.unlink()
    assert str(error_of(lambda: dataset.x[:])) == f"`{path}` cannot be read: No such file or directory"


def test_an_image_that_claims_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes_in(tmp_path)
    path = tmp_path / "cat" / "1.PNG"
    data = bytearray(path.read_bytes())
    data[16:24] = (9000).to_bytes(4, "big") * 2  # width and height in the header; its sum no longer fits
    path.write_bytes(data)
    assert "is not a valid JPEG or PNG file" in str(error_of(lambda: opened(f"{tmp_path}@8").x[:]))
    classes_in(tmp_path)
    monkeypatch.setattr(image_folder, "LARGEST_PIXELS", 63)
    assert str(error_of(lambda: opened(f"{tmp_path}@8").x[:])) == f"`{path}` claims 8 x 8 pixels, at most 63 are read"


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    classes_in(tmp_path)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "a.txt").write_text("none")
    assert str(error_of(lambda: opened(tmp_path))) == (
        f"`{tmp_path / 'eel'}` holds no images, needed files that end in .jpg, .jpeg, .png"
    )
    (tmp_path / "eel\n").mkdir()
    assert "whose name cannot be shown" in str(error_of(lambda: opened(tmp_path)))


def test_a_folder_without_images_is_in_no_form(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    error = error_of(lambda: opened(tmp_path))
    assert str(error) == f"`{tmp_path}` is a folder in no form that edgeff reads"
    assert error.hint.endswith("or a folder of a folder of images for each class")


def test_images_are_not_held(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(pixels(256, 256)).save(data, "PNG", compress_level=1)
    for number in range(120):  # 24 MB decoded
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.getvalue())
    for spec in (str(tmp_path), f"{tmp_path}@200"):
        tracemalloc.start()
        try:
            assert sum(len(block) for _, block in row_blocks(open_dataset(spec, data_dir=None).x)) == 120
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 << 20


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes_in(tmp_path)
    opens: list[str] = []
    actual = image_folder._opened

    def spied(path: Path) -> object:
        opens.append(path.name)
        return actual(path)

    monkeypatch.setattr(image_folder, "_opened", spied)
    dataset = open_dataset(f"{tmp_path}@4", data_dir=None)
    assert opens == []
    dataset.x[1:2]
    assert opens == ["2.jpg"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)))
def test_names_of_files_come_out_as_they_went_in(names: list[str]) -> None:
    kept = FileNames.of(names)
    assert [kept[number] for number in range(len(kept))] == names


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".png", ".jpg"]))
def test_a_changed_image_is_read_or_refused(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(whole, "PNG" if suffix == ".png" else "JPEG")
    changed = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path / f"of{suffix}"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"1{suffix}").write_bytes(changed)
    try:
        x = open_dataset(f"{folder}@8", data_dir=None).x[:]
    except DataError:
        return
    assert x.shape == (2, 3, 8, 8)


WITHOUT = """
import sys
sys.modules["PIL"] = None
from edgeff.data import open_dataset
from edgeff.errors import DataError
for spec in sys.argv[1:]:
    try:
        open_dataset(spec, data_dir=None)
    except DataError as error:
        print(error, "|", error.hint)
"""


def test_without_pillow_the_extra_is_named(tmp_path: Path) -> None:
    classes_in(tmp_path)
    command = [sys.executable, "-c", WITHOUT, str(tmp_path), f"{tmp_path}@8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    line = "folders of images need Pillow | install it with `pip install 'edgeff[images]'`"
    assert done.stdout.splitlines() == [line, line]


# --- Tiny ImageNet ---

WNIDS = ("n02", "n01")  # not sorted


def tiny(folder: Path) -> list[np.ndarray]:
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (folder / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\n")
    rows = []
    for wnid in WNIDS:
        for number in range(2):
            rows.append(save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", pixels()))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\t0\t62\t62\n")
    for number in range(3):
        rows.append(save(folder / "val" / "images" / f"val_{number}.JPEG", pixels()))
    boxes = ("val_1.JPEG\tn01\t0\t32\t44\t62", "val_0.JPEG\tn02\t0\t0\t63\t63", "val_2.JPEG\tn01\t1\t1\t2\t2")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(boxes) + "\n")
    save(folder / "test" / "images" / "test_0.JPEG", pixels())
    return rows


@pytest.mark.parametrize("folder", ["tiny-imagenet", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read_in_its_official_layout(tmp_path: Path, folder: str) -> None:
    rows = tiny(tmp_path / folder)

    train = open_dataset("tiny-imagenet", data_dir=tmp_path)
    val = open_dataset("tiny-imagenet:val", data_dir=tmp_path)

    np.testing.assert_array_equal(train.x[:], np.stack(rows[:4]))
    np.testing.assert_array_equal(val.x[:], np.stack([rows[5], rows[4], rows[6]]))
    assert (train.y.tolist(), val.y.tolist()) == ([0, 0, 1, 1], [1, 0, 1])
    assert train.classes == val.classes == ("n02", "goldfish, Carassius auratus")
    assert open_dataset("tiny-imagenet:val@4", data_dir=tmp_path).x[:].shape == (3, 3, 4, 4)
    assert error_of(lambda: open_dataset("tiny-imagenet:test", data_dir=tmp_path)).hint == "its splits: `train`, `val`"
    (tmp_path / folder / "words.txt").unlink()
    assert open_dataset("tiny-imagenet", data_dir=tmp_path).classes == WNIDS


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("wnids.txt", b"", "`{}/wnids.txt` is no list of classes, each once on a line of its own"),
        ("wnids.txt", b"n01\nn01\n", "`{}/wnids.txt` is no list of classes, each once on a line of its own"),
        (
            "wnids.txt",
            b"../n01\n",
            "`{}/wnids.txt` is no list of classes, each once on a line of its own: it has '../",
        ),
        ("wnids.txt", b"\xff", "`{}/wnids.txt` is not a valid list"),
        ("wnids.txt", b"n01\nn02\nn03\n", "`{}/train` has no folder `n03`, a class of `wnids.txt`"),
        ("val/val_annotations.txt", b"", "`{}/val/val_annotations.txt` has no labels"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn01\n", "`val_1.JPEG` is not both an image in `{}/val/images` and a"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn09\n", "line 1 of `{}/val/val_annotations.txt` must have an image"),
        ("val/val_annotations.txt", b"../a.JPEG\tn01\n", "line 1 of `{}/val/val_annotations.txt` must have an image"),
        ("val/val_annotations.txt", b"a\tn01\na\tn01\n", "line 2 of `{}/val/val_annotations.txt` must have an image"),
        ("val/val_annotations.txt", b"val_0.JPEG\n", "line 1 of `{}/val/val_annotations.txt` must have an image"),
        ("val/val_annotations.txt", None, "`{}/val/val_annotations.txt` cannot be read: No such file"),
        ("train/n01/images/n01_0.JPEG", b"none", "`{}/train/n01/images/n01_0.JPEG` is not a valid JPEG or PNG file"),
    ],
)
def test_a_damaged_tiny_imagenet_is_refused(tmp_path: Path, name: str, text: bytes | None, said: str) -> None:
    folder = tmp_path / "tiny"
    tiny(folder)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(text)
    split = "val" if name.startswith("val") else "train"
    assert str(error_of(lambda: opened(f"{folder}:{split}"))).startswith(said.format(folder))


def test_a_class_of_tiny_imagenet_without_images_is_refused(tmp_path: Path) -> None:
    tiny(tmp_path / "tiny")
    for path in (tmp_path / "tiny" / "train" / "n01" / "images").iterdir():
        path.unlink()
    assert "tiny/train/n01/images` holds no images" in str(error_of(lambda: opened(tmp_path / "tiny")))
