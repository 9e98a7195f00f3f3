"""What the grades say of their graders: distribution, agreement, failures, latency and cost. Pure."""

import itertools
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from storage.records import QUANTILES, GraderAgreement, GraderSummary
from tasks._maths.agreement import cohens_kappa, spearman

BINS = 20
DISTRIBUTION = ("score_mean", "score_std", "quantiles", "low", "high", "histogram")


def summarise_graders(grades: pl.LazyFrame) -> pl.DataFrame:
    """The `GraderSummary` frame, sorted by grader.

    Twenty even bins from 0 to 1, wider where a score lies outside. Latency is that of answers, failures included.
    """
    status = pl.col("status").cast(pl.String)
    latency = pl.col("latency_s").filter(status.is_in(["ok", "failed"]))
    found = (
        grades.group_by("grader")
        .agg(
            pl.len().alias("rollouts"),
            *((status == name).sum().alias(name) for name in ("ok", "failed", "pending", "skipped")),
            pl.col("passed").mean().alias("passed_fraction"),
            pl.col("score").drop_nulls().sort(),
            pl.col("cost").sort().implode().list.sum(),
            *(
                latency.quantile(level, "linear").alias(f"latency_{name}_s")
                for name, level in (("p50", 0.5), ("p95", 0.95))
            ),
        )
        .sort("grader")
        .collect()
    )
    distributions = [_distribution(scores.to_numpy()) for scores in found["score"]]
    schema = {name: GraderSummary.create_empty().schema[name] for name in DISTRIBUTION}
    frame = found.hstack(pl.DataFrame(distributions, schema=schema, orient="row"))
    return GraderSummary.cast(frame.select(GraderSummary.column_names()))


def _distribution(scores: Float[np.ndarray, " sorted"]) -> tuple[Any, ...]:
    """In the order of `DISTRIBUTION`. Sorted scores have one sum: rows are read in any order."""
    low, high = float(min(0.0, scores.min(initial=0.0))), float(max(1.0, scores.max(initial=1.0)))
    histogram = np.histogram(scores, bins=BINS, range=(low, high))[0].tolist()
    if not len(scores):
        return None, None, [], low, high, histogram
    return float(scores.mean()), float(scores.std()), np.quantile(scores, QUANTILES).tolist(), low, high, histogram


def agreement_of(grades: pl.LazyFrame) -> pl.DataFrame:
    """The `GraderAgreement` frame: every pair of graders, over the rollouts that both answered."""
    names = sorted(grades.select(pl.col("grader").cast(pl.String).unique()).collect()["grader"])
    wide = grades.group_by("rollout_id").agg(
        pl.col(column)
        .filter(pl.col("grader").cast(pl.String) == name)
        .first()
        .cast(pl.Float64)
        .alias(f"{column} {name}")
        for column in ("score", "passed")
        for name in names
    )
    found = wide.collect() if len(names) > 1 else pl.DataFrame()
    rows = [(first, second, *_agreement(found, first, second)) for first, second in itertools.combinations(names, 2)]
    return GraderAgreement.cast(pl.DataFrame(rows, schema=GraderAgreement.create_empty().schema, orient="row"))


def _agreement(wide: pl.DataFrame, first: str, second: str) -> tuple[int, float | None, float | None]:
    scores, verdicts = (
        wide.select(f"{column} {first}", f"{column} {second}").drop_nulls().to_numpy() for column in ("score", "passed")
    )
    return len(scores), spearman(scores[:, 0], scores[:, 1]), cohens_kappa(verdicts[:, 0] > 0, verdicts[:, 1] > 0)


def analysis_metrics(summary: pl.DataFrame, agreement: pl.DataFrame) -> dict[str, float]:
    """Total cost; per grader the share failed and its 95th latency; per pair of graders Spearman's correlation."""
    metrics = {"cost": float(summary["cost"].sum())}
    for row in summary.iter_rows(named=True):
        metrics[f"failed_fraction/{row['grader']}"] = row["failed"] / max(row["ok"] + row["failed"], 1)
        if row["latency_p95_s"] is not None:
            metrics[f"latency_p95_s/{row['grader']}"] = row["latency_p95_s"]
    for row in agreement.iter_rows(named=True):
        if row["spearman"] is not None:
            metrics[f"spearman/{row['grader']}/{row['other']}"] = row["spearman"]
    return metrics
