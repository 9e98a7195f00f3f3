"""Instant and slow grades of the same rollouts brought together, pure."""

from collections.abc import Sequence

import polars as pl

from storage.errors import StageFailed
from storage.records import PendingGrade
from tasks.grading.asking import Asked
from tasks.grading.collecting import Collected

KEY = ["rollout_id", "grader"]


def variance_by_group(rollouts: pl.DataFrame, rewards: pl.LazyFrame) -> dict[str, float]:
    """Variance of the rewards of each prompt's rollouts (p (1 - p) for pass or fail), of those that have one."""
    joined = rollouts.lazy().join(rewards.select("rollout_id", "reward"), on="rollout_id", how="inner")
    grouped = joined.group_by("prompt_id").agg(pl.col("reward").var(ddof=0).fill_null(0.0)).collect()
    return dict(grouped.iter_rows())


def settled_grades(fast: pl.LazyFrame, asked: pl.DataFrame, late: Sequence[pl.LazyFrame]) -> pl.DataFrame:
    """All grades of one iteration's rollouts: the slow ones as they were asked for, or as they came later.

    `late` holds the grades that came in later iterations, for whichever rollouts; those of others are left out. Raises
    `StageFailed` for one that this iteration didn't wait for: a grade belongs to the row that asked for it.
    """
    own = asked.lazy().select("rollout_id").unique()
    arrived = pl.concat([each.join(own, on="rollout_id", how="semi") for each in late]).collect() if late else None
    if arrived is None or arrived.is_empty():
        return pl.concat([fast.collect(), asked])
    waiting = asked.filter(pl.col("status").cast(pl.String) == "pending")
    strangers = arrived.join(waiting, on=KEY, how="anti")
    if len(strangers):
        row = strangers.row(0, named=True)
        raise StageFailed(f"a late grade of rollout {row['rollout_id']} by {row['grader']}: none was pending there")
    if arrived.select(KEY).is_duplicated().any():
        row = arrived.filter(arrived.select(KEY).is_duplicated()).row(0, named=True)
        raise StageFailed(f"rollout {row['rollout_id']} has two late grades by {row['grader']}, expected one")
    return pl.concat([fast.collect(), asked.join(arrived, on=KEY, how="anti"), arrived])


def whole_groups(
    rewards: pl.DataFrame, grades: pl.DataFrame, rollouts: pl.LazyFrame, slow: Sequence[str]
) -> pl.DataFrame:
    """The rewards, none in a group where one is incomplete because a slow grade lacks.

    A mix would compare rollouts that some grader looked at with those it didn't.
    """
    lacks = grades.filter(pl.col("grader").is_in(list(slow)), pl.col("status").cast(pl.String) != "ok")
    lacking = rewards.filter(~pl.col("complete")).join(lacks, on="rollout_id", how="semi")
    groups = rollouts.collect()
    held = groups.join(lacking, on="rollout_id", how="semi")["prompt_id"].unique()
    members = groups.filter(pl.col("prompt_id").is_in(held.implode()))["rollout_id"]
    whole = ~pl.col("rollout_id").is_in(members.implode())
    return rewards.with_columns(
        pl.when(whole).then("reward").alias("reward"), (pl.col("complete") & whole).alias("complete")
    )


def pending_frame(asked: Sequence[Asked], collected: Collected) -> pl.DataFrame:
    """The `PendingGrade` frame of all that is open, sorted."""
    schema = PendingGrade.create_empty().schema
    old = pl.DataFrame(collected.pending, schema=schema)
    new = pl.DataFrame([row for each in asked for row in each.pending], schema=schema, orient="row")
    order = PendingGrade.column_names()
    return pl.concat([old.select(order), new.select(order)]).sort("iteration", "grader", "rollout_id")


def asking_metrics(
    asked: Sequence[Asked], collected: Collected, grades: pl.DataFrame, still_open: pl.DataFrame
) -> dict[str, float]:
    """What was asked, skipped, found and paid, what arrived, and what is open or too old."""
    spending = [each.spending for each in asked]
    return {
        "submitted": float(sum(each.submitted for each in asked)),
        "skipped": float((grades["status"].cast(pl.String) == "skipped").sum()),
        "arrived": float(sum(collected.arrived.values())),
        "expired": float(collected.expired),
        "pending": float(len(still_open)),
        "cache_hits": float(sum(each.cache_hits for each in spending)),
        "cost_paid": collected.cost_paid,
        "cost_saved": sum(each.cost_saved for each in spending),
    }
