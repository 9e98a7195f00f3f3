"""Preferences joined with their stored states: what heads are fitted to, without any model."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Shaped

from storage.artifacts import Artifact
from storage.errors import InputError
from tasks._maths.linear_preferences import Labels
from tasks._maths.pair_quality import DROP, FLIP, KEEP
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
    preferences: pl.DataFrame, states: pl.DataFrame, paired: pl.DataFrame, *, smoothing: float = 0.0
) -> StoredPairs:
    """`Preference`, `AnswerState` and `PairedAnswer` frames as one set of pairs.

    `smoothing` is epsilon, the assumed chance that any label is wrong; ties have the target 1/2. Raises `InputError`
    for a pair without states.
    """
    known = states.select("answer_id").with_row_index("row")
    rows = preferences.sort("pair_id").join(paired, on="pair_id", how="left", maintain_order="left")
    for side in ("chosen", "rejected"):
        names = {"answer_id": f"{side}_answer_id", "row": f"{side}_row"}
        rows = rows.join(known.rename(names), on=names["answer_id"], how="left", maintain_order="left")
    _refuse_stateless(rows)
    tie = rows["tie"].fill_null(False).to_numpy() if "tie" in rows.columns else np.zeros(len(rows), dtype=bool)
    labels = Labels(np.where(tie, TIE, 1 - smoothing), np.ones(len(rows)), np.zeros(len(rows)))
    first, second = (rows[f"{side}_row"].cast(pl.Int64).to_numpy() for side in ("chosen", "rejected"))
    _, clusters = np.unique(rows["cluster_id"].to_list(), return_inverse=True)
    pairs = PairedAnswers(_matrix(states), first, second, clusters, labels)
    return StoredPairs(rows["pair_id"].to_numpy(), (rows["split"] == "eval").to_numpy(), pairs)


def read_stored(preferences: Artifact, states: Artifact, *, smoothing: float = 0.0) -> StoredPairs:
    """The pairs that the states were read of, which may be a sample."""
    paired = states.read("paired_answers")
    pairs = preferences.read("preferences").join(paired, on="pair_id", how="semi", maintain_order="left")
    return stored_pairs(pairs, states.read("states"), paired, smoothing=smoothing)


def with_quality(stored: StoredPairs, quality: pl.DataFrame) -> StoredPairs:
    """The pairs as a `PairQuality` frame of training pairs has them: flipped, dropped, smoothed, with margins."""
    ids = pl.DataFrame({"pair_id": stored.pair_ids})
    judged = ids.join(
        quality.select("pair_id", pl.col("action").cast(pl.String), "smoothing", "margin"),
        on="pair_id",
        how="left",
        maintain_order="left",
    )
    kept = judged["action"].fill_null(KEEP).to_numpy() != DROP
    flipped = judged["action"].fill_null(KEEP).to_numpy() == FLIP
    pairs, labels = stored.pairs, stored.pairs.labels
    tie = labels.targets == TIE
    doubt, margin = (judged[name].fill_null(0.0).to_numpy() for name in ("smoothing", "margin"))
    targets = np.where(tie, TIE, np.minimum(labels.targets, 1 - doubt))
    turned = replace(
        pairs,
        first=np.where(flipped, pairs.second, pairs.first),
        second=np.where(flipped, pairs.first, pairs.second),
        labels=Labels(targets, labels.weights, np.where(tie, 0.0, margin)),
    )
    return StoredPairs(stored.pair_ids[kept], stored.held_out[kept], turned.of(kept))


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
