"""Readers of artifacts: manifest, baseline, weights, zip."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.numpy
from fuzz import words
from fuzz.base import Target, attempt, joined, parts, put

from edgeff import onnx_files
from edgeff.artifact import Artifact, open_artifact
from edgeff.baselines import BASELINES, baseline_file
from edgeff.errors import EdgeffError
from edgeff.inspect import inspect_json, inspect_text
from edgeff.manifest import Manifest
from edgeff.manifest_json import from_json, to_json
from edgeff.manifest_rules import weight_specs
from edgeff.preprocess import Preprocessing
from edgeff.runtime.plan import plan, smallest_budget
from edgeff.runtime.plan_parts import Request
from edgeff.runtime.tensor_stream import read_all_tensors
from edgeff.tensor_file import check_values, read_index, read_tensor

MANIFEST, WEIGHTS, INNER = "manifest.json", "weights.safetensors", baseline_file(BASELINES[0])
# Of a file that is made for a manifest under test.
_LARGEST_MADE = 1 << 16
_LARGEST_ROW = 1 << 14


@cache
def tiny_files(blocks: int = 2) -> dict[str, bytes]:
    """A small good artifact, by path."""
    from tiny_artifact import Tiny, write_tiny

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "tiny")
        write_tiny(root, Tiny(blocks=blocks, replay_rows=3))
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {**files, MANIFEST: _small(files[MANIFEST])}


def _small(manifest: bytes) -> bytes:
    return json.dumps(json.loads(manifest), separators=(",", ":")).encode()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """The files and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    for file, data in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        put(root / file, data)
    return root


def with_truth(manifest: bytes, files: Mapping[str, bytes]) -> bytes:
    """The manifest with true sizes and hashes of the files it lists: the reader then gets past its checks of them."""
    try:
        root = json.loads(manifest)
        for file in root["files"]:
            if file in files:
                found = files[file]
                root["files"][file] = {"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()}
        return json.dumps(root).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return manifest


def use(artifact: Artifact) -> None:
    """All that is done with an artifact short of running its graphs."""
    attempt(artifact.tensors)
    attempt(artifact.replay)
    for file in artifact.manifest.files:
        attempt(lambda file=file: artifact.read(file))
    for name in artifact.baseline_names:
        attempt(lambda name=name: artifact.baseline(name))
    attempt(lambda: inspect_text(artifact))
    attempt(lambda: json.dumps(inspect_json(artifact)))
    use_manifest(artifact.manifest)


def use_manifest(manifest: Manifest) -> None:
    """What is done with a manifest alone."""
    assert from_json(to_json(manifest)) == manifest
    request = Request(min(manifest.training.batch_size, 1 << 20), budget_bytes=1 << 24, rows=100)
    attempt(lambda: plan(manifest, request))
    attempt(lambda: smallest_budget(manifest, request))
    if manifest.input.nbytes <= _LARGEST_ROW and manifest.features.nbytes <= _LARGEST_ROW:
        rows = np.ones((2, *manifest.input.shape), manifest.input.dtype)
        preprocessing = Preprocessing(manifest.input, manifest.preprocessing, manifest.features)
        with np.errstate(all="ignore"):  # a step may be any number
            attempt(lambda: preprocessing.apply(rows))


def _made_for(manifest: Manifest) -> dict[str, bytes] | None:
    """Files that fit a manifest; None where they would be large."""
    files = {file: data for file, data in tiny_files().items() if file in manifest.files}
    for file, spec in manifest.files.items():
        if file not in files:
            files[file] = bytes(min(spec.bytes, 1024))
    specs = weight_specs(manifest)
    replay = manifest.replay
    if sum(spec.nbytes for spec in specs.values()) > _LARGEST_MADE:
        return None
    weights = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    files[manifest.weights] = safetensors.numpy.save(weights)
    if replay:
        if replay.rows * (manifest.input.nbytes + 8) > _LARGEST_MADE:
            return None
        x = np.zeros((replay.rows, *manifest.input.shape), manifest.input.dtype)
        files[replay.file] = safetensors.numpy.save({"x": x, "y": np.zeros(replay.rows, np.int64)})
    return files


def remember_graphs(folder: Path) -> None:
    """Let the graphs of the small artifacts be checked once: what is fuzzed here is the manifest over them."""
    kept = (tiny_files(1), tiny_files(2), _baseline_files())
    good = frozenset(data for files in kept for file, data in files.items() if file.endswith(".onnx"))
    checked: dict[tuple[bytes, int], Any] = {}
    check = onnx_files.check_onnx
    if check.__name__ == "check_once":
        return

    def check_once(stream: IO[bytes], size: int, file: str, **more: Any) -> Any:
        data = stream.read()
        if data not in good:
            return check(io.BytesIO(data), size, file, **more)
        key = (data, size)
        if key not in checked:
            checked[key] = check(io.BytesIO(data), size, file, **more)
        return checked[key]

    onnx_files.check_onnx = check_once


def read_manifest(data: bytes, folder: Path) -> None:
    """A manifest over the files of the small artifact, and over files made for it."""
    files = tiny_files()
    root = write_files(folder / "artifact", files | {MANIFEST: data})
    attempt(lambda: open_artifact(root))
    true = with_truth(data, files)
    put(root / MANIFEST, true)
    artifact = attempt(lambda: open_artifact(root))
    if artifact:
        use(artifact)
        return
    try:
        manifest = from_json(data.decode("utf-8", "surrogatepass"))
    except (EdgeffError, UnicodeDecodeError):
        return
    use_manifest(manifest)
    made = _made_for(manifest)
    if made is not None:
        write_files(root, made | {MANIFEST: with_truth(data, made)})
        artifact = attempt(lambda: open_artifact(root))
        if artifact:
            use(artifact)


_NETWORK, _BLOCK = "network", "block1"
# Names of the block's tensors in its graphs, which have the name of the block before them in those of a baseline.
_RENAMED = re.compile(r"(parameter|gradient|state\.velocity|buffer)\.(w|b|shift)\b")


def _renamed(name: str) -> str:
    return _RENAMED.sub(rf"\1.{_BLOCK}.\2", name)


@cache
def _baseline_files() -> dict[str, bytes]:
    """The small artifact of one block, with a baseline that is the same block under another name."""
    import onnx

    files = dict(tiny_files(blocks=1))
    root = json.loads(files[MANIFEST])
    inner = json.loads(json.dumps(root).replace(f'"{_BLOCK}', f'"{_NETWORK}.{_BLOCK}'))
    block = inner["blocks"][0]
    block["name"] = _NETWORK
    for spec in (*block["parameters"], *block["buffers"]):
        spec["name"] = f"{_BLOCK}.{spec['name']}"
    inner["checks"]["largest_error"] = {_NETWORK: 0.0}
    for kind, graph in block["graphs"].items():
        if kind == "apply":  # takes any run of numbers
            continue
        model = onnx.load_from_string(files[graph["file"]])
        for node in model.graph.node:
            node.input[:], node.output[:] = map(_renamed, node.input), map(_renamed, node.output)
        for port in (*model.graph.input, *model.graph.output):
            port.name = _renamed(port.name)
        graph["file"] = f"baselines/{kind}.onnx"
        graph["inputs"], graph["outputs"] = map(list, (map(_renamed, graph[side]) for side in ("inputs", "outputs")))
        files[graph["file"]] = model.SerializeToString(deterministic=True)
    listed = {file: {} for file in files if file != MANIFEST}
    files[INNER] = with_truth(json.dumps(inner | {"files": listed}, separators=(",", ":")).encode(), files)
    files[MANIFEST] = with_truth(json.dumps(root | {"files": listed | {INNER: {}}}).encode(), files)
    return files


@cache
def _with_baseline(folder: Path) -> Artifact:
    """That artifact, opened: what its baseline's manifest says is looked at only when the baseline is asked for."""
    return open_artifact(write_files(folder / "artifact", _baseline_files()))


def read_baseline(data: bytes, folder: Path) -> None:
    """The manifest of a baseline, inside an artifact."""
    artifact = _with_baseline(folder)
    put(artifact.path / INNER, data)
    found = attempt(lambda: artifact.baseline(BASELINES[0]))
    if found:
        use_manifest(found.manifest)
        arrays = {key: np.empty(spec.shape, spec.dtype) for key, spec in weight_specs(found.manifest).items()}
        attempt(lambda: found.fill(arrays))


def read_safetensors(data: bytes, folder: Path) -> None:
    """A file of tensors by itself, and as the weights of an artifact. `H` begins one whose header's length is right."""
    if data[:1] == b"H":
        header, body = parts(data[1:], 2)
        data = len(header).to_bytes(8, "little") + header + body
    stream = io.BytesIO(data)
    index = attempt(lambda: read_index(stream, len(data), WEIGHTS))
    for stored in (index or {}).values():
        attempt(lambda stored=stored: read_tensor(stream, stored))
        attempt(lambda stored=stored: check_values(stream, stored, WEIGHTS))
    attempt(lambda: read_all_tensors(put(folder / WEIGHTS, data)))
    files = tiny_files(blocks=1) | {WEIGHTS: data}
    files[MANIFEST] = with_truth(files[MANIFEST], files)
    artifact = attempt(lambda: open_artifact(write_files(folder / "artifact", files)))
    if artifact:
        attempt(artifact.tensors)
        attempt(lambda: artifact.tensors(["block1.w"]))


def read_zip(data: bytes, folder: Path) -> None:
    """An artifact as a zip."""
    artifact = attempt(lambda: open_artifact(put(folder / "artifact.zip", data)))
    if artifact:
        use(artifact)


def manifest_seeds() -> list[bytes]:
    golden = (Path(__file__).parent.parent / "golden" / "manifest-v5.json").read_bytes()
    return [tiny_files()[MANIFEST], tiny_files(blocks=1)[MANIFEST], _small(golden)]


def safetensors_seeds() -> list[bytes]:
    good = tiny_files(blocks=1)[WEIGHTS]
    length = int.from_bytes(good[:8], "little")
    odd = {name: np.zeros((2, 1), dtype) for name, dtype in (("a", "bool"), ("b", "int16"), ("c", "float64"))}
    every = safetensors.numpy.save({**odd, "e": np.zeros((0, 3), np.uint8), "s": np.array(1.5, np.float16)}, {"k": "v"})
    cut = [b"H" + joined(one[8 : 8 + int.from_bytes(one[:8], "little")], one[8 + int.from_bytes(one[:8], "little") :])
           for one in (good, every)]  # fmt: skip
    return [good, every, *cut, good[: 8 + length]]


def zip_seeds() -> list[bytes]:
    files = tiny_files(blocks=1)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for file, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(file), data)
    few = io.BytesIO()
    with zipfile.ZipFile(few, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST), b"{}")
        archive.writestr(zipfile.ZipInfo("a/b"), b"b")
    return [target.getvalue(), few.getvalue()]


ARTIFACT_TARGETS = (
    Target("manifest", read_manifest, manifest_seeds, remember_graphs, words.MANIFEST, "json"),
    Target("baseline", read_baseline, lambda: [_baseline_files()[INNER]], remember_graphs, words.MANIFEST, "json"),
    Target("safetensors", read_safetensors, safetensors_seeds, remember_graphs, words.SAFETENSORS, "json", 4096),
    Target("zip", read_zip, zip_seeds, words=words.ZIP),
)
