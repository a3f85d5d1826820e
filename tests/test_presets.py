from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeff.errors import ModelError
from edgeff.model import Source
from edgeff.presets import PRESETS, build_source, load_factory, preset


def _parameters(name: str, **options: object) -> int:
    return sum(parameter.numel() for parameter in preset(name, **options).parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "vgg8"])
def test_every_preset_predicts_and_treats_rows_one_by_one(name: str) -> None:
    network = preset(name, width=0.5).eval()
    x = torch.randn(3, *network.input_shape)
    together = network(x)
    assert together.shape == (3, len(network.classes))
    torch.testing.assert_close(together[:1], network(x[:1]), atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def test_the_presets_have_the_sizes_they_are_documented_with() -> None:
    assert 30_000 < _parameters("har-cnn") < 60_000
    assert _parameters("ecg-cnn") < 20_000
    assert 80_000 < _parameters("kws-dscnn") < 120_000
    assert _parameters("image-cnn") < 250_000
    assert len(preset("mlp").blocks) == 3


def test_vgg8_has_six_convolutions_with_the_documented_channels() -> None:
    network = preset("vgg8")
    assert [block.handover_shape for block in network.sequence] == [
        (128, 32, 32),
        (256, 16, 16),
        (256, 16, 16),
        (512, 8, 8),
        (512, 8, 8),
        (512, 4, 4),
    ]


@pytest.mark.parametrize(("name", "shape"), [("image-cnn", (3, 32, 32)), ("har-cnn", (3, 100)), ("mlp", (6, 20))])
def test_presets_take_other_shapes_and_classes(name: str, shape: tuple[int, ...]) -> None:
    network = preset(name, input_shape=shape, classes=["a", "b", "c"], width=0.25)
    assert network.classes == ("a", "b", "c")
    assert network(torch.randn(2, *shape)).shape == (2, 3)


def test_width_scales_channels_in_fours() -> None:
    assert preset("har-cnn", width=0.3).sequence[0].handover_shape == (8, 128)
    assert preset("har-cnn", width=0.01).sequence[0].handover_shape == (4, 128)
    assert preset("har-cnn", width=2).sequence[0].handover_shape == (64, 128)


def test_a_seed_decides_the_weights_and_torchs_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (preset("ecg-cnn", seed=seed).tensors() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["block1.transform.0.weight"], other["block1.transform.0.weight"])


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("har-cn", {}, "unknown preset `har-cn`", "did you mean `har-cnn`"),
        ("zzz", {}, "unknown preset `zzz`", "known: har-cnn, "),
        ("har-cnn", {"width": 0.0}, "preset `har-cnn` needs a positive width, got 0.0", ""),
        ("har-cnn", {"input_shape": (128,)}, r"takes rows of shape \(channels, time\), got \(128,\)", ""),
        ("mlp", {"input_shape": ()}, r"at least one number, each at least 1, got \(\)", ""),
        ("vgg8", {"input_shape": (3, 4, 4), "width": 0.1}, "block `block6`: the transform fails on rows", ""),
    ],
)
def test_presets_that_cannot_be_made_are_refused(
    name: str, options: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        preset(name, **options)  # type: ignore[arg-type]
    assert hint in caught.value.hint


_FACTORY = """
from torch import nn
from edgeff.model import LocalBlock, LocalNetwork

def tiny(hidden=4):
    return LocalNetwork([LocalBlock(nn.Linear(3, hidden))], input_shape=(3,), classes=2)

def fails():
    raise KeyError("oh")

def nothing():
    return None

def broken():
    return LocalNetwork([], input_shape=(3,), classes=2)
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(_FACTORY)
    return str(path)


def test_a_factory_file_gives_a_network_that_knows_its_source(factory: str) -> None:
    network = load_factory(f"{factory}:tiny", arguments={"hidden": 8})
    assert network.sequence[0].handover_shape == (8,)
    assert network.source == Source("factory", f"{factory}:tiny", {"hidden": 8})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{file}", "is not of the form `path/to/file.py:function`"),
        ("{file}:not a name", "is not of the form"),
        ("{file}x:tiny", "no file `.*minex?.pyx`"),
        ("{file}:huge", "has no function `huge`"),
        ("{file}:fails", "failed: KeyError: 'oh'"),
        ("{file}:nothing", "must return a `LocalNetwork`, got `NoneType`"),
        ("{file}:broken", "at least one block, got none"),
    ],
)
def test_factories_that_give_no_network_are_refused(factory: str, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_factory(spec.format(file=factory))


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("import own_layers", ""),
        ("from own_layers import Layer", ""),
        ("from own_layers.parts import Layer", "own_layers/"),
    ],
)
def test_a_file_that_imports_its_neighbour_is_refused_for_the_run_would_not_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, folder: str
) -> None:
    layers = tmp_path / (f"{folder}parts.py" if folder else "own_layers.py")
    layers.parent.mkdir(exist_ok=True)
    layers.write_text("import torch\nclass Layer(torch.nn.ReLU): pass\n")
    model = tmp_path / "model.py"
    model.write_text(
        f"from torch import nn\nfrom edgeff.presets import preset\n{line}\ndef f(): return preset('har-cnn')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m edgeff` has the current folder
    with pytest.raises(ModelError, match=r"model.py` imports `own_layers`, which lies beside it") as caught:
        load_factory(f"{model}:f")
    for name in [name for name in sys.modules if name.startswith("own_layers")]:
        del sys.modules[name]
    assert "install them as a package" in caught.value.hint
    model.write_text(model.read_text().replace(line, ""))
    assert load_factory(f"{model}:f").name == "har-cnn"


def test_a_file_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("1/0")
    with pytest.raises(ModelError, match="cannot be imported: ZeroDivisionError"):
        load_factory(f"{path}:f")
    path.write_text("import no_such_layers")
    with pytest.raises(ModelError, match="ModuleNotFoundError: No module named 'no_such_layers'") as caught:
        load_factory(f"{path}:f")
    assert "the file is copied into the run by itself" in caught.value.hint
    path = tmp_path / "words.txt"
    path.write_text("hello")
    with pytest.raises(ModelError, match="is not a Python file"):
        load_factory(f"{path}:f")


def test_a_source_builds_the_same_network_again(factory: str) -> None:
    network = preset("ecg-cnn", classes=["n", "v"], seed=3).regroup("2-layer", "all").regroup("1-layer")
    assert network.source is not None
    again = build_source(network.source)
    assert again.source == network.source
    assert again.describe() == network.describe()
    assert all(torch.equal(value, again.tensors()[key]) for key, value in network.tensors().items())
    assert build_source(Source("factory", f"{factory}:tiny")).sequence[0].handover_shape == (4,)
