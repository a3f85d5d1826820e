"""Where tensors come to lie in an arena, by `edgeff.export.arena`, and that onnxruntime needs no more than that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import compiled, starting_feeds
from onnx import helper
from test_liveness import QUICK, compile_case

from edgeff.export.arena import GRAIN, ROWS, UPDATED_NUMBERS, Arena, arena_line, enough, placed, stretch
from edgeff.export.graphs import BlockGraphs
from edgeff.export.memory import bytes_alive, run_order, tensors_of
from edgeff.manifest import GraphKind, Line
from edgeff.presets import preset
from edgeff.runtime.engine import ARENA_MARGIN, OnnxRuntime
from edgeff.runtime.plan_bytes import arena_cost

KINDS: tuple[GraphKind, ...] = ("step", "accumulate", "forward")


# --- pieces -----------------------------------------------------------------------------------------------------------


class ByteMap:
    """The same by looking at every single byte."""

    def __init__(self, end: int) -> None:
        self.taken: list[bool] = []
        self.length = 0
        self.end = end

    def gaps(self) -> list[tuple[int, int]]:
        """Begin and bytes of every stretch that is free, the one at the end included."""
        found, begin = [], None
        for place, taken in enumerate(self.taken):
            if taken and begin is not None:
                found.append((begin, place - begin))
            begin = None if taken else place if begin is None else begin
        last = len(self.taken) if begin is None else begin
        return [*found, (last, self.end - last)]

    def take(self, size: int) -> int | None:
        fitting = [(length, begin) for begin, length in self.gaps() if length >= size]
        if not fitting:
            return None
        begin = min(fitting)[1]
        self.taken += [False] * (begin + size - len(self.taken))
        assert not any(self.taken[begin : begin + size])
        self.taken[begin : begin + size] = [True] * size
        self.length = max(self.length, begin + size)
        return begin

    def give_back(self, begin: int, size: int) -> None:
        self.taken[begin : begin + size] = [False] * size


ACTS = st.lists(st.integers(1, 12) | st.floats(0, 1, exclude_max=True), max_size=60)
ENDS = st.integers(20, 60) | st.just(10_000)


@given(ACTS, ENDS)
@settings(deadline=None)
def test_pieces_lie_where_looking_at_every_byte_puts_them(acts: Sequence[int | float], end: int) -> None:
    """A whole number takes a piece, a part gives back the one that is so far down the list."""
    arena, bytes_ = Arena(end), ByteMap(end)
    lying: list[tuple[int, int]] = []
    for act in acts:
        if isinstance(act, int):
            begin, expected = arena.take(act), bytes_.take(act)
            assert arena.fits == (expected is not None)
            if expected is None:
                return
            assert begin == expected
            assert all(begin + act <= other or other + size <= begin for other, size in lying)
            lying.append((begin, act))
        elif lying:
            piece = lying.pop(int(act * len(lying)))
            arena.give_back(*piece)
            bytes_.give_back(*piece)
        assert arena.length == bytes_.length


def places(acts: Sequence[int | float], end: int) -> tuple[list[int], Arena]:
    """Where pieces lie, up to the first that does not fit."""
    arena, found, lying = Arena(end), list[int](), list[tuple[int, int]]()
    for act in acts:
        if isinstance(act, int):
            found.append(arena.take(act))
            if not arena.fits:
                break
            lying.append((found[-1], act))
        elif lying:
            arena.give_back(*lying.pop(int(act * len(lying))))
    return found, arena


@given(ACTS, ENDS)
@settings(deadline=None)
def test_pieces_lie_alike_in_every_stretch_down_to_the_shortest_that_is_named(
    acts: Sequence[int | float], end: int
) -> None:
    found, arena = places(acts, end)
    if arena.fits:
        for shorter in range(arena.same_from, min(arena.same_from + 100, end)):
            assert places(acts, shorter)[0] == found


def test_the_smallest_free_piece_that_is_large_enough_is_taken_not_the_first() -> None:
    arena = Arena()
    large, _, small, _ = (arena.take(size) for size in (10, 1, 4, 1))
    arena.give_back(large, 10)
    arena.give_back(small, 4)
    assert arena.take(3) == small
    assert arena.take(4) == large
    assert arena.length == 16


def test_neighbours_that_are_free_are_one_piece_in_whatever_order_they_became_so() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)):
        arena = Arena()
        pieces = [arena.take(4) for _ in range(3)]
        arena.take(1)
        for number in order:
            arena.give_back(pieces[number], 4)
        assert arena.take(12) == 0
        assert arena.length == 13


# --- graphs -----------------------------------------------------------------------------------------------------------


def growing_graph(width: int) -> onnx.ModelProto:
    """Tensors of 1, 2, 4 and 4 times `width` float32 numbers a row, one made from the other."""

    def described(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Neg", ["x"], ["one"]),
        helper.make_node("Concat", ["one", "one"], ["two"], axis=1),
        helper.make_node("Concat", ["two", "two"], ["four"], axis=1),
        helper.make_node("Neg", ["four"], ["last"]),
        helper.make_node("ReduceMean", ["last"], ["y"], axes=[1], keepdims=0),
    ]
    inner = [described(name, "N", times * width) for name, times in {"one": 1, "two": 2, "four": 4, "last": 4}.items()]
    graph = helper.make_graph(nodes, "grows", [described("x", "N", width)], [described("y", "N")], value_info=inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stretch_of(model: onnx.ModelProto, rows: int) -> int:
    tensors = tensors_of(model)
    return stretch(tensors, run_order(tensors.sources, tensors.ends), rows)


def test_what_lies_free_in_pieces_that_are_too_small_makes_the_stretch_longer() -> None:
    """One at 0, two behind it, four behind both; the last four do not fit into the three that are free by then."""
    model = growing_graph(GRAIN // 4)
    assert stretch_of(model, 1) == (1 + 2 + 4 + 4) * GRAIN
    assert arena_line(model) == Line(0, 11 * GRAIN)
    tensors = tensors_of(model)
    assert max(bytes_alive(tensors, run_order(tensors.sources, tensors.ends), 1)) == (4 + 4) * GRAIN


def test_every_piece_is_rounded_up() -> None:
    model = growing_graph(GRAIN // 4 + 1)  # 4 bytes too many for one grain, 8 for two, 16 for four
    assert stretch_of(model, 1) == (2 + 3 + 5) * GRAIN  # and so the last fits where one and two were


@pytest.mark.parametrize(("own", "length"), [(3, 11), (4, 15)], ids=["in what is free", "behind all"])
def test_what_a_kernel_takes_for_itself_finds_room_beside_what_is_alive(own: int, length: int) -> None:
    """Where `last` is made from `four`, three grains are free before them."""
    tensors = tensors_of(growing_graph(GRAIN // 4))
    workspace = [Line(0, own * GRAIN if operator == "Neg" else 0) for operator in tensors.operators]
    tensors = replace(tensors, workspace=(Line(0, 0), *workspace[1:]))
    assert stretch(tensors, run_order(tensors.sources, tensors.ends), 1) == length * GRAIN


@pytest.mark.parametrize("name", QUICK)
def test_a_line_is_above_the_stretch_and_that_above_the_bytes_alive(name: str) -> None:
    """Between the rows that it is made of it may be below by what rounding makes of single tensors, not by more."""
    graphs = compile_case(name)
    for kind, model in graphs.models.items():
        if kind == "apply":
            continue
        tensors, line = tensors_of(model), arena_line(model)
        order = run_order(tensors.sources, tensors.ends)
        for rows in range(1, ROWS[-1] + 1):
            length = stretch(tensors, order, rows)
            assert length >= max(bytes_alive(tensors, order, rows), default=0)
            assert length <= line.at(rows) + (0 if rows in ROWS else ARENA_MARGIN // 8), (kind, rows)


@pytest.mark.parametrize("name", QUICK)
def test_every_stretch_that_is_longer_than_enough_is_long_enough(name: str) -> None:
    graphs = compile_case(name)
    for model in graphs.models.values():
        tensors = tensors_of(model)
        order = run_order(tensors.sources, tensors.ends)
        least, sure = stretch(tensors, order, 5), enough(tensors, order, 5)
        assert least <= sure
        fits = [placed(tensors, order, 5, end).fits for end in range(least, 2 * least, GRAIN)]
        assert all(fits[(sure - least) // GRAIN :])
        assert all(fits) == (least == sure)
        # Broken off after a step, the search gives a longer one, which is long enough as well.
        early = enough(tensors, order, 5, visits=len(order))
        assert early >= sure
        assert all(fits[(early - least) // GRAIN :])


def test_the_shared_update_has_a_line_in_the_numbers_that_it_updates() -> None:
    graphs = compile_case("conv")
    model = graphs.models["apply"]
    line = arena_line(model, UPDATED_NUMBERS)
    for numbers in UPDATED_NUMBERS:
        assert 0 < stretch_of(model, numbers) <= line.at(numbers)
    assert line.row_bytes < 100


# --- onnxruntime ------------------------------------------------------------------------------------------------------

needs_kernel = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the kernel's figures of a process"
)
DEVICE = ROOT / ".venv-device" / "bin" / "python"
PYTHON = str(DEVICE) if DEVICE.exists() else sys.executable
KIB, MIB = 2**10, 2**20

# Reserves bytes, loads a graph, binds arrays and runs it some times; prints resident bytes on the way. Arguments: the
# graph, its arrays, bytes.
RUN_IN_ARENA = """
import json, sys
from pathlib import Path
import numpy as np
from edgeff.runtime.allocator import return_free_memory, set_lean_allocator
from edgeff.runtime.engine import OnnxRuntime

def resident():
    return_free_memory()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])

set_lean_allocator()
model, stored = Path(sys.argv[1]).read_bytes(), np.load(sys.argv[2])
arrays = {name: np.array(stored[name]) for name in stored.files}
size = int(sys.argv[3])
engine = OnnxRuntime(1)
engine.load(model, "warm").bind(arrays).run()  # kernels' code, and what is set up once
seen = [resident()]
engine.reserve(size)
seen.append(resident())
call = engine.load(model, "graph").bind(arrays)
for _ in range(3):
    call.run()
seen.append(resident())
engine.reserve(0)
seen.append(resident())
call.run()  # a graph that is still there works without
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def preset_block() -> BlockGraphs:
    """The second block of `har-cnn`: convolution, normalisation and pooling of a signal."""
    torch.manual_seed(0)
    return compiled(preset("har-cnn").sequence[1].leaves()[0])


def arrays_of(graphs: BlockGraphs, kind: GraphKind, rows: int) -> dict[str, np.ndarray]:
    """All that a graph takes and gives."""
    model = graphs.models[kind]
    draw = np.random.default_rng(0)
    own = {
        "y": np.arange(rows, dtype=np.int64) % 5,
        "row_weight": np.full(rows, 1 / rows, np.float32),
        "seed": np.array(5, np.int64),
    }
    feeds = {name: np.array(value) for name, value in (starting_feeds(graphs) | own).items()}
    for value in [*model.graph.input, *model.graph.output]:
        shape = [dim.dim_value or rows for dim in value.type.tensor_type.shape.dim]
        name = value.name.removeprefix("new.")
        if value.name.startswith("gradient.") or name not in feeds:
            feeds[name] = draw.standard_normal(shape, np.float32)
    return feeds


def seen_in_arena(
    folder: Path, graphs: BlockGraphs, kind: GraphKind, rows: int, size: int, python: str = PYTHON
) -> list[int]:
    """Resident bytes before an arena, with it, after runs in it, and after it was given back."""
    onnx.save(graphs.models[kind], folder / "graph.onnx")
    np.savez(folder / "arrays.npz", **arrays_of(graphs, kind, rows))
    command = [python, "-c", RUN_IN_ARENA, str(folder / "graph.onnx"), str(folder / "arrays.npz"), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


def planned_arena(graphs: BlockGraphs, kind: GraphKind, rows: int) -> int:
    return arena_line(graphs.models[kind]).at(rows)


@needs_kernel
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_needs_no_more_than_its_arena_which_goes_back_as_a_whole(
    preset_block: BlockGraphs, tmp_path: Path, kind: GraphKind, rows: int
) -> None:
    """In one that is much larger, runs make as many bytes resident: these are the loaded graph's own."""
    size = planned_arena(preset_block, kind, rows)
    before, reserved, after, back = seen_in_arena(tmp_path, preset_block, kind, rows, size)
    assert abs(reserved - before - arena_cost(size)) < 128 * KIB
    _, reserved_larger, after_larger, _ = seen_in_arena(tmp_path, preset_block, kind, rows, size + 8 * MIB)
    assert abs((after - reserved) - (after_larger - reserved_larger)) < 128 * KIB
    assert after - back > arena_cost(size) - 128 * KIB


@needs_kernel
def test_a_larger_arena_goes_back_as_a_whole_too(preset_block: BlockGraphs, tmp_path: Path) -> None:
    before, reserved, after, back = seen_in_arena(tmp_path, preset_block, "forward", 8, 16 * MIB)
    assert abs(reserved - before - arena_cost(16 * MIB)) < 128 * KIB
    assert abs(after - back - arena_cost(16 * MIB)) < 128 * KIB


@needs_kernel
def test_of_an_arena_that_is_too_small_the_growth_is_seen(preset_block: BlockGraphs, tmp_path: Path) -> None:
    size = planned_arena(preset_block, "accumulate", 8)
    grown = []
    for reserved in (size, size // 2):
        _, before, after, _ = seen_in_arena(tmp_path, preset_block, "accumulate", 8, reserved)
        grown.append(after - before)
    assert grown[1] - grown[0] > 200 * KIB


@needs_kernel
@pytest.mark.parametrize(
    ("name", "block", "kind", "rows", "kept"),
    [
        ("vgg8", 1, "accumulate", 14, 15),
        ("image-cnn", -1, "step", 32, 32),
        ("image-cnn", -1, "step", 127, 128),
    ],
)
def test_what_is_kept_for_some_rows_is_enough_for_them_and_for_fewer(
    tmp_path: Path, name: str, block: int, kind: GraphKind, rows: int, kept: int
) -> None:
    """What so many rows take of an endless stretch is not: a piece comes to lie where a larger one has to go."""
    torch.manual_seed(0)
    graphs = compiled(preset(name, width=0.25).sequence[block].leaves()[0])
    short = stretch_of(graphs.models[kind], kept)
    grown = []
    for size in (short, planned_arena(graphs, kind, kept), 64 * MIB):
        _, before, after, _ = seen_in_arena(tmp_path, graphs, kind, rows, size)
        grown.append(after - before)
    assert abs(grown[1] - grown[2]) < 128 * KIB
    assert grown[0] - grown[2] > short / 8


@needs_kernel
def test_the_oldest_onnxruntime_keeps_an_arena_in_the_same_way(
    preset_block: BlockGraphs, tmp_path: Path, old_python: Path
) -> None:
    size = planned_arena(preset_block, "accumulate", 8)
    before, reserved, after, back = seen_in_arena(tmp_path, preset_block, "accumulate", 8, size, str(old_python))
    assert abs(reserved - before - arena_cost(size)) < 128 * KIB
    _, reserved_larger, after_larger, _ = seen_in_arena(
        tmp_path, preset_block, "accumulate", 8, size + 8 * MIB, str(old_python)
    )
    assert abs((after - reserved) - (after_larger - reserved_larger)) < 128 * KIB
    assert after - back > arena_cost(size) - 128 * KIB


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_same_bits_with_an_arena_and_without(preset_block: BlockGraphs, kind: GraphKind) -> None:
    engine, found = OnnxRuntime(1), []
    for size in (0, planned_arena(preset_block, kind, 8), 0):
        engine.reserve(size)
        arrays = arrays_of(preset_block, kind, 8)
        call = engine.load(preset_block.models[kind].SerializeToString(), kind).bind(arrays)
        for _ in range(3):
            call.run()
        found.append({name: array.tobytes() for name, array in arrays.items()})
    assert found[0] == found[1] == found[2]
    assert found[0] != {name: array.tobytes() for name, array in arrays_of(preset_block, kind, 8).items()}


def test_an_arena_that_is_reserved_again_serves_graphs_that_were_loaded_before(preset_block: BlockGraphs) -> None:
    engine, model = OnnxRuntime(1), preset_block.models["step"].SerializeToString()
    engine.reserve(MIB)
    arrays, expected = arrays_of(preset_block, "step", 8), arrays_of(preset_block, "step", 8)
    call = engine.load(model, "step").bind(arrays)
    for size in (MIB, 2 * MIB, 0, MIB // 4, 0):
        engine.reserve(size)
        call.run()
    plain = OnnxRuntime(1).load(model, "step").bind(expected)
    for _ in range(5):
        plain.run()
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
