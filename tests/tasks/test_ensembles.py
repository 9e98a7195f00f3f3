"""From members to a reward: the equations, their limits, and best-of-n under a heavy-tailed proxy (Goodhart)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tasks._maths.ensembles import AGGREGATES, aggregate
from tasks._maths.overoptimisation import fit_turning, kl_of_best_of_n

SCORES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-50, 50))
SIZES = (1, 4, 16, 64, 256, 1024)
# methods.md, T8: gold of the pick of best of n, five proxies g + noise of Student's t with 2.2 degrees of freedom.
GOODHART = {
    "single": (0, 0.56, 0.74, 0.54, 0.29, 0.18),
    "mean": (0, 0.78, 1.17, 1.19, 0.83, 0.40),
    "wco": (0, 0.69, 1.34, 1.87, 2.30, 2.66),
    "uwo": (0, 0.71, 1.39, 1.90, 2.34, 2.72),
}
TRIALS, CHUNK = 2000, 200
# Four standard errors of a mean over the trials of something with deviation about 1.
TOLERANCE = 4 / np.sqrt(TRIALS)


def test_equations_on_a_row():
    scores = np.array([[1.0, 2.0, 6.0]])
    variance = (4 + 1 + 9) / 3
    for how, strength, expected in (
        ("mean", 0.0, 3.0),
        ("wco", 0.0, 1.0),
        ("uwo", 0.5, 3 - 0.5 * variance),
        ("soft", 2.0, -2 * np.log((np.exp(-0.5) + np.exp(-1) + np.exp(-3)) / 3)),
    ):
        reward, uncertainty = aggregate(scores, how, strength)
        np.testing.assert_allclose(reward, [expected])
        np.testing.assert_allclose(uncertainty, [np.sqrt(variance)])


@settings(max_examples=40)
@given(scores=SCORES, strength=st.floats(0.01, 100))
def test_between_the_lowest_and_the_mean(scores, strength):
    low, mean = scores.min(axis=1), scores.mean(axis=1)
    soft, uncertainty = aggregate(scores, "soft", strength)
    assert np.all(soft >= low - 1e-9) and np.all(soft <= mean + 1e-9)
    assert np.all(aggregate(scores, "uwo", strength)[0] <= mean + 1e-9)
    assert np.all(uncertainty <= (scores.max(axis=1) - low) / 2 + 1e-9)


@settings(max_examples=40)
@given(scores=SCORES)
def test_the_soft_minimum_goes_from_the_lowest_to_the_mean(scores):
    np.testing.assert_allclose(aggregate(scores, "soft", 1e-6)[0], scores.min(axis=1), atol=1e-4)
    np.testing.assert_allclose(aggregate(scores, "soft", 1e7)[0], scores.mean(axis=1), atol=1e-3)


@settings(max_examples=40)
@given(
    scores=arrays(np.float64, st.tuples(st.integers(1, 6), st.just(1)), elements=st.floats(-50, 50)),
    how=st.sampled_from(sorted(AGGREGATES)),
)
def test_one_member_is_itself_and_has_no_uncertainty(scores, how):
    reward, uncertainty = aggregate(scores, how, 0.5)
    np.testing.assert_allclose(reward, scores[:, 0])
    assert not uncertainty.any()


def test_of_normal_members_the_soft_minimum_is_uwo():
    scores = np.random.default_rng(0).normal(1.0, 0.5, (4, 200_000))
    np.testing.assert_allclose(aggregate(scores, "soft", 2.0)[0], aggregate(scores, "uwo", 1 / 4)[0], atol=2e-3)


@pytest.mark.parametrize(
    ("scores", "how", "strength", "said"),
    [
        (np.zeros((2, 0)), "mean", 0.5, "at least one member"),
        (np.zeros(3), "mean", 0.5, "rows x members"),
        (np.zeros((2, 2)), "median", 0.5, "expected one of mean, wco, uwo, soft"),
        (np.zeros((2, 2)), "uwo", -0.1, "0 or more"),
        (np.zeros((2, 2)), "soft", 0.0, "above 0"),
    ],
)
def test_what_can_not_be_aggregated(scores, how, strength, said):
    with pytest.raises(ValueError, match=said):
        aggregate(scores, how, strength)


def best_of_n(noise, seed, trials=TRIALS):
    """Mean gold of the pick for each way and size: prefixes of the same candidates."""
    random = np.random.default_rng(seed)
    totals = {name: np.zeros(len(SIZES)) for name in GOODHART}
    for _ in range(trials // CHUNK):
        gold = random.normal(size=(CHUNK, SIZES[-1]))
        proxies = gold[..., None] + noise(random, (CHUNK, SIZES[-1], 5))
        flat = proxies.reshape(-1, 5)
        rewards = {how: aggregate(flat, how, 0.5)[0].reshape(gold.shape) for how in ("mean", "wco", "uwo")}
        for name, reward in {"single": proxies[..., 0], **rewards}.items():
            for place, n in enumerate(SIZES):
                picked = reward[:, :n].argmax(axis=1)
                totals[name][place] += gold[np.arange(CHUNK), picked].sum()
    return {name: total / trials for name, total in totals.items()}


@pytest.fixture(scope="module")
def heavy_tailed():
    return best_of_n(lambda random, shape: random.standard_t(2.2, shape), seed=1)


@pytest.mark.parametrize("how", GOODHART)
def test_goodhart_under_heavy_tails(heavy_tailed, how):
    np.testing.assert_allclose(heavy_tailed[how], GOODHART[how], atol=TOLERANCE)


def test_a_single_proxy_turns_and_the_cautious_ones_do_not(heavy_tailed):
    single, mean = heavy_tailed["single"], heavy_tailed["mean"]
    assert single.argmax() == 2 and single[-1] < 0.5 * single.max()
    assert mean.argmax() in (2, 3) and mean[-1] < 0.5 * mean.max()
    for how in ("wco", "uwo"):
        assert heavy_tailed[how].argmax() == len(SIZES) - 1
    distance = np.sqrt(kl_of_best_of_n(np.array(SIZES, dtype=np.float64)))
    turning = fit_turning(distance, single, form="best_of_n", seed=0)
    assert turning.reached and distance[1] < turning.distance < distance[3]


def test_under_normal_noise_nothing_turns():
    found = best_of_n(lambda random, shape: random.normal(size=shape), seed=2, trials=400)
    for how, gold in found.items():
        assert np.all(np.diff(gold) > 0), how
