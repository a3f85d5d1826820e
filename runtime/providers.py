"""Execution providers of onnxruntime: what there are, which of them a run takes, and what they took of its graphs.

A provider runs operators on something else than the CPU, or by other kernels; what it does not take falls back to the
CPU. Only those that run float32 graphs whose weights change from run to run are of use here.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from edgeff.errors import EngineError, one_line
from edgeff.providers import AUTO, CPU

CPU_PROVIDER = "CPUExecutionProvider"
# Setting of a session that lets it tell where its nodes went, where onnxruntime knows of it.
RECORD = "session.record_ep_graph_assignment_info"


@dataclass(frozen=True)
class ProviderKind:
    """A provider.

    Attributes:
        name: Short, as the command line takes it.
        full: onnxruntime's name.
        memory: Where its tensors lie between runs, as onnxruntime names devices; `cpu` for ordinary memory.
        in_place: It runs node by node in an order that data give, so that a new value may be written over the old one.
            One that compiles a graph may drop the dependencies that make this safe.
        plugin: Package that brings it as a library of its own.
        refusal: Why nothing can be trained on it.
    """

    name: str
    full: str
    memory: str = CPU
    in_place: bool = True
    plugin: str | None = None
    refusal: str | None = None


_INFERENCE = "it runs quantised inference with constant weights: nothing can be trained on it"
_COMPILES = "it builds an engine around constant weights: nothing can be trained on it"
KINDS: Mapping[str, ProviderKind] = {
    kind.name: kind
    for kind in (
        ProviderKind(CPU, CPU_PROVIDER),
        ProviderKind("cuda", "CUDAExecutionProvider", memory="cuda"),
        ProviderKind("webgpu", "WebGpuExecutionProvider", memory="webgpu", plugin="onnxruntime_ep_webgpu"),
        ProviderKind("coreml", "CoreMLExecutionProvider", in_place=False),
        ProviderKind("openvino", "OpenVINOExecutionProvider", in_place=False),
        ProviderKind("xnnpack", "XnnpackExecutionProvider"),
        ProviderKind("qnn", "QNNExecutionProvider", refusal=_INFERENCE),
        ProviderKind("nnapi", "NnapiExecutionProvider", refusal="Android gave it up, and it wants constant weights"),
        ProviderKind("vsinpu", "VSINPUExecutionProvider", refusal=_INFERENCE),
        ProviderKind("rknpu", "RknpuExecutionProvider", refusal=_INFERENCE),
        ProviderKind("vitisai", "VitisAIExecutionProvider", refusal=_INFERENCE),
        ProviderKind("tensorrt", "TensorrtExecutionProvider", refusal=_COMPILES),
    )
}


@dataclass(frozen=True)
class Placement:
    """What of a graph ran where.

    Attributes:
        nodes: How many of its nodes each provider took, by onnxruntime's name, once onnxruntime had joined some.
        fallback: Operators of the nodes that fell back to the CPU, with how many of each.
    """

    nodes: Mapping[str, int]
    fallback: Mapping[str, int] = field(default_factory=dict)


def choose(asked: str, module: Any, profile: Sequence[tuple[str, str]] = ()) -> ProviderKind:
    """The provider of a run.

    Args:
        asked: A name of `edgeff.providers`; `auto` for the first of the profile's that is proven to train and is there.
        module: onnxruntime.
        profile: onnxruntime's names of the device's providers, best first, each with `yes`, `untested` or `no`.

    Raises:
        EngineError: It is not there, or nothing can be trained on it; names those that are there.
    """
    there = available(module)
    if asked == AUTO:
        proven = [full for full, training in profile if training == "yes"]
        wanted = (KINDS[name] for full in proven for name in there if KINDS[name].full == full)
        return next((kind for kind in wanted if _finds_devices(kind, module)), KINDS[CPU])
    kind = KINDS[asked]
    listed = f"this onnxruntime has: {', '.join(there)}"
    if kind.refusal is not None:
        raise EngineError(f"the provider `{asked}` is refused: {kind.refusal}", hint=listed)
    if asked not in there:
        raise EngineError(
            f"this onnxruntime {module.__version__} has no provider `{asked}`; it has: {', '.join(there)}",
            hint=f"leave `--provider` out to train on the CPU{_remedy(kind)}",
        )
    return kind


def _remedy(kind: ProviderKind) -> str:
    if kind.plugin is None:
        return ""
    package = kind.plugin.replace("_", "-")
    if _is_installed(kind.plugin):
        return f", or install an onnxruntime that takes plug-ins (1.24 or newer): `{package}` is there"
    return f", or install `{package}`"


def available(module: Any) -> tuple[str, ...]:
    """Short names of the providers that an onnxruntime has and that can train, those of plug-ins included."""
    full = set(module.get_available_providers())
    can_register = hasattr(module, "register_execution_provider_library")
    return tuple(
        name
        for name, kind in KINDS.items()
        if kind.refusal is None and (kind.full in full or (can_register and _is_installed(kind.plugin)))
    )


def plugin_devices(kind: ProviderKind, module: Any) -> list[Any]:
    """The devices of a plug-in, which is loaded if it is not; empty for a provider that onnxruntime has built in.

    Raises:
        EngineError: It finds no device here.
    """
    if kind.plugin is None or kind.full in module.get_available_providers():
        return []
    found = _devices(kind, module)
    if not found:
        package = importlib.import_module(kind.plugin)
        try:
            module.register_execution_provider_library(kind.name, package.get_library_path())
        except Exception as error:  # onnxruntime raises a dozen classes that share no base of their own
            raise EngineError(
                f"the provider `{kind.name}` cannot be loaded: {one_line(error)}",
                hint="leave `--provider` out to train on the CPU",
            ) from error
        found = _devices(kind, module)
    if not found:
        raise EngineError(
            f"the provider `{kind.name}` finds no device that it can use here",
            hint="leave `--provider` out; beside it this onnxruntime has: "
            + ", ".join(name for name in available(module) if name != kind.name),
        )
    return found


def load_libraries(kind: ProviderKind, module: Any) -> None:
    """Load what a provider's library links with: CUDA's are in packages of their own, which no system path names."""
    if kind.name == "cuda" and hasattr(module, "preload_dlls"):
        # It prints what it does not find; whether the provider starts is seen when a session is made.
        with redirect_stdout(io.StringIO()):
            module.preload_dlls()


def check_started(kind: ProviderKind, session: Any) -> None:
    """Refuse a session that onnxruntime made without the provider it was asked for, which it only logs.

    Raises:
        EngineError: The provider did not start.
    """
    if kind.full not in session.get_providers():
        raise EngineError(
            f"the provider `{kind.name}` does not start here: onnxruntime logged why, and went to the CPU",
            hint="install the driver and the libraries that it needs, or train on the CPU with `--provider cpu`",
        )


def placement_of(session: Any) -> Placement | None:
    """What the providers took of a session's graph; None where this onnxruntime does not tell.

    Args:
        session: Made with the setting `RECORD`.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts: Counter[str] = Counter()
    fallback: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        inside = part.get_nodes()
        counts[part.ep_name] += len(inside)
        if part.ep_name == CPU_PROVIDER:
            fallback.update(node.op_type for node in inside)
    return Placement(dict(counts), dict(sorted(fallback.items())))


def told(kind: ProviderKind, placements: Mapping[str, Placement | None]) -> str:
    """One line about where graphs run, for people."""
    known = [one for one in placements.values() if one is not None]
    if len(known) < len(placements) or not known:
        return f"provider {kind.name}; this onnxruntime does not tell which nodes it took (1.24 and newer do)"
    total = sum(sum(one.nodes.values()) for one in known)
    taken = sum(one.nodes.get(kind.full, 0) for one in known)
    fallback = sum((Counter(one.fallback) for one in known), Counter[str]())
    rest = ", ".join(f"{count} {operator}" for operator, count in sorted(fallback.items()))
    line = f"provider {kind.name} took {taken} of {total} nodes"
    line = f"{line}; on the CPU: {rest}" if rest else line
    return f"{line}; what it takes for itself is not in the plan"


def _devices(kind: ProviderKind, module: Any) -> list[Any]:
    return [device for device in module.get_ep_devices() if device.ep_name == kind.full]


def _finds_devices(kind: ProviderKind, module: Any) -> bool:
    """Whether what is installed can be used here."""
    try:
        plugin_devices(kind, module)
    except EngineError:
        return False
    return True


def _is_installed(package: str | None) -> bool:
    return package is not None and importlib.util.find_spec(package) is not None
