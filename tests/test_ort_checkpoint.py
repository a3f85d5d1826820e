"""onnxruntime-training's checkpoints as they are written and read here: the package itself is the judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from engine_artifact import export_small, small_rows
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeff.artifact import Artifact, open_artifact
from edgeff.engines import ORT_TRAINING
from edgeff.errors import EngineError
from edgeff.onnx_limits import DTYPES
from edgeff.runtime import ort_checkpoint
from edgeff.runtime.ort_checkpoint import checkpoint_bytes, read_moments
from edgeff.runtime.ort_training import OrtTraining

Tensors = dict[str, np.ndarray]
# As in manifests: names of tensors behind their role, and sizes of 1 and more.
names = st.from_regex(r"(parameter|buffer)\.[A-Za-z0-9_][A-Za-z0-9_.\-]{0,60}", fullmatch=True)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)
# Every bit pattern counts, so also numbers that are none.
floats = hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=True))
frozen = st.sampled_from(sorted(ort_checkpoint._DTYPES)).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
steps = st.integers(0, 2**53 - 1)
REFUSED = "onnxruntime-training wrote a checkpoint of another form"


@st.composite
def contents(draw: st.DrawFn) -> tuple[Tensors, Tensors, dict[str, list[np.ndarray]], int]:
    """What a checkpoint is made of; moments are of a number that all parameters share."""
    trained = draw(st.dictionaries(names, floats, min_size=1, max_size=4))
    held = draw(st.dictionaries(names.filter(lambda name: name not in trained), frozen, max_size=3))
    count = draw(st.integers(0, 2))
    moments = {
        name: [draw(hnp.arrays(np.float32, array.shape, elements=st.floats(width=32))) for _ in range(count)]
        for name, array in trained.items()
    }
    return trained, held, moments, draw(steps)


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def step_of(content: bytes) -> int:
    from flatbuffers import number_types

    (group,) = ort_checkpoint._tables(ort_checkpoint._root(content), 2)
    place = group.Offset(6)  # 0 where the number is, which is the default
    return int(group.Get(number_types.Int64Flags, group.Pos + place)) if place else 0


@settings(max_examples=60, deadline=None)
@given(contents())
def test_moments_that_are_written_are_read_again(
    made: tuple[Tensors, Tensors, dict[str, list[np.ndarray]], int],
) -> None:
    trained, held, moments, step = made
    content = checkpoint_bytes(trained, held, moments, step=step)
    found = read_moments(content)
    assert list(found) == [name for name in moments if moments[name]]
    for name, some in found.items():
        assert [one.shape for one in some] == [(one.size,) for one in moments[name]]
        assert all(same_bits(one, other.reshape(-1)) for one, other in zip(some, moments[name], strict=True))
    if found:
        assert step_of(content) == step
    assert checkpoint_bytes(trained, held, moments, step=step) == content


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents())
def test_the_package_reads_the_tensors_that_are_written(
    tmp_path: Path, made: tuple[Tensors, Tensors, dict[str, list[np.ndarray]], int]
) -> None:
    trained, held, moments, step = made
    path = tmp_path / "checkpoint"
    path.write_bytes(checkpoint_bytes(trained, held, moments, step=step))
    state = OrtTraining(1).api.CheckpointState.load_checkpoint(str(path))
    found = {name: (parameter.data, parameter.requires_grad) for name, parameter in state.parameters}
    assert found.keys() == {*trained, *held}
    for name, array in {**trained, **held}.items():
        value, asks = found[name]
        assert value.shape == array.shape
        assert same_bits(value, array), name
        assert asks == (name in trained)


def test_arrays_that_are_not_contiguous_are_written_as_what_they_show(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (base.T, base[::2, 1::2], base[:, 3]):
        path = tmp_path / "checkpoint"
        path.write_bytes(checkpoint_bytes({"parameter.w": view}, {}, {"parameter.w": [view]}, step=1))
        state = OrtTraining(1).api.CheckpointState.load_checkpoint(str(path))
        np.testing.assert_array_equal(state.parameters["parameter.w"].data, view)
        np.testing.assert_array_equal(read_moments(path.read_bytes())["parameter.w"][0], view.reshape(-1))


def test_every_dtype_of_a_manifest_is_written_or_refused_by_name() -> None:
    weight = {"parameter.w": np.zeros(2, np.float32)}
    for dtype in DTYPES.values():
        tensors = {"buffer.b": np.ones(3, dtype)}
        if dtype in ort_checkpoint._DTYPES:
            assert checkpoint_bytes(weight, tensors, {}, step=0)
            continue
        with pytest.raises(EngineError, match=r"reads no float16, which `buffer\.b` is") as refused:
            checkpoint_bytes(weight, tensors, {}, step=0)
        assert "--engine" in refused.value.hint
    assert len(ort_checkpoint._DTYPES) == len(DTYPES) - 1


# --- through the package's optimiser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(export_small(tmp_path_factory.mktemp("small") / "artifact"))


def through_the_package(artifact: Artifact, folder: Path, content: bytes, updates: int) -> bytes:
    """The checkpoint that the package writes of the second block after it was given one and made some updates."""
    api = OrtTraining(1).api
    graphs = artifact.for_engine(ORT_TRAINING).manifest.blocks[1].graphs
    folder.mkdir()
    (folder / "before").write_bytes(content)
    state = api.CheckpointState.load_checkpoint(str(folder / "before"))
    module = api.Module(str(artifact.path_of(graphs["accumulate"].file)), state)
    optimizer = api.Optimizer(str(artifact.path_of(graphs["apply"].file)), module)
    _, y = small_rows()
    x = np.random.default_rng(1).standard_normal((6, 4, 3, 3)).astype(np.float32)
    rows = {"x": x, "y": y[:6].astype(np.int64), "row_weight": np.full(6, 1 / 6, np.float32)}
    for _ in range(updates):
        module(*(rows[name] for name in module.input_names()))
        optimizer.step()
        module.lazy_reset_grad()
    api.CheckpointState.save_checkpoint(state, str(folder / "after"), include_optimizer_state=True)
    del optimizer  # before the module
    return (folder / "after").read_bytes()


def drawn(artifact: Artifact) -> tuple[Tensors, Tensors, dict[str, list[np.ndarray]]]:
    """Weights, constants and moments of the second block, none of them what it was exported with."""
    draw = np.random.default_rng(2)
    block = artifact.manifest.blocks[1]
    trained = {f"parameter.{one.name}": draw.standard_normal(one.shape, np.float32) for one in block.parameters}
    held = {f"buffer.{one.name}": draw.standard_normal(one.shape, np.float32) for one in block.buffers}
    moments = {name: [draw.random(array.shape, np.float32) for _ in range(2)] for name, array in trained.items()}
    return trained, held, moments


def assert_same_moments(
    found: Mapping[str, list[np.ndarray]], expected: Mapping[str, list[np.ndarray]], *, same: bool = True
) -> None:
    assert found.keys() == expected.keys()
    for name, some in found.items():
        assert len(some) == len(expected[name])
        pairs = zip(some, expected[name], strict=True)
        assert [same_bits(one, np.asarray(other).reshape(-1)) for one, other in pairs] == [same] * len(some), name


def test_moments_and_step_go_through_the_package(artifact: Artifact, tmp_path: Path) -> None:
    trained, held, moments = drawn(artifact)
    content = checkpoint_bytes(trained, held, moments, step=41)
    kept = through_the_package(artifact, tmp_path / "kept", content, updates=0)
    assert_same_moments(read_moments(kept), moments)
    assert step_of(kept) == 41
    updated = through_the_package(artifact, tmp_path / "updated", content, updates=3)
    assert_same_moments(read_moments(updated), moments, same=False)
    assert step_of(updated) == 44


def test_a_checkpoint_in_between_changes_nothing(artifact: Artifact, tmp_path: Path) -> None:
    trained, held, moments = drawn(artifact)
    content = checkpoint_bytes(trained, held, moments, step=5)
    through = through_the_package(artifact, tmp_path / "through", content, updates=3)
    half = through_the_package(artifact, tmp_path / "half", content, updates=1)
    shaped = {name: [one.reshape(trained[name].shape) for one in some] for name, some in read_moments(half).items()}
    again = checkpoint_bytes(weights_of(half, tmp_path, trained), held, shaped, step=step_of(half))
    ended = through_the_package(artifact, tmp_path / "ended", again, updates=2)
    assert_same_moments(read_moments(ended), read_moments(through))
    for name, array in weights_of(through, tmp_path, trained).items():
        assert same_bits(weights_of(ended, tmp_path, trained)[name], array), name


def weights_of(content: bytes, folder: Path, trained: Tensors) -> Tensors:
    (folder / "weights").write_bytes(content)
    state = OrtTraining(1).api.CheckpointState.load_checkpoint(str(folder / "weights"))
    return {name: state.parameters[name].data.copy() for name in trained}


# --- what is no checkpoint --------------------------------------------------------------------------------------------


def good() -> bytes:
    weights = {f"parameter.{name}": np.arange(6, dtype=np.float32).reshape(2, 3) for name in "ab"}
    moments = {name: [array, array + 1] for name, array in weights.items()}
    return checkpoint_bytes(weights, {"buffer.c": np.ones(3, np.int64)}, moments, step=3)


GOOD = good()


def refused(content: bytes) -> bool:
    """Whether it is refused; if so, as it should be."""
    message = hint = ""
    try:
        read_moments(content)
    except EngineError as error:
        message, hint = str(error), error.hint
    assert (message, hint) in (("", ""), (REFUSED, "install version 1.19.2"))
    return bool(message)


@pytest.mark.parametrize("content", [b"", b"ODTC", b"\0" * 4 + b"ODTC", b"\0" * 64, GOOD[:4] + b"ODTD" + GOOD[8:]])
def test_other_bytes_are_refused(content: bytes) -> None:
    assert refused(content)


def test_the_files_of_the_tests_are_read() -> None:
    assert not refused(GOOD)
    assert list(read_moments(GOOD)) == ["parameter.a", "parameter.b"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xff" * 200)
def test_arbitrary_bytes_behind_the_right_name_do_no_harm(rest: bytes) -> None:
    refused(rest[:4].ljust(4, b"\0") + b"ODTC" + rest[4:])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_or_cut_checkpoint_does_no_harm(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    refused(bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_no_cut_of_a_checkpoint_is_read_as_something_else() -> None:
    whole = {name: [one.tolist() for one in some] for name, some in read_moments(GOOD).items()}
    for size in range(len(GOOD)):
        if not refused(GOOD[:size]):
            found = read_moments(GOOD[:size])
            assert {name: [one.tolist() for one in some] for name, some in found.items()} == whole
    assert refused(GOOD[: len(GOOD) // 2])


def test_another_version_is_refused() -> None:
    root = ort_checkpoint._root(GOOD)
    place = root.Pos + root.Offset(4)
    assert GOOD[place : place + 4] == b"\2\0\0\0"
    assert refused(GOOD[:place] + b"\3\0\0\0" + GOOD[place + 4 :])


def test_more_tables_than_there_is_room_for_are_refused_at_once() -> None:
    from flatbuffers.number_types import UOffsetTFlags

    root = ort_checkpoint._root(GOOD)
    place = root.Pos + root.Offset(8)
    vector = place + root.Get(UOffsetTFlags, place)
    assert int.from_bytes(GOOD[vector : vector + 4], "little") == 1
    assert refused(GOOD[:vector] + b"\xff\xff\xff\x7f" + GOOD[vector + 4 :])
