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
from edgeff.export.memory import Tensors, run_order, tensors_of

# Rows at which orders are compared, about as many as a small device's micro-batch has.
ROWS = 8
# A tensor below this part of the largest one does not move the peak.
_MATTERS = 1 / 16
ENDS = -1
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
    graph = Costs(tensors, rows)
    starts: list[_First] = [{}, {ENDS: ends}, {ENDS: ends[::-1]}]
    starts.sort(key=lambda start: graph.cost(graph.file_order(start)))
    choices = [(node, source) for node, sources in _branches(tensors, rows).items() for source in sources]
    found = []
    for start in starts:  # a large network's visits are used up by the first
        one, used = _improved(graph, start, choices, visits)
        found.append(one)
        visits -= used
        if visits <= 0:
            break
    return min(found, key=lambda order: (graph.cost(order)[0], stretch(tensors, graph.run(order), rows)))


def _improved(graph: Costs, first: _First, choices: Sequence[tuple[int, int]], visits: int) -> tuple[list[int], int]:
    """An order that no single change makes better, or as far as `visits` go; and how many were used."""
    order = graph.file_order(first)
    best = graph.cost(order)
    trials, since_better = 0, 0
    # Round and round, until a whole round brought nothing.
    for node, source in itertools.cycle(choices):
        if since_better == len(choices) or trials * len(order) >= visits:
            break
        trials, since_better = trials + 1, since_better + 1
        trial = {**first, node: [source, *(one for one in first.get(node, ()) if one != source)]}
        trial_order = graph.file_order(trial)
        if trial_order != order and (cost := graph.cost(trial_order, best[0])) < best:
            first, order, best, since_better = trial, trial_order, cost, 0
    return order, trials * len(order)


class Costs:
    """What orders of a graph cost in its file. Thousands are tried: what is the same for all is made once."""

    def __init__(self, tensors: Tensors, rows: int) -> None:
        sizes = [one.at(rows) for one in tensors.held]
        self._sources, self._ends = tensors.sources, tensors.ends
        self._backwards = [own[::-1] for own in tensors.sources]
        self._several = [node for node, own in enumerate(tensors.sources) if len(own) > 1]
        self._sizes = sizes
        self._made = [sum(sizes[number] for number in made) for made in tensors.makes]
        self._own = [line.at(rows) for line in tensors.workspace]
        touched = zip(tensors.makes, tensors.reads, strict=True)
        self._touched = [tuple({*made, *read}) for made, read in touched]

    def file_order(self, first: _First) -> list[int]:
        """An order of the file by which what is to be computed first stands last, as far as dependencies allow."""
        sources = self._backwards.copy()
        for node, wanted in first.items():
            if node != ENDS:
                sources[node] = tuple(_last(self._sources[node], wanted)[::-1])
        # `run_order` takes the last of several first; given backwards, what is wanted first is put last.
        return run_order(sources, _last(self._ends, first.get(ENDS, ()))[::-1])

    def run(self, order: Sequence[int]) -> list[int]:
        """The order in which onnxruntime runs a file's order."""
        place = [0] * len(order)
        for position, node in enumerate(order):
            place[node] = position
        sources = list(self._sources)
        for node in self._several:
            sources[node] = tuple(sorted(sources[node], key=place.__getitem__))
        return run_order(sources, sorted(self._ends, key=place.__getitem__))

    def cost(self, order: Sequence[int], most: int | None = None) -> tuple[int, int]:
        """Most bytes alive at once, then the sum over all nodes, so that a step on the way to a lower peak counts too.

        Counted from the end, where every tensor is met first by its last reader; given up beyond `most` bytes.
        """
        sizes, made, own, touched = self._sizes, self._made, self._own, self._touched
        alive, peak, total = 0, 0, 0
        later = bytearray(len(sizes))
        for node in reversed(self.run(order)):
            for number in touched[node]:
                if not later[number]:
                    later[number] = 1
                    alive += sizes[number]
            now = alive + own[node]
            total += now
            if now > peak:
                peak = now
                if most is not None and peak > most:
                    break
            alive -= made[node]
        return peak, total


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
    several = {**dict(enumerate(tensors.sources)), ENDS: tensors.ends}
    chosen = {node: [source for source in sources if heavy[source]] for node, sources in several.items()}
    return {node: sources for node, sources in chosen.items() if len(sources) > 1}


def _last(sources: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The sources with the wanted ones at the end, the most wanted last of all."""
    return [*(source for source in sources if source not in wanted), *reversed(wanted)]
