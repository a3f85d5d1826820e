"""The report, exact text from the golden manifest."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgeff.manifest import Line, Manifest, Moment
from edgeff.manifest_json import from_json
from edgeff.report import (
    DeviceVerdict,
    activation_lines,
    block_table,
    device_table,
    line_text,
    report_json,
    report_text,
    tensor_bytes,
)
from edgeff.table import table

FITS = DeviceVerdict("pi-zero-2w", 250_000_000, True, 60_000_000, 190_000_000, True, 8, 5 << 20, "")
MICRO = DeviceVerdict("stm32h743", 1 << 20, False, 0, 0, False, None, None, "onnxruntime does not run there")
AS_FOUND = DeviceVerdict("generic-x86-2core", None, False, 0, 0, False, None, None, "takes what the machine has")


@pytest.fixture
def golden() -> Manifest:
    return from_json((Path(__file__).parent / "golden" / "manifest-v1.json").read_text())


def test_the_whole_report_reads_so(golden: Manifest) -> None:
    assert report_text(golden, [FITS, MICRO, AS_FOUND]).split("\n") == [
        "tiny: training bytes per block",
        "",
        "block  weights  gradients  optimizer state  activations (N = micro-batch)",
        "-----  -------  ---------  ---------------  -----------------------------",
        "conv1  104 B    80 B       160 B            640 B + 1.06 KiB x N",
        "head   384 B    384 B      768 B            640 B + 1.06 KiB x N",
        "",
        "planned at batch 4, schedule sweep; planned bytes stand over the floor",
        "",
        "device             app RAM   floor     budget   fits  micro-batch  planned",
        "-----------------  --------  --------  -------  ----  -----------  -------  ------------------------------",
        "pi-zero-2w         ~238 MiB  57.2 MiB  181 MiB  yes   8            5 MiB",
        "stm32h743          1 MiB     -         -        no    -            -        onnxruntime does not run there",
        "generic-x86-2core  ?         -         -        no    -            -        takes what the machine has",
    ]


def test_a_report_for_programs_has_this_form(golden: Manifest) -> None:
    assert report_json("a.zip", golden, [FITS, MICRO]) == {
        "artifact": "a.zip",
        "blocks": [
            {
                "block": name,
                "weight_bytes": weights,
                "gradient_bytes": gradients,
                "state_bytes": state,
                "activation_bytes": [{"fixed_bytes": 640, "row_bytes": 1088}],
            }
            for name, weights, gradients, state in (("conv1", 104, 80, 160), ("head", 384, 384, 768))
        ],
        "devices": [
            {
                "device": "pi-zero-2w",
                "budget_bytes": 190_000_000,
                "floor_bytes": 60_000_000,
                "methods": [
                    {"method": "sweep", "fits": True, "micro_batch": 8, "planned_bytes": 5 << 20, "reason": ""}
                ],
            },
            {
                "device": "stm32h743",
                "budget_bytes": 0,
                "floor_bytes": 0,
                "methods": [
                    {
                        "method": "sweep",
                        "fits": False,
                        "micro_batch": None,
                        "planned_bytes": None,
                        "reason": "onnxruntime does not run there",
                    }
                ],
            },
        ],
    }


def test_tensor_bytes_are_all_weights_and_state_and_the_largest_blocks_gradients_and_activations(
    golden: Manifest,
) -> None:
    held = (104 + 160) + (384 + 768)
    assert tensor_bytes(golden) == held + 384 + 640 + 1088
    assert tensor_bytes(golden, rows=8) == held + 384 + 640 + 8 * 1088


def test_of_step_and_accumulate_the_one_that_holds_more_is_shown(golden: Manifest) -> None:
    block = golden.blocks[0]
    more = (Moment(4096, 16), Moment(0, 8192))
    larger = replace(block.graphs["accumulate"], transient=more)
    assert activation_lines(replace(block, graphs={**block.graphs, "accumulate": larger})) == more
    assert activation_lines(block) == block.graphs["step"].transient


def test_several_lines_are_parted_by_a_bar(golden: Manifest) -> None:
    block = golden.blocks[0]
    step = replace(block.graphs["step"], transient=(Moment(2048, 512), Moment(0, 4096)))
    shown = block_table(replace(golden, blocks=(replace(block, graphs={**block.graphs, "step": step}),)))
    assert shown.endswith("2 KiB + 512 B x N | 0 B + 4 KiB x N")
    assert line_text(Line(0, 4096)) == "0 B + 4 KiB x N"


def test_a_budget_below_nothing_is_shown_as_none() -> None:
    shown = device_table([replace(FITS, budget_bytes=-5, fits=False, micro_batch=None, planned_bytes=None)])
    assert shown.split("\n")[2] == "pi-zero-2w  ~238 MiB  57.2 MiB  -       no    -            -"


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("a", "bcd"), []) == "a  bcd\n-  ---"
