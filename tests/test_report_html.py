"""The HTML report: whole, self-contained, escaped, and as readable without colour, pointer or script as can be."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from report_cases import ALL, AS_FOUND, LARGE, MIB, MICRO, SMALL, FakePlanner, golden, report_of

from edgeff.manifest import Manifest
from edgeff.markup import element, join
from edgeff.report import Device, Report, measured_report
from edgeff.report_bars import chart_bytes
from edgeff.report_html import report_html
from edgeff.report_panels import cards_of
from edgeff.report_style import SCRIPT
from edgeff.report_svg import placed, stacked_bar, ticks
from edgeff.runtime.plan_parts import Bytes, Plan
from edgeff.runtime.timeline import Timeline

_VOID = {"br", "link", "meta", "wbr"}
_HOSTILE = "<script>alert(1)</script>\"'&"


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str, **wanted: str) -> Iterator[Node]:
        """Every element of a name with some attributes, in the order of the page."""
        for child in self.children:
            named = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
            if child.tag == tag and all(
                value in child.attributes.get(name, "").split() or child.attributes.get(name) == value
                for name, value in named.items()
            ):
                yield child
            yield from child.all(tag, **wanted)

    def words(self) -> str:
        """All text below it."""
        return " ".join([self.text, *(child.words() for child in self.children)])


class Tree(HTMLParser):
    """Parses, and fails where an element is not ended by its own end tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(page)
        assert [node.tag for node in self.open] == [""], "an element was never ended"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in `{tag}`"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].text += data


def planner_of(manifest: Manifest | None = None) -> FakePlanner:
    return FakePlanner(manifest=manifest or golden(), names=ALL)


def page_of(*devices: Device, manifest: Manifest | None = None, measure: bool = False) -> str:
    planner = planner_of(manifest)
    report = report_of(*devices, planner=planner)
    if measure:
        report = measured_report(report, planner, lambda number, count, one: None)
    return report_html(report, planner)


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(LARGE, SMALL, MICRO, AS_FOUND, measure=True)


@pytest.fixture(scope="module")
def tree(page: str) -> Node:
    return Tree(page).root


# --- one safe file ---


def test_the_page_is_well_formed_and_says_what_it_is(page: str, tree: Node) -> None:
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert [node.words() for node in tree.all("h1")] == ["tiny"]
    assert next(tree.all("title")).text == "tiny: what training takes on a device"


def test_nothing_is_fetched_from_anywhere(page: str, tree: Node) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace(SCRIPT, ""))
    for name in ("src", "srcset", "data", "action", "ping"):
        assert not [node for node in _every(tree) if name in node.attributes]
    links = [node.attributes["href"] for node in _every(tree) if "href" in node.attributes]
    assert all(link.startswith("#") or link == "data:," for link in links)


def test_the_only_script_that_may_run_is_the_reports_own(tree: Node) -> None:
    (policy,) = [node.attributes["content"] for node in tree.all("meta", http_equiv="Content-Security-Policy")]
    run = [node for node in tree.all("script") if node.attributes.get("type") != "application/json"]
    assert [node.text for node in run] == [SCRIPT]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not [name for node in _every(tree) for name in node.attributes if name.startswith("on")]


def test_every_link_inside_the_page_leads_somewhere_and_no_id_is_there_twice(tree: Node) -> None:
    ids = [node.attributes["id"] for node in _every(tree) if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    named = [node.attributes["href"] for node in tree.all("a")]
    named += [
        f"#{name}" for node in _every(tree) for key in _REFERRING for name in node.attributes.get(key, "").split()
    ]
    assert len(named) > 20
    assert {name.removeprefix("#") for name in named} <= set(ids)


_REFERRING = ("aria-labelledby", "aria-describedby", "for", "data-plans")


def _every(node: Node) -> Iterator[Node]:
    for child in node.children:
        yield child
        yield from _every(child)


def test_names_of_strangers_are_shown_as_text() -> None:
    manifest = golden()
    blocks = tuple(replace(block, name=f"b{number}{_HOSTILE}") for number, block in enumerate(manifest.blocks))
    hostile = replace(manifest, name=_HOSTILE, blocks=blocks)
    tree = Tree(page_of(replace(LARGE, name=_HOSTILE), SMALL, manifest=hostile)).root
    assert len(list(tree.all("script"))) == 2
    assert next(tree.all("h1")).words() == _HOSTILE
    assert f"b1{_HOSTILE}" in [node.text for node in tree.all("th")]
    assert any(node.words().startswith(_HOSTILE) for node in tree.all("h3"))


def test_data_inside_a_script_element_cannot_end_it() -> None:
    page = page_of(replace(LARGE, id="a</script><b>"), SMALL)
    (data,) = [node.text for node in Tree(page).root.all("script", id="budgets")]
    assert "<" not in data
    assert "a</script><b>" in json.loads(data)


def test_the_same_facts_give_the_same_bytes(page: str) -> None:
    assert page == page_of(LARGE, SMALL, MICRO, AS_FOUND, measure=True)


# --- what can be read ---


def test_every_device_has_a_panel_an_option_and_a_line_of_the_overview(tree: Node) -> None:
    names = ["pi-zero-2w", "tiny-board", "stm32h743", "pc"]
    assert [node.attributes["value"] for node in tree.all("option")] == names
    assert [node.attributes["id"] for node in tree.all("article", class_="device")] == [f"device-{n}" for n in names]
    (overview,) = tree.all("table", class_="overview")
    assert sorted(node.words().strip() for node in overview.all("a")) == sorted(names)


def test_whether_a_method_fits_is_told_without_colour(tree: Node) -> None:
    large, small = list(tree.all("table", class_="bars"))[1:]
    assert [n.text for n in large.all("span", class_="yes")] == ["✓ fits at 4"] * 4 + ["✓ fits at 1"] * 2
    assert [n.text for n in small.all("span", class_="no")] == ["✗ does not fit"] * 6
    (overview,) = tree.all("table", class_="overview")
    assert "✓ 4" in overview.words()
    assert "✗ 4.88 MiB" in overview.words()
    assert "✓ would fit: tensors alone, 3.45 KiB" in overview.words()


def test_a_bar_says_its_parts_and_they_are_as_wide_as_they_are_large() -> None:
    bar = Tree(stacked_bar(Bytes(weights=MIB, process=3 * MIB), 8 * MIB)).root
    (svg,) = bar.all("svg")
    assert svg.attributes["aria-label"] == "process 3 MiB, weights 1 MiB"
    shapes = [(node.attributes["x"], node.attributes["width"]) for node in svg.all("rect")]
    assert shapes == [("0", "375"), ("375", "125")]
    assert [node.text for node in svg.all("title")] == ["process: 3 MiB", "weights: 1 MiB"]


def test_the_budget_is_a_line_where_it_is_near_and_words_where_it_is_far() -> None:
    near = Tree(page_of(replace(LARGE, budget_bytes=6 * MIB))).root
    (panel,) = near.all("article", class_="device")
    places = {node.attributes["style"] for node in panel.all("div", class_="limit")}
    assert len(places) == 1
    assert 0 < float(places.pop().removeprefix("left:").removesuffix("%")) < 100
    far = next(Tree(page_of(replace(LARGE, budget_bytes=8_000_000_000))).root.all("article", class_="device"))
    assert list(far.all("div", class_="limit")) == []
    assert re.search(r"The budget is [\d.]+ times the longest bar", far.words())


def test_a_bar_that_dwarfs_the_others_is_cut_and_said_to_be() -> None:
    report = report_of(LARGE, planner=planner_of())
    sizes = [row.planned_bytes for row in report.least]
    assert chart_bytes(report.least) == max(size for size in sizes if size and size < 10 * MIB)
    tree = Tree(report_html(report, planner_of())).root
    (least,) = tree.all("section", id="least")
    assert len(list(least.all("div", class_="torn"))) == 2
    assert "A bar with a torn end is longer than the chart." in least.words()


def test_measured_stands_beside_planned(tree: Node) -> None:
    large = next(tree.all("article", class_="device"))
    assert len(list(large.all("div", class_="at"))) == 6
    assert "2.47 MiB (×0.50)" in large.words()
    assert "Measured for each byte planned" in tree.words()
    assert "Measured for each byte planned" not in Tree(page_of(LARGE)).root.words()


def test_what_took_more_than_the_budget_is_marked_everywhere() -> None:
    planner = FakePlanner(names=("sweep", "bp"), greedy=("bp", "sweep"))
    report = measured_report(report_of(LARGE, SMALL, planner=planner), planner, lambda number, count, one: None)
    tree = Tree(report_html(report, planner)).root
    assert [node.text for node in tree.all("span", class_="no")].count("✗ measured over") == 4
    assert "✗ took 362 MiB" in tree.words()
    assert "0 of 2" in tree.words()
    assert "✓ fits" not in tree.words()


def test_who_wins_in_bytes_is_said_and_without_baselines_how_to_get_them(tree: Node) -> None:
    assert "fewest bytes: bp (4.88 MiB) and sweep (4.88 MiB) alike." in tree.words()
    without = FakePlanner()
    words = Tree(report_html(report_of(LARGE, planner=without), without)).root.words()
    assert "`edgeff export --baselines` adds back-propagation's rows." in words
    assert "fewest bytes:" not in words


def test_a_microcontroller_has_its_sentence_and_no_bars(tree: Node) -> None:
    panel = next(node for node in tree.all("article", class_="device") if node.attributes["id"] == "device-stm32h743")
    assert "tensors alone (3.45 KiB at micro-batch 1) would fit; onnxruntime does not run on STM32H743" in panel.words()
    assert list(panel.all("svg")) == []


# --- plans ---


def test_devices_with_one_plan_share_its_card_and_the_cards_stand_as_the_methods_do() -> None:
    report = report_of(LARGE, replace(LARGE, id="another", budget_bytes=300_000_000), SMALL, planner=planner_of())
    cards, ids = cards_of(report)
    assert ids[0] == ids[1]
    assert not set(ids[0]) & set(ids[2])
    order = [ALL.index(card.row.method) for card in cards]
    assert order == sorted(order)
    where = {card.id: number for number, card in enumerate(cards)}
    assert [where[name] for name in ids[2]] == sorted(where[name] for name in ids[2])


def test_a_budget_that_is_near_makes_a_card_of_its_own() -> None:
    report = report_of(LARGE, replace(LARGE, id="near", budget_bytes=6 * MIB), planner=planner_of())
    cards, ids = cards_of(report)
    assert ids[0][0] != ids[1][0]
    limits = {card.id: card.limit for card in cards}
    assert (limits[ids[0][0]], limits[ids[1][0]]) == (None, 6 * MIB)


def test_each_devices_block_budgets_are_there_for_the_card_that_it_shares() -> None:
    other = replace(LARGE, id="another", budget_bytes=300_000_000)
    (data,) = [node.text for node in Tree(page_of(LARGE, other)).root.all("script", id="budgets")]
    budgets = json.loads(data)
    assert budgets["pi-zero-2w"].keys() == budgets["another"].keys()
    assert budgets["pi-zero-2w"]["plan-1"] == ["176 MiB", "176 MiB"]
    assert budgets["another"]["plan-1"] == ["281 MiB", "281 MiB"]


def test_a_timeline_can_be_read_by_keyboard_and_by_title(tree: Node) -> None:
    pictures = list(tree.all("svg", class_="timeline"))
    assert pictures
    for svg in pictures:
        bars = list(svg.all("g", class_="bar"))
        titles = [node.text for bar in bars for node in bar.all("title")]
        assert len(titles) == len(bars) == int(svg.attributes["aria-valuemax"])
        assert svg.attributes["aria-valuetext"] == titles[0]
        assert (svg.attributes["tabindex"], svg.attributes["role"]) == ("0", "slider")
        assert re.fullmatch(
            r"conv1 \w+ of \d rows: ~[\d.]+ ms, [\d.]+ MiB resident \+ [\d.]+ \w+ inside = .+", titles[0]
        )


def test_what_has_no_timeline_has_its_blocks_all_the_same(tree: Node) -> None:
    card = next(node for node in tree.all("article", class_="plan") if "mezo" in node.words())
    assert list(card.all("svg")) == []
    assert [node.words().strip() for node in card.all("th", scope="row")] == ["conv1", "head"]


def test_a_card_of_what_does_not_fit_says_why(tree: Node) -> None:
    reasons = [node.text for node in tree.all("p", class_="why")]
    assert len(reasons) == 6
    assert all(reason.startswith("the run needs ") for reason in reasons)


def test_a_card_says_what_its_method_is_and_what_its_bars_stand_for() -> None:
    planner = planner_of()
    report = report_of(LARGE, planner=planner)
    words = Tree(report_html(report, planner)).root.words()
    assert "what sweep is" in words
    assert "Too many to draw" not in words
    made = planner.timeline("bp+accumulation", planner.plan("bp+accumulation", None))
    assert made is not None
    (stretch,) = made.stretches
    joined = replace(stretch, bars=(replace(stretch.bars[0], runs=9), *stretch.bars[1:]))
    left_out = replace(stretch, bars=(replace(stretch.bars[0], runs=9, micro_batches=3), *stretch.bars[1:]))
    notes = []
    for each in (joined, left_out):
        line = replace(made, stretches=(each,), runs=made.runs + 8)
        fixed = FixedTimeline(names=ALL, fixed=line)
        notes.append(Tree(report_html(report, fixed)).root.words())
    assert ["Too many to draw: alike ones are drawn as one." in note for note in notes] == [True, False]
    assert "alike ones are drawn as one, and the micro-batches between the first and the last (dashed)" in notes[1]


@dataclass(frozen=True)
class FixedTimeline(FakePlanner):
    """The same picture for every plan."""

    fixed: Timeline | None = None

    def timeline(self, method: str, plan: Plan) -> Timeline | None:
        return self.fixed


def test_bars_of_a_timeline_are_as_wide_as_they_take_time() -> None:
    planner = planner_of()
    made = planner.timeline("bp+accumulation", planner.plan("bp+accumulation", None))
    assert made is not None
    found = placed(made)
    assert sum(one.width for one in found) == pytest.approx(1)
    for one, following in pairwise(found):
        assert following.start == pytest.approx(one.start + one.width)
    for one in found:
        assert one.width == pytest.approx(one.bar.seconds / made.seconds)


def test_micro_batches_that_are_left_out_take_a_fifth_of_the_width_at_most() -> None:
    planner = planner_of()
    made = planner.timeline("bp+accumulation", planner.plan("bp+accumulation", None))
    assert made is not None
    (stretch,) = made.stretches
    bars = (replace(stretch.bars[0], micro_batches=50, seconds=100.0), *stretch.bars[1:])
    found = placed(replace(made, stretches=(replace(stretch, bars=bars),)))
    assert found[0].width == pytest.approx(0.2)
    assert sum(one.width for one in found) == pytest.approx(1)


@pytest.mark.parametrize("top", [1, 3, 1000, 5 * MIB, 7 * MIB - 1, 2**40])
def test_an_axis_has_one_to_four_round_numbers_below_its_top(top: int) -> None:
    found = ticks(top)
    assert 1 <= len(found) <= 4
    assert found[-1] <= top
    assert found[0] & (found[0] - 1) == 0


# --- markup ---


def test_texts_and_attributes_are_escaped_and_elements_are_not() -> None:
    made = element("p", "<i>", element("b", "&"), title='"<', data_n=1.50)
    assert made == '<p title="&quot;&lt;" data-n="1.5">&lt;i&gt;<b>&amp;</b></p>'
    assert join(made, "<") == f"{made}&lt;"


def test_a_report_without_devices_that_can_be_planned_for_is_a_page_too() -> None:
    planner = planner_of()
    report: Report = report_of(MICRO, planner=planner)
    tree = Tree(report_html(report, planner)).root
    assert "0 of 0" in tree.words()
    assert list(tree.all("article", class_="plan")) == []
