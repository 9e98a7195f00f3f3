"""What held-out pairs say: accuracy by slice, calibration of the probability, and what the uncertainty is worth."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tasks._maths.alignment_gap import (
    Bin,
    Measure,
    expected_error,
    largest_error,
    quantile_labels,
    reliability,
    slice_measures,
)
from tasks._maths.calibration import cross_fitted, steepness
from tasks._maths.intervals import bootstrap_mean
from tasks._maths.uncertainty import chance_right, fit_right, log_loss, not_confidently_wrong
from tasks.reward_check.held_out import HeldOut

Rows = Float[np.ndarray, " pairs"]
DECILES, FEWEST_PER_DECILE = 10, 20


@dataclass(frozen=True)
class Chances:
    """The probability that each pair's chosen answer is preferred, by maps fitted without its fold: from the margin
    alone, and from margin and uncertainty.
    """

    by_margin: Rows
    by_both: Rows


def chances(held: HeldOut, folds: np.ndarray) -> Chances:
    """Both probabilities; a pair that the reward model orders wrongly has one below 0.5."""
    margin, uncertainty = held.margin, held.uncertainty

    def by_margin(rows: np.ndarray) -> object:
        slope = max(steepness(margin[rows]), 0.0)
        return lambda out: chance_right(margin[out], np.zeros(len(out)), slope, 0.0)

    def by_both(rows: np.ndarray) -> object:
        fitted = fit_right(margin[rows], uncertainty[rows])
        return lambda out: chance_right(margin[out], uncertainty[out], *fitted)

    return Chances(*(cross_fitted(each, folds) for each in (by_margin, by_both)))  # type: ignore[arg-type]


def accuracy(held: HeldOut, *, seed: int, measure: str = "heldout_accuracy") -> Measure:
    """The share of the pairs that are ordered as their source did, with its interval over clusters."""
    found = bootstrap_mean(held.right, held.clusters, seed=seed)
    return Measure(measure, "all", found.estimate, found.low, found.high, len(held))


def fresh_accuracy(held: HeldOut, iteration: int, *, seed: int) -> Measure | None:
    """The accuracy on the pairs whose answers were sampled in that iteration, with its interval over clusters.

    Pairs of files and older labels say nothing new of the present policy. None where there is no such pair.
    """
    rows = (held.pairs["iteration"] == iteration).fill_null(False).to_numpy()
    if not rows.any():
        return None
    found = bootstrap_mean(held.right[rows], held.clusters[rows], seed=seed)
    return Measure("fresh_accuracy", "all", found.estimate, found.low, found.high, int(rows.sum()))


def accuracy_slices(held: HeldOut, *, fewest: int, seed: int) -> list[Measure]:
    """Accuracy by source, annotator, domain, and by which answer is longer."""
    difference = held.chosen.length - held.rejected.length
    longer = np.where(difference > 0, "chosen longer", np.where(difference < 0, "chosen shorter", "equally long"))
    slices = {
        "source": held.column("source"),
        "annotator": held.column("annotator"),
        "domain": held.domain,
        "length": longer,
    }
    return slice_measures("accuracy", held.right, slices, held.clusters, fewest=fewest, seed=seed)


def accuracy_by(name: str, values: Rows, held: HeldOut, *, seed: int) -> list[Measure]:
    """Accuracy by decile of a value (fewer, wider parts where a decile has fewer than 20 pairs), lowest first."""
    parts = int(np.clip(len(values) // FEWEST_PER_DECILE, 1, DECILES))
    if parts < 2 or not np.ptp(values):
        return []
    edges = np.unique(np.quantile(values, np.linspace(0, 1, parts + 1)[1:-1]))
    place = np.searchsorted(edges, values, side="right")
    found = []
    for each in np.unique(place):
        rows = place == each
        known = bootstrap_mean(held.right[rows], held.clusters[rows], seed=seed)
        title = f"{name} {each + 1:02d}: {values[rows].mean():.4g}"
        found.append(Measure("accuracy", title, known.estimate, known.low, known.high, int(rows.sum())))
    return found


def confidence_bins(held: HeldOut, probability: Rows, *, seed: int) -> list[Bin]:
    """Reliability of the answer that the reward model prefers: its probability against how often that was right."""
    return reliability(np.maximum(probability, 1 - probability), held.right, held.clusters, seed=seed)


def bin_measures(bins: list[Bin]) -> list[Measure]:
    """The bins as rows: what was predicted, what came with its interval, and the errors over all."""
    count = sum(each.count for each in bins)
    rows = [Measure("ece", "all", expected_error(bins), None, None, count)]
    rows.append(Measure("max_bin_gap", "all", largest_error(bins), None, None, count))
    for number, each in enumerate(bins, start=1):
        title = f"confidence {number:02d}"
        rows.append(Measure("predicted", title, each.predicted, None, None, each.count))
        rows.append(Measure("observed", title, each.observed, each.low, each.high, each.count))
    return rows


def uncertainty_metrics(held: HeldOut, told: Chances, level: float) -> dict[str, float]:
    """What the members' spread is worth; `uncertainty_mean` alone says how large it is, per answer.

    `uncertainty_gain`: nats by which margin and uncertainty together predict the pairs better than the margin alone.
    `uncertainty_accuracy_low` and `_high`: accuracy in the thirds of lowest and of highest uncertainty.
    """
    spread = np.concatenate([held.chosen.uncertainty, held.rejected.uncertainty])
    metrics = {"uncertainty_mean": float(spread.mean())}
    if not np.any(held.uncertainty):
        return metrics
    thirds = np.quantile(held.uncertainty, [1 / 3, 2 / 3])
    metrics |= {
        "uncertainty_coverage": float(not_confidently_wrong(held.margin, held.uncertainty, level).mean()),
        "uncertainty_gain": log_loss(told.by_margin) - log_loss(told.by_both),
        "uncertainty_accuracy_low": float(held.right[held.uncertainty <= thirds[0]].mean()),
        "uncertainty_accuracy_high": float(held.right[held.uncertainty >= thirds[1]].mean()),
    }
    return metrics


def length_labels(lengths: Rows) -> np.ndarray:
    """Quarters of the answers' lengths."""
    return quantile_labels(lengths, "tokens")
