"""A slow grader's scores where they are missing: predicted from fast ones, corrected by those that were observed."""

import numpy as np
from jaxtyping import Bool, Float, Int

Rows = Float[np.ndarray, " rows"]
FOLDS = 2


def impute(
    fast: Rows,
    slow: Rows,
    observed: Bool[np.ndarray, " rows"],
    propensity: Rows,
    groups: Int[np.ndarray, " rows"],
) -> Rows:
    """r_hat + 1[observed] / pi (r_slow - r_hat), with r_hat = a + b r_fast: augmented inverse-propensity weighting.

    Robins, Rotnitzky & Zhao (1994), methods.md section 6. `propensity` is pi, the probability with which a row was
    observed, in (0, 1], known where `observed`; `slow` is read only there. Unbiased for every row, whatever r_fast
    says: a and b are fitted (least squares, weighted by 1 / pi) on the other half of the groups, so that no row's
    correction depends on its own fit. An estimate may lie outside the range of the scores. Where the other half has
    nothing observed, all observed rows fit it. Raises `ValueError` when no row was observed.
    """
    if not observed.any():
        raise ValueError("no row was observed: there is nothing to predict from")
    weights = np.where(observed, 1 / np.where(observed, propensity, 1.0), 0.0)
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    predicted = np.empty(len(fast))
    for each in range(FOLDS):
        others = observed & (fold != each)
        intercept, slope = weighted_line(fast, slow, weights, others if others.any() else observed)
        predicted[fold == each] = intercept + slope * fast[fold == each]
    residual = np.where(observed, slow - predicted, 0.0)
    return predicted + weights * residual


def weighted_line(x: Rows, y: Rows, weights: Rows, rows: Bool[np.ndarray, " rows"]) -> tuple[float, float]:
    """(a, b) of y = a + b x by weighted least squares over `rows`; b is 0 where x doesn't vary."""
    x, y, weights = x[rows], y[rows], weights[rows]
    total = weights.sum()
    x_mean, y_mean = (weights @ x) / total, (weights @ y) / total
    spread = weights @ (x - x_mean) ** 2
    slope = (weights @ ((x - x_mean) * (y - y_mean))) / spread if np.ptp(x) > 0 else 0.0
    return float(y_mean - slope * x_mean), float(slope)
