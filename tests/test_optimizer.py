"""The optimisers' formulas on numpy arrays, against `torch.optim` and against what can be worked out by hand."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeff.errors import ModelError
from edgeff.optimizer import OPTIMIZERS, moment_factors, optimizer, optimizer_spec, rates, slots

STEPS = 20


def rate_at(step):
    return 0.05 / step


def gradients(dtype):
    """One for each step: of very different sizes, some exactly zero."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.integers(-4, 3, (STEPS, 3, 4))
    return (rng.standard_normal((STEPS, 3, 4)) * sizes * rng.integers(0, 2, (STEPS, 3, 4))).astype(dtype)


def start(dtype):
    return np.random.default_rng(1).standard_normal((3, 4)).astype(dtype)


def followed(spec, dtype):
    """The parameter after each update by edgeff's formula; numpy alone, as the reference of the device side."""
    parameter = start(dtype)
    state = {slot: np.zeros_like(parameter) for slot in slots(spec)}
    for step, gradient in enumerate(gradients(dtype), start=1):
        known = rates(spec, rate_at(step), step)
        parameter, state = optimizer(spec).update(parameter, gradient, state, known, spec.settings)
        assert set(state) == set(slots(spec))
        assert {array.dtype for array in (parameter, *state.values())} == {np.dtype(dtype)}
        yield parameter


def torchs(kind, chosen, dtype):
    """The same by `torch.optim`."""
    parameter = torch.nn.Parameter(torch.from_numpy(start(dtype)))
    if kind == "adamw":
        betas = (chosen["beta1"], chosen["beta2"])
        theirs = torch.optim.AdamW([parameter], betas=betas, eps=chosen["epsilon"], weight_decay=chosen["weight_decay"])
    else:
        theirs = torch.optim.SGD([parameter], momentum=chosen["momentum"], weight_decay=chosen["weight_decay"])
    for step, gradient in enumerate(gradients(dtype), start=1):
        theirs.param_groups[0]["lr"] = rate_at(step)
        parameter.grad = torch.from_numpy(gradient)
        theirs.step()
        yield parameter.detach().numpy().copy()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 3e-6)])
@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("adamw", {}),
        ("adamw", {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.1}),
        ("sgd", {}),
        ("sgd", {"momentum": 0.5, "weight_decay": 0.1}),
        ("sgd", {"momentum": 0.0, "weight_decay": 0.1}),
    ],
)
def test_twenty_updates_in_numpy_are_those_of_torch(kind, chosen, dtype, tolerance):
    spec = optimizer_spec(kind, **chosen)
    pairs = zip(followed(spec, dtype), torchs(kind, spec.settings, dtype), strict=True)
    for ours, expected in pairs:
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None)
@given(beta=st.floats(0.5, 0.9999), step=st.integers(1, 5000), rate=st.floats(1e-6, 1.0))
def test_adamws_bias_corrections_are_right_in_double_precision(beta, step, rate):
    spec = optimizer_spec("adamw", beta1=beta, beta2=beta, weight_decay=0.25)
    found = rates(spec, rate, step)
    with localcontext(prec=60):
        left = 1 - Decimal(beta) ** step
        # Both betas are the same here.
        moments = left / (1 - Decimal(beta))
        step_size, epsilon = float(Decimal(rate) / moments * moments.sqrt()), float(Decimal("1e-8") * moments.sqrt())
    assert found["step_size"] == pytest.approx(step_size, rel=1e-12)
    assert found["epsilon"] == pytest.approx(epsilon, rel=1e-12)
    assert found["keep"] == 1 - rate * 0.25


def test_adamws_first_step_is_one_learning_rate_long_whatever_the_gradient():
    spec = optimizer_spec("adamw", weight_decay=0.0, epsilon=0.0)
    gradient = np.array([1e-6, -1e-3, 1.0, -1e6])
    state = {slot: np.zeros(4) for slot in slots(spec)}
    moved, _ = optimizer(spec).update(np.zeros(4), gradient, state, rates(spec, 0.01, 1), spec.settings)
    np.testing.assert_allclose(moved, -0.01 * np.sign(gradient), rtol=1e-12)


def test_weight_decay_shrinks_a_weight_without_gradient():
    parameter, nothing = np.array([2.0]), np.zeros(1)
    for kind in OPTIMIZERS:
        spec = optimizer_spec(kind, weight_decay=0.5)
        state = {slot: np.zeros(1) for slot in slots(spec)}
        moved, _ = optimizer(spec).update(parameter, nothing, state, rates(spec, 0.1, 1), spec.settings)
        assert moved == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_momentum_carries_on_where_the_gradient_has_ended():
    spec = optimizer_spec("sgd", momentum=0.5)
    known = rates(spec, 1.0, 1)
    state = {"velocity": np.array([8.0])}
    places = [0.0]
    for _ in range(3):
        place, state = optimizer(spec).update(np.array(places[-1:]), np.zeros(1), state, known, spec.settings)
        places.append(float(place[0]))
    assert places == [0.0, -4.0, -6.0, -7.0]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_update_leaves_what_it_was_given_as_it_was(kind):
    spec = optimizer_spec(kind, weight_decay=0.1)
    parameter, gradient = np.ones(3), np.ones(3)
    state = {slot: np.ones(3) for slot in slots(spec)}
    optimizer(spec).update(parameter, gradient, state, rates(spec, 0.1, 3), spec.settings)
    assert all((array == 1).all() for array in (parameter, gradient, *state.values()))


def test_only_what_is_needed_is_kept_between_updates():
    assert slots(optimizer_spec("adamw")) == ("momentum", "squares")
    assert slots(optimizer_spec("sgd")) == ("velocity",)
    assert slots(optimizer_spec("sgd", momentum=0.0)) == ()


@pytest.mark.parametrize(
    ("kind", "chosen", "names"),
    [
        ("adamw", {"beta1": 0.5, "beta2": 0.75}, {"momentum": "exp_avg", "squares": "exp_avg_sq"}),
        ("sgd", {"momentum": 0.8}, {"velocity": "momentum_buffer"}),
        ("sgd", {"momentum": 0.0}, {}),
    ],
)
def test_a_factor_makes_torchs_moments_of_the_state(kind, chosen, names):
    spec = optimizer_spec(kind, **chosen)
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    made = (
        torch.optim.SGD([weight], 0.1, momentum=spec.settings["momentum"])
        if kind == "sgd"
        else (torch.optim.AdamW([weight], 0.1, betas=(spec.settings["beta1"], spec.settings["beta2"])))
    )
    state = {slot: np.zeros(3) for slot in slots(spec)}
    for step in range(1, 6):
        gradient = np.array([2.0, -3.0, 1.0]) / step
        _, state = optimizer(spec).update(np.zeros(3), gradient, state, rates(spec, 0.1, step), spec.settings)
        weight.grad = torch.from_numpy(gradient)
        made.step()
    assert set(names) == set(moment_factors(spec)) == set(slots(spec))
    for slot, factor in moment_factors(spec).items():
        np.testing.assert_allclose(state[slot] * factor, made.state[weight][names[slot]].numpy(), rtol=1e-12)


def test_settings_left_out_are_those_of_torch_with_a_little_weight_decay_and_momentum():
    adamw, theirs = optimizer_spec("adamw").settings, torch.optim.AdamW([torch.zeros(1)]).defaults
    assert ((adamw["beta1"], adamw["beta2"]), adamw["epsilon"]) == (theirs["betas"], theirs["eps"])
    assert adamw["weight_decay"] == 1e-4
    assert optimizer_spec("sgd").settings == {"momentum": 0.9, "weight_decay": 0.0}


def test_an_unknown_kind_is_refused_with_those_that_are_known():
    with pytest.raises(ModelError, match=r"^unknown optimizer `lion`$") as caught:
        optimizer_spec("lion")
    assert caught.value.hint == "known: adamw, sgd"


def test_a_setting_of_another_optimizer_is_refused():
    with pytest.raises(ModelError, match=r"^optimizer `sgd` has no setting `beta1`$") as caught:
        optimizer_spec("sgd", beta1=0.9)
    assert caught.value.hint == "known: momentum, weight_decay"
