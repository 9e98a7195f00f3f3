"""Group-relative advantages: how much better a sample did than the other samples of its prompt.

Every function takes the rewards of all rows and, for each row, the index of its group, and returns one
advantage per row in float64. A group of one sample has nothing to be compared with: its advantage is 0.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

Rewards = Float[np.ndarray, " rows"]
Groups = Int[np.ndarray, " rows"]
AdvantageFunction = Callable[[Rewards, Groups], Rewards]

STD_EPSILON = 1e-6


def group_mean(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = r_i - mean(r). Dr. GRPO (arXiv 2503.20783), section 3.2: no division by the standard deviation."""
    rewards, index, counts = _by_group(rewards, groups)
    return rewards - _mean(rewards, index, counts)


def group_mean_std(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-6). GRPO (arXiv 2402.03300), section 4.1.2.

    The standard deviation is the sample's (n - 1), as verl and TRL take it.
    """
    rewards, index, counts = _by_group(rewards, groups)
    centred = rewards - _mean(rewards, index, counts)
    squares = np.bincount(index, centred**2, minlength=len(counts))
    std = np.sqrt(squares / np.maximum(counts - 1, 1))
    return centred / (std[index] + STD_EPSILON)


def leave_one_out(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = r_i - mean of the other samples = K/(K-1) (r_i - mean(r)). RLOO (arXiv 2402.14740), equation 9."""
    rewards, index, counts = _by_group(rewards, groups)
    centred = rewards - _mean(rewards, index, counts)
    return centred * (counts / np.maximum(counts - 1, 1))[index]


ADVANTAGES: dict[str, AdvantageFunction] = {
    "group_mean": group_mean,
    "group_mean_std": group_mean_std,
    "leave_one_out": leave_one_out,
}


def _by_group(rewards: Rewards, groups: Groups) -> tuple[Rewards, Int[np.ndarray, " rows"], Int[np.ndarray, " groups"]]:
    rewards = np.asarray(rewards, dtype=np.float64)
    groups = np.asarray(groups)
    if rewards.shape != groups.shape or rewards.ndim != 1:
        raise ValueError(f"rewards {rewards.shape} and groups {groups.shape}: expected two vectors of one length")
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return rewards, index, counts


def _mean(rewards: Rewards, index: Groups, counts: Int[np.ndarray, " groups"]) -> Rewards:
    return (np.bincount(index, rewards, minlength=len(counts)) / counts)[index]
