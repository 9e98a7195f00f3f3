"""The stage `grading`: rollouts -> one grade per rollout and grader, and their composite reward."""

import threading
import time

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError
from storage.grade_cache import GradeCache
from storage.policies import base_of, resolve_policy
from tasks._stage import Shard, StageContext, stage
from tasks._training.heads import score
from tasks.grading.composite import composite, grade_metrics, refuse_failures
from tasks.grading.config import PROMPT_VERIFIER, REWARD_MODEL, GraderConfig, GradingConfig
from tasks.grading.grade import grade_samples, purse_for
from tasks.grading.graders import open_grader
from tasks.grading.paid import is_cached
from tasks.grading.sample import SAMPLE_COLUMNS, samples_of
from tasks.grading.scores import SCORED_COLUMNS, grades_from_scores
from tasks.grading.shards import shard_at, shard_count
from tasks.grading.verdict import with_defaults
from tasks.grading.verifiers.registry import resolve_verifier

# Shards run side by side in threads; each loads the reward model, and a device holds one at a time.
_one_reward_model = threading.Lock()


def plan(rollouts: Artifact, config: GradingConfig) -> int:
    """Every grader times every slice of the rollouts."""
    return shard_count(rollouts.manifest.tables["rollouts"].rows, config)


def versions(config: GradingConfig, batch: Artifact) -> dict[str, str]:
    """The versions of the rules that the graders apply, the prompts' own among them: part of the fingerprint."""
    named = {spec.grader for spec in config.graders}
    used = named - {PROMPT_VERIFIER, REWARD_MODEL}
    if PROMPT_VERIFIER in named:
        used.update(batch.scan("batch").select(pl.col("verifier").struct.field("name").unique()).collect()["name"])
    return {name: resolve_verifier(name).version for name in sorted(used)}


def rewards(joined: Artifact, config: GradingConfig) -> Outputs:
    """The composite of all shards' grades. Raises `StageFailed` when a grader failed on too many rollouts."""
    grades = joined.scan("grades")
    refuse_failures(grades, config.max_failed_fraction)
    combined = composite(grades, config.graders)
    return Outputs(metrics=joined.metrics | grade_metrics(grades, combined), rewards=combined)


@stage("grading", version=3, shards=plan, combine=rewards, extra=versions)
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
    part = shard_at(shard.index, shard.count, rollouts.manifest.tables["rollouts"].rows, config.graders)
    sampled = rollouts.scan("rollouts").slice(part.first, part.rows)
    if part.grader.grader == REWARD_MODEL:
        scored = sampled.select(SCORED_COLUMNS).collect()
        return Outputs(grades=_by_reward_model(scored, reward_model, part.grader))
    samples = list(samples_of(sampled.select(SAMPLE_COLUMNS).collect(), batch.read("batch"), part.grader))
    purse = purse_for(part.grader, GradeCache(rollouts.root))
    grader = open_grader(part.grader)
    try:
        grades = grade_samples(samples, grader, part.grader, context.progress, purse)
        return Outputs(metrics=purse.spending.metrics() if is_cached(part.grader, grader) else {}, grades=grades)
    finally:
        grader.close()


def _by_reward_model(sampled: pl.DataFrame, reward_model: Artifact | None, grader: GraderConfig) -> pl.DataFrame:
    if reward_model is None:
        raise InputError("grading.graders has a reward_model, but there is none yet; set its from_iteration later")
    options = with_defaults(REWARD_MODEL, grader.params, {"device": "auto", "tokens_per_microbatch": 4096})
    prompts, answers = sampled["prompt_token_ids"].to_list(), sampled["token_ids"].to_list()
    with _one_reward_model:
        started = time.perf_counter()
        base = resolve_policy(base_of(reward_model)).base
        scores = score(base, reward_model.files_folder(), prompts, answers, **options)
        latency_s = (time.perf_counter() - started) / max(len(sampled), 1)
    return grades_from_scores(sampled, scores, grader=grader, version=reward_model.fingerprint, latency_s=latency_s)
