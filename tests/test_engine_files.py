"""What an artifact has for an engine of its own: a test for each MUST of `docs/artifact-format.md` from M57 on.

What its ONNX files may hold (M60) is tested in `tests/test_onnx_rules.py`; here stands where they may lie.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_artifact import (
    ENGINE_FILE,
    Change,
    changed_model,
    contents,
    edited,
    export_small,
)
from onnx import TensorProto, helper, numpy_helper
from tiny_run import edgeff

from edgeff.artifact import open_artifact, write_artifact
from edgeff.engines import ENGINES, ONNXRUNTIME, ORT_TRAINING
from edgeff.errors import ArtifactError
from edgeff.manifest_rules import MANIFEST_FILE
from edgeff.optimizer import optimizer_spec

FIRST, LAST = "block1", "block2"
TRAINING, UPDATE, EVALUATION = (
    f"ort-training/{FIRST}/{name}.onnx" for name in ("training_model", "optimizer_model", "eval_model")
)
WEIGHT = "parameter.transform.0.weight"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small(tmp_path_factory.mktemp("engine") / "artifact")


@pytest.fixture(scope="module")
def plain(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same artifact as it is exported without an engine."""
    folder = tmp_path_factory.mktemp("plain") / "artifact"
    return export_small(folder, engine=ONNXRUNTIME)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ArtifactError) as caught:
        call()
    assert caught.value.hint
    assert str(caught.value).isprintable()
    return str(caught.value)


def engine_refusal(artifact: Path) -> str:
    """Why an artifact that opens has no such engine; only who asks for it is told."""
    opened = open_artifact(artifact)
    assert opened.for_engine(ONNXRUNTIME) is opened
    return refusal(lambda: opened.for_engine(ORT_TRAINING))


# --- good artifacts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["artifact", "artifact.zip"])
def test_an_artifact_tells_its_engines_and_opens_for_each(made: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    own = open_artifact(made)
    write_artifact(own.manifest, {file: made / file for file in own.manifest.files}, path)
    opened = open_artifact(path)
    assert opened.engines == ENGINES == (ONNXRUNTIME, ORT_TRAINING)
    engine = opened.for_engine(ORT_TRAINING)
    for block, before in zip(engine.manifest.blocks, opened.manifest.blocks, strict=True):
        changed = {kind for kind in block.graphs if block.graphs[kind] != before.graphs[kind]}
        assert changed == {"accumulate", "apply"}
        for kind in ("accumulate", "apply"):
            file = block.graphs[kind].file
            assert file.startswith(f"ort-training/{block.name}/")
            assert engine.read(file) == (made / file).read_bytes()


def test_a_run_is_of_the_artifact_whatever_its_engine(made: Path) -> None:
    opened = open_artifact(made)
    engine = opened.for_engine(ORT_TRAINING)
    assert engine.manifest_sha256 == opened.manifest_sha256
    assert engine.manifest.files == opened.manifest.files
    assert engine.tensors().keys() == opened.tensors().keys()


def test_an_engine_adds_files_and_changes_none(made: Path, plain: Path) -> None:
    with_engine, without = contents(made), contents(plain)
    more = set(with_engine) - set(without)
    names = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint")
    assert more == {ENGINE_FILE, *(f"ort-training/{block}/{name}" for block in (FIRST, LAST) for name in names)}
    assert {file for file in without if without[file] != with_engine[file]} == {MANIFEST_FILE}
    assert open_artifact(made).manifest.blocks == open_artifact(plain).manifest.blocks


PROGRAM = (
    "import sys; from pathlib import Path; from engine_artifact import export_small; export_small(Path(sys.argv[1]))"
)


def test_the_same_network_gives_the_same_bytes_of_every_file_in_any_process(made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "there")]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = contents(made)
    for other in (export_small(tmp_path / "here"), tmp_path / "there"):
        found = contents(other)
        assert [file for file in found | expected if found.get(file) != expected.get(file)] == []


def test_an_artifact_without_the_engine_says_how_it_gets_one(plain: Path) -> None:
    opened = open_artifact(plain)
    assert opened.engines == (ONNXRUNTIME,)
    assert refusal(lambda: opened.for_engine(ORT_TRAINING)) == f"`{plain}` has nothing for the engine `ort-training`"


def test_the_command_tells_that_an_artifact_was_exported_without_the_engine(plain: Path, tmp_path: Path) -> None:
    result = edgeff("train-on-device", plain, "--data", "none.npz", "--out", tmp_path / "run", "--engine", ORT_TRAINING)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: `{plain}` has nothing for the engine `ort-training`\n\n"
        "hint: export it again with `--engine ort-training`, or leave `--engine` out: any onnxruntime trains it\n"
    )
    assert not (tmp_path / "run").exists()


# --- M57, M58, M59: the engine's manifest -----------------------------------------------------------------------------


def test_m57_its_manifest_keeps_the_rules_of_manifests(made: Path, tmp_path: Path) -> None:
    broken = edited(made, tmp_path / "broken", engine=lambda it: it.update(format_version=6))
    assert engine_refusal(broken).startswith(f"`{ENGINE_FILE}` of `{broken}`: artifact format 6 was written by")


def test_m57_a_manifest_that_is_no_text_is_refused(made: Path, tmp_path: Path) -> None:
    broken = edited(made, tmp_path / "broken", files={ENGINE_FILE: b"\xff"})
    assert engine_refusal(broken).startswith(f"`{ENGINE_FILE}` of `{broken}` is not UTF-8")


def set_file(file: str, **facts: Any) -> Change:
    return lambda it: it["files"].setdefault(file, {"bytes": 0, "sha256": "0" * 64}).update(facts)


@pytest.mark.parametrize("file", [TRAINING, f"ort-training/{FIRST}/checkpoint", "weights.safetensors", "more.txt"])
@pytest.mark.parametrize("facts", [{"bytes": 7}, {"sha256": "0" * 64}])
def test_m57_its_files_are_those_of_the_artifact(made: Path, tmp_path: Path, file: str, facts: dict[str, Any]) -> None:
    broken = edited(made, tmp_path / "broken", engine=set_file(file, **facts))
    assert engine_refusal(broken) == f"`{ENGINE_FILE}` lists `{file}` otherwise than `{MANIFEST_FILE}`"


def rename_block(it: dict[str, Any]) -> None:
    it["blocks"][0]["name"] = "other"
    it["checks"]["largest_error"] = {"other": 0.0, LAST: 0.0}
    offsets = it["inference"]["offsets"]
    it["inference"]["offsets"] = {key.replace(f"{FIRST}.", "other."): value for key, value in offsets.items()}


def rename_parameter(it: dict[str, Any]) -> None:
    """Also where its graphs name it, so that the manifest is whole."""
    block = it["blocks"][0]
    block["parameters"][0]["name"] = "weight"
    for graph in block["graphs"].values():
        for side in ("inputs", "outputs"):
            graph[side] = [name.replace("transform.0.weight", "weight") for name in graph[side]]
    it["inference"]["offsets"][f"{FIRST}.weight"] = it["inference"]["offsets"].pop(f"{FIRST}.transform.0.weight")


OTHERWISE: dict[str, Change] = {
    "a block's name": rename_block,
    "a parameter's name": rename_parameter,
    "a parameter's shape": lambda it: it["blocks"][0]["parameters"][0].update(shape=[36]),
    "the objective": lambda it: it["blocks"][1].update(objective={}),
    "a step graph": lambda it: it["blocks"][0]["graphs"]["step"].update(nodes=1),
    "a forward graph": lambda it: it["blocks"][1]["graphs"]["forward"].update(transient=[]),
    "classes": lambda it: it.update(classes=["a", "b", "c"]),
    "the fusion": lambda it: it.update(fusion=[1.0, 2.0]),
    "the optimiser": lambda it: it["optimizer"]["settings"].update(weight_decay=0.5),
    "the learning rate": lambda it: it["training"].update(learning_rate=100.0),
    "the checked sizes": lambda it: it["checks"].update(micro_batches=[1]),
    "what wrote it": lambda it: it.update(edgeff_version="9.9"),
    "metadata": lambda it: it.update(metadata={"a": "b"}),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_m58_its_manifest_differs_in_the_graphs_of_updates_alone(made: Path, tmp_path: Path, case: str) -> None:
    broken = edited(made, tmp_path / "broken", engine=OTHERWISE[case])
    assert engine_refusal(broken) == (
        f"`{ENGINE_FILE}` differs from `{MANIFEST_FILE}` in more than the graphs of updates"
    )


def test_m58_what_was_measured_and_what_graphs_cost_may_differ(made: Path, tmp_path: Path) -> None:
    def change(it: dict[str, Any]) -> None:
        it["checks"].update(largest_error={FIRST: 0.25, LAST: 0.5}, tolerance=0.5)
        it["blocks"][0]["graphs"]["accumulate"].update(nodes=7, transient=[])

    engine = open_artifact(edited(made, tmp_path / "other", engine=change)).for_engine(ORT_TRAINING)
    assert engine.manifest.checks.tolerance == 0.5
    assert engine.manifest.blocks[0].graphs["accumulate"].nodes == 7


@pytest.mark.parametrize(
    "file",
    [
        f"blocks/{FIRST}.accumulate.onnx",
        f"ort-training/{LAST}/training_model.onnx",
        EVALUATION,
        UPDATE,
        "inference.onnx",
    ],
)
def test_m59_the_models_of_a_block_lie_in_its_folder(made: Path, tmp_path: Path, file: str) -> None:
    spec = open_artifact(made).manifest.files[file]

    def change(it: dict[str, Any]) -> None:
        it["blocks"][0]["graphs"]["accumulate"]["file"] = file
        set_file(file, bytes=spec.bytes, sha256=spec.sha256)(it)

    broken = edited(made, tmp_path / "broken", engine=change)
    assert engine_refusal(broken) == f"the `accumulate` graph of block `{FIRST}` must be `{TRAINING}`, got `{file}`"


def test_m59_the_update_of_a_block_lies_in_its_folder(made: Path, tmp_path: Path) -> None:
    other = f"ort-training/{LAST}/optimizer_model.onnx"
    broken = edited(made, tmp_path / "broken", engine=lambda it: it["blocks"][0]["graphs"]["apply"].update(file=other))
    assert engine_refusal(broken) == f"the `apply` graph of block `{FIRST}` must be `{UPDATE}`, got `{other}`"


# --- M60: where these files may lie -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["step", "accumulate", "apply", "forward"])
def test_m60_a_graph_of_the_artifact_is_plain_wherever_it_lies(made: Path, tmp_path: Path, kind: str) -> None:
    broken = edited(
        made, tmp_path / "broken", manifest=lambda it: it["blocks"][0]["graphs"][kind].update(file=TRAINING)
    )
    assert refusal(lambda: open_artifact(broken)) == f"`{TRAINING}`: the model has more than 1 `opset_import`"


def test_m60_a_graph_that_plain_engines_are_given_has_no_operator_of_onnxruntimes_own(
    made: Path, tmp_path: Path
) -> None:
    """Nor where its imports look plain."""
    data = changed_model(made, TRAINING, lambda graph: None)
    model = onnx.load_from_string(data)
    model.opset_import.pop()
    broken = edited(
        made,
        tmp_path / "broken",
        files={TRAINING: model.SerializeToString(deterministic=True)},
        manifest=lambda it: it["blocks"][0]["graphs"]["accumulate"].update(file=TRAINING),
    )
    message = refusal(lambda: open_artifact(broken))
    assert message == f"`{TRAINING}`: the graph must not have `value_info`"


def test_m60_the_inference_template_is_plain_wherever_it_lies(made: Path, tmp_path: Path) -> None:
    def change(it: dict[str, Any]) -> None:
        it["inference"].update(file=TRAINING, offsets={})

    broken = edited(made, tmp_path / "broken", manifest=change)
    assert refusal(lambda: open_artifact(broken)) == f"`{TRAINING}`: the model has more than 1 `opset_import`"


@pytest.mark.parametrize(
    "file", ["training_model.onnx", "more/ort-training/b/m.onnx", "Ort-Training/b/m.onnx", "ort-training-2/b/m.onnx"]
)
def test_m60_files_elsewhere_are_plain(made: Path, tmp_path: Path, file: str) -> None:
    broken = edited(made, tmp_path / "broken", files={file: (made / TRAINING).read_bytes()})
    assert refusal(lambda: open_artifact(broken)) == f"`{file}`: the model has more than 1 `opset_import`"


@pytest.mark.parametrize("file", [TRAINING, UPDATE, EVALUATION, "ort-training/more.ONNX"])
def test_m60_all_that_lies_there_is_checked_when_an_artifact_is_opened(made: Path, tmp_path: Path, file: str) -> None:
    data = changed_model(made, EVALUATION, lambda graph: graph.node.append(helper.make_node("Loop", [], ["more"])))
    broken = edited(made, tmp_path / "broken", files={file: data})
    assert re.fullmatch(
        rf"`{re.escape(file)}`: node \d+: the operator `Loop` is not allowed", refusal(lambda: open_artifact(broken))
    )


# --- M61, M62: inputs and outputs -------------------------------------------------------------------------------------

Model = Callable[[onnx.GraphProto], Any]
DUMMY = np.zeros(1, np.float32)


def without(side: str, name: str) -> Model:
    def change(graph: onnx.GraphProto) -> None:
        ports = getattr(graph, side)
        ports.remove(next(port for port in ports if port.name == name))
        if side == "input":  # so that the nodes have something to read
            graph.initializer.append(numpy_helper.from_array(DUMMY, name))

    return change


def shaped(side: str, name: str, shape: list[Any], dtype: int = FLOAT) -> Model:
    def change(graph: onnx.GraphProto) -> None:
        port = next(port for port in getattr(graph, side) if port.name == name)
        port.CopyFrom(helper.make_tensor_value_info(name, dtype, shape))

    return change


def more(side: str, name: str, shape: list[Any]) -> Model:
    def change(graph: onnx.GraphProto) -> None:
        getattr(graph, side).append(helper.make_tensor_value_info(name, FLOAT, shape))
        if side == "output":
            graph.node.append(helper.make_node("Identity", ["loss"], [name]))

    return change


def swapped(graph: onnx.GraphProto) -> None:
    """`loss` goes in and does not come out."""
    without("output", "loss")(graph)
    for node in graph.node:
        node.output[:] = ["made" if name == "loss" else name for name in node.output]
    more("input", "loss", [])(graph)


def as_sequence(name: str) -> Model:
    def change(graph: onnx.GraphProto) -> None:
        port = next(port for port in graph.input if port.name == name)
        port.CopyFrom(helper.make_tensor_sequence_value_info(name, FLOAT, None))

    return change


SUM, ADDED = f"{WEIGHT}_grad.accumulation.buffer", f"{WEIGHT}_grad.accumulation.out"
WRONG_TRAINING: dict[str, tuple[Model, str]] = {
    "no rows": (without("input", "x"), " lacks input `x`"),
    "no labels": (without("input", "y"), " lacks input `y`"),
    "no parameter": (without("input", WEIGHT), f" lacks input `{WEIGHT}`"),
    "no sum": (without("input", SUM), f" lacks input `{SUM}`"),
    "no switch": (without("input", "lazy_reset_grad"), " lacks input `lazy_reset_grad`"),
    "no loss": (without("output", "loss"), " lacks output `loss`"),
    "no hand-over": (without("output", "handover"), " lacks output `handover`"),
    "no log-probabilities": (without("output", "log_probabilities"), " lacks output `log_probabilities`"),
    "no word of a sum": (without("output", ADDED), f" lacks output `{ADDED}`"),
    "another input": (more("input", "z", [1]), " has an unknown input `z`"),
    "a seed that is not listed": (more("input", "seed", []), " has an unknown input `seed`"),
    "another output": (more("output", "z", []), " has an unknown output `z`"),
    "another parameter": (more("input", "parameter.z", [1]), " has an unknown input `parameter.z`"),
    "a result that goes in": (swapped, " has an unknown input `loss`"),
    "wide rows": (
        shaped("input", "x", ["N", 1, 6, 7]),
        ": `x` must be float32 [rows, 1, 6, 6], got float32 [rows, 1, 6, 7]",
    ),
    "labels of 32 bits": (
        shaped("input", "y", ["N"], TensorProto.INT32),
        ": `y` must be int64 [rows], got int32 [rows]",
    ),
    "a large parameter": (
        shaped("input", WEIGHT, [4, 1, 3, 300]),
        f": `{WEIGHT}` must be float32 [4, 1, 3, 3], got float32 [4, 1, 3, 300]",
    ),
    "a flat sum": (shaped("input", SUM, [36]), f": `{SUM}` must be float32 [4, 1, 3, 3], got float32 [36]"),
    "a sum of whole numbers": (
        shaped("input", SUM, [4, 1, 3, 3], INT64),
        f": `{SUM}` must be float32 [4, 1, 3, 3], got int64 [4, 1, 3, 3]",
    ),
    "a loss of each row": (shaped("output", "loss", ["N"]), ": `loss` must be float32 [], got float32 [rows]"),
    "a large hand-over": (
        shaped("output", "handover", ["N", 4, 3, 4]),
        ": `handover` must be float32 [rows, 4, 3, 3], got float32 [rows, 4, 3, 4]",
    ),
    "a word of a sum for each number": (
        shaped("output", ADDED, [2], TensorProto.BOOL),
        f": `{ADDED}` must be bool [1], got bool [2]",
    ),
    "a sequence": (as_sequence("row_weight"), ": `row_weight` must be float32 [rows], got sequence of float32 [rows]"),
}


@pytest.mark.parametrize("case", WRONG_TRAINING)
def test_m61_a_training_model_has_the_ports_of_its_block(made: Path, tmp_path: Path, case: str) -> None:
    change, message = WRONG_TRAINING[case]
    broken = edited(made, tmp_path / "broken", files={TRAINING: changed_model(made, TRAINING, change)})
    assert engine_refusal(broken) == f"`{TRAINING}`{message}"


def test_m61_a_constant_tensor_may_be_an_input_of_its_shape(made: Path, tmp_path: Path) -> None:
    file, name = f"ort-training/{LAST}/training_model.onnx", "buffer.readout.projection.matrix"
    assert name in {port.name for port in onnx.load(made / file).graph.input}
    unused = edited(made, tmp_path / "unused", files={file: changed_model(made, file, without("input", name))})
    assert open_artifact(unused).for_engine(ORT_TRAINING)
    wide = edited(made, tmp_path / "wide", files={file: changed_model(made, file, shaped("input", name, [8, 4]))})
    assert engine_refusal(wide) == f"`{file}`: `{name}` must be float32 [8, 3], got float32 [8, 4]"


@pytest.mark.parametrize(
    "name", ["gradient.transform.0.weight", "parameter.transform.0.weight", "buffer.nothing", "seed"]
)
def test_m61_the_manifest_lists_what_the_runtime_gives_and_the_model_has(made: Path, tmp_path: Path, name: str) -> None:
    broken = edited(
        made, tmp_path / "broken", engine=lambda it: it["blocks"][0]["graphs"]["accumulate"]["inputs"].append(name)
    )
    assert name in engine_refusal(broken)


def test_m61_the_manifest_lists_no_new_sum_as_a_result(made: Path, tmp_path: Path) -> None:
    def change(it: dict[str, Any]) -> None:
        graph = it["blocks"][0]["graphs"]["accumulate"]
        graph["inputs"].append("gradient.transform.0.weight")
        graph["outputs"].append("new.gradient.transform.0.weight")

    broken = edited(made, tmp_path / "broken", engine=change)
    assert engine_refusal(broken) == (
        f"`{TRAINING}` is said to have `gradient.transform.0.weight`, which no training model has"
    )


def reordered(graph: onnx.GraphProto) -> None:
    ports = [onnx.ValueInfoProto.FromString(port.SerializeToString()) for port in graph.input]
    del graph.input[:]
    graph.input.extend([*ports[:2], ports[3], ports[2], *ports[4:]])


WRONG_UPDATE: dict[str, tuple[Model, str]] = {
    "no rate": (without("input", "learning_rate"), " lacks input `learning_rate`"),
    "no step": (without("input", "step"), " lacks input `step`"),
    "no weights": (without("input", "params"), " lacks input `params`"),
    "no gradients": (without("input", "gradients"), " lacks input `gradients`"),
    "no moments": (without("input", "second_order_moments"), " lacks input `second_order_moments`"),
    "no result": (without("output", "updated"), " lacks output `updated`"),
    "another input": (more("input", "z", [1]), " has an unknown input `z`"),
    "a rate for each": (
        shaped("input", "learning_rate", [2]),
        ": `learning_rate` must be float32 [1], got float32 [2]",
    ),
    "a step that is no whole number": (shaped("input", "step", [1]), ": `step` must be int64 [1], got float32 [1]"),
    "a tensor of weights": (
        shaped("input", "params", ["N"]),
        ": `params` must be sequence of float32 [rows], got float32 [rows]",
    ),
    "another order": (
        reordered,
        " must take learning_rate, step, params, gradients, first_order_moments, second_order_moments, in this order",
    ),
}


@pytest.mark.parametrize("case", WRONG_UPDATE)
def test_m62_an_optimizer_model_has_the_ports_of_the_optimiser(made: Path, tmp_path: Path, case: str) -> None:
    change, message = WRONG_UPDATE[case]
    broken = edited(made, tmp_path / "broken", files={UPDATE: changed_model(made, UPDATE, change)})
    assert engine_refusal(broken) == f"`{UPDATE}`{message}"


def test_m62_sgd_keeps_one_row_of_moments_less(tmp_path: Path) -> None:
    spec = optimizer_spec("sgd", momentum=0.0, weight_decay=0.0)
    path = export_small(tmp_path / "sgd", optimizer=spec)
    assert open_artifact(path).for_engine(ORT_TRAINING).manifest.optimizer == spec
    names = [port.name for port in onnx.load(path / UPDATE).graph.input]
    assert names == ["learning_rate", "step", "params", "gradients", "first_order_moments"]


def test_a_changed_file_of_an_engine_is_noticed_when_the_artifact_is_opened(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    content = bytearray((folder / f"ort-training/{FIRST}/checkpoint").read_bytes())
    content[-1] ^= 1
    (folder / f"ort-training/{FIRST}/checkpoint").write_bytes(content)
    assert f"ort-training/{FIRST}/checkpoint" in refusal(lambda: open_artifact(folder))
