from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeff.errors import ModelError
from edgeff.projection import (
    FixedProjection,
    HiddenProjection,
    LearnedProjection,
    NoProjection,
    Projection,
    Prototypes,
    SoftmaxProjection,
)

FEATURES, CLASSES = 6, 3
TRAINED = {
    "learned": LearnedProjection,
    "hidden": lambda: HiddenProjection(5),
    "softmax": SoftmaxProjection,
    "prototypes": Prototypes,
}


def built(projection: Projection, features: int = FEATURES, classes: int = CLASSES) -> Projection:
    """In float64, with the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projection.build(features, classes)
    return projection.double()


def goodness_rows(rows: int = 4, features: int = FEATURES) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def numbers(tensor: Tensor) -> list[list[float]]:
    return tensor.detach().tolist()  # type: ignore[no-any-return]


def assert_scores(found: Tensor, expected: list[list[float]], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(
        found.detach(), torch.tensor(expected, dtype=torch.float64), atol=tolerance, rtol=tolerance
    )


# --- fixed ------------------------------------------------------------------------------------------------------------


def test_a_fixed_projection_is_a_buffer_with_orthonormal_columns_that_its_seed_decides() -> None:
    first, again, other = (FixedProjection(seed) for seed in (1, 1, 2))
    for projection in (first, again, other):
        projection.build(12, 5)
    torch.testing.assert_close(first.matrix.T @ first.matrix, torch.eye(5))
    assert torch.equal(first.matrix, again.matrix)
    assert not torch.equal(first.matrix, other.matrix)
    assert list(first.parameters()) == []
    assert list(first.state_dict()) == ["matrix"]


@pytest.mark.parametrize(("size", "law"), [(4, "orthonormal"), (4000, "normal")])
def test_a_normal_projection_has_variance_one_over_its_length(size: int, law: str) -> None:
    projection = FixedProjection(0, law=law)  # type: ignore[arg-type]
    projection.build(size, 10)
    assert projection.matrix.shape == (size, 10)
    assert float(projection.matrix.std()) == pytest.approx(size**-0.5, rel=0.35 if size == 4 else 0.02)


def test_drawing_a_projection_leaves_the_generator_of_torch_alone() -> None:
    before = torch.get_rng_state()
    FixedProjection(3).build(8, 4)
    assert torch.equal(before, torch.get_rng_state())


# --- trained ----------------------------------------------------------------------------------------------------------


def test_a_learned_projection_is_a_linear_map() -> None:
    projection = LearnedProjection()
    projection.build(6, 3)
    goodness = torch.randn(2, 6)
    expected = goodness @ projection.linear.weight.T + projection.linear.bias
    torch.testing.assert_close(projection(goodness), expected)
    without = LearnedProjection(bias=False)
    without.build(6, 3)
    assert [name for name, _ in without.named_parameters()] == ["linear.weight"]


def test_a_hidden_projection_is_a_perceptron_with_one_layer_of_relus() -> None:
    projection = built(HiddenProjection(5))
    assert isinstance(projection, HiddenProjection)
    first, second = projection.hidden, projection.linear
    assert (tuple(first.weight.shape), tuple(second.weight.shape)) == ((5, FEATURES), (CLASSES, 5))
    goodness = goodness_rows()
    expected = []
    for g in goodness.tolist():
        hidden = [
            max(0.0, math.fsum(w * v for w, v in zip(row, g, strict=True)) + c)
            for row, c in zip(numbers(first.weight), first.bias.tolist(), strict=True)
        ]
        expected.append(
            [
                math.fsum(w * h for w, h in zip(row, hidden, strict=True)) + b
                for row, b in zip(numbers(second.weight), second.bias.tolist(), strict=True)
            ]
        )
    assert_scores(projection(goodness), expected)
    # It bends: no linear map gives the middle of two rows another score than the mean of theirs.
    middle = projection(goodness[:2].mean(dim=0, keepdim=True))
    assert not torch.allclose(middle, projection(goodness[:2]).mean(dim=0, keepdim=True), atol=1e-3)


def naive_softmax_scores(goodness: Tensor, logits: Tensor) -> list[list[float]]:
    shares = []
    for row in numbers(logits):
        powers = [math.exp(value) for value in row]
        shares.append([power / math.fsum(powers) for power in powers])
    classes = range(len(shares[0]))
    return [
        [math.fsum(v * share[k] for v, share in zip(g, shares, strict=True)) for k in classes]
        for g in goodness.tolist()
    ]


def test_in_a_softmax_projection_each_number_divides_itself_among_the_classes() -> None:
    projection = built(SoftmaxProjection())
    goodness = goodness_rows()
    scores = projection(goodness)
    assert_scores(scores, naive_softmax_scores(goodness, projection.get_parameter("logits")))
    torch.testing.assert_close(scores.sum(dim=1), goodness.sum(dim=1))
    # None speaks against a class.
    assert bool((projection(goodness.abs()) > 0).all())


def test_prototypes_give_scaled_cosines() -> None:
    projection = built(Prototypes(4.0, eps=1e-12))
    goodness = goodness_rows()
    expected = []
    for g in goodness.tolist():
        row = []
        for prototype in numbers(projection.get_parameter("prototypes")):
            dot = math.fsum(a * b for a, b in zip(g, prototype, strict=True))
            row.append(4.0 * dot / (math.hypot(*g) * math.hypot(*prototype)))
        expected.append(row)
    assert_scores(projection(goodness), expected, 1e-10)


@settings(deadline=None)
@given(factor=st.floats(0.5, 1e6))
def test_prototypes_do_not_see_the_size_of_goodness(factor: float) -> None:
    projection, goodness = built(Prototypes()), goodness_rows()
    scores = projection(factor * goodness).detach()
    torch.testing.assert_close(scores, projection(goodness).detach(), atol=1e-4, rtol=1e-4)
    assert float(scores.abs().max()) <= 10.0
    # Only its direction: turned round it says the opposite.
    torch.testing.assert_close(projection(-factor * goodness).detach(), -scores)


def test_prototypes_are_as_undecided_as_can_be_where_goodness_is_nothing() -> None:
    projection = built(Prototypes())
    nothing = torch.zeros(2, FEATURES, dtype=torch.float64, requires_grad=True)
    scores = projection(nothing)
    (gradient,) = torch.autograd.grad(scores.sum(), nothing)
    assert scores.tolist() == [[0.0] * CLASSES] * 2
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", TRAINED)
def test_the_gradients_of_a_trained_projection_are_those_of_finite_differences(name: str) -> None:
    projection = built(TRAINED[name]())
    goodness = goodness_rows().requires_grad_()
    assert torch.autograd.gradcheck(projection, (goodness,))
    own = dict(projection.named_parameters())

    def scores(*weights: Tensor) -> Tensor:
        return torch.func.functional_call(projection, dict(zip(own, weights, strict=True)), (goodness.detach(),))

    assert own
    assert torch.autograd.gradcheck(scores, tuple(own.values()))


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_projection_is_drawn_from_torchs_generator(name: str) -> None:
    first, again = built(TRAINED[name]()), built(TRAINED[name]())
    other = TRAINED[name]()
    other.build(FEATURES, CLASSES)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.double().parameters(), strict=True))


# --- none -------------------------------------------------------------------------------------------------------------


def test_no_projection_takes_goodness_as_scores() -> None:
    projection = built(NoProjection(), CLASSES)
    goodness = goodness_rows(features=CLASSES)
    assert projection(goodness) is goodness
    assert list(projection.parameters()) == []


def test_goodness_that_is_no_score_per_class_needs_a_projection() -> None:
    with pytest.raises(ModelError, match="goodness of 6 numbers is no score for each of 3 classes") as caught:
        NoProjection().build(6, 3)
    assert caught.value.hint == "give the block a projection"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedProjection(law="cauchy"), "law `orthonormal` or `normal`, got `cauchy`"),  # type: ignore[arg-type]
        (lambda: HiddenProjection(0), "HiddenProjection needs units of at least 1, got `0`"),
        (lambda: Prototypes(0.0), "Prototypes need a positive scale, got 0.0"),
        (lambda: Prototypes(-1.0), "Prototypes need a positive scale, got -1.0"),
        (lambda: Prototypes(math.nan), "Prototypes need a positive scale, got nan"),
    ],
)
def test_projections_refuse_settings_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()  # type: ignore[operator]
