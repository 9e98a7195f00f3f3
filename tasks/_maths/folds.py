"""Folds for cross-validation that never part what belongs together."""

import numpy as np
from jaxtyping import Int, Shaped


def grouped_folds(clusters: Shaped[np.ndarray, " rows"], folds: int, *, seed: int) -> Int[np.ndarray, " rows"]:
    """The fold of each row, from 0; rows of a cluster share one, and folds are as even as clusters allow.

    Clusters come in an order drawn by seed, the large ones first, each into the smallest fold so far. Raises
    `ValueError` for fewer clusters than folds.
    """
    _, index, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    if folds < 2 or len(counts) < folds:
        raise ValueError(f"{len(counts)} clusters in {folds} folds: expected at least two folds and a cluster for each")
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order], kind="stable")]
    sizes, fold_of = np.zeros(folds, dtype=np.int64), np.zeros(len(counts), dtype=np.int64)
    for cluster in order:
        fold = int(sizes.argmin())
        fold_of[cluster] = fold
        sizes[fold] += counts[cluster]
    return fold_of[index]


def some_clusters(clusters: Shaped[np.ndarray, " rows"], rows: int, *, seed: int) -> Int[np.ndarray, " chosen"]:
    """Indices of about that many rows, ascending, in whole clusters drawn by seed; at least one cluster."""
    _, index, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    before = np.cumsum(counts[order]) - counts[order]
    taken = np.zeros(len(counts), dtype=bool)
    taken[order[before < rows]] = True
    return np.flatnonzero(taken[index])
