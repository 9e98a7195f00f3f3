"""The gap to people's absolute scores: of the answers that have one, each once, by a map fitted without its fold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from tasks._maths.alignment_gap import Measure, gap_measures, slice_measures, worst_slices
from tasks._maths.calibration import Map, apply, apply_map, cross_fitted, fit_affine, fit_isotonic, fit_map, slope_at
from tasks._maths.uncertainty import covered, fit_spread
from tasks.reward_check.config import CalibrationConfig, RewardCheckConfig
from tasks.reward_check.held_out import HeldOut
from tasks.reward_check.pairs import length_labels

Rows = Float[np.ndarray, " answers"]


@dataclass(frozen=True)
class ScoredAnswers:
    """Distinct answers that people gave an absolute score. `raw` is the reward before length was taken away."""

    reward: Rows
    raw: Rows
    uncertainty: Rows
    length: Rows
    human: Rows
    folds: np.ndarray
    clusters: np.ndarray
    slices: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.reward)


def scored_answers(held: HeldOut, before: HeldOut, folds: np.ndarray) -> ScoredAnswers:
    """The answers of the pairs with a score; `before` has the rewards with the effect of length in them."""
    sides = [
        pl.DataFrame(
            {
                "prompt_id": held.pairs["prompt_id"],
                "text": held.pairs[side],
                "reward": answers.reward,
                "raw": original.reward,
                "uncertainty": answers.uncertainty,
                "length": answers.length,
                "human": answers.human,
                "fold": folds,
                "cluster": held.pairs["cluster_id"],
                "domain": held.domain.tolist(),
                "source": held.column("source").tolist(),
                "annotator": held.column("annotator").tolist(),
            }
        )
        for side, answers, original in (
            ("chosen", held.chosen, before.chosen),
            ("rejected", held.rejected, before.rejected),
        )
    ]
    # Of an answer in several pairs the scores are averaged: several people may have given them.
    first = [pl.col(name).first() for name in ("reward", "raw", "uncertainty", "length", "fold", "cluster", "domain")]
    one = [pl.when(pl.col(name).n_unique() == 1).then(pl.col(name).first()).alias(name) for name in SLICED]
    rows = (
        pl.concat(sides)
        .filter(pl.col("human").is_finite())
        .group_by("prompt_id", "text", maintain_order=True)
        .agg(*first, *one, pl.col("human").mean())
    )
    labels = {name: rows[name].fill_null("").to_numpy() for name in ("domain", *SLICED)}
    return ScoredAnswers(
        **{name: rows[name].to_numpy() for name in ("reward", "raw", "uncertainty", "length", "human")},
        folds=rows["fold"].to_numpy(),
        clusters=rows["cluster"].to_numpy(),
        slices={**labels, "length": length_labels(rows["length"].to_numpy())},
    )


def chosen_map(answers: ScoredAnswers, config: CalibrationConfig) -> Map:
    """The map from all answers: isotonic, affine, or the identity where they are too few or don't rise."""
    return fit_map(answers.reward, answers.human, affine_from=config.affine_from, isotonic_from=config.isotonic_from)


def cross_fitted_scores(answers: ScoredAnswers, kind: str) -> Float[np.ndarray, "answers 2"]:
    """Calibrated score and uncertainty of each answer, by a map of that kind fitted without its fold."""

    def fitted(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        mapping = FITS[kind](answers.reward[training], answers.human[training])
        if mapping["kind"] == "identity":  # in this fold scores don't rise: the best of such a map is their mean
            mapping = {"kind": "affine", "slope": 0.0, "intercept": float(answers.human[training].mean())}

        def of(rows: np.ndarray) -> np.ndarray:
            slope = slope_at(mapping, answers.reward[rows])
            return np.column_stack([apply_map(mapping, answers.reward[rows]), slope * answers.uncertainty[rows]])

        return of

    return cross_fitted(fitted, answers.folds)


def score_measures(
    answers: ScoredAnswers, calibrated: Float[np.ndarray, "answers 2"], config: RewardCheckConfig, seed: int
) -> list[Measure]:
    """The gap over all answers, its bias on the worst slices, and how often people's scores lie in the intervals."""
    score, gap = calibrated[:, 0], calibrated[:, 0] - answers.human
    slices = slice_measures("gap_bias", gap, answers.slices, answers.clusters, fewest=config.min_slice, seed=seed)
    measures = gap_measures(score, answers.human, answers.clusters, seed=seed)
    return [*measures, *worst_slices(slices, 0.0, config.worst_slices), *coverage(answers, calibrated, config.level)]


def coverage(answers: ScoredAnswers, calibrated: Float[np.ndarray, "answers 2"], level: float) -> list[Measure]:
    """How many of people's scores lie in the intervals at that level, in all and by third of the uncertainty.

    The interval's deviation is sqrt(tau^2 + kappa^2 s^2), with tau and kappa fitted without the answer's fold. Where
    the spread of members tells something, the thirds are covered alike though their widths differ.
    """
    residual, spread = answers.human - calibrated[:, 0], calibrated[:, 1]

    def fitted(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        scatter, factor = fit_spread(residual[training], spread[training])
        return lambda rows: np.sqrt(scatter + factor * spread[rows] ** 2)

    inside = covered(residual, cross_fitted(fitted, answers.folds), level)
    found = [Measure("score_coverage", "all", float(inside.mean()), None, None, len(inside))]
    if np.ptp(spread) > 0:
        place = np.searchsorted(np.quantile(spread, [1 / 3, 2 / 3]), spread, side="left")
        for each, title in enumerate(("lowest", "middle", "highest")):
            rows = place == each
            if rows.any():
                name = f"uncertainty: {title} third"
                found.append(Measure("score_coverage", name, float(inside[rows].mean()), None, None, int(rows.sum())))
    return found


def graded_gap(answers: ScoredAnswers, graded_by: Mapping[str, Any], seed: int) -> list[Measure]:
    """The gap of rewards as an earlier calibration gives them: it was fitted on other answers, so its bias is drift."""
    score = apply(graded_by, answers.raw, answers.length)
    known = gap_measures(score, answers.human, answers.clusters, seed=seed)
    return [
        Measure(f"graded_{each.measure}", each.slice, each.value, each.low, each.high, each.count) for each in known
    ]


SLICED = ("source", "annotator")
FITS: dict[str, Callable[[Rows, Rows], Map]] = {"affine": fit_affine, "isotonic": fit_isotonic}
