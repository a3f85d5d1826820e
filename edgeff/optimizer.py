"""Optimisers as formulas that numpy arrays and torch tensors both understand.

One formula serves three readers: `edgeff.export` traces it into the update graph, tests compare it with `torch.optim`,
and the runtime asks it for the scalars ("rates") that the graph takes as inputs. Rates that need a power of the step
count are computed here in double precision: in float32 `1 - 0.999**1` is wrong in the fifth digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeff.errors import ModelError
from edgeff.manifest import OptimizerSpec

Rates = Mapping[str, Any]
State = Mapping[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """One kind of optimiser.

    Attributes:
        defaults: Settings and their defaults.
        rates: `(settings, learning_rate, step)` -> the scalars of that step; `step` counts from 1.
        slots: `settings` -> names of the state tensors.
        update: `(parameter, gradient, state, rates, settings)` -> new parameter and new state.
    """

    defaults: Mapping[str, float]
    rates: Callable[[Mapping[str, float], float, int], dict[str, float]]
    slots: Callable[[Mapping[str, float]], tuple[str, ...]]
    update: Callable[[Any, Any, State, Rates, Mapping[str, float]], tuple[Any, dict[str, Any]]]


def _adamw_rates(settings: Mapping[str, float], learning_rate: float, step: int) -> dict[str, float]:
    return {
        "step_size": learning_rate / (1.0 - settings["beta1"] ** step),
        "root_correction": (1.0 - settings["beta2"] ** step) ** 0.5,
        "keep": 1.0 - learning_rate * settings["weight_decay"],
    }


def _adamw_update(
    parameter: Any, gradient: Any, state: State, rates: Rates, settings: Mapping[str, float]
) -> tuple[Any, dict[str, Any]]:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), in the order of `torch.optim.AdamW`."""
    mean = state["mean"] * settings["beta1"] + gradient * (1.0 - settings["beta1"])
    square = state["square"] * settings["beta2"] + gradient * gradient * (1.0 - settings["beta2"])
    denominator = square**0.5 / rates["root_correction"] + settings["epsilon"]
    return (
        parameter * rates["keep"] - rates["step_size"] * (mean / denominator),
        {"mean": mean, "square": square},
    )


def _sgd_rates(settings: Mapping[str, float], learning_rate: float, step: int) -> dict[str, float]:
    del settings, step
    return {"learning_rate": learning_rate}


def _sgd_update(
    parameter: Any, gradient: Any, state: State, rates: Rates, settings: Mapping[str, float]
) -> tuple[Any, dict[str, Any]]:
    """SGD with heavy-ball momentum and L2 weight decay, as `torch.optim.SGD` (dampening 0, no Nesterov)."""
    if settings["weight_decay"]:
        gradient = gradient + parameter * settings["weight_decay"]
    if not settings["momentum"]:
        return parameter - rates["learning_rate"] * gradient, {}
    velocity = state["velocity"] * settings["momentum"] + gradient
    return parameter - rates["learning_rate"] * velocity, {"velocity": velocity}


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": Optimizer(
        defaults={"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 1e-4},
        rates=_adamw_rates,
        slots=lambda settings: ("mean", "square"),
        update=_adamw_update,
    ),
    "sgd": Optimizer(
        defaults={"momentum": 0.9, "weight_decay": 0.0},
        rates=_sgd_rates,
        slots=lambda settings: ("velocity",) if settings["momentum"] else (),
        update=_sgd_update,
    ),
}


def optimizer_spec(kind: str, **settings: float) -> OptimizerSpec:
    """An optimiser with defaults filled in.

    Raises:
        ModelError: Unknown kind or setting.

    >>> optimizer_spec("sgd", momentum=0.5).settings
    {'momentum': 0.5, 'weight_decay': 0.0}
    """
    if kind not in OPTIMIZERS:
        raise ModelError(f"unknown optimizer `{kind}`", hint=f"known: {', '.join(sorted(OPTIMIZERS))}")
    defaults = OPTIMIZERS[kind].defaults
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise ModelError(f"optimizer `{kind}` has no setting `{unknown[0]}`", hint=f"known: {', '.join(defaults)}")
    return OptimizerSpec(kind=kind, settings={**defaults, **settings})


def optimizer(spec: OptimizerSpec) -> Optimizer:
    """The formulas of a spec's kind."""
    return OPTIMIZERS[spec.kind]


def rates(spec: OptimizerSpec, learning_rate: float, step: int) -> dict[str, float]:
    """The scalars that an update graph takes at a step.

    Args:
        spec: Kind and settings.
        learning_rate: Of this step.
        step: Counts from 1.
    """
    return OPTIMIZERS[spec.kind].rates(spec.settings, learning_rate, step)


def slots(spec: OptimizerSpec) -> tuple[str, ...]:
    """Names of the state tensors each parameter has."""
    return OPTIMIZERS[spec.kind].slots(spec.settings)
