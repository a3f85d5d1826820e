"""The docs are true: every example runs and prints what stands there, every option and every link exists."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from torch import Tensor, nn

from edgeff.cli import COMMANDS, main
from edgeff.errors import EdgeffError
from edgeff.export.check import check_block
from edgeff.export.graphs import compile_block
from edgeff.goodness import PooledGoodness
from edgeff.model import LocalBlock, LocalNetwork
from edgeff.optimizer import optimizer_spec
from edgeff.presets import load_factory

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "examples").glob("*/*.md")])


def _regenerate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("regenerate", DOCS / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["regenerate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


docs = _regenerate()


# --- examples ---------------------------------------------------------------------------------------------------------


def _compare(page: Path, work: Path, *, slow: bool = False) -> None:
    ran = 0
    for found in docs.run_page(page.read_text(), work, slow=slow):
        ran += 1
        if "exact" in found.fence.words:
            assert list(found.lines) == list(found.fence.lines)
        else:
            assert docs.masked(found.lines) == docs.masked(found.fence.lines)
    assert ran > 0


@pytest.mark.parametrize("page", docs.EXAMPLES, ids=lambda page: page.name)
def test_every_example_of_a_page_prints_what_stands_there(page: Path, tmp_path: Path, device_python: Path) -> None:
    _compare(page, tmp_path)


@pytest.mark.slow
def test_the_fashion_mnist_section_prints_what_stands_there(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFF_DATA_DIR", str(data_dir))
    _compare(DOCS / "guide.md", tmp_path, slow=True)


@pytest.mark.parametrize("page", docs.EXAMPLES, ids=lambda page: page.name)
def test_blocks_that_are_not_run_stand_only_where_environments_are_made(page: Path) -> None:
    heading = ""
    still = {"sh": {"## Install", "## Try it"}}
    text = page.read_text()
    lines = text.splitlines()
    for fence in docs.fences(text):
        heading = next(line for line in reversed(lines[: fence.first]) if line.startswith("## ") or fence.first < 3)
        kind = fence.words[0] if fence.words else ""
        assert kind in ("console", "python", "text", "sh", ""), f"{page.name}: a block of kind `{kind}`"
        assert heading in still.get(kind, {heading}), f"{page.name}: `sh` under {heading}"
        assert not (kind == "" and any(line.startswith(("$ ", "edgeff ")) for line in fence.lines))


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(docs.ExampleError, match="ended with 3"):
        list(docs.run_page("```console\n$ exit 3\n```\n", tmp_path))


def test_a_command_that_should_fail_and_does_not_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(docs.ExampleError, match="ended with 0"):
        list(docs.run_page("```console fails\n$ true\n```\n", tmp_path))


def test_outputs_are_pasted_below_their_commands(tmp_path: Path) -> None:
    text = "a\n```console\n$ echo one \\\n  two\nold\n$ echo 3\n```\n```python\nprint(4)\n```\n```text\n```\nb\n"
    new = docs.with_outputs(text, list(docs.run_page(text, tmp_path)))
    assert new == (
        "a\n```console\n$ echo one \\\n  two\none two\n$ echo 3\n3\n```\n```python\nprint(4)\n```\n```text\n4\n```\nb\n"
    )


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("accuracy 0.91, 7 MiB", "accuracy 1.0000, 6,900 KiB", True),
        ("kept the weights of epoch 4", "kept the weights it came with", False),
        ("error: 1.2e-07", "error: 9e-6", True),
        ("---  ----  a", "----  --   a", True),
    ],
)
def test_only_numbers_and_widths_are_masked(one: str, other: str, alike: bool) -> None:
    assert (docs.masked((one,)) == docs.masked((other,))) is alike


# --- commands, links, copies ------------------------------------------------------------------------------------------


def test_the_page_of_commands_is_current() -> None:
    assert docs.COMMANDS.read_text() == docs.commands_page(), "run `.venv/bin/python docs/regenerate.py`"


def test_every_option_stands_in_the_page_of_commands() -> None:
    page = docs.COMMANDS.read_text()
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        section = page.split(f"## edgeff {name}\n")[1].split("\n## ")[0]
        missing = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        assert [option for option in missing if option not in section] == []


def _slug(heading: str) -> str:
    words = re.sub(r"[`*\[\]]", "", heading.lstrip("#").strip().lower())
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    return {_slug(line) for line in page.read_text().splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_guides_model_is_the_one_in_examples() -> None:
    fence = next(fence for fence in docs.fences((DOCS / "guide.md").read_text()) if fence.option("file") == "model.py")
    assert "\n".join(fence.lines) + "\n" == (ROOT / "examples" / "own_model.py").read_text()


def test_the_example_of_an_own_model_builds() -> None:
    network = load_factory(f"{ROOT / 'examples' / 'own_model.py'}:build")
    assert [block.handover_shape for block in network.sequence] == [(16, 32), (24, 16), (32, 8)]


# --- layers -----------------------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner = kind(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


Shape = tuple[int, ...]
Layer = tuple[Callable[[], nn.Module], Shape]
FLAT, SIGNAL, IMAGE, VOLUME, TOKENS, WORDS = (12,), (8, 16), (4, 8, 8), (2, 4, 4, 4), (6, 8), (6,)


def _after_linear(layer: Callable[[], nn.Module]) -> Layer:
    return lambda: nn.Sequential(nn.Linear(12, 8), layer()), FLAT


def _in_signal(layer: Callable[[], nn.Module]) -> Layer:
    return lambda: nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), layer()), SIGNAL


def _in_image(layer: Callable[[], nn.Module]) -> Layer:
    return lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), layer()), IMAGE


_PLAIN = (
    "ReLU LeakyReLU PReLU ReLU6 ELU SELU CELU GELU GLU SiLU Mish Sigmoid Tanh Hardtanh Hardswish Hardsigmoid Softplus "
    "Softsign LogSigmoid Tanhshrink"
)
LAYERS: dict[str, Layer] = {
    "Linear": (lambda: nn.Linear(12, 8), FLAT),
    "Embedding": (lambda: nn.Embedding(11, 8), WORDS),
    "Conv1d": (lambda: nn.Conv1d(8, 8, 3, stride=2, padding=1, groups=8), SIGNAL),
    "Conv2d": (lambda: nn.Conv2d(4, 8, 3, dilation=2, groups=2), IMAGE),
    "Conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Flatten(2)), VOLUME),
    **{name: _in_signal(lambda name=name: getattr(nn, name)(2)) for name in ("MaxPool1d", "AvgPool1d")},
    **{name: _in_signal(lambda name=name: getattr(nn, name)(2)) for name in ("AdaptiveAvgPool1d", "AdaptiveMaxPool1d")},
    **{name: _in_image(lambda name=name: getattr(nn, name)(2)) for name in ("MaxPool2d", "AvgPool2d")},
    **{name: _in_image(lambda name=name: getattr(nn, name)(2)) for name in ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d")},
    **{
        name: _in_image(lambda name=name: getattr(nn, name)(2))
        for name in ("PixelShuffle", "PixelUnshuffle", "ZeroPad2d")
    },
    "LPPool2d": _in_image(lambda: nn.LPPool2d(2, 2)),
    "GroupNorm": _in_signal(lambda: nn.GroupNorm(2, 8)),
    "LayerNorm": _in_signal(lambda: nn.LayerNorm(16)),
    "RMSNorm": _in_signal(lambda: nn.RMSNorm(16)),
    "LocalResponseNorm": _in_signal(lambda: nn.LocalResponseNorm(2)),
    **{name: _after_linear(lambda name=name: getattr(nn, name)()) for name in _PLAIN.split()},
    **{name: _after_linear(lambda name=name: getattr(nn, name)(dim=1)) for name in ("Softmax", "LogSoftmax")},
    "MultiheadAttention": (_Attention, TOKENS),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), TOKENS),
    **{name: _in_signal(lambda name=name: getattr(nn, name)(0.5)) for name in ("Dropout", "Dropout1d")},
    "Flatten": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 8)), TOKENS),
    "Unflatten": _after_linear(lambda: nn.Unflatten(1, (2, 4))),
}
REFUSED: dict[str, Layer] = {
    "BatchNorm1d": _in_signal(lambda: nn.BatchNorm1d(8)),
    "InstanceNorm1d": _in_signal(lambda: nn.InstanceNorm1d(8)),
    "RNN": (lambda: _Recurrent(nn.RNN), TOKENS),
    "GRU": (lambda: _Recurrent(nn.GRU), TOKENS),
    "LSTM": (lambda: _Recurrent(nn.LSTM), TOKENS),
    "ConvTranspose2d": _in_image(lambda: nn.ConvTranspose2d(8, 8, 2, stride=2)),
    "Upsample": _in_image(lambda: nn.Upsample(scale_factor=2)),
    **{name: _in_image(lambda name=name: getattr(nn, name)(2)) for name in ("ReflectionPad2d", "ReplicationPad2d")},
    "CircularPad2d": _in_image(lambda: nn.CircularPad2d(2)),
    "Softshrink": _after_linear(nn.Softshrink),
    "Hardshrink": _after_linear(nn.Hardshrink),
}


def _listed(begin: str, end: str) -> set[str]:
    section = (DOCS / "guide.md").read_text().split(f"<!-- {begin} -->")[1].split(f"<!-- {end} -->")[0]
    return {name for name in re.findall(r"`([A-Z]\w+)`", section) if hasattr(nn, name)}


def _compile(layer: Layer) -> float:
    make, shape = layer
    tokens = shape in (TOKENS, WORDS)
    dtype = "int64" if shape == WORDS else "float32"
    goodness = PooledGoodness(layout="tokens" if tokens else "channels")
    network = LocalNetwork([LocalBlock(make(), goodness=goodness)], input_shape=shape, classes=3, input_dtype=dtype)
    block, spec = network.sequence[0], optimizer_spec("adamw")
    graphs = compile_block(block, optimizer_spec=spec, input_dtype=dtype, last=False, dropout=True)
    return check_block(block, graphs, spec=spec, input_dtype=dtype, classes=3).error


def test_the_guide_lists_the_layers_that_are_tried_here() -> None:
    assert _listed("layers", "refused") == set(LAYERS)
    assert _listed("refused", "end") - {"GroupNorm"} == set(REFUSED)


@pytest.mark.parametrize("name", LAYERS)
def test_a_listed_layer_agrees_with_autograd(name: str) -> None:
    assert _compile(LAYERS[name]) <= 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_listed_as_refused_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(EdgeffError) as caught:
        _compile(REFUSED[name])
    assert "`block1`" in str(caught.value)
    assert caught.value.hint
