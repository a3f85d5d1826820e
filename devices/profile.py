"""Device profiles: what one training process may plan with, and the source of every number.

The catalogue is `profiles/*.toml`; a path to a file of the same form works wherever a name does. `docs/devices.md`
explains the form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgeff.devices.figure import Accelerator, Figure, Provider
from edgeff.devices.form import MOST_BYTES, PYTHON_CLASSES, DeviceClass, read_form
from edgeff.errors import DeviceError, did_you_mean


@dataclass(frozen=True)
class DeviceProfile:
    """One device. A figure that is None is not known; nothing is guessed in silence.

    Attributes:
        id: Name in the catalogue, and of the file.
        name: For people.
        device_class: `sbc` (single-board computer), `mpu` (processor module or kit), `pc`, `phone`, `browser` or `mcu`.
        architecture: As `platform.machine()` reports it in lower case: `aarch64`, `x86_64`, `wasm32`, `armv7e-m`, ...
        cpu: In words.
        onnxruntime_supported: Whether onnxruntime runs there.
        as_found: The machine that edgeff runs on: RAM is what `detect` finds, not a figure of the file.
        ram: Bytes on the board; where devices of a class differ, the most that one process can ever have.
        visible_ram: Bytes that the operating system shows (`MemTotal`).
        external_ram: Bytes beside the on-chip memory of a microcontroller.
        app_ram: Bytes one training process may plan with on an otherwise idle device. None for microcontrollers.
        floor: Resident bytes of the runtime before it opens an artifact. None where onnxruntime does not run.
        storage: Bytes of flash memory that come with the device.
        storage_kind: What it stores on.
        cores: Number of CPU cores.
        clock_mhz: Highest clock of the fastest core.
        isa: Instruction set features that matter for float32 and int8 speed.
        fp32_gflops: Measured float32 speed of all cores.
        bandwidth_peak_gb_s: Memory bandwidth by data sheet.
        bandwidth_copy_gb_s: What a memory copy moves; a byte counts once, though it is read and written.
        bandwidth_fill_gb_s: What a memory fill writes.
        power_idle_w: Power of the idle board.
        power_typical_w: Typical power.
        power_load_w: Power under load.
        providers: onnxruntime execution providers, best first.
        accelerators: Processors beside the CPU.
        other_runtimes: For devices without onnxruntime: what can train something there.
        device_tree: Beginnings of the device-tree model, or `compatible` entries, by which the board is known.
        cpu_models: Beginnings of the processor's name in `/proc/cpuinfo` by which the device is known.
        notes: What a user should know.
        sources: Of the facts that are not numbers.
    """

    id: str
    name: str
    device_class: DeviceClass
    architecture: str
    cpu: str
    onnxruntime_supported: bool
    as_found: bool = False
    ram: Figure[int] | None = None
    visible_ram: Figure[int] | None = None
    external_ram: Figure[int] | None = None
    app_ram: Figure[int] | None = None
    floor: Figure[int] | None = None
    storage: Figure[int] | None = None
    storage_kind: str = ""
    cores: Figure[int] | None = None
    clock_mhz: Figure[int] | None = None
    isa: tuple[str, ...] = ()
    fp32_gflops: Figure[float] | None = None
    bandwidth_peak_gb_s: Figure[float] | None = None
    bandwidth_copy_gb_s: Figure[float] | None = None
    bandwidth_fill_gb_s: Figure[float] | None = None
    power_idle_w: Figure[float] | None = None
    power_typical_w: Figure[float] | None = None
    power_load_w: Figure[float] | None = None
    providers: tuple[Provider, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()
    other_runtimes: tuple[str, ...] = ()
    device_tree: tuple[str, ...] = ()
    cpu_models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def runs_python(self) -> bool:
        """Whether edgeff's own runtime can be started there; phones and browsers need onnxruntime's other languages."""
        return self.device_class in PYTHON_CLASSES

    @property
    def training_providers(self) -> tuple[Provider, ...]:
        """Providers that train or are not known to fail at it, the proven ones first."""
        return tuple(p for wanted in ("yes", "untested") for p in self.providers if p.training == wanted)

    @property
    def can_train(self) -> bool:
        """Whether update graphs can run there."""
        return self.onnxruntime_supported and bool(self.training_providers)

    @property
    def refusal(self) -> str:
        """Why update graphs cannot run there, as a sentence; empty where they can."""
        if not self.onnxruntime_supported:
            others = ", ".join(self.other_runtimes) or "none known"
            return f"onnxruntime does not run on {self.name}; runtimes that can train something there: {others}"
        return "" if self.can_train else f"no execution provider of {self.name} is known to train"


def require_trainable(profile: DeviceProfile) -> None:
    """Refuse a device on which update graphs cannot run.

    Raises:
        DeviceError: With the reason.
    """
    if not profile.can_train:
        raise DeviceError(
            f"edgeff cannot train on `{profile.id}`: {profile.refusal}",
            hint="`edgeff report` still gives its tensor bytes; choose another profile to train",
        )


def default_budget_bytes(profile: DeviceProfile, floor_bytes: int) -> int:
    """Bytes that training may use over the floor when the user names no budget.

    Args:
        profile: Of the device.
        floor_bytes: Resident bytes of the process before the artifact is opened; `profile.floor` has an estimate.

    Returns:
        App RAM less the floor.

    Raises:
        DeviceError: The profile has no app RAM, or the floor leaves nothing of it.
    """
    if profile.app_ram is None:
        reason = profile.refusal or "its RAM is what is found on the machine"
        raise DeviceError(
            f"device profile `{profile.id}` has no app RAM to plan with: {reason}",
            hint="give `--budget`, or run `edgeff devices --detect` on the device",
        )
    budget_bytes = profile.app_ram.value - floor_bytes
    if budget_bytes <= 0:
        raise DeviceError(
            f"the floor alone is {floor_bytes} bytes, the app RAM of `{profile.id}` is {profile.app_ram.value}",
            hint="choose a device with more RAM",
        )
    return budget_bytes


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which `pi5-16gb` follows `pi5-8gb`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _build(content: bytes, stem: str, origin: str) -> DeviceProfile:
    entries = read_form(content, stem, origin)
    return DeviceProfile(device_class=entries.pop("class"), **entries)


def profile_names() -> tuple[str, ...]:
    """Names of the catalogue, in natural order."""
    folder = resources.files("edgeff.devices") / "profiles"
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted((name.removesuffix(".toml") for name in names if name.endswith(".toml")), key=_natural))


def _load_path(path: Path) -> DeviceProfile:
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise DeviceError(
            f"cannot read device profile `{path}`: {reason}", hint="`edgeff devices` lists the profiles that come along"
        ) from error
    return _build(content, path.stem, str(path))


def load_profile(name_or_path: str) -> DeviceProfile:
    """Load a profile of the catalogue by name, or a user's own by path.

    Args:
        name_or_path: A name out of `profile_names()`; or a path, if it ends in `.toml` or is a file.

    Raises:
        DeviceError: No such profile, or one that breaks a rule of `docs/devices.md`.

    >>> load_profile("pi-zero-2w").app_ram.value
    250000000
    """
    if name_or_path.endswith(".toml"):
        return _load_path(Path(name_or_path))
    names = profile_names()
    if name_or_path in names:
        content = (resources.files("edgeff.devices") / "profiles" / f"{name_or_path}.toml").read_bytes()
        return _build(content, name_or_path, name_or_path)
    if Path(name_or_path).is_file():
        return _load_path(Path(name_or_path))
    raise DeviceError(
        f"there is no device profile `{name_or_path}`",
        hint=f"{did_you_mean(name_or_path, names, most=3)} (a path to your own `.toml` works too)",
    )


def load_all() -> tuple[DeviceProfile, ...]:
    """Load the whole catalogue, in the order of `profile_names`."""
    return tuple(load_profile(name) for name in profile_names())
