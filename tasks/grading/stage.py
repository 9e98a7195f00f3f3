"""The stage `grading`: rollouts -> one grade per rollout and grader, and their composite reward."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError
from storage.policies import base_of, resolve_policy
from tasks._engines import pool
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import ServedModel
from tasks._serving import served_model
from tasks._stage import Shard, StageContext, stage
from tasks._training.heads import score
from tasks.grading.composite import composite, grade_metrics, refuse_failures
from tasks.grading.config import PROMPT_VERIFIER, REWARD_MODEL, GraderConfig, GradingConfig
from tasks.grading.grade import grade_samples
from tasks.grading.graders import open_grader
from tasks.grading.judges.accounting import judge_metrics
from tasks.grading.judges.config import JUDGES
from tasks.grading.judges.grader import judge_rules
from tasks.grading.resources import Resources
from tasks.grading.sample import SAMPLE_COLUMNS, samples_of
from tasks.grading.scores import SCORED_COLUMNS, grades_from_scores
from tasks.grading.shards import shard_at, shard_count
from tasks.grading.verdict import with_defaults
from tasks.grading.verifiers.registry import resolve_verifier

# Shards run side by side in threads; where a reward model and a local judge both grade, a device holds one at a time.
_one_model = threading.Lock()


def plan(rollouts: Artifact, config: GradingConfig) -> int:
    """Every grader times every slice of the rollouts."""
    return shard_count(rollouts.manifest.tables["rollouts"].rows, config)


def versions(config: GradingConfig, batch: Artifact) -> dict[str, str]:
    """The versions of the rules that the graders apply, the prompts' own among them: part of the fingerprint."""
    named = {spec.grader for spec in config.graders}
    used = named - {PROMPT_VERIFIER, REWARD_MODEL, *JUDGES}
    if PROMPT_VERIFIER in named:
        used.update(batch.scan("batch").select(pl.col("verifier").struct.field("name").unique()).collect()["name"])
    judged = {spec.label: judge_rules(spec.judging) for spec in config.graders if spec.judging is not None}
    return {name: resolve_verifier(name).version for name in sorted(used)} | judged


def rewards(joined: Artifact, config: GradingConfig) -> Outputs:
    """The composite of all shards' grades. Raises `StageFailed` when a grader failed on too many rollouts."""
    grades = joined.scan("grades")
    refuse_failures(grades, config.max_failed_fraction)
    combined = composite(grades, config.graders)
    judges = [grader.label for grader in config.graders if grader.judging is not None]
    return Outputs(metrics=grade_metrics(grades, combined) | judge_metrics(grades, judges), rewards=combined)


@stage("grading", version=3, shards=plan, combine=rewards, extra=versions)
def grade(
    rollouts: Artifact,
    batch: Artifact,
    reward_model: Artifact | None,
    config: GradingConfig,
    *,
    judge_models: Mapping[str, Artifact] | None = None,
    shard: Shard,
    context: StageContext,
) -> Outputs:
    """One grader's grades of one slice. `config` is already `active` for the iteration.

    `judge_models`: the policy or base model of each of `config.local_models`, by the grader's label.
    """
    part = shard_at(shard.index, shard.count, rollouts.manifest.tables["rollouts"].rows, config.graders)
    sampled = rollouts.scan("rollouts").slice(part.first, part.rows)
    if part.grader.grader == REWARD_MODEL:
        scored = sampled.select(SCORED_COLUMNS).collect()
        return Outputs(grades=_by_reward_model(scored, reward_model, part.grader))
    samples = list(samples_of(sampled.select(SAMPLE_COLUMNS).collect(), batch.read("batch"), part.grader))
    with _device_for(part.grader, config):
        grader = open_grader(part.grader, Resources(served=_served_from(judge_models or {})))
        try:
            return Outputs(grades=grade_samples(samples, grader, part.grader, context.progress))
        finally:
            grader.close()


def _served_from(models: Mapping[str, Artifact]) -> Callable[[str, EngineConfig], ServedModel]:
    def served(label: str, engine: EngineConfig) -> ServedModel:
        if label not in models:
            raise InputError(f"grading.graders: {label} judges by a local model, and none is here for it")
        return served_model(resolve_policy(models[label]), engine)

    return served


@contextmanager
def _device_for(grader: GraderConfig, config: GradingConfig) -> Iterator[None]:
    """The device alone for a local judge where a reward model wants it too; its engine ends before the next one."""
    if grader.local_model is None or not config.needs_reward_model:
        yield
        return
    with _one_model:
        try:
            yield
        finally:
            pool.free_accelerator()


def _by_reward_model(sampled: pl.DataFrame, reward_model: Artifact | None, grader: GraderConfig) -> pl.DataFrame:
    if reward_model is None:
        raise InputError("grading.graders has a reward_model, but there is none yet; set its from_iteration later")
    options = with_defaults(REWARD_MODEL, grader.params, {"device": "auto", "tokens_per_microbatch": 4096})
    prompts, answers = sampled["prompt_token_ids"].to_list(), sampled["token_ids"].to_list()
    with _one_model:
        started = time.perf_counter()
        base = resolve_policy(base_of(reward_model)).base
        scores = score(base, reward_model.files_folder(), prompts, answers, **options)
        latency_s = (time.perf_counter() - started) / max(len(sampled), 1)
    return grades_from_scores(sampled, scores, grader=grader, version=reward_model.fingerprint, latency_s=latency_s)
