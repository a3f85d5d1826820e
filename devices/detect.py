"""The machine that edgeff runs on, and the profile that fits it best.

`detect` reads a few files of the Linux kernel below a root folder and nothing else, so a test can hand it a fake root.
Where a file is missing (another operating system, a locked-down container) the field is None.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from edgeff.devices.cgroup import cpu_limit, memory_limit
from edgeff.devices.figure import Figure
from edgeff.devices.kernel import cpu_name, cpuinfo, features, meminfo, read_text
from edgeff.devices.profile import DeviceProfile
from edgeff.errors import DeviceError
from edgeff.units import format_bytes

# What training may take of the memory that is available when edgeff looks; the rest is for what wakes up later.
USABLE_PERCENT = 70

# Architectures with an onnxruntime wheel, by the names that operating systems give them.
_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}

# Firmware and carve-outs hide up to a quarter of a board's RAM from the operating system.
_VISIBLE_SHARE = (0.75, 1.02)


@dataclass(frozen=True)
class DetectedMachine:
    """What was found; None is not found.

    Attributes:
        system: `Linux`, `Darwin`, `Windows`, ...
        architecture: `x86_64`, `aarch64`, or the operating system's own name for another.
        pointer_bits: Of the Python that runs; 32 on a 32-bit system even where the kernel is 64-bit.
        model: Device-tree model, such as `Raspberry Pi 4 Model B Rev 1.4`.
        compatible: Device-tree `compatible` entries.
        cpu: Name of the processor, or of its cores joined by ` + `.
        cores: Processors the kernel shows.
        cpu_limit: Processors' worth of time that the control group grants.
        isa: Instruction set features, by the names that profiles use.
        ram_bytes: RAM the kernel shows (`MemTotal`).
        mem_available_bytes: What could be had without swapping (`MemAvailable`).
        swap_bytes: Swap space.
        limit_bytes: Limit of the control group that leaves the least memory.
        limit_used_bytes: What that group holds, less cache that can be dropped.
    """

    system: str
    architecture: str | None = None
    pointer_bits: int = 64
    model: str | None = None
    compatible: tuple[str, ...] = ()
    cpu: str | None = None
    cores: int | None = None
    cpu_limit: float | None = None
    isa: tuple[str, ...] = ()
    ram_bytes: int | None = None
    mem_available_bytes: int | None = None
    swap_bytes: int | None = None
    limit_bytes: int | None = None
    limit_used_bytes: int | None = None

    @property
    def available_bytes(self) -> int | None:
        """The smaller of what the control group leaves and what the kernel says is available."""
        rooms = [] if self.mem_available_bytes is None else [self.mem_available_bytes]
        if self.limit_bytes is not None:
            rooms.append(max(self.limit_bytes - (self.limit_used_bytes or 0), 0))
        return min(rooms, default=None)

    @property
    def usable_bytes(self) -> int | None:
        """What training may plan with here: 70 % of what is available."""
        return None if self.available_bytes is None else self.available_bytes * USABLE_PERCENT // 100

    @property
    def unsupported(self) -> str:
        """Why onnxruntime cannot be installed here, as a sentence; empty where it can or nothing is known."""
        if self.pointer_bits == 32:
            return f"this system is 32-bit ({self.architecture or 'unknown'}): onnxruntime has no wheel for it"
        if self.architecture is not None and self.architecture not in _ARCHITECTURES.values():
            return f"onnxruntime has no wheel for {self.architecture}"
        return ""


def require_supported(machine: DetectedMachine) -> None:
    """Refuse a machine on which onnxruntime cannot be installed.

    Raises:
        DeviceError: With the reason.
    """
    if machine.unsupported:
        hint = "install a 64-bit operating system (x86_64 or aarch64)"
        raise DeviceError(f"edgeff cannot train here: {machine.unsupported}", hint=hint)


def detect(
    root: Path = Path("/"), *, architecture: str | None = None, pointer_bits: int | None = None
) -> DetectedMachine:
    """Look at the machine that edgeff runs on.

    Args:
        root: Folder that holds `proc` and `sys`.
        architecture: Of the machine; asked of the operating system if left out.
        pointer_bits: Of Python; asked of Python if left out.
    """
    name = (platform.machine() if architecture is None else architecture).lower()
    memory, processors, limit = meminfo(root), cpuinfo(root), memory_limit(root)
    return DetectedMachine(
        system=platform.system(),
        architecture=_ARCHITECTURES.get(name, name) or None,
        pointer_bits=pointer_bits or (64 if sys.maxsize > 2**32 else 32),
        model=read_text(root / "proc/device-tree/model") or next(iter(processors.get("Model", [])), None),
        compatible=tuple((read_text(root / "proc/device-tree/compatible") or "").split()),
        cpu=cpu_name(processors),
        cores=len(processors.get("processor", [])) or None,
        cpu_limit=cpu_limit(root),
        isa=features(processors),
        ram_bytes=memory.get("MemTotal"),
        mem_available_bytes=memory.get("MemAvailable"),
        swap_bytes=memory.get("SwapTotal"),
        limit_bytes=limit.limit_bytes if limit else None,
        limit_used_bytes=limit.used_bytes if limit else None,
    )


def _ram_ratio(profile: DeviceProfile, machine: DetectedMachine) -> float:
    """How many times one RAM is the other, at least 1; 1 where one is unknown."""
    figure = profile.visible_ram or profile.ram
    if figure is None or machine.ram_bytes is None:
        return 1.0
    return max(figure.value, machine.ram_bytes) / max(min(figure.value, machine.ram_bytes), 1)


def _is_board(profile: DeviceProfile, machine: DetectedMachine) -> bool:
    """Whether the device tree or the processor's name says that the machine is this device."""
    model, cpu = (machine.model or "").casefold(), (machine.cpu or "").casefold()
    by_tree = any(model.startswith(name.casefold()) or name in machine.compatible for name in profile.device_tree)
    return by_tree or any(cpu.startswith(name.casefold()) for name in profile.cpu_models)


def _resembles(profile: DeviceProfile, machine: DetectedMachine) -> bool:
    """Whether architecture, cores, RAM and instruction set could be those of this device."""
    if profile.ram is None or profile.cores is None or machine.ram_bytes is None or not profile.runs_python:
        return False
    low, high = _VISIBLE_SHARE
    return (
        profile.architecture == machine.architecture
        and profile.cores.value == machine.cores
        and low <= machine.ram_bytes / profile.ram.value <= high
        and set(profile.isa) <= set(machine.isa)
    )


def _nearness(profile: DeviceProfile, machine: DetectedMachine) -> tuple[bool, int, float, str]:
    same_cpu = machine.cpu is not None and all(name in profile.cpu for name in machine.cpu.split(" + "))
    return (not same_cpu, -len(profile.isa), _ram_ratio(profile, machine), profile.id)


def fill_in(profile: DeviceProfile, machine: DetectedMachine) -> DeviceProfile:
    """Give an as-found profile the figures of the machine; any other comes back as it is.

    Args:
        profile: From the catalogue.
        machine: What was found.
    """
    if not profile.as_found:
        return profile

    def found(count: int | None, source: str, *, estimate: bool = False) -> Figure[int] | None:
        return (
            None
            if count is None
            else Figure(count, "estimate" if estimate else "measured", source, format_bytes(count))
        )

    app_ram = found(machine.usable_bytes, f"{USABLE_PERCENT} % of the memory available here", estimate=True)
    cores = None if machine.cores is None else Figure(machine.cores, "measured", "/proc/cpuinfo", str(machine.cores))
    ram = found(machine.ram_bytes, "/proc/meminfo, MemTotal")
    return replace(
        profile,
        architecture=machine.architecture or profile.architecture,
        ram=ram,
        app_ram=app_ram,
        cores=cores,
        cpu=machine.cpu or profile.cpu,
        isa=machine.isa,
    )


def differences(profile: DeviceProfile, machine: DetectedMachine) -> list[str]:
    """What is otherwise here than the profile says, one line each.

    Args:
        profile: What the catalogue says.
        machine: What was found.
    """
    lines = []
    if machine.architecture not in (None, profile.architecture):
        lines.append(f"architecture: {machine.architecture} here, {profile.architecture} in the profile")
    if profile.cores and machine.cores not in (None, profile.cores.value):
        lines.append(f"cores: {machine.cores} here, {profile.cores.value} in the profile")
    if machine.ram_bytes is not None and _ram_ratio(profile, machine) > 1.1:
        figure = profile.visible_ram or profile.ram
        lines.append(f"RAM: {format_bytes(machine.ram_bytes)} here, {figure.text if figure else '?'} in the profile")
    if missing := [name for name in profile.isa if machine.isa and name not in machine.isa]:
        lines.append(f"instruction set: the profile has {', '.join(missing)}, this machine does not")
    if machine.limit_bytes is not None:
        lines.append(f"memory limit of the control group: {format_bytes(machine.limit_bytes)}")
    if machine.cpu_limit is not None:
        lines.append(f"CPU limit of the control group: {machine.cpu_limit:g} processors")
    usable = machine.usable_bytes
    if usable is not None and profile.app_ram and usable < profile.app_ram.value:
        lines.append(f"app RAM: {format_bytes(usable)} usable here now, {profile.app_ram.text} in the profile")
    return lines


def match_profile(
    machine: DetectedMachine, profiles: Iterable[DeviceProfile]
) -> tuple[DeviceProfile | None, list[str]]:
    """Find the profile that fits a machine.

    The board's own name decides, then the size of its RAM; failing that the device with the same architecture, cores
    and RAM whose instruction set the machine has; failing that the as-found profile, filled in with what was found.

    Args:
        machine: What was found.
        profiles: To choose from.

    Returns:
        The profile, and what is otherwise here than it says: nothing for the as-found profile. None where onnxruntime
        cannot be installed or nothing fits; `match_reason` says which.
    """
    computers = [] if machine.unsupported else [profile for profile in profiles if profile.runs_python]
    boards = [profile for profile in computers if _is_board(profile, machine)]
    if boards:
        board = min(boards, key=lambda profile: (_ram_ratio(profile, machine), profile.ram.value if profile.ram else 0))
        return board, differences(board, machine)
    alike = [profile for profile in computers if _resembles(profile, machine)]
    if alike:
        nearest = min(alike, key=lambda profile: _nearness(profile, machine))
        return nearest, differences(nearest, machine)
    as_found = next((profile for profile in computers if profile.as_found), None)
    return (None if as_found is None else fill_in(as_found, machine)), []


def match_reason(machine: DetectedMachine, profile: DeviceProfile | None) -> str:
    """Why a machine has the profile that `match_profile` found, or none.

    Args:
        machine: What was found.
        profile: From `match_profile`.
    """
    if profile is None:
        return machine.unsupported or "no profile fits this machine"
    if _is_board(profile, machine):
        return "the profile lists the name of this board or processor"
    if profile.as_found:
        return "no device of the catalogue is like this machine; the figures of the profile are those found here"
    return "no profile lists this machine's name; this one has its architecture, its number of cores and about its RAM"


def machine_budget_bytes(
    profile: DeviceProfile, machine: DetectedMachine, floor_bytes: int, *, resident_bytes: int = 0
) -> int:
    """Bytes that training may use over the floor on the device itself when the user names no budget.

    Args:
        profile: Of the device.
        machine: What was found on it.
        floor_bytes: Resident bytes of the process before the artifact is opened.
        resident_bytes: What this process already held of the floor when the machine was looked at: that much is missing
            from the available memory and must not be taken off twice.

    Returns:
        The smaller of the profile's app RAM and 70 % of the available memory, less the floor.

    Raises:
        DeviceError: Nothing is known of the memory, or the floor leaves nothing of it.
    """
    amounts = [profile.app_ram.value] if profile.app_ram and not profile.as_found else []
    if machine.available_bytes is not None:
        amounts.append((machine.available_bytes + resident_bytes) * USABLE_PERCENT // 100)
    if not amounts:
        raise DeviceError("cannot tell how much memory is available here", hint="give `--budget`")
    if min(amounts) <= floor_bytes:
        raise DeviceError(
            f"the floor alone is {floor_bytes} bytes, training may use {min(amounts)} here",
            hint="end other programs, or give `--budget`",
        )
    return min(amounts) - floor_bytes
