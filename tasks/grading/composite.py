"""The weighted composite of a rollout's grades, pure."""

from collections.abc import Sequence

import polars as pl

from storage.errors import StageFailed
from tasks.grading.config import GraderConfig


def composite(grades: pl.LazyFrame, graders: Sequence[GraderConfig]) -> pl.DataFrame:
    """The `Reward` frame: sum of weight x score, the weights normalised to 1 over `graders`, sorted by rollout.

    A reward is complete only when every grader answered ok; otherwise it is null, never a partial sum.
    `passed` is null without judges, and false where one of them says no or nothing.
    """
    total = sum(grader.weight for grader in graders)
    weights = {grader.label: grader.weight / total for grader in graders}
    order = {grader.label: index for index, grader in enumerate(graders)}
    grader = pl.col("grader").cast(pl.String)
    ok = (pl.col("status").cast(pl.String) == "ok").fill_null(False)
    ranked = grades.filter(grader.is_in(list(weights))).with_columns(
        grader.replace_strict(weights, return_dtype=pl.Float64).alias("weight"),
        grader.replace_strict(order, return_dtype=pl.Int32).alias("order"),
        ok.alias("ok"),
        _verdict(graders).alias("verdict"),
    )
    judges = sum(grader.judge for grader in graders)
    component = pl.struct(pl.col("grader").cast(pl.String).alias("name"), pl.col("score").alias("value"))
    grouped = (
        ranked.sort("rollout_id", "order")
        .group_by("rollout_id", maintain_order=True)
        .agg(
            (pl.col("score") * pl.col("weight")).sum().alias("sum"),
            component.filter(pl.col("ok")).alias("components"),
            (pl.col("ok").sum() == len(weights)).alias("complete"),
            pl.when(judges > 0).then(pl.col("verdict").sum() == judges).alias("passed"),
        )
    )
    reward = pl.when("complete").then("sum").otherwise(None).alias("reward")
    return grouped.select("rollout_id", reward, "components", "complete", "passed").collect()


def _verdict(graders: Sequence[GraderConfig]) -> pl.Expr:
    """True where a judge passes the rollout; false for other graders' rows."""
    verdict = pl.lit(False)
    for grader in graders:
        if grader.judge:
            says = pl.col("passed") if grader.pass_score is None else pl.col("score") >= grader.pass_score
            verdict = pl.when(pl.col("grader").cast(pl.String) == grader.label).then(says).otherwise(verdict)
    return verdict.fill_null(False)


def grade_metrics(grades: pl.LazyFrame, rewards: pl.DataFrame) -> dict[str, float]:
    """Mean, spread and completeness of the rewards; mean score, pass rate and failures per grader."""
    complete = rewards.filter("complete")["reward"]
    metrics = {
        "complete_fraction": len(complete) / max(len(rewards), 1),
        "failed": 0.0,
        **_present({"passed_fraction": rewards["passed"].mean()}),
        **_present({"reward_mean": complete.mean(), "reward_std": complete.std()}),
    }
    for row in _by_grader(grades).iter_rows(named=True):
        named = {f"score/{row['grader']}_mean": row["score"], f"score/{row['grader']}_passed": row["passed"]}
        metrics |= _present(named)
        metrics["failed"] += row["failed"]
    return metrics


def refuse_failures(grades: pl.LazyFrame, max_failed_fraction: float) -> None:
    """Raises `StageFailed` with the first failure when a grader failed on too large a share of the rollouts."""
    for row in _by_grader(grades).iter_rows(named=True):
        if row["failed"] > max_failed_fraction * row["rows"]:
            raise StageFailed(
                f"grader {row['grader']} failed on {row['failed']} of {row['rows']} rollouts, above "
                f"grading.max_failed_fraction {max_failed_fraction}; the first: {row['failure']}"
            )


def _by_grader(grades: pl.LazyFrame) -> pl.DataFrame:
    failed = pl.col("status").cast(pl.String) == "failed"
    return (
        grades.group_by("grader")
        .agg(
            pl.len().alias("rows"),
            pl.col("score").mean(),
            pl.col("passed").mean(),
            failed.sum().alias("failed"),
            pl.col("detail").filter(failed).first().alias("failure"),
        )
        .sort("grader")
        .collect()
    )


def _present(values: dict[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
