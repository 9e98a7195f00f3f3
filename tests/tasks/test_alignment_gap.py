"""The alignment gap: its numbers on rows, its intervals, its slices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tasks._maths.alignment_gap import (
    correlation_interval,
    expected_error,
    gap_measures,
    largest_error,
    quantile_labels,
    reliability,
    slice_measures,
    worst_slices,
)
from tasks._maths.length_bias import partial_correlation


def test_the_numbers():
    random = np.random.default_rng(0)
    human = random.normal(5, 1, 400)
    model = human + 0.3 + 0.5 * random.normal(size=400)
    found = {each.measure: each for each in gap_measures(model, human, np.arange(400), seed=0)}
    gap = model - human
    assert found["gap_bias"].value == pytest.approx(gap.mean())
    assert found["gap_mae"].value == pytest.approx(np.abs(gap).mean())
    assert found["gap_rmse"].value == pytest.approx(np.sqrt((gap**2).mean()))
    assert found["gap_spearman"].value == pytest.approx(spearmanr(model, human).statistic)
    for name in ("gap_bias", "gap_mae", "gap_rmse", "gap_spearman"):
        assert found[name].low < found[name].value < found[name].high
    assert found["gap_bias"].low < 0.3 < found["gap_bias"].high
    assert found["gap_max_bin"].value >= found["gap_ece"].value > 0.2
    assert gap_measures(np.zeros(0), np.zeros(0), np.zeros(0), seed=0) == []


def test_ece_of_a_table():
    """Two bins by hand: 0.6 said and 0.5 came, 0.9 said and 1.0 came."""
    said = np.repeat([0.6, 0.9], [20, 40])
    came = np.concatenate([np.tile([0.0, 1.0], 10), np.ones(40)])
    bins = reliability(said, came, np.arange(60), seed=0)
    assert [(each.count, each.observed) for each in bins] == [(20, 0.5), (40, 1.0)]
    assert expected_error(bins) == pytest.approx((20 * 0.1 + 40 * 0.1) / 60)
    assert largest_error(bins) == pytest.approx(0.1)
    assert reliability(said[:0], came[:0], np.zeros(0), seed=0) == [] and expected_error([]) == 0


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.7]), min_size=1, max_size=300),
    seed=st.integers(0, 100),
)
def test_bins_hold_every_row_once_and_equal_predictions_together(values, seed):
    said = np.array(values)
    bins = reliability(said, said, np.arange(len(said)), seed=seed)
    assert sum(each.count for each in bins) == len(said)
    assert expected_error(bins) == pytest.approx(0, abs=1e-12)
    again = reliability(said[::-1], said[::-1], np.arange(len(said)), seed=seed)
    assert [each.count for each in again] == [each.count for each in bins]


def test_slices_and_the_worst_of_them():
    random = np.random.default_rng(0)
    domain = np.repeat(["maths", "prose", "rare", ""], [100, 100, 5, 100])
    gap = np.where(domain == "maths", 0.5, 0.02) + 0.2 * random.normal(size=305)
    found = slice_measures("gap_bias", gap, {"domain": domain}, np.arange(305), fewest=20, seed=0)
    assert [each.slice for each in found] == ["domain: maths", "domain: prose"]
    [worst] = worst_slices(found, 0.0, 1)
    assert worst.slice == "domain: maths" and worst.low > 0.3
    prose = found[1]
    assert prose.low < 0 < prose.high


def test_many_slices_of_nothing_show_no_finding():
    """Intervals are of all slices together: of 40 without a bias none is a finding in most draws."""
    findings = 0
    for seed in range(4):
        gap = np.random.default_rng(seed).normal(size=1200)
        labels = np.array([f"d{each}" for each in np.arange(1200) % 40])
        found = slice_measures("gap_bias", gap, {"domain": labels}, np.arange(1200), fewest=20, seed=seed)
        findings += any(not each.low <= 0 <= each.high for each in found)
    assert findings <= 1


def test_labels_of_quarters():
    lengths = np.array([1.0, 2, 3, 4, 5, 6, 7, 9])
    labels = quantile_labels(lengths, "tokens")
    assert len(set(labels)) == 4 and labels[0] == labels[1] and labels[0].endswith("tokens")
    assert set(quantile_labels(np.full(5, 3.0), "tokens")) == {""}


def test_the_interval_of_a_correlation_resamples_whole_clusters():
    """Twenty copies of each row are no more than one, and it is as wide as Fisher's (1 - r^2) / sqrt(n) says."""
    random = np.random.default_rng(0)
    x = random.normal(size=200)
    columns = np.column_stack([x, x + random.normal(size=200)])
    value = spearmanr(*columns.T).statistic
    low, high = correlation_interval(np.repeat(columns, 20, axis=0), np.repeat(np.arange(200), 20), seed=0)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * (1 - value**2) / np.sqrt(200), rel=0.25)


def test_the_interval_of_a_partial_correlation_holds_it():
    random = np.random.default_rng(1)
    z = random.normal(size=(300, 2))
    x, y = z.sum(axis=1) + random.normal(size=300), z[:, 0] - z[:, 1] + random.normal(size=300)
    value = partial_correlation(x, y, z)
    low, high = correlation_interval(np.column_stack([x, y, z]), np.arange(300), seed=0)
    assert low < value < high and high - low < 0.3
    constant = np.column_stack([x, np.ones(300)])
    assert correlation_interval(constant, np.arange(300), seed=0) == (None, None)
