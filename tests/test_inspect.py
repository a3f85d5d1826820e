import dataclasses
import json
from pathlib import Path

import pytest
from tiny_run import edgeff

from edgeff.artifact import Artifact
from edgeff.cli import COMMANDS
from edgeff.container import Folder
from edgeff.inspect import inspect_json, inspect_text
from edgeff.manifest import GraphSpec, Moment
from edgeff.manifest_json import from_json

GOLDEN = Path(__file__).parent / "golden" / "manifest-v5.json"
MANIFEST = from_json(GOLDEN.read_text(encoding="utf-8"))
EXPECTED = """\
artifact         demo
name             tiny
written by       edgeff 0.1.0, artifact format 5
manifest         sha256 abababababababababababababababababababababababababababababababab
input            one row is uint8 8 x 8
preprocessing    affine (offset 0, scale 0.00390625); then reshape (shape [1, 8, 8])
features         one row is float32 1 x 8 x 8
classes          3: nought, one, zwölf
fusion           conv1 0.5, head 1
optimizer        adamw (beta1 0.9, beta2 0.999, epsilon 1e-08, weight_decay 0.0001)
training         batch 4, epochs 2, learning rate 0.01, replay 50%, guard 25%
replay           4 rows travel along
checked          against torch autograd at micro-batches 1, 4: largest error 2.5e-07 (`conv1`), tolerance 1.0e-04
engines          onnxruntime
metadata source  tests

block  in -> out                               parameters  weights  gradients  optimizer state
conv1  float32 1 x 8 x 8 -> float32 2 x 4 x 4          20    104 B       80 B            160 B
head   float32 2 x 4 x 4 -> -                          96    384 B      384 B            768 B

block  graph            nodes  transient bytes
conv1  step                 7  640 B + 1.06 KiB x micro-batch
conv1  accumulate           7  640 B + 1.06 KiB x micro-batch
conv1  apply                7  640 B + 1.06 KiB x micro-batch
conv1  forward              7  640 B + 1.06 KiB x micro-batch
conv1  fast_accumulate      7  640 B + 1.06 KiB x micro-batch
head   step                 7  640 B + 1.06 KiB x micro-batch
head   accumulate           7  640 B + 1.06 KiB x micro-batch
head   apply                7  640 B + 1.06 KiB x micro-batch
head   forward              7  640 B + 1.06 KiB x micro-batch

file                                size
blocks/conv1.accumulate.onnx       4 KiB
blocks/conv1.apply.onnx            4 KiB
blocks/conv1.fast_accumulate.onnx  4 KiB
blocks/conv1.forward.onnx          4 KiB
blocks/conv1.step.onnx             4 KiB
blocks/head.accumulate.onnx        4 KiB
blocks/head.apply.onnx             4 KiB
blocks/head.forward.onnx           4 KiB
blocks/head.step.onnx              4 KiB
inference.onnx                     4 KiB
replay.safetensors                 4 KiB
weights.safetensors                4 KiB
"""


def artifact(**changes):
    """An artifact that lies nowhere: a report needs the manifest alone."""
    path = Path("demo")
    return Artifact(path, dataclasses.replace(MANIFEST, **changes), "ab" * 32, Folder(path))


def test_the_whole_report():
    assert inspect_text(artifact()).splitlines() == EXPECTED.splitlines()


def line_of(report, label):
    return next(line for line in report.splitlines() if line.startswith(label))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"preprocessing": ()}, "preprocessing    none"),
        (
            {"preprocessing": ({"kind": "cast", "dtype": "float32"}, {"kind": "reshape", "shape": [64]})},
            "preprocessing    cast (dtype float32); then reshape (shape [64])",
        ),
        (
            {"preprocessing": ({"kind": "affine", "scale": [0.5] * 99},)},
            "preprocessing    affine (scale [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0...)",
        ),
        ({"replay": None}, "replay           no rows travel along"),
        (
            {"classes": tuple(str(n) for n in range(14))},
            "classes          14: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more",
        ),
        ({"input": dataclasses.replace(MANIFEST.input, shape=())}, "input            one row is uint8 scalar"),
    ],
)
def test_lines_that_depend_on_the_manifest(changes, line):
    assert line_of(inspect_text(artifact(**changes)), line.split()[0] + "  ") == line


@pytest.mark.parametrize(
    ("transient", "words"),
    [
        ((), "none"),
        ((Moment(0, 2048),), "0 B + 2 KiB x micro-batch"),
        ((Moment(0, 2048), Moment(1024, 1)), "largest of 0 B + 2 KiB x micro-batch; 1 KiB + 1 B x micro-batch"),
    ],
)
def test_transient_bytes_are_a_line_in_the_micro_batch_or_the_largest_of_some(transient, words):
    head = MANIFEST.blocks[1]
    graph = GraphSpec("s.onnx", (), (), 31, transient)
    report = inspect_text(artifact(blocks=(MANIFEST.blocks[0], dataclasses.replace(head, graphs={"step": graph}))))
    assert line_of(report, "head   step").split(None, 3) == ["head", "step", "31", words]


def test_the_json_form_is_plain_json_with_bytes():
    facts = inspect_json(artifact())
    assert json.loads(json.dumps(facts)) == facts
    assert facts["manifest_sha256"] == "ab" * 32
    conv1, head = facts["blocks"]
    assert (conv1["parameters"], conv1["gradient_bytes"], conv1["state_bytes"]) == (20, 80, 160)
    assert conv1["weight_bytes"] == 80 + 3 * 2 * 4
    assert (head["parameters"], head["handover"]) == (96, None)
    assert head["graphs"]["step"]["transient"] == [
        {
            "fixed_bytes": 640,
            "row_bytes": 1088,
            "tensors": [{"name": "relu_1", "operator": "Relu", "fixed_bytes": 0, "row_bytes": 1024}],
        }
    ]
    assert facts["files"]["weights.safetensors"] == 4096
    assert facts["replay_rows"] == 4


def test_the_json_form_without_replay_rows_counts_none():
    assert inspect_json(artifact(replay=None))["replay_rows"] == 0


def test_what_people_read_spells_optimizer_as_the_option_does():
    helps = [edgeff(command, "--help").stdout for command in COMMANDS]
    assert [text for text in (inspect_text(artifact()), *helps) if "ptimiser" in text] == []
    assert sum("optimizer" in text for text in helps) >= 2
