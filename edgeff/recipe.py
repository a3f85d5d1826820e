"""Recipes: small TOML files that say how a network is pretrained, so that a row of a table can be had again.

A recipe holds what `edgeff pretrain` takes on its command line, in tables for people to read: `[data]`, `[network]`,
`[training]` and `[rule]`. What is given on the command line as well counts instead.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from edgeff.errors import DataError, did_you_mean

FOLDER = Path(__file__).parent / "recipes"
MOST_BYTES = 32 * 1024
# Options of `edgeff pretrain` that may stand in each table, and what each is.
TABLES: Mapping[str, Mapping[str, type]] = {
    "data": {"data": str, "validation": str, "test": str},
    "network": {"preset": str, "input_shape": str, "width": float},
    "training": {
        "epochs": int,
        "batch_size": int,
        "micro_batch": int,
        "batch_norm": bool,
        "learning_rate": float,
        "weight_decay": float,
        "optimizer": str,
        "schedule": str,
        "mode": str,
        "layers": str,
        "losses": str,
        "augment": str,
        "label_smoothing": float,
        "gradient_clip": float,
        "fusion": str,
        "keep": str,
        "replay_rows": int,
    },
}
_KINDS: Mapping[type, str] = {str: "a text", int: "a whole number", float: "a finite number", bool: "true or false"}
_ABOUT, _RULE = "about", "rule"


@dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Attributes:
        name: Of the file, without `.toml`.
        about: One or two sentences for people.
        options: Options of `edgeff pretrain` by name, with `_` between words.
        rule: Settings of `edgeff.rule.LocalRule` that differ from its defaults.
    """

    name: str
    about: str
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    rule: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def recipe_names() -> list[str]:
    """Names of the recipes that come with edgeff."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(spec: str) -> Recipe:
    """A recipe by its name, or from a file whose name ends in `.toml`.

    Raises:
        DataError: No such recipe; a file that cannot be read, is no TOML, or has a key or value that no recipe has.
    """
    path = Path(spec)
    if path.suffix != ".toml":
        path = FOLDER / f"{spec}.toml"
        if spec not in recipe_names():
            raise DataError(f"there is no recipe `{spec}`", hint=did_you_mean(spec, recipe_names(), most=1))
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"recipe `{path}` cannot be read: {reason}", hint="check the path") from error
    return parse_recipe(content, path.stem)


def parse_recipe(content: bytes, name: str) -> Recipe:
    """A recipe from the bytes of its file.

    Raises:
        DataError: As `read_recipe`.
    """
    if len(content) > MOST_BYTES:
        raise DataError(f"recipe `{name}` has more than {MOST_BYTES:,} bytes", hint="those of edgeff have 1,000")
    try:
        table = tomllib.loads(content.decode("utf-8"))
    # A ValueError of any kind: bad TOML, bad UTF-8, or a number with thousands of digits.
    except (ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"recipe `{name}` is not valid TOML: {cause}", hint="mend the file there") from error
    for key in table:
        if key not in (_ABOUT, _RULE, *TABLES):
            _unknown(name, key, (_ABOUT, *TABLES, _RULE))
    about = table.get(_ABOUT)
    if not isinstance(about, str):
        raise DataError(f"recipe `{name}` does not say what it is for", hint='begin with `about = "..."`')
    options: dict[str, str | int | float | bool] = {}
    for section, known in TABLES.items():
        options |= _section(table, section, name, known)
    return Recipe(name, " ".join(about.split()), options, _section(table, _RULE, name, None))


def _section(table: Mapping[str, Any], section: str, name: str, known: Mapping[str, type] | None) -> dict[str, Any]:
    """The plain values of a table; where `known` is None, whoever uses them knows their keys."""
    values = table.get(section, {})
    if not isinstance(values, dict):
        raise DataError(f"`{section}` of recipe `{name}` must be a table", hint=f"write `[{section}]` above its keys")
    for key, value in values.items():
        if known is not None and key not in known:
            _unknown(name, f"{section}.{key}", [f"{section}.{one}" for one in known])
        if not isinstance(value, str | int | float):
            raise DataError(
                f"`{section}.{key}` of recipe `{name}` must be a text, a number or a truth value",
                hint='lists are written as on the command line: `input_shape = "3,32,32"`',
            )
        if known is not None and not _is(value, known[key]):
            raise DataError(f"`{section}.{key}` of recipe `{name}` must be {_KINDS[known[key]]}, got `{value}`")
    return values


def _is(value: str | int | float | bool, kind: type) -> bool:
    if kind is float:
        # A whole number may have more digits than a float can hold.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return type(value) is kind


def _unknown(name: str, key: str, known: Collection[str]) -> NoReturn:
    raise DataError(f"recipe `{name}` has an unknown key `{key[:60]}`", hint=did_you_mean(key, known, most=1))
