"""Linear Bradley-Terry with ridge: against scipy's own minimiser, closed forms, and what must not depend on what."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tasks._maths.folds import grouped_folds, some_clusters
from tasks._maths.linear_preferences import Labels, fit, fit_path


def drawn(pairs, features, seed):
    random = np.random.default_rng(seed)
    labels = Labels(random.random(pairs), random.exponential(size=pairs), random.normal(size=pairs))
    return random.normal(size=(pairs, features)), labels


@pytest.mark.parametrize(("pairs", "features"), [(30, 4), (6, 25), (10, 10)])
def test_it_is_the_minimum_that_scipy_finds(pairs, features):
    x, labels = drawn(pairs, features, seed=pairs)
    ridge = 0.7

    def objective(theta):
        f = x @ theta - labels.margins
        losses = labels.targets * np.log1p(np.exp(-f)) + (1 - labels.targets) * np.log1p(np.exp(f))
        return float(labels.weights @ losses + ridge / 2 * theta @ theta)

    expected = minimize(objective, np.zeros(features), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(fit(x, labels, ridge), expected.x, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 1000), st.integers(0, 1000))
def test_the_gradient_vanishes_whichever_space_is_smaller(pairs, features, ridge, seed):
    x, labels = drawn(pairs, features, seed)
    theta = fit(x, labels, ridge)
    p = 1 / (1 + np.exp(-(x @ theta - labels.margins)))
    gradient = x.T @ (labels.weights * (p - labels.targets)) + ridge * theta
    assert np.abs(gradient).max() < 1e-3 * (1 + np.abs(labels.weights).sum())


@pytest.mark.parametrize(("epsilon", "margin"), [(0.25, 0.0), (0.1, 0.0), (0.2, 0.7), (0.5, -0.3)])
def test_smoothing_and_margin_on_one_feature(epsilon, margin):
    """All pairs the same: sigma(theta - m) = 1 - epsilon, so theta = m + logit(1 - epsilon); a tie gives m."""
    labels = Labels(np.full(9, 1 - epsilon), np.ones(9), np.full(9, margin))
    found = fit(np.ones((9, 1)), labels, 1e-9)[0]
    assert found == pytest.approx(margin + math.log((1 - epsilon) / epsilon), abs=1e-4)


def test_a_pair_told_the_other_way_round_is_the_same_pair():
    x, labels = drawn(20, 5, seed=3)
    turned = Labels(1 - labels.targets, labels.weights, -labels.margins)
    np.testing.assert_allclose(fit(-x, turned, 1.0), fit(x, labels, 1.0), atol=1e-6)


def test_a_weight_of_two_is_the_pair_twice():
    x, _ = drawn(12, 30, seed=1)
    twice = fit(np.concatenate([x, x[:4]]), Labels.certain(16), 2.0)
    weighted = fit(x, Labels.certain(12).weighted(np.where(np.arange(12) < 4, 2.0, 1.0)), 2.0)
    np.testing.assert_allclose(weighted, twice, atol=1e-6)


def test_a_path_is_its_ridges_one_by_one():
    x, labels = drawn(15, 40, seed=2)
    ridges = [3.0, 300.0, 0.5]
    for found, ridge in zip(fit_path(x, labels, ridges), ridges, strict=True):
        np.testing.assert_allclose(found, fit(x, labels, ridge), atol=1e-5)


@pytest.mark.parametrize(("pairs", "ridges"), [(0, [1.0]), (3, [0.0]), (3, [1.0, -1.0])])
def test_no_pairs_and_no_ridge_are_errors(pairs, ridges):
    with pytest.raises(ValueError, match="expected pairs, and every ridge above 0"):
        fit_path(np.ones((pairs, 2)), Labels.certain(pairs), ridges)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=60), st.integers(2, 5), st.integers(0, 99))
def test_folds_never_part_a_cluster(names, folds, seed):
    clusters = np.array(names)
    if len(set(names)) < folds:
        with pytest.raises(ValueError, match="a cluster for each"):
            grouped_folds(clusters, folds, seed=seed)
        return
    fold_of = grouped_folds(clusters, folds, seed=seed)
    assert set(fold_of) == set(range(folds))
    assert all(len(set(fold_of[clusters == name])) == 1 for name in set(names))
    largest = max(names.count(name) for name in set(names))
    sizes = np.bincount(fold_of)
    assert sizes.max() - sizes.min() <= largest


@settings(max_examples=40)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 99))
def test_drawn_clusters_are_whole_and_the_smaller_draw_is_in_the_larger(names, rows, seed):
    clusters = np.array(names)
    few, more = (some_clusters(clusters, count, seed=seed) for count in (rows, rows + 5))
    assert set(few) <= set(more) and len(few)
    assert {name for name in names if name in clusters[few]} == set(clusters[few])
    assert len(few) == sum(names.count(name) for name in set(clusters[few]))
