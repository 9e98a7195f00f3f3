"""Preferences and stored states in, a reward model of kind frozen and how well it does out, pure."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.errors import TooFew
from storage.fingerprints import derive_seed
from storage.records import CrossValidation, LearningPoint
from tasks._maths.frozen_heads import Arrays, FrozenHeads, standardised_heads
from tasks._maths.intervals import bootstrap_mean
from tasks._maths.learning_curve import CurveFit
from tasks._maths.paired_answers import PairedAnswers, Standard, fit_members, right
from tasks._training.stored_pairs import TIE, StoredPairs, with_quality
from tasks.frozen_heads.config import FrozenHeadsConfig
from tasks.frozen_heads.cross_validation import learning_curve, slope, validate

FEWEST_PAIRS = 2


@dataclass(frozen=True)
class Fitted:
    """The heads, `ScoredPair`, `CrossValidation` and `LearningPoint` frames, the curve if there is one, metrics."""

    heads: FrozenHeads
    scored_pairs: pl.DataFrame
    cross_validation: pl.DataFrame
    learning_curve: pl.DataFrame
    curve: CurveFit | None
    metrics: dict[str, float]


def fit_heads(
    stored: StoredPairs, config: FrozenHeadsConfig, *, seed: int, quality: pl.DataFrame | None = None
) -> Fitted:
    """Fits the members to the training pairs; pairs of split `eval` only measure.

    A `PairQuality` frame says which training labels are not to be taken as they are. Cross-validation and learning
    curve take them as they are, else they would agree with themselves: the held-out pairs tell what quality gained.
    Both use training pairs only, without ties, and need a cluster for each fold; with fewer they are left out.

    Raises `TooFew` when fewer than two pairs can train.
    """
    training = (stored if quality is None else with_quality(stored, quality)).training
    if len(training) < FEWEST_PAIRS:
        raise TooFew(
            f"{len(training)} preference pairs to train on, expected at least {FEWEST_PAIRS}: collect more, or hold "
            "fewer out"
        )
    arrays, metrics = FITS[config.form](training, config, seed)
    heads = standardised_heads(config.form, arrays, training.states[training.answers()])
    scored, measured = _held_out(stored, heads, seed)
    metrics |= {
        "training_pairs": float(len(training)),
        "train_accuracy": float(right(_margins(heads, training)).mean()),
    }
    metrics |= measured
    decided = stored.training.of(stored.training.labels.targets != TIE)
    found: dict[str, float] = {}
    table: pl.DataFrame = CrossValidation.create_empty()
    points: pl.DataFrame = LearningPoint.create_empty()
    curve = None
    if config.repeats and len(np.unique(decided.clusters)) >= config.folds:
        table, found = _validated(decided, config, seed)
        if config.curve:
            points, curve = learning_curve(
                decided, config.ridges, config.curve, folds=config.folds, repeats=config.repeats, seed=seed
            )
            found |= {"curve_gain_of_doubling": curve.gain, "curve_ceiling": curve.law.a}
    return Fitted(heads, scored, table, points, curve, metrics | found)


def _linear(training: PairedAnswers, config: FrozenHeadsConfig, seed: int) -> tuple[Arrays, dict[str, float]]:
    weight, standard, ridge = fit_members(training, config.ridges, config.members, seed=derive_seed(seed, "members"))
    return {"weight": weight, **_standard_arrays(standard)}, {"ridge": ridge}


def _mlp(training: PairedAnswers, config: FrozenHeadsConfig, seed: int) -> tuple[Arrays, dict[str, float]]:
    from tasks._training.mlp_heads import MlpSpec, fit_mlp_members

    spec = MlpSpec(**config.mlp.model_dump())
    arrays, standard = fit_mlp_members(training, spec, config.members, seed=derive_seed(seed, "members"))
    return {**arrays, **_standard_arrays(standard)}, {}


FITS = {"linear": _linear, "mlp": _mlp}


def _standard_arrays(standard: Standard) -> Arrays:
    return {"mean": standard.mean, "scale": standard.scale}


def _margins(heads: FrozenHeads, pairs: PairedAnswers) -> Float[np.ndarray, " pairs"]:
    """Standardised score differences, the mean over members."""
    return _scores(heads, pairs.states[pairs.first]) - _scores(heads, pairs.states[pairs.second])


def _scores(heads: FrozenHeads, states: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, " rows"]:
    return ((heads.raw(states) - heads.score_mean) / heads.score_std).mean(axis=1)


def _held_out(stored: StoredPairs, heads: FrozenHeads, seed: int) -> tuple[pl.DataFrame, dict[str, float]]:
    """Standardised scores of the held-out pairs, and how many are right (ties count half) with a 95 % interval."""
    pairs, decided = stored.heldout, stored.held_out & (stored.pairs.labels.targets != TIE)
    chosen, rejected = (_scores(heads, pairs.states[rows]) for rows in (pairs.first, pairs.second))
    ids = pl.Series("pair_id", stored.pair_ids[decided], dtype=pl.String)
    scored = pl.DataFrame({"pair_id": ids, "chosen_score": chosen, "rejected_score": rejected})
    metrics = {"heldout_pairs": float(len(pairs))}
    if len(pairs):
        interval = bootstrap_mean(right(chosen - rejected), pairs.clusters, seed=derive_seed(seed, "accuracy"))
        metrics |= {
            "heldout_accuracy": interval.estimate,
            "heldout_accuracy_low": interval.low,
            "heldout_accuracy_high": interval.high,
            "heldout_margin": float((chosen - rejected).mean()),
        }
    return scored, metrics


def _validated(pairs: PairedAnswers, config: FrozenHeadsConfig, seed: int) -> tuple[pl.DataFrame, dict[str, float]]:
    found = validate(
        pairs, config.ridges, folds=config.folds, repeats=config.repeats, members=config.members, seed=seed
    )
    metrics = {f"cv_{row['split']}_{row['heads']}": row["accuracy"] for row in found.table.iter_rows(named=True)}
    return found.table, metrics | {"cv_slope": slope(found.margins)}
