"""Preferences joined with their stored states: what heads are fitted to, without any model."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Shaped

from storage.errors import InputError
from tasks._maths.linear_preferences import Labels
from tasks._maths.pair_quality import DROP, FLIP
from tasks._maths.paired_answers import PairedAnswers

TIE = 0.5


@dataclass(frozen=True)
class StoredPairs:
    """The pairs in the order of their ids, and which of them are held out."""

    pair_ids: Shaped[np.ndarray, " pairs"]
    held_out: Bool[np.ndarray, " pairs"]
    pairs: PairedAnswers

    @property
    def training(self) -> PairedAnswers:
        """Those that may train."""
        return self.pairs.of(~self.held_out)

    @property
    def heldout(self) -> PairedAnswers:
        """Those that only measure: ties, which have no better answer, are left out."""
        return self.pairs.of(self.held_out & (self.pairs.labels.targets != TIE))


def stored_pairs(
    preferences: pl.DataFrame,
    states: pl.DataFrame,
    paired: pl.DataFrame,
    *,
    smoothing: float = 0.0,
    quality: pl.DataFrame | None = None,
) -> StoredPairs:
    """`Preference`, `AnswerState` and `PairedAnswer` frames as one set of pairs.

    `smoothing` is epsilon, the assumed chance that any label is wrong; ties have the target 1/2. A `PairQuality` frame
    flips, drops and smooths training pairs and gives them margins. Raises `InputError` for a pair without states.
    """
    known = states.select("answer_id").with_row_index("row")
    rows = preferences.sort("pair_id").join(paired, on="pair_id", how="left", maintain_order="left")
    for side in ("chosen", "rejected"):
        names = {"answer_id": f"{side}_answer_id", "row": f"{side}_row"}
        rows = rows.join(known.rename(names), on=names["answer_id"], how="left", maintain_order="left")
    _refuse_stateless(rows)
    tie = pl.col("tie").fill_null(False) if "tie" in rows.columns else pl.lit(False)
    rows = _with_quality(rows.with_columns(tie.alias("tie")), quality)
    epsilon = np.maximum(rows["smoothing"].to_numpy(), smoothing)
    targets = np.where(rows["tie"].to_numpy(), TIE, 1 - epsilon)
    labels = Labels(targets, np.ones(len(rows)), np.where(rows["tie"].to_numpy(), 0.0, rows["margin"].to_numpy()))
    first, second = (rows[f"{side}_row"].cast(pl.Int64).to_numpy() for side in ("chosen", "rejected"))
    flipped = rows["flipped"].to_numpy()
    first, second = np.where(flipped, second, first), np.where(flipped, first, second)
    _, clusters = np.unique(rows["cluster_id"].to_list(), return_inverse=True)
    pairs = PairedAnswers(_matrix(states), first, second, clusters, labels)
    return StoredPairs(rows["pair_id"].to_numpy(), (rows["split"] == "eval").to_numpy(), pairs)


def _with_quality(rows: pl.DataFrame, quality: pl.DataFrame | None) -> pl.DataFrame:
    if quality is None:
        return rows.with_columns(flipped=pl.lit(False), smoothing=pl.lit(0.0), margin=pl.lit(0.0))
    judged = quality.select("pair_id", "action", "smoothing", "margin")
    rows = rows.join(judged, on="pair_id", how="left", maintain_order="left")
    rows = rows.filter(pl.col("action").is_null() | (pl.col("action") != DROP))
    return rows.with_columns(
        flipped=(pl.col("action") == FLIP).fill_null(False),
        smoothing=pl.col("smoothing").fill_null(0.0),
        margin=pl.col("margin").fill_null(0.0),
    )


def _refuse_stateless(rows: pl.DataFrame) -> None:
    lost = rows.filter(pl.col("chosen_row").is_null() | pl.col("rejected_row").is_null())
    if len(lost):
        raise InputError(
            f"pair {lost['pair_id'][0]} and {len(lost) - 1} others: no states of their answers; "
            "read states from the same preferences first"
        )


def _matrix(states: pl.DataFrame) -> np.ndarray:
    """The states as rows, float32. Raises `InputError` where they differ in length."""
    lengths = states["state"].list.len().unique().to_list()
    if len(lengths) != 1:
        raise InputError(f"states of {sorted(lengths)} features: expected one length; read them anew")
    flat = states["state"].explode().to_numpy()
    return flat.reshape(len(states), lengths[0])
