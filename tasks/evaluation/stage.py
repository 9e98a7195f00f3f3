"""The stage `evaluation`: graded samples on held-out prompts -> scores with intervals, and the verdict."""

import polars as pl

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.evaluation.config import EvaluationConfig
from tasks.evaluation.scores import evaluation_metrics, judge, score_prompts


@stage("evaluation", version=1)
def evaluate(
    rollouts: Artifact,
    grading: Artifact,
    champion: Artifact | None,
    config: EvaluationConfig,
    *,
    seed: int,
    context: StageContext,
) -> Outputs:
    """Score the held-out samples and compare with the champion's evaluation; without one, this is the baseline."""
    passed = grading.scan("grades").group_by("rollout_id").agg(pl.col("passed").all(ignore_nulls=False))
    rewards = grading.scan("rewards").join(passed, on="rollout_id", how="left").collect()
    sampled = rollouts.scan("rollouts").select("rollout_id", "prompt_id", "policy_id").collect()
    scores = score_prompts(sampled, rewards)
    before = champion.read("evaluation") if champion is not None else None
    verdict = judge(scores, before, config, seed)
    metrics = evaluation_metrics(scores, verdict, config, seed)
    context.log.info(
        "evaluation: mean score %.3f [%.3f, %.3f], %s",
        metrics["mean_score"],
        metrics["mean_score_low"],
        metrics["mean_score_high"],
        "baseline" if before is None else "promoted" if verdict.promoted else "not promoted",
    )
    return Outputs(metrics=metrics, evaluation=scores)
