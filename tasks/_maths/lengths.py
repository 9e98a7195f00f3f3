"""What a reward says beside the length of the response."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Rows = Float[np.ndarray, " rows"]


def without_end(tokens: Int[np.ndarray, " rows"], stopped: Bool[np.ndarray, " rows"]) -> Rows:
    """Rollouts' lengths in tokens as calibrations count them: without the end token, which those that stopped have."""
    return np.maximum(np.asarray(tokens, dtype=np.float64) - stopped, 0.0)


def length_penalty(tokens: Int[np.ndarray, " rows"], per_token: float, free_tokens: int = 0) -> Rows:
    """-per_token max(tokens - free_tokens, 0)."""
    return -per_token * np.maximum(np.asarray(tokens, dtype=np.float64) - free_tokens, 0.0)


def without_length(
    rewards: Rows,
    tokens: Int[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"],
    *,
    feature: Literal["linear", "tanh"],
    within: Literal["group", "batch"],
) -> Rows:
    """r - b x, with b the least-squares slope of the reward on the length's feature x; the mean reward stays.

    x = d or tanh(d / std(d)), with d = tokens less the mean of the batch, or of the group: the length term of
    LC-AlpacaEval's regression (arXiv 2404.04475), set to its value at equal length. Within groups the slope is that of
    rewards against their group's mean, so what prompts differ in is not taken for an effect of length. Where no
    length differs, nothing is taken away.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    index = np.zeros(len(rewards), dtype=np.int64)
    if within == "group":
        index = np.unique(groups, return_inverse=True)[1]
    difference = centred(np.asarray(tokens, dtype=np.float64), index)
    spread = difference.std() if len(difference) else 0.0
    if not spread:
        return rewards.copy()
    # tanh doesn't keep a mean of 0: centred again, the slope's regression needs no intercept.
    x = difference if feature == "linear" else centred(np.tanh(difference / spread), index)
    return rewards - x * (x @ centred(rewards, index)) / (x @ x)


def centred(values: Rows, index: Int[np.ndarray, " rows"]) -> Rows:
    """Values less the mean of their group; `index` counts the groups from 0."""
    counts = np.maximum(np.bincount(index), 1)
    return values - (np.bincount(index, values) / counts)[index]
