"""Networks by name, all from the same parts: `preset("har-cnn", classes=6)`; or from a user's file, `load_factory`.

They are small on purpose, take any input shape of their kind, and use no batch norm.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from edgeff.errors import ModelError, did_you_mean
from edgeff.goodness import largest_divisor
from edgeff.model import Block, LocalNetwork, Source
from edgeff.rule import LocalRule, Setting

Shape = tuple[int, ...]
BlockBuilder = Callable[[Shape, float, LocalRule, int], list[Block]]


@dataclass(frozen=True)
class Preset:
    """A builder of blocks.

    Attributes:
        purpose: One line for people.
        input_shape: Of a row, where the user gives none.
        axes: What each axis of a row is, for messages.
        classes: How many, where the user gives none.
        blocks: `(input_shape, width, rule, classes)` -> blocks.
    """

    purpose: str
    input_shape: Shape
    axes: tuple[str, ...]
    classes: int
    blocks: BlockBuilder


def _channels(count: int, width: float) -> int:
    """Scaled to a multiple of 4, at least 4."""
    return max(4, 4 * round(count * width / 4))


def _signal_cnn(plan: Sequence[tuple[int, int, int]]) -> BlockBuilder:
    """Blocks of Conv1d, ReLU and max-pooling; `plan` has (channels, kernel, pool) of each."""

    def build(input_shape: Shape, width: float, rule: LocalRule, classes: int) -> list[Block]:
        incoming, labels, blocks = input_shape[0], rule.label_channels(classes), []
        for number, (channels, kernel, pool) in enumerate(plan):
            outgoing = _channels(channels, width)
            layers: list[nn.Module] = [nn.Conv1d(incoming + labels, outgoing, kernel, padding=kernel // 2), nn.ReLU()]
            layers += [nn.MaxPool1d(pool)] if pool > 1 else []
            blocks.append(
                rule.block(nn.Sequential(*layers), number=number, classes=classes, channels=outgoing, axes=1, cells=4)
            )
            incoming = outgoing
        return list(blocks)

    return build


def _image_cnn(plan: Sequence[tuple[int, int, int]]) -> BlockBuilder:
    """Blocks of 3x3 Conv2d, ReLU and max-pooling; `plan` has (channels, pool, cells of the goodness) of each."""

    def build(input_shape: Shape, width: float, rule: LocalRule, classes: int) -> list[Block]:
        incoming, labels, blocks = input_shape[0], rule.label_channels(classes), []
        for number, (channels, pool, cells) in enumerate(plan):
            outgoing = _channels(channels, width)
            layers: list[nn.Module] = [nn.Conv2d(incoming + labels, outgoing, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(pool)] if pool > 1 else []
            blocks.append(
                rule.block(
                    nn.Sequential(*layers), number=number, classes=classes, channels=outgoing, axes=2, cells=cells
                )
            )
            incoming = outgoing
        return list(blocks)

    return build


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(largest_divisor(channels, 8), channels)


def _separable_cnn(input_shape: Shape, width: float, rule: LocalRule, classes: int) -> list[Block]:
    """A strided 10x4 convolution, then four depthwise-separable blocks (DS-CNN, Zhang et al., arXiv 1711.07128)."""
    channels, labels = _channels(64, width), rule.label_channels(classes)
    first = nn.Conv2d(input_shape[0] + labels, channels, (10, 4), stride=2, padding=(5, 1))
    transforms = [nn.Sequential(first, _norm(channels), nn.ReLU())]
    for _ in range(4):
        depthwise = nn.Conv2d(channels + labels, channels + labels, 3, padding=1, groups=channels + labels)
        transforms.append(
            nn.Sequential(
                depthwise,
                _norm(channels + labels),
                nn.ReLU(),
                nn.Conv2d(channels + labels, channels, 1),
                _norm(channels),
                nn.ReLU(),
            )
        )
    return [
        rule.block(transform, number=number, classes=classes, channels=channels, axes=2, cells=(5, 4))
        for number, transform in enumerate(transforms)
    ]


def _mlp(input_shape: Shape, width: float, rule: LocalRule, classes: int) -> list[Block]:
    """Three hidden layers; the first flattens its input."""
    hidden, labels = _channels(256, width), rule.label_channels(classes)
    numbers = math.prod((input_shape[0] + labels, *input_shape[1:]))
    first = nn.Sequential(nn.Flatten(), nn.Linear(numbers, hidden), nn.ReLU())
    rest = (nn.Sequential(nn.Linear(hidden + labels, hidden), nn.ReLU()) for _ in range(2))
    return [
        rule.block(transform, number=number, classes=classes, channels=hidden, axes=0, cells=4)
        for number, transform in enumerate((first, *rest))
    ]


PRESETS: Mapping[str, Preset] = {
    "har-cnn": Preset(
        "activity from inertial signals",
        (6, 128),
        ("channels", "time"),
        6,
        _signal_cnn([(32, 5, 1), (48, 5, 2), (64, 5, 2), (64, 5, 2)]),
    ),
    "ecg-cnn": Preset(
        "class of a heartbeat",
        (1, 140),
        ("channels", "time"),
        5,
        _signal_cnn([(16, 7, 1), (24, 7, 2), (32, 5, 1), (32, 5, 1)]),
    ),
    "kws-dscnn": Preset(
        "spoken words from log-mel frames", (1, 49, 40), ("channels", "frames", "bands"), 12, _separable_cnn
    ),
    "image-cnn": Preset(
        "small images",
        (1, 28, 28),
        ("channels", "height", "width"),
        10,
        _image_cnn([(32, 1, 7), (64, 2, 7), (64, 1, 7), (96, 2, 7)]),
    ),
    "vgg8": Preset(
        "colour images of 32x32",
        (3, 32, 32),
        ("channels", "height", "width"),
        10,
        _image_cnn([(128, 1, 4), (256, 2, 4), (256, 1, 4), (512, 2, 4), (512, 1, 4), (512, 2, 2)]),
    ),
    "cifar-cnn": Preset(
        "colour images of 32x32, halved early: as deep as vgg8 at a quarter of its work",
        (3, 32, 32),
        ("channels", "height", "width"),
        10,
        _image_cnn([(64, 2, 4), (64, 1, 4), (128, 2, 4), (128, 1, 4), (256, 2, 4), (256, 1, 2)]),
    ),
    "mlp": Preset("any row, flattened", (784,), (), 10, _mlp),
}


def preset(
    name: str,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | Sequence[str] | None = None,
    width: float = 1.0,
    rule: LocalRule | Mapping[str, Setting] | None = None,
    seed: int = 0,
) -> LocalNetwork:
    """A network by name.

    Args:
        name: One of `PRESETS`.
        input_shape: One row after preprocessing, channels first; None for the preset's own.
        classes: Names or how many; None for the preset's own number.
        width: Factor on the number of channels (or hidden units), which stay multiples of 4.
        rule: What its blocks learn from, or the settings of `LocalRule` that differ from its defaults.
        seed: Of the initial weights; torch's own generator is left alone.

    Raises:
        ModelError: Unknown name, a shape that does not fit, or a width that is not positive.
    """
    if name not in PRESETS:
        raise ModelError(f"unknown preset `{name}`", hint=did_you_mean(name, PRESETS))
    if not 0.0 < width < math.inf:
        raise ModelError(f"preset `{name}` needs a positive width, got {width}")
    chosen = PRESETS[name]
    shape = tuple(chosen.input_shape if input_shape is None else input_shape)
    labels = chosen.classes if classes is None else classes
    rule = rule if isinstance(rule, LocalRule) else LocalRule.from_dict(rule or {})
    _check_shape(name, shape)
    arguments = {
        "input_shape": list(shape),
        "classes": labels if isinstance(labels, int) else list(labels),
        "width": width,
        "seed": seed,
        # Only where it says something: runs from before there were rules are built as they were.
        **({"rule": rule.as_dict()} if rule.as_dict() else {}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = chosen.blocks(shape, width, rule, labels if isinstance(labels, int) else len(labels))
        if rule.super_class_blocks >= len(blocks):
            raise ModelError(
                f"with `super_class_blocks={rule.super_class_blocks}` no block of preset `{name}` learns the classes",
                hint=f"it has {len(blocks)} blocks: give it at most {len(blocks) - 1}",
            )
        return LocalNetwork(
            blocks,
            input_shape=shape,
            classes=labels,
            name=name,
            source=Source(kind="preset", name=name, arguments=arguments),
        )


def _check_shape(name: str, shape: Shape) -> None:
    axes = PRESETS[name].axes
    if axes and len(shape) != len(axes):
        raise ModelError(f"preset `{name}` takes rows of shape ({', '.join(axes)}), got {shape}")
    if not shape or min(shape) < 1:
        raise ModelError(f"preset `{name}` needs an input shape of at least one number, each at least 1, got {shape}")


def load_factory(spec: str, *, arguments: Mapping[str, object] | None = None) -> LocalNetwork:
    """Import a user's Python file and call a function of it that returns a network. This runs the file.

    Args:
        spec: `path/to/file.py:function`.
        arguments: Keyword arguments of the call.

    Raises:
        ModelError: A spec of another form, no such file or function, code that raises, or another return value.
    """
    file, separator, function = spec.rpartition(":")
    if not separator or not function.isidentifier():
        raise ModelError(f"`{spec}` is not of the form `path/to/file.py:function`")
    factory = getattr(_import_file(Path(file)), function, None)
    if not callable(factory):
        raise ModelError(f"`{file}` has no function `{function}`")
    try:
        network = factory(**(arguments or {}))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"`{spec}` failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, LocalNetwork):
        raise ModelError(f"`{spec}` must return a `LocalNetwork`, got `{type(network).__name__}`")
    network.source = Source(kind="factory", name=spec, arguments=dict(arguments or {}))
    return network


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"no file `{path}`", hint="give the path to a Python file and a function in it")
    spec = importlib.util.spec_from_file_location(f"edgeff_factory_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ModelError(f"`{path}` is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(f"`{path}` cannot be imported: ModuleNotFoundError: {error}", hint=_BY_ITSELF) from error
    except Exception as error:
        raise ModelError(f"`{path}` cannot be imported: {type(error).__name__}: {error}") from error
    neighbour = _neighbour(path, module)
    if neighbour:
        raise ModelError(f"`{path}` imports `{neighbour}`, which lies beside it", hint=_BY_ITSELF)
    return module


# A run without it would be exported as another network once it was changed.
_BY_ITSELF = "the file is copied into the run by itself: keep your layers in it, or install them as a package"


def _neighbour(path: Path, module: ModuleType) -> str:
    """A module or package in the file's own folder that the file took something from; empty for none."""
    folder = path.resolve().parent
    values = list(vars(module).values())
    names = {value.__name__ for value in values if isinstance(value, ModuleType)}
    names |= {str(getattr(value, "__module__", "")) for value in values}
    for name in sorted({name.partition(".")[0] for name in names} - {"", "edgeff", module.__name__}):
        found = sys.modules.get(name)
        places = [getattr(found, "__file__", None), *getattr(found, "__path__", [])]
        if any(place and Path(place).resolve().parent == folder for place in places):
            return name
    return ""


def build_source(source: Source) -> LocalNetwork:
    """Build a network again from where it came, with fresh weights.

    Raises:
        ModelError: As `preset` and `load_factory`.
    """
    if source.kind == "factory":
        network = load_factory(source.name, arguments=source.arguments)
    else:
        network = preset(source.name, **source.arguments)
    for layers, losses in source.regroups:
        network = network.regroup(layers, losses)
    network.source = source
    return network
