"""From rollouts and their prompts to the samples that a grader sees."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from storage.errors import InputError
from tasks.grading.config import PROMPT_VERIFIER, GraderConfig
from tasks.grading.sample import Sample

SAMPLE_COLUMNS = ["rollout_id", "prompt_id", "policy_id", "text", "finish_reason", "token_ids"]


def samples_of(rollouts: pl.DataFrame, batch: pl.DataFrame | pl.LazyFrame, grader: GraderConfig) -> Iterator[Sample]:
    """The rollouts as samples, in their order.

    `batch` holds each prompt's `BatchEntry`; of a scan only theirs are read.
    Raises `InputError` for a rollout whose prompt is not in the batch.
    """
    asked = rollouts.lazy().select("prompt_id").unique()
    prompts = _prompts(batch.lazy().join(asked, on="prompt_id", how="semi").collect(), grader)
    columns = rollouts.select(
        "rollout_id",
        "prompt_id",
        "policy_id",
        "text",
        pl.col("token_ids").list.len(),
        pl.col("finish_reason").cast(pl.String) == "length",
    )
    rows = zip(*(column.to_list() for column in columns), strict=True)
    for rollout_id, prompt_id, policy_id, text, tokens, truncated in rows:
        prompt = prompts.get(prompt_id)
        if prompt is None:
            raise InputError(
                f"rollout {rollout_id}: its prompt {prompt_id} is not in the batch; "
                "grade with the batch that it was made from"
            )
        messages, answer, rubric, domain, name, params = prompt
        yield Sample(
            rollout_id,
            prompt_id,
            policy_id,
            messages,
            text,
            tokens,
            truncated,
            answer,
            rubric,
            domain,
            name,
            params,
        )


def _prompts(batch: pl.DataFrame, grader: GraderConfig) -> dict[str, tuple[Any, ...]]:
    """What a prompt gives to each of its samples, by its id. Prompts of equal parameters share one mapping of them."""
    wanted = ["prompt_id", "messages", "answer", "rubric", "domain", "verifier"]
    shared: dict[str, Mapping[str, Any]] = {}
    prompts = {}
    for prompt_id, messages, answer, rubric, domain, verifier in batch.select(wanted).iter_rows():
        name = grader.grader
        params: Mapping[str, Any] = grader.params
        if grader.grader == PROMPT_VERIFIER:
            name, written = verifier["name"], verifier["params"]
            if written not in shared:
                shared[written] = {**json.loads(written or "{}"), **grader.params}
            params = shared[written]
        prompts[prompt_id] = (messages, answer, rubric, domain, name, params)
    return prompts
