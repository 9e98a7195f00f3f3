"""Intervals: coverage by simulation, clusters, and pass@k against its bias-free definition."""

import itertools

import numpy as np
import pytest

from tasks._maths.intervals import bootstrap_mean, paired_bootstrap, pass_at_k, worst_at_k


def test_pass_at_k_table():
    """Methods, section 7: n = 10, c = 3."""
    assert [round(pass_at_k(10, 3, k), 4) for k in (1, 2, 5, 8)] == [0.3, 0.5333, 0.9167, 1.0]


@pytest.mark.parametrize(("samples", "passed", "k"), [(6, 2, 3), (6, 0, 2), (6, 6, 6), (7, 5, 4)])
def test_pass_and_worst_at_k_count_subsets(samples, passed, k):
    outcomes = [1] * passed + [0] * (samples - passed)
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(samples, passed, k) == pytest.approx(np.mean([max(s) for s in subsets]))
    assert worst_at_k(samples, passed, k) == pytest.approx(np.mean([min(s) for s in subsets]))


def test_pass_at_k_is_unbiased():
    """p = 0.1, n = 10, k = 5: truth 0.40951; plugging in c / n gives 0.34852."""
    counts = np.random.default_rng(0).binomial(10, 0.1, size=200_000)
    table = np.array([pass_at_k(10, c, 5) for c in range(11)])
    assert table[counts].mean() == pytest.approx(1 - 0.9**5, abs=0.004)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="k = 9"):
        pass_at_k(8, 1, 9)


def test_the_same_seed_gives_the_same_interval():
    values, clusters = np.random.default_rng(0).normal(size=50), np.arange(50) // 5
    assert bootstrap_mean(values, clusters, seed=3) == bootstrap_mean(values, clusters, seed=3)
    assert bootstrap_mean(values, clusters, seed=3) != bootstrap_mean(values, clusters, seed=4)


def test_standard_error_counts_prompts_and_not_samples():
    """Samples of one prompt that all score alike carry the information of one."""
    prompts = np.random.default_rng(1).normal(size=100)
    values, clusters = np.repeat(prompts, 8), np.repeat(np.arange(100), 8)
    clustered = bootstrap_mean(values, clusters, seed=0).standard_error
    assert clustered == pytest.approx(prompts.std() / 10, rel=0.1)
    assert bootstrap_mean(values, np.arange(800), seed=0).standard_error < clustered / 2


def test_ninety_five_percent_intervals_cover_about_that_often():
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        values = np.repeat(random.normal(size=60), 4) + random.normal(size=240)
        found = bootstrap_mean(values, np.repeat(np.arange(60), 4), seed=trial, resamples=300)
        covered += found.low <= 0.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_pairing_cancels_what_prompts_have_in_common():
    random = np.random.default_rng(3)
    difficulty = 10 * random.normal(size=80)
    before, after = difficulty + random.normal(size=80), difficulty + 1 + random.normal(size=80)
    found = paired_bootstrap(before, after, np.arange(80), seed=0)
    assert found.low > 0
    assert found.standard_error < 0.3 < bootstrap_mean(after, np.arange(80), seed=0).standard_error


def test_nothing_has_no_interval():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean(np.array([]), np.array([]), seed=0)
