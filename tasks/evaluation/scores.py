"""Held-out scores, their intervals and the verdict: pure."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from storage.errors import StageFailed
from storage.fingerprints import derive_seed
from storage.records import EvaluatedPrompt
from tasks._maths.intervals import Interval, bootstrap_mean, paired_bootstrap, pass_at_k, worst_at_k
from tasks.evaluation.config import EvaluationConfig


@dataclass(frozen=True)
class Verdict:
    """Whether the policy replaces the champion, and the difference that says so (None without a champion)."""

    promoted: bool
    difference: Interval | None


def score_prompts(rollouts: pl.DataFrame, rewards: pl.DataFrame) -> pl.DataFrame:
    """The `EvaluatedPrompt` frame: per prompt the mean, best and worst reward over its complete samples.

    Raises `StageFailed` when a prompt has no sample that every grader answered.
    """
    graded = rollouts.select("rollout_id", "prompt_id", "policy_id").join(rewards, on="rollout_id", how="left")
    missing = graded.group_by("prompt_id").agg(pl.col("reward").count()).filter(pl.col("reward") == 0)
    if len(missing):
        raise StageFailed(f"{len(missing)} held-out prompts have no graded sample, first {missing['prompt_id'][0]}")
    complete = graded.filter(pl.col("reward").is_not_null())
    return (
        complete.group_by("prompt_id", "policy_id")
        .agg(
            pl.len().cast(pl.Int32).alias("samples"),
            pl.col("reward").mean().alias("mean_score"),
            pl.col("reward").max().alias("best_score"),
            pl.col("reward").min().alias("worst_score"),
            pl.when(pl.col("passed").null_count() == 0).then(pl.col("passed").sum()).cast(pl.Int32).alias("passed"),
        )
        .select(EvaluatedPrompt.column_names())
        .sort("prompt_id")
    )


def judge(now: pl.DataFrame, champion: pl.DataFrame | None, config: EvaluationConfig, seed: int) -> Verdict:
    """Not worse than the champion on the same prompts, by a paired bootstrap over prompts (non-inferiority)."""
    if champion is None:
        return Verdict(promoted=True, difference=None)
    both = now.join(champion, on="prompt_id", suffix="_before")
    if not len(both):
        raise StageFailed("the policy and the champion were scored on different held-out prompts")
    difference = paired_bootstrap(
        both["mean_score_before"].to_numpy(),
        both["mean_score"].to_numpy(),
        np.arange(len(both)),
        seed=derive_seed(seed, "difference"),
        level=config.confidence,
    )
    promoted = difference.low >= -config.max_regression and difference.high >= 0
    return Verdict(promoted=promoted, difference=difference)


def evaluation_metrics(scores: pl.DataFrame, verdict: Verdict, config: EvaluationConfig, seed: int) -> dict[str, float]:
    """The metrics of an evaluation, intervals included."""
    mean = bootstrap_mean(
        scores["mean_score"].to_numpy(), np.arange(len(scores)), seed=derive_seed(seed, "mean"), level=config.confidence
    )
    metrics = {
        "mean_score": mean.estimate,
        "mean_score_low": mean.low,
        "mean_score_high": mean.high,
        "standard_error": mean.standard_error,
        "promoted": float(verdict.promoted),
        **_pass_metrics(scores, config.k),
    }
    if verdict.difference is not None:
        metrics |= {
            "difference": verdict.difference.estimate,
            "difference_low": verdict.difference.low,
            "difference_high": verdict.difference.high,
        }
    return metrics


def _pass_metrics(scores: pl.DataFrame, k: int) -> dict[str, float]:
    """pass@1, pass@k and worst@k; none where a verifier doesn't say what passes."""
    if scores["passed"].null_count():
        return {}
    k = min(k, int(scores["samples"].to_numpy().min()))
    counts = list(zip(scores["samples"], scores["passed"], strict=True))
    return {
        "pass_at_1": float(np.mean([pass_at_k(n, passed, 1) for n, passed in counts])),
        "pass_at_k": float(np.mean([pass_at_k(n, passed, k) for n, passed in counts])),
        "worst_at_k": float(np.mean([worst_at_k(n, passed, k) for n, passed in counts])),
        "k": float(k),
    }
