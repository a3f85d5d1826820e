"""One test per MUST of `docs/artifact-format.md` that the manifest's text can break (M1 to M33), and round trips.

The golden manifest is written anew by `python tests/test_manifest_json.py`, to be reviewed before it is committed.
"""

import copy
import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeff import __version__
from edgeff.errors import ArtifactError
from edgeff.json_node import is_contained_path, parse_json
from edgeff.manifest import (
    GRAPH_KINDS,
    ITEM_BYTES,
    OPTIONAL_GRAPH_KINDS,
    BlockSpec,
    CheckResults,
    FileSpec,
    GraphSpec,
    HeldTensor,
    InferenceSpec,
    Line,
    Manifest,
    Moment,
    OptimizerSpec,
    ReplaySpec,
    TensorSpec,
    TrainingDefaults,
    Work,
)
from edgeff.manifest_json import MAX_MANIFEST_BYTES, _block, from_json, to_json
from edgeff.manifest_rules import referenced_files, weight_specs
from edgeff.optimizer import OPTIMIZERS, optimizer_spec, rates, slots

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden" / "manifest-v5.json"
SPECIFICATION = TESTS.parent / "docs" / "artifact-format.md"

# --- a small consistent manifest -------------------------------------------------------------------------------------


def block_graphs(name, parameters, buffers, optimizer, *, last):
    """The graphs of a block with every input a graph may have but `seed`; but for the last, a fast one among them."""
    weights = [f"parameter.{p}" for p in parameters]
    constants = [f"buffer.{b}" for b in buffers]
    state = [f"state.{slot}.{p}" for slot in slots(optimizer) for p in parameters]
    gradients = [f"gradient.{p}" for p in parameters]
    runs = [f"state.{slot}" for slot in slots(optimizer)]
    rate = [f"rate.{r}" for r in rates(optimizer, 1e-3, 1)]
    handover = [] if last else ["handover"]
    new = [f"new.{source}" for source in weights + state]
    names = {
        "step": (
            ["x", "y", "row_weight", *rate, *weights, *constants, *state],
            ["loss", *handover, "log_probabilities", *new],
        ),
        "accumulate": (
            ["x", "y", "row_weight", *weights, *constants, *gradients],
            ["loss", *handover, "log_probabilities", *(f"new.{g}" for g in gradients)],
        ),
        "apply": ([*rate, "parameter", "gradient", *runs], ["new.parameter", *(f"new.{run}" for run in runs)]),
        "forward": (["x", *weights, *constants], [*handover, "log_probabilities"]),
    }
    if not last:
        names["fast_accumulate"] = names["accumulate"]
    return {
        kind: GraphSpec(
            file=f"blocks/{name}.{kind}.onnx",
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            nodes=7,
            transient=(Moment(640, 1088, (HeldTensor("relu_1", "Relu", 0, 1024),)),),
            arena=Line(1024, 1280),
            work=Work(0, 9216),
            traffic=Line(2048, 4096),
        )
        for kind, (inputs, outputs) in names.items()
    }


def tiny_manifest():
    """Two blocks on 8 x 8 pictures, AdamW, four replay rows; sizes and hashes are made up."""
    adamw = optimizer_spec("adamw")
    features = TensorSpec("x", (1, 8, 8))
    handover = TensorSpec("handover", (2, 4, 4))
    blocks = (
        BlockSpec(
            name="conv1",
            input=features,
            handover=handover,
            parameters=(TensorSpec("transform.weight", (2, 1, 3, 3)), TensorSpec("transform.bias", (2,))),
            buffers=(TensorSpec("objective.projection", (3, 2)),),
            slots=slots(adamw),
            graphs=block_graphs(
                "conv1", ("transform.weight", "transform.bias"), ("objective.projection",), adamw, last=False
            ),
            objective={"kind": "goodness", "statistics": ["mean", "deviation"], "temperature": 0.5},
            handover_in_place=True,
        ),
        BlockSpec(
            name="head",
            input=handover,
            handover=None,
            parameters=(TensorSpec("transform.weight", (3, 32)),),
            buffers=(),
            slots=slots(adamw),
            graphs=block_graphs("head", ("transform.weight",), (), adamw, last=True),
            objective={"kind": "classifier"},
        ),
    )
    manifest = Manifest(
        edgeff_version="0.1.0",
        name="tiny",
        input=TensorSpec("image", (8, 8), "uint8"),
        preprocessing=({"kind": "affine", "offset": 0.0, "scale": 0.00390625}, {"kind": "reshape", "shape": [1, 8, 8]}),
        features=features,
        classes=("nought", "one", "zwölf"),
        fusion=(0.5, 1.0),
        optimizer=adamw,
        training=TrainingDefaults(batch_size=4, epochs=2, learning_rate=0.01),
        blocks=blocks,
        weights="weights.safetensors",
        inference=InferenceSpec(
            "inference.onnx", {"conv1.transform.weight": 16, "conv1.transform.bias": 88, "head.transform.weight": 100}
        ),
        replay=ReplaySpec("replay.safetensors", 4),
        checks=CheckResults((1, 4), {"conv1": 2.5e-7, "head": 1e-7}, 1e-4),
        files={},
        metadata={"source": "tests"},
    )
    return with_files(manifest)


def with_files(manifest):
    files = {file: FileSpec(4096, f"{index:064x}") for index, (_, file) in enumerate(referenced_files(manifest))}
    return dataclasses.replace(manifest, files=files)


# --- broken manifests ------------------------------------------------------------------------------------------------


def document():
    return json.loads(to_json(tiny_manifest()))


def at(root, path):
    for key in path:
        root = root[key]
    return root


def changed(path, value):
    """The tiny manifest's JSON with another value at a path."""
    root = document()
    at(root, path[:-1])[path[-1]] = value
    return json.dumps(root)


def without(path):
    root = document()
    del at(root, path[:-1])[path[-1]]
    return json.dumps(root)


def message_of(text):
    with pytest.raises(ArtifactError) as caught:
        from_json(text)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(".")
    return str(caught.value)


STEP = ("blocks", 0, "graphs", "step")
NAME_NEEDED = "a name (1 to 128 letters, digits, `_`, `-`, `.`; no leading dot)"
PATH_NEEDED = "a relative path inside the artifact"
STEP_INPUTS = tiny_manifest().blocks[0].graphs["step"].inputs
STEP_OUTPUTS = tiny_manifest().blocks[0].graphs["step"].outputs

# rule, where, what is put there, what the reader says
BROKEN = [
    ("M3", ("training", "learning_rate"), math.nan, "`training.learning_rate` must be a number above 0, got `NaN`"),
    ("M3", ("fusion", 1), math.inf, "`fusion[1]` must be a number, 0 or more, got `Infinity`"),
    (
        "M3",
        ("checks", "tolerance"),
        10**400,
        f"`checks.tolerance` must be a number above 0, got `1{'0' * 76}...`",
    ),
    (
        "M3",
        ("preprocessing", 0, "scale"),
        -math.inf,
        "`preprocessing[0].scale` must be a finite number, got `-Infinity`",
    ),
    ("M3", ("replay", "rows"), 2**53, "`replay.rows` must be a whole number, 1 or more, got `9007199254740992`"),
    (
        "M3",
        ("blocks", 0, "objective", "depth"),
        -(2**53),
        "`blocks[0].objective.depth` must be a whole number, -9007199254740991 or more, got `-9007199254740992`",
    ),
    (
        "M4",
        ("blocks", 1, "objective", "deep"),
        json.loads("[" * 16 + "]" * 16),
        f"`blocks[1].objective.deep{'[0]' * 15}` is nested more than 16 levels deep",
    ),
    (
        "M5",
        ("classes", 0),
        "a\u001b[2J",
        '`classes[0]` must be a string without control characters, got `"a\\u001b[2J"`',
    ),
    ("M5", ("classes", 0), "\ud800", '`classes[0]` must be a string without control characters, got `"\\ud800"`'),
    (
        "M5",
        ("metadata", "note"),
        "n" * 4097,
        f'`metadata.note` must be a string of at most 4096 characters, got `"{"n" * 76}...`',
    ),
    (
        "M5",
        ("metadata", "a\nb"),
        "",
        '`key of metadata` must be a string without control characters, got `"a\\nb"`',
    ),
    ("M6", ("colour",), 1, "unknown key `colour`"),
    ("M6", (*STEP, "speed"), 1, "unknown key `blocks[0].graphs.step.speed`"),
    ("M6", ("input", "odd key"), 1, 'unknown key `input["odd key"]`'),
    ("M8", ("blocks",), {}, "`blocks` must be a list, got an object"),
    ("M8", ("optimizer",), [1], "`optimizer` must be an object, got a list of 1"),
    ("M8", ("preprocessing", 0), "scale", '`preprocessing[0]` must be an object, got `"scale"`'),
    ("M8", ("edgeff_version",), 1, "`edgeff_version` must be a string, got `1`"),
    ("M8", ("training", "epochs"), True, "`training.epochs` must be a whole number, 1 or more, got `true`"),
    ("M8", ("training", "epochs"), 1.0, "`training.epochs` must be a whole number, 1 or more, got `1.0`"),
    ("M8", ("fusion", 0), False, "`fusion[0]` must be a number, 0 or more, got `false`"),
    ("M8", ("optimizer", "kind"), None, "`optimizer.kind` must be a string, got `null`"),
    ("M9", ("format",), "other", "`format` must be `edgeff-artifact`"),
    ("M8", ("blocks", 0, "rows_together"), 0, "`blocks[0].rows_together` must be a whole number, 1 or more, got `0`"),
    (
        "M8",
        ("blocks", 0, "handover_in_place"),
        1,
        "`blocks[0].handover_in_place` must be `true` or `false`, got `1`",
    ),
    ("M10", ("format_version",), 0, "`format_version` must be a whole number, 1 or more, got `0`"),
    ("M10", ("format_version",), "1", '`format_version` must be a whole number, 1 or more, got `"1"`'),
    ("M11", ("blocks", 0, "name"), "a b", f'`blocks[0].name` must be {NAME_NEEDED}, got `"a b"`'),
    ("M11", ("blocks", 0, "name"), "", f'`blocks[0].name` must be {NAME_NEEDED}, got `""`'),
    ("M11", ("blocks", 0, "name"), "a\n", f'`blocks[0].name` must be {NAME_NEEDED}, got `"a\\n"`'),
    ("M11", ("name",), ".hidden", f'`name` must be {NAME_NEEDED}, got `".hidden"`'),
    ("M11", ("name",), "é", f'`name` must be {NAME_NEEDED}, got `"\\u00e9"`'),
    ("M11", ("name",), "n" * 129, f'`name` must be {NAME_NEEDED}, got `"{"n" * 76}...`'),
    (
        "M11",
        ("blocks", 0, "parameters", 0, "name"),
        "a/b",
        f'`blocks[0].parameters[0].name` must be {NAME_NEEDED}, got `"a/b"`',
    ),
    ("M12", ("weights",), "../w.safetensors", f'`weights` must be {PATH_NEEDED}, got `"../w.safetensors"`'),
    ("M12", ("weights",), "/etc/passwd", f'`weights` must be {PATH_NEEDED}, got `"/etc/passwd"`'),
    ("M12", ("weights",), "a\\b", f'`weights` must be {PATH_NEEDED}, got `"a\\\\b"`'),
    ("M12", ("weights",), "C:w", f'`weights` must be {PATH_NEEDED}, got `"C:w"`'),
    ("M12", ("replay", "file"), "a//b", f'`replay.file` must be {PATH_NEEDED}, got `"a//b"`'),
    (
        "M12",
        ("files", "../w"),
        {"bytes": 1, "sha256": "0" * 64},
        f"`files['../w']` must be {PATH_NEEDED}, got `\"../w\"`",
    ),
    ("M13", ("blocks", 1, "name"), "conv1", "block `conv1` is given twice"),
    (
        "M13",
        ("blocks", 0, "buffers", 0, "name"),
        "transform.bias",
        "tensor `conv1.transform.bias` is given twice",
    ),
    (
        "M14",
        ("input", "shape"),
        [8, 0],
        "`input.shape[1]` must be a whole number, 1 or more, got `0`",
    ),
    (
        "M14",
        ("input", "shape"),
        [65536, 65536],
        "`input.shape` must have at most 8 axes and 2147483648 elements, got 2 and 4294967296",
    ),
    (
        "M14",
        ("features", "shape"),
        [1] * 9,
        "`features.shape` must have at most 8 axes and 2147483648 elements, got 9 and 1",
    ),
    (
        "M15",
        ("input", "dtype"),
        "bfloat16",
        f'`input.dtype` must be one of {", ".join(f"`{d}`" for d in sorted(ITEM_BYTES))}, got `"bfloat16"`',
    ),
    (
        "M15",
        ("blocks", 0, "parameters", 1, "dtype"),
        "int8",
        "`blocks[0].parameters[1].dtype` must be a floating-point type, got `int8`",
    ),
    ("M16", ("classes",), ["only"], "`classes` must name at least 2 classes, got 1"),
    ("M16", ("classes", 1), "nought", "class `nought` is given twice"),
    ("M16", ("classes", 1), "", '`classes[1]` must be a string that is not empty, got `""`'),
    ("M17", ("fusion",), [1], "`fusion` must have one weight for each of 2 blocks, got 1"),
    ("M17", ("fusion", 0), -1, "`fusion[0]` must be a number, 0 or more, got `-1`"),
    ("M17", ("fusion",), [0, 0], "`fusion` must have a weight above 0"),
    (
        "M18",
        ("features", "shape"),
        [1, 8, 9],
        "`blocks[0].input` must be as `features`, float32 [1, 8, 9], got float32 [1, 8, 8]",
    ),
    (
        "M18",
        ("blocks", 1, "input", "dtype"),
        "float16",
        "`blocks[1].input` must be as `blocks[0].handover`, float32 [2, 4, 4], got float16 [2, 4, 4]",
    ),
    (
        "M18",
        ("blocks", 0, "handover"),
        None,
        "`blocks[1].input` must be as `blocks[0].handover`, none, got float32 [2, 4, 4]",
    ),
    (
        "M19",
        ("blocks", 1, "handover"),
        {"name": "handover", "shape": [3], "dtype": "float32"},
        "`blocks[1].handover` must be `null`: the last block hands nothing over",
    ),
    ("M20", ("optimizer", "kind"), "lion", "`optimizer.kind` must be one of `adamw`, `sgd`, got `lion`"),
    (
        "M20",
        ("optimizer", "settings"),
        {"beta1": 0.9, "momentum": 0},
        "`optimizer.settings` of `adamw` must be `beta1`, `beta2`, `epsilon`, `weight_decay`, got `beta1`, `momentum`",
    ),
    (
        "M20",
        ("optimizer", "settings", "beta2"),
        1,
        "`optimizer.settings.beta2` must be below 1, got 1.0",
    ),
    (
        "M20",
        ("optimizer", "settings", "epsilon"),
        -1e-8,
        "`optimizer.settings.epsilon` must be 0 or more, got -1e-08",
    ),
    (
        "M21",
        ("blocks", 1, "slots"),
        ["momentum"],
        "`blocks[1].slots` must be those of `adamw`, `momentum`, `squares`, got `momentum`",
    ),
    ("M22", ("training", "batch_size"), 0, "`training.batch_size` must be a whole number, 1 or more, got `0`"),
    ("M22", ("training", "learning_rate"), 0, "`training.learning_rate` must be a number above 0, got `0`"),
    (
        "M22",
        ("training", "replay_fraction"),
        1,
        "`training.replay_fraction` must be a number from 0 to below 1, got `1`",
    ),
    (
        "M22",
        ("training", "guard_fraction"),
        -0.1,
        "`training.guard_fraction` must be a number from 0 to below 1, got `-0.1`",
    ),
    ("M23", ("blocks", 0, "graphs", "backward"), {}, "unknown key `blocks[0].graphs.backward`"),
    (
        "M24",
        (*STEP, "inputs"),
        ["z"],
        "`blocks[0].graphs.step.inputs[0]`: `z` is no input of this `step` graph",
    ),
    (
        "M24",
        (*STEP, "inputs"),
        ["x", "gradient.transform.bias"],
        "`blocks[0].graphs.step.inputs[1]`: `gradient.transform.bias` is no input of this `step` graph",
    ),
    (
        "M24",
        (*STEP, "inputs"),
        ["parameter.gone"],
        "`blocks[0].graphs.step.inputs[0]`: `parameter.gone` is not a parameter of the block",
    ),
    (
        "M24",
        (*STEP, "inputs"),
        ["state.velocity.transform.bias"],
        "`blocks[0].graphs.step.inputs[0]`: `state.velocity.transform.bias` is not a state of the block",
    ),
    (
        "M24",
        (*STEP, "inputs"),
        ["rate.learning_rate"],
        "`blocks[0].graphs.step.inputs[0]`: `rate.learning_rate` is not a rate of the block",
    ),
    ("M24", (*STEP, "inputs"), ["x", "x"], "`blocks[0].graphs.step.inputs[1]`: `x` is given twice"),
    (
        "M24",
        ("blocks", 0, "graphs", "forward", "inputs"),
        ["x", "y"],
        "`blocks[0].graphs.forward.inputs[1]`: `y` is no input of this `forward` graph",
    ),
    ("M25", (*STEP, "outputs"), ["handover", "log_probabilities"], "`blocks[0].graphs.step.outputs` must have `loss`"),
    ("M25", (*STEP, "outputs"), ["loss", "log_probabilities"], "`blocks[0].graphs.step.outputs` must have `handover`"),
    (
        "M25",
        ("blocks", 1, "graphs", "forward", "outputs"),
        ["log_probabilities", "handover"],
        "`blocks[1].graphs.forward.outputs[1]`: `handover` is no output of this `forward` graph",
    ),
    (
        "M25",
        (*STEP, "outputs"),
        [*STEP_OUTPUTS, "loss"],
        f"`blocks[0].graphs.step.outputs[{len(STEP_OUTPUTS)}]`: `loss` is given twice",
    ),
    (
        "M25",
        ("blocks", 0, "graphs", "apply", "outputs"),
        ["loss"],
        "`blocks[0].graphs.apply.outputs[0]`: `loss` is no output of this `apply` graph",
    ),
    (
        "M26",
        (*STEP, "inputs"),
        [name for name in STEP_INPUTS if name != "state.momentum.transform.bias"],
        f"`blocks[0].graphs.step.outputs[{STEP_OUTPUTS.index('new.state.momentum.transform.bias')}]`: "
        "`new.state.momentum.transform.bias` is the new value of `state.momentum.transform.bias`, "
        "which is not an input of the graph",
    ),
    (
        "M26",
        ("blocks", 0, "graphs", "accumulate", "outputs"),
        ["loss", "handover", "log_probabilities", "new.parameter.transform.bias"],
        "`blocks[0].graphs.accumulate.outputs[3]`: "
        "`new.parameter.transform.bias` is no output of this `accumulate` graph",
    ),
    ("M27", (*STEP, "nodes"), -1, "`blocks[0].graphs.step.nodes` must be a whole number, 0 or more, got `-1`"),
    (
        "M27",
        (*STEP, "transient"),
        [{"fixed_bytes": 0, "row_bytes": -4, "tensors": []}],
        "`blocks[0].graphs.step.transient[0].row_bytes` must be a whole number, 0 or more, got `-4`",
    ),
    (
        "M27",
        (*STEP, "arena", "fixed_bytes"),
        0.5,
        "`blocks[0].graphs.step.arena.fixed_bytes` must be a whole number, 0 or more, got `0.5`",
    ),
    (
        "M28",
        ("inference", "offsets", "head.transform.weight"),
        -1,
        '`inference.offsets["head.transform.weight"]` must be a whole number, 0 or more, got `-1`',
    ),
    (
        "M28",
        ("inference", "offsets", "head.gone"),
        0,
        "`inference.offsets` names `head.gone`, which no block has",
    ),
    (
        "M28",
        ("inference", "offsets", "head.transform.weight"),
        4000,
        "`inference.offsets` puts `head.transform.weight` up to byte 4384 of a file of 4096 bytes",
    ),
    (
        "M28",
        ("inference", "offsets", "head.transform.weight"),
        92,
        "`inference.offsets` puts `head.transform.weight` over `conv1.transform.bias`",
    ),
    ("M29", ("replay", "rows"), 0, "`replay.rows` must be a whole number, 1 or more, got `0`"),
    ("M30", ("checks", "micro_batches"), [], "`checks.micro_batches` must name at least one size"),
    ("M30", ("checks", "micro_batches"), [0], "`checks.micro_batches[0]` must be a whole number, 1 or more, got `0`"),
    (
        "M30",
        ("checks", "largest_error"),
        {"conv1": 0},
        "`checks.largest_error` must have exactly the blocks `conv1`, `head`, got `conv1`",
    ),
    (
        "M30",
        ("checks", "largest_error", "head"),
        0.5,
        "`checks.largest_error` of `head` is 0.5, above the tolerance 0.0001",
    ),
    ("M30", ("checks", "tolerance"), 0, "`checks.tolerance` must be a number above 0, got `0`"),
    (
        "M31",
        ("files", "weights.safetensors", "sha256"),
        "A" * 64,
        '`files["weights.safetensors"].sha256` must be a sha256 (64 lower-case hexadecimal digits), '
        f'got `"{"A" * 64}"`',
    ),
    (
        "M31",
        ("files", "weights.safetensors", "bytes"),
        -1,
        '`files["weights.safetensors"].bytes` must be a whole number, 0 or more, got `-1`',
    ),
    (
        "M32",
        ("weights",),
        "other.safetensors",
        "`weights` names `other.safetensors`, which `files` does not list",
    ),
    (
        "M32",
        (*STEP, "file"),
        "gone.onnx",
        "`blocks[0].graphs.step.file` names `gone.onnx`, which `files` does not list",
    ),
    (
        "M32",
        ("files", "Manifest.json"),
        {"bytes": 1, "sha256": "0" * 64},
        "`files` must not list `Manifest.json`: it cannot hold its own hash",
    ),
    (
        "M33",
        ("files", "Weights.safetensors"),
        {"bytes": 1, "sha256": "0" * 64},
        "`files` lists `Weights.safetensors` and `weights.safetensors`, which differ only in case",
    ),
    (
        "M33",
        ("files", "weights.safetensors/more"),
        {"bytes": 1, "sha256": "0" * 64},
        "`files` lists `weights.safetensors` both as a file and as a folder of `weights.safetensors/more`",
    ),
    (
        "M43",
        ("preprocessing", 0, "kind"),
        "resize",
        "`preprocessing`: preprocessing step 0 is of kind 'resize', needed one of affine, transpose, reshape, cast",
    ),
    (
        "M43",
        ("preprocessing",),
        [],
        "`preprocessing`: the preprocessing steps give uint8, needed float32 or int64",
    ),
    (
        "M43",
        ("preprocessing", 1, "shape"),
        [8, 8],
        "`preprocessing` must lead to `features`, float32 [1, 8, 8], got float32 [8, 8]",
    ),
]


@pytest.mark.parametrize(
    ("rule", "path", "value", "message"), BROKEN, ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)]
)
def test_a_manifest_that_breaks_a_rule_is_refused_by_place(rule, path, value, message):
    assert message_of(changed(path, value)) == message


def test_m1_a_manifest_is_json_and_says_where_it_is_not():
    assert message_of('{"format":') == "`manifest.json` is not JSON: Expecting value: line 1 column 11 (char 10)"
    assert message_of("\ufeff{}").startswith("`manifest.json` is not JSON: Unexpected UTF-8 BOM")
    assert message_of("[1]") == "`manifest.json` must be an object, got a list of 1"


def test_m1_a_manifest_above_16_mib_is_refused_before_it_is_parsed():
    assert message_of(" " * (MAX_MANIFEST_BYTES + 1)) == "the manifest is larger than 16777216 bytes"
    assert message_of("ä" * (MAX_MANIFEST_BYTES // 2 + 1)) == "the manifest is larger than 16777216 bytes"


def test_m2_a_key_given_twice_is_refused_wherever_it_stands():
    text = to_json(tiny_manifest())
    twice = text.replace('"kind": "classifier"', '"kind": "classifier", "kind": "classifier"')
    assert message_of(twice) == "key `blocks[1].objective.kind` is given twice"
    twice = text.replace('"name": "tiny"', '"name": "tiny", "name": "tiny"')
    assert message_of(twice) == "key `name` is given twice"
    twice = text.replace('"source": "tests"', '"source": "tests", "source": "tests"')
    assert message_of(twice) == "key `metadata.source` is given twice"


def test_m3_a_number_too_large_for_a_double_is_refused():
    text = to_json(tiny_manifest()).replace('"temperature": 0.5', '"temperature": 1e999')
    assert message_of(text) == "`blocks[0].objective.temperature` must be a finite number, got `Infinity`"


def test_m3_a_number_of_ten_thousand_digits_is_refused():
    text = to_json(tiny_manifest()).replace('"rows": 4', f'"rows": {"4" * 10_000}')
    assert message_of(text).startswith("`manifest.json` is not JSON: Exceeds the limit")


def test_m4_nesting_that_would_exhaust_the_parser_is_refused():
    assert message_of("[" * 200_000) == "`manifest.json` is nested too deeply"


def test_m4_sixteen_levels_are_read():
    value = json.loads("[" * 15 + "]" * 15)
    assert from_json(changed(("blocks", 1, "objective", "deep"), value)).blocks[1].objective["deep"] == value


def paths_of_objects(value, path=()):
    """Every key of every object whose keys are fixed, as a path."""
    if isinstance(value, dict):
        for key, item in value.items():
            if path[-1:] not in {("settings",), ("offsets",), ("files",), ("metadata",), ("largest_error",)}:
                yield (*path, key)
            if key not in {"objective", "preprocessing", "metadata"}:
                yield from paths_of_objects(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths_of_objects(item, (*path, index))


def test_m7_every_missing_key_is_refused_by_its_path():
    """A graph kind that every block has is such a key too."""
    paths = [
        path for path in paths_of_objects(document()) if path != ("format",) and path[-1] not in OPTIONAL_GRAPH_KINDS
    ]
    assert len(paths) > 100
    for path in paths:
        text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]
        text = re.sub(r"\.(\w+\.safetensors|blocks/[\w.]+|inference\.onnx)\.", r'["\1"].', text)
        assert message_of(without(path)) == f"missing key `{text}`"


def test_m23_a_block_need_not_have_another_way():
    path = ("blocks", 0, "graphs", "fast_accumulate")
    assert message_of(without((*path, "file"))) == "missing key `blocks[0].graphs.fast_accumulate.file`"
    read = from_json(without(path))
    assert set(read.blocks[0].graphs) == set(GRAPH_KINDS)
    assert to_json(read) != to_json(tiny_manifest())


def test_m9_json_that_is_no_manifest_is_refused():
    assert message_of(without(("format",))) == "`format` must be `edgeff-artifact`"
    assert message_of("{}") == "`format` must be `edgeff-artifact`"


def test_m10_a_newer_format_names_the_edgeff_that_wrote_it_and_says_to_upgrade():
    root = document() | {"format_version": 6, "edgeff_version": "0.9.0", "unheard_of": 1}
    with pytest.raises(ArtifactError) as caught:
        from_json(json.dumps(root))
    assert str(caught.value) == (
        f"artifact format 6 was written by edgeff 0.9.0, this edgeff {__version__} reads format 5"
    )
    assert caught.value.hint.startswith("upgrade edgeff here (`pip install --upgrade edgeff`)")


def test_m10_a_newer_format_without_a_writer_is_refused_too():
    text = '{"format": "edgeff-artifact", "format_version": 7}'
    assert message_of(text).startswith("artifact format 7 was written by edgeff of unknown version")


def test_m63_blocks_that_compare_rows_compare_the_same_number_of_them():
    root = document()
    root["blocks"][0]["rows_together"], root["blocks"][1]["rows_together"] = 4, 6
    assert (
        message_of(json.dumps(root)) == "`rows_together` must be the same in all blocks that compare rows, got [4, 6]"
    )
    root["blocks"][1]["rows_together"] = 4
    assert [block.rows_together for block in from_json(json.dumps(root)).blocks] == [4, 4]


@pytest.mark.parametrize(("block", "row"), [(0, "float32 [2, 4, 9]"), (1, "none")])
def test_m64_no_hand_over_is_written_over_fewer_bytes_than_it_has(block, row):
    root = document()
    root["blocks"][0]["handover"]["shape"] = root["blocks"][1]["input"]["shape"] = [2, 4, 9]
    root["blocks"][0]["handover_in_place"] = block == 0
    root["blocks"][block]["handover_in_place"] = True
    taken = "float32 [1, 8, 8]" if block == 0 else "float32 [2, 4, 9]"
    assert message_of(json.dumps(root)) == (
        f"`blocks[{block}].handover_in_place` must be false: {row} does not fit over {taken}"
    )


def test_m12_contained_paths_are_exactly_the_safe_ones():
    safe = ["a", "a/b.onnx", "-", "_a", "a..b", "/".join("abcdefgh")]
    unsafe = ["", ".", "..", "a/..", "./a", "a/", "a.", "a./b", "a b", "a:b", "ä", "a\0", "/".join("abcdefghi")]
    assert [path for path in safe + unsafe if is_contained_path(path)] == safe
    assert not is_contained_path("/".join(["a" * 127, "b" * 127, "c"]))


def test_m13_block_and_tensor_names_that_make_the_same_key_are_refused():
    """Block `conv1` with tensor `a.b` and block `conv1.a` with tensor `b` would share a key of the weights file."""
    manifest = tiny_manifest()
    first, head = manifest.blocks
    first = dataclasses.replace(first, buffers=(*first.buffers, TensorSpec("a.b", (1,))))
    head = dataclasses.replace(head, name="conv1.a", buffers=(TensorSpec("b", (1,)),))
    text = to_json(dataclasses.replace(manifest, blocks=(first, head)))
    assert message_of(text) == "tensor `conv1.a.b` is given twice"


def test_m18_a_manifest_without_blocks_is_refused():
    root = document() | {"blocks": [], "fusion": []}
    assert message_of(json.dumps(root)) == "`blocks` must have at least one block"


def test_m26_a_new_value_may_stand_for_a_parameter_or_a_state_of_step_and_apply_only():
    manifest = from_json(to_json(tiny_manifest()))
    assert "new.parameter.transform.bias" in manifest.blocks[0].graphs["step"].outputs
    assert "new.state.momentum" in manifest.blocks[0].graphs["apply"].outputs


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_equal_blocks_have_in_common_is_held_once():
    document = json.loads(to_json(tiny_manifest()))
    block = document["blocks"][0]
    again = {**copy.deepcopy(block), "name": "again"}
    alike = list(parse_json(json.dumps({"blocks": [block, again]}), "m").mapping()["blocks"].elements())
    first, second = (_block(node) for node in alike)
    assert (first.name, second.name) == (block["name"], "again")
    for part in ("input", "handover", "parameters", "buffers", "slots", "objective"):
        assert getattr(first, part) is getattr(second, part), part
    for kind in GRAPH_KINDS:
        assert first.graphs[kind] is second.graphs[kind]
    assert first == tiny_manifest().blocks[0]


def test_values_that_are_equal_only_to_python_stay_apart():
    values = parse_json('{"a": [{"x": 1}, {"x": 1.0}, {"x": true}, {"x": 1}], "b": [[1], [1.0], [true]]}', "m").value
    assert [type(value["x"]) for value in values["a"]] == [int, float, bool, int]
    assert [type(value[0]) for value in values["b"]] == [int, float, bool]
    assert values["a"][0] is values["a"][3]


def test_the_golden_manifest_is_still_written_byte_for_byte():
    assert to_json(tiny_manifest()) == GOLDEN.read_text(encoding="utf-8")


def test_the_golden_manifest_is_still_read():
    assert from_json(GOLDEN.read_text(encoding="utf-8")) == tiny_manifest()


def test_format_and_version_come_first_and_a_newline_last():
    text = to_json(tiny_manifest())
    assert text.startswith('{\n  "format": "edgeff-artifact",\n  "format_version": 5,\n  "edgeff_version": ')
    assert text.endswith("}\n")


def test_the_order_of_mappings_and_the_kind_of_number_do_not_change_the_text():
    manifest = tiny_manifest()
    shuffled = dataclasses.replace(
        manifest,
        files=dict(reversed(manifest.files.items())),
        fusion=(0.5, 1),
        optimizer=dataclasses.replace(manifest.optimizer, settings=dict(reversed(manifest.optimizer.settings.items()))),
    )
    assert to_json(shuffled) == to_json(manifest)


def test_a_number_that_is_not_finite_is_not_written():
    manifest = dataclasses.replace(tiny_manifest(), fusion=(math.nan, 1.0))
    with pytest.raises(ArtifactError, match="the manifest cannot be written as JSON"):
        to_json(manifest)


def test_a_text_that_has_no_utf8_form_is_not_written():
    manifest = dataclasses.replace(tiny_manifest(), metadata={"note": "\ud800"})
    with pytest.raises(ArtifactError, match="the manifest cannot be written as JSON"):
        to_json(manifest)


def test_no_line_is_much_longer_than_a_screen():
    assert max(len(line) for line in to_json(tiny_manifest()).splitlines()) <= 120


# --- properties ------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_-]{0,8}", fullmatch=True)
shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
free_objects = st.dictionaries(texts, json_values, max_size=3)


@st.composite
def manifests(draw):
    kind = draw(st.sampled_from(sorted(OPTIMIZERS)))
    optimizer = optimizer_spec(kind, **{key: draw(st.floats(0, 0.999)) for key in OPTIMIZERS[kind].defaults})
    rows = [TensorSpec("x", draw(shapes), draw(st.sampled_from(["float32", "int64"])))]
    affine = {"kind": "affine", "offset": draw(st.integers(-9, 9)), "scale": draw(st.floats(0.1, 1.0))}
    blocks, together = [], draw(st.integers(2, 99))
    for name in (chosen := draw(st.lists(names, min_size=1, max_size=3, unique=True))):
        tensors = draw(st.lists(names, max_size=4, unique=True))
        cut = draw(st.integers(0, len(tensors)))
        last = name == chosen[-1]
        rows.append(TensorSpec("handover", draw(shapes)))
        blocks.append(
            BlockSpec(
                name=name,
                input=rows[-2],
                handover=None if last else rows[-1],
                parameters=tuple(TensorSpec(tensor, draw(shapes)) for tensor in tensors[:cut]),
                buffers=tuple(
                    TensorSpec(tensor, draw(shapes), draw(st.sampled_from(sorted(ITEM_BYTES))))
                    for tensor in tensors[cut:]
                ),
                slots=slots(optimizer),
                graphs=block_graphs(f"b{len(blocks)}", tensors[:cut], tensors[cut:], optimizer, last=last),
                objective=draw(free_objects),
                rows_together=draw(st.sampled_from([1, together])),
                handover_in_place=not last and rows[-1].nbytes <= rows[-2].nbytes and draw(st.booleans()),
            )
        )
    return with_files(
        Manifest(
            edgeff_version=draw(texts),
            name=draw(names),
            input=TensorSpec(draw(names), rows[0].shape, "uint8"),
            preprocessing=(affine if rows[0].dtype == "float32" else {"kind": "cast", "dtype": "int64"},),
            features=rows[0],
            classes=tuple(draw(st.lists(texts.filter(bool), min_size=2, max_size=5, unique=True))),
            fusion=tuple(draw(st.floats(0.1, 10)) for _ in blocks),
            optimizer=optimizer,
            training=TrainingDefaults(draw(st.integers(1, 99)), 3, draw(st.floats(1e-9, 1)), 0.0, 0.9),
            blocks=tuple(blocks),
            weights="weights.safetensors",
            inference=InferenceSpec("inference.onnx", {}),
            replay=draw(st.none() | st.just(ReplaySpec("replay.safetensors", 3))),
            checks=CheckResults((1,), {block.name: 0.0 for block in blocks}, 1e-4),
            files={},
            metadata=draw(st.dictionaries(texts, texts, max_size=2)),
        )
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(manifests())
def test_what_is_written_is_read_back_and_written_the_same(manifest):
    text = to_json(manifest)
    read = from_json(text)
    assert read == manifest
    assert to_json(read) == text


def all_paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from all_paths(item, (*path, key))


DOCUMENT = document()
PATHS = [path for path in all_paths(DOCUMENT) if path]
hostile = json_values | st.sampled_from([math.nan, math.inf, 10**400, "\ud800", "../x", -1, [[]], {"a": {}}])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PATHS), hostile)
def test_whatever_stands_anywhere_is_read_or_refused_with_an_artifact_error(path, value):
    root = copy.deepcopy(DOCUMENT)
    at(root, path[:-1])[path[-1]] = value
    try:
        manifest = from_json(json.dumps(root))
    except ArtifactError:
        return
    assert from_json(to_json(manifest)) == manifest


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_refused_with_an_artifact_error(text):
    message_of(text)


def test_weights_file_keys_are_block_and_tensor_name():
    assert list(weight_specs(tiny_manifest())) == [
        "conv1.transform.weight",
        "conv1.transform.bias",
        "conv1.objective.projection",
        "head.transform.weight",
    ]


def test_the_tiny_manifest_has_every_graph_kind():
    assert set(tiny_manifest().blocks[0].graphs) == {*GRAPH_KINDS, *OPTIONAL_GRAPH_KINDS}
    assert set(tiny_manifest().blocks[1].graphs) == set(GRAPH_KINDS)


# --- the specification -----------------------------------------------------------------------------------------------


def test_every_must_of_the_specification_has_a_test():
    rules = set(re.findall(r"\*\*(M\d+)\*\*", SPECIFICATION.read_text(encoding="utf-8")))
    tests = [
        TESTS / f"test_{name}.py" for name in ("manifest_json", "artifact", "baselines", "onnx_rules", "engine_files")
    ]
    found = [re.findall(r'"M(\d+)"|def test_m(\d+)_', path.read_text(encoding="utf-8")) for path in tests]
    tested = {f"M{table or name}" for matches in found for table, name in matches}
    assert rules
    assert rules == {f"M{number}" for number in range(1, len(rules) + 1)}
    assert sorted(rules - tested) == []


def test_an_arena_is_never_smaller_than_what_is_alive_in_it():
    graph = tiny_manifest().blocks[0].graphs["step"]
    assert (graph.transient_bytes(4), graph.arena_bytes(4)) == (640 + 4 * 1088, 1024 + 4 * 1280)
    for low in (Line(0, 0), Line(4000, 0)):
        assert dataclasses.replace(graph, arena=low).arena_bytes(4) == graph.transient_bytes(4)


def test_the_examples_of_the_specification_are_lines_of_the_golden_manifest():
    golden = [line.strip() for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    examples = re.findall(r"```json\n(.*?)```", SPECIFICATION.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        lines = [line.strip() for line in example.splitlines()]
        assert any(golden[start : start + len(lines)] == lines for start in range(len(golden)))


@pytest.mark.parametrize(
    "vocabulary",
    [
        Manifest,
        TensorSpec,
        OptimizerSpec,
        TrainingDefaults,
        BlockSpec,
        GraphSpec,
        Moment,
        HeldTensor,
        Work,
        InferenceSpec,
        ReplaySpec,
        CheckResults,
        FileSpec,
    ],
)
def test_every_key_is_in_the_specification(vocabulary):
    text = SPECIFICATION.read_text(encoding="utf-8")
    missing = [field.name for field in dataclasses.fields(vocabulary) if f"| `{field.name}` |" not in text]
    assert missing == []


if __name__ == "__main__":
    GOLDEN.write_text(to_json(tiny_manifest()), encoding="utf-8")


def test_numbers_that_are_equal_but_not_the_same_stay_what_they_are():
    parts = list(parse_json('[0.0, -0.0, 0, false, 1.0, 1, true, {"a": -0.0}, {"a": 0.0}]', "numbers").elements())
    assert json.dumps([part.value for part in parts]) == (
        '[0.0, -0.0, 0, false, 1.0, 1, true, {"a": -0.0}, {"a": 0.0}]'
    )
