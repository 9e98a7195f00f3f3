"""The rows that train, as arrays, and the optimizer steps that they are dealt into."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from storage.fingerprints import derive_seed
from tasks._training.batching import TokenIds


@dataclass(frozen=True)
class TrainingRows:
    """Trajectories in the order of the frame. `group` numbers the groups by their ids' order."""

    rollout_ids: list[str]
    prompts: list[TokenIds]
    responses: list[TokenIds]
    old_logprobs: list[Float[np.ndarray, " tokens"]]
    temperatures: Float[np.ndarray, " rows"]
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
        advantages=frame["advantage"].to_numpy(),
        weights=frame["weight"].to_numpy(),
        groups=groups,
        ages=frame["age"].to_numpy(),
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
