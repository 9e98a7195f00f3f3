"""Which groups of earlier iterations train again."""

from collections.abc import Sequence

import polars as pl

# Rewards that differ by less teach nothing.
LEAST_VARIANCE = 1e-12


def choose_replayed(
    fresh_rows: int, older: Sequence[tuple[int, pl.LazyFrame]], *, max_share: float | None, max_age: int | None
) -> list[tuple[int, pl.DataFrame]]:
    """Of earlier `Trajectory` frames, each with how many iterations ago it was made, the groups that train again.

    Only groups whose rewards vary, the most informative first (the variance of the rewards: p (1 - p) for pass or
    fail), whole groups, as long as the replayed rows are at most `max_share` of the update's; a group that would be too
    many makes room for smaller ones. A night without fresh rows replays nothing: it would be all of the update. Of
    equally informative groups the newer one comes first. Without `max_share` every trajectory comes. `max_age` in
    iterations.
    """
    young = [(age, _within(frame, age, max_age)) for age, frame in older]
    if max_share is None:
        return [(age, frame.collect()) for age, frame in young]
    if not young:
        return []
    ranked = (
        pl.concat([_groups(frame).with_columns(night=pl.lit(age)) for age, frame in young])
        .filter(pl.col("variance") > LEAST_VARIANCE)
        .sort("variance", "night", "group_id", descending=[True, False, False])
        .collect()
    )
    ranked = ranked.filter(_fitting(ranked["rows"].to_list(), fresh_rows * max_share / (1 - max_share)))
    chosen = {age: ranked.filter(pl.col("night") == age)["group_id"].implode() for age, _ in young}
    return [(age, frame.filter(pl.col("group_id").is_in(chosen[age])).collect()) for age, frame in young]


def _fitting(sizes: Sequence[int], limit: float) -> list[bool]:
    """Which of the sizes, taken in order, fit under the limit together with those taken before."""
    taken, fits = 0, []
    for size in sizes:
        fits.append(taken + size <= limit)
        taken += size if fits[-1] else 0
    return fits


def _within(frame: pl.LazyFrame, age: int, max_age: int | None) -> pl.LazyFrame:
    return frame if max_age is None else frame.filter(pl.col("age") + age <= max_age)


def _groups(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Rows and the variance of the rewards of each group, every rollout counting by its weight."""
    weight = pl.col("weight") / pl.col("weight").sum()
    mean = (weight * pl.col("reward")).sum()
    return frame.group_by("group_id").agg(
        pl.len().cast(pl.Int64).alias("rows"), (weight * (pl.col("reward") - mean) ** 2).sum().alias("variance")
    )
