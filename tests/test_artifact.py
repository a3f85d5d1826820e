"""Artifacts on disk: one test per MUST of `docs/artifact-format.md` from M34 on, writing, and reading."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import stat
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from graph_files import graph_files, inference_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeff import disk
from edgeff.artifact import open_artifact, write_artifact
from edgeff.errors import ArtifactError
from edgeff.manifest import ReplaySpec
from edgeff.manifest_json import MAX_MANIFEST_BYTES, from_json, to_json
from edgeff.manifest_rules import weight_specs
from edgeff.tensor_file import DTYPES, read_index, read_tensor

GOLDEN = Path(__file__).parent / "golden" / "manifest-v5.json"
MANIFEST = from_json(GOLDEN.read_text(encoding="utf-8"))
WEIGHTS = "weights.safetensors"
REPLAY = "replay.safetensors"
STEP = "blocks/head.step.onnx"
GRAPHS = graph_files(MANIFEST)


def weights():
    rng = np.random.default_rng(7)
    return {key: rng.standard_normal(spec.shape).astype(spec.dtype) for key, spec in weight_specs(MANIFEST).items()}


def replay_rows():
    rng = np.random.default_rng(8)
    return {"x": rng.integers(0, 256, (4, 8, 8)).astype(np.uint8), "y": np.array([0, 2, 1, 2], np.int64)}


def contents(**other):
    """Every file of a good artifact, some replaced; graphs have the right inputs and outputs, and nothing inside."""
    files = dict(GRAPHS)
    files[WEIGHTS] = safetensors.numpy.save(weights())
    files[REPLAY] = safetensors.numpy.save(replay_rows())
    return files | {file.replace("__", "."): data for file, data in other.items()}


def written(tmp_path, name="demo", manifest=MANIFEST, files=None):
    return write_artifact(manifest, contents() if files is None else files, tmp_path / name)


@pytest.fixture(params=["demo", "demo.zip"])
def good(request, tmp_path):
    return written(tmp_path, request.param)


def refusal(call, *arguments):
    with pytest.raises(ArtifactError) as caught:
        call(*arguments)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


def replace_file(folder, file, data):
    """Put other bytes into a written artifact and make its manifest agree, as a faulty exporter would."""
    (folder / file).write_bytes(data)
    path = folder / "manifest.json"
    root = json.loads(path.read_text(encoding="utf-8"))
    root["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(root), encoding="utf-8")
    return folder


def pack(path, members):
    """A zip of members as they come: `(name or ZipInfo, data)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names, which are wanted here
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members:
                archive.writestr(name, data)
    return path


def members_of(folder):
    return [(p.relative_to(folder).as_posix(), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]


# --- reading a good one ----------------------------------------------------------------------------------------------


def test_a_written_artifact_opens_and_says_what_was_written(good):
    artifact = open_artifact(good)
    assert artifact.path == good
    assert dataclasses.replace(artifact.manifest, files={}) == dataclasses.replace(MANIFEST, files={})
    assert artifact.manifest_sha256 == hashlib.sha256(artifact.read("manifest.json")).hexdigest()
    assert artifact.read(STEP) == GRAPHS[STEP]


def test_all_tensors_come_back(good):
    found = open_artifact(good).tensors()
    expected = weights()
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert found[key].flags.c_contiguous
        assert found[key].flags.writeable
        np.testing.assert_array_equal(found[key], value)


def test_only_the_tensors_asked_for_come_back_in_the_order_asked(good):
    names = ["head.transform.weight", "conv1.transform.bias"]
    found = open_artifact(good).tensors(names)
    assert list(found) == names
    np.testing.assert_array_equal(found[names[1]], weights()[names[1]])


def test_a_tensor_the_weights_do_not_have_is_named(good):
    message = refusal(open_artifact(good).tensors, ["conv1.gone"])
    assert message == "`weights.safetensors` lacks the tensor `conv1.gone`"


def test_replay_rows_come_back(good):
    x, y = open_artifact(good).replay()
    np.testing.assert_array_equal(x, replay_rows()["x"])
    np.testing.assert_array_equal(y, replay_rows()["y"])
    assert (x.dtype, y.dtype) == (np.uint8, np.int64)


def test_an_artifact_without_replay_rows_has_none(tmp_path):
    files = contents()
    del files[REPLAY]
    artifact = open_artifact(written(tmp_path, manifest=dataclasses.replace(MANIFEST, replay=None), files=files))
    assert artifact.replay() is None


def test_a_file_lies_in_the_folder_and_has_no_path_in_a_zip(tmp_path):
    folder, packed = open_artifact(written(tmp_path)), open_artifact(written(tmp_path, "demo.zip"))
    assert folder.path_of(STEP) == tmp_path / "demo" / "blocks" / "head.step.onnx"
    assert packed.path_of(STEP) is None


@pytest.mark.parametrize("file", ["gone.onnx", "../demo/manifest.json", "/etc/passwd"])
def test_only_files_of_the_artifact_are_read(good, file):
    artifact = open_artifact(good)
    assert refusal(artifact.read, file) == f"`{good}` has no file `{file}`"
    assert refusal(artifact.path_of, file) == f"`{good}` has no file `{file}`"


def test_a_folder_may_be_reached_through_a_link(tmp_path):
    (tmp_path / "latest").symlink_to(written(tmp_path))
    assert open_artifact(tmp_path / "latest").manifest.name == "tiny"


def test_opening_holds_chunks_of_the_weights_and_reading_holds_what_is_asked_for(tmp_path):
    """The weights have 24 MiB: opening may take a few of them at a time, reading a tensor of 8 MiB little more."""
    big = {f"t{index}": np.ones((2048, 1024), np.float32) for index in range(3)}
    specs = tuple(dataclasses.replace(MANIFEST.features, name=name, shape=value.shape) for name, value in big.items())
    blocks = (MANIFEST.blocks[0], dataclasses.replace(MANIFEST.blocks[1], buffers=specs))
    tensors = weights() | {f"head.{name}": value for name, value in big.items()}
    files = contents(weights__safetensors=safetensors.numpy.save(tensors))
    out = written(tmp_path, "big.zip", dataclasses.replace(MANIFEST, blocks=blocks), files)
    del files, tensors, big
    tracemalloc.start()
    try:
        artifact = open_artifact(out)
        opening = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = artifact.tensors(["head.t1"])
        reading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["head.t1"].nbytes == 8 * 2**20
    assert opening < 6 * 2**20
    assert reading < 12 * 2**20


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "demo.zip"])
def test_the_same_input_gives_the_same_bytes(tmp_path, name):
    first = written(tmp_path / "a", name)
    second = written(tmp_path / "b", name, files=dict(reversed(contents().items())))
    if name == "demo":
        assert members_of(first) == members_of(second)
    else:
        assert first.read_bytes() == second.read_bytes()


def test_a_zip_is_sorted_stored_and_has_no_dates(tmp_path):
    with zipfile.ZipFile(written(tmp_path, "demo.zip")) as archive:
        members = archive.infolist()
    assert [m.filename for m in members] == sorted([*contents(), "manifest.json"])
    assert {(m.compress_type, m.date_time, m.create_system) for m in members} == {
        (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), 3)
    }


def test_a_zip_packed_by_another_program_opens_too(tmp_path):
    packed = pack(tmp_path / "other.zip", members_of(written(tmp_path)))
    assert open_artifact(packed).tensors(["conv1.transform.bias"])["conv1.transform.bias"].shape == (2,)


def test_contents_may_be_copied_from_files(tmp_path):
    source = tmp_path / "made.onnx"
    source.write_bytes(GRAPHS["inference.onnx"])
    files = contents(inference__onnx=source)
    assert members_of(written(tmp_path, "copied", files=files)) == members_of(written(tmp_path))


def test_folders_above_are_made_and_only_the_artifact_is_left(tmp_path):
    written(tmp_path, "a/b/demo.zip")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["demo.zip"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_a_folder_has_the_rights_any_new_folder_has(tmp_path):
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(written(tmp_path).stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("name", ["demo", "demo.zip"])
def test_what_exists_is_never_written_over(tmp_path, name):
    out = written(tmp_path, name)
    before = members_of(tmp_path)
    assert refusal(write_artifact, MANIFEST, contents(), out) == f"`{out}` exists already"
    assert members_of(tmp_path) == before


def test_a_dangling_link_is_not_written_over(tmp_path):
    (tmp_path / "demo").symlink_to(tmp_path / "nowhere")
    assert refusal(written, tmp_path) == f"`{tmp_path / 'demo'}` exists already"


@pytest.mark.parametrize("file", ["../stray", "/tmp/stray", "a\\b", "sub/../../stray"])
def test_contents_cannot_be_written_outside(tmp_path, file):
    message = refusal(written, tmp_path, "sub/demo", MANIFEST, contents() | {file: b""})
    assert message == f"`file to write` must be a relative path inside the artifact, got `{json.dumps(file)}`"
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_breaks_a_rule_is_not_written(tmp_path):
    broken = dataclasses.replace(MANIFEST, classes=("one",))
    assert refusal(written, tmp_path, "demo", broken) == "`classes` must name at least 2 classes, got 1"
    assert list(tmp_path.iterdir()) == []


def test_weights_that_break_a_rule_are_not_written(tmp_path):
    bad = weights() | {"conv1.transform.bias": np.array([0, np.nan], np.float32)}
    files = contents(weights__safetensors=safetensors.numpy.save(bad))
    message = refusal(written, tmp_path, "demo.zip", MANIFEST, files)
    assert message == "`weights.safetensors`: `conv1.transform.bias` has a value that is not finite"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind_and_says_so(tmp_path, monkeypatch):
    def full(stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "sync", full)
    with pytest.raises(ArtifactError) as caught:
        written(tmp_path)
    assert str(caught.value) == f"cannot write `{tmp_path / 'demo'}`: no space left on device"
    assert caught.value.hint == "free some space, or write to another disk"
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_not_there_is_an_artifact_error(tmp_path):
    message = refusal(written, tmp_path, "demo", MANIFEST, contents(inference__onnx=tmp_path / "gone"))
    assert message == f"cannot write `{tmp_path / 'demo'}`: no such file or directory"


def test_everything_is_forced_to_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    real_fsync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), real_fsync(handle))[1])
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append("rename"), real_rename(*paths))[1])
    written(tmp_path)
    files, folders = len(contents()) + 1, 2
    assert events == ["fsync"] * (files + folders) + ["rename", "fsync"]


# --- the manifest's file ---------------------------------------------------------------------------------------------


def test_what_is_not_there_or_no_artifact_is_refused(tmp_path):
    assert refusal(open_artifact, tmp_path / "gone") == f"`{tmp_path / 'gone'}` does not exist"
    (tmp_path / "text").write_text("hello")
    assert refusal(open_artifact, tmp_path / "text") == (
        f"`{tmp_path / 'text'}` is no artifact: neither a folder nor a whole zip"
    )
    assert refusal(open_artifact, tmp_path) == f"`{tmp_path}` has no `manifest.json`"


def test_m1_a_manifest_that_is_not_utf8_is_refused(tmp_path):
    out = written(tmp_path)
    (out / "manifest.json").write_bytes(b'{"format": "\xff"}')
    assert refusal(open_artifact, out) == f"`manifest.json` of `{out}` is not UTF-8: invalid start byte"


def test_m1_a_manifest_above_16_mib_is_not_even_read(tmp_path):
    out = written(tmp_path)
    with open(out / "manifest.json", "r+b") as stream:
        stream.truncate(MAX_MANIFEST_BYTES + 1)
    assert refusal(open_artifact, out) == (f"`manifest.json` of `{out}` must have at most 16777216 bytes, got 16777217")


def test_a_broken_rule_of_the_manifest_names_the_artifact(tmp_path):
    out = written(tmp_path)
    (out / "manifest.json").write_text("{}")
    assert refusal(open_artifact, out) == f"`manifest.json` of `{out}`: `format` must be `edgeff-artifact`"


def test_m10_a_newer_artifact_is_refused_before_its_files_are_looked_at(good, tmp_path):
    members = members_of(good) if good.is_dir() else members_of(written(tmp_path, "again"))
    newer = json.dumps({"format": "edgeff-artifact", "format_version": 6, "edgeff_version": "0.9.0"}).encode()
    packed = pack(tmp_path / "newer.zip", [(n, newer if n == "manifest.json" else d) for n, d in members])
    assert "artifact format 6 was written by edgeff 0.9.0" in refusal(open_artifact, packed)


# --- the listing -----------------------------------------------------------------------------------------------------


def test_m34_a_missing_file_is_named(tmp_path):
    out = written(tmp_path)
    (out / STEP).unlink()
    assert refusal(open_artifact, out) == f"`{out}` lacks `{STEP}`"


def test_m34_a_truncated_file_is_named_with_its_sizes(tmp_path):
    out = written(tmp_path)
    size = (out / WEIGHTS).stat().st_size
    os.truncate(out / WEIGHTS, size - 1)
    message = refusal(open_artifact, out)
    assert message == f"`{WEIGHTS}` in `{out}` must have {size} bytes, got {size - 1}"


def test_m34_a_member_missing_from_a_zip_is_named(tmp_path):
    members = [member for member in members_of(written(tmp_path)) if member[0] != STEP]
    packed = pack(tmp_path / "part.zip", members)
    assert refusal(open_artifact, packed) == f"`{packed}` lacks `{STEP}`"


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_m35_an_edited_file_is_named_with_both_hashes(tmp_path, form):
    out = written(tmp_path)
    data = (out / STEP).read_bytes()
    edited = data[:-1] + b"!"
    (out / STEP).write_bytes(edited)
    if form == "zip":
        out = pack(tmp_path / "edited.zip", members_of(out))
    needed, got = hashlib.sha256(data).hexdigest(), hashlib.sha256(edited).hexdigest()
    assert refusal(open_artifact, out) == f"`{STEP}` in `{out}` must have sha256 {needed}, got {got}"


def test_m36_a_file_that_is_not_listed_is_refused(tmp_path):
    out = written(tmp_path)
    (out / "blocks" / "extra\n.onnx").write_bytes(b"")
    assert refusal(open_artifact, out) == (f'`{out}` holds `"blocks/extra\\n.onnx"`, which its manifest does not list')


def test_m36_a_member_that_is_not_listed_is_refused(tmp_path):
    packed = pack(tmp_path / "more.zip", [*members_of(written(tmp_path)), ("extra", b"")])
    assert refusal(open_artifact, packed) == f'`{packed}` holds `"extra"`, which its manifest does not list'


def test_m37_a_link_is_refused_even_to_the_right_bytes(tmp_path):
    out = written(tmp_path)
    (out / STEP).rename(tmp_path / "moved")
    (out / STEP).symlink_to(tmp_path / "moved")
    assert refusal(open_artifact, out) == f'`{out}` holds the link `"{STEP}"`'


def test_m37_a_linked_folder_is_refused(tmp_path):
    out = written(tmp_path)
    (out / "blocks").rename(tmp_path / "moved")
    (out / "blocks").symlink_to(tmp_path / "moved")
    assert refusal(open_artifact, out) == f'`{out}` holds the link `"blocks"`'


def test_m36_folders_deeper_than_any_listed_file_are_refused(tmp_path):
    out = written(tmp_path)
    os.makedirs(out / "blocks" / "/".join("d" * 40))
    assert refusal(open_artifact, out) == f"`{out}` has folders inside folders too deep"


def test_the_directory_of_a_zip_is_read_no_oftener_for_many_files(tmp_path, monkeypatch):
    """Else a small file of a few thousand members would keep its reader busy for hours."""
    many = {f"more/{number}": b"" for number in range(300)}
    empty = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    members = dict(members_of(written(tmp_path)))
    root = json.loads(members["manifest.json"])
    root["files"] |= dict.fromkeys(many, empty)
    path = pack(tmp_path / "many.zip", [*(members | {"manifest.json": json.dumps(root).encode()} | many).items()])
    read = []
    real = zipfile.ZipFile._RealGetContents
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", lambda archive: read.append(1) or real(archive))
    open_artifact(path)
    assert len(read) < 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_m37_a_special_file_is_refused_and_never_opened(tmp_path):
    out = written(tmp_path)
    (out / STEP).unlink()
    os.mkfifo(out / STEP)
    assert refusal(open_artifact, out) == f'`{out}` holds `"{STEP}"`, which is no file'


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system cannot refuse to follow links")
def test_m37_a_link_that_takes_a_files_place_later_is_not_followed(tmp_path):
    artifact = open_artifact(written(tmp_path))
    (artifact.path / STEP).unlink()
    (artifact.path / STEP).symlink_to("/etc/hostname")
    assert refusal(artifact.read, STEP).startswith(f"cannot read `{artifact.path / STEP}`: ")


# --- zips ------------------------------------------------------------------------------------------------------------


def test_m38_a_compressed_member_is_refused(tmp_path):
    packed = tmp_path / "small.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members_of(written(tmp_path)):
            archive.writestr(name, data)
    assert refusal(open_artifact, packed) == f"`{packed}` holds `blocks/conv1.accumulate.onnx` compressed"


def test_m38_a_member_given_twice_is_refused(tmp_path):
    members = members_of(written(tmp_path))
    packed = pack(tmp_path / "twice.zip", [*members, (STEP, b"other")])
    assert refusal(open_artifact, packed) == f"`{packed}` holds `{STEP}` twice"


def test_m38_an_encrypted_member_is_refused(tmp_path):
    packed = written(tmp_path, "demo.zip")
    data = bytearray(packed.read_bytes())
    first = data.index(b"PK\x01\x02")  # of the central directory, which is what a reader goes by
    data[first + 8] |= 1
    packed.write_bytes(data)
    assert refusal(open_artifact, packed) == f"`{packed}` holds `blocks/conv1.accumulate.onnx` encrypted"


def test_m38_a_link_in_a_zip_is_refused(tmp_path):
    link = zipfile.ZipInfo(STEP)
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    members = [(link if name == STEP else name, data) for name, data in members_of(written(tmp_path))]
    packed = pack(tmp_path / "link.zip", members)
    assert refusal(open_artifact, packed) == f"`{packed}` holds the link `{STEP}`"


@pytest.mark.parametrize("name", ["../stray", "/etc/stray", "a\\b", "blocks/", "C:/x"])
def test_m38_a_member_that_leaves_the_artifact_or_is_no_file_is_refused(tmp_path, name):
    packed = pack(tmp_path / "stray.zip", [*members_of(written(tmp_path)), (name, b"")])
    message = refusal(open_artifact, packed)
    assert message == f"`{packed}` holds `{json.dumps(name)}`, which is no relative path inside the artifact"


def test_m38_a_name_with_a_nul_inside_is_refused(tmp_path):
    packed = pack(tmp_path / "nul.zip", [*members_of(written(tmp_path)), ("extraQ.txt", b"")])
    packed.write_bytes(packed.read_bytes().replace(b"extraQ.txt", b"extra\0.txt"))
    message = refusal(open_artifact, packed)
    assert message == f'`{packed}` holds `"extra\\u0000.txt"`, which is no relative path inside the artifact'


def test_m38_a_truncated_zip_is_refused(tmp_path):
    packed = written(tmp_path, "demo.zip")
    os.truncate(packed, packed.stat().st_size - 30)
    assert refusal(open_artifact, packed) == f"`{packed}` is no artifact: neither a folder nor a whole zip"


def test_m38_a_zip_whose_manifest_was_damaged_is_refused_by_its_checksum(tmp_path):
    packed = written(tmp_path, "demo.zip")
    packed.write_bytes(packed.read_bytes().replace(b'"name": "tiny"', b'"name": "tina"'))
    assert refusal(open_artifact, packed) == f"`{packed}` is a damaged zip: Bad CRC-32 for file 'manifest.json'"


def test_m38_a_zip_whose_directory_is_damaged_is_refused(tmp_path):
    packed = written(tmp_path, "demo.zip")
    data = bytearray(packed.read_bytes())
    data[data.index(b"PK\x01\x02")] = 0
    packed.write_bytes(data)
    assert refusal(open_artifact, packed).startswith(f"`{packed}` is a damaged zip: ")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_m38_whatever_byte_of_a_zip_is_changed_the_artifact_is_refused_or_the_same(tmp_path_factory, data):
    base = tmp_path_factory.getbasetemp()
    good = base / "fuzzed-good.zip"
    if not good.exists():
        write_artifact(MANIFEST, contents(), good)
    changed = bytearray(good.read_bytes())
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position] ^= data.draw(st.integers(1, 255))
    bad = base / "fuzzed-bad.zip"
    bad.write_bytes(changed)
    try:
        artifact = open_artifact(bad)
    except ArtifactError:
        return
    assert to_json(artifact.manifest) == to_json(open_artifact(good).manifest)
    np.testing.assert_equal(artifact.tensors(), weights())


# --- safetensors files -----------------------------------------------------------------------------------------------


def tensor_file(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DTYPES_NEEDED = ", ".join(f"`{dtype}`" for dtype in sorted(DTYPES))

BROKEN_FILES = {
    "empty": (b"", "`weights.safetensors` is not a safetensors file: header of 0 bytes"),
    "short length": (b"\1\2\3", "`weights.safetensors` is not a safetensors file: header of 197121 bytes"),
    "header longer than the file": (
        struct.pack("<Q", 99) + b"{}",
        "`weights.safetensors` is not a safetensors file: header of 99 bytes",
    ),
    "header above the cap": (
        struct.pack("<Q", 2**63) + b"{}",
        "`weights.safetensors` is not a safetensors file: header of 9223372036854775808 bytes",
    ),
    "header not UTF-8": (
        tensor_file(b'{"\xff":1}', b""),
        "`weights.safetensors` is not a safetensors file: its header is not UTF-8",
    ),
    "header not JSON": (
        tensor_file(b"{]", b""),
        "`weights.safetensors` is not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ),
    "header no object": (tensor_file([], b""), "`weights.safetensors` must be an object, got a list of 0"),
    "tensor given twice": (
        tensor_file(b'{"a": 1, "a": 1}', b""),
        "key `weights.safetensors.a` is given twice",
    ),
    "unknown key": (
        tensor_file({"a": entry() | {"more": 1}}, bytes(4)),
        "unknown key `weights.safetensors.a.more`",
    ),
    "missing key": (
        tensor_file({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        "missing key `weights.safetensors.a.data_offsets`",
    ),
    "unknown dtype": (
        tensor_file({"a": entry("BF16", (2,))}, bytes(4)),
        f'`weights.safetensors.a.dtype` must be one of {DTYPES_NEEDED}, got `"BF16"`',
    ),
    "negative size": (
        tensor_file({"a": entry(shape=(-1,))}, bytes(4)),
        "`weights.safetensors.a.shape[0]` must be a whole number, 0 or more, got `-1`",
    ),
    "three offsets": (
        tensor_file({"a": entry(offsets=(0, 2, 4))}, bytes(4)),
        "`weights.safetensors.a.data_offsets` must be two offsets, got a list of 3",
    ),
    "offsets that do not fit the shape": (
        tensor_file({"a": entry(shape=(2,))}, bytes(4)),
        "`weights.safetensors`: the bytes of `a` must stand at 0 to 8, got 0 to 4",
    ),
    "hole": (
        tensor_file({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
        "`weights.safetensors`: the bytes of `b` must stand at 4 to 8, got 8 to 12",
    ),
    "overlap": (
        tensor_file({"a": entry(), "b": entry()}, bytes(4)),
        "`weights.safetensors`: the bytes of `b` must stand at 4 to 8, got 0 to 4",
    ),
    "bytes after the last tensor": (
        tensor_file({"a": entry()}, bytes(5)),
        "`weights.safetensors` must have 73 bytes by its header, got 74",
    ),
    "bytes missing": (
        tensor_file({"a": entry()}, bytes(3)),
        "`weights.safetensors` must have 73 bytes by its header, got 72",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_m39_a_malformed_safetensors_file_is_refused(tmp_path, case):
    data, message = BROKEN_FILES[case]
    out = replace_file(written(tmp_path), WEIGHTS, data)
    assert refusal(open_artifact, out) == message


arrays = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in DTYPES.values()]), hnp.array_shapes(min_dims=0, min_side=0, max_side=5)
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=("C", "Z")), max_size=6), arrays, max_size=4))
def test_m39_what_the_safetensors_library_writes_is_read_the_same(tensors):
    if "__metadata__" in tensors:
        return
    stream = io.BytesIO(safetensors.numpy.save(tensors))
    index = read_index(stream, len(stream.getvalue()), "file")
    assert set(index) == set(tensors)
    for name, value in tensors.items():
        found = read_tensor(stream, index[name])
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.tobytes() == value.tobytes()


def test_m39_metadata_of_a_safetensors_file_is_passed_over(tmp_path):
    files = contents(weights__safetensors=safetensors.numpy.save(weights(), metadata={"made": "here"}))
    assert len(open_artifact(written(tmp_path, files=files)).tensors()) == 4


def with_weights(tmp_path, **changes):
    tensors = weights() | {name.replace("__", "."): value for name, value in changes.items()}
    return replace_file(written(tmp_path), WEIGHTS, safetensors.numpy.save(tensors))


def test_m40_a_missing_weight_is_named(tmp_path):
    tensors = weights()
    del tensors["head.transform.weight"]
    out = replace_file(written(tmp_path), WEIGHTS, safetensors.numpy.save(tensors))
    assert refusal(open_artifact, out) == f"`{WEIGHTS}` lacks the tensor `head.transform.weight`"


def test_m40_a_weight_nobody_has_is_named(tmp_path):
    out = with_weights(tmp_path, head__extra=np.zeros(1, np.float32))
    assert refusal(open_artifact, out) == (
        f"`{WEIGHTS}` holds the tensor `head.extra`, which the manifest does not name"
    )


@pytest.mark.parametrize(
    ("value", "got"), [(np.zeros((2, 1), np.float32), "float32 [2, 1]"), (np.zeros(2, np.float64), "float64 [2]")]
)
def test_m40_a_weight_of_another_shape_or_dtype_is_named(tmp_path, value, got):
    out = with_weights(tmp_path, conv1__transform__bias=value)
    assert refusal(open_artifact, out) == f"`{WEIGHTS}`: `conv1.transform.bias` must be float32 [2], got {got}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_m41_a_weight_that_is_not_finite_is_named(tmp_path, value):
    out = with_weights(tmp_path, conv1__transform__bias=np.array([0, value], np.float32))
    assert refusal(open_artifact, out) == f"`{WEIGHTS}`: `conv1.transform.bias` has a value that is not finite"


def test_m41_the_largest_finite_weight_is_read(tmp_path):
    largest = np.full(2, np.finfo(np.float32).max, np.float32)
    found = open_artifact(with_weights(tmp_path, conv1__transform__bias=largest)).tensors()
    np.testing.assert_array_equal(found["conv1.transform.bias"], largest)


def test_m41_a_value_that_is_not_finite_is_found_in_the_last_of_many_chunks(tmp_path):
    """The rows have 3 MiB of float32 and are checked in chunks."""
    x = np.zeros((12288, 8, 8), np.float32)
    x[-1, -1, -1] = np.nan
    manifest = dataclasses.replace(
        MANIFEST,
        input=dataclasses.replace(MANIFEST.input, dtype="float32"),
        replay=ReplaySpec(REPLAY, len(x)),
    )
    files = contents(replay__safetensors=safetensors.numpy.save({"x": x, "y": np.zeros(len(x), np.int64)}))
    files["inference.onnx"] = inference_bytes(manifest)
    message = refusal(written, tmp_path, "demo", manifest, files)
    assert message == f"`{REPLAY}`: `x` has a value that is not finite"


def test_m41_a_truth_value_other_than_0_and_1_is_refused(tmp_path):
    buffers = (dataclasses.replace(MANIFEST.features, name="mask", shape=(2,), dtype="bool"),)
    blocks = (MANIFEST.blocks[0], dataclasses.replace(MANIFEST.blocks[1], buffers=buffers))
    data = safetensors.numpy.save(weights() | {"head.mask": np.array([2, 1], np.uint8)})
    files = contents(weights__safetensors=data.replace(b'"U8"', b'"BOOL"'))
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"U8"', b'"BOOL"')
    files[WEIGHTS] = struct.pack("<Q", len(header)) + header + data[8 + size :]
    message = refusal(written, tmp_path, "demo", dataclasses.replace(MANIFEST, blocks=blocks), files)
    assert message == f"`{WEIGHTS}`: `head.mask` has a truth value other than 0 and 1"


# --- replay rows -----------------------------------------------------------------------------------------------------


def replayed(**changes):
    return safetensors.numpy.save({k: v for k, v in (replay_rows() | changes).items() if v is not None})


BROKEN_REPLAY = {
    "no labels": (replayed(y=None), "`replay.safetensors` lacks the tensor `y`"),
    "another row": (
        replayed(x=np.zeros((4, 8, 9), np.uint8)),
        "`replay.safetensors`: `x` must be uint8 [4, 8, 8], got uint8 [4, 8, 9]",
    ),
    "another dtype": (
        replayed(x=np.zeros((4, 8, 8), np.float32)),
        "`replay.safetensors`: `x` must be uint8 [4, 8, 8], got float32 [4, 8, 8]",
    ),
    "fewer rows than said": (
        replayed(x=np.zeros((3, 8, 8), np.uint8), y=np.zeros(3, np.int64)),
        "`replay.safetensors`: `x` must be uint8 [4, 8, 8], got uint8 [3, 8, 8]",
    ),
    "labels of 32 bits": (
        replayed(y=np.zeros(4, np.int32)),
        "`replay.safetensors`: `y` must be int64 [4], got int32 [4]",
    ),
    "label beyond the classes": (
        replayed(y=np.array([0, 1, 2, 3])),
        "`replay.safetensors`: labels in `y` must be 0 to 2, got 3",
    ),
    "negative label": (
        replayed(y=np.array([0, 1, -1, 2])),
        "`replay.safetensors`: labels in `y` must be 0 to 2, got -1",
    ),
    "more tensors": (
        replayed(z=np.zeros(1, np.float32)),
        "`replay.safetensors` holds the tensor `z`, which the manifest does not name",
    ),
}


@pytest.mark.parametrize("case", BROKEN_REPLAY)
def test_m42_replay_rows_that_do_not_fit_the_manifest_are_refused(tmp_path, case):
    data, message = BROKEN_REPLAY[case]
    assert refusal(open_artifact, replace_file(written(tmp_path), REPLAY, data)) == message
