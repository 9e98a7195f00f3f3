"""Two reward models on the same held-out pairs, and nobody promoted by what it was trained on. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from storage.errors import InputError
from storage.fingerprints import derive_seed
from tasks._maths.intervals import Interval, paired_bootstrap

JUDGED = ["pair_id", "cluster_id", "prompt_id", "right"]
# What ties a held-out pair to one that trained: the pair itself, its prompt, a near duplicate of its prompt.
TIES = ("pair_id", "prompt_id", "cluster_id")


@dataclass(frozen=True)
class Checked:
    """A reward model's check: its metrics, and the held-out pairs as `JUDGED` (right: 1, a tied score 0.5, else 0)."""

    metrics: Mapping[str, float]
    pairs: pl.DataFrame


@dataclass(frozen=True)
class Comparison:
    """The pairs that both judged and the present one didn't train on, and the accuracies there.

    `difference` (candidate less present) is resampled by cluster; None without two clusters.
    """

    pairs: int
    left_out: int
    candidate: float
    incumbent: float
    difference: Interval | None


def judged_pairs(checked_pairs: pl.LazyFrame, preferences: pl.LazyFrame) -> pl.DataFrame:
    """The checked pairs as `JUDGED`, sorted by pair. Raises `InputError` for one that isn't held out there."""
    checked = checked_pairs.select("pair_id", pl.col("right").cast(pl.Float64)).collect()
    held_out = held_out_pairs(preferences).collect()
    joined = checked.join(held_out, on="pair_id", how="left").sort("pair_id")
    strangers = joined.filter(pl.col("cluster_id").is_null())
    if len(strangers):
        raise InputError(
            f"pair {strangers['pair_id'][0]}: checked, but no held-out pair of the preferences; check the reward model "
            "on those that the gate is given"
        )
    return joined.select(JUDGED)


def held_out_pairs(preferences: pl.LazyFrame) -> pl.LazyFrame:
    """The pairs of split `eval`, by what ties them to others."""
    return preferences.filter(pl.col("split").cast(pl.String) == "eval").select(*TIES)


def training_pairs(preferences: pl.LazyFrame) -> pl.LazyFrame:
    """The pairs of split `train`, by what ties them to others."""
    return preferences.filter(pl.col("split").cast(pl.String) == "train").select(*TIES)


def refuse_overlap(trained: pl.LazyFrame, held_out: pl.LazyFrame, what: str) -> None:
    """Raises `InputError` when a pair that trained the candidate, or its prompt or cluster, is among the held-out."""
    for tie in TIES:
        shared = (
            held_out.join(
                trained.unique(tie, keep="first", maintain_order=True), on=tie, how="inner", suffix="_trained"
            )
            .sort("pair_id")
            .head(1)
            .collect()
        )
        if len(shared):
            row = shared.row(0, named=True)
            other = row.get("pair_id_trained", row["pair_id"])
            raise InputError(
                f"{what}: held-out pair {row['pair_id']} and training pair {other} share {tie} {row[tie]}; expected "
                "none in common: a reward model isn't promoted by what it was trained on. Split the preferences by "
                "prompt cluster"
            )


def compare(candidate: Checked, incumbent: Checked, trained: pl.DataFrame, *, level: float, seed: int) -> Comparison:
    """Both on the pairs that both judged, less those that the present one trained on (`trained`, as `TIES`).

    The candidate saw none of the held-out pairs, the present one may have seen some in an earlier iteration: they would
    speak for it.
    """
    both = candidate.pairs.join(incumbent.pairs.select("pair_id", before="right"), on="pair_id", how="inner")
    fresh = both
    for tie in TIES:
        fresh = fresh.join(trained.select(tie).unique(), on=tie, how="anti")
    fresh = fresh.sort("pair_id")
    if fresh.is_empty():
        return Comparison(0, len(both), np.nan, np.nan, None)
    before, after, clusters = (fresh[name].to_numpy() for name in ("before", "right", "cluster_id"))
    known = fresh["cluster_id"].n_unique() > 1
    interval = (
        paired_bootstrap(before, after, clusters, seed=derive_seed(seed, "difference"), level=level) if known else None
    )
    return Comparison(len(fresh), len(both) - len(fresh), float(after.mean()), float(before.mean()), interval)
