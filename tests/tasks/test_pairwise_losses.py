"""Losses of reward models against the formulas in NumPy's float64, what their probabilities add up to, and ODIN."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._maths.length_head import correlation, length_penalty, overlap
from tasks._maths.pairwise import (
    TIE_LOSSES,
    absolute_error,
    bradley_terry,
    davidson,
    davidson_start,
    plackett_luce,
    rao_kupper,
    rao_kupper_start,
)

few = settings(deadline=None, max_examples=25)
score = st.floats(-12, 12)
pairs_of_scores = st.lists(st.tuples(score, score), min_size=1, max_size=6)


def tensors(pairs):
    return torch.tensor(pairs, dtype=torch.float64).T


def sigma(x):
    return 1 / (1 + np.exp(-x))


@few
@given(pairs=pairs_of_scores, margin=st.floats(0, 3), eps=st.floats(0, 0.5), centering=st.floats(0, 0.1))
def test_bradley_terry_with_margin_smoothing_and_centering(pairs, margin, eps, centering):
    chosen, rejected = tensors(pairs)
    c, r = np.array(pairs).T
    expected = (
        -(1 - eps) * np.log(sigma(c - r - margin)) - eps * np.log(sigma(r - c - margin)) + centering * (c + r) ** 2
    )
    found = bradley_terry(chosen, rejected, centering=centering, margin=margin, smoothing=eps)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_smoothing_and_margin_are_each_pairs_own():
    chosen, rejected = torch.tensor([1.0, 1.0, 1.0]), torch.zeros(3)
    found = bradley_terry(
        chosen, rejected, margin=torch.tensor([0.0, 1.0, 0.0]), smoothing=torch.tensor([0.0, 0.0, 0.5])
    )
    expected = [-np.log(sigma(1)), -np.log(sigma(0)), -0.5 * np.log(sigma(1)) - 0.5 * np.log(sigma(-1))]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_smoothed_pair_of_equal_answers_is_worth_the_entropy_and_a_swap_changes_a_tie_nothing():
    chosen, rejected = torch.tensor([2.0]), torch.tensor([-1.0])
    tied = bradley_terry(chosen, rejected, smoothing=0.5)
    assert torch.equal(tied, bradley_terry(rejected, chosen, smoothing=0.5))
    assert bradley_terry(torch.zeros(1), torch.zeros(1), smoothing=0.5).item() == pytest.approx(np.log(2))


@few
@given(pairs=pairs_of_scores, threshold=st.floats(0.01, 4))
def test_rao_kupper_is_the_formula_and_its_probabilities_add_up(pairs, threshold):
    chosen, rejected = tensors(pairs)
    c, r, theta = *np.exp(np.array(pairs)).T, np.exp(threshold)
    won = rao_kupper(chosen, rejected, torch.zeros(len(pairs), dtype=torch.bool), threshold)
    lost = rao_kupper(rejected, chosen, torch.zeros(len(pairs), dtype=torch.bool), threshold)
    tied = rao_kupper(chosen, rejected, torch.ones(len(pairs), dtype=torch.bool), threshold)
    np.testing.assert_allclose(won, -np.log(c / (c + theta * r)), rtol=1e-7, atol=1e-9)
    expected = (theta**2 - 1) * c * r / ((c + theta * r) * (theta * c + r))
    np.testing.assert_allclose(tied, -np.log(expected), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(torch.exp(-won) + torch.exp(-lost) + torch.exp(-tied), 1, atol=1e-9)


@few
@given(pairs=pairs_of_scores, log_nu=st.floats(-4, 3))
def test_davidson_is_the_formula_and_its_probabilities_add_up(pairs, log_nu):
    chosen, rejected = tensors(pairs)
    c, r, nu = *np.exp(np.array(pairs)).T, np.exp(log_nu)
    total = c + r + nu * np.sqrt(c * r)
    said = {name: torch.full((len(pairs),), name == "tied") for name in ("won", "tied")}
    np.testing.assert_allclose(
        davidson(chosen, rejected, said["won"], log_nu), -np.log(c / total), rtol=1e-7, atol=1e-9
    )
    np.testing.assert_allclose(
        davidson(chosen, rejected, said["tied"], log_nu), -np.log(nu * np.sqrt(c * r) / total), rtol=1e-7, atol=1e-9
    )


@few
@given(pairs=pairs_of_scores)
def test_without_ties_both_are_bradley_terry(pairs):
    chosen, rejected = tensors(pairs)
    nothing = torch.zeros(len(pairs), dtype=torch.bool)
    expected = bradley_terry(chosen, rejected)
    torch.testing.assert_close(rao_kupper(chosen, rejected, nothing, 0.0), expected)
    torch.testing.assert_close(davidson(chosen, rejected, nothing, -60.0), expected)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_start_makes_equal_answers_tie_that_often(share):
    equal, tie = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.bool)
    assert torch.exp(-rao_kupper(equal, equal, tie, rao_kupper_start(share))).item() == pytest.approx(share)
    assert torch.exp(-davidson(equal, equal, tie, davidson_start(share))).item() == pytest.approx(share)


@pytest.mark.parametrize("name", TIE_LOSSES)
def test_gradients_are_finite_far_out_and_pull_the_two_sides_of_a_tie_together(name):
    loss, start = TIE_LOSSES[name]
    scores = torch.tensor([[-80.0, 80.0, 3.0], [80.0, -80.0, -3.0]], requires_grad=True)
    number = torch.tensor([start(0.2)], requires_grad=True)
    losses = loss(scores[0], scores[1], torch.tensor([False, False, True]), number, 0.0)
    gradient, of_number = torch.autograd.grad(losses.sum(), (scores, number))
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(of_number).all()
    assert gradient[0, 2] > 0 > gradient[1, 2]


@few
@given(scores=st.lists(score, min_size=2, max_size=5, unique=True))
def test_plackett_luce_is_a_distribution_over_rankings(scores):
    values = torch.tensor(scores, dtype=torch.float64)
    orders = torch.tensor(list(permutations(range(len(scores)))))
    losses = plackett_luce(values[orders], torch.ones(orders.shape, dtype=torch.bool))
    assert torch.exp(-losses).sum().item() == pytest.approx(1)
    weights = np.exp(np.array(scores))
    expected = [
        np.prod([weights[k] / weights[order[place:]].sum() for place, k in enumerate(order)])
        for order in orders.numpy()
    ]
    np.testing.assert_allclose(torch.exp(-losses), expected, rtol=1e-9)


@few
@given(pairs=pairs_of_scores)
def test_two_places_are_bradley_terry_and_padding_is_nothing(pairs):
    chosen, rejected = tensors(pairs)
    padded = torch.stack([chosen, rejected, torch.full_like(chosen, 5.0)], dim=-1).requires_grad_()
    ranked = torch.tensor([[True, True, False]]).expand(len(pairs), 3)
    losses = plackett_luce(padded, ranked)
    torch.testing.assert_close(losses, bradley_terry(chosen, rejected))
    (gradient,) = torch.autograd.grad(losses.sum(), padded)
    assert torch.equal(gradient[:, 2], torch.zeros(len(pairs), dtype=torch.float64))
    assert torch.isfinite(gradient).all()


def test_members_are_computed_side_by_side():
    scores = torch.randn(3, 4, 5, dtype=torch.float64)
    ranked = torch.ones(4, 5, dtype=torch.bool)
    together = plackett_luce(scores, ranked)
    torch.testing.assert_close(together, torch.stack([plackett_luce(each, ranked) for each in scores]))


def test_the_absolute_error_is_the_formula_and_unknown_scores_pull_nothing():
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True)
    human = torch.tensor([3.0, float("nan")])
    scale, shift = torch.tensor([[2.0]]), torch.tensor([[0.5]])
    found = absolute_error(scores, human, scale, shift)
    assert found.tolist() == [[(2 * 1 + 0.5 - 3) ** 2, 0.0]]
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    assert gradient.tolist() == [[2 * 2 * (2 * 1 + 0.5 - 3), 0.0]]


@few
@given(rows=st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 400)), min_size=3, max_size=20))
def test_the_correlation_is_pearsons(rows):
    x, y = np.array(rows).T
    found = correlation(torch.tensor(x)[None], torch.tensor(y))
    if x.std() * y.std() > 1e-3:
        assert found.item() == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert abs(found.item()) <= 1 + 1e-9


def test_the_length_penalty_is_least_where_the_length_head_alone_knows_the_length():
    tokens = torch.tensor([1.0, 2.0, 3.0, 4.0])
    knows, knows_not = 2 * tokens[None] + 7, torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    assert length_penalty(knows_not, knows, tokens).item() == pytest.approx(0)
    assert length_penalty(knows, knows_not, tokens).item() == pytest.approx(2)
    assert length_penalty(-knows, -knows, tokens).item() == pytest.approx(3)
    assert torch.equal(correlation(torch.ones(1, 4), tokens), torch.zeros(1))
    assert overlap(torch.tensor([[1.0, 2.0]]), torch.tensor([[-3.0, 1.0]])).item() == 1
