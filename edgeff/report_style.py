"""How the HTML report looks and what its few buttons do: style and script, as they stand in the file."""

from __future__ import annotations

import base64
import hashlib

# By name: in the light, in the dark.
_COLOURS = {
    "page": ("#f6f7f9", "#0e1217"),
    "card": ("#ffffff", "#161c24"),
    "ink": ("#17202b", "#e7ecf2"),
    "soft": ("#5a6675", "#9aa7b5"),
    "line": ("#dfe4ea", "#2a3440"),
    "wash": ("#eef1f5", "#1d2530"),
    "accent": ("#1d5fd1", "#7fb0ff"),
    "good": ("#14713c", "#5fd391"),
    "bad": ("#b3261e", "#ff8f84"),
    "good-wash": ("#e6f5ec", "#12301f"),
    "bad-wash": ("#fcebe9", "#3a1a18"),
    "process": ("#b4bcc6", "#566270"),
    "graphs": ("#8f83d6", "#8a7ee0"),
    "rows": ("#c9a06c", "#b98d58"),
    "weights": ("#2f6fde", "#4a8cf7"),
    "state": ("#1d9e9b", "#27b3af"),
    "gradients": ("#e0a106", "#e3ae35"),
    "activations": ("#e0513a", "#f2705c"),
    "shadow": ("0 1px 2px #1520300f", "none"),
    "on-process": ("#17202b", "#ffffff"),
    "rule": ("#17202b22", "#ffffff26"),
    "pointed": ("#17202b1f", "#ffffff30"),
}
_RULES = """
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body {
  margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, .top, footer { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
h1, h2, h3, h4, p, dl, dd, figure { margin: 0; }
h1 { font-size: clamp(1.9rem, 4vw, 2.7rem); line-height: 1.1; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin-bottom: 4px; }
h3 { font-size: 1.15rem; } h4 { font-size: 1.05rem; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: 3px; text-decoration-thickness: 1px; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.skip { position: absolute; left: -9999px; } .skip:focus { left: 24px; top: 8px; background: var(--card);
  padding: 8px; }
.soft { color: var(--soft); } .small { font-size: .875rem; } .lead { color: var(--soft); max-width: 75ch; }
.top { display: flex; gap: 24px; align-items: flex-start; justify-content: space-between; padding-top: 40px; }
.top > div { min-width: 0; }
.eyebrow { color: var(--soft); font-size: .875rem; margin-bottom: 4px; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 8px; margin: 14px 0 0; padding: 0; list-style: none; }
.facts li { border: 1px solid var(--line); border-radius: 99px; padding: 1px 12px; font-size: .875rem;
  background: var(--card); }
button, select {
  font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 6px 12px; min-height: 40px;
}
button:hover, select:hover { border-color: var(--soft); }
button { cursor: pointer; white-space: nowrap; }
section { margin: 40px 0 0; } section > .lead { margin-bottom: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: var(--radius); padding: 20px;
  box-shadow: var(--shadow); }
.glance { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 16px; margin-top: 28px; }
.glance .label { font-size: .875rem; color: var(--soft); }
.glance .value { font-size: 1.8rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.25; }
.glance .note { font-size: .875rem; color: var(--soft); overflow-wrap: anywhere; }
.sentence { margin-top: 16px; padding: 12px 16px; border-left: 4px solid var(--accent); background: var(--card);
  border-radius: 0 8px 8px 0; }
.sentence::first-letter { text-transform: uppercase; }
.terms { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 28px; align-items: center; }
.terms dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 16px; font-size: .9375rem; }
.terms dt { font-weight: 600; } .terms dd { color: var(--soft); }
.memory { font-size: .8125rem; text-align: center; }
.memory .strip { display: grid; grid-template-columns: 34fr 38fr 28fr; border-radius: 8px; overflow: hidden;
  border: 1px solid var(--line); }
.memory .strip > * { padding: 14px 4px; }
.memory .floor { background: var(--process); color: var(--on-process); }
.memory .planned { background: var(--weights); color: #fff; }
.memory .room { background: repeating-linear-gradient(135deg, var(--wash) 0 6px, var(--card) 6px 12px); }
.memory .braces { display: grid; grid-template-columns: 34fr 66fr; margin-top: 8px; color: var(--soft); }
.memory .braces .budget { border-top: 2px solid var(--bad); padding-top: 2px; }
.memory .all { border-top: 2px solid var(--soft); margin-top: 8px; padding-top: 2px; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 0; margin: 0 0 12px; list-style: none;
  font-size: .8125rem; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 6px; }
.swatch { width: 12px; height: 12px; border-radius: 3px; background: var(--fill); flex: none; }
.swatch.budget { width: 3px; height: 16px; border-radius: 0; background: var(--ink); }
.swatch.diamond { background: var(--ink); transform: rotate(45deg) scale(.75); border-radius: 0; }
.k-process { fill: var(--process); --fill: var(--process); } .k-graphs { fill: var(--graphs); --fill: var(--graphs); }
.k-rows { fill: var(--rows); --fill: var(--rows); } .k-weights { fill: var(--weights); --fill: var(--weights); }
.k-state { fill: var(--state); --fill: var(--state); } .k-gradients { fill: var(--gradients);
  --fill: var(--gradients); }
.k-activations { fill: var(--activations); --fill: var(--activations); }
svg { display: block; width: 100%; }
rect { stroke: var(--card); stroke-width: 1px; vector-effect: non-scaling-stroke; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
thead th { font-weight: 600; color: var(--soft); font-size: .8125rem; vertical-align: bottom; }
tbody th { font-weight: 600; } tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; } caption { text-align: left; color: var(--soft); padding-bottom: 8px; }
.scroll { overflow-x: auto; }
.verdict { white-space: nowrap; font-weight: 600; }
.yes { color: var(--good); } .no { color: var(--bad); }
.chip { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: .8125rem; font-weight: 600;
  white-space: nowrap; }
.chip.yes { background: var(--good-wash); } .chip.no { background: var(--bad-wash); outline: 1px dashed var(--bad);
  outline-offset: -1px; }
.chip.mark { background: var(--wash); color: var(--ink); font-weight: 500; }
.overview td, .overview th { padding: 5px 10px 5px 0; white-space: nowrap; }
.overview tbody tr:not(.group) > th, .overview thead th:first-child { position: sticky; left: 0;
  background: var(--card); }
.overview .group th { padding-top: 16px; color: var(--soft); font-weight: 600; font-size: .8125rem; }
.overview tbody tr.picked > th, .overview tbody tr.picked > td { background: var(--wash); }
.overview .n + td:not(.n) { padding-left: 14px; }
.bars .picture + .n { padding-left: 24px; }
.picker { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin-bottom: 16px; }
.picker select { min-width: min(100%, 280px); }
.numbers { display: flex; flex-wrap: wrap; gap: 8px 32px; margin: 8px 0 16px; }
.numbers dt { font-size: .8125rem; color: var(--soft); } .numbers dd { font-size: 1.2rem; font-weight: 600; }
.bars td, .bars th { padding: 9px 14px 9px 0; }
.bars tbody th { min-width: 11.5rem; max-width: 16rem; line-height: 1.3; }
.bars .picture { position: relative; width: 42%; padding-right: 0; }
.track { position: relative; background: var(--wash); border-radius: 4px; }
.track svg { height: 24px; border-radius: 4px; overflow: hidden; }
.over { position: absolute; inset: 0 auto 0 0;
  background: repeating-linear-gradient(135deg, #0000 0 5px, var(--card) 5px 7px); }
.torn { position: absolute; inset: 0 0 0 auto; width: 14px;
  background: linear-gradient(105deg, #0000 30%, var(--card) 31% 46%, #0000 47% 62%, var(--card) 63%); }
.limit { position: absolute; top: -1px; bottom: -1px; width: 0; margin-left: -1.5px;
  border-left: 3px solid var(--ink); }
.diamond.at { position: absolute; top: 7px; width: 10px; height: 10px; margin-left: -5px; transform: rotate(45deg);
  background: var(--ink); border: 1.5px solid var(--card); }
.plans { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 20px;
  margin-top: 20px; }
.plan { min-width: 0; scroll-margin-top: 16px; }
.plan header { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; margin-bottom: 2px; }
.plot { position: relative; margin: 14px 0 0 62px; height: 200px; background: var(--wash); }
.plot svg { height: 200px; overflow: hidden; }
.tick { position: absolute; right: 100%; padding-right: 8px; transform: translateY(50%); font-size: .75rem;
  color: var(--soft); white-space: nowrap; }
.rule { position: absolute; left: 0; right: 0; border-top: 1px solid var(--rule); pointer-events: none; }
.rule.planned, .dash.planned { border-top: 2px dashed var(--ink); }
.rule.measured, .dash.measured { border-top: 2px dotted var(--ink); }
.rule.budget, .dash.budget { border-top: 3px solid var(--ink); }
.dash { width: 24px; } .legend.marks { margin: 8px 0 0 62px; }
.axis { display: flex; justify-content: space-between; margin-left: 62px; font-size: .75rem; color: var(--soft); }
.stages { position: relative; height: 18px; margin-left: 62px; font-size: .75rem; color: var(--soft); }
.stages span { position: absolute; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  text-align: center; border-left: 1px solid var(--line); padding: 0 2px; }
.area { stroke-width: 0; } .area.k-activations { fill-opacity: .6; }
.run { stroke-width: .5px; } .run.forward, .run.apply { fill-opacity: .75; }
.run.left-out { fill-opacity: .35; stroke: var(--activations); stroke-dasharray: 3 3; }
.hit { fill: transparent; stroke: none; } .bar:hover .hit, .bar.on .hit { fill: var(--pointed); }
.readout { min-height: 3em; margin-top: 6px; font-size: .8125rem; } .why { font-size: .8125rem;
  overflow-wrap: anywhere; }
details { margin-top: 10px; } summary { cursor: pointer; font-size: .875rem; color: var(--accent); padding: 6px 0; }
footer { color: var(--soft); font-size: .8125rem; padding-top: 32px; padding-bottom: 48px; overflow-wrap: anywhere; }
.js .device:not(.on), .js .plan:not(.on) { display: none; }
@media (max-width: 900px) { .terms { grid-template-columns: 1fr; } }
@media (max-width: 720px) {
  main, .top, footer { padding: 0 16px; } .top { padding-top: 24px; gap: 12px; } .card { padding: 16px; }
  .top button { padding: 6px 10px; }
  .bars, .bars tbody { display: block; } .bars thead { display: none; }
  .bars tr { display: grid; grid-template-columns: 1fr 1fr; gap: 4px 12px; padding: 12px 0;
    border-bottom: 1px solid var(--line); }
  .bars tr:last-child { border-bottom: 0; } .bars tr > * { border: 0; padding: 0; }
  .bars tbody th { min-width: 0; } .bars .picture + .n { padding: 0; }
  .bars .picture { grid-column: 1 / -1; width: auto; padding: 6px 0; }
  .bars .n { text-align: left; white-space: normal; }
  .bars .labelled::before, .bars .n:not(:empty)::before { content: attr(data-label) " "; color: var(--soft); }
  .terms dl { grid-template-columns: 1fr; gap: 0 0; } .terms dd { margin-bottom: 8px; }
}
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
@media print {
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { background: #fff; font-size: 11px; } .top button, .picker button, .readout, .skip { display: none; }
  .plans { grid-template-columns: 1fr; } .card.scroll { break-inside: auto; }
  table { font-size: 10px; } .overview td, .overview th { padding: 2px 6px 2px 0; } .chip { font-size: 9px; }
  .card, .plan { break-inside: avoid; box-shadow: none; } .scroll { overflow: visible; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; }
}
"""

SCRIPT = """
(function () {
  "use strict";
  var root = document.documentElement, all = function (query, from) {
    return Array.prototype.slice.call((from || document).querySelectorAll(query));
  };
  root.classList.add("js");

  var themes = ["system", "light", "dark"], button = document.getElementById("theme"), theme = "system";
  function paint(name) {
    theme = themes.indexOf(name) < 0 ? "system" : name;
    if (theme === "system") { root.removeAttribute("data-theme"); } else { root.setAttribute("data-theme", theme); }
    button.textContent = "Theme: " + theme;
  }
  try { paint(localStorage.getItem("edgeff-theme")); } catch (error) { paint("system"); }
  button.hidden = false;
  button.addEventListener("click", function () {
    paint(themes[(themes.indexOf(theme) + 1) % themes.length]);
    try { localStorage.setItem("edgeff-theme", theme); } catch (error) { /* a page from a file may store nothing */ }
  });

  var budgets = JSON.parse(document.getElementById("budgets").textContent), select = document.getElementById("device");
  function pick(name) {
    var panel = document.getElementById("device-" + name);
    if (!panel) { return false; }
    var shown = (panel.getAttribute("data-plans") || "").split(" ");
    all(".device").forEach(function (one) { one.classList.toggle("on", one === panel); });
    all(".plan").forEach(function (one) { one.classList.toggle("on", shown.indexOf(one.id) >= 0); });
    all(".overview tr[data-device]").forEach(function (row) {
      row.classList.toggle("picked", row.getAttribute("data-device") === name);
    });
    var known = budgets[name] || {};
    shown.forEach(function (id) {
      (known[id] || []).forEach(function (text, number) {
        var cell = document.querySelector("#" + id + " [data-budget='" + number + "']");
        if (cell) { cell.textContent = text; }
      });
    });
    select.value = name;
    return true;
  }
  function fromAddress() {
    var name = decodeURIComponent(location.hash.replace("#device-", ""));
    return location.hash.indexOf("#device-") === 0 && pick(name);
  }
  select.addEventListener("change", function () { pick(select.value); });
  all("[data-step]").forEach(function (one) {
    one.addEventListener("click", function () {
      var count = select.options.length, step = Number(one.getAttribute("data-step"));
      pick(select.options[(select.selectedIndex + step + count) % count].value);
    });
  });
  window.addEventListener("hashchange", fromAddress);
  if (!fromAddress()) { pick(select.value); }

  all("svg.timeline").forEach(function (svg) {
    var bars = all(".bar", svg), readout = svg.closest("figure").querySelector(".readout"), at = 0;
    function show(number) {
      at = Math.max(0, Math.min(bars.length - 1, number));
      bars.forEach(function (bar, other) { bar.classList.toggle("on", other === at); });
      var text = bars[at].querySelector("title").textContent;
      readout.textContent = text;
      svg.setAttribute("aria-valuenow", at + 1);
      svg.setAttribute("aria-valuetext", text);
    }
    function hide() { bars.forEach(function (bar) { bar.classList.remove("on"); }); }
    svg.addEventListener("pointerover", function (event) {
      var number = bars.indexOf(event.target.closest(".bar"));
      if (number >= 0) { show(number); }
    });
    svg.addEventListener("focus", function () { if (bars.length) { show(at); } });
    svg.addEventListener("blur", hide);
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("keydown", function (event) {
      var on = at + 1, back = at - 1, last = bars.length - 1;
      var moves = { ArrowRight: on, ArrowUp: on, ArrowLeft: back, ArrowDown: back, Home: 0, End: last };
      if (event.key in moves && bars.length) { event.preventDefault(); show(moves[event.key]); }
    });
  });
}());
"""


def css() -> str:
    """The style; paper is always light."""
    light, dark = (_variables(number) for number in (0, 1))
    return (
        f":root {{ color-scheme: light dark; {light} --radius: 12px; }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f"@media screen {{ :root[data-theme=dark] {{ color-scheme: dark; {dark} }} }}\n"
        f":root[data-theme=light] {{ color-scheme: light; }}{_RULES}"
    )


def _variables(number: int) -> str:
    return " ".join(f"--{name}: {pair[number]};" for name, pair in _COLOURS.items())


def content_policy() -> str:
    """What a browser may do with the file: no network, and no script but this one."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
