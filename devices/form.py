"""The form of a profile file: which keys there are, what each holds, and how they must agree.

The key set is closed, so a misspelt key is an error and never a figure that silently goes missing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, Literal

from edgeff.devices import reader
from edgeff.devices.figure import Figure
from edgeff.devices.reader import Place, Reader
from edgeff.errors import DeviceError

DeviceClass = Literal["sbc", "mpu", "phone", "browser", "pc", "mcu"]
DEVICE_CLASSES: tuple[DeviceClass, ...] = ("sbc", "mpu", "pc", "phone", "browser", "mcu")

# Where edgeff's own runtime can be started; elsewhere a profile sizes artifacts for onnxruntime's other languages.
PYTHON_CLASSES: tuple[DeviceClass, ...] = ("sbc", "mpu", "pc")

PYTHON_FLOOR: Figure[int] = Figure(
    60_000_000,
    "estimate",
    "Python with numpy and onnxruntime: 45 to 57 MB resident measured on x86-64, rounded up; aarch64 not measured",
    "60 MB",
)
LIBRARY_FLOOR: Figure[int] = Figure(
    30_000_000,
    "estimate",
    "onnxruntime without Python: 20 to 32 MB of the Python process measured on x86-64, rounded",
    "30 MB",
)

READERS: Mapping[str, Reader] = {
    "id": reader.text,
    "name": reader.text,
    "class": reader.one_of(DEVICE_CLASSES),
    "architecture": reader.text,
    "as_found": reader.flag,
    "onnxruntime_supported": reader.flag,
    "ram": reader.byte_figure,
    "visible_ram": reader.byte_figure,
    "external_ram": reader.byte_figure,
    "app_ram": reader.byte_figure,
    "floor": reader.byte_figure,
    "storage": reader.byte_figure,
    "storage_kind": reader.text,
    "cpu": reader.text,
    "cores": reader.count_figure,
    "clock_mhz": reader.count_figure,
    "isa": reader.texts,
    "fp32_gflops": reader.amount_figure,
    "bandwidth_peak_gb_s": reader.amount_figure,
    "bandwidth_copy_gb_s": reader.amount_figure,
    "bandwidth_fill_gb_s": reader.amount_figure,
    "power_idle_w": reader.amount_figure,
    "power_typical_w": reader.amount_figure,
    "power_load_w": reader.amount_figure,
    "providers": reader.providers,
    "accelerators": reader.accelerators,
    "other_runtimes": reader.texts,
    "device_tree": reader.texts,
    "cpu_models": reader.texts,
    "notes": reader.texts,
    "sources": reader.texts,
}
# For a key of many parts tomllib's time grows with the square of their number.
MOST_BYTES = 32 * 1024
REQUIRED = ("id", "name", "class", "architecture", "cpu", "onnxruntime_supported")


def _check(entries: Mapping[str, Any], place: Place) -> None:
    """Check what takes more than one key to see."""

    def fail(message: str, hint: str) -> None:
        raise DeviceError(f"device profile `{place.profile}` {message}", hint=hint)

    trains, as_found = entries["onnxruntime_supported"], entries.get("as_found", False)
    if "ram" not in entries and not as_found:
        fail("lacks `ram`", 'add `ram = { value = "4 GiB", basis = "sourced", source = "..." }`')
    if trains and "app_ram" not in entries and not as_found:
        fail("lacks `app_ram`", "say what one training process may plan with; it is never the RAM on the box")
    if trains != bool(entries.get("providers")):
        needed = (
            "lists no execution provider" if trains else "lists execution providers, but onnxruntime does not run there"
        )
        fail(
            needed,
            'a computer that runs onnxruntime has at least `{ name = "CPUExecutionProvider", training = "yes" }`',
        )
    for smaller, larger in (("app_ram", "ram"), ("visible_ram", "ram"), ("floor", "app_ram")):
        if smaller in entries and larger in entries and entries[smaller].value > entries[larger].value:
            got = f"{entries[smaller].text} > {entries[larger].text}"
            fail(f"has more `{smaller}` than `{larger}`: {got}", "mend one of the two")


def _default_floor(entries: Mapping[str, Any]) -> Figure[int] | None:
    if not entries["onnxruntime_supported"]:
        return None
    return PYTHON_FLOOR if entries["class"] in PYTHON_CLASSES else LIBRARY_FLOOR


def read_form(content: bytes, stem: str, origin: str) -> dict[str, Any]:
    """Read a profile file.

    Args:
        content: Bytes of the file.
        stem: Name of the file without `.toml`; the profile's `id` must be the same.
        origin: What to call the profile in messages.

    Returns:
        Values by key, `class` among them; `floor` is filled in where the file leaves it out.

    Raises:
        DeviceError: One line that says which rule is broken.
    """
    if len(content) > MOST_BYTES:
        raise DeviceError(
            f"device profile `{origin}` has more than {MOST_BYTES:,} bytes", hint="those of the catalogue have 2,000"
        )
    try:
        table = tomllib.loads(content.decode("utf-8"))
    # A ValueError of any kind: bad TOML, bad UTF-8, or a number with thousands of digits.
    except (ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise DeviceError(
            f"device profile `{origin}` is not valid TOML: {cause}", hint="mend the file there"
        ) from error
    place = Place(origin, "")
    entries = reader.read_table(table, place, READERS, REQUIRED)
    if entries["id"] != stem:
        raise DeviceError(
            f"device profile `{origin}` has the id `{entries['id']}`, its file is named `{stem}`",
            hint=f'write `id = "{stem}"`, or rename the file to `{entries["id"]}.toml`',
        )
    _check(entries, place)
    return {"floor": _default_floor(entries)} | entries
