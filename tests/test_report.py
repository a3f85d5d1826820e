"""The report's facts, and their form as text and JSON; exact text from the golden manifest."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from report_cases import ALL, AS_FOUND, BATCH, LARGE, MIB, MICRO, SMALL, FakePlanner, MeasuredRun, golden, report_of

from edgeff.manifest import Line, Manifest, Moment
from edgeff.report import MethodRow, Report, measured_report, plan_key
from edgeff.report_compare import activation_lines, comparison, fastest, fewest_bytes, replay_note, tensor_bytes
from edgeff.report_json import report_json
from edgeff.report_text import (
    block_table,
    details,
    device_texts,
    line_text,
    method_table,
    report_text,
    seconds_text,
    short_name,
)
from edgeff.runtime.plan_parts import Bytes, Phase, Plan
from edgeff.table import table


def row(method: str, size: int, seconds: float = 1.0, *, fits: bool = True, batch: int = 1) -> MethodRow:
    """A row with a plan of that many bytes."""
    phases = (Phase("train", Bytes(process=size)),)
    return MethodRow(method, fits, Plan("sweep", 8, batch, None, (), phases, epoch_seconds=seconds))


def squeezed(text: str) -> list[str]:
    """Lines with single blanks."""
    return [" ".join(line.split()) for line in text.split("\n")]


def measured(report: Report, planner: FakePlanner) -> Report:
    return measured_report(report, planner, lambda number, count, one: None)


# --- facts ---


def test_every_method_is_planned_for_every_device_that_can_be_planned_for() -> None:
    report = report_of(LARGE, SMALL, MICRO, AS_FOUND)
    assert [[one.method for one in each.rows] for each in report.devices] == [list(report.methods)] * 2 + [[], []]
    assert [one.fits for one in report.devices[0].rows] == [True] * 3
    assert [one.fits for one in report.devices[1].rows] == [False] * 3


def test_what_does_not_fit_says_why_and_what_it_needs_at_the_least() -> None:
    report = report_of(SMALL)
    for least, one in zip(report.least, report.devices[0].rows, strict=True):
        needed = f"the run needs {least.planned_bytes:,} bytes"
        assert re.match(rf"{needed}( by schedule `\w+`)?, the budget is 5,000,000; ", one.reason)
        assert one.planned_bytes == least.planned_bytes
        assert one.micro_batch is None


def test_devices_with_one_budget_are_planned_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int | None]] = []
    plan = FakePlanner.plan
    monkeypatch.setattr(FakePlanner, "plan", lambda self, *given: asked.append(given) or plan(self, *given))
    report_of(LARGE, replace(LARGE, id="another"), SMALL)
    assert len(asked) == len(set(asked)) == 9


def test_equal_plans_are_measured_once_whatever_the_budget_and_rows_that_do_not_fit_never() -> None:
    planner = FakePlanner()
    larger = replace(LARGE, id="larger", budget_bytes=300_000_000)
    report = measured(report_of(LARGE, larger, SMALL, MICRO), planner)
    assert planner.measured == [("stage", 190_000_000), ("sweep", 190_000_000), ("last-block", 190_000_000)]
    for number in (0, 1):
        assert all(one.measured_bytes == (one.planned_bytes or 0) // 2 for one in report.devices[number].rows)
    assert all(one.measured is None for one in report.devices[2].rows)


def test_progress_is_told_before_each_measurement() -> None:
    told: list[tuple[int, int, str]] = []
    measured_report(
        report_of(LARGE), FakePlanner(), lambda number, count, one: told.append((number, count, one.method))
    )
    assert told == [(0, 3, "stage"), (1, 3, "sweep"), (2, 3, "last-block")]


def test_a_measurement_that_fails_leaves_the_others_and_says_why() -> None:
    report = measured(report_of(LARGE), FakePlanner(failing=("stage",)))
    stage, sweep, _ = report.devices[0].rows
    assert (stage.measured, stage.not_measured) == (None, "onnxruntime is not there")
    assert sweep.measured is not None
    assert "\n\nstage was not measured: onnxruntime is not there\n\n" in report_text(report, details=True)
    assert "onnxruntime is not there" in report_text(report, details=False)


def test_the_ratio_is_of_what_the_measured_run_had_planned() -> None:
    one = replace(row("sweep", 10 * MIB), measured=MeasuredRun(1, 6 * MIB, 8 * MIB, ()))
    assert (one.ratio, one.measured_bytes, one.planned_bytes) == (0.75, 6 * MIB, 10 * MIB)


def test_plans_that_differ_in_budgets_alone_are_the_same() -> None:
    one, other = (
        report_of(replace(LARGE, budget_bytes=size)).devices[0].rows[0] for size in (190_000_000, 300_000_000)
    )
    assert one.plan != other.plan
    assert plan_key(one) == plan_key(other)
    assert plan_key(one) != plan_key(replace(one, method="sweep"))


def test_time_and_disk_are_told_for_one_update_and_one_row_however_long_the_planned_epoch_is() -> None:
    one, three = (report_of(LARGE, planner=FakePlanner(updates=count)).devices[0].rows[1] for count in (1, 3))
    assert one.update_seconds == pytest.approx(three.update_seconds)
    assert three.plan is not None
    assert replace(three, plan=replace(three.plan, disk_bytes=1200)).row_disk_bytes == 100


def test_what_took_more_than_the_budget_does_not_pass_for_fitting() -> None:
    planner = FakePlanner(names=("sweep", "bp"), greedy=("bp",))
    report = measured(report_of(LARGE, planner=planner), planner)
    sweep, bp = report.devices[0].rows
    assert (sweep.over_budget, bp.over_budget, bp.fits) == (False, True, True)
    assert "sweep   yes " in method_table([sweep, bp])
    assert "bp      over" in method_table([sweep, bp])
    assert "measured over the budget" in method_table([sweep, bp])
    assert fastest([sweep, bp]) == fewest_bytes([sweep, bp]) == {"sweep"}
    assert squeezed(report_text(report, details=False).split("\n\n")[-2])[2].endswith(" fits 4 took 362 MiB")


# --- comparisons ---


def test_the_winner_in_bytes_is_named_first_whoever_it_is() -> None:
    rows = [row("stage", 4 * MIB), row("sweep", 6 * MIB), row("bp", 80 * MIB), row("bp+accumulation", 8 * MIB)]
    assert comparison(rows) == (
        "fewest bytes: local learning, stage (4 MiB), 0.50 of the best back-propagation, bp+accumulation (8 MiB)"
    )
    rows[3] = row("bp+accumulation", 2 * MIB)
    assert comparison(rows) == (
        "fewest bytes: back-propagation, bp+accumulation (2 MiB), 0.50 of the best local learning, stage (4 MiB)"
    )
    rows[3] = row("bp+accumulation", 4 * MIB)
    assert comparison(rows) == "fewest bytes: bp+accumulation (4 MiB) and stage (4 MiB) alike"


def test_what_trains_a_part_or_without_gradients_is_compared_with_nothing() -> None:
    rows = [row("last-block", 1, 0.1), row("mezo", 2, 0.1), row("bp", 5, 3.0), row("sweep", 9, 2.0)]
    assert "bp (5 B)" in comparison(rows)
    assert fewest_bytes(rows) == {"bp"}
    assert fastest(rows) == {"sweep"}
    assert comparison(rows[:3]) == ""
    assert fastest(rows[:2]) == frozenset()


def test_what_does_not_fit_is_no_winner_and_equals_win_together() -> None:
    rows = [row("stage", 3, 9.0, fits=False), row("sweep", 5, 2.0), row("bp", 5, 2.0)]
    assert fewest_bytes(rows) == fastest(rows) == {"sweep", "bp"}


def test_tensor_bytes_are_all_weights_and_state_and_the_largest_blocks_gradients_and_activations() -> None:
    held = (104 + 160) + (384 + 768)
    assert tensor_bytes(golden()) == held + 384 + 640 + 1088
    assert tensor_bytes(golden(), rows=8) == held + 384 + 640 + 8 * 1088


def test_of_step_and_accumulate_the_one_that_holds_more_is_shown() -> None:
    block = golden().blocks[0]
    more = (Moment(4096, 16), Moment(0, 8192))
    larger = replace(block.graphs["accumulate"], transient=more)
    assert activation_lines(replace(block, graphs={**block.graphs, "accumulate": larger})) == more
    assert activation_lines(block) == block.graphs["step"].transient


# --- text ---


def test_the_report_on_all_devices_reads_so() -> None:
    assert report_text(report_of(LARGE, SMALL, MICRO, AS_FOUND), details=False).split("\n") == [
        "tiny: training bytes per block",
        "",
        "block  weights  gradients  optimizer state  activations (N = micro-batch)",
        "-----  -------  ---------  ---------------  -----------------------------",
        "conv1  104 B    80 B       160 B            640 B + 1.06 KiB x N",
        "head   384 B    384 B      768 B            640 B + 1.06 KiB x N",
        "",
        "what each method takes at the least on any device, batch 4; planned and measured bytes stand over the floor: "
        "what the process takes before the artifact is opened",
        "",
        "method      planned   micro-batch  weights  gradients  optimizer state  activations  graphs   rows  process",
        "----------  --------  -----------  -------  ---------  ---------------  -----------  -------  ----  --------",
        "stage       4.88 MiB  4            488 B    -          768 B            7.06 KiB     255 KiB  -     4.62 MiB",
        "sweep       4.88 MiB  4            600 B    -          1.12 KiB         6.47 KiB     255 KiB  -     4.62 MiB",
        "last-block  4.88 MiB  4            488 B    -          768 B            6.47 KiB     255 KiB  -     4.62 MiB",
        "",
        "a run keeps its 4 replay rows in memory too: 256 B on top",
        "",
        "`edgeff export --baselines` adds back-propagation's rows",
        "",
        "devices: `fits N` at micro-batch N, else the bytes that it needs at the least; ~ is an estimate",
        "",
        "device      floor     budget    stage     sweep     last-block",
        "----------  --------  --------  --------  --------  ----------",
        "pi-zero-2w  57.2 MiB  ~181 MiB  fits 4    fits 4    fits 4",
        "tiny-board  62 MiB    4.77 MiB  4.88 MiB  4.88 MiB  4.88 MiB",
        "",
        "pc: takes what the machine has",
        "",
        "onnxruntime does not run on microcontrollers: tensor bytes only, at micro-batch 1, whatever the runtime",
        "",
        "device     RAM    tensors",
        "---------  -----  --------  ---------  ----------------------------------------------",
        "stm32h743  1 MiB  3.45 KiB  would fit  runtimes that can train something there: AIfES",
    ]


def test_one_device_is_shown_in_full() -> None:
    planner = FakePlanner(names=("sweep", "bp"))
    report = measured(report_of(LARGE, planner=planner), planner)
    heading, methods, blocks = device_texts(report, report.devices[0])
    assert heading == "pi-zero-2w (Raspberry Pi Zero 2 W): budget ~181 MiB, floor 57.2 MiB"
    figures = "yes 4 4.95 MiB 2.47 MiB 0.50 70 MiB 100 ~0.12 ms 2 blocks at once; fastest; fewest bytes"
    assert squeezed(methods)[0] == "method fits micro-batch planned measured ratio floor here rows/s update details"
    assert squeezed(methods)[2:] == [f"sweep {figures}", f"bp {figures}"]
    assert squeezed(blocks)[2] == "sweep conv1 4 216 B - 384 B 6 KiB 128 KiB 134 KiB 67 KiB 176 MiB"
    assert [line.split()[:2] for line in squeezed(blocks)[2:]] == [
        ["sweep", "conv1"],
        ["sweep", "head"],
        ["bp", "conv1"],
        ["bp", "head"],
    ]


def test_what_does_not_fit_stands_below_the_table_with_its_reason() -> None:
    report = report_of(SMALL, planner=FakePlanner(names=ALL))
    heading, methods, reasons = device_texts(report, report.devices[0])
    assert heading == "tiny-board (Tiny <board>): budget 4.77 MiB, floor 62 MiB"
    assert squeezed(methods)[2] == "stage no - 4.88 MiB - - - - -"
    assert [line.partition(" does not fit: the run needs ")[0] for line in reasons.split("\n")] == list(ALL)


def test_a_microcontroller_is_told_in_a_sentence_and_measured_never() -> None:
    planner = FakePlanner()
    report = measured(report_of(MICRO, AS_FOUND), planner)
    assert [device_texts(report, one) for one in report.devices] == [
        [
            "stm32h743: tensors alone (3.45 KiB at micro-batch 1) would fit; onnxruntime does not run on STM32H743; "
            "runtimes that can train something there: AIfES"
        ],
        ["pc: takes what the machine has"],
    ]
    assert planner.measured == []


def test_with_back_propagation_the_comparison_takes_the_place_of_the_hint() -> None:
    shown = report_text(report_of(LARGE, planner=FakePlanner(names=ALL)), details=False)
    assert "\n\nfewest bytes: bp (4.88 MiB) and sweep (4.88 MiB) alike\n\n" in shown
    assert "--baselines" not in shown


def test_what_was_measured_is_listed_once_with_floor_and_total() -> None:
    planner = FakePlanner(names=("sweep",))
    report = measured(report_of(LARGE, replace(LARGE, id="another"), planner=planner), planner)
    lines = squeezed(report_text(report, details=False).split("\n\n")[-1])
    assert lines[0] == "measured here micro-batch planned measured ratio floor total rows/s devices"
    assert lines[2] == "sweep 4 4.95 MiB 2.47 MiB 0.50 70 MiB 72.5 MiB 100 2"


def test_details_tell_schedule_parts_and_what_was_measured_otherwise() -> None:
    stage, sweep, last = report_of(LARGE).devices[0].rows
    assert details(stage) == ["one block at a time", "blocks before it run again"]
    assert details(sweep) == ["2 blocks at once"]
    in_groups = replace(sweep, plan=replace(sweep.plan, groups=(0, 1))) if sweep.plan else sweep
    assert details(in_groups) == ["2 blocks at once", "learn in 2 groups, those before run again"]
    assert details(last) == ["2 blocks at once", "trains head only"]
    assert sweep.plan is not None
    assert stage.plan is not None
    parts = (sweep.plan.blocks[0], replace(sweep.plan.blocks[1], micro_batch=1))
    assert details(replace(sweep, plan=replace(sweep.plan, blocks=parts)))[1:] == ["in blocks 1 to 4 rows at once"]
    files = replace(stage.plan, features="float32", disk_bytes=2048)
    assert details(replace(stage, plan=files))[1:] == ["float32 files between blocks", "512 B on disk for each row"]
    other = replace(sweep, measured=MeasuredRun(2, 1, 1, ()))
    assert details(other)[1:] == ["measured at micro-batch 2"]
    assert details(replace(sweep, plan=replace(sweep.plan, blocks=parts[:1]))) == ["the network as one block"]
    assert details(replace(sweep, fits=False)) == []


def test_a_method_without_any_plan_is_shown_as_such() -> None:
    without = MethodRow("sweep", False, None, "there is no such plan")
    assert squeezed(method_table([without]))[2] == "sweep no - - - - - - -"
    report = replace(report_of(SMALL), least=(without,))
    assert "sweep   -        -" in report_text(report, details=False)


def test_several_lines_of_activations_are_parted_by_a_bar() -> None:
    manifest = golden()
    block = manifest.blocks[0]
    step = replace(block.graphs["step"], transient=(Moment(2048, 512), Moment(0, 4096)))
    shown = block_table(replace(manifest, blocks=(replace(block, graphs={**block.graphs, "step": step}),)))
    assert shown.endswith("2 KiB + 512 B x N | 0 B + 4 KiB x N")
    assert line_text(Line(0, 4096)) == "0 B + 4 KiB x N"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.000044, "0.044 ms"), (0.9996, "1 s"), (12.34, "12 s"), (123.4, "123 s"), (0.05, "50 ms")]
)
def test_seconds_have_two_digits(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_names_are_short_in_narrow_columns() -> None:
    assert [short_name(name) for name in ("bp+fused-updates", "last-block")] == ["bp+fused", "last-block"]


def test_the_overview_of_many_methods_stays_within_a_wide_terminal() -> None:
    names = (
        *ALL[:4],
        "bp+accumulation",
        "bp+checkpointing",
        "bp+accumulation+checkpointing",
        "bp+fused-updates",
        "mezo",
    )
    report = report_of(LARGE, replace(SMALL, id="browser-wasm32-mobile"), planner=FakePlanner(names=names))
    overview = report_text(report, details=False).split("\n\n")[-1]
    assert max(map(len, overview.split("\n"))) <= 140


def test_a_table_without_rows_is_its_header() -> None:
    assert table(("a", "bcd"), []) == "a  bcd\n-  ---"


def test_replay_rows_are_told_of_where_they_are_used() -> None:
    manifest = golden()
    assert replay_note(manifest) == "a run keeps its 4 replay rows in memory too: 256 B on top"
    assert replay_note(replace(manifest, replay=None)) == ""
    assert replay_note(replace(manifest, training=replace(manifest.training, replay_fraction=0.0))) == ""


# --- JSON ---


@pytest.fixture
def found() -> dict[str, Any]:
    planner = FakePlanner(names=("stage", "bp"))
    report = measured(report_of(LARGE, SMALL, MICRO, planner=planner), planner)
    plain: dict[str, Any] = json.loads(json.dumps(report_json(report)))
    return plain


def test_json_has_the_model_every_method_at_its_smallest_and_every_device(found: dict[str, Any]) -> None:
    assert list(found) == ["artifact", "batch_size", "blocks", "methods", "least", "comparison", "devices"]
    assert (found["artifact"], found["batch_size"], found["methods"]) == ("a.zip", BATCH, ["stage", "bp"])
    assert found["blocks"][0] == {
        "block": "conv1",
        "weight_bytes": 104,
        "gradient_bytes": 80,
        "state_bytes": 160,
        "activation_bytes": [{"fixed_bytes": 640, "row_bytes": 1088}],
    }
    assert [one["method"] for one in found["least"]] == ["stage", "bp"]
    assert [one["device"] for one in found["devices"]] == ["pi-zero-2w", "tiny-board", "stm32h743"]


def test_json_of_a_method_that_fits_has_all_its_bytes(found: dict[str, Any]) -> None:
    device = found["devices"][0]
    assert (device["budget_bytes"], device["floor_bytes"]) == (190_000_000, 60_000_000)
    stage = device["methods"][0]
    assert (stage["fits"], stage["micro_batch"], stage["reason"], stage["schedule"]) == (True, 4, "", "stage")
    assert sum(stage["resident"].values()) == stage["planned_bytes"]
    assert stage["measured_bytes"] == stage["planned_bytes"] // 2
    assert stage["ratio"] == 0.5
    assert stage["measured"]["total_bytes"] == stage["measured"]["floor_bytes"] + stage["measured_bytes"]
    conv = stage["blocks"][0]
    assert (conv["block"], conv["micro_batch"], conv["measured_bytes"]) == ("conv1", 4, conv["planned_bytes"] // 2)
    parts = ("weight_bytes", "gradient_bytes", "state_bytes", "activation_bytes", "graph_bytes")
    assert sum(conv[part] for part in parts) == conv["planned_bytes"] < conv["budget_bytes"]


def test_json_of_what_does_not_fit_has_the_reason_and_what_it_needs(found: dict[str, Any]) -> None:
    one = found["devices"][1]["methods"][0]
    assert (one["fits"], one["micro_batch"], one["measured_bytes"], one["measured"]) == (False, None, None, None)
    assert one["reason"].startswith(f"the run needs {one['planned_bytes']:,} bytes")


def test_json_of_a_microcontroller_has_tensor_bytes_and_no_methods(found: dict[str, Any]) -> None:
    one = found["devices"][2]
    assert (one["methods"], one["tensor_bytes"]) == ([], tensor_bytes(golden()))
    assert "onnxruntime does not run" in one["reason"]


def test_rows_that_are_kept_in_memory_show_up_by_kind() -> None:
    manifest: Manifest = golden()
    one = row("sweep", 0)
    assert one.plan is not None
    held = replace(one.plan, phases=(Phase("train", Bytes(rows=4096)),))
    report = replace(report_of(LARGE), manifest=manifest, least=(replace(one, plan=held),))
    assert squeezed(report_text(report, details=False).split("\n\n")[3])[2].endswith(" 4 KiB -")
