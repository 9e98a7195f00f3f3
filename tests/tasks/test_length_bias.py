"""Length: correlation at fixed quality, the rate at equal length, and rewards without its effect."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from tasks._maths.length_bias import (
    effect_at,
    fixed_quality_effect,
    lowess_effect,
    partial_correlation,
    rate_at_equal_length,
)


def test_a_partial_correlation_is_that_of_residuals():
    """With one control: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)) of the ranks."""
    random = np.random.default_rng(0)
    z = random.normal(size=80)
    x, y = z + random.normal(size=80), z - random.normal(size=80)
    ranks = np.corrcoef([rankdata(each) for each in (x, y, z)])
    expected = (ranks[0, 1] - ranks[0, 2] * ranks[1, 2]) / np.sqrt((1 - ranks[0, 2] ** 2) * (1 - ranks[1, 2] ** 2))
    assert partial_correlation(x, y, z[:, None]) == pytest.approx(expected)
    assert partial_correlation(x, y, np.zeros((80, 0))) == pytest.approx(ranks[0, 1])


def test_without_variation_there_is_no_correlation():
    values = np.arange(10.0)
    assert partial_correlation(values, np.ones(10), np.zeros((10, 0))) is None
    assert partial_correlation(values, values, values[:, None]) is None
    assert partial_correlation(values[:2], values[:2], np.zeros((2, 0))) is None


def compared(count, seed, bias):
    """Differences of pairs: the margin is quality plus a bent effect of length; better answers are longer too."""
    random = np.random.default_rng(seed)
    quality = random.normal(size=(count, 2))
    log_length = 4 + 0.5 * (0.4 * quality + random.normal(size=(count, 2)))
    better = np.argmax(quality, axis=1)
    rows = np.arange(count)
    order = np.stack([better, 1 - better], axis=1)
    quality, log_length = quality[rows[:, None], order], log_length[rows[:, None], order]
    added = bias * np.minimum(log_length - 4, 0.4)
    reward = quality + added + 0.1 * random.normal(size=(count, 2))
    return reward, np.expm1(log_length), quality, added


def rho(reward, length, quality):
    differences = [each[:, 0] - each[:, 1] for each in (reward, length, quality)]
    return partial_correlation(differences[0], differences[1], differences[2][:, None])


def test_the_effect_at_fixed_quality_is_found_and_taken_away():
    reward, length, quality, added = compared(3000, 0, bias=1.0)
    effect = fixed_quality_effect(
        reward[:, 0] - reward[:, 1], length[:, 0], length[:, 1], (quality[:, 0] - quality[:, 1])[:, None]
    )
    found = effect_at(effect, length)
    assert np.abs((found - found.mean()) - (added - added.mean())).mean() < 0.03
    assert rho(reward, length, quality) > 0.5
    assert abs(rho(reward - found, length, quality)) < 0.05


def test_no_effect_is_found_where_none_is():
    reward, length, quality, _ = compared(3000, 1, bias=0.0)
    effect = fixed_quality_effect(
        reward[:, 0] - reward[:, 1], length[:, 0], length[:, 1], (quality[:, 0] - quality[:, 1])[:, None]
    )
    assert np.ptp(effect_at(effect, length)) < 0.1


def test_lowess_follows_a_bend_and_not_the_outliers():
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(2, 6, 600))
    truth = np.where(x < 4, x, 4.0)
    values = truth + 0.1 * random.normal(size=600)
    values[::40] += 8
    effect = lowess_effect(values, np.expm1(x), fraction=0.3)
    inner = (x > 2.3) & (x < 5.7)
    found = effect_at(effect, np.expm1(x))
    assert np.abs((found - found[inner].mean()) - (truth - truth[inner].mean()))[inner].mean() < 0.06


@given(slope=st.floats(-3, 3), offset=st.floats(-5, 5), count=st.integers(5, 200))
def test_lowess_of_a_line_is_the_line(slope, offset, count):
    x = np.linspace(1, 6, count)
    found = effect_at(lowess_effect(offset + slope * x, np.expm1(x)), np.expm1(x))
    line = slope * x
    np.testing.assert_allclose(found, line - line.mean(), atol=1e-6)


def test_equal_lengths_have_no_effect():
    effect = lowess_effect(np.arange(10.0), np.full(10, 7.0))
    np.testing.assert_allclose(effect_at(effect, np.array([1.0, 7.0, 90.0])), 0.0, atol=1e-9)


def test_the_rate_at_equal_length():
    """LC-AlpacaEval: of a win rate that length made, what theta leaves; without an effect the rate itself."""
    random = np.random.default_rng(0)
    longer = random.normal(40, 60, 20_000)
    theta, phi = 0.3, 1.5
    chance = 1 / (1 + np.exp(-(theta + phi * np.tanh(longer / longer.std()))))
    won = (random.random(20_000) < chance).astype(float)
    assert won.mean() > 0.66
    assert rate_at_equal_length(won, longer) == pytest.approx(1 / (1 + np.exp(-theta)), abs=0.015)
    assert rate_at_equal_length(won, np.zeros(20_000)) == pytest.approx(won.mean(), abs=1e-4)
    hard = random.normal(size=20_000)
    chance = 1 / (1 + np.exp(-(theta + 2 * hard)))
    won = (random.random(20_000) < chance).astype(float)
    assert rate_at_equal_length(won, longer, hard) == pytest.approx(1 / (1 + np.exp(-theta)), abs=0.02)
    assert rate_at_equal_length(np.zeros(0), np.zeros(0)) is None
