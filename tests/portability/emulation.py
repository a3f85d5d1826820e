"""A small Linux of another processor in a folder, made without being root: Debian's packages, unpacked, and qemu.

`apt-get` is given a state of its own, so that nothing of this system is changed. Only programs are emulated: system
calls go to this machine's kernel, and a file that the folder lacks is this machine's.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portability.environments import ROOT, Skipped, run_or_skip

# Where Debian's own packages are listed, newer releases first.
_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
_EMULATOR = "qemu-aarch64-static"
# The processor of a Raspberry Pi 4: without the vector extensions, which qemu takes ten times as long for.
_PROCESSOR = "cortex-a72"
# From 1.30 on, onnxruntime ends by a segmentation fault where this file tells of no Arm processor, as the host's does.
_PROCESSOR_TEXT = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
_WHEELS = ("onnxruntime", "numpy", "safetensors", "click")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


@dataclass(frozen=True)
class Emulated:
    """A Linux for aarch64.

    Attributes:
        folder: Has all of it.
    """

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """The command that runs its Python."""
        emulator = shutil.which(_EMULATOR) or self.folder / _EMULATOR
        return [str(emulator), "-cpu", _PROCESSOR, "-L", str(self.root), str(self.python), *arguments]

    def environment(self) -> dict[str, str]:
        """Environment variables for it."""
        return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, (self.folder / "wheels", ROOT)))}

    @property
    def root(self) -> Path:
        """Its file system."""
        return self.folder / "root"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return (self.root / "usr/bin/python3").resolve()


def emulated(folder: Path) -> Emulated:
    """A Linux for aarch64 with what a device has; made where it is not there yet.

    Raises:
        Skipped: It cannot be made here.
    """
    made, stamp = Emulated(folder), folder / "constraints.txt"
    constraints = (ROOT / "constraints.txt").read_text()
    if not stamp.is_file() or stamp.read_text() != constraints:
        shutil.rmtree(folder, ignore_errors=True)
        _make(made)
        stamp.write_text(constraints)
    return made


def _make(made: Emulated) -> None:
    if not shutil.which(_EMULATOR):
        _fetch_emulator(made.folder)
    unpack_packages(["python3", "libstdc++6"], "arm64", made.root)
    _describe_processor(made.root)
    _install_wheels(made)


def _fetch_emulator(folder: Path) -> None:
    """Of qemu's programs, one for each processor, keep the one that is needed."""
    unpack_packages(["qemu-user-static"], run_or_skip(["dpkg", "--print-architecture"]).strip(), folder / "host")
    program = folder / "host/usr/bin" / _EMULATOR
    if not program.is_file():
        raise Skipped(f"the package `qemu-user-static` has no `{_EMULATOR}` here")
    shutil.copy(program, folder)  # not moved: in some releases it is a link
    shutil.rmtree(folder / "host")


def unpack_packages(names: Sequence[str], architecture: str, target: Path) -> None:
    """Download packages with all they need, and unpack them into a folder.

    Raises:
        Skipped: There is no apt, or it cannot.
    """
    apt = target.with_name(f"{target.name}-apt")
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed yet
    command = ["apt-get", "--quiet", "--yes", *_options(apt, architecture)]
    run_or_skip([*command, "update"])
    run_or_skip([*command, "--download-only", "install", *names])
    target.mkdir()
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        run_or_skip(["dpkg-deb", "--extract", str(package), str(target)])
    shutil.rmtree(apt)


def _options(apt: Path, architecture: str) -> list[str]:
    settings = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": _sources(),
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Update::Error-Mode": "any",  # else it ends well where there is no network
        "APT::Sandbox::User": "",  # the user that apt would become cannot write here
    }
    return [word for name, value in settings.items() for word in ("--option", f"{name}={value}")]


def _sources() -> Path:
    for path in _SOURCES:
        if path.is_file():
            return path
    raise Skipped("needs Debian: no list of its packages is here")


def _describe_processor(root: Path) -> None:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("".join(map(_PROCESSOR_TEXT.format, range(os.cpu_count() or 1))))


def _install_wheels(made: Emulated) -> None:
    """Install wheels from outside: inside, that takes minutes."""
    version = made.python.name.removeprefix("python")
    options = [word for name in _PLATFORMS for word in ("--platform", name)]
    options += ["--python-version", version, "--only-binary=:all:"]
    options += ["--constraint", str(ROOT / "constraints.txt"), "--target", str(made.folder / "wheels")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_or_skip([*pip, *options, *_WHEELS])
