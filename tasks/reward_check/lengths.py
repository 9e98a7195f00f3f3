"""Length in held-out pairs: the reward's correlation with it at fixed quality, and rewards without its effect."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tasks._maths.alignment_gap import Measure, correlation_interval
from tasks._maths.calibration import cross_fitted
from tasks._maths.length_bias import (
    effect_at,
    fixed_quality_effect,
    lowess_effect,
    partial_correlation,
    rate_at_equal_length,
)
from tasks.reward_check.config import LengthConfig
from tasks.reward_check.held_out import HeldOut

# Pairs from which what is known of some of them is taken for all: fewer would say less than the label of all.
FEWEST_WITH_QUALITY = 50


@dataclass(frozen=True)
class Quality:
    """What is known of how much better the chosen answer is: `rows` of the pairs, and a column for each control."""

    name: str
    rows: np.ndarray
    controls: Float[np.ndarray, "known controls"]


def known_quality(held: HeldOut) -> Quality:
    """People's absolute scores where enough pairs have them, else the strength, else that one was chosen."""
    difference = held.chosen.human - held.rejected.human
    strength = held.pairs["strength"].cast(float).fill_null(float("nan")).to_numpy()
    # Strengths of two sources are in two scales.
    one_source = held.pairs["source"].n_unique() == 1
    for name, values in (("people's scores", difference), ("strength", strength if one_source else strength * np.nan)):
        rows = np.flatnonzero(np.isfinite(values))
        if len(rows) >= FEWEST_WITH_QUALITY:
            return Quality(name, rows, values[rows, None])
    return Quality("the choice", np.arange(len(held)), np.zeros((len(held), 0)))


def length_correlation(held: HeldOut, quality: Quality, *, seed: int, name: str) -> Measure | None:
    """Spearman's correlation of margin and length difference at fixed quality, with its interval over clusters."""
    margin = held.margin[quality.rows]
    longer = (held.chosen.length - held.rejected.length)[quality.rows]
    value = partial_correlation(margin, longer, quality.controls)
    if value is None:
        return None
    columns = np.column_stack([margin, longer, quality.controls])
    low, high = correlation_interval(columns, held.clusters[quality.rows], seed=seed)
    return Measure(name, f"quality: {quality.name}", value, low, high, len(margin))


def mitigates(found: Measure | None, config: LengthConfig, clusters: int, folds: int) -> bool:
    """Whether the effect of length is to be taken away, and can be: in every fold it has to be fitted without it."""
    if found is None or config.mitigate == "never" or found.count < config.min_pairs or clusters < folds:
        return False
    if config.mitigate == "always":
        return True
    clear = found.low is not None and found.high is not None and not found.low <= 0 <= found.high
    return clear and abs(found.value) >= config.limit


def fit_effect(held: HeldOut, quality: Quality, rows: np.ndarray, config: LengthConfig) -> dict[str, Any]:
    """The effect of length on the reward, from some of the pairs."""
    if config.by == "lowess":
        sides = (held.chosen, held.rejected)
        rewards, lengths = (np.concatenate([getattr(each, name)[rows] for each in sides]) for name in ANSWER)
        return lowess_effect(rewards, lengths)
    known = np.isin(quality.rows, rows)
    pairs = quality.rows[known]
    return fixed_quality_effect(
        held.margin[pairs], held.chosen.length[pairs], held.rejected.length[pairs], quality.controls[known]
    )


def without_length(held: HeldOut, quality: Quality, folds: np.ndarray, config: LengthConfig) -> HeldOut:
    """The pairs with rewards less the effect of length, each by what was fitted without its fold."""

    def fitted(training: np.ndarray) -> Any:
        effect = fit_effect(held, quality, training, config)
        return lambda rows: np.column_stack(
            [effect_at(effect, side.length[rows]) for side in (held.chosen, held.rejected)]
        )

    effects = cross_fitted(fitted, folds)
    return held.with_rewards(held.chosen.reward - effects[:, 0], held.rejected.reward - effects[:, 1])


def at_equal_length(held: HeldOut) -> float | None:
    """The accuracy that is left were both answers equally long (LC-AlpacaEval's regression)."""
    return rate_at_equal_length(held.right, held.chosen.length - held.rejected.length)


ANSWER = ("reward", "length")
