"""Reading JSON that somebody else wrote: values that know their path and say what was needed and what was got.

`json.loads` lets repeated keys, `NaN` and over-long nesting through. Here each is refused, and every message names the
place, such as `blocks[2].graphs.step.file`.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar, cast

from edgeff.errors import ArtifactError

# Beyond this a reader that keeps numbers as doubles (JavaScript, jq) would change them.
MAX_INTEGER = 2**53 - 1
MAX_TEXT_CHARACTERS = 4096
# Of values whose form the manifest leaves open (objective, preprocessing steps).
MAX_FREE_DEPTH = 16
MAX_PATH_CHARACTERS = 255
MAX_PATH_PARTS = 8

HINT = "the file was damaged, edited, or written by a faulty exporter; copy the artifact or export the model again"

# Long enough for the parameter paths of deep torch modules, short enough for a file name on every file system.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Controls, lone surrogates (not UTF-8) and line breaks: what could forge a line of a report or move the cursor.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


Value = TypeVar("Value")


class _Object(dict[str, object]):
    """A JSON object that remembers a key that was given twice."""

    repeated: str | None = None


class _Sharing:
    """Makes equal values of a document one object, as they are parsed: the alike blocks of a deep network are many.

    A value is known by its type and by which objects it is made of, not by `==`, for which `1`, `1.0` and `True` are
    one, and `0.0` and `-0.0`.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], object] = {}

    def of_pairs(self, pairs: list[tuple[str, object]]) -> _Object:
        """What `json` calls for every object, the innermost first."""
        result = _Object()
        for key, value in pairs:
            if key in result:
                result.repeated = key
            result[key] = self._shared(value)
        if result.repeated is not None:
            return result
        parts = [id(part) for key, value in result.items() for part in (self._shared(key), value)]
        return cast(_Object, self._seen.setdefault((_Object, *parts), result))

    def _shared(self, value: object) -> object:
        if isinstance(value, _Object):
            return value
        if isinstance(value, list):
            value = [self._shared(item) for item in value]
            return self._seen.setdefault((list, *map(id, value)), value)
        return self._seen.setdefault((type(value), repr(value) if isinstance(value, float) else value), value)


def parse_json(text: str, name: str) -> Node:
    """Parse a JSON document; `name` is what its root is called in messages.

    Raises:
        ArtifactError: Not JSON, or nested deeper than the parser can follow.

    >>> parse_json('{"rows": 3}', "replay").fields("rows")["rows"].integer()
    3
    """
    try:
        # `NaN` and `Infinity` are let in here as floats, so that the reader of the place can name it.
        value = json.loads(text, object_pairs_hook=_Sharing().of_pairs, parse_constant=float)
    except RecursionError as error:
        raise ArtifactError(f"`{name}` is nested too deeply", hint=HINT) from error
    except ValueError as error:
        raise ArtifactError(f"`{name}` is not JSON: {error}", hint=HINT) from error
    return Node(value, "", name)


def is_name(text: str) -> bool:
    """Whether a text may name a block, a tensor or a file: 1 to 128 of `A-Z a-z 0-9 _ - .`, not starting with a dot."""
    return _NAME.fullmatch(text) is not None


def is_contained_path(text: str) -> bool:
    """Whether a text is a relative path, with `/` between names, that cannot leave the folder it is relative to.

    >>> is_contained_path("graphs/conv1.step.onnx"), is_contained_path("../secret"), is_contained_path("/etc/passwd")
    (True, False, False)
    """
    parts = text.split("/")
    return (
        len(text) <= MAX_PATH_CHARACTERS
        and len(parts) <= MAX_PATH_PARTS
        # A name that ends with a dot is a different name on Windows.
        and all(is_name(part) and not part.endswith(".") for part in parts)
    )


def has_control_characters(text: str) -> bool:
    """Whether a text has what no string of an artifact may have: controls, lone surrogates, line breaks."""
    return any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in text)


def shown(value: object) -> str:
    """A JSON value as a message shows it: short, on one line, without control characters."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value)
    return f"`{text}`" if len(text) <= 80 else f"`{text[:77]}...`"


def _any_number(value: float) -> bool:
    del value
    return True


@dataclass(frozen=True)
class Node:
    """A JSON value and where it stands.

    Every reader raises `ArtifactError` naming the place when the value is not what it reads.

    Attributes:
        value: As `json` gives it.
        path: From the root, such as `blocks[2].name`; empty for the root.
        document: What the root is called.
        read: What `once` made of values of this document.
    """

    value: object
    path: str
    document: str
    read: dict[tuple[object, int], object] = field(default_factory=dict, repr=False, compare=False)

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"`{self.path or self.document}`"

    def error(self, needed: str) -> ArtifactError:
        """The error that says what was needed here and what was got."""
        return ArtifactError(f"{self.place} must be {needed}, got {shown(self.value)}", hint=HINT)

    def _child(self, key: str, value: object) -> Node:
        if _PLAIN_KEY.fullmatch(key):
            return Node(value, f"{self.path}.{key}" if self.path else key, self.document, self.read)
        return Node(value, f"{self.path}[{json.dumps(key[:64])}]", self.document, self.read)

    def once(self, read: Callable[[Node], Value]) -> Value:
        """What `read` makes of it: the same object for every equal value of the document, which is read only once."""
        # Equal values are one object, which lives at least as long as the root.
        key = (read, id(self.value))
        if key not in self.read:
            self.read[key] = read(self)
        return cast(Value, self.read[key])

    def mapping(self) -> dict[str, Node]:
        """An object with any keys that are texts (see `text`), none of them twice."""
        if not isinstance(self.value, _Object):
            raise self.error("an object")
        if self.value.repeated is not None:
            twice = self._child(self.value.repeated, None)
            raise ArtifactError(f"key {twice.place} is given twice", hint=HINT)
        for key in self.value:
            # Messages repeat keys, so they may not hold what a text may not.
            Node(key, f"key of {self.path or self.document}", self.document).text()
        return {key: self._child(key, value) for key, value in self.value.items()}

    def fields(self, *keys: str) -> dict[str, Node]:
        """An object with exactly these keys."""
        children = self.mapping()
        for key in children:
            if key not in keys:
                raise ArtifactError(f"unknown key {children[key].place}", hint=HINT)
        for key in keys:
            if key not in children:
                raise ArtifactError(f"missing key {self._child(key, None).place}", hint=HINT)
        return children

    def elements(self, most: int | None = None) -> Iterator[Node]:
        """A list, of at most so many values; one after another, for a node takes a hundred times what a value takes."""
        if not isinstance(self.value, list):
            raise self.error("a list")
        if most is not None and len(self.value) > most:
            raise self.error(f"a list of at most {most}")
        return (
            Node(value, f"{self.path}[{index}]", self.document, self.read) for index, value in enumerate(self.value)
        )

    def optional(self) -> Node | None:
        """Itself, or None for `null`."""
        return None if self.value is None else self

    def text(self) -> str:
        """A string of at most 4096 characters, on one line and without control characters."""
        if not isinstance(self.value, str):
            raise self.error("a string")
        if len(self.value) > MAX_TEXT_CHARACTERS:
            raise self.error(f"a string of at most {MAX_TEXT_CHARACTERS} characters")
        if has_control_characters(self.value):
            raise self.error("a string without control characters")
        return self.value

    def name(self) -> str:
        """The name of a block, a tensor or a slot; see `is_name`."""
        if not isinstance(self.value, str) or not is_name(self.value):
            raise self.error("a name (1 to 128 letters, digits, `_`, `-`, `.`; no leading dot)")
        return self.value

    def file(self) -> str:
        """The path of a file; see `is_contained_path`."""
        if not isinstance(self.value, str) or not is_contained_path(self.value):
            raise self.error("a relative path inside the artifact")
        return self.value

    def digest(self) -> str:
        """A sha256."""
        if not isinstance(self.value, str) or not _DIGEST.fullmatch(self.value):
            raise self.error("a sha256 (64 lower-case hexadecimal digits)")
        return self.value

    def choice(self, options: Iterable[str]) -> str:
        """One of some strings."""
        known = sorted(options)
        if not isinstance(self.value, str) or self.value not in known:
            raise self.error(f"one of {', '.join(f'`{option}`' for option in known)}")
        return self.value

    def boolean(self) -> bool:
        """`true` or `false`."""
        if not isinstance(self.value, bool):
            raise self.error("`true` or `false`")
        return self.value

    def integer(self, minimum: int = 0, maximum: int = MAX_INTEGER) -> int:
        """A whole number in a range, ends included."""
        # bool is an int to Python, not to JSON.
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not minimum <= self.value <= maximum:
            upper = f" to {maximum}" if maximum != MAX_INTEGER else " or more"
            raise self.error(f"a whole number, {minimum}{upper}")
        return self.value

    def number(self, needed: str = "a finite number", accept: Callable[[float], bool] = _any_number) -> float:
        """A finite number for which `accept` holds; `needed` says so in words."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error(needed)
        # Also false for NaN, and for integers that no double can hold.
        finite = -sys.float_info.max <= self.value <= sys.float_info.max
        if not finite or not accept(float(self.value)):
            raise self.error(needed)
        return float(self.value)

    def free(self, depth: int = MAX_FREE_DEPTH) -> object:
        """Any JSON value, as plain dicts and lists, with each part checked and nesting limited."""
        if isinstance(self.value, dict | list) and depth == 0:
            raise ArtifactError(f"{self.place} is nested more than {MAX_FREE_DEPTH} levels deep", hint=HINT)
        if isinstance(self.value, dict):
            return {key: child.free(depth - 1) for key, child in self.mapping().items()}
        if isinstance(self.value, list):
            return [child.free(depth - 1) for child in self.elements()]
        if isinstance(self.value, str):
            return self.text()
        if isinstance(self.value, float):
            return self.number()
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return self.integer(-MAX_INTEGER)
        return self.value
