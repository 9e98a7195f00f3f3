"""How much two judges of the same rows agree."""

import numpy as np
from jaxtyping import Bool, Float

Rows = Float[np.ndarray, " rows"]


def spearman(first: Rows, second: Rows) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one of the two says the same of every row."""
    ranks = [mean_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    centred = [each - each.mean() if len(each) else each for each in ranks]
    spread = float(np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1])))
    return float(np.clip(centred[0] @ centred[1] / spread, -1, 1)) if spread else None


def mean_ranks(values: Rows) -> Rows:
    """1 for the smallest value; equal values share the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


def cohens_kappa(first: Bool[np.ndarray, " rows"], second: Bool[np.ndarray, " rows"]) -> float | None:
    """(p_o - p_e) / (1 - p_e): agreement beyond chance (Cohen 1960); None where chance alone agrees always."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if not len(first):
        return None
    observed = float((first == second).mean())
    chance = float(first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean()))
    return (observed - chance) / (1 - chance) if chance < 1 else None
