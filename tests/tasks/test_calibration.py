"""Calibration to people: affine, isotonic and log-odds maps, cross-fitting, and what an uncertainty is worth."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, ndtr
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from tasks._maths.calibration import (
    apply,
    apply_map,
    cross_fitted,
    fit_affine,
    fit_isotonic,
    fit_log_odds,
    fit_map,
    folds_of,
    slope_at,
    steepness,
)
from tasks._maths.uncertainty import (
    chance_right,
    covered,
    fit_right,
    fit_spread,
    log_loss,
    not_confidently_wrong,
    z_of,
)


def scored(count, seed=0, noise=0.4):
    """Scores of a model, and people's, which bend and are noisy."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=count)
    return scores, 5 + 2 * np.tanh(scores) + noise * random.normal(size=count)


def test_affine_is_least_squares():
    scores, human = scored(50)
    found = fit_affine(scores, human)
    assert (found["slope"], found["intercept"]) == pytest.approx(np.polyfit(scores, human, 1))


def test_isotonic_is_pooling_joined_by_lines():
    """in the middle of its blocks it is scikit-learn's, but for the constant that keeps the mean."""
    scores, human = scored(300)
    found = fit_isotonic(scores, human)
    pooled = IsotonicRegression().fit_transform(scores, human)
    heights = np.unique(pooled)
    shift = found["y"][0] - heights[0]
    np.testing.assert_allclose(np.array(found["y"]) - shift, heights, atol=1e-9)
    assert abs(shift) < 0.02
    truth = 5 + 2 * np.tanh(scores)
    assert ((apply_map(found, scores) - truth) ** 2).mean() < ((pooled - truth) ** 2).mean()


@given(seed=st.integers(0, 10_000), count=st.integers(5, 250), rounded=st.booleans())
def test_maps_keep_the_order_and_the_mean(seed, count, rounded):
    scores, human = scored(count, seed)
    scores = np.round(scores, 1) if rounded else scores
    for fit in (fit_affine, fit_isotonic):
        found = fit(scores, human)
        if found["kind"] == "identity":
            continue
        mapped = apply_map(found, scores)
        assert mapped.mean() == pytest.approx(human.mean())
        order = np.argsort(scores, kind="stable")
        steps, apart = np.diff(mapped[order]), np.diff(scores[order])
        assert np.all(steps[apart > 1e-6] > 0) and np.all(np.abs(steps[apart == 0]) < 1e-9)


def test_isotonic_bends_where_affine_can_not():
    training, out = scored(2000, seed=1), scored(2000, seed=2)
    errors = {fit: ((apply_map(fit(*training), out[0]) - out[1]) ** 2).mean() for fit in (fit_affine, fit_isotonic)}
    assert errors[fit_isotonic] < 0.8 * errors[fit_affine]


def test_scores_against_people_get_no_map():
    scores, human = scored(100)
    found = fit_map(scores, -human)
    assert found["kind"] == "identity" and "don't rise" in found["why"]


@pytest.mark.parametrize(("count", "kind"), [(29, "identity"), (30, "affine"), (199, "affine"), (200, "isotonic")])
def test_how_many_scores_carry_which_map(count, kind):
    assert fit_map(*scored(count))["kind"] == kind


def test_the_slope_of_the_log_odds():
    """It is a logistic regression's without intercept, on the pairs in both orders, but for Platt's targets."""
    random = np.random.default_rng(0)
    margins = random.normal(size=20_000)
    margins = np.where(random.random(20_000) < expit(2.5 * margins), margins, -margins)
    slope = fit_log_odds(margins)["slope"]
    both, which = np.concatenate([margins, -margins])[:, None], np.repeat([1, 0], 20_000)
    reference = LogisticRegression(C=1e9, fit_intercept=False).fit(both, which).coef_[0, 0]
    assert slope == pytest.approx(reference, rel=1e-3)
    assert slope == pytest.approx(2.5, rel=0.05)


@given(scale=st.floats(1e-3, 1e3), count=st.integers(1, 50))
def test_pairs_without_an_error_have_finite_odds(scale, count):
    """Platt's targets: the likeliest probability of n equal right pairs is (n + 1) / (n + 2)."""
    margins = np.full(count, scale)
    assert expit(steepness(margins) * scale) == pytest.approx((count + 1) / (count + 2))


def test_worse_than_chance_gets_no_log_odds():
    assert fit_log_odds(np.array([-1.0, -1.0, 0.5]))["kind"] == "identity"
    assert fit_log_odds(np.zeros(4))["kind"] == "identity"
    assert fit_log_odds(np.zeros(0))["kind"] == "identity"


def test_a_calibration_survives_its_file():
    scores, human = scored(300)
    effect = {"log_length": [0.0, 5.0], "effect": [-0.5, 0.5]}
    kept = {"format": 1, "scale": "absolute", "map": fit_isotonic(scores, human), "length": effect}
    lengths = np.expm1(np.linspace(0, 5, 300))
    found = apply(json.loads(json.dumps(kept)), scores, lengths)
    expected = apply_map(kept["map"], scores - np.linspace(-0.5, 0.5, 300))
    np.testing.assert_allclose(found, expected)
    assert np.isnan(apply(kept, np.array([np.nan]), np.array([3.0]))).all()


@pytest.mark.parametrize(
    "kept", [{}, {"format": 2, "map": {"kind": "affine"}}, {"format": 1, "map": {"kind": "cubic"}}]
)
def test_an_unknown_format_is_refused(kept):
    with pytest.raises(ValueError, match="format"):
        apply(kept, np.zeros(2), np.zeros(2))


def test_the_slope_of_a_map():
    np.testing.assert_allclose(slope_at({"kind": "affine", "slope": 3.0, "intercept": 1.0}, np.zeros(2)), 3.0)


@given(clusters=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), folds=st.integers(2, 6))
def test_folds_keep_clusters_whole_and_are_even(clusters, folds):
    found = folds_of(np.array(clusters), folds, seed=3)
    by_cluster = {name: set(found[np.array(clusters) == name]) for name in set(clusters)}
    assert all(len(each) == 1 for each in by_cluster.values())
    sizes = np.bincount([min(each) for each in by_cluster.values()])
    assert sizes.max() - sizes.min() <= 1 and len(sizes) == min(folds, len(by_cluster))


def test_cross_fitting_never_sees_the_row():
    values, folds = np.arange(9.0), np.arange(9) % 3
    seen = []

    def fit(training):
        mean = values[training].mean()
        return lambda rows: seen.append((set(training), set(rows))) or np.full(len(rows), mean)

    found = cross_fitted(fit, folds)
    assert all(not training & rows for training, rows in seen)
    np.testing.assert_allclose(found[folds == 0], values[folds != 0].mean())


def doubtful(count, seed, informative=True):
    """Margins of an ensemble whose truth lies about them with deviation s; chosen is what is truly better."""
    random = np.random.default_rng(seed)
    margin, spread = random.normal(size=count), random.uniform(0.05, 2.0, count)
    truth = margin + (spread if informative else 0.7) * random.normal(size=count)
    return np.where(truth > 0, margin, -margin), spread


def test_an_uncertainty_that_means_something_is_used():
    margins, spread = doubtful(6000, 0)
    slope, doubt = fit_right(margins, spread)
    out = doubtful(6000, 1)
    told, plain = chance_right(*out, slope, doubt), expit(steepness(margins) * out[0])
    assert doubt > 1 and log_loss(told) < log_loss(plain) - 0.02
    assert np.abs(told - ndtr(out[0] / out[1])).mean() < 0.03


def test_an_uncertainty_that_means_nothing_hardly_counts():
    margins, spread = doubtful(6000, 0, informative=False)
    assert fit_right(margins, spread)[1] < 0.2


def test_confidently_wrong_pairs():
    margins, spread = np.array([1.0, -1.0, -1.0]), np.array([0.1, 0.1, 1.0])
    assert not_confidently_wrong(margins, spread, 0.9).tolist() == [True, False, True]
    random = np.random.default_rng(0)
    truth = np.abs(random.normal(size=50_000))
    margins = truth + 0.5 * random.normal(size=50_000)
    assert not_confidently_wrong(margins, np.full(50_000, 0.5), 0.9).mean() >= 0.95


@pytest.mark.parametrize("kappa", [0.0, 1.5])
def test_intervals_from_scatter_and_spread_hold(kappa):
    random = np.random.default_rng(0)
    spread = random.uniform(0.1, 1.5, 8000)
    residual = np.sqrt(0.3**2 + kappa**2 * spread**2) * random.normal(size=8000)
    scatter, factor = fit_spread(residual[:4000], spread[:4000])
    assert (np.sqrt(scatter), np.sqrt(factor)) == pytest.approx((0.3, kappa), abs=0.12)
    deviation = np.sqrt(scatter + factor * spread[4000:] ** 2)
    for level in (0.5, 0.9):
        assert covered(residual[4000:], deviation, level).mean() == pytest.approx(level, abs=0.025)
    assert z_of(0.95) == pytest.approx(1.959964, abs=1e-5)
