"""The rows that train, as arrays, and the optimizer steps that they are dealt into."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from storage.errors import InputError
from storage.fingerprints import derive_seed
from tasks._engines.chat import render
from tasks._training.batching import TokenIds


@dataclass(frozen=True)
class TrainingRows:
    """Trajectories in the order of the frame. `groups` numbers the groups by their ids' order."""

    rollout_ids: list[str]
    prompts: list[TokenIds]
    responses: list[TokenIds]
    old_logprobs: list[Float[np.ndarray, " tokens"]]
    temperatures: Float[np.ndarray, " rows"]
    rewards: Float[np.ndarray, " rows"]
    passed: Bool[np.ndarray, " rows"] | None
    advantages: Float[np.ndarray, " rows"]
    weights: Float[np.ndarray, " rows"]
    groups: Int[np.ndarray, " rows"]
    ages: Int[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.rollout_ids)

    @property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """Response tokens per row."""
        return np.array([len(response) for response in self.responses], dtype=np.int64)

    def unrelated(self) -> "TrainingRows":
        """Every prompt with the answer to another group's: KTO measures its reference point on such."""
        order = np.argsort(self.groups, kind="stable")
        largest = int(np.unique(self.groups, return_counts=True)[1].max()) if len(self) else 0
        partner = np.empty(len(self), dtype=np.int64)
        partner[order] = np.roll(order, -largest)
        return replace(
            self,
            responses=[self.responses[row] for row in partner],
            old_logprobs=[self.old_logprobs[row] for row in partner],
        )

    def judged(self) -> Bool[np.ndarray, " rows"]:
        """Whether every judge passed each row. Raises `InputError` without judges."""
        if self.passed is None:
            raise InputError(
                "not every rollout has a judge's verdict: set judge: true on a grader whose verdict has to hold, from "
                "the iteration on whose trajectories train"
            )
        return self.passed


def read_rows(trajectories: pl.DataFrame) -> TrainingRows:
    """A `Trajectory` frame as arrays. Rows without a token have nothing to train: they are left out."""
    frame = trajectories.filter(pl.col("token_ids").list.len() > 0)
    _, groups = np.unique(frame["group_id"].to_numpy(), return_inverse=True)
    return TrainingRows(
        rollout_ids=frame["rollout_id"].to_list(),
        prompts=_arrays(frame["prompt_token_ids"], np.int32),
        responses=_arrays(frame["token_ids"], np.int32),
        old_logprobs=_arrays(frame["logprobs"], np.float32),
        temperatures=frame["temperature"].to_numpy(),
        rewards=frame["reward"].to_numpy(),
        passed=None if frame["passed"].has_nulls() else frame["passed"].to_numpy(),
        advantages=frame["advantage"].to_numpy(),
        weights=frame["weight"].to_numpy(),
        groups=groups,
        ages=frame["age"].to_numpy(),
    )


def join_replayed(fresh: pl.DataFrame, older: Sequence[tuple[int, pl.DataFrame]], max_age: int | None) -> pl.DataFrame:
    """This iteration's trajectories and those of earlier ones, each with how many iterations ago it was sampled.

    A prompt that was drawn twice makes two groups: their samples were compared with each other, not across.
    """
    aged = [
        frame.with_columns(
            (pl.col("age") + age).cast(pl.Int32), pl.concat_str("group_id", pl.lit(f"@{age}")).alias("group_id")
        )
        for age, frame in older
    ]
    joined = pl.concat([fresh, *aged], how="diagonal").unique("rollout_id", keep="first", maintain_order=True)
    return joined if max_age is None else joined.filter(pl.col("age") <= max_age)


def check_served(trajectories: pl.DataFrame, policy_id: str) -> None:
    """Raises `InputError` when fresh trajectories were sampled from another policy than the one that trains."""
    strangers = trajectories.filter(pl.col("age") == 0, pl.col("policy_id") != policy_id)
    if len(strangers):
        row = strangers.row(0, named=True)
        raise InputError(
            f"rollout {row['rollout_id']}: the engine served policy {row['policy_id']}, policy {policy_id} is to be "
            "trained. Train the policy that sampled, or give the rollouts their age and a correction"
        )


def read_pairs(preferences: pl.DataFrame, tokenizer: Any, end_token_id: int) -> TrainingRows:
    """`Preference` rows of the split `train` that are no ties.

    Rows 2 i and 2 i + 1 are the chosen and the rejected answer of pair i.
    """
    pairs = preferences.filter(pl.col("split").cast(pl.String) == "train", ~pl.col("tie").fill_null(False))
    prompts = [np.array(render(tokenizer, messages), dtype=np.int32) for messages in pairs["messages"].to_list()]
    texts = [text for pair in zip(pairs["chosen"], pairs["rejected"], strict=True) for text in pair]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    responses = [np.array([*ids, end_token_id], dtype=np.int32) for ids in encoded]
    count = len(responses)
    return TrainingRows(
        rollout_ids=[f"{pair}:{side}" for pair in pairs["pair_id"] for side in ("chosen", "rejected")],
        prompts=[prompt for prompt in prompts for _ in range(2)],
        responses=responses,
        old_logprobs=[np.zeros(len(response), dtype=np.float32) for response in responses],
        temperatures=np.ones(count),
        rewards=np.tile([1.0, 0.0], len(pairs)),
        passed=None,
        advantages=np.tile([1.0, -1.0], len(pairs)),
        weights=np.ones(count),
        groups=np.repeat(np.arange(len(pairs)), 2),
        ages=np.ones(count, dtype=np.int64),
    )


def deal_steps(
    groups: Int[np.ndarray, " rows"], *, optimizer_steps: int, epochs: int, seed: int
) -> list[Int[np.ndarray, " step_rows"]]:
    """The row numbers of each optimizer step: per epoch the groups are shuffled and dealt into equal parts.

    A group is never split over steps. With fewer groups than `optimizer_steps` there are fewer steps.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    steps = []
    for epoch in range(epochs):
        shuffled = np.random.default_rng(derive_seed(seed, "deal", epoch)).permutation(count)
        for part in np.array_split(shuffled, optimizer_steps):
            if len(part):
                steps.append(np.flatnonzero(np.isin(groups, part)))
    return steps


def _arrays(series: pl.Series, dtype: type[np.generic]) -> list[np.ndarray]:
    """A list column as one array per row: views into one flat array."""
    flat = series.explode(empty_as_null=False).to_numpy().astype(dtype)
    return np.split(flat, np.cumsum(series.list.len().to_numpy().astype(np.int64))[:-1]) if len(series) else []
