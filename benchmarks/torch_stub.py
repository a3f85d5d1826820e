"""An empty `torch`: onnxruntime.training imports the real one, 230 MB, for what on-device training does not use."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class _Endless(type):
    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Anything(metaclass=_Endless):
    """Stands for any class or function of torch that is only named."""

    def __init__(self, *_: object, **__: object) -> None:
        pass


class _Stub(ModuleType):
    __version__ = "2.0.0"

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torch" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """From here on `import torch` gives the stub; ORTModule, which needs the real one, counts as not installed."""
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
    sys.modules["onnxruntime.training.ortmodule"] = None  # type: ignore[assignment, unused-ignore]
