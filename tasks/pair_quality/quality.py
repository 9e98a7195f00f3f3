"""The quality of labels from stored states, pure."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.errors import TooFew
from storage.fingerprints import derive_seed
from storage.records import PairQuality, StrengthDecile
from tasks._maths.pair_quality import Quality, Rules, deciles, judge
from tasks._maths.paired_answers import cross_validate, right
from tasks._training.stored_pairs import TIE, StoredPairs
from tasks.pair_quality.config import PairQualityConfig

FEWEST_FOLDS = 2


@dataclass(frozen=True)
class JudgedPairs:
    """`PairQuality` and `StrengthDecile` frames of the training pairs, and metrics."""

    quality: pl.DataFrame
    deciles: pl.DataFrame
    metrics: dict[str, float]


def judge_pairs(stored: StoredPairs, config: PairQualityConfig, *, seed: int) -> JudgedPairs:
    """The strength of every training pair by models that never saw its prompt. Ties are left as they are.

    With fewer clusters of prompts than `folds` there is a fold for each. Raises `TooFew` for fewer than two.
    """
    chosen = ~stored.held_out & (stored.pairs.labels.targets != TIE)
    pairs, ids = stored.pairs.of(chosen), stored.pair_ids[chosen]
    folds = min(config.folds, len(np.unique(pairs.clusters)))
    if folds < FEWEST_FOLDS:
        raise TooFew(
            f"{folds} clusters of prompts among the training pairs, expected at least {FEWEST_FOLDS}: each is judged "
            "by models that learned from the others. Collect more prompts, or leave pair_quality out"
        )
    repeats = [
        cross_validate(
            pairs, config.ridges, folds=folds, seed=derive_seed(seed, "quality", repeat), members=config.members
        ).members
        for repeat in range(config.repeats)
    ]
    rules = Rules(
        lowest_share=config.lowest_share,
        lowest=config.lowest,
        middle_share=config.middle_share,
        middle=config.middle,
        smoothing=config.smoothing,
        margins=config.margins,
    )
    quality = judge(np.concatenate(repeats, axis=1), rules)
    half = len(repeats) // 2
    by_decile = _by_decile(*(np.concatenate(part, axis=1).mean(axis=1) for part in (repeats[:half], repeats[half:])))
    return JudgedPairs(_frame(ids, quality), by_decile, _metrics(quality))


def _frame(ids: np.ndarray, quality: Quality) -> pl.DataFrame:
    columns = {
        "pair_id": ids,
        "strength": quality.strength,
        "deviation": quality.deviation,
        "decile": quality.decile,
        "action": quality.action.tolist(),
        "smoothing": quality.smoothing,
        "margin": quality.margin,
    }
    return pl.DataFrame(columns).cast(PairQuality.create_empty().schema)


def _by_decile(first: Float[np.ndarray, " pairs"], second: Float[np.ndarray, " pairs"]) -> pl.DataFrame:
    """Tenths by the strength that the first half of the models gives, and by its size; accuracy by the second half."""
    parts = []
    for name, values in (("strength", first), ("confidence", np.abs(first))):
        rows = pl.DataFrame({"decile": deciles(values), "strength": values, "right": right(second)})
        measured = rows.group_by("decile").agg(
            pairs=pl.len(), strength_mean=pl.col("strength").mean(), accuracy=pl.col("right").mean()
        )
        parts.append(measured.sort("decile").with_columns(ordered_by=pl.lit(name)))
    schema = StrengthDecile.create_empty().schema
    return pl.concat(parts).select(list(schema)).cast(schema)


def _metrics(quality: Quality) -> dict[str, float]:
    return {
        "judged_pairs": float(len(quality.strength)),
        "below_zero": float((quality.strength < 0).mean()),
        "strength_mean": float(quality.strength.mean()),
        "deviation_mean": float(quality.deviation.mean()),
        **{f"{name}_pairs": float((quality.action == name).sum()) for name in ("keep", "flip", "smooth", "drop")},
    }
