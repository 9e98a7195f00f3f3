"""How well heads do on pairs that they never saw, and how that grows with the pairs, pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.fingerprints import derive_seed
from storage.records import CrossValidation
from tasks._maths.folds import grouped_folds, some_clusters
from tasks._maths.intervals import bootstrap_mean
from tasks._maths.learning_curve import CurveFit, fit_curve
from tasks._maths.linear_preferences import Labels, fit
from tasks._maths.paired_answers import Design, PairedAnswers, Standard, cross_validate, fit_rows, right

SPLITS = ("by_prompt", "by_pair")
SMALLEST_RIDGE = 1e-6


@dataclass(frozen=True)
class Validation:
    """The `CrossValidation` frame, and the ensemble's out-of-fold score differences (by prompt, the first repeat)."""

    table: pl.DataFrame
    margins: Float[np.ndarray, " pairs"]


def validate(
    pairs: PairedAnswers, ridges: Sequence[float], *, folds: int, repeats: int, members: int, seed: int
) -> Validation:
    """Single heads and their ensemble, split by prompt and, to show what a leak would claim, by pair.

    The single head is one that weighs all pairs the same; the ensemble is the mean of its members' score differences.
    """
    rows, kept = [], np.zeros(len(pairs))
    for split in SPLITS:
        correct: dict[str, list[np.ndarray]] = {"single": [], "ensemble": []}
        for repeat in range(repeats):
            found = cross_validate(
                pairs,
                ridges,
                folds=folds,
                seed=derive_seed(seed, "folds", repeat),
                members=members,
                by_pair=split == "by_pair",
            )
            together = found.members.mean(axis=1)
            correct["single"].append(right(found.single))
            correct["ensemble"].append(right(together))
            kept = together if (split, repeat) == ("by_prompt", 0) else kept
        shown = correct if members > 1 else {"single": correct["single"]}
        rows += [_row(split, heads, np.mean(each, axis=0), pairs, repeats, seed) for heads, each in shown.items()]
    schema = CrossValidation.create_empty().schema
    return Validation(pl.DataFrame(rows, schema=schema, orient="row"), kept)


def slope(margins: Float[np.ndarray, " pairs"]) -> float:
    """The b of P(first is better) = sigma(b margin) that fits best: below 1 the score differences claim too much."""
    return float(fit(margins[:, None], Labels.certain(len(margins)), SMALLEST_RIDGE)[0])


def learning_curve(
    pairs: PairedAnswers, ridges: Sequence[float], shares: Sequence[float], *, folds: int, repeats: int, seed: int
) -> tuple[pl.DataFrame, CurveFit]:
    """The `LearningPoint` frame and the law through it.

    Each fold of each repeat is a run: the held-out fold stays, whole clusters of the rest are drawn up to each share,
    the smaller draws within the larger ones, and the ridge is chosen within what was drawn. Features are standardised
    over the answers of all training folds, which takes no labels.
    """
    rows = []
    for repeat in range(repeats):
        fold_of = grouped_folds(pairs.clusters, folds, seed=derive_seed(seed, "curve", repeat))
        for fold in range(folds):
            run, training = repeat * folds + fold, np.flatnonzero(fold_of != fold)
            design = Design.of(pairs, Standard.of(pairs.of(training)))
            for size, share in enumerate(shares):
                drawn = some_clusters(
                    pairs.clusters[training], round(share * len(training)), seed=derive_seed(seed, run)
                )
                chosen = training[drawn]
                heads = fit_rows(design, chosen, pairs.of(chosen), ridges, members=1, seed=seed)
                margins = design.scores(heads.single, chosen, np.flatnonzero(fold_of == fold))[:, 0]
                rows.append((run, size, len(chosen), float(right(margins).mean())))
    table = pl.DataFrame(rows, schema=["run", "size", "pairs", "accuracy"], orient="row")
    table = table.cast({"run": pl.Int32, "size": pl.Int32})
    shape = (repeats * folds, len(shares))
    counts, accuracies = (table[name].to_numpy().astype(float).reshape(shape) for name in ("pairs", "accuracy"))
    return table, fit_curve(counts, accuracies, seed=derive_seed(seed, "law"))


def _row(
    split: str, heads: str, correct: Float[np.ndarray, " pairs"], pairs: PairedAnswers, repeats: int, seed: int
) -> tuple[str, str, int, int, float, float, float]:
    interval = bootstrap_mean(correct, pairs.clusters, seed=derive_seed(seed, "interval"))
    return split, heads, len(pairs), repeats, interval.estimate, interval.low, interval.high
