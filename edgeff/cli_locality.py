"""`edgeff check-locality`: whether a model's learning is local, shown by watching it learn. Needs PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeff import cli_network
from edgeff.errors import ModelError
from edgeff.table import table

if TYPE_CHECKING:
    from edgeff.locality import Locality
    from edgeff.model import LocalNetwork


@click.command(name="check-locality")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@cli_network.PRESET
@cli_network.MODEL
@cli_network.RULE
@cli_network.BLOCKS
@cli_network.LOSSES
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_locality(
    run: Path | None,
    preset: str | None,
    factory: str | None,
    rules: tuple[str, ...],
    blocks: str | None,
    losses: str,
    as_json: bool,
) -> None:
    """Show that no block of the network of a pretraining RUN learns from a later one.

    The network learns from a few random rows, once for every later block with that block's weights moved: what the
    blocks before have learnt must not change in a single bit. No gradient may flow back through what is handed over,
    and a block's graph must be gone before the next block runs. Ends with 1 where a block is not local.
    """
    from edgeff.locality import check_locality as watch

    if sum(one is not None for one in (run, preset, factory)) != 1:
        raise click.UsageError("give a pretraining RUN, --preset or --model")
    network = cli_network.regrouped(_network(run, preset, factory, rules), blocks, losses)
    found = watch(network)
    if as_json:
        plain = {**dataclasses.asdict(found), "local": found.local, "kind": found.kind}
        click.echo(json.dumps(plain, indent=2))
    else:
        click.echo(_text(found))
    if not found.local:
        wrong = [block.name for block in found.blocks if not block.local]
        raise ModelError(
            f"learning is {found.kind}: {', '.join(wrong) or 'a graph is held after the update'}",
            hint="detach what a block hands over, and let each loss update its own block alone",
        )


def _network(run: Path | None, preset: str | None, factory: str | None, rules: tuple[str, ...]) -> LocalNetwork:
    from edgeff.presets import load_factory
    from edgeff.presets import preset as build
    from edgeff.pretrain_run import load_run

    if rules and preset is None:
        raise click.UsageError("--rule is for --preset; a run or a model has its own")
    if run is not None:
        return load_run(run).network
    return load_factory(factory) if factory else build(str(preset), rule=cli_network.rule_settings(rules))


def _text(found: Locality) -> str:
    rows = [
        (
            block.name,
            str(block.layers),
            ", ".join(block.reached_by) or "none",
            "attached" if block.attached else "detached",
            str(block.held),
        )
        for block in found.blocks
    ]
    header = ("block", "layers", "learns from later blocks", "hand-over", "tensors held by earlier graphs")
    verdict = "no block learns from a later one" if found.local else "not local"
    return f"{table(header, rows)}\n\n{found.kind}: {verdict}; {found.left} tensors held after the update"
