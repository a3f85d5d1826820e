"""Fuzz the readers of untrusted files: `python tests/fuzz/run.py --seconds 60 --targets npz,zip`.

Each target runs in a process of its own, led by coverage (atheris, `pip install -e ".[fuzz]"`); without atheris, simple
changes of the kept inputs are tried instead. What was found before is gone on with: the grown corpus, the findings and
the totals lie in `.fuzz/`, which git ignores. `guard.py` says what counts as a finding.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent)]
# A worker that takes so much longer than it was given hangs where no signal reaches it.
_GRACE_S = 120
# Resident MiB at which libFuzzer ends a worker: room for its corpus beside what `guard.py` allows an input.
_RSS_LIMIT_MB = 4096
_STATUS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/")


@dataclass
class Result:
    """What one run of a target came to.

    Attributes:
        target: Its name.
        seconds: It took.
        inputs: That were run.
        corpus: Inputs kept, each of which reaches something new.
        edges: Branches of the code that were taken; 0 without atheris.
        features: Branches with how often they were taken, and comparisons; 0 without atheris.
        peak_mb: Largest resident size of the process.
        findings: Names of the findings of this run, in `.fuzz/findings/<target>/`.
        failed: Why it ended early; empty where it did not.
    """

    target: str
    seconds: float = 0.0
    inputs: int = 0
    corpus: int = 0
    edges: int = 0
    features: int = 0
    peak_mb: int = 0
    findings: list[str] = field(default_factory=list)
    failed: str = ""

    def __str__(self) -> str:
        found = ", ".join(self.findings) or "none"
        covered = f"{self.edges} edges, {self.features} features, " if self.edges else ""
        return (
            f"{self.target}: {self.inputs:,} inputs in {self.seconds:.0f} s, corpus {self.corpus}, {covered}"
            f"peak {self.peak_mb} MB, findings: {found}{'; ' + self.failed if self.failed else ''}"
        )


def has_atheris() -> bool:
    """Whether coverage can lead."""
    return importlib.util.find_spec("atheris") is not None


def run_target(name: str, seconds: int, work: Path, *, planted: bool = False) -> Result:
    """Fuzz one target for so long."""
    before = set(_findings(work, name))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as out:
        began = time.perf_counter()
        result = (_led if has_atheris() else _unled)(name, seconds, work, Path(out), planted)
        result.seconds = time.perf_counter() - began
    result.findings = sorted(set(_findings(work, name)) - before)
    _add_to_totals(work, result)
    return result


def _findings(work: Path, name: str) -> list[str]:
    folder = work / "findings" / name
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _led(name: str, seconds: int, work: Path, out: Path, planted: bool) -> Result:
    """With atheris."""
    corpus, findings = work / "corpus" / name, work / "findings" / name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    kept = [str(folder) for folder in (HERE / "corpus" / name, HERE / "regressions" / name) if folder.is_dir()]
    largest, words = _facts(name, planted)
    dictionary = out / "words"
    dictionary.write_text("".join(f'"{_quoted(word)}"\n' for word in words))
    flags = [f"-max_total_time={seconds}", f"-max_len={largest}", "-timeout=0", f"-rss_limit_mb={_RSS_LIMIT_MB}",
             f"-artifact_prefix={findings}/libfuzzer-", f"-dict={dictionary}", "-print_final_stats=1",
             "-len_control=10", "-reload=0", "-report_slow_units=1000000"]  # fmt: skip
    command = ["fuzz", "--targets", name, "--out", str(out), "--findings", str(findings), *["--planted"] * planted]
    code, text = _worker([*command, "--", *flags, str(corpus), *kept], seconds, out)
    status = _STATUS.findall(text) or [("0", "0", "0")]
    result = Result(name, edges=int(status[-1][0]), features=int(status[-1][1]), corpus=int(status[-1][2]))
    result.inputs, result.peak_mb = _stat(text, "number_of_executed_units"), _stat(text, "peak_rss_mb")
    if code:
        result.failed = f"the worker ended with {code}: {_last_lines(text)}"
        _keep_last(out, findings, text)
    return result


def _keep_last(out: Path, findings: Path, text: str) -> None:
    """Keep the input that a worker was busy with when it ended."""
    if (out / "current").exists():
        data = (out / "current").read_bytes()
        place = findings / f"ended-{hashlib.sha256(data).hexdigest()[:16]}"
        place.mkdir(exist_ok=True)
        (place / "input").write_bytes(data)
        (place / "report.txt").write_text(text[-4000:])


def _unled(name: str, seconds: int, work: Path, out: Path, planted: bool) -> Result:
    """Without: rounds of changes."""
    mutations = 500 * max(1, seconds)
    command = ["replay", "--targets", name, "--out", str(out), "--mutations", str(mutations), "--limit", str(seconds)]
    code, text = _worker([*command, *["--planted"] * planted], seconds, out)
    found = json.loads((out / "results.json").read_text()).get(name, {}) if (out / "results.json").exists() else {}
    if (out / name).is_dir():
        shutil.copytree(out / name, work / "findings" / name, dirs_exist_ok=True)
    failed = "" if code == 0 else f"the worker ended with {code}: {_last_lines(text)}"
    return Result(name, inputs=found.get("inputs", 0), peak_mb=found.get("peak_mb", 0), failed=failed)


def _worker(arguments: Sequence[str], seconds: int, out: Path) -> tuple[int, str]:
    """Run a worker; its exit status and what it said."""
    from fuzz.worker import leftovers

    command = [sys.executable, str(HERE / "worker.py"), *arguments]
    with (out / "log").open("wb") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds + _GRACE_S).returncode
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            for folder in leftovers(out):
                shutil.rmtree(folder, ignore_errors=True)
    return code, (out / "log").read_text(errors="replace")


def _facts(name: str, planted: bool) -> tuple[int, tuple[bytes, ...]]:
    from fuzz.base import CUT
    from fuzz.worker import load

    target = load(planted=planted)[name]
    return target.largest, (CUT, *target.words)


def _quoted(word: bytes) -> str:
    return "".join(chr(one) if 32 <= one < 127 and one not in b'"\\' else f"\\x{one:02x}" for one in word)


def _stat(text: str, name: str) -> int:
    found = re.findall(rf"stat::{name}:\s*(\d+)", text)
    return int(found[-1]) if found else 0


def _last_lines(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-3:])[-400:]


# --- totals ---


def _add_to_totals(work: Path, result: Result) -> None:
    totals = read_totals(work)
    one = totals.setdefault(result.target, {"seconds": 0, "inputs": 0})
    one["seconds"] = round(one["seconds"] + result.seconds, 1)
    one["inputs"] += result.inputs
    if result.edges:
        one |= {"corpus": result.corpus, "edges": result.edges, "features": result.features}
    one["peak_mb"] = max(one.get("peak_mb", 0), result.peak_mb)
    one["findings"] = len(_findings(work, result.target))
    part = work / "totals.json.part"
    part.write_text(json.dumps(totals, indent=2, sort_keys=True))
    part.replace(work / "totals.json")


def read_totals(work: Path) -> dict[str, dict[str, Any]]:
    """What was fuzzed so far, by target."""
    path = work / "totals.json"
    return json.loads(path.read_text()) if path.exists() else {}


def totals_text(totals: dict[str, dict[str, Any]]) -> str:
    """A line for each target and one for all."""
    lines = [f"{name}: {one['inputs']:,} inputs in {one['seconds']:,.0f} s, corpus {one.get('corpus', 0)}, "
             f"{one.get('edges', 0)} edges, {one.get('features', 0)} features, peak {one.get('peak_mb', 0)} MB, "
             f"{one.get('findings', 0)} findings kept" for name, one in sorted(totals.items())]  # fmt: skip
    inputs, seconds = (sum(one[key] for one in totals.values()) for key in ("inputs", "seconds"))
    return "\n".join([*lines, f"all: {inputs:,} inputs in {seconds:,.0f} s ({seconds / 3600:.1f} h)"])


# --- the committed corpus ---


def shrink(name: str, work: Path, most_bytes: int) -> str:
    """Make the committed corpus of a target anew: of all inputs, the fewest and smallest that reach as much."""
    committed = HERE / "corpus" / name
    with tempfile.TemporaryDirectory(prefix="fuzz-") as out:
        merged = Path(out, "merged")
        merged.mkdir()
        largest, _ = _facts(name, False)
        folders = [str(one) for one in (work / "corpus" / name, committed) if one.is_dir()]
        command = ["fuzz", "--targets", name, "--out", out, "--findings", str(Path(out, "findings")), "--"]
        flags = ["-merge=1", f"-max_len={largest}", "-timeout=0", f"-rss_limit_mb={_RSS_LIMIT_MB}"]
        code, text = _worker([*command, *flags, str(merged), *folders], 900, Path(out))
        if code:
            return f"{name}: could not be merged: {_last_lines(text)}"
        kept = list(_smallest(merged, most_bytes))
        shutil.rmtree(committed, ignore_errors=True)
        committed.mkdir(parents=True)
        for data in kept:
            (committed / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return f"{name}: {len(kept)} inputs, {sum(map(len, kept)):,} bytes"


def _smallest(folder: Path, most_bytes: int) -> Iterator[bytes]:
    left = most_bytes
    for path in sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        left -= path.stat().st_size
        if left < 0:
            return
        yield path.read_bytes()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="For each target. Default: 60.")
    parser.add_argument("--targets", help="Names with commas between. Default: all.")
    parser.add_argument("--rounds", type=int, default=1, help="Go through the targets so often; 0 without end.")
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzz", help="Corpus, findings, totals. Default: .fuzz")
    parser.add_argument("--json", action="store_true", help="Print JSON, a line for each target.")
    parser.add_argument("--totals", action="store_true", help="Only print what was fuzzed so far.")
    parser.add_argument("--shrink", type=int, metavar="BYTES", help="Make the committed corpus anew, at most so large.")
    arguments = parser.parse_args()
    if arguments.totals:
        totals = read_totals(arguments.work)
        print(json.dumps(totals, indent=2, sort_keys=True) if arguments.json else totals_text(totals))
        return
    from fuzz.worker import load

    names = arguments.targets.split(",") if arguments.targets else list(load(planted=False))
    unknown = [name for name in names if name not in load(planted=False)]
    if unknown:
        parser.error(f"unknown target `{unknown[0]}`; known: {', '.join(load(planted=False))}")
    if arguments.shrink is not None:
        for name in names:
            print(shrink(name, arguments.work, arguments.shrink), flush=True)
        return
    if not has_atheris():
        print(
            "atheris is not installed: simple changes of the kept inputs instead, not led by coverage", file=sys.stderr
        )
    sys.exit(_rounds(names, arguments))


def _rounds(names: Sequence[str], arguments: argparse.Namespace) -> int:
    """Exit status: 1 where something was found."""
    found, number = False, 0
    while arguments.rounds == 0 or number < arguments.rounds:
        number += 1
        for name in names:
            result = run_target(name, arguments.seconds, arguments.work)
            found |= bool(result.findings or result.failed)
            print(json.dumps(asdict(result)) if arguments.json else str(result), flush=True)
    return int(found)


if __name__ == "__main__":
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and not without the worker
    main()
