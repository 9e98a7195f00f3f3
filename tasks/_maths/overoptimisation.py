"""Over-optimisation: the true reward over the distance from where optimising the proxy began, and where it turns."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from tasks._maths.trends import slope_t

Points = Float[np.ndarray, " points"]
Form = Literal["best_of_n", "rl"]
RESAMPLES = 500
FEWEST_POINTS = 5
# A trend of as many standard errors counts, over the newest so many points.
CLEAR, RECENT, FEWEST_RECENT = 2.0, 6, 4
SMALLEST_DISTANCE = 1e-6


@dataclass(frozen=True)
class Turning:
    """A fitted curve R = start + d (a - b g(d)), its turning point d* with interval, and the reward there.

    `distance` and its interval are infinite where the curve (or a resample's) doesn't turn (b <= 0). `reached`: the
    points go beyond the turning point, so that it is seen and not only foretold.
    """

    form: Form
    start: float
    a: float
    b: float
    distance: float
    low: float
    high: float
    reward: float
    residual: float
    reached: bool

    def __call__(self, distance: Points | float) -> Points:
        """The curve's reward at distances >= 0."""
        d = np.asarray(distance, dtype=np.float64)
        return self.start + d * (self.a - self.b * FORMS[self.form](d))


@dataclass(frozen=True)
class Alarm:
    """Whether the proxy rises past what the true reward bears: both trends in standard errors, and what was found."""

    raised: bool
    proxy_trend: float
    gold_trend: float
    found: str


def kl_of_best_of_n(n: Float[np.ndarray, " points"] | float) -> Points:
    """log n - (n - 1) / n, in nats (arXiv 2210.10760, section 2): a bound that is tight for continuous rewards."""
    n = np.asarray(n, dtype=np.float64)
    return np.log(n) - (n - 1) / n


def fit_turning(
    distance: Points, gold: Points, *, form: Form | None = None, seed: int, level: float = 0.95
) -> Turning | None:
    """Gao et al.'s curve (arXiv 2210.10760, equations 1 and 2) of the true reward over d = sqrt(KL), by least squares:
    d (a - b d) for best of n, d (a - b log d) for RL. Without a form, the one that fits better.

    The reward at d = 0 is a third unknown (`start`), for rewards whose zero isn't the first policy. The interval of
    the turning point is a parametric bootstrap with the residuals' deviation. None with fewer than five points or
    three different distances.
    """
    d, y = np.asarray(distance, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if len(d) < FEWEST_POINTS or len(np.unique(d)) < 3:
        return None
    fits = [_fit(name, d, y, seed, level) for name in ([form] if form else FORMS)]
    return min(fits, key=lambda fit: fit.residual)


def watch(proxy: Points, gold: Points, turning: Turning | None = None, distance: float = 0.0) -> Alarm | None:
    """Alarm where the proxy clearly rises over the newest points while the true reward clearly falls over them, or the
    newest policy's `distance` lies beyond the whole interval of the turning point. None with fewer than four points.

    Points are ascending in distance or time, of one proxy.
    """
    if len(gold) < FEWEST_RECENT:
        return None
    proxy_trend, gold_trend = (slope_t(np.asarray(each)[-RECENT:]) for each in (proxy, gold))
    passed = turning is not None and distance > turning.high
    raised = proxy_trend >= CLEAR and (gold_trend <= -CLEAR or passed)
    how = f"over the newest {min(len(gold), RECENT)} points the proxy moves by {_errors(proxy_trend)} a step and the "
    how += f"held-out reward by {_errors(gold_trend)}"
    if turning is not None and passed:
        how += f"; sqrt(KL) {distance:.2f} is past the turning point [{turning.low:.2f}, {turning.high:.2f}]"
    return Alarm(raised, proxy_trend, gold_trend, how)


def turning_point(form: Form, a: float, b: float) -> float:
    """d* = a / (2 b) of best of n, exp(a / b - 1) of RL; infinite where the curve doesn't turn.

    Where it falls from the first (a <= 0 of best of n) it turns at 0.
    """
    if b <= 0:
        return 0.0 if form == "best_of_n" and a <= 0 else math.inf
    if form == "best_of_n":
        return max(a / (2 * b), 0.0)
    return math.exp(min(a / b - 1, 500.0))


def _fit(form: Form, d: Points, y: Points, seed: int, level: float) -> Turning:
    design = np.column_stack([np.ones(len(d)), d, -d * FORMS[form](d)])
    solve = np.linalg.pinv(design)
    start, a, b = solve @ y
    noise = y - design @ (start, a, b)
    spread = math.sqrt(float(noise @ noise) / max(len(d) - 3, 1))
    random = np.random.default_rng(seed)
    again = (y - noise + random.normal(0, spread, (RESAMPLES, len(d)))) @ solve.T
    points = np.array([turning_point(form, float(each[1]), float(each[2])) for each in again])
    # Infinite ones may not be interpolated between: the interval's ends are points of the resamples.
    low, high = np.quantile(points, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    turns = turning_point(form, float(a), float(b))
    curve = Turning(form, float(start), float(a), float(b), turns, float(low), float(high), math.nan, spread, False)
    reward = float(curve(turns)) if math.isfinite(turns) else math.nan
    return Turning(
        form, curve.start, curve.a, curve.b, turns, curve.low, curve.high, reward, spread, bool(d.max() > turns)
    )


def _errors(trend: float) -> str:
    return f"{trend:+.1f} standard errors" if math.isfinite(trend) else f"{trend:+} standard errors"


def _log(d: Points) -> Points:
    return np.log(np.maximum(d, SMALLEST_DISTANCE))


FORMS: dict[Form, Callable[[Points], Points]] = {"best_of_n": lambda d: d, "rl": _log}
