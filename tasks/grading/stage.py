"""The stage `grading`: rollouts -> one grade per rollout and grader, their composite reward, what they say
of the graders.

`ask_slow` and `settle` follow where graders are slow: what they are asked, and the reward of all grades together.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError
from storage.grade_cache import GradeCache
from storage.policies import base_of, resolve_policy
from tasks._engines import pool
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import ServedModel
from tasks._serving import served_model
from tasks._stage import Shard, StageContext, stage
from tasks.grading.analysis import agreement_of, analysis_metrics, summarise_graders
from tasks.grading.asking import Origin, ask
from tasks.grading.collecting import collect, refuse_fresh
from tasks.grading.composite import composite, grade_metrics, refuse_failures
from tasks.grading.config import (
    OTHER_REWARD_MODEL,
    PROMPT_VERIFIER,
    REWARD_MODEL,
    GraderConfig,
    GradingConfig,
    SlowGradingConfig,
)
from tasks.grading.deferred import open_deferred, version_of
from tasks.grading.grade import grade_frame, grade_samples, purse_for
from tasks.grading.graders import RULE_VERSIONS, open_grader, version_of_grader
from tasks.grading.judges.accounting import judge_metrics
from tasks.grading.judges.config import JUDGES
from tasks.grading.mixing import refuse_mixed
from tasks.grading.paid import Spending, is_cached
from tasks.grading.resources import Resources
from tasks.grading.samples import SAMPLE_COLUMNS, samples_of
from tasks.grading.scores import SCORED_COLUMNS, grades_from_scores
from tasks.grading.settling import asking_metrics, pending_frame, settled_grades, variance_by_group, whole_groups
from tasks.grading.shards import check_order, shard_at, shard_count
from tasks.grading.verdict import with_defaults
from tasks.grading.verifiers.registry import resolve_verifier

NOT_NAMED = (PROMPT_VERIFIER, REWARD_MODEL, OTHER_REWARD_MODEL)
CALIBRATION = "calibration.json"
SPENT = tuple(Spending().metrics())
# Shards run side by side in threads; where a reward model and a local judge both grade, a device holds one at a time.
_one_model = threading.Lock()


def plan(rollouts: Artifact, batch: Artifact, config: GradingConfig) -> int:
    """Every grader times every slice of the rollouts. Raises `InputError` for rollouts of another batch."""
    samples = _samples(batch)
    rows = rollouts.manifest.tables["rollouts"].rows
    if sum(samples) != rows:
        raise InputError(
            f"{rollouts.id} holds {rows} rollouts, its batch {batch.id} asks for {sum(samples)}; "
            "grade with the batch that they were made from"
        )
    return shard_count(samples, config)


def _samples(batch: Artifact) -> list[int]:
    """How many samples each prompt has, in the order of the rollouts."""
    return batch.scan("batch").select("samples").collect()["samples"].to_list()


def versions(config: GradingConfig, batch: Artifact) -> dict[str, str]:
    """The versions of the rules that the graders apply, the prompts' own among them: part of the fingerprint."""
    rules = [spec for spec in config.graders if spec.grader not in NOT_NAMED]
    by_label = {*RULE_VERSIONS, *JUDGES}
    found = {(spec.label if spec.grader in by_label else spec.grader): version_of_grader(spec) for spec in rules}
    if any(spec.grader == PROMPT_VERIFIER for spec in config.graders):
        own = batch.scan("batch").select(pl.col("verifier").struct.field("name").unique()).collect()["name"]
        found |= {name: resolve_verifier(name).version for name in own}
    return dict(sorted(found.items()))


def rewards(rollouts: Artifact, batch: Artifact, joined: Artifact, config: GradingConfig) -> Outputs:
    """The composite of all shards' grades, and what they say of the graders.

    Raises `StageFailed` when a grader failed on too many rollouts.
    """
    grades = joined.scan("grades")
    refuse_failures(grades, config.max_failed_fraction)
    return _rewarded(grades, [rollouts], [batch], config, joined.metrics)


def _rewarded(
    grades: pl.LazyFrame,
    rollouts: Sequence[Artifact],
    batches: Sequence[Artifact],
    config: GradingConfig,
    counts: dict[str, float],
) -> Outputs:
    refuse_mixed(grades, [each.scan("rollouts") for each in rollouts])
    facts = None if config.composite.is_default else pl.concat(map(_facts, rollouts, batches))
    combined = composite(grades, config.graders, config.composite, facts)
    if config.slow:
        groups = pl.concat([each.scan("rollouts").select("rollout_id", "prompt_id") for each in rollouts])
        combined = whole_groups(combined, grades.collect(), groups, [grader.label for grader in config.slow])
    summary, agreement = summarise_graders(grades), agreement_of(grades)
    judges = [grader.label for grader in config.graders if grader.judging is not None]
    metrics = grade_metrics(grades, combined) | analysis_metrics(summary, agreement) | judge_metrics(grades, judges)
    return Outputs(metrics=counts | metrics, rewards=combined, grader_summary=summary, grader_agreement=agreement)


def _facts(rollouts: Artifact, batch: Artifact) -> pl.LazyFrame:
    """What the composite's steps ask of a rollout: its group, its length, its prompt's domain."""
    domains = batch.scan("batch").select("prompt_id", "domain")
    sampled = rollouts.scan("rollouts").select(
        "rollout_id", "prompt_id", pl.col("token_ids").list.len().alias("tokens")
    )
    return sampled.join(domains, on="prompt_id", how="left").rename({"prompt_id": "group_id"})


def limit_of(batch: Artifact, config: GradingConfig, shard: Shard) -> list[str]:
    """The concurrency limit of a shard's grader."""
    part = shard_at(shard.index, shard.count, _samples(batch), config.graders)
    return [part.grader.concurrency_limit] if part.grader.concurrency_limit else []


@stage("grading", version=6, shards=plan, combine=rewards, extra=versions, limits=limit_of)
def grade(
    rollouts: Artifact,
    batch: Artifact,
    reward_model: Artifact | None,
    config: GradingConfig,
    *,
    judge_models: Mapping[str, Artifact] | None = None,
    reward_check: Artifact | None = None,
    shard: Shard,
    context: StageContext,
) -> Outputs:
    """One grader's grades of one slice. `config` is already `active` for the iteration.

    `judge_models`: the policy or base model of each of `config.local_models` and each of `config.other_reward_models`,
    by the grader's label.
    `reward_check`: what the reward model was checked by; its calibration, if it has one, is applied.
    """
    part = shard_at(shard.index, shard.count, _samples(batch), config.graders)
    sampled = rollouts.scan("rollouts").slice(part.first, part.rows)
    if part.grader.is_reward_model:
        own = part.grader.grader == REWARD_MODEL
        scorer = (reward_model, reward_check) if own else ((judge_models or {}).get(part.grader.label), None)
        return Outputs(grades=_by_reward_model(sampled.select(SCORED_COLUMNS).collect(), *scorer, part.grader))
    texts = sampled.select(SAMPLE_COLUMNS).collect()
    entries = batch.scan("batch").select("prompt_id", "samples").collect()
    check_order(texts["prompt_id"].to_list(), entries["prompt_id"].to_list(), entries["samples"].to_list(), part.first)
    samples = list(samples_of(texts, batch.scan("batch"), part.grader))
    purse = purse_for(part.grader, GradeCache(rollouts.root))
    with _device_for(part.grader, config):
        grader = open_grader(part.grader, Resources(served=_served_from(judge_models or {})))
        try:
            grades = grade_samples(samples, grader, part.grader, context.progress, purse)
            return Outputs(metrics=purse.spending.metrics() if is_cached(part.grader, grader) else {}, grades=grades)
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
    if grader.local_model is None or not config.scores_here:
        yield
        return
    with _one_model:
        try:
            yield
        finally:
            pool.free_accelerator()


def slow_versions(config: SlowGradingConfig) -> dict[str, str]:
    """The versions of the slow graders' rules: part of the fingerprint."""
    return {spec.grader.label: version_of(spec.grader) for spec in config.graders}


def slow_limits(config: SlowGradingConfig) -> list[str]:
    """The concurrency limits of all slow graders: they are asked one after the other."""
    return [spec.grader.concurrency_limit for spec in config.graders if spec.grader.concurrency_limit]


@stage("slow_grading", version=1, extra=slow_versions, limits=slow_limits)
def ask_slow(
    rollouts: Artifact,
    batch: Artifact,
    grading: Artifact,
    pending: Artifact | None,
    config: SlowGradingConfig,
    *,
    seed: int,
    context: StageContext,
) -> Outputs:
    """Collect what came of earlier tickets, then hand over this iteration's chosen samples.

    `grades` are this iteration's, `late_grades` those that came for earlier rollouts, `pending` is all that is open.
    """
    memory = GradeCache(rollouts.root)
    graders = {spec.grader.label: (spec, open_deferred(spec.grader)) for spec in config.graders}
    entries = pending.read("pending").to_dicts() if pending else []
    collected = collect(entries, graders, config.iteration, config.max_pending_iterations, memory)
    sampled = rollouts.scan("rollouts").select(SAMPLE_COLUMNS).collect()
    refuse_fresh(collected.late, set(sampled["rollout_id"]))
    variances = variance_by_group(sampled, grading.scan("rewards"))
    origin = Origin(config.iteration, rollouts.id, batch.id, grading.id)
    asked = [
        ask(
            list(samples_of(sampled, batch.scan("batch"), spec.grader)),
            variances,
            spec,
            grader,
            version_of(spec.grader),
            origin,
            memory,
            seed,
        )
        for spec, grader in graders.values()
    ]
    grades = grade_frame([row for each in asked for row in each.grades])
    refuse_failures(grades.lazy(), config.max_failed_fraction)
    still_open = pending_frame(asked, collected)
    metrics = asking_metrics(asked, collected, grades, still_open)
    context.log.info("slow graders: %s", ", ".join(f"{name} {value:g}" for name, value in metrics.items()))
    return Outputs(
        metrics=metrics,
        facts={"arrived": {str(iteration): count for iteration, count in sorted(collected.arrived.items())}},
        grades=grades,
        late_grades=grade_frame(collected.late),
        pending=still_open,
    )


@stage("settle", version=1)
def settle(
    rollouts: Artifact,
    batch: Artifact,
    grading: Artifact,
    asked: Artifact,
    late: list[Artifact],
    config: GradingConfig,
) -> Outputs:
    """The reward of an iteration's instant and slow grades; `late` are the later askings, in which some arrived."""
    arrived = [each.scan("late_grades") for each in late]
    grades = settled_grades(grading.scan("grades"), asked.read("grades"), arrived)
    outputs = _rewarded(grades.lazy(), [rollouts], [batch], config, {})
    outputs.tables["grades"] = grades
    return outputs


@stage("joined_grading", version=1)
def join_grading(
    rollouts: Sequence[Artifact], batches: Sequence[Artifact], gradings: Sequence[Artifact], config: GradingConfig
) -> Outputs:
    """The grades of an iteration's rounds, and the reward of all of them together: a group may lie in two rounds.

    What the composite takes over a group or the batch is taken over all of its samples. No grader is asked again.
    """
    grades = pl.concat([each.read("grades") for each in gradings])
    spent = [each.metrics for each in gradings if set(SPENT) <= each.metrics.keys()]
    counts = {name: sum(metrics[name] for metrics in spent) for name in SPENT} if spent else {}
    outputs = _rewarded(grades.lazy(), rollouts, batches, config, counts)
    outputs.tables["grades"] = grades
    return outputs


def _by_reward_model(
    sampled: pl.DataFrame, reward_model: Artifact | None, reward_check: Artifact | None, grader: GraderConfig
) -> pl.DataFrame:
    if reward_model is None:
        raise InputError(
            f"grading.graders: {grader.label} is a reward model, but there is none yet; set its from_iteration later"
        )
    from tasks._training import reward_models  # loads torch

    params = {name: value for name, value in grader.params.items() if name != REWARD_MODEL}
    options = with_defaults(grader.grader, params, {"device": "auto", "tokens_per_microbatch": None})
    prompts, answers = sampled["prompt_token_ids"].to_list(), sampled["token_ids"].to_list()
    with _one_model:
        started = time.perf_counter()
        weights = resolve_policy(base_of(reward_model)).weights
        scores = reward_models.score(weights, reward_model.files_folder(), prompts, answers, **options)
        latency_s = (time.perf_counter() - started) / max(len(sampled), 1)
    return grades_from_scores(
        sampled,
        scores,
        grader=grader,
        version=reward_model.fingerprint,
        latency_s=latency_s,
        calibration=_calibration(reward_check),
    )


def _calibration(reward_check: Artifact | None) -> dict[str, Any] | None:
    if reward_check is None or CALIBRATION not in reward_check.manifest.files:
        return None
    return dict(json.loads((reward_check.files_folder() / CALIBRATION).read_text()))
