"""Losses on preferences against the papers' formulas in NumPy, their gradients, and what noise does to them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._maths.pairwise import bradley_terry
from tasks._maths.preference_losses import PREFERENCE_LOSSES, kto

few = settings(deadline=None, max_examples=40)
ratio = st.floats(-20, 20)


def sigma(x):
    return 1 / (1 + np.exp(-x))


def formula(name, c, r, beta, epsilon):
    stated, swapped = -np.log(sigma(beta * (c - r))), -np.log(sigma(beta * (r - c)))
    return {
        "dpo": stated,
        "ipo": (c - r - 1 / (2 * beta)) ** 2,
        "robust_dpo": ((1 - epsilon) * stated - epsilon * swapped) / (1 - 2 * epsilon),
        "cdpo": (1 - epsilon) * stated + epsilon * swapped,
    }[name]


def slope(name, c, r, beta, epsilon):
    """d loss / d c, by hand; d loss / d r is its negative."""
    s = sigma(beta * (c - r))
    return {
        "dpo": -beta * (1 - s),
        "ipo": 2 * (c - r - 1 / (2 * beta)),
        "robust_dpo": (-(1 - epsilon) * beta * (1 - s) - epsilon * beta * s) / (1 - 2 * epsilon),
        "cdpo": -(1 - epsilon) * beta * (1 - s) + epsilon * beta * s,
    }[name]


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
@few
@given(pairs=st.lists(st.tuples(ratio, ratio), min_size=1, max_size=6), beta=st.floats(0.05, 1), eps=st.floats(0, 0.4))
def test_loss_and_gradient_are_the_papers(name, pairs, beta, eps):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    chosen.requires_grad_(), rejected.requires_grad_()
    found = PREFERENCE_LOSSES[name](chosen, rejected, beta, eps)
    gradients = torch.autograd.grad(found.sum(), (chosen, rejected))
    c, r = np.array(pairs).T
    np.testing.assert_allclose(found.detach(), formula(name, c, r, beta, eps), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(gradients[0], slope(name, c, r, beta, eps), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(gradients[1], -slope(name, c, r, beta, eps), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("margin", [-3.0, 0.0, 5.0])
def test_robust_dpo_on_swapped_labels_is_dpo_on_the_true_ones(margin):
    """E over labels swapped with probability 0.3; label smoothing isn't unbiased in that sense."""
    c, r = torch.tensor([margin], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def expected(name):
        loss = PREFERENCE_LOSSES[name]
        return 0.7 * loss(c, r, 0.5, 0.3) + 0.3 * loss(r, c, 0.5, 0.3)

    clean = PREFERENCE_LOSSES["dpo"](c, r, 0.5, 0.0)
    torch.testing.assert_close(expected("robust_dpo"), clean)
    assert (margin == 0) == bool(torch.isclose(expected("cdpo"), clean))


@pytest.mark.parametrize(("name", "best"), [("ipo", 2.5), ("cdpo", math.log(0.9 / 0.1) / 0.2)])
def test_the_margin_of_ipo_and_of_label_smoothing_has_an_optimum(name, best):
    """1 / (2 beta), and log((1 - eps) / eps) / beta: the gradient changes its sign there."""
    margins = torch.tensor([best - 0.1, best, best + 0.1], dtype=torch.float64, requires_grad=True)
    loss = PREFERENCE_LOSSES[name](margins, torch.zeros(3, dtype=torch.float64), 0.2, 0.1)
    gradient = torch.autograd.grad(loss.sum(), margins)[0].tolist()
    assert gradient[0] < 0 < gradient[2]
    assert gradient[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust_dpo"])
def test_huge_margins_stay_finite(name):
    huge = torch.tensor([-1e4, 1e4])
    assert torch.isfinite(PREFERENCE_LOSSES[name](huge, torch.zeros(2), 1.0, 0.1)).all()


@few
@given(
    rows=st.lists(st.tuples(ratio, st.booleans()), min_size=1, max_size=6),
    estimate=st.floats(-3, 3),
    beta=st.floats(0.05, 1),
)
def test_kto_is_equation_8_and_z0_has_no_gradient(rows, estimate, beta):
    ratios = torch.tensor([r for r, _ in rows], dtype=torch.float64, requires_grad=True)
    desirable = torch.tensor([d for _, d in rows])
    kl = torch.tensor(estimate, dtype=torch.float64, requires_grad=True)
    found = kto(ratios, desirable, kl, beta, 1.5, 0.7)
    z0 = max(estimate, 0.0)
    value = [1.5 * sigma(beta * (r - z0)) if d else 0.7 * sigma(beta * (z0 - r)) for r, d in rows]
    expected = np.array([1.5 if d else 0.7 for _, d in rows]) - value
    np.testing.assert_allclose(found.detach(), expected, atol=1e-9)
    gradient, none = torch.autograd.grad(found.sum(), (ratios, kl), allow_unused=True)
    assert none is None
    s = np.array([sigma(beta * (r - z0)) for r, _ in rows])
    sign = np.array([-1.5 if d else 0.7 for _, d in rows])
    np.testing.assert_allclose(gradient, sign * beta * s * (1 - s), atol=1e-9)


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    found = bradley_terry(chosen, rejected, centering=0.01)
    expected = [math.log(1 + math.exp(-1)) + 0.01 * 1, math.log(1 + math.exp(2)) + 0.01 * 4]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
