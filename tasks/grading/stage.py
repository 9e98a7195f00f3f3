"""The stage `grading`: rollouts -> one grade per rollout and grader, and their composite reward."""

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError
from tasks._stage import Shard, StageContext, stage
from tasks.grading.composite import composite, grade_metrics, refuse_failures
from tasks.grading.config import PROMPT_VERIFIER, REWARD_MODEL, GradingConfig
from tasks.grading.grade import GRADED_COLUMNS, grade_rollouts
from tasks.grading.shards import shard_at, shard_count
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
    base: Artifact | None,
    config: GradingConfig,
    *,
    shard: Shard,
    context: StageContext,
) -> Outputs:
    """One grader's grades of one slice. `config` is already `active` for the iteration."""
    part = shard_at(shard.index, rollouts.manifest.tables["rollouts"].rows, config)
    sampled = rollouts.scan("rollouts").slice(part.first, part.rows)
    if part.grader.grader == REWARD_MODEL:
        return Outputs(grades=_by_reward_model(reward_model))
    prompts = batch.read("batch")
    grades = grade_rollouts(sampled.select(GRADED_COLUMNS).collect(), prompts, part.grader, context.progress)
    return Outputs(grades=grades)


def _by_reward_model(reward_model: Artifact | None) -> pl.DataFrame:
    if reward_model is None:
        raise InputError("grading.graders has a reward_model, but there is none yet; set its from_iteration later")
    return pl.DataFrame()


def _uses(config: GradingConfig, grader: str) -> bool:
    return any(spec.grader == grader for spec in config.graders)
