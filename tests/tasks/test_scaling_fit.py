"""Fits recover what was planted: sigmoids, ScaleRL's curve with its interval, the frontier of n over compute."""

import numpy as np
import pytest

from tasks._maths.compute_optimal import FITS
from tasks._maths.frontier import enough, record_points, records, refit, running_mean
from tasks._maths.reward_curve import RewardCurve, fit_curve
from tasks._maths.sigmoid import Sigmoid, fit_sigmoid
from tasks._maths.trends import slope_t


@pytest.mark.parametrize("name", list(FITS))
def test_a_planted_fit_is_recovered(name):
    planted = FITS[name].sigmoid
    x = np.linspace(planted.midpoint - 1.2, planted.midpoint + 1.2, 40)
    found = fit_sigmoid(x, planted(x))
    assert found(x) == pytest.approx(planted(x), abs=1e-4)
    for field in ("height", "midpoint", "floor"):
        assert getattr(found, field) == pytest.approx(getattr(planted, field), rel=2e-3)
    assert found.slope == pytest.approx(planted.slope, rel=1e-2)


def test_a_noisy_fit_is_near_what_was_planted():
    planted = FITS["easy"].sigmoid
    x = np.linspace(4.5, 7.5, 60)
    found = fit_sigmoid(x, planted(x) + np.random.default_rng(0).normal(0, 0.2, 60))
    assert found.midpoint == pytest.approx(5.84, abs=0.1)
    assert (found.floor, found.ceiling) == (pytest.approx(2.73, abs=0.3), pytest.approx(8.82, abs=0.3))


def test_a_fit_never_falls_and_needs_two_points():
    falling = fit_sigmoid(np.arange(5.0), -np.arange(5.0))
    assert falling.height == 0 and falling.floor == pytest.approx(-2)
    with pytest.raises(ValueError, match="needs at least two"):
        fit_sigmoid(np.ones(4), np.arange(4.0))


def test_a_sigmoid_far_left_is_its_floor():
    assert Sigmoid(2.0, 3.0, 1.0, 0.5)(np.array([-np.inf, 1.0, np.inf])) == pytest.approx([0.5, 1.5, 2.5])


CURVE = RewardCurve(start=0.2, asymptote=0.61, middle=8_000.0, exponent=1.4)


def test_the_curve_of_scalerl():
    assert CURVE(np.array([0.0, 8_000.0, 1e12])) == pytest.approx([0.2, 0.405, 0.61])
    compute = 12_345.0
    assert CURVE(compute) == pytest.approx(0.2 + 0.41 / (1 + (8_000 / compute) ** 1.4))


def test_a_planted_curve_is_recovered():
    compute = np.concatenate([[0.0], np.geomspace(500, 200_000, 14)])
    fit = fit_curve(compute, CURVE(compute), seed=0, resamples=20)
    assert (fit.curve.start, fit.curve.asymptote) == (pytest.approx(0.2, abs=1e-3), pytest.approx(0.61, abs=1e-3))
    assert fit.curve.middle == pytest.approx(8_000, rel=0.01) and fit.curve.exponent == pytest.approx(1.4, rel=0.01)
    assert fit.determined
    assert fit.gain_left.value == pytest.approx(0.61 - float(CURVE(200_000.0)), abs=1e-3)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    compute = np.linspace(0, 60_000, 24)
    inside = 0
    for trial in range(20):
        noisy = CURVE(compute) + np.random.default_rng(trial).normal(0, 0.01, len(compute))
        fit = fit_curve(compute, noisy, seed=trial, resamples=60)
        inside += fit.asymptote.low <= 0.61 <= fit.asymptote.high
        at = np.searchsorted(fit.compute, 30_000)
        assert fit.high[at] - fit.low[at] < 0.05
    assert 16 <= inside <= 20


def test_scores_that_only_begin_to_rise_leave_the_end_open():
    compute = np.linspace(0, 4_000, 12)
    noisy = CURVE(compute) + np.random.default_rng(1).normal(0, 0.01, len(compute))
    fit = fit_curve(compute, noisy, seed=0, resamples=60)
    assert not fit.determined or fit.asymptote.high - fit.asymptote.low > 0.1


def test_a_fit_is_the_same_again_and_needs_six_points():
    compute = np.linspace(0, 9_000, 6)
    noisy = CURVE(compute) + np.array([0.01, -0.01, 0.0, 0.01, -0.01, 0.0])
    first, second = (fit_curve(compute, noisy, seed=3, resamples=10) for _ in range(2))
    assert first.asymptote == second.asymptote and first.low.tolist() == second.low.tolist()
    assert fit_curve(compute[:5], noisy[:5], seed=3) is None
    assert fit_curve(np.zeros(8), np.ones(8), seed=3) is None


def test_records_are_the_points_that_reach_a_new_bin():
    reward = np.array([0.201, 0.204, 0.215, 0.19, 0.219, 0.30, 0.299])
    assert records(reward, 0.01).tolist() == [True, False, True, False, False, True, False]


def planted_runs(fit: Sigmoid, sizes: list[int], points: int = 60) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """A run per n, so made that its curve takes over from the smaller n's where the fit passes between the two."""
    exponent, runs, middle = 1.0, {}, 10**4.5
    compute = np.geomspace(1e4, 1e7, points)
    for rank, samples in enumerate(sizes):
        end = 0.4 + 0.06 * rank
        if rank:
            between = (np.log2(sizes[rank - 1]) + np.log2(samples)) / 2
            crossing = fit.midpoint - np.log(fit.height / (between - fit.floor) - 1) / fit.slope
            value = (end - 0.06) / (1 + (middle / 10**crossing) ** exponent)
            middle = 10**crossing * (end / value - 1) ** (1 / exponent)
        runs[samples] = [(compute, end / (1 + (middle / compute) ** exponent))]
    return runs


@pytest.mark.parametrize("fit", [Sigmoid(6.0, 4.75, 5.84, 2.73), Sigmoid(5.0, 7.0, 5.5, 2.9)])
def test_a_planted_frontier_is_recovered(fit):
    sizes = [2**power for power in range(3, 9)]
    frontier = refit(record_points(planted_runs(fit, sizes), bin_width=0.005))
    for log_compute in np.linspace(fit.midpoint - 0.35, fit.midpoint + 0.35, 8):
        found, expected = frontier.samples(10**log_compute), 2 ** float(fit(log_compute))
        assert abs(np.log2(found / expected)) < 0.6, log_compute
    assert frontier.fit.midpoint == pytest.approx(fit.midpoint, abs=0.12)
    assert frontier.samples(1e12) == frontier.samples(frontier.high)


def test_the_frontier_needs_three_sizes_with_four_records():
    fit = Sigmoid(6.0, 4.75, 5.84, 2.73)
    two = record_points(planted_runs(fit, [8, 16]))
    assert not enough(two)
    with pytest.raises(ValueError, match="2 group sizes"):
        refit(two)
    short = {
        n: [(compute[:3], reward[:3]) for compute, reward in runs] for n, runs in planted_runs(fit, [8, 16, 32]).items()
    }
    assert not enough(record_points(short))


def test_running_mean_at_the_ends():
    assert running_mean(np.array([1.0, 2.0, 6.0]), 3).tolist() == [1.5, 3.0, 4.0]


def test_slope_in_standard_errors():
    # y = 0, 1, 1, 2: slope 0.6, residual sum of squares 0.2, error sqrt(0.2 / 2 / 5).
    assert slope_t(np.array([0.0, 1.0, 1.0, 2.0])) == pytest.approx(0.6 / np.sqrt(0.02))
    assert slope_t(np.arange(5.0)) == np.inf and slope_t(-np.arange(5.0)) == -np.inf and slope_t(np.ones(5)) == 0
    with pytest.raises(ValueError, match="no trend"):
        slope_t(np.array([1.0, 2.0]))
