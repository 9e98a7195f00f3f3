"""Over-optimisation: the curve of Gao et al. and its turning point, and the alarm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks._maths.overoptimisation import fit_turning, kl_of_best_of_n, turning_point, watch

DISTANCES = np.linspace(0.3, 5.0, 12)


def curve(form, a, b, start=0.0, d=DISTANCES):
    return start + d * (a - b * (d if form == "best_of_n" else np.log(d)))


@pytest.mark.parametrize(("n", "kl"), [(1, 0.0), (8, 1.204), (64, 3.174), (12_500, 8.434)])
def test_kl_of_best_of_n(n, kl):
    """methods.md, 3.5."""
    assert float(kl_of_best_of_n(n)) == pytest.approx(kl, abs=1e-3)


@given(
    form=st.sampled_from(["best_of_n", "rl"]),
    a=st.floats(0.3, 2.0),
    b=st.floats(0.1, 1.0),
    start=st.floats(-3, 3),
)
def test_an_exact_curve_is_found_again(form, a, b, start):
    fit = fit_turning(DISTANCES, curve(form, a, b, start), form=form, seed=0)
    expected = a / (2 * b) if form == "best_of_n" else np.exp(a / b - 1)
    best = a**2 / (4 * b) if form == "best_of_n" else b * np.exp(a / b - 1)
    assert fit.distance == pytest.approx(expected, rel=1e-4)
    assert fit.reward == pytest.approx(start + best, rel=1e-4)
    assert fit.reached == (expected < DISTANCES.max())
    assert fit.start == pytest.approx(start, abs=1e-6)


@pytest.mark.parametrize(("form", "a", "b"), [("best_of_n", 1.0, 0.2), ("rl", 1.0, 0.6)])
def test_the_interval_holds_the_turning_point(form, a, b):
    expected = turning_point(form, a, b)
    held = 0
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 0.05, len(DISTANCES))
        fit = fit_turning(DISTANCES, curve(form, a, b) + noise, form=form, seed=seed)
        held += fit.low <= expected <= fit.high
    assert held >= 50  # of 95 %, less the residuals' own uncertainty: 12 points, 3 unknowns


def test_the_form_that_fits_better_is_chosen():
    assert fit_turning(DISTANCES, curve("rl", 1.0, 0.6), seed=0).form == "rl"
    assert fit_turning(DISTANCES, curve("best_of_n", 1.0, 0.2), seed=0).form == "best_of_n"


def test_what_only_rises_has_no_turning_point():
    fit = fit_turning(DISTANCES, 0.5 * DISTANCES + 0.05 * DISTANCES**2, form="best_of_n", seed=0)
    assert fit.distance == np.inf and not fit.reached


@pytest.mark.parametrize("points", [0, 4])
def test_too_few_points_have_no_curve(points):
    assert fit_turning(DISTANCES[:points], DISTANCES[:points], seed=0) is None


def test_the_alarm():
    steps, wobble = np.arange(6.0), 0.02 * (-1.0) ** np.arange(6)
    assert watch(steps + wobble, -0.5 * steps + wobble).raised
    assert not watch(steps + wobble, 0.5 * steps + wobble).raised
    assert not watch(-steps + wobble, -steps + wobble).raised
    assert not watch(steps + wobble, wobble).raised
    assert watch(steps[:3], -steps[:3]) is None


def test_past_the_turning_point_a_rising_proxy_is_enough():
    gold = curve("rl", 1.0, 0.6) + 0.01 * (-1.0) ** np.arange(len(DISTANCES))
    fit, rising = fit_turning(DISTANCES, gold, form="rl", seed=0), np.sqrt(DISTANCES)
    level = np.full(len(DISTANCES), gold.mean()) + 0.01 * (-1.0) ** np.arange(len(DISTANCES))
    found = watch(rising, level, fit, 5.0)
    assert found.raised and "past the turning point" in found.found
    assert not watch(rising, level, fit, 0.9 * fit.distance).raised
    assert not watch(-rising, level, fit, 5.0).raised


def test_the_alarm_looks_at_the_newest_points_only():
    rising, falling = np.linspace(0, 1, 10), np.linspace(1, 0.8, 6)
    gold = np.concatenate([rising, falling])
    assert watch(np.arange(16.0) + 0.1 * np.sin(np.arange(16)), gold).raised
