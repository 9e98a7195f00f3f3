"""From a reward model's score to what people say: maps that are fitted once, kept as JSON and applied to rewards."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import isotonic_regression

from tasks._maths.length_bias import effect_at

Rows = Float[np.ndarray, " rows"]
Map = dict[str, Any]
FORMAT = 1
# An affine map has two numbers, an isotonic one as many as it has steps (methods: about 30 and 200 scores).
AFFINE_FROM, ISOTONIC_FROM = 30, 200
NEWTON_STEPS = 60
STEEPEST = 1e3


def apply(calibration: Mapping[str, Any], rewards: Rows, lengths: Rows) -> Rows:
    """Rewards as the calibration gives them: less the effect of length, then mapped.

    `calibration` is the content of `calibration.json`; `rewards` are aggregates of standardised members, `lengths`
    the answers' lengths in tokens, the end token not counted. The result is in units of people's absolute scores
    (`scale` "absolute"), in nats of log-odds (`scale` "log_odds": sigma of a difference is the probability of being
    preferred), or in standard deviations as before ("standardised"). What isn't finite stays so.

    Raises `ValueError` for a calibration of another format.
    """
    if calibration.get("format") != FORMAT or calibration.get("map", {}).get("kind") not in MAPS:
        raise ValueError(f"calibration of format {calibration.get('format')!r}: expected {FORMAT} and a known map")
    values = np.asarray(rewards, dtype=np.float64)
    if calibration.get("length") is not None:
        values = values - effect_at(calibration["length"], lengths)
    return apply_map(calibration["map"], values)


def apply_map(mapping: Map, values: Rows) -> Rows:
    """Values through one map."""
    return MAPS[mapping["kind"]](mapping, np.asarray(values, dtype=np.float64))


def slope_at(mapping: Map, values: Rows) -> Rows:
    """How much the map stretches a small difference at these values: an uncertainty is multiplied by it."""
    width = 0.25
    return (apply_map(mapping, values + width) - apply_map(mapping, values - width)) / (2 * width)


def identity(why: str) -> Map:
    """The map that changes nothing, and why nothing better is known."""
    return {"kind": "identity", "why": why}


def fit_affine(scores: Rows, human: Rows) -> Map:
    """a r + b of least squared error to people's scores; the mean of the fitted values is that of people's scores.

    Where people's scores don't rise with the model's, no map of this kind mends it: the identity, and why.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(human, dtype=np.float64)
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread else 0.0
    if slope <= 0:
        return identity("people's scores don't rise with the reward model's: only other pairs can mend its order")
    return {"kind": "affine", "slope": slope, "intercept": float(y.mean() - slope * x.mean())}


def fit_isotonic(scores: Rows, human: Rows) -> Map:
    """The rising map of least squared error (pool adjacent violators), made strictly rising and mean-preserving.

    The blocks' means of both sides are joined by lines, beyond the outer ones with the affine fit's slope: so answers
    of one block keep their order, where steps would make them equal. Then a constant brings the mean of the fitted
    values to that of people's scores, as pooling's own is (AutoCal-R, arXiv 2512.11150, as its summary tells it).
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(human, dtype=np.float64)
    affine = fit_affine(x, y)
    if affine["kind"] == "identity":
        return affine
    values, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    pooled = isotonic_regression(np.bincount(index, y) / counts, weights=counts)
    blocks = np.repeat(np.arange(len(pooled.weights)), np.diff(pooled.blocks))
    weight = np.bincount(blocks, counts)
    knots = np.bincount(blocks, counts * values) / weight
    heights = np.bincount(blocks, counts * pooled.x) / weight
    mapping = {"kind": "isotonic", "x": knots.tolist(), "y": heights.tolist(), "slope": affine["slope"]}
    mapping["y"] = (heights + float(y.mean() - apply_map(mapping, x).mean())).tolist()
    return mapping


def fit_log_odds(margins: Rows) -> Map:
    """a r such that sigma(a (r_chosen - r_rejected)) is the probability of the choice: temperature scaling, T = 1 / a.

    There is no intercept: which answer stood first is no part of a reward.
    """
    margins = np.asarray(margins, dtype=np.float64)
    slope = steepness(margins)
    if slope <= 0:
        return identity("held-out pairs are ordered no better than by chance")
    return {"kind": "log_odds", "slope": slope}


def fit_map(scores: Rows, human: Rows, *, affine_from: int = AFFINE_FROM, isotonic_from: int = ISOTONIC_FROM) -> Map:
    """The richest map that so many scores of people carry: isotonic, affine, or none."""
    if len(scores) >= isotonic_from:
        return fit_isotonic(scores, human)
    if len(scores) >= affine_from:
        return fit_affine(scores, human)
    return identity(f"{len(scores)} answers with people's absolute scores, an affine map needs {affine_from}")


def folds_of(clusters: Int[np.ndarray, " rows"], folds: int, seed: int) -> Int[np.ndarray, " rows"]:
    """A fold for each row; rows of a cluster share one. `clusters` may hold any values that compare equal."""
    names, index = np.unique(clusters, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (order % max(min(folds, len(names)), 1))[index]


def cross_fitted(
    fit: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]], folds: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows ..."]:
    """Each row by what was fitted without its fold: `fit(rows to fit on)` gives a function of the rows to predict."""
    parts = [(folds == fold) for fold in np.unique(folds)]
    predicted = [fit(np.flatnonzero(~held_out))(np.flatnonzero(held_out)) for held_out in parts]
    found = np.empty((len(folds), *predicted[0].shape[1:]))
    for held_out, values in zip(parts, predicted, strict=True):
        found[held_out] = values
    return found


def steepness(margins: Rows) -> float:
    """The a of greatest likelihood of sigma(a m) for pairs whose first answer was chosen; 0 where every margin is 0.

    Targets are Platt's (1999), (n + 1) / (n + 2) instead of 1: pairs without an error don't ask for infinite odds. The
    curvature falls on both sides of a = 0, so Newton's steps from there never overshoot.
    """
    if not np.any(margins):
        return 0.0
    scale = float(np.abs(margins).mean())
    z, smooth, slope = margins / scale, 1 / (len(margins) + 2), 0.0
    for _ in range(NEWTON_STEPS):
        p = 0.5 * (1 + np.tanh(0.5 * slope * z))
        gradient = float((z * (1 - smooth - p)).sum())
        curvature = float((z**2 * p * (1 - p)).sum())
        step = gradient / max(curvature, 1e-12)
        slope += float(np.clip(step, -2.0, 2.0))
        if abs(step) < 1e-9:
            break
    return float(np.clip(slope, -STEEPEST, STEEPEST)) / scale


def _affine(mapping: Map, values: Rows) -> Rows:
    return mapping["slope"] * values + mapping["intercept"]


def _isotonic(mapping: Map, values: Rows) -> Rows:
    x = mapping["x"]
    beyond = np.minimum(values - x[0], 0.0) + np.maximum(values - x[-1], 0.0)
    return np.interp(values, x, mapping["y"]) + mapping["slope"] * beyond


MAPS: dict[str, Callable[[Map, Rows], Rows]] = {
    "identity": lambda _, values: values,
    "affine": _affine,
    "isotonic": _isotonic,
    "log_odds": lambda mapping, values: mapping["slope"] * values,
}
