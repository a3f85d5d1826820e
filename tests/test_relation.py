"""Losses that compare rows, against the tables of all pairs that their papers write down."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeff.errors import ModelError
from edgeff.relation import Relation, SimilarityMatching, SupervisedContrast

K = 3
SHAPES = ((5,), (5, 7), (5, 4, 3))
RELATIONS = {"similarity": SimilarityMatching, "contrast": lambda: SupervisedContrast(size=6, partners=4)}
EVERY = pytest.mark.parametrize("name", RELATIONS)
Numbers = Sequence[Sequence[float]]


def activations(rows: int, *shape: int) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def labels(rows: int) -> Tensor:
    return torch.randint(0, K, (rows,), generator=torch.Generator().manual_seed(3))


def uneven(rows: int) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.05


def built(relation: Relation, activation: Tensor) -> Relation:
    """In float64, with the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        relation.build(activation)
    return relation.double()


def loss_of(relation: Relation, activation: Tensor, y: Tensor, row_weight: Tensor) -> Tensor:
    return relation.loss(relation(activation), y, row_weight, K)


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True)) / (math.hypot(*first) * math.hypot(*second))


def centred(row: Sequence[float]) -> list[float]:
    mean = math.fsum(row) / len(row)
    return [value - mean for value in row]


def in_numbers(tensor: Tensor) -> list[list[float]]:
    return tensor.detach().tolist()  # type: ignore[no-any-return]


# --- similarity matching ----------------------------------------------------------------------------------------------


def naive_matching(embedding: Numbers, y: Sequence[int], row_weight: Sequence[float], classes: int = K) -> float:
    """Every pair of rows by itself: the cosine of their embeddings, and that of their labels less their mean."""
    one_hot = [centred([float(label == k) for k in range(classes)]) for label in y]
    total = math.fsum(row_weight)
    found = 0.0
    for i, weight in enumerate(row_weight):
        differences = [
            other * (cosine(embedding[i], embedding[j]) - cosine(one_hot[i], one_hot[j])) ** 2
            for j, other in enumerate(row_weight)
        ]
        found += weight * math.fsum(differences) / total
    return found


@pytest.mark.parametrize("weights", ["even", "uneven"])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_matching_is_the_table_of_all_pairs(rows: int, weights: str) -> None:
    activation, y = activations(rows, 5), labels(rows)
    row_weight = uneven(rows) if weights == "uneven" else torch.full((rows,), 1.0 / rows, dtype=torch.float64)
    relation = built(SimilarityMatching(0.7), activation)
    expected = 0.7 * naive_matching(in_numbers(relation(activation)), y.tolist(), row_weight.tolist())
    assert float(loss_of(relation, activation, y, row_weight).detach()) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.floats(-2, 2, width=16), min_size=4, max_size=4).filter(lambda row: max(row) - min(row) > 0.1),
            st.integers(0, 3),
            st.floats(0.125, 2, width=16),
        ),
        min_size=1,
        max_size=7,
    )
)
def test_matching_is_the_table_for_any_rows(rows: list[tuple[list[float], int, float]]) -> None:
    activation, y, row_weight = (torch.tensor(column) for column in zip(*rows, strict=True))
    relation = SimilarityMatching(channels=0)
    relation.build(activation)
    found = relation.loss(relation(activation.double()), y, row_weight.double(), 4)
    expected = naive_matching([centred(row) for row in activation.tolist()], y.tolist(), row_weight.tolist(), 4)
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_at_even_weights_matching_is_the_mean_squared_error_over_all_pairs() -> None:
    rows = 8
    activation, y = activations(rows, 5), labels(rows)
    relation = built(SimilarityMatching(), activation)
    embedding = relation(activation)
    target = torch.where(y[:, None] == y, 1.0, -1.0 / (K - 1)).double()
    expected = nn.functional.mse_loss(embedding @ embedding.T, target)
    row_weight = torch.full((rows,), 1.0 / rows, dtype=torch.float64)
    torch.testing.assert_close(relation.loss(embedding, y, row_weight, K), expected)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_embeddings_at_the_corners_of_a_simplex_are_what_matching_wants(classes: int) -> None:
    # Labels less their mean: 1 to themselves, -1 / (K - 1) to any other.
    corners = torch.eye(classes, dtype=torch.float64) - 1.0 / classes
    corners = corners / corners.norm(dim=1, keepdim=True)
    cosines = corners @ corners.T
    assert float(cosines[0, 1]) == pytest.approx(-1.0 / (classes - 1))
    y = torch.arange(3 * classes) % classes
    relation = SimilarityMatching(channels=0)
    weight = torch.full((len(y),), 1.0 / len(y), dtype=torch.float64)
    assert float(relation.loss(corners[y], y, weight, classes)) == pytest.approx(0.0, abs=1e-12)
    # The last class where the first one is.
    merged = relation.loss(corners[y.remainder(classes - 1)], y, weight, classes)
    pairs = 2.0 / classes**2
    assert float(merged) == pytest.approx(pairs * (1.0 + 1.0 / (classes - 1)) ** 2)


@pytest.mark.parametrize("channels", [None, 0, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_embedding_of_matching_is_how_much_each_channel_of_its_map_varies(
    shape: tuple[int, ...], channels: int | None
) -> None:
    activation = activations(4, *shape)
    relation = built(SimilarityMatching(channels=channels), activation)
    mapped = activation
    if channels != 0:
        (weight,) = relation.parameters()
        assert weight.shape == (channels or 5, 5, *(3 for _ in shape[1:]))
        convolution = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d)[len(shape) - 1]
        mapped = convolution(activation, weight, **({"padding": 1} if len(shape) > 1 else {}))  # type: ignore[operator]
    else:
        assert list(relation.parameters()) == []
    found = in_numbers(relation(activation))
    for row, embedded in zip(mapped, found, strict=True):
        values = row.flatten(1) if len(shape) > 1 else row[:, None]
        if len(shape) > 1:
            squares = [math.fsum(value**2 for value in centred(channel)) for channel in in_numbers(values)]
            expected = centred([math.sqrt(square / values.shape[1] + 1e-8) for square in squares])
        else:
            expected = centred(row.tolist())
        length = math.sqrt(math.fsum(value**2 for value in expected) + 1e-8)
        assert embedded == pytest.approx([value / length for value in expected], abs=1e-12)


# --- supervised contrast ----------------------------------------------------------------------------------------------


def naive_contrast(
    embedding: Numbers, y: Sequence[int], row_weight: Sequence[float], *, temperature: float, partners: int
) -> float:
    """Khosla et al., equation 2, with the first so many rows as those that a row is compared with."""

    def similarity(i: int, a: int) -> float:
        return math.fsum(p * q for p, q in zip(embedding[i], embedding[a], strict=True)) / temperature

    found = []
    for i, weight in enumerate(row_weight):
        others = [a for a in range(min(partners, len(y))) if a != i]
        friends = [p for p in others if y[p] == y[i]]
        if friends:
            norm = math.log(math.fsum(math.exp(similarity(i, a)) for a in others))
            found.append(-weight * math.fsum(similarity(i, p) - norm for p in friends) / len(friends))
    return math.fsum(found)


@pytest.mark.parametrize(("rows", "partners"), [(1, 4), (2, 4), (4, 4), (9, 4), (9, 128)])
@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_is_the_published_formula(shape: tuple[int, ...], rows: int, partners: int) -> None:
    activation, y, row_weight = activations(rows, *shape), labels(rows), uneven(rows)
    relation = built(SupervisedContrast(0.5, size=6, temperature=0.3, partners=partners), activation)
    expected = 0.5 * naive_contrast(
        in_numbers(relation(activation)), y.tolist(), row_weight.tolist(), temperature=0.3, partners=partners
    )
    assert float(loss_of(relation, activation, y, row_weight).detach()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(y=st.lists(st.integers(0, 3), min_size=1, max_size=8), partners=st.integers(2, 9), seed=st.integers(0, 99))
def test_contrast_is_the_published_formula_for_any_labels(y: list[int], partners: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    embedding = nn.functional.normalize(torch.randn(len(y), 3, generator=draw, dtype=torch.float64))
    row_weight = torch.rand(len(y), generator=draw, dtype=torch.float64)
    found = SupervisedContrast(partners=partners).loss(embedding, torch.tensor(y), row_weight, 4)
    expected = naive_contrast(in_numbers(embedding), y, row_weight.tolist(), temperature=0.1, partners=partners)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_rows_that_have_no_other_of_their_class_have_nothing_to_learn() -> None:
    activation, y, row_weight = activations(3, 5), torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.float64)
    relation = built(SupervisedContrast(), activation)
    assert float(loss_of(relation, activation, y, row_weight).detach()) == 0.0
    # A friend that is no partner is none.
    few = built(SupervisedContrast(partners=2), activation)
    assert float(loss_of(few, activation, torch.tensor([0, 1, 0]), row_weight).detach()) > 0.0
    assert float(few.loss(few(activation)[:2], torch.tensor([0, 1]), row_weight[:2], K).detach()) == 0.0
    beyond = few.loss(few(activations(4, 5)), torch.tensor([0, 1, 2, 2]), torch.ones(4).double(), K)
    assert float(beyond.detach()) == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_embedding_of_contrast_is_of_length_1_and_sees_the_mean_over_places(shape: tuple[int, ...]) -> None:
    activation = activations(4, *shape)
    relation = built(SupervisedContrast(size=6), activation)
    (weight,) = relation.parameters()
    mapped = activation.flatten(2).mean(dim=2) @ weight.T if len(shape) > 1 else activation @ weight.T
    torch.testing.assert_close(relation(activation), mapped / mapped.norm(dim=1, keepdim=True))


def test_alike_rows_of_a_class_and_unlike_ones_of_others_make_little_loss() -> None:
    y = torch.tensor([0, 0, 1, 1])
    corners = torch.eye(2, dtype=torch.float64)
    weight = torch.full((4,), 0.25, dtype=torch.float64)
    relation = SupervisedContrast()
    right = relation.loss(corners[y], y, weight, 2)
    wrong = relation.loss(corners[torch.tensor([0, 1, 0, 1])], y, weight, 2)
    assert float(right) < 1e-3 < 10.0 < float(wrong)


# --- what both have in common -----------------------------------------------------------------------------------------


@EVERY
def test_the_loss_is_in_proportion_to_its_weight(name: str) -> None:
    made = {"similarity": SimilarityMatching, "contrast": SupervisedContrast}[name]
    embedding, y, row_weight = nn.functional.normalize(activations(6, 4)), labels(6), uneven(6)
    single, triple = (made(weight).loss(embedding, y, row_weight, K) for weight in (1.0, 3.0))
    torch.testing.assert_close(triple, 3.0 * single)
    assert float(single) > 0.0


@EVERY
def test_row_weights_scale_a_loss(name: str) -> None:
    # A batch's loss is the sum of its parts' with the same 1/N in all: N rows of weight w are N w times their mean.
    activation, y, row_weight = activations(6, 5), labels(6), uneven(6)
    relation = built(RELATIONS[name](), activation)
    torch.testing.assert_close(
        loss_of(relation, activation, y, 0.25 * row_weight), 0.25 * loss_of(relation, activation, y, row_weight)
    )


@EVERY
def test_a_row_of_weight_zero_changes_nothing_of_the_loss_of_matching_and_adds_none_to_contrast(name: str) -> None:
    activation, y, row_weight = activations(6, 5), labels(6), uneven(6)
    row_weight[5] = 0.0
    relation = built(RELATIONS[name](), activation)  # contrast has four partners: the sixth row is none
    activation.requires_grad_()
    whole = loss_of(relation, activation, y, row_weight)
    (gradient,) = torch.autograd.grad(whole, activation)
    left_out = activation[:5].detach().requires_grad_()
    expected = loss_of(relation, left_out, y[:5], row_weight[:5])
    torch.testing.assert_close(whole, expected)
    (expected_gradient,) = torch.autograd.grad(expected, left_out)
    torch.testing.assert_close(gradient[:5], expected_gradient)
    torch.testing.assert_close(gradient[5], torch.zeros_like(gradient[5]))


@EVERY
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["one row", "equal rows", "nothing"])
def test_losses_and_gradients_are_finite_in_float32(name: str, shape: tuple[int, ...], case: str) -> None:
    activation = activations(1 if case == "one row" else 6, *shape).float()
    activation = activation[:1].expand(6, *shape) if case == "equal rows" else activation
    activation = torch.zeros_like(activation) if case == "nothing" else activation
    relation = built(RELATIONS[name](), activation).float()
    rows = activation.clone().requires_grad_()
    y = labels(len(rows))
    loss = loss_of(relation, rows, y, torch.full((len(rows),), 1.0 / len(rows)))
    gradients = torch.autograd.grad(loss, (rows, *relation.parameters()))
    assert bool(loss.isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@EVERY
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_finite_differences(name: str, shape: tuple[int, ...]) -> None:
    activation, y, row_weight = activations(5, *shape), torch.tensor([0, 1, 0, 2, 1]), uneven(5)
    relation = built(RELATIONS[name](), activation)
    own = dict(relation.named_parameters())

    def loss(activation: Tensor, *weights: Tensor) -> Tensor:
        embedding = torch.func.functional_call(relation, dict(zip(own, weights, strict=True)), (activation,))
        return relation.loss(embedding, y, row_weight, K)

    assert own
    # By random directions: the table of all derivatives would take long.
    assert torch.autograd.gradcheck(loss, (activation.requires_grad_(), *own.values()), fast_mode=True)


@EVERY
def test_of_an_embedding_every_derivative_is_that_of_finite_differences(name: str) -> None:
    embedding, y, row_weight = nn.functional.normalize(activations(5, 4)), torch.tensor([0, 1, 0, 2, 1]), uneven(5)
    relation = RELATIONS[name]()
    assert torch.autograd.gradcheck(lambda z, d: relation.loss(z, y, d, K), (embedding.requires_grad_(), row_weight))


@EVERY
def test_a_row_learns_from_those_beside_it(name: str) -> None:
    activation, y, row_weight = activations(6, 5), torch.tensor([0, 1, 0, 1, 0, 1]), uneven(6)
    relation = built(RELATIONS[name](), activation)
    whole = loss_of(relation, activation, y, row_weight)
    parts = [loss_of(relation, activation[part], y[part], row_weight[part]) for part in (slice(0, 3), slice(3, 6))]
    assert not torch.isclose(whole, sum(parts[1:], start=parts[0]))
    torch.testing.assert_close(relation(activation)[2:4], relation(activation[2:4]))  # its embedding does not


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimilarityMatching(0.0), "needs a positive weight and channels, got 0.0 and None"),
        (lambda: SimilarityMatching(math.inf), "needs a positive weight and channels, got inf and None"),
        (lambda: SimilarityMatching(math.nan), "needs a positive weight and channels, got nan and None"),
        (lambda: SimilarityMatching(channels=-1), "needs a positive weight and channels, got 1.0 and -1"),
        (lambda: SupervisedContrast(-1.0), "two partners or more, got -1.0, 64, 0.1 and 128"),
        (lambda: SupervisedContrast(size=0), "two partners or more, got 1.0, 0, 0.1 and 128"),
        (lambda: SupervisedContrast(temperature=0.0), "two partners or more, got 1.0, 64, 0.0 and 128"),
        (lambda: SupervisedContrast(partners=1), "two partners or more, got 1.0, 64, 0.1 and 1"),
    ],
)
def test_relations_refuse_settings_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()  # type: ignore[operator]
