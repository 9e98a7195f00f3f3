"""Reward against compute for one campaign: the sigmoid of ScaleRL, with intervals."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tasks._maths.sigmoid import Sigmoid, fit_sigmoids

FEWEST_POINTS = 6
PARAMETERS = 4
RESAMPLES = 200
# B of ScaleRL's curve; steeper ones are steps between two points.
EXPONENTS = (0.3, 6.0)
GRID = 60
Array = np.ndarray


@dataclass(frozen=True)
class RewardCurve:
    """R(C) = R_0 + (A - R_0) / (1 + (C_mid / C)^B) (arXiv 2510.13786, equation 1), C in rollouts.

    `start` R_0 without training, `asymptote` A, `middle` C_mid where half the gain is made, `exponent` B.
    """

    start: float
    asymptote: float
    middle: float
    exponent: float

    def __call__(self, compute: Float[Array, " points"] | float) -> Float[Array, " points"]:
        """The reward at a compute >= 0."""
        return as_sigmoid(self)(_log10(compute))


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CurveFit:
    """A fitted curve; `low` and `high` bound it at each `compute`. `determined`: the data reach past its middle.

    Where they don't, the asymptote is a guess: the same points fit curves that end anywhere above.
    """

    curve: RewardCurve
    asymptote: Estimate
    gain_left: Estimate
    determined: bool
    level: float
    compute: Float[Array, " grid"]
    low: Float[Array, " grid"]
    high: Float[Array, " grid"]


def fit_curve(
    compute: Float[Array, " points"],
    reward: Float[Array, " points"],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> CurveFit | None:
    """Fit the curve to a campaign's points; None with fewer than six or none trained. `compute` may begin at 0.

    ScaleRL's curve is a sigmoid in log C with midpoint log C_mid and slope B. C_mid is searched up to ten times the
    last point. The intervals are a parametric bootstrap: normal noise of the residuals' deviation (four parameters
    taken off) on the fitted curve, fitted again; they say how well these scores fix the curve, not how well the
    held-out prompts stand for others.
    """
    compute, reward = np.asarray(compute, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    trained = np.unique(compute[compute > 0])
    if len(compute) < FEWEST_POINTS or len(trained) < 2:
        return None
    [fitted] = _fit(compute, reward[None, :])
    noise = math.sqrt(float(((reward - fitted(compute)) ** 2).sum()) / (len(compute) - PARAMETERS))
    random = np.random.default_rng(seed)
    again = _fit(compute, fitted(compute) + random.normal(0.0, noise, (resamples, len(compute))))
    grid = np.geomspace(trained[0], 10 * trained[-1], GRID)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile([curve(grid) for curve in again], tails, axis=0)
    ends = np.quantile([curve.asymptote for curve in again], tails)
    last = float(trained[-1])
    left = np.quantile([curve.asymptote - float(curve(last)) for curve in again], tails)
    return CurveFit(
        curve=fitted,
        asymptote=Estimate(fitted.asymptote, float(ends[0]), float(ends[1])),
        gain_left=Estimate(fitted.asymptote - float(fitted(last)), float(left[0]), float(left[1])),
        determined=fitted.middle < last,
        level=level,
        compute=grid,
        low=low,
        high=high,
    )


def as_sigmoid(curve: RewardCurve) -> Sigmoid:
    """The curve as a sigmoid over log10 C."""
    slope = curve.exponent * math.log(10)
    return Sigmoid(curve.asymptote - curve.start, slope, math.log10(curve.middle), curve.start)


def _fit(compute: Float[Array, " points"], rewards: Float[Array, "rows points"]) -> list[RewardCurve]:
    x = _log10(compute)
    finite = x[np.isfinite(x)]
    reach = float(finite.min()) - 1.0, float(finite.max()) + 1.0
    slopes = EXPONENTS[0] * math.log(10), EXPONENTS[1] * math.log(10)
    fits = fit_sigmoids(x, rewards, midpoints=reach, slopes=slopes)
    return [RewardCurve(fit.floor, fit.ceiling, 10**fit.midpoint, fit.slope / math.log(10)) for fit in fits]


def _log10(compute: Float[Array, " points"] | float) -> Float[Array, " points"]:
    with np.errstate(divide="ignore"):
        return np.log10(np.asarray(compute, dtype=np.float64))
