"""The stage `rollouts`: a batch and a policy -> samples, shard by shard."""

import time

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.errors import InputError
from storage.fingerprints import derive_seed
from storage.policies import resolve_policy
from tasks._engines import pool
from tasks._engines.chat import load_tokenizer, render
from tasks._engines.protocol import SamplingParams
from tasks._serving import served_model
from tasks._stage import Shard, StageContext, stage
from tasks.rollouts.config import RolloutsConfig
from tasks.rollouts.table import rollout_metrics, rollout_rows, shard_bounds, shard_count


def plan_shards(batch: Artifact, config: RolloutsConfig) -> int:
    """How many shards the batch falls into."""
    return shard_count(batch.read("batch")["samples"].to_list(), config.rows_per_shard)


def summarise(joined: Artifact) -> Outputs:
    """Rates and means over all shards."""
    metrics = dict(joined.metrics)
    rows = max(metrics["rollouts"], 1.0)
    metrics["tokens_per_s"] = metrics["tokens"] / max(metrics["engine_seconds"], 1e-9)
    metrics["length_mean"] = metrics["tokens"] / rows
    metrics["truncated_fraction"] = metrics.pop("truncated") / rows
    return Outputs(metrics=metrics)


def engine_in_use(config: RolloutsConfig) -> list[str]:
    """What `auto` comes to on this machine: it decides the samples, so the fingerprint covers it."""
    return [pool.choose(config.engine), pool.adapter_mode(config.engine), pool.served_dtype(config.engine)]


@stage("rollouts", version=1, shards=plan_shards, combine=summarise, extra=engine_in_use)
def generate(
    batch: Artifact, policy: Artifact, config: RolloutsConfig, *, seed: int, shard: Shard, context: StageContext
) -> Outputs:
    """One shard of samples from the policy. Raises `InputError` for a prompt that doesn't fit the window."""
    entries = batch.read("batch")
    start, stop = shard_bounds(entries["samples"].to_list(), config.rows_per_shard)[shard.index]
    part = entries[start:stop]
    files = resolve_policy(policy)
    tokenizer = load_tokenizer(files.base)
    prompts = [render(tokenizer, messages) for messages in part["messages"].to_list()]
    _check_lengths(part["prompt_id"].to_list(), prompts, config)
    sampling = SamplingParams(**config.sampling.model_dump())
    shard_seed = derive_seed(seed, "shard", shard.index)
    with pool.acquire(config.engine, served_model(files, config.engine)) as engine:
        started = time.monotonic()
        completions = engine.generate(
            prompts,
            part["samples"].to_list(),
            sampling,
            shard_seed,
            lambda done, total: context.progress(done, total, "samples"),
        )
        seconds = time.monotonic() - started
        name = f"{engine.name} {engine.version}"
    rows = rollout_rows(
        part,
        prompts,
        completions,
        sampling=sampling,
        engine=name,
        policy_id=files.policy_id,
        iteration=context.iteration,
        seed=shard_seed,
        first_indices=_first_indices(batch, part),
    )
    return Outputs(metrics=rollout_metrics(rows, seconds), rollouts=rows)


def _first_indices(batch: Artifact, part: pl.DataFrame) -> list[int]:
    """The sample index that each prompt of the part begins with: how many samples earlier rounds made of it."""
    if "sampled_before" not in batch.manifest.tables:
        return [0] * len(part)
    before = batch.read("sampled_before").rename({"samples": "before"})
    counted = part.select("prompt_id").join(before, on="prompt_id", how="left", maintain_order="left")
    return counted["before"].fill_null(0).to_list()


def _check_lengths(prompt_ids: list[str], prompts: list[list[int]], config: RolloutsConfig) -> None:
    room = config.engine.max_model_len - config.sampling.max_tokens
    for prompt_id, tokens in zip(prompt_ids, prompts, strict=True):
        if len(tokens) > room:
            raise InputError(
                f"prompt {prompt_id}: {len(tokens)} tokens, expected at most {room}: rollouts.engine.max_model_len "
                "less rollouts.sampling.max_tokens. Raise max_model_len, or leave such prompts out of the sources."
            )
