"""What a grader sees of a rollout."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from storage.errors import InputError
from tasks.grading.config import PROMPT_VERIFIER, GraderConfig

SAMPLE_COLUMNS = ["rollout_id", "prompt_id", "policy_id", "text", "finish_reason", "token_ids"]


class Sample(NamedTuple):
    """A rollout, its prompt, and the parameters of whoever grades it.

    `verifier` names the function that grades: the prompt's own, or the configuration's. `params` are the prompt's own
    under those of the configuration; they aren't to be changed. `tokens` counts the response's.
    """

    rollout_id: str
    prompt_id: str
    policy_id: str
    messages: Sequence[Mapping[str, str]]
    text: str
    tokens: int
    truncated: bool
    answer: str | None
    rubric: str | None
    domain: str
    verifier: str
    params: Mapping[str, Any]

    @property
    def content(self) -> tuple[str, str, bool, int]:
        """What a grade depends on besides the grader: equal outputs to one prompt get one grade."""
        return self.prompt_id, self.text, self.truncated, self.tokens


def samples_of(rollouts: pl.DataFrame, batch: pl.DataFrame, grader: GraderConfig) -> Iterator[Sample]:
    """The rollouts as samples, in their order. `batch` holds each prompt's `BatchEntry`.

    Raises `InputError` for a rollout whose prompt is not in the batch.
    """
    prompts = _prompts(batch.join(rollouts.select("prompt_id").unique(), on="prompt_id", how="semi"), grader)
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
