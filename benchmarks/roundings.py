"""How far roundings move what a graph computes: in single numbers, and in the norm of a tensor.

    .venv/bin/python benchmarks/roundings.py ARTIFACT --method sweep --bits 11

Every float32 number that goes into a graph (rows, weights) is moved by up to 2^-bits of itself, by chance; 11 is what
half precision and TF32 round by, 22 nearly the last bit of a float32. On a few random rows and the CPU, as in the look
at an execution provider (`edgeff/runtime/provider_check.py`), whose allowance was chosen by this.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from edgeff.artifact import open_artifact
from edgeff.runtime import provider_check as look
from edgeff.runtime.arrays import Array
from edgeff.runtime.engine import OnnxRuntime
from edgeff.runtime.memory import allocate_memory
from edgeff.runtime.methods import METHODS, artifact_of
from edgeff.table import table

DRAWS = 6


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--method", type=click.Choice(sorted(METHODS)), default="sweep", show_default=True)
@click.option("--bits", type=click.IntRange(1, 24), default=11, show_default=True, help="Digits that are kept.")
def main(artifact: Path, method: str, bits: int) -> None:
    """Print, for each graph that sums gradients, the result that is moved the most, by both measures."""
    opened = artifact_of(open_artifact(artifact), method)
    engine, chance = OnnxRuntime(1), np.random.default_rng(1)
    lines = []
    for number, block in enumerate(opened.manifest.blocks):
        memory = allocate_memory(block, trained=True, accumulate=True)
        opened.fill(memory.weights())
        file = block.graphs["accumulate"].file
        given = look.random_inputs(opened, block, memory, "accumulate", np.random.default_rng(number))
        model = opened.read(file)
        expected = look.results(engine, model, file, given)
        moved = [
            look.results(engine, model, file, {name: shaken(array, bits, chance) for name, array in given.items()})
            for _ in range(DRAWS)
        ]
        for what, size in (("numbers", look.largest), ("norm", look.norm)):
            found = [dict(look.differences(one, expected, size)) for one in moved]
            worst = max(expected, key=lambda name: max(one[name] for one in found))
            lines.append((file, what, worst, " ".join(f"{one[worst]:.2%}" for one in found)))
    click.echo(table(("graph", "by", "moved the most", f"in {DRAWS} draws"), lines))


def shaken(array: Array, bits: int, chance: np.random.Generator) -> Array:
    """Every number of float32 moved by up to 2^-bits of itself."""
    if array.dtype != np.float32:
        return array
    return np.asarray(array * (1 + chance.uniform(-1, 1, array.shape) * 2.0**-bits), np.float32)


if __name__ == "__main__":
    main()
