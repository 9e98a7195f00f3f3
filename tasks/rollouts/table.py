"""From a batch to requests, and from completions to rows: pure."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import polars as pl

from storage.fingerprints import digest
from storage.records import Rollout
from tasks._engines.protocol import Completion, SamplingParams

COLUMNS = Rollout.column_names()


def shard_count(samples: Sequence[int], rows_per_shard: int) -> int:
    """Shards needed for prompts with that many samples each; a group is never parted."""
    return len(shard_bounds(samples, rows_per_shard))


def shard_bounds(samples: Sequence[int], rows_per_shard: int) -> list[tuple[int, int]]:
    """The prompts [start, stop) of each shard: as many whole groups as fit into `rows_per_shard` rollouts."""
    bounds, start, rows = [], 0, 0
    for index, count in enumerate(samples):
        if rows and rows + count > rows_per_shard:
            bounds.append((start, index))
            start, rows = index, 0
        rows += count
    return [*bounds, (start, len(samples))]


def rollout_rows(
    batch: pl.DataFrame,
    prompt_token_ids: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Completion]],
    *,
    sampling: SamplingParams,
    engine: str,
    policy_id: str,
    iteration: int,
    seed: int,
    first_indices: Sequence[int] | None = None,
) -> pl.DataFrame:
    """The `Rollout` frame of a shard: one row per completion, its id a hash of all that drew it.

    A prompt's samples are numbered from its entry in `first_indices` on, by default from 0.
    """
    settings = json.dumps({**asdict(sampling), "seed": seed}, sort_keys=True)
    now = datetime.now(UTC)
    firsts = first_indices or [0] * len(batch)
    rows = [
        {
            "rollout_id": digest([policy_id, prompt_id, settings, engine, index]),
            "prompt_id": prompt_id,
            "sample_index": index,
            "iteration": iteration,
            "policy_id": policy_id,
            "prompt_token_ids": list(tokens),
            "token_ids": list(completion.token_ids),
            "logprobs": list(completion.logprobs),
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "engine": engine,
            "sampling": settings,
            "created_at": now,
        }
        for prompt_id, tokens, group, first in zip(
            batch["prompt_id"], prompt_token_ids, completions, firsts, strict=True
        )
        for index, completion in enumerate(group, first)
    ]
    schema = {name: column.dtype for name, column in Rollout.columns().items()}
    return pl.DataFrame(rows, schema=schema)


def rollout_metrics(rollouts: pl.DataFrame, seconds: float) -> dict[str, float]:
    """Counts that add up over shards."""
    tokens = int(rollouts["token_ids"].list.len().sum())
    return {
        "rollouts": float(len(rollouts)),
        "tokens": float(tokens),
        "truncated": float((rollouts["finish_reason"] == "length").sum()),
        "engine_seconds": seconds,
    }
