"""Nobody compares what two versions of a grader say of one group. Pure."""

from collections.abc import Sequence

import polars as pl

from storage.errors import InputError


def refuse_mixed(grades: pl.LazyFrame, rollouts: Sequence[pl.LazyFrame]) -> None:
    """Raises `InputError` when a grader graded a group's rollouts in two versions, such as two reward models.

    A group's rollouts are compared with each other: scores of two scales would make advantages of their difference.
    `rollouts` hold `rollout_id` and `prompt_id`. Grades without an answer have nothing to mix.
    """
    answered = grades.filter(pl.col("status").cast(pl.String) == "ok").select("rollout_id", "grader", "grader_version")
    versions = answered.group_by("grader").agg(pl.col("grader_version").n_unique().alias("versions"))
    several = versions.filter(pl.col("versions") > 1).collect(engine="streaming")["grader"].to_list()
    if not several:
        return
    groups = pl.concat([each.select("rollout_id", "prompt_id") for each in rollouts])
    mixed = (
        answered.filter(pl.col("grader").is_in(several))
        .join(groups, on="rollout_id", how="inner")
        .group_by("grader", "prompt_id")
        .agg(pl.col("grader_version").unique().sort())
        .filter(pl.col("grader_version").list.len() > 1)
        .sort("grader", "prompt_id")
        .head(1)
        .collect(engine="streaming")
    )
    if len(mixed):
        row = mixed.row(0, named=True)
        raise InputError(
            f"prompt {row['prompt_id']}: grader {row['grader']!r} graded its rollouts in versions "
            f"{', '.join(row['grader_version'])}, expected one for all rollouts of a group; grade the group again "
            "with one of them"
        )
