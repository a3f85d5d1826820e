"""One process that runs one target, or replays several. `run.py` starts it; what it found lies in a folder.

A process for each target, because an audit hook and a limit of memory are for good.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import gc
import json
import os
import random
import resource
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
# Of the standard library what is written in Python and parses what files hold.
INSTRUMENTED = ["edgeff", "zipfile", "tomllib", "gzip", "lzma", "pickle", "csv"]
# Python imports these only when a text asks for them.
CODECS = ("idna", "raw_unicode_escape", "unicode_escape", "utf_7", "utf_8_sig", "utf_16", "utf_16_be", "utf_16_le",
          "utf_32", "utf_32_be", "utf_32_le")  # fmt: skip


def load(*, planted: bool) -> dict[str, Any]:
    """The targets."""
    if planted:
        from fuzz.planted import PLANTED

        return dict(PLANTED)
    from fuzz.targets import TARGETS

    return dict(TARGETS)


def _memory() -> Path:
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def leftovers(out: Path) -> list[Path]:
    """What workers with this folder for their results have left: libFuzzer ends a process without a last word."""
    return list(_memory().glob(f"edgeff-fuzz-{out.name}-*"))


@contextlib.contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A folder in memory where there is one, with edgeff's cache in it; see `leftovers`."""
    with tempfile.TemporaryDirectory(prefix=f"edgeff-fuzz-{out.name}-", dir=_memory()) as name:
        os.environ["EDGEFF_CACHE_DIR"] = str(Path(name, "cache"))
        yield Path(name)
        os.chdir("/")


def ready(target: Any, folder: Path) -> list[bytes]:
    """Prepare a target and read its seeds once, so that all is imported; the seeds."""
    for codec in CODECS:
        codecs.lookup(codec)
    (folder / target.name).mkdir()
    target.prepare(folder / target.name)
    seeds: list[bytes] = target.seeds()
    for seed in seeds:
        with contextlib.suppress(Exception):
            target.read(seed, folder / target.name)
    return seeds


def keep(found: Any, data: bytes, folder: Path) -> None:
    """Keep an input that found something; the shortest for each bug."""
    place = folder / found.key
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "input").exists() or len(data) < (place / "input").stat().st_size:
        (place / "input").write_bytes(data)
        (place / "report.txt").write_text(f"{found.kind}: {found.what}\n\n{found.detail}", errors="backslashreplace")


# --- replay: no atheris ---


def kept_inputs(target: str) -> dict[str, bytes]:
    """The committed inputs of a target, by where they lie."""
    folders = (HERE / "corpus" / target, HERE / "regressions" / target)
    paths = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    return {path.relative_to(HERE).as_posix(): path.read_bytes() for path in paths}


def inputs_of(target: Any, seeds: list[bytes], mutations: int) -> Iterator[tuple[str, bytes]]:
    """Seeds, committed inputs, and so many changes of them, which are always the same."""
    from fuzz.mutate import mutate

    every = {f"seed {number}": data for number, data in enumerate(seeds)} | kept_inputs(target.name)
    yield from every.items()
    rng = random.Random(target.name)
    names = list(every)
    for number in range(mutations):
        name = rng.choice(names)
        yield f"change {number} of {name}", mutate(every[name], rng, target.words, target.form, target.largest)


def replay(arguments: argparse.Namespace) -> None:
    """Run targets on what is there, and on simple changes of it."""
    targets = load(planted=arguments.planted)
    with workplace(arguments.out) as folder:
        from fuzz.guard import TIME_LIMIT_S, Guard

        seeds = {name: ready(targets[name], folder) for name in arguments.targets}
        gc.freeze()  # a reader that collects garbage need not go through all modules
        guard = Guard(folder, seconds=2 if arguments.planted else TIME_LIMIT_S)
        guard.limit()
        results = {}
        for name in arguments.targets:
            results[name] = _replay_one(targets[name], seeds[name], guard, arguments)
            (arguments.out / "results.json").write_text(json.dumps(results))


def _replay_one(target: Any, seeds: list[bytes], guard: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    began, findings, count = time.perf_counter(), [], 0
    inputs = [("planted", b"good!")] if arguments.planted else inputs_of(target, seeds, arguments.mutations)
    for name, data in inputs:
        if time.perf_counter() - began > arguments.limit:
            break
        (arguments.out / "current").write_bytes(data)
        found = guard.check(target, data)
        count += 1
        if found:
            findings.append({"input": name, "kind": found.kind, "what": found.what, "place": found.place})
            keep(found, data, arguments.out / target.name)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"inputs": count, "seconds": time.perf_counter() - began, "peak_mb": peak_mb, "findings": findings}


# --- fuzzing: atheris ---


def fuzz(arguments: argparse.Namespace) -> None:
    """Let libFuzzer look for inputs; `arguments.rest` are its own."""
    import atheris

    for name in INSTRUMENTED[1:]:
        for module in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[module]
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        atheris.instrument_imports(include=INSTRUMENTED),
    ):
        target = load(planted=arguments.planted)[arguments.targets[0]]
    with workplace(arguments.out) as folder:
        from fuzz.guard import Guard
        from fuzz.mutate import mutate

        for number, seed in enumerate(ready(target, folder)):
            (arguments.out / "seeds").mkdir(parents=True, exist_ok=True)
            (arguments.out / "seeds" / f"{number:03}").write_bytes(seed)
        gc.freeze()
        guard = Guard(folder)
        guard.limit()

        def one(data: bytes) -> None:
            (arguments.out / "current").write_bytes(data)
            found = guard.check(target, data)
            if found:
                keep(found, data, arguments.findings)

        def change(data: bytes, largest: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if rng.random() < 0.5:
                return bytes(atheris.Mutate(data, largest))
            return mutate(data, rng, target.words, target.form, min(largest, target.largest))

        atheris.Setup(
            [str(_again(arguments.out)), *arguments.rest, str(arguments.out / "seeds")], one, custom_mutator=change
        )
        atheris.Fuzz()


def _again(folder: Path) -> Path:
    """A program that is this worker: to merge corpora, libFuzzer starts itself again, with arguments of its own."""
    own = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv
    path = folder / "again"
    path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *own])} -- "$@"\n')
    path.chmod(0o700)
    return path


def main() -> None:
    """Parse what `run.py` asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("replay", "fuzz"))
    parser.add_argument("--targets", type=lambda text: text.split(","), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--findings", type=Path)
    parser.add_argument("--mutations", type=int, default=0)
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--limit", type=float, default=float("inf"), help="Seconds after which no input is begun.")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:end])
    arguments.rest = sys.argv[end + 1 :]  # libFuzzer's own
    warnings.simplefilter("error")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    (replay if arguments.mode == "replay" else fuzz)(arguments)


if __name__ == "__main__":
    main()
