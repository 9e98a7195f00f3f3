"""From the scores of several reward models to one reward and how sure it is."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

Members = Float[np.ndarray, "rows members"]
Rows = Float[np.ndarray, " rows"]
How = Literal["mean", "wco", "uwo", "soft"]


def aggregate(standardised: Members, how: How, strength: float) -> tuple[Rows, Rows]:
    """One reward a row, and its uncertainty: the standard deviation over the members, divided by k and not k - 1.

    Members' raw scores have an offset and a scale of their own: each is standardised first, so that the reward and
    the uncertainty are in standard deviations of the scores of the training answers. `strength` is lambda of `uwo`
    (0.5 for best of n, 0.1 for PPO: arXiv 2310.02743) and beta of `soft`; the other two don't read it.

    Raises `ValueError` for no members, an unknown `how`, and a strength that the way of aggregating can't use.
    """
    scores = np.asarray(standardised, dtype=np.float64)
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(f"scores of shape {scores.shape}: expected rows x members, at least one member")
    if how not in AGGREGATES:
        raise ValueError(f"aggregate {how!r}: expected one of {', '.join(AGGREGATES)}")
    return AGGREGATES[how](scores, strength), scores.std(axis=1)


def mean(scores: Members, _strength: float) -> Rows:
    """The members' mean."""
    return scores.mean(axis=1)


def worst_case(scores: Members, _strength: float) -> Rows:
    """WCO: min_i R_i (arXiv 2310.02743, equation 3)."""
    return scores.min(axis=1)


def uncertainty_weighted(scores: Members, strength: float) -> Rows:
    """UWO: mean - lambda (1/k) sum_i (R_i - mean)^2 (arXiv 2310.02743, equation 4); lambda >= 0."""
    if strength < 0:
        raise ValueError(f"uwo with strength {strength}: lambda is 0 or more")
    return scores.mean(axis=1) - strength * scores.var(axis=1)


def soft_minimum(scores: Members, strength: float) -> Rows:
    """-beta log mean_i exp(-R_i / beta) (arXiv 2606.09073); beta > 0.

    It goes to the minimum as beta falls and to the mean as it grows; of normally distributed members it is
    mean - variance / (2 beta), so UWO with lambda = 1 / (2 beta).
    """
    if strength <= 0:
        raise ValueError(f"soft with strength {strength}: beta is above 0")
    lowest = scores.min(axis=1, keepdims=True)
    return lowest[:, 0] - strength * np.log(np.exp(-(scores - lowest) / strength).mean(axis=1))


AGGREGATES: dict[str, Callable[[Members, float], Rows]] = {
    "mean": mean,
    "wco": worst_case,
    "uwo": uncertainty_weighted,
    "soft": soft_minimum,
}
