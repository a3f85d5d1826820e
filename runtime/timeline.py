"""One update of a plan as a sequence of graph runs, each with its seconds and bytes. Pure; nothing is measured here.

The seconds are those of `edgeff.runtime.cost`: good for proportions, not for promises. The bytes are the plan's own, so
that no moment of a timeline is above what the plan says of its phase.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from edgeff.manifest import BlockSpec, Manifest
from edgeff.runtime.buffers import filling_bytes
from edgeff.runtime.cost import apply_seconds, run_seconds
from edgeff.runtime.order import even_parts
from edgeff.runtime.plan_blocks import at_once, rows_together
from edgeff.runtime.plan_bytes import beside, graph_transient_bytes
from edgeff.runtime.plan_parts import BlockPlan, Bytes, Phase, Plan

# More bars than this nobody tells apart on a screen.
MAX_BARS = 200


@dataclass(frozen=True)
class Bar:
    """A run of a graph, or several in a row that are drawn as one.

    Attributes:
        first: Name of the block that runs, the first one of several.
        last: The last one.
        graph: Kind of graph; joined by ` and ` where several kinds are drawn as one.
        rows: That run at once; for `apply`, which takes no rows, 0. The most where several are drawn as one.
        seconds: Estimate, of all its runs together.
        bytes: Alive inside it beyond what is resident anyway; the most of its runs.
        runs: How many there are.
        micro_batches: That it stands for where whole micro-batches are left out; else 0.
    """

    first: str
    last: str
    graph: str
    rows: int
    seconds: float
    bytes: int
    runs: int = 1
    micro_batches: int = 0


@dataclass(frozen=True)
class Stretch:
    """The part of an update that one phase of the plan covers.

    Attributes:
        phase: Its name.
        resident: In memory all the while; the activations among them are buffers between runs.
        bars: In order.
    """

    phase: str
    resident: Bytes
    bars: tuple[Bar, ...]

    @property
    def seconds(self) -> float:
        """Of all its runs."""
        return sum(bar.seconds for bar in self.bars)

    @property
    def peak_bytes(self) -> int:
        """The most at any moment."""
        return self.resident.total + max((bar.bytes for bar in self.bars), default=0)


@dataclass(frozen=True)
class Timeline:
    """One update: one stretch where all blocks learn together, else one for each group of them or trained block.

    Attributes:
        stretches: In order.
        runs: Runs of graphs in all, however many bars they are drawn as.
        micro_batches: That the batch is taken in.
    """

    stretches: tuple[Stretch, ...]
    runs: int
    micro_batches: int

    @property
    def seconds(self) -> float:
        """Of all runs."""
        return sum(stretch.seconds for stretch in self.stretches)

    @property
    def peak_bytes(self) -> int:
        """The most at any moment."""
        return max((stretch.peak_bytes for stretch in self.stretches), default=0)

    @property
    def collapsed(self) -> bool:
        """Whether some bars stand for several runs."""
        return self.runs > sum(len(stretch.bars) for stretch in self.stretches)


def timeline(manifest: Manifest, plan: Plan, *, passes: int = 1, max_bars: int = MAX_BARS) -> Timeline:
    """The runs of one update, in the order of `edgeff.runtime.update`.

    Of micro-batches that are under way at once the runs stand one after another, as if each took its part of the time
    and had beside it the largest of what can run then.

    Args:
        manifest: That the plan was made for.
        plan: Of a sweep: one batch through all blocks, as often as it has groups of them. Of stages: one batch in each
            stage, one stage after another.
        passes: Over the batch in one update: two for forward-only learning.
        max_bars: Where there are more runs than this, alike ones are drawn as one: first the runs of one block next to
            each other, then all micro-batches but the first and the last, then forward runs next to each other, at
            last any neighbours.
    """
    clock = _Clock(manifest, plan, passes)
    acts = clock.sweeps() if plan.schedule == "sweep" else clock.stages()
    runs = sum(len(bars) for act in acts for bars in (*act.cycles, act.tail))
    steps: tuple[Callable[[_Act], _Act], ...] = (_join_repeats, _leave_middle_out, _join_forward)
    for step in steps:
        if sum(len(act.bars) for act in acts) > max_bars:
            acts = [step(act) for act in acts]
    each = max(1, max_bars // max(1, len(acts)))
    stretches = tuple(Stretch(act.phase, act.resident, _thinned(act.bars, each)) for act in acts)
    return Timeline(stretches, runs, -(-plan.batch_size // plan.micro_batch))


# --- the runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Act:
    """A stretch before it is thinned: the same runs for every micro-batch, then the updates."""

    phase: str
    resident: Bytes
    cycles: tuple[tuple[Bar, ...], ...]
    tail: tuple[Bar, ...]

    @property
    def bars(self) -> tuple[Bar, ...]:
        return (*(bar for cycle in self.cycles for bar in cycle), *self.tail)


@dataclass(frozen=True)
class _Clock:
    manifest: Manifest
    plan: Plan
    passes: int

    def sweeps(self) -> list[_Act]:
        return [self._sweep(group) for group in reversed(self.plan.spans)]

    def _sweep(self, group: range) -> _Act:
        phase = self._phase("train")
        pairs = self._pairs()
        learning = [pairs[block] for block in group if pairs[block][1].graphs]
        before = [(spec, replace(part, graphs=("forward",))) for spec, part in pairs[: group.start]]
        filling = filling_bytes(self.manifest, self.plan.micro_batch)
        # Of an arena, a run's bar is the part that it uses.
        inside = beside(self.plan.arena_bytes, filling, max(part.transient_bytes for _, part in pairs if part.graphs))
        cycles = tuple(self._chain([*before, *learning], rows) for rows in self.passes * self._micro_batches())
        name = phase.name if len(self.plan.groups) == 1 else _named([spec.name for spec, _ in learning])
        return _Act(name, _less(phase.resident, inside), cycles, self._applies(learning))

    def stages(self) -> list[_Act]:
        pairs = self._pairs()
        return [self._stage(index) for index, (_, part) in enumerate(pairs) if part.trained and part.graphs]

    def _stage(self, index: int) -> _Act:
        pairs, rows = self._pairs(), self.plan.micro_batch
        block, part = pairs[index]
        phase = self._phase(f"train {block.name}")
        before = [spec for spec, _ in pairs[:index]] if self.plan.features == "rerun" else []
        filling = max(filling_bytes(self.manifest, rows, first=first) for first in {index, 0 if before else index})
        forward = [spec.graphs["forward"].transient_bytes(rows) for spec in before]
        inside = beside(self.plan.arena_bytes, filling, max(part.transient_bytes, *forward, 0))
        cycles = tuple(
            (*(self._bar(spec, "forward", size) for spec in before), *self._chain([pairs[index]], size))
            for size in self._micro_batches([pairs[index][0].name])
        )
        return _Act(phase.name, _less(phase.resident, inside), cycles, self._applies([pairs[index]]))

    def _pairs(self) -> list[tuple[BlockSpec, BlockPlan]]:
        return list(zip(self.manifest.blocks, self.plan.blocks, strict=True))

    def _phase(self, name: str) -> Phase:
        return next(phase for phase in self.plan.phases if phase.name == name)

    def _micro_batches(self, trained: Collection[str] | None = None) -> list[int]:
        """Rows of each, cut as the trainer cuts them; `trained`: blocks that learn from them, None for the plan's."""
        names = [part.block for part in self.plan.blocks if part.trained] if trained is None else trained
        together = rows_together(self.manifest, names)
        return [len(part) for part in even_parts(np.arange(self.plan.batch_size), self.plan.micro_batch, together)]

    def _chain(self, pairs: Sequence[tuple[BlockSpec, BlockPlan]], rows: int) -> tuple[Bar, ...]:
        return tuple(
            self._bar(spec, part.graphs[0], min(part.micro_batch, rows - start))
            for spec, part in pairs
            for start in range(0, rows, part.micro_batch)
        )

    def _bar(self, spec: BlockSpec, kind: str, rows: int) -> Bar:
        graph, plan = spec.graphs[kind], self.plan  # type: ignore[index]  # a plan has kinds of graphs only
        arena, workers = bool(plan.arena_bytes), plan.workers
        seconds = run_seconds(graph, rows, threads=plan.operator_threads, arena=arena, workers=workers) / workers
        others = [one for one in plan.blocks if one.block != spec.name]
        return Bar(
            spec.name, spec.name, kind, rows, seconds, graph.transient_bytes(rows) + at_once(others, workers - 1)
        )

    def _applies(self, pairs: Sequence[tuple[BlockSpec, BlockPlan]]) -> tuple[Bar, ...]:
        threads = self.plan.update_threads
        return tuple(
            Bar(
                spec.name,
                spec.name,
                "apply",
                0,
                apply_seconds(spec) / threads,
                threads * graph_transient_bytes(spec.graphs["apply"], "apply", part.micro_batch, arena=False),
            )
            for spec, part in pairs
            if "apply" in part.graphs[1:]
        )


def _named(blocks: Sequence[str]) -> str:
    """What a stretch is called in which some blocks next to each other learn."""
    return f"train {blocks[0]}" if len(blocks) == 1 else f"train {blocks[0]} to {blocks[-1]}"


def _less(resident: Bytes, inside: int) -> Bytes:
    """What stays between runs: without what is alive inside them."""
    return replace(resident, activations=max(0, resident.activations - inside))


# --- fewer bars -------------------------------------------------------------------------------------------------------


def _join_repeats(act: _Act) -> _Act:
    """A block's runs next to each other as one."""

    def joined(bars: tuple[Bar, ...]) -> tuple[Bar, ...]:
        return tuple(_joined(list(group)) for _, group in groupby(bars, key=lambda bar: (bar.first, bar.graph)))

    return replace(act, cycles=tuple(map(joined, act.cycles)), tail=joined(act.tail))


def _leave_middle_out(act: _Act) -> _Act:
    """One bar for all micro-batches between the first and the last."""
    if len(act.cycles) < 4:
        return act
    middle = act.cycles[1:-1]
    bar = replace(_joined([bar for cycle in middle for bar in cycle]), micro_batches=len(middle))
    return replace(act, cycles=(act.cycles[0], (bar,), act.cycles[-1]))


def _join_forward(act: _Act) -> _Act:
    """Forward runs of several blocks as one."""

    def joined(bars: tuple[Bar, ...]) -> tuple[Bar, ...]:
        found: list[Bar] = []
        for forward, group in groupby(bars, key=lambda bar: bar.graph == "forward"):
            alike = list(group)
            found += [_joined(alike)] if forward else alike
        return tuple(found)

    return replace(act, cycles=tuple(map(joined, act.cycles)))


def _thinned(bars: tuple[Bar, ...], most: int) -> tuple[Bar, ...]:
    """Neighbours joined until at most so many are left."""
    size = math.ceil(len(bars) / most)
    return tuple(_joined(bars[start : start + size]) for start in range(0, len(bars), size)) if size > 1 else bars


def _joined(bars: Sequence[Bar]) -> Bar:
    if len(bars) == 1:
        return bars[0]
    return Bar(
        first=bars[0].first,
        last=bars[-1].last,
        graph=" and ".join(dict.fromkeys(kind for bar in bars for kind in bar.graph.split(" and "))),
        rows=max(bar.rows for bar in bars),
        seconds=sum(bar.seconds for bar in bars),
        bytes=max(bar.bytes for bar in bars),
        runs=sum(bar.runs for bar in bars),
        micro_batches=sum(bar.micro_batches for bar in bars),
    )
