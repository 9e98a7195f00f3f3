"""The stage `grading`: rollouts -> one grade per rollout and grader, and their composite reward."""

import time

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError
from storage.policies import base_of, resolve_policy
from tasks._stage import Shard, StageContext, stage
from tasks._training.heads import score
from tasks.grading.composite import composite, grade_metrics, refuse_failures
from tasks.grading.config import PROMPT_VERIFIER, REWARD_MODEL, GraderConfig, GradingConfig
from tasks.grading.grade import GRADED_COLUMNS, grade_rollouts
from tasks.grading.scores import SCORED_COLUMNS, grades_from_scores
from tasks.grading.shards import shard_at, shard_count
from tasks.grading.verdict import with_defaults
from tasks.grading.verifiers import VERIFIERS, resolve_verifier


def plan(rollouts: Artifact, config: GradingConfig) -> int:
    """Every grader times every slice of the rollouts."""
    return shard_count(rollouts.manifest.tables["rollouts"].rows, config)


def versions(config: GradingConfig) -> dict[str, str]:
    """The versions of the rules that the graders apply: part of the fingerprint."""
    used = {name: rule.version for name, rule in VERIFIERS.items()} if _uses(config, PROMPT_VERIFIER) else {}
    named = (spec.grader for spec in config.graders if spec.grader not in (PROMPT_VERIFIER, REWARD_MODEL))
    return used | {name: resolve_verifier(name).version for name in named}


def rewards(joined: Artifact, config: GradingConfig) -> Outputs:
    """The composite of all shards' grades. Raises `StageFailed` when a grader failed on too many rollouts."""
    grades = joined.scan("grades")
    refuse_failures(grades, config.max_failed_fraction)
    combined = composite(grades, config.graders)
    return Outputs(metrics=grade_metrics(grades, combined), rewards=combined)


@stage("grading", version=1, shards=plan, combine=rewards, extra=versions)
def grade(
    rollouts: Artifact,
    batch: Artifact,
    reward_model: Artifact | None,
    config: GradingConfig,
    *,
    shard: Shard,
    context: StageContext,
) -> Outputs:
    """One grader's grades of one slice. `config` is already `active` for the iteration."""
    part = shard_at(shard.index, rollouts.manifest.tables["rollouts"].rows, config)
    sampled = rollouts.scan("rollouts").slice(part.first, part.rows)
    if part.grader.grader == REWARD_MODEL:
        scored = sampled.select(SCORED_COLUMNS).collect()
        return Outputs(grades=_by_reward_model(scored, reward_model, part.grader))
    graded = sampled.select(GRADED_COLUMNS).collect()
    return Outputs(grades=grade_rollouts(graded, batch.read("batch"), part.grader, context.progress))


def _by_reward_model(sampled: pl.DataFrame, reward_model: Artifact | None, grader: GraderConfig) -> pl.DataFrame:
    if reward_model is None:
        raise InputError("grading.graders has a reward_model, but there is none yet; set its from_iteration later")
    options = with_defaults(REWARD_MODEL, grader.params, {"device": "auto", "tokens_per_microbatch": 4096})
    started = time.perf_counter()
    prompts, answers = sampled["prompt_token_ids"].to_list(), sampled["token_ids"].to_list()
    scores = score(resolve_policy(base_of(reward_model)).base, reward_model.files_folder(), prompts, answers, **options)
    latency_s = (time.perf_counter() - started) / max(len(sampled), 1)
    return grades_from_scores(sampled, scores, grader=grader, version=reward_model.fingerprint, latency_s=latency_s)


def _uses(config: GradingConfig, grader: str) -> bool:
    return any(spec.grader == grader for spec in config.graders)
