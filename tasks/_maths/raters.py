"""How far several raters of the same items agree, beyond chance.

Ratings are one row per rater and one column per item; NaN where a rater didn't rate an item. Categories are numbers.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

Ratings = Float[np.ndarray, "raters items"]


def agreement_share(ratings: Ratings) -> float | None:
    """Of all pairs of ratings of one item, the share that are equal; None without such a pair."""
    counts = category_counts(ratings)
    raters = counts.sum(axis=1)
    pairs = (raters * (raters - 1)).sum()
    return float((counts * (counts - 1)).sum() / pairs) if pairs else None


def cohens_kappa(first: Float[np.ndarray, " items"], second: Float[np.ndarray, " items"]) -> float | None:
    """(p_o - p_e) / (1 - p_e) over any number of categories, on the items that both rated (Cohen 1960, eq. 1).

    None without such an item, and where chance alone agrees always.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        return None
    first, second = first[both], second[both]
    observed = float((first == second).mean())
    chance = sum(float((first == c).mean() * (second == c).mean()) for c in np.union1d(first, second))
    return (observed - chance) / (1 - chance) if chance < 1 else None


def fleiss_kappa(ratings: Ratings) -> float | None:
    """(P - P_e) / (1 - P_e) for items with equally many ratings, by whomever (Fleiss 1971, eq. 1-7).

    None unless every rated item has the same number of ratings, two at least, and where chance alone agrees always.
    """
    counts = category_counts(ratings)
    counts = counts[counts.sum(axis=1) > 0]
    raters = counts.sum(axis=1)
    if not len(counts) or raters.min() != raters.max() or raters[0] < 2:
        return None
    observed = float(((counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))).mean())
    chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return (observed - chance) / (1 - chance) if chance < 1 else None


def krippendorffs_alpha(ratings: Ratings, level: Literal["nominal", "interval"] = "nominal") -> float | None:
    """1 - D_o / D_e over the items with two ratings or more, whoever misses (Krippendorff 2011, section C).

    Each pair of ratings of an item with m ratings counts 1 / (m - 1) times. The difference is 0 or 1 between
    categories (nominal), or the squared distance (interval). None without such an item, or where nothing varies.
    """
    counts = category_counts(ratings)
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts):
        return None
    weights = 1 / (counts.sum(axis=1) - 1)
    coincidences = (counts * weights[:, None]).T @ counts
    coincidences -= np.diag((counts * weights[:, None]).sum(axis=0))
    values = np.unique(ratings[~np.isnan(ratings)])
    distance = (values[:, None] - values[None, :]) ** 2
    if level == "nominal":
        distance = (distance > 0).astype(np.float64)
    totals = coincidences.sum(axis=1)
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected) if expected > 0 else None


def category_counts(ratings: Ratings) -> Float[np.ndarray, "items categories"]:
    """How often each item was given each of the values that occur, in their order."""
    values = np.unique(ratings[~np.isnan(ratings)])
    return (ratings[:, :, None] == values).sum(axis=0).astype(np.float64)
