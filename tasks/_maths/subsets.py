"""Which rollouts of a group to train on, by their rewards alone."""

import numpy as np
from jaxtyping import Bool, Float, Int


def max_variance_subset(
    rewards: Float[np.ndarray, " rows"], groups: Int[np.ndarray, " rows"], keep: int
) -> Bool[np.ndarray, " rows"]:
    """True for the `keep` rollouts of each group whose rewards vary most; all of a group that has no more.

    PODS (arXiv 2504.13818), max-variance down-sampling: the best subset of m is the i best and the m - i worst for
    some i in 0..m, found after sorting in O(n log n + m). Of equal subsets that of the smallest i wins, of equal
    rewards the later rollout counts as the better. Raises `ValueError` unless keep >= 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}: expected at least 1")
    chosen = np.ones(len(rewards), dtype=bool)
    if not len(rewards):
        return chosen
    _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.lexsort((np.asarray(rewards), codes))
    first = np.cumsum(counts) - counts
    large = np.flatnonzero(counts > keep)
    best = _best_top(_centred(np.asarray(rewards, dtype=np.float64)[order], codes[order], counts), first, counts, keep)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    top = np.zeros(len(counts), dtype=np.int64)
    top[large] = best[large]
    bottom = np.where(counts > keep, keep - top, counts)
    chosen[order] = (rank < np.repeat(bottom, counts)) | (rank >= np.repeat(counts - top, counts))
    return chosen


def _centred(
    ordered: Float[np.ndarray, " rows"], codes: Int[np.ndarray, " rows"], counts: Int[np.ndarray, " groups"]
) -> Float[np.ndarray, " rows"]:
    """Minus the group's mean: sums of squares then lose no digits."""
    return ordered - (np.bincount(codes, ordered, minlength=len(counts)) / counts)[codes]


def _best_top(
    ordered: Float[np.ndarray, " rows"],
    first: Int[np.ndarray, " groups"],
    counts: Int[np.ndarray, " groups"],
    keep: int,
) -> Int[np.ndarray, " groups"]:
    """For each group the number of its best rewards in the best subset; meaningless where a group has too few."""
    sums, squares = (np.concatenate([[0.0], np.cumsum(part)]) for part in (ordered, ordered**2))
    last = first + counts
    best, most = np.zeros(len(counts), dtype=np.int64), np.full(len(counts), -np.inf)
    for top in range(keep + 1):
        low, high = np.minimum(first + keep - top, last), np.maximum(last - top, first)
        total, square = (each[low] - each[first] + each[last] - each[high] for each in (sums, squares))
        variance = square / keep - (total / keep) ** 2
        better = variance > most
        best, most = np.where(better, top, best), np.where(better, variance, most)
    return best
