"""Every reader of untrusted files on every input that is kept, on changes of them, and the harness on planted bugs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fuzz.base import odd_text
from fuzz.planted import DIES, KINDS
from fuzz.targets import TARGETS

from edgeff.errors import EdgeffError

HERE = Path(__file__).resolve().parent / "fuzz"
# Changes of inputs for each target; `tests/fuzz/run.py` tries as many as one has time for.
MUTATIONS = 150
LARGEST_CORPUS_BYTES = 1_500_000
# What takes longest by itself, so that two halves take about as long.
SLOW = ("manifest", "baseline", "safetensors", "checkpoint", "onnx", "signature")


def replayed(targets: list[str], out: Path, *more: str) -> dict[str, Any]:
    """What a worker found, by target; the input that it was busy with when it ended early."""
    command = [sys.executable, str(HERE / "worker.py"), "replay", "--targets", ",".join(targets), "--out", str(out)]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=120)
    busy = (out / "current").read_bytes() if (out / "current").exists() else b""
    assert done.returncode == 0, f"{done.stderr[-2000:]}\nthe last input was {busy[:2000]!r}"
    return json.loads((out / "results.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("slow", [True, False])
def test_no_kept_input_and_no_change_of_one_makes_a_reader_do_what_it_may_not(tmp_path: Path, slow: bool) -> None:
    targets = [name for name in TARGETS if (name in SLOW) == slow]
    found = replayed(targets, tmp_path, "--mutations", str(MUTATIONS // 3 if slow else MUTATIONS))
    assert set(found) == set(targets)
    assert {name: result["findings"] for name, result in found.items() if result["findings"]} == {}
    kept = {name: len([*folder_of("corpus", name), *folder_of("regressions", name)]) for name in targets}
    assert all(found[name]["inputs"] > kept[name] + MUTATIONS // 3 for name in targets)


def folder_of(kind: str, target: str) -> list[Path]:
    folder = HERE / kind / target
    return list(folder.iterdir()) if folder.is_dir() else []


def test_the_harness_notices_every_kind_of_wrong_reader(tmp_path: Path) -> None:
    found = replayed(list(KINDS), tmp_path, "--planted")
    kinds = {name: [one["kind"] for one in result["findings"]] for name, result in found.items()}
    assert kinds == {name: [kind] for name, kind in KINDS.items()}


def test_an_input_that_ends_the_worker_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the last input was b'good!'"):
        replayed([DIES], tmp_path, "--planted")


# What readers say of inputs that once were bugs, up to the name of the file.
SAID = {
    "best/facts-nested-3000-deep": "is damaged: it is no file that edgeff wrote",
    "checkpoint/history-that-is-text": "is damaged: what the guard has seen is no such thing",
    "checkpoint/history-without-classes": "is damaged: what the guard has seen is no such thing",
    "checkpoint/no-history": "is damaged: what the guard has seen is no such thing",
    "cifar-pickle/byte-array-as-long-as-a-number-says": "its commands make no sense",
    "cifar-pickle/byte-array-of-256-mebibytes": "its commands make no sense",
    "cifar-pickle/dictionary-of-nested-tuples": "it has keys that are neither texts nor numbers",
    "cifar-pickle/encoding-of-nested-tuples": "it encodes text in another way than latin1",
    "cifar-pickle/frozen-set-of-nested-tuples": "its commands make no sense",
    "cifar-pickle/key-nested-6000-deep": "it has keys that are neither texts nor numbers",
    "cifar-pickle/key-of-nested-tuples": "it has keys that are neither texts nor numbers",
    "cifar-pickle/keys-of-nested-tuples": "it has keys that are neither texts nor numbers",
    "cifar-pickle/outside-object-of-nested-tuples": "asks for `an object outside of it`, which edgeff does not load",
    "cifar-pickle/set-of-nested-tuples": "its commands make no sense",
    "cifar-pickle/shape-of-nested-tuples": "has no `data` of shape (images, 3072) and dtype uint8",
    "features/facts-nested-3000-deep": "is not whole",
    "hapt/recording-beyond-64-bits": "row 0 has a number beyond 64 bits",
    "hapt/user-beyond-64-bits": "row 0 has a number beyond 64 bits",
    "idx/images-of-200-axes": "its header claims 200 axes of together more values than there can be",
    "idx/labels-of-200-axes": "its header claims 200 axes of together more values than there can be",
    "idx/labels-of-empty-rows": "its header claims 3 axes of together more values than there can be",
    "manifest/shape-of-300-huge-sizes": "must have at most 8 axes and 2147483648 elements, got 300 and inf",
    "npy/labels-of-70-axes": "its header claims 70 axes of together more values than there can be",
    "npy/labels-of-a-million-million-empty-rows": "its header claims rows that hold nothing: shape (1000000000000, 0)",
    "npy/labels-of-more-rows-than-an-index": "its header claims 2 axes of together more values than there can be",
    "npy/labels-of-shape-beyond-memory": "its header claims 3 axes of together more values than there can be",
    "npy/packed-rows-beyond-an-index": "its header claims 2 axes of together more values than there can be",
    "npy/packed-rows-of-70-axes": "its header claims 70 axes of together more values than there can be",
    "npy/packed-rows-of-shape-beyond-memory": "its header claims 3 axes of together more values than there can be",
    "npz/class-name-of-no-character": "its text holds what is no character",
    "npz/control-characters-in-a-member-name": r"PK\x01\x02-\x03-`, needed `.npy` members only",
    "npz/control-characters-in-an-array-name": r"has an array `\x01\x1bquence`, needed none but",
    "result-json/list-nested-3000-deep": "result.json` is damaged: it is not JSON",
    "run-json/list-nested-3000-deep": "run.json` is damaged: it is not JSON",
    "run-json/settings-that-are-text": "cannot be gone on with: its setting",
    "safetensors/shape-of-300-huge-sizes": '["block1.w"].shape` must be a list of at most 32, got a list of 300',
    "signature-key/x448-key-of-another-length": "`key.pem` is no private key in PEM",
    "speech/speaker-beyond-64-bits": "row 0 has a speaker beyond 64 bits",
    "ucr/xz-that-asks-for-four-gibibytes": "Input format not supported by decoder",
    "zip/end-of-one-part-of-several": "is no artifact: neither a folder nor a whole zip",
    "zip/name-that-is-no-utf-8-before-the-member": "is a damaged zip: 'utf-8' codec can't decode byte 0x9e",
    "zip/name-that-is-no-utf-8-in-the-directory": "is a damaged zip: 'utf-8' codec can't decode byte 0xff",
    "zip/version-nobody-knows": "is a damaged zip: zip file version",
}
# Those that are read, now.
READ = {"features/quantized-rows-that-overflow"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a target, prepared once."""

    @cache
    def folder(name: str) -> Path:
        made: Path = tmp_path_factory.mktemp(name)
        TARGETS[name].prepare(made)
        return made

    return folder


def said(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What readers refuse a regression with."""
    messages: list[str] = []

    def attempt(read: Callable[[], object]) -> object:
        try:
            return read()
        except EdgeffError as error:
            messages.append(str(error))
            return None

    target = TARGETS[name.partition("/")[0]]
    monkeypatch.setattr(sys.modules[target.read.__module__], "attempt", attempt)
    monkeypatch.setenv("EDGEFF_CACHE_DIR", str(folder / "cache"))
    target.read((HERE / "regressions" / name).read_bytes(), folder)
    return messages


@pytest.mark.parametrize("name", SAID)
def test_what_once_was_a_bug_is_refused_with_a_reason(
    name: str, prepared: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = said(name, prepared(name.partition("/")[0]), monkeypatch)
    assert any(SAID[name] in message for message in messages), messages


@pytest.mark.parametrize("name", sorted(READ))
def test_what_once_was_a_bug_is_read(
    name: str, prepared: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(name, prepared(name.partition("/")[0]), monkeypatch) == []


def test_every_regression_has_such_a_test() -> None:
    paths = {path.relative_to(HERE / "regressions").as_posix() for path in (HERE / "regressions").glob("*/*")}
    assert paths == set(SAID) | READ


def test_the_kept_inputs_are_of_targets_and_small() -> None:
    paths = [path for kind in ("corpus", "regressions") for path in (HERE / kind).rglob("*") if path.is_file()]
    assert {path.parent.name for path in paths} <= set(TARGETS)
    assert sum(path.stat().st_size for path in paths) < LARGEST_CORPUS_BYTES
    assert max(path.stat().st_size for path in paths) <= 16384


def test_every_target_has_kept_inputs() -> None:
    assert [name for name in TARGETS if not folder_of("corpus", name)] == []


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[2J", "\ud800", "\u2028"])
def test_a_text_that_no_message_should_hold_is_odd(text: str) -> None:
    assert odd_text(text)
    assert not odd_text("a message, with `ä` and 5 °C")


def test_every_error_is_one_line_of_a_length_that_can_be_read() -> None:
    error = EdgeffError("holds `a\nb\x1b[2J\ud800`", hint="é \u2028")
    assert (str(error), error.hint) == (r"holds `a\nb\x1b[2J\ud800`", r"é \u2028")
    assert str(EdgeffError("x" * 10_000)) == "x" * 4093 + "..."


def test_without_atheris_the_command_replays_and_says_so(tmp_path: Path) -> None:
    program = (
        "import sys, runpy, importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name, *more: None if name == 'atheris' else find(name, *more);"
        f"sys.argv = ['run.py', '--seconds', '1', '--targets', 'control', '--json', '--work', {str(tmp_path)!r}];"
        f"runpy.run_path({str(HERE / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "atheris is not installed" in done.stderr
    result = json.loads(done.stdout)
    assert (result["target"], result["findings"], result["failed"]) == ("control", [], "")
    assert result["inputs"] > 100
    totals = json.loads((tmp_path / "totals.json").read_text())
    assert totals["control"]["inputs"] == result["inputs"]


def test_no_module_of_edgeff_but_the_harness_needs_atheris() -> None:
    """It is an extra: whoever imports it elsewhere breaks `make test` where it is not installed."""
    root = HERE.parent.parent
    folders = ("edgeff", "export", "runtime", "devices", "tests")
    paths = [path for folder in folders for path in (root / folder).rglob("*.py") if b"atheris" in path.read_bytes()]
    assert {path.name for path in paths if "atheris" in _imports(path)} == {"worker.py"}


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
