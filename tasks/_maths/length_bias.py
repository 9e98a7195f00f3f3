"""How much of a reward is length: its correlation at fixed quality, the rate at equal length, and taking it away.

Pairs are the chosen answer less the rejected one, so what prompts differ in cancels. Quality is held fixed by what is
known of it: that the first answer was chosen (the intercept), and by how much where people or graders said.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from tasks._maths.agreement import mean_ranks

Pairs = Float[np.ndarray, " pairs"]
Rows = Float[np.ndarray, " rows"]
# Below it a reward counts as free of length (methods, 3.4).
FREE_OF_LENGTH = 0.05
KNOTS = 6
RIDGE = 1e-3
LOWESS_GRID, LOWESS_FRACTION, LOWESS_ROUNDS = 64, 2 / 3, 3
NEWTON_STEPS = 50


def partial_correlation(first: Pairs, second: Pairs, controls: Float[np.ndarray, "pairs controls"]) -> float | None:
    """Spearman's correlation of the two at fixed controls: of what is left of their ranks after regression on those of
    the controls. None where nothing is left of one.
    """
    if len(first) < controls.shape[1] + 3:
        return None
    design = np.column_stack([np.ones(len(first)), *(mean_ranks(column) for column in controls.T)])
    left = [_residual(design, mean_ranks(np.asarray(each, dtype=np.float64))) for each in (first, second)]
    spread = float(np.sqrt((left[0] @ left[0]) * (left[1] @ left[1])))
    return float(np.clip(left[0] @ left[1] / spread, -1, 1)) if spread > 1e-9 * len(first) else None


def fixed_quality_effect(
    margins: Pairs, chosen_lengths: Pairs, rejected_lengths: Pairs, controls: Float[np.ndarray, "pairs controls"]
) -> dict[str, Any]:
    """What length adds to a reward at fixed quality: f of r_c - r_r = f(len_c) - f(len_r) + b controls + c + noise.

    f is a natural cubic spline of log(1 + length) with knots at quantiles (Hastie, Tibshirani & Friedman, "The Elements
    of Statistical Learning", equations 5.4 and 5.5) and a small ridge, zero at the mean over the answers. Returned as
    JSON, for `effect_at`.
    """
    x = [np.log1p(np.asarray(each, dtype=np.float64)) for each in (chosen_lengths, rejected_lengths)]
    both = np.concatenate(x)
    places = np.unique(np.quantile(both, np.linspace(0.03, 0.97, KNOTS)))
    difference = _spline(x[0], places) - _spline(x[1], places)
    design = np.column_stack([difference, np.ones(len(margins)), controls])
    scale = np.maximum(np.abs(design).mean(axis=0), 1e-12)
    scaled = design / scale
    penalty = np.zeros(design.shape[1])
    penalty[: difference.shape[1]] = RIDGE * len(margins)
    weights = np.linalg.solve(scaled.T @ scaled + np.diag(penalty + 1e-9), scaled.T @ margins) / scale
    grid = np.linspace(both.min(), both.max(), LOWESS_GRID)
    values = _spline(grid, places) @ weights[: difference.shape[1]]
    return _tabulated(grid, values, both)


def lowess_effect(rewards: Rows, lengths: Rows, *, fraction: float = LOWESS_FRACTION) -> dict[str, Any]:
    """The reward's running mean over log(1 + length): local lines of tricube weight, bisquare against outliers
    (Cleveland 1979); subtracting it is the calibration of arXiv 2409.17407. As JSON, for `effect_at`.

    It takes all that goes with length, what longer answers are better by among it.
    """
    x, y = np.log1p(np.asarray(lengths, dtype=np.float64)), np.asarray(rewards, dtype=np.float64)
    grid = np.unique(np.quantile(x, np.linspace(0, 1, LOWESS_GRID)))
    robust, values = np.ones(len(x)), np.zeros(len(grid))
    for _ in range(LOWESS_ROUNDS):
        values = _local_lines(x, y, grid, robust, fraction)
        left = np.abs(y - np.interp(x, grid, values))
        cut = 6 * float(np.median(left))
        if cut <= 1e-12:
            break
        robust = np.maximum(1 - (left / cut) ** 2, 0) ** 2
    return _tabulated(grid, values, x)


def effect_at(effect: Mapping[str, Any], lengths: Rows) -> Rows:
    """The effect at these lengths in tokens; beyond the lengths that it was fitted on, that of the nearest."""
    return np.interp(np.log1p(np.asarray(lengths, dtype=np.float64)), effect["log_length"], effect["effect"])


def rate_at_equal_length(
    won: Pairs, length_differences: Pairs, difficulty: Pairs | None = None, *, ridge: float = 1e-3
) -> float | None:
    """The rate at which the first answer wins, were both equally long: sigma(theta) of
    logit P(won) = theta + phi tanh(d / std(d)) + psi gamma, d the first's length less the second's
    (LC-AlpacaEval, arXiv 2404.04475, equation 2, with one model and the prompts' difficulties gamma centred).

    `won` is 1, 0 or between. None without a pair.
    """
    won, d = np.asarray(won, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    if not len(won):
        return None
    spread = float(d.std())
    columns = [np.ones(len(won)), np.tanh(d / spread) if spread else np.zeros(len(won))]
    if difficulty is not None:
        columns.append(np.asarray(difficulty, dtype=np.float64) - np.mean(difficulty))
    weights = _logistic_fit(np.column_stack(columns), won, ridge)
    return float(_sigma(weights[0]))


def _logistic_fit(design: Float[np.ndarray, "rows terms"], targets: Rows, ridge: float) -> Float[np.ndarray, " terms"]:
    """Newton's method for the ridge-penalised log-likelihood; the penalty counts as `ridge` rows."""
    weights = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        p = _sigma(design @ weights)
        gradient = design.T @ (targets - p) - ridge * weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design + ridge * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return weights


def _local_lines(x: Rows, y: Rows, grid: Rows, robust: Rows, fraction: float) -> Rows:
    nearest = max(int(np.ceil(fraction * len(x))), min(len(x), 3))
    distance = np.abs(x - grid[:, None])
    reach = np.maximum(np.partition(distance, nearest - 1, axis=1)[:, nearest - 1 : nearest], 1e-9)
    weight = np.maximum(1 - (distance / reach) ** 3, 0) ** 3 * robust
    total = np.maximum(weight.sum(axis=1), 1e-12)
    middle, mean = weight @ x / total, weight @ y / total
    away = x - middle[:, None]
    variance = (weight * away**2).sum(axis=1)
    slope = np.where(variance > 1e-9, (weight * away) @ y / np.maximum(variance, 1e-9), 0.0)
    return mean + slope * (grid - middle)


def _spline(x: Rows, knots: Float[np.ndarray, " knots"]) -> Float[np.ndarray, "rows terms"]:
    """A natural cubic spline's terms without the constant: x, then one per inner knot; with few knots x alone."""
    if len(knots) < 3:
        return x[:, None]
    last, before = knots[-1], knots[-2]
    width = knots[-1] - knots[0]

    def bend(knot: float) -> Rows:
        return (np.maximum(x - knot, 0) ** 3 - np.maximum(x - last, 0) ** 3) / (last - knot)

    return np.column_stack([x, *((bend(knot) - bend(before)) / width**2 for knot in knots[:-2])])


def _tabulated(grid: Rows, values: Rows, at: Rows) -> dict[str, Any]:
    """A table of the effect, less its mean at the answers that it was fitted on."""
    centred = values - np.interp(at, grid, values).mean()
    return {"log_length": grid.tolist(), "effect": centred.tolist()}


def _residual(design: Float[np.ndarray, "rows terms"], values: Rows) -> Rows:
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def _sigma(z: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * z))
