"""What the Linux kernel says of memory and processors, from the text files below `/proc`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Kernel's name of an instruction set feature -> the name that profiles use.
_FEATURES = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
}

# Arm's own cores by `CPU part` (Arm's MIDR_EL1 tables); aarch64 kernels give no name.
_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0b": "Cortex-A76",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
}


def read_text(path: Path) -> str | None:
    """Read a file of the kernel; None where there is none or it may not be read."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace").replace("\0", "\n").strip()
    except OSError:
        return None


def meminfo(root: Path) -> dict[str, int]:
    """Bytes by name; the kernel's `kB` are 1024 bytes."""
    amounts = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        name, _, amount = line.partition(":")
        number = amount.split()[0] if amount.split() else ""
        if number.isdigit():
            amounts[name] = int(number) * 1024
    return amounts


def cpuinfo(root: Path) -> dict[str, list[str]]:
    """All values of each key, in order; one per processor for most of them."""
    values: dict[str, list[str]] = {}
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), []).append(value.strip())
    return values


def cpu_name(values: Mapping[str, list[str]]) -> str | None:
    """The processor's name, or those of its kinds of core joined by ` + `."""
    cores = (_ARM_CORES.get(part.lower()) for part in values.get("CPU part", []))
    names = list(dict.fromkeys(core for core in cores if core)) or values.get("model name", [])[:1]
    return " + ".join(names) or None


def features(values: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Features that every processor has: threads move between the cores of a mixed processor."""
    sets = [set(line.split()) for line in values.get("flags", []) + values.get("Features", [])]
    common = set.intersection(*sets) if sets else set()
    return tuple(dict.fromkeys(name for feature, name in _FEATURES.items() if feature in common))
