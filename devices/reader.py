"""Reading the TOML form of a profile: a closed set of keys, each with one kind of value.

Every complaint names the profile and the key and says what was needed and what was got, on one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from edgeff.devices.figure import BASES, TRAININGS, Accelerator, Figure, Provider
from edgeff.errors import DeviceError, EdgeffError, did_you_mean
from edgeff.units import parse_bytes

_FIGURE_HINT = 'a figure is `{ value = ..., basis = "sourced", source = "..." }`; basis is one of ' + ", ".join(
    f"`{basis}`" for basis in BASES
)


@dataclass(frozen=True)
class Place:
    """Where in which profile a value stands; for messages."""

    profile: str
    key: str

    def inside(self, key: str) -> Place:
        """The place of an entry of the table or list that stands here."""
        return Place(self.profile, f"{self.key}.{key}" if self.key else key)

    def fail(self, needed: str, got: object, *, hint: str = "`docs/devices.md` explains the keys") -> NoReturn:
        """Raise the error that says what is needed here and what was got."""
        message = f"`{self.key}` of device profile `{self.profile}` must be {needed}, got `{_one_line(got)}`"
        raise DeviceError(message, hint=hint)


Reader = Callable[[Any, Place], Any]

# No device has that much of anything; infinity and numbers that a float cannot hold lie beyond it.
_TOO_MUCH = 10**18


def _one_line(value: object) -> str:
    # TOML's own spelling of a truth value; everything else reads well enough in Python's.
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def read_table(table: Any, place: Place, readers: Mapping[str, Reader], required: Sequence[str]) -> dict[str, Any]:
    """Read a table whose keys are all known.

    Args:
        table: What TOML gave.
        place: Where it stands; the key is empty for the whole file.
        readers: How to read each known key.
        required: Keys that must be there.

    Returns:
        The values read, by key; absent keys are absent.

    Raises:
        DeviceError: An unknown key, a missing one, or a value of the wrong kind.
    """
    if not isinstance(table, Mapping):
        place.fail("a table", table)
    for key in table:
        if key not in readers:
            message = f"device profile `{place.profile}` has an unknown key `{place.inside(key).key}`"
            raise DeviceError(message, hint=did_you_mean(key, readers, most=3))
    for key in required:
        if key not in table:
            message = f"device profile `{place.profile}` lacks `{place.inside(key).key}`"
            raise DeviceError(message, hint=_FIGURE_HINT if readers[key] in FIGURES else "add the key")
    return {key: readers[key](value, place.inside(key)) for key, value in table.items()}


def text(value: Any, place: Place) -> str:
    """Read text that is not empty and fits on one line."""
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        place.fail("text on one line", value)
    return value


def optional_text(value: Any, place: Place) -> str:
    """Read text on one line that may be empty."""
    return "" if value == "" else text(value, place)


def flag(value: Any, place: Place) -> bool:
    """Read `true` or `false`."""
    if not isinstance(value, bool):
        place.fail("`true` or `false`", value)
    return value


def one_of(choices: Sequence[str]) -> Reader:
    """Make a reader of one word out of `choices`."""

    def read(value: Any, place: Place) -> str:
        if value not in choices:
            place.fail("one of " + ", ".join(f"`{choice}`" for choice in choices), value)
        return str(value)

    return read


def texts(value: Any, place: Place) -> tuple[str, ...]:
    """Read a list of texts."""
    if not isinstance(value, list):
        place.fail("a list of texts", value)
    return tuple(text(entry, place.inside(str(index))) for index, entry in enumerate(value))


def _positive(value: Any, place: Place) -> None:
    # Written so that a NaN fails too.
    if not 0 < value < _TOO_MUCH:
        place.fail("a finite number more than 0", value)


def _count(value: Any, place: Place) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        place.fail("a whole number", value)
    _positive(value, place)
    return value


def _amount(value: Any, place: Place) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        place.fail("a number", value)
    _positive(value, place)
    return float(value)


def _bytes(value: Any, place: Place) -> int:
    if not isinstance(value, str):
        place.fail("a size in quotes", value, hint='write for example `value = "512 MiB"`')
    try:
        count = parse_bytes(value)
    except EdgeffError as error:
        if value.strip().startswith("-"):
            place.fail("more than 0 bytes", value, hint=error.hint)
        place.fail("a number of bytes", value, hint=error.hint)
    except ValueError:  # thousands of digits
        count = _TOO_MUCH
    if not 0 < count < _TOO_MUCH:
        place.fail("more than 0 bytes and fewer than an exabyte", value)
    return count


def _figure(value_reader: Reader) -> Reader:
    readers: Mapping[str, Reader] = {"value": value_reader, "basis": one_of(BASES), "source": text}

    def read(value: Any, place: Place) -> Figure[Any]:
        if not isinstance(value, Mapping):
            place.fail("a figure with its source", value, hint=_FIGURE_HINT)
        entries = read_table(value, place, readers, tuple(readers))
        return Figure(**entries, text=_one_line(value["value"]))

    return read


byte_figure = _figure(_bytes)
count_figure = _figure(_count)
amount_figure = _figure(_amount)
FIGURES: tuple[Reader, ...] = (byte_figure, count_figure, amount_figure)


def _entries(value: Any, place: Place, readers: Mapping[str, Reader], required: Sequence[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        place.fail("a list of tables", value)
    return [read_table(entry, place.inside(str(index)), readers, required) for index, entry in enumerate(value)]


def providers(value: Any, place: Place) -> tuple[Provider, ...]:
    """Read the list of execution providers."""
    readers: Mapping[str, Reader] = {"name": text, "training": one_of(TRAININGS), "note": optional_text}
    entries = _entries(value, place, readers, ("name", "training"))
    return tuple(Provider(**({"note": ""} | entry)) for entry in entries)


def accelerators(value: Any, place: Place) -> tuple[Accelerator, ...]:
    """Read the list of accelerators."""
    readers: Mapping[str, Reader] = {
        "name": text,
        "training": one_of(TRAININGS),
        "detail": optional_text,
        "basis": one_of(BASES),
        "source": text,
    }
    entries = _entries(value, place, readers, ("name", "training", "basis", "source"))
    return tuple(Accelerator(**({"detail": ""} | entry)) for entry in entries)
