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
        slots: `settings` -> the state tensors by name, each with what makes of it the moment that papers and other
            libraries know by such a name.
        update: `(parameter, gradient, state, rates, settings)` -> new parameter and new state.
    """

    defaults: Mapping[str, float]
    rates: Callable[[Mapping[str, float], float, int], dict[str, float]]
    slots: Callable[[Mapping[str, float]], Mapping[str, float]]
    update: Callable[[Any, Any, State, Rates, Mapping[str, float]], tuple[Any, dict[str, Any]]]


def _adamw_rates(settings: Mapping[str, float], learning_rate: float, step: int) -> dict[str, float]:
    beta1, beta2 = settings["beta1"], settings["beta2"]
    scale = ((1.0 - beta2**step) / (1.0 - beta2)) ** 0.5
    return {
        "step_size": learning_rate * scale * (1.0 - beta1) / (1.0 - beta1**step),
        "epsilon": settings["epsilon"] * scale,
        "keep": 1.0 - learning_rate * settings["weight_decay"],
    }


def _adamw_update(
    parameter: Any, gradient: Any, state: State, rates: Rates, settings: Mapping[str, float]
) -> tuple[Any, dict[str, Any]]:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), its moments as sums instead of means.

    The paper's moments are `momentum` times 1 - beta1 and `squares` times 1 - beta2. Nothing needs them as tensors: the
    factors, and the corrections for the first steps, are in the scalars. So weights are gone over eleven times, not
    fourteen.
    """
    momentum = state["momentum"] * settings["beta1"] + gradient
    squares = state["squares"] * settings["beta2"] + gradient * gradient
    denominator = squares**0.5 + rates["epsilon"]
    return (
        parameter * rates["keep"] - rates["step_size"] * (momentum / denominator),
        {"momentum": momentum, "squares": squares},
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
        slots=lambda settings: {"momentum": 1.0 - settings["beta1"], "squares": 1.0 - settings["beta2"]},
        update=_adamw_update,
    ),
    "sgd": Optimizer(
        defaults={"momentum": 0.9, "weight_decay": 0.0},
        rates=_sgd_rates,
        slots=lambda settings: {"velocity": 1.0} if settings["momentum"] else {},
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
    return tuple(OPTIMIZERS[spec.kind].slots(spec.settings))


def moment_factors(spec: OptimizerSpec) -> Mapping[str, float]:
    """What each state tensor is to be multiplied by to be the moment that papers and other libraries have.

    >>> moment_factors(optimizer_spec("adamw", beta1=0.5, beta2=0.75))
    {'momentum': 0.5, 'squares': 0.25}
    """
    return OPTIMIZERS[spec.kind].slots(spec.settings)
