"""What people said in the browser -> pairs, pure: one label a pair, so that agreement can be measured."""

import polars as pl

from storage.errors import InputError
from tasks.preferences.frames import completed

CHOICES = ("first", "second", "tie")
QUEUED = [
    "item_id",
    "prompt_id",
    "cluster_id",
    "messages",
    "first",
    "second",
    "first_rollout_id",
    "second_rollout_id",
    "first_policy_id",
    "second_policy_id",
    "iteration",
    "reason",
]
LABELLED = [
    "label_id",
    "item_id",
    "annotator",
    "choice",
    "first_score",
    "second_score",
    "comment",
    "swapped",
    "seconds",
]


def label_pairs(queue: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """The unsplit `Preference` frame of the labels, sorted by label; those that skip are none.

    `label_id` becomes `pair_id`. `strength` is the difference of the two absolute scores where both are given. Raises
    `InputError` for a label of an item that the queue doesn't hold.
    """
    strangers = labels.join(queue, on="item_id", how="anti")
    if len(strangers):
        row = strangers.row(0, named=True)
        raise InputError(
            f"label {row['label_id']} of {row['annotator']}: its item {row['item_id']} is in no label queue; pass the "
            "queue that was labelled"
        )
    said = (
        labels.select(LABELLED)
        .with_columns(pl.col("choice").cast(pl.String))
        .filter(pl.col("choice").is_in(CHOICES))
        .join(queue.select(QUEUED).unique("item_id", keep="first"), on="item_id", how="inner")
        .filter(pl.col("first") != pl.col("second"))
        .sort("label_id")
    )
    second = pl.col("choice") == "second"
    better, worse = pl.col("first_score"), pl.col("second_score")
    return completed(
        said.with_columns(
            pl.col("label_id").alias("pair_id"),
            *_sides(second),
            pl.lit("human").alias("source"),
            (better - worse).abs().alias("strength"),
            (pl.col("choice") == "tie").alias("tie"),
            pl.struct("item_id", "reason", "comment", "swapped", "seconds").struct.json_encode().alias("detail"),
        )
    )


def _sides(second: pl.Expr) -> list[pl.Expr]:
    """The chosen and the rejected side's columns from those of the first and the second."""
    found = []
    for suffix, name in (
        ("", "{}"),
        ("_rollout_id", "{}_rollout_id"),
        ("_policy_id", "{}_policy_id"),
        ("_score", "human_score_{}"),
    ):
        first, other = pl.col(f"first{suffix}"), pl.col(f"second{suffix}")
        found.append(pl.when(second).then(other).otherwise(first).alias(name.format("chosen")))
        found.append(pl.when(second).then(first).otherwise(other).alias(name.format("rejected")))
    return found
