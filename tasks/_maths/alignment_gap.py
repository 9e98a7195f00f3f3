"""The alignment gap: what a reward model says of answers or pairs less what people say, with intervals and slices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from tasks._maths.agreement import mean_ranks, spearman
from tasks._maths.intervals import bootstrap_mean

Rows = Float[np.ndarray, " rows"]
BINS, FEWEST_PER_BIN = 10, 20
RESAMPLES = 1000
NO_SPREAD = 1e-12
LEVEL = 0.95


@dataclass(frozen=True)
class Measure:
    """One number of the gap on one slice of the rows ("all": every row), with the interval that is known for it."""

    measure: str
    slice: str
    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Bin:
    """Rows whose predictions lie beside each other: their mean prediction, and the mean of what came, with interval."""

    predicted: float
    observed: float
    low: float
    high: float
    count: int


def gap_measures(model: Rows, human: Rows, clusters: np.ndarray, *, seed: int) -> list[Measure]:
    """Bias, MAE, RMSE, Spearman's correlation, ECE and largest bin gap of scores in people's units.

    g = c(r) - h per answer: bias is its mean, above 0 where the model flatters. `clusters` may hold any values that
    compare equal within a cluster; intervals resample clusters. No rows, no measures.
    """
    model, human = np.asarray(model, dtype=np.float64), np.asarray(human, dtype=np.float64)
    if not len(model):
        return []
    gap, count = model - human, len(model)
    bias, absolute, square = (bootstrap_mean(each, clusters, seed=seed) for each in (gap, np.abs(gap), gap**2))
    measures = [
        Measure("gap_bias", "all", bias.estimate, bias.low, bias.high, count),
        Measure("gap_mae", "all", absolute.estimate, absolute.low, absolute.high, count),
        Measure("gap_rmse", "all", math.sqrt(square.estimate), math.sqrt(square.low), math.sqrt(square.high), count),
    ]
    correlation = spearman(model, human)
    if correlation is not None:
        low, high = correlation_interval(np.column_stack([model, human]), clusters, seed=seed)
        measures.append(Measure("gap_spearman", "all", correlation, low, high, count))
    bins = reliability(model, human, clusters, seed=seed)
    return [
        *measures,
        Measure("gap_ece", "all", expected_error(bins), None, None, count),
        Measure("gap_max_bin", "all", largest_error(bins), None, None, count),
    ]


def reliability(predicted: Rows, observed: Rows, clusters: np.ndarray, *, seed: int, bins: int = BINS) -> list[Bin]:
    """Rows in order of their prediction, in bins of about equal size: at most `bins`, of at least 20 rows each.

    Equal predictions share a bin, so the order of the rows decides nothing.
    """
    count = len(predicted)
    if not count:
        return []
    number = int(np.clip(count // FEWEST_PER_BIN, 1, bins))
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, number + 1)[1:-1]))
    place = np.searchsorted(edges, predicted, side="right")
    found = []
    for each in np.unique(place):
        rows = place == each
        known = bootstrap_mean(observed[rows], clusters[rows], seed=seed)
        found.append(Bin(float(predicted[rows].mean()), known.estimate, known.low, known.high, int(rows.sum())))
    return found


def expected_error(bins: list[Bin]) -> float:
    """ECE: the bins' distances between prediction and outcome, weighed by their rows (Naeini et al. 2015)."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.predicted - each.observed) for each in bins) / max(total, 1)


def largest_error(bins: list[Bin]) -> float:
    """The largest distance of a bin."""
    return max((abs(each.predicted - each.observed) for each in bins), default=0.0)


def slice_measures(
    measure: str, values: Rows, slices: Mapping[str, np.ndarray], clusters: np.ndarray, *, fewest: int, seed: int
) -> list[Measure]:
    """The mean of the values on each slice of at least `fewest` rows: `slices` gives a label per row, by the slicing's
    name ("" for rows without one). Called `domain: maths`.

    Intervals are Bonferroni's over all slices that are shown: the worst of many is not taken for a finding by chance.
    """
    shown = []
    for name, labels in slices.items():
        known, counts = np.unique(labels, return_counts=True)
        shown += [(name, each, labels == each) for each, n in zip(known, counts, strict=True) if n >= fewest and each]
    level = 1 - (1 - LEVEL) / max(len(shown), 1)
    found = []
    for name, label, rows in shown:
        interval = bootstrap_mean(values[rows], clusters[rows], seed=seed, level=level)
        title = f"{name}: {label}"
        found.append(Measure(measure, title, interval.estimate, interval.low, interval.high, int(rows.sum())))
    return found


def worst_slices(measures: list[Measure], around: float, worst: int) -> list[Measure]:
    """The slices farthest from `around`, those whose interval leaves it out first."""

    def order(each: Measure) -> tuple[bool, float]:
        clear = each.low is not None and each.high is not None and not each.low <= around <= each.high
        return clear, abs(each.value - around)

    return sorted(measures, key=order, reverse=True)[:worst]


def quantile_labels(values: Rows, unit: str, parts: int = 4) -> np.ndarray:
    """A label per row for the quantile of its value, such as `12 to 30 tokens`; one label where no value differs."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, parts + 1))) if len(values) else np.zeros(0)
    if len(edges) < 2:
        return np.full(len(values), "", dtype=object)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    names = np.array([f"{a:g} to {b:g} {unit}" for a, b in pairwise(edges)], dtype=object)
    return names[place]


def correlation_interval(
    columns: Float[np.ndarray, "rows columns"],
    clusters: np.ndarray,
    *,
    seed: int,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> tuple[float | None, float | None]:
    """The percentile interval of the rank correlation of the first two columns at fixed others, clusters resampled.

    Ranks are those among all rows; a resample only weighs them: it needs the clusters' moments, not their rows.
    Resamples in which one of the two doesn't vary don't count; without an interval where those are most.
    """
    ranks = np.column_stack([mean_ranks(column) for column in columns.T])
    ranks = ranks / len(ranks) - 0.5
    names, index = np.unique(clusters, return_inverse=True)
    terms = np.column_stack([np.ones(len(ranks)), ranks])
    moments = np.zeros((len(names), terms.shape[1], terms.shape[1]))
    np.add.at(moments, index, terms[:, :, None] * terms[:, None, :])
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    sums = np.tensordot(counts, moments, axes=1)
    means = sums[:, 0, 1:] / sums[:, :1, 0]
    covariance = sums[:, 1:, 1:] / sums[:, :1, :1] - means[:, :, None] * means[:, None, :]
    left = covariance[:, :2, :2]
    if ranks.shape[1] > 2:
        known = np.linalg.pinv(covariance[:, 2:, 2:], hermitian=True)
        left = left - covariance[:, :2, 2:] @ known @ covariance[:, 2:, :2]
    varies = (left[:, 0, 0] > NO_SPREAD) & (left[:, 1, 1] > NO_SPREAD)
    if varies.sum() < resamples / 2:
        return None, None
    left = left[varies]
    values = np.clip(left[:, 0, 1] / np.sqrt(left[:, 0, 0] * left[:, 1, 1]), -1, 1)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
