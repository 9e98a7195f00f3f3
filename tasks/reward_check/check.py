"""The check itself, pure: from scored held-out pairs to measures, a calibration, a row per pair, and metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from storage.fingerprints import derive_seed
from storage.records import CheckedPair, GapMeasure
from tasks._maths.alignment_gap import Measure, worst_slices
from tasks._maths.calibration import FORMAT, Map, apply, fit_log_odds, folds_of, identity
from tasks._maths.uncertainty import fit_right
from tasks.reward_check import lengths, pairs, scores
from tasks.reward_check.config import RewardCheckConfig
from tasks.reward_check.held_out import HeldOut

# Measures of all rows that are the stage's metrics under their own name.
METRICS = (
    *("heldout_accuracy", "fresh_accuracy", "anchor_agreement", "ece", "max_bin_gap"),
    *("length_correlation", "length_correlation_raw"),
)
INTERVALS = ("heldout_accuracy", "fresh_accuracy", "length_correlation", "anchor_agreement")
GAP = ("gap_bias", "gap_mae", "gap_rmse", "gap_spearman", "gap_ece", "gap_max_bin", "score_coverage")


@dataclass(frozen=True)
class Check:
    """`GapMeasure` and `CheckedPair` frames, what `calibration.json` holds, and the metrics."""

    gap: pl.DataFrame
    checked_pairs: pl.DataFrame
    calibration: dict[str, Any]
    metrics: dict[str, float]


@dataclass
class _Found:
    """What the steps of a check find, in their order."""

    measures: list[Measure] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def check_pairs(
    held: HeldOut,
    config: RewardCheckConfig,
    *,
    seed: int,
    anchors: HeldOut | None = None,
    graded_by: Mapping[str, Any] | None = None,
    iteration: int | None = None,
) -> Check:
    """Measure a reward model on held-out pairs, at least one. What is measured is the reward as it will grade: less the
    effect of length where that is taken away, aggregated, each pair judged by what was fitted without its cluster.

    `anchors`: pairs whose order is agreed on. `graded_by`: the calibration that graded so far, for its own gap.
    `iteration`: whose answers are fresh.
    """
    found = _Found()
    folds = folds_of(held.clusters, config.calibration.folds, derive_seed(seed, "folds"))
    quality = lengths.known_quality(held)
    known = dict(seed=derive_seed(seed, "length"), name="length_correlation")
    correlation = lengths.length_correlation(held, quality, **known)  # type: ignore[arg-type]
    effect, graded = None, held
    if lengths.mitigates(correlation, config.length, len(np.unique(held.clusters)), config.calibration.folds):
        effect = lengths.fit_effect(held, quality, np.arange(len(held)), config.length)
        graded = lengths.without_length(held, quality, folds, config.length)
        found.measures += _renamed(correlation, "length_correlation_raw")
        found.metrics["heldout_accuracy_raw"] = float(held.right.mean())
        correlation = lengths.length_correlation(graded, quality, **known)  # type: ignore[arg-type]
    found.measures += [correlation] if correlation else []
    told = _of_pairs(graded, folds, config, found, seed)
    fresh = None
    if iteration is not None:
        fresh = pairs.fresh_accuracy(graded, iteration, seed=derive_seed(seed, "accuracy"))
    if fresh is not None:
        found.measures.append(fresh)
        found.metrics["fresh_pairs"] = float(fresh.count)
    answers = scores.scored_answers(graded, held, folds)
    mapping, scale = _map(graded, answers, config)
    _of_scores(answers, mapping, graded_by, config, found, seed)
    calibration = {
        "format": FORMAT,
        "scale": scale,
        "map": mapping,
        "length": effect,
        "ensemble": config.ensemble.model_dump(),
        "right": dict(zip(("slope", "doubt"), fit_right(graded.margin, graded.uncertainty), strict=True)),
        "pairs": len(held),
        "answers": len(answers),
    }
    if anchors is not None and len(anchors):
        found.measures.append(_anchors(anchors, calibration, derive_seed(seed, "anchors")))
    found.metrics |= {"pairs": float(len(held))} | _as_metrics(found.measures)
    return Check(gap_frame(found.measures), _checked(graded, told, calibration), calibration, found.metrics)


def _of_pairs(held: HeldOut, folds: np.ndarray, config: RewardCheckConfig, found: _Found, seed: int) -> pairs.Chances:
    """Accuracy, calibration and uncertainty on all pairs and their slices."""
    seed = derive_seed(seed, "accuracy")
    told = pairs.chances(held, folds)
    overall = pairs.accuracy(held, seed=seed)
    slices = pairs.accuracy_slices(held, fewest=config.min_slice, seed=seed)
    found.measures += [overall, *worst_slices(slices, overall.value, config.worst_slices)]
    found.measures += pairs.accuracy_by("uncertainty", held.uncertainty, held, seed=seed)
    found.measures += pairs.accuracy_by("margin", np.abs(held.margin), held, seed=seed)
    strength = held.pairs["strength"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if np.isfinite(strength).all() and held.pairs["source"].n_unique() == 1:
        found.measures += pairs.accuracy_by("strength", strength, held, seed=seed)
    found.measures += pairs.bin_measures(pairs.confidence_bins(held, told.by_margin, seed=seed))
    found.metrics |= pairs.uncertainty_metrics(held, told, config.level)
    equal = lengths.at_equal_length(held)
    if equal is not None:
        found.metrics["accuracy_at_equal_length"] = equal
    return told


def _map(held: HeldOut, answers: scores.ScoredAnswers, config: RewardCheckConfig) -> tuple[Map, str]:
    """The map to people's units and what they are: absolute scores where enough answers have one, else log-odds."""
    wanted = config.calibration
    if wanted.to == "none":
        return identity("calibration.to is none"), "standardised"
    if wanted.to in ("auto", "absolute"):
        mapping = scores.chosen_map(answers, wanted)
        if mapping["kind"] != "identity":
            return mapping, "absolute"
        if wanted.to == "absolute":
            return mapping, "standardised"
    if len(held) < wanted.min_pairs:
        return identity(f"{len(held)} pairs, log-odds need {wanted.min_pairs}"), "standardised"
    mapping = fit_log_odds(held.margin)
    return mapping, "standardised" if mapping["kind"] == "identity" else "log_odds"


def _of_scores(
    answers: scores.ScoredAnswers,
    mapping: Map,
    graded_by: Mapping[str, Any] | None,
    config: RewardCheckConfig,
    found: _Found,
    seed: int,
) -> None:
    """The gap in people's units, of this reward model's own calibration and of the one that graded so far."""
    seed = derive_seed(seed, "gap")
    if mapping["kind"] in scores.FITS:
        calibrated = scores.cross_fitted_scores(answers, mapping["kind"])
        known = scores.score_measures(answers, calibrated, config, seed)
        found.measures += known
        worst = [abs(each.value) for each in known if each.measure == "gap_bias" and each.slice != "all"]
        found.metrics |= {"gap_worst_slice": max(worst)} if worst else {}
    if graded_by is not None and graded_by.get("scale") == "absolute" and len(answers):
        known = scores.graded_gap(answers, graded_by, seed)
        found.measures += known
        found.metrics |= {each.measure: each.value for each in known}


def _anchors(anchors: HeldOut, calibration: Mapping[str, Any], seed: int) -> Measure:
    """Agreement on the anchors, of rewards as the calibration gives them."""
    sides = [apply(calibration, side.reward, side.length) for side in (anchors.chosen, anchors.rejected)]
    return pairs.accuracy(anchors.with_rewards(*sides), seed=seed, measure="anchor_agreement")


def _as_metrics(measures: list[Measure]) -> dict[str, float]:
    """The measures of all rows that are metrics, with their intervals where the gate reads them."""
    metrics: dict[str, float] = {}
    for each in measures:
        if each.measure in METRICS or (each.measure in GAP and each.slice == "all"):
            metrics[each.measure] = each.value
            if each.measure in INTERVALS and each.low is not None and each.high is not None:
                metrics |= {f"{each.measure}_low": each.low, f"{each.measure}_high": each.high}
    return metrics


def _renamed(measure: Measure | None, name: str) -> list[Measure]:
    if measure is None:
        return []
    return [Measure(name, measure.slice, measure.value, measure.low, measure.high, measure.count)]


def gap_frame(measures: list[Measure]) -> pl.DataFrame:
    """Measures as a `GapMeasure` frame."""
    names = GapMeasure.column_names()
    rows = [tuple(getattr(each, name) for name in names) for each in measures]
    return pl.DataFrame(rows, schema=GapMeasure.create_empty().schema, orient="row")


def _checked(held: HeldOut, told: pairs.Chances, calibration: Mapping[str, Any]) -> pl.DataFrame:
    """A row per pair. Rewards are those that were judged: without the effect of length where that is taken away, in
    training deviations; calibrated ones are in the calibration's scale.
    """
    mapped = {**calibration, "length": None}  # already taken away, by what was fitted without the pair
    columns = {
        "chosen_reward": held.chosen.reward,
        "rejected_reward": held.rejected.reward,
        "chosen_calibrated": apply(mapped, held.chosen.reward, held.chosen.length),
        "rejected_calibrated": apply(mapped, held.rejected.reward, held.rejected.length),
        "uncertainty": held.uncertainty,
        "chosen_uncertainty": held.chosen.uncertainty,
        "rejected_uncertainty": held.rejected.uncertainty,
        "chosen_length": held.chosen.length,
        "rejected_length": held.rejected.length,
        "probability": told.by_both,
        "right": held.right,
        "human_score_chosen": held.chosen.human,
        "human_score_rejected": held.rejected.human,
    }
    frame = held.pairs.with_columns(pl.Series(name, values) for name, values in columns.items())
    frame = frame.with_columns(pl.col("human_score_chosen", "human_score_rejected").fill_nan(None))
    schema = CheckedPair.create_empty().schema
    return frame.select(list(schema)).cast(dict(schema))  # type: ignore[arg-type]
