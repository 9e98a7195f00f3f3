"""What an ensemble's uncertainty is worth: the chance that a pair is right, and intervals of scores that hold."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import nnls
from scipy.special import ndtri

from tasks._maths.calibration import steepness

Rows = Float[np.ndarray, " rows"]
# How much the spread of members may count against a margin; 0: not at all.
DOUBTS = np.concatenate([[0.0], np.geomspace(0.05, 20.0, 14)])
# Of two that do about as well, the smaller doubt: a spread that says nothing gets no say.
SAME_LOSS = 1e-9


def fit_right(margins: Rows, uncertainties: Rows) -> tuple[float, float]:
    """a >= 0 and b >= 0 of `chance_right`, of greatest likelihood for pairs whose first answer was chosen.

    `uncertainties`: the deviation over the members of each pair's margin. For each b of a grid, a is found by Newton.
    """
    margins, squares = np.asarray(margins, dtype=np.float64), np.asarray(uncertainties, dtype=np.float64) ** 2
    best, found = np.inf, (0.0, 0.0)
    for doubt in DOUBTS:
        shrunk = margins / np.sqrt(1 + doubt * squares)
        slope = max(steepness(shrunk), 0.0)
        loss = log_loss(0.5 * (1 + np.tanh(0.5 * slope * shrunk)))
        if loss < best - SAME_LOSS:
            best, found = loss, (slope, float(doubt))
    return found


def chance_right(margins: Rows, uncertainties: Rows, slope: float, doubt: float) -> Rows:
    """sigma(a m / sqrt(1 + b s^2)): the mean of a logistic over a normal margin, by MacKay's approximation (1992,
    "The evidence framework applied to classification networks"); b is a^2 pi / 8 where the truth lies about the
    members' mean as the members do.
    """
    return 0.5 * (1 + np.tanh(0.5 * slope * margins / np.sqrt(1 + doubt * np.asarray(uncertainties) ** 2)))


def log_loss(chances: Rows) -> float:
    """The mean of -log of the probability that was given to what came, in nats."""
    return float(-np.log(np.maximum(chances, 1e-12)).mean()) if len(chances) else 0.0


def not_confidently_wrong(margins: Rows, uncertainties: Rows, level: float = 0.9) -> Bool[np.ndarray, " rows"]:
    """Whether the pair's central interval mean +- z s at that level reaches above 0, so that it allows what was chosen.

    With a normal spread that is right, (1 + level) / 2 of pairs without a wrong label do.
    """
    return np.asarray(margins) + z_of(level) * np.asarray(uncertainties) >= 0


def fit_spread(residuals: Rows, uncertainties: Rows) -> tuple[float, float]:
    """tau^2 and kappa^2 >= 0 of the variance tau^2 + kappa^2 s^2 of residuals with mean 0, by least squares of their
    squares: tau is what people's scores scatter by, kappa what the members' spread has to be multiplied by.
    """
    squares = np.asarray(uncertainties, dtype=np.float64) ** 2
    # The second fit weighs by the first one's variance: large residuals alone would decide otherwise.
    weights, found = np.ones(len(squares)), np.zeros(2)
    for _ in range(2):
        design = np.column_stack([np.ones(len(squares)), squares]) * weights[:, None]
        found, _ = nnls(design, np.asarray(residuals, dtype=np.float64) ** 2 * weights)
        weights = 1 / np.maximum(found[0] + found[1] * squares, 1e-12)
    return float(found[0]), float(found[1])


def covered(residuals: Rows, deviations: Rows, level: float = 0.9) -> Bool[np.ndarray, " rows"]:
    """Whether each residual lies within z times its deviation."""
    return np.abs(residuals) <= z_of(level) * np.asarray(deviations)


def z_of(level: float) -> float:
    """Deviations from the mean between which a normal value lies with that probability."""
    return float(ndtri((1 + level) / 2))
