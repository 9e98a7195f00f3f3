"""How sure a mean is: bootstrap intervals that resample prompts, and unbiased pass@k."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000
CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval [low, high] and its bootstrap standard error."""

    estimate: float
    low: float
    high: float
    standard_error: float


def bootstrap_mean(
    values: Float[np.ndarray, " rows"],
    clusters: Int[np.ndarray, " rows"],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap of the mean over rows, resampling whole clusters (the samples of one prompt).

    Rows of a cluster are not independent: resampling rows would make the interval too narrow
    (Efron & Tibshirani, "An Introduction to the Bootstrap", chapter 13, for the percentiles).
    `clusters` may hold any values that compare equal within a cluster.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no values: a mean of nothing has no interval")
    _, index, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    sums = np.bincount(index, values, minlength=len(counts))
    means = _resampled_means(sums, counts, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), float(means.std(ddof=1)))


def paired_bootstrap(
    before: Float[np.ndarray, " rows"],
    after: Float[np.ndarray, " rows"],
    clusters: Int[np.ndarray, " rows"],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of `after - before` on the same rows: what the rows have in common cancels."""
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_mean(difference, clusters, seed=seed, level=level, resamples=resamples)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that one of k samples passes, unbiased (arXiv 2107.03374, section 2.1)."""
    _check_counts(samples, passed, k)
    return 1.0 - _all_from(samples, samples - passed, k)


def worst_at_k(samples: int, passed: int, k: int) -> float:
    """C(c, k) / C(n, k): the chance that all of k samples pass, unbiased."""
    _check_counts(samples, passed, k)
    return _all_from(samples, passed, k)


def _all_from(samples: int, members: int, k: int) -> float:
    """C(members, k) / C(samples, k), as a product that doesn't overflow; 0 when members < k."""
    drawn = np.arange(k)
    return float(np.prod(np.maximum(members - drawn, 0) / (samples - drawn)))


def _check_counts(samples: int, passed: int, k: int) -> None:
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"{passed} of {samples} samples passed, k = {k}: expected 0 <= passed <= samples >= k >= 1")


def _resampled_means(
    sums: Float[np.ndarray, " clusters"],
    counts: Int[np.ndarray, " clusters"],
    random: np.random.Generator,
    resamples: int,
) -> Float[np.ndarray, " resamples"]:
    at_once = max(1, CHUNK // len(counts))
    means = []
    for start in range(0, resamples, at_once):
        drawn = random.integers(0, len(counts), size=(min(at_once, resamples - start), len(counts)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
