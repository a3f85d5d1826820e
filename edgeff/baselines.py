"""Where an artifact keeps back-propagation through the whole network, for comparisons: names that both halves share.

A baseline is a manifest of its own, of the same network as one block, over the artifact's weights file.
"""

from __future__ import annotations

PLAIN, CHECKPOINTED = "bp", "bp-checkpointing"
BASELINES = (PLAIN, CHECKPOINTED)

# The name of a baseline's one block. Its tensors are called `<block>.<name>` as in the weights file, so that this much
# is to be left out before the key of a tensor there.
BASELINE_BLOCK = "network"
KEY_PREFIX = f"{BASELINE_BLOCK}."


def baseline_file(name: str) -> str:
    """Path of a baseline's manifest inside an artifact.

    >>> baseline_file("bp")
    'baselines/bp.json'
    """
    return f"baselines/{name}.json"
