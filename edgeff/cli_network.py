"""Options that say which network a command of the workstation works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edgeff.errors import ModelError

if TYPE_CHECKING:
    from edgeff.model import LocalNetwork

PRESET = click.option("--preset", help="A network by name, for example `har-cnn` or `image-cnn`.")
MODEL = click.option(
    "--model", "factory", metavar="FILE:FUNCTION", help="Your own: a function that returns a LocalNetwork."
)
RULE = click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="KEY=VALUE",
    help="What a preset's blocks learn from, for example `projection=fixed` (docs/method.md). May be repeated.",
)
BLOCKS = click.option(
    "--blocks",
    type=click.Choice(["1-layer", "2-layer", "whole"]),
    help="How many layers learn as one; `whole` is back-propagation through the whole network. Default: as they are.",
)
LOSSES = click.option(
    "--losses", type=click.Choice(["last", "all"]), default="last", show_default=True, help="Of a joined block."
)


def rule_settings(rules: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` pairs as a mapping; of a key given twice the last counts.

    Raises:
        ModelError: One is of another form.
    """
    found = {}
    for text in rules:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ModelError(f"`{text}` is no rule setting", hint="write for example `--rule projection=fixed`")
        found[key.strip().replace("-", "_")] = value.strip()
    return found


def regrouped(network: LocalNetwork, blocks: str | None, losses: str) -> LocalNetwork:
    """A network in the blocks that `BLOCKS` and `LOSSES` ask for.

    Raises:
        UsageError: Losses are asked for, and no blocks.
    """
    if blocks is not None:
        return network.regroup(blocks, losses)  # type: ignore[arg-type]
    if losses != "last":
        raise click.UsageError("--losses is for blocks of several layers: it needs --blocks")
    return network
