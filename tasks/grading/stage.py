"""The stage `grading`: rollouts -> one grade per rollout and grader, and their composite reward.

`ask_slow` and `settle` follow where graders are slow: what they are asked, and the reward of all grades together.
"""

import threading
import time

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError
from storage.grade_cache import GradeCache
from storage.policies import base_of, resolve_policy
from tasks._stage import Shard, StageContext, stage
from tasks._training.heads import score
from tasks.grading.asking import Origin, ask
from tasks.grading.collecting import collect, refuse_fresh
from tasks.grading.composite import composite, grade_metrics, refuse_failures
from tasks.grading.config import PROMPT_VERIFIER, REWARD_MODEL, GraderConfig, GradingConfig, SlowGradingConfig
from tasks.grading.deferred import open_deferred, version_of
from tasks.grading.grade import grade_frame, grade_samples, purse_for
from tasks.grading.graders import open_grader
from tasks.grading.paid import is_cached
from tasks.grading.sample import SAMPLE_COLUMNS, samples_of
from tasks.grading.scores import SCORED_COLUMNS, grades_from_scores
from tasks.grading.settling import asking_metrics, pending_frame, settled_grades, variance_by_group, whole_groups
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


def limit_of(rollouts: Artifact, config: GradingConfig, shard: Shard) -> list[str]:
    """The concurrency limit of a shard's grader."""
    part = shard_at(shard.index, shard.count, rollouts.manifest.tables["rollouts"].rows, config.graders)
    return [part.grader.concurrency_limit] if part.grader.concurrency_limit else []


@stage("grading", version=3, shards=plan, combine=rewards, extra=versions, limits=limit_of)
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
            list(samples_of(sampled, batch.read("batch"), spec.grader)),
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
    rollouts: Artifact, grading: Artifact, asked: Artifact, late: list[Artifact], config: GradingConfig
) -> Outputs:
    """The reward of an iteration's instant and slow grades; `late` are the later askings, in which some arrived."""
    arrived = [each.scan("late_grades") for each in late]
    grades = settled_grades(grading.scan("grades"), asked.read("grades"), arrived)
    slow = [grader.label for grader in config.slow]
    combined = whole_groups(
        composite(grades.lazy(), config.graders),
        grades,
        rollouts.scan("rollouts").select("rollout_id", "prompt_id"),
        slow,
    )
    return Outputs(metrics=grade_metrics(grades.lazy(), combined), grades=grades, rewards=combined)


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
