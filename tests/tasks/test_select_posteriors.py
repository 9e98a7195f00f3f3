"""Posteriors of pass rates against their sources, closed forms and independent computations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks._maths.posteriors import (
    Beta,
    Moments,
    adapt_rate,
    expected_informative,
    informative,
    informative_gains,
    keep_probability,
    relax,
    samples_needed,
    update_beta,
    update_moments,
)

PRIOR = (1.0, 1.0)
# methods.md, 1.3: 1 - p^n - (1-p)^n.
INFORMATIVE = [
    *((0.01, 8, 0.077), (0.01, 32, 0.275), (0.01, 128, 0.724), (0.05, 8, 0.337), (0.05, 32, 0.806), (0.05, 128, 0.999)),
    *((0.1, 8, 0.570), (0.1, 32, 0.966), (0.2, 8, 0.832), (0.3, 4, 0.752), (0.3, 8, 0.942), (0.5, 4, 0.875)),
    (0.5, 8, 0.992),
]


def beta(alpha, beta_):
    return Beta(np.atleast_1d(np.asarray(alpha, float)), np.atleast_1d(np.asarray(beta_, float)))


def one(value) -> float:
    return float(np.asarray(value).item())


@pytest.mark.parametrize(("rate", "samples", "chance"), INFORMATIVE)
def test_the_chance_to_be_informative(rate, samples, chance):
    assert one(informative(rate, samples)) == pytest.approx(chance, abs=6e-4)


def test_mopps_update_by_hand():
    """a <- d a + (1-d) a0 + s with d = 0.5, a0 = b0 = 1: from the prior, then 8 of 8, then 0 of 8."""
    first = update_beta(beta(1, 1), np.array([8.0]), np.array([8]), PRIOR, 0.5)
    assert (one(first.alpha), one(first.beta), one(first.mean)) == (9, 1, 0.9)
    second = update_beta(first, np.array([0.0]), np.array([8]), PRIOR, 0.5)
    assert (one(second.alpha), one(second.beta)) == (5, 9)
    soft = update_beta(beta(1, 1), np.array([2.5]), np.array([4]), (2.0, 1.0), 0.5)
    assert (one(soft.alpha), one(soft.beta)) == (4.0, 2.5)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(8, 16)), min_size=1, max_size=6))
def test_without_discount_it_is_counting(groups):
    posterior = beta(1, 1)
    for passed, samples in groups:
        posterior = update_beta(posterior, np.array([passed]), np.array([samples]), PRIOR, 1.0)
    passes, total = sum(passed for passed, _ in groups), sum(samples for _, samples in groups)
    assert one(posterior.alpha) == pytest.approx(1 + passes)
    assert one(posterior.beta) == pytest.approx(1 + total - passes)


def test_evidence_relaxes_to_the_prior():
    assert one(relax(beta(9, 3), PRIOR, np.array([1.0])).alpha) == 9
    assert one(relax(beta(9, 3), PRIOR, np.array([0.25])).alpha) == 3
    assert one(relax(beta(9, 3), PRIOR, np.array([0.0])).beta) == 1


@settings(max_examples=50, deadline=None)
@given(
    groups=st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=5),
    discount=st.floats(0.05, 1),
)
def test_the_moments_are_those_of_all_rewards_under_their_weights(groups, discount):
    moments = Moments(np.zeros(1), np.full(1, np.nan), np.full(1, np.nan))
    for rewards in groups:
        mean, variance = np.array([np.mean(rewards)]), np.array([np.var(rewards)])
        moments = update_moments(moments, np.array([len(rewards)]), mean, variance, discount)
    values = np.concatenate(groups)
    age = np.concatenate([np.full(len(rewards), len(groups) - 1 - k) for k, rewards in enumerate(groups)])
    weights = discount**age
    mean = np.average(values, weights=weights)
    assert one(moments.weight) == pytest.approx(weights.sum())
    assert one(moments.mean) == pytest.approx(mean, abs=1e-9)
    assert one(moments.variance) == pytest.approx(np.average((values - mean) ** 2, weights=weights), abs=1e-9)


@given(rate=st.floats(0.02, 0.98), target=st.floats(0.05, 0.99))
def test_the_smallest_number_of_samples_that_suffices(rate, target):
    needed = one(samples_needed(np.array([rate]), target, 300))
    if needed < 300:
        assert informative(rate, int(needed)) >= target
    assert needed == 2 or informative(rate, int(needed) - 1) < target


def test_over_the_uniform_prior_one_group_in_half_n_is_not_informative():
    """Under Beta(1, 1) every number of passes is equally likely: 1 - 2 / (n + 1)."""
    samples = np.arange(1, 20)
    chances = expected_informative(beta(np.ones(19), np.ones(19)), samples)
    np.testing.assert_allclose(chances, 1 - 2 / (samples + 1))


def test_the_expectation_is_that_of_rates_from_the_posterior():
    rates = np.random.default_rng(0).beta(2.5, 7.0, 400_000)
    for samples in (2, 8, 20):
        expected = one(expected_informative(beta(2.5, 7.0), np.array([samples])))
        assert expected == pytest.approx(informative(rates, samples).mean(), abs=2e-3)


@given(alpha=st.floats(0.2, 50), beta_=st.floats(0.2, 50))
def test_gains_are_differences_and_never_grow(alpha, beta_):
    posterior = beta(alpha, beta_)
    gains = informative_gains(posterior, 2, 30)[:, 0]
    chances = [one(expected_informative(posterior, np.array([n]))) for n in range(2, 31)]
    np.testing.assert_allclose(gains, np.diff(chances), atol=1e-12)
    assert (np.diff(gains) <= 0).all()


def test_greso_keeps_by_the_streak_and_moves_toward_its_target():
    np.testing.assert_allclose(keep_probability(np.array([0, 1, 2, 20]), 0.5, 0.01), [1, 0.5, 0.25, 0.01])
    limits = {"step": 0.01, "low": 0.05, "high": 0.95}
    assert adapt_rate(0.5, share=0.3, target=0.25, **limits) == pytest.approx(0.49), "too many: skip more"
    assert adapt_rate(0.5, share=0.1, target=0.25, **limits) == pytest.approx(0.51)
    assert adapt_rate(0.05, share=0.3, target=0.25, **limits) == 0.05
    assert adapt_rate(0.95, share=0.0, target=0.25, **limits) == 0.95
