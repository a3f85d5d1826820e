"""The order of a graph's nodes in its file, chosen so that the fewest bytes are alive at once.

onnxruntime runs nodes depth first, and of several that it could take next always the one that stands last in the file
(`edgeff.export.memory.run_order`): so the order in the file decides which tensors are alive together. It is found by
trying. Wherever a node reads several tensors that matter, each in turn is made the first to be computed, and what
lowers the peak stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import onnx

from edgeff.export.arena import stretch
from edgeff.export.memory import Tensors, bytes_alive, run_order, tensors_of

# Rows at which orders are compared, about as many as a small device's micro-batch has.
ROWS = 8
# A tensor below this part of the largest one does not move the peak.
_MATTERS = 1 / 16
_ENDS = -1
# Nodes that are visited in all trials: more than a block's graphs take, and some seconds for those of a deep network.
VISITS = 250_000

# Of a node, or of the ends: what is to be computed first, the first first.
_First = Mapping[int, Sequence[int]]


def order_for_memory(model: onnx.ModelProto, rows: int = ROWS, visits: int = VISITS) -> None:
    """Put a model's nodes into the order that holds the fewest bytes when onnxruntime runs it, in place.

    Args:
        model: With `value_info` for its inner tensors.
        rows: At which orders are compared.
        visits: Nodes to visit in all trials; 0 for the best order to begin with.
    """
    nodes = list(model.graph.node)
    copies = []
    for index in least_memory_order(tensors_of(model), rows, visits):
        copies.append(onnx.NodeProto())
        copies[-1].CopyFrom(nodes[index])
    del model.graph.node[:]
    model.graph.node.extend(copies)


def least_memory_order(tensors: Tensors, rows: int, visits: int = VISITS) -> list[int]:
    """Numbers of the nodes in the order in which they are to stand in the file."""
    ends = _ends_by_depth(tensors)
    starts: list[_First] = [{}, {_ENDS: ends}, {_ENDS: ends[::-1]}]
    starts.sort(key=lambda start: _cost(tensors, _file_order(tensors, start), rows))
    choices = [(node, source) for node, sources in _branches(tensors, rows).items() for source in sources]
    found = []
    for start in starts:  # a large network's visits are used up by the first
        one, used = _improved(tensors, rows, start, choices, visits)
        found.append(one)
        visits -= used
        if visits <= 0:
            break
    return min(found, key=lambda order: (_cost(tensors, order, rows)[0], stretch(tensors, _run(tensors, order), rows)))


def _improved(
    tensors: Tensors, rows: int, first: _First, choices: Sequence[tuple[int, int]], visits: int
) -> tuple[list[int], int]:
    """An order that no single change makes better, or as far as `visits` go; and how many were used."""
    order = _file_order(tensors, first)
    best = _cost(tensors, order, rows)
    trials, since_better = 0, 0
    # Round and round, until a whole round brought nothing.
    for node, source in itertools.cycle(choices):
        if since_better == len(choices) or trials * len(order) >= visits:
            break
        trials, since_better = trials + 1, since_better + 1
        trial = {**first, node: [source, *(one for one in first.get(node, []) if one != source)]}
        trial_order = _file_order(tensors, trial)
        cost = _cost(tensors, trial_order, rows)
        if cost < best:
            first, order, best, since_better = trial, trial_order, cost, 0
    return order, trials * len(order)


def _ends_by_depth(tensors: Tensors) -> list[int]:
    """The ends, those first that the fewest nodes lead to: the gradients of a network's last layers."""
    leading: list[set[int]] = []
    for sources in tensors.sources:
        leading.append(set(sources).union(*(leading[source] for source in sources)))
    return sorted(tensors.ends, key=lambda end: len(leading[end]))


def _branches(tensors: Tensors, rows: int) -> dict[int, list[int]]:
    """Nodes with several sources whose order may matter, with these sources; the same for the ends."""
    sizes = [one.at(rows) for one in tensors.held]
    least = _MATTERS * max(sizes, default=0)
    heavy = [any(sizes[number] > least for number in made) for made in tensors.makes]
    for node in run_order(tensors.sources, range(len(heavy))):
        heavy[node] = heavy[node] or any(heavy[source] for source in tensors.sources[node])
    several = {**dict(enumerate(tensors.sources)), _ENDS: tensors.ends}
    chosen = {node: [source for source in sources if heavy[source]] for node, sources in several.items()}
    return {node: sources for node, sources in chosen.items() if len(sources) > 1}


def _file_order(tensors: Tensors, first: _First) -> list[int]:
    """An order of the file by which what is to be computed first stands last, as far as dependencies allow."""
    sources = [_last(own, first.get(node, ())) for node, own in enumerate(tensors.sources)]
    # `run_order` takes the last of several first; given backwards, what is wanted first is put last.
    return run_order([own[::-1] for own in sources], _last(tensors.ends, first.get(_ENDS, ()))[::-1])


def _last(sources: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The sources with the wanted ones at the end, the most wanted last of all."""
    return [*(source for source in sources if source not in wanted), *reversed(wanted)]


def _cost(tensors: Tensors, order: Sequence[int], rows: int) -> tuple[int, int]:
    """Most bytes alive at once, then the sum over all nodes, so that a step on the way to a lower peak counts too."""
    alive = bytes_alive(tensors, _run(tensors, order), rows)
    return max(alive, default=0), sum(alive)


def _run(tensors: Tensors, order: Sequence[int]) -> list[int]:
    """The order in which onnxruntime runs a file's order."""
    place = {node: position for position, node in enumerate(order)}
    sources: list[Sequence[int]] = [()] * len(order)
    for node, own in enumerate(tensors.sources):
        sources[node] = sorted(own, key=place.__getitem__)
    return run_order(sources, sorted(tensors.ends, key=place.__getitem__))
