"""Advantages per row: how much better a sample did than what it is compared with.

Every function takes the rewards of all rows (finite, any unit) and, for each row, the index of its group (the
samples of one prompt), and returns one value per row in float64. A group of one sample, or of equal rewards, has
nothing to be compared with: where the group's mean is subtracted, its advantages are exactly 0.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

Rewards = Float[np.ndarray, " rows"]
Groups = Int[np.ndarray, " rows"]
AdvantageFunction = Callable[[Rewards, Groups], Rewards]

STD_EPSILON = 1e-6


def group_mean(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = r_i - mean(r). Dr. GRPO (arXiv 2503.20783), section 3.2: no division by the standard deviation."""
    rewards, index, counts = _by_group(rewards, groups)
    return _centred(rewards, index, counts)


def group_mean_std(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-6). GRPO (arXiv 2402.03300), section 4.1.2.

    The standard deviation is the sample's (n - 1), as verl and TRL take it.
    """
    rewards, index, counts = _by_group(rewards, groups)
    centred = _centred(rewards, index, counts)
    squares = np.bincount(index, centred**2, minlength=len(counts))
    std = np.sqrt(squares / np.maximum(counts - 1, 1))
    return centred / (std[index] + STD_EPSILON)


def leave_one_out(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = r_i - mean of the other samples = K/(K-1) (r_i - mean(r)). RLOO (arXiv 2402.14740), equation 9."""
    rewards, index, counts = _by_group(rewards, groups)
    return _centred(rewards, index, counts) * (counts / np.maximum(counts - 1, 1))[index]


def group_mean_batch_std(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = (r_i - group's mean) / (std of the batch's rewards + 1e-6). LitePPO (arXiv 2508.08221), TRL's "batch"."""
    return group_mean(rewards, groups) / (_std(np.asarray(rewards, dtype=np.float64)) + STD_EPSILON)


def group_mean_whitened(rewards: Rewards, groups: Groups) -> Rewards:
    """(r_i - group's mean), whitened over the batch. REINFORCE++-baseline (arXiv 2501.03262), and ScaleRL's.

    Differs from `group_mean_batch_std` by what prompts differ in: that variance isn't in the denominator here.
    """
    return whiten(group_mean(rewards, groups))


def batch_whitened(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = (r_i - mean) / (std + 1e-6) over the whole batch. REINFORCE++ (arXiv 2501.03262) without discount."""
    rewards, _, _ = _by_group(rewards, groups)
    return whiten(rewards)


def reward(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = r_i: REINFORCE without a baseline; also Reinforce-Rej (arXiv 2504.11343) with rewards of +-1."""
    return _by_group(rewards, groups)[0].copy()


def positive_reward(rewards: Rewards, groups: Groups) -> Rewards:
    """A_i = max(r_i, 0): only good samples teach. RAFT++ (arXiv 2504.11343), with the clipped objective."""
    return np.maximum(_by_group(rewards, groups)[0], 0.0)


def best_of_n(rewards: Rewards, groups: Groups) -> Rewards:
    """1 for the first best sample of each group, else 0: RAFT (arXiv 2304.06767), with the likelihood."""
    rewards, index, _ = _by_group(rewards, groups)
    advantages = np.zeros(len(rewards))
    advantages[_first_best(rewards, index, np.arange(len(rewards)))] = 1.0
    return advantages


ADVANTAGES: dict[str, AdvantageFunction] = {
    "group_mean": group_mean,
    "group_mean_std": group_mean_std,
    "leave_one_out": leave_one_out,
    "group_mean_batch_std": group_mean_batch_std,
    "group_mean_whitened": group_mean_whitened,
    "batch_whitened": batch_whitened,
    "reward": reward,
    "positive_reward": positive_reward,
    "best_of_n": best_of_n,
}


def per_component(
    components: Float[np.ndarray, "rows components"], weights: Float[np.ndarray, " components"], groups: Groups
) -> Rewards:
    """GDPO (arXiv 2601.05242): each reward normalised in its group, their weighted sum whitened over the batch.

    Normalising before summing keeps apart what a sum of rewards confuses. A component that doesn't vary in a group
    adds 0 there.
    """
    columns = [group_mean_std(column, groups) for column in np.asarray(components, dtype=np.float64).T]
    weighted = [weight * column for weight, column in zip(weights, columns, strict=True)]
    return whiten(sum(weighted, np.zeros(len(groups))))


def whiten(values: Rewards) -> Rewards:
    """(x - mean) / (std + 1e-6), with the sample's standard deviation; zeros where nothing varies."""
    if not len(values) or np.ptp(values) == 0:
        return np.zeros(len(values))
    return (values - values.mean()) / (_std(values) + STD_EPSILON)


def soft_overlong(lengths: Int[np.ndarray, " rows"], max_tokens: int, buffer: int) -> Rewards:
    """The reward's penalty for length in tokens: 0 up to max_tokens - buffer, then linear to -1 at max_tokens.

    DAPO (arXiv 2503.14476), equation 13. Raises `ValueError` unless 0 < buffer <= max_tokens.
    """
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"a buffer of {buffer} tokens: expected between 1 and max_tokens = {max_tokens}")
    return np.clip((max_tokens - buffer - np.asarray(lengths, dtype=np.float64)) / buffer, -1.0, 0.0)


def calibrated_reward(rewards: Rewards, baseline_rewards: Rewards) -> Rewards:
    """sigma(r - r_baseline), r_baseline being the reward of the prompt's reference answer. CGPO (arXiv 2409.20370)."""
    # As tanh, which doesn't overflow.
    return 0.5 * (1 + np.tanh(0.5 * (np.asarray(rewards, dtype=np.float64) - baseline_rewards)))


def crpg(calibrated: Rewards, passed: Bool[np.ndarray, " rows"], kl_per_row: Rewards, kl_max: float) -> Rewards:
    """A_i of CGPO's constrained, regularised policy gradient (arXiv 2409.20370).

    max(1 - KL_i / kl_max, 0) times the calibrated reward, 0 where a judge didn't pass, minus the batch's mean.
    KL_i = sum_t log(pi / ref) in nats.
    """
    room = np.maximum(1 - np.asarray(kl_per_row, dtype=np.float64) / kl_max, 0.0)
    regularised = np.where(passed, room * calibrated, 0.0)
    return regularised - regularised.sum() / max(len(regularised), 1)


def crraft(
    calibrated: Rewards, passed: Bool[np.ndarray, " rows"], kl_per_row: Rewards, kl_max: float, groups: Groups
) -> Rewards:
    """The weights of CGPO's constrained RAFT (arXiv 2409.20370), for the likelihood.

    The calibrated reward of each group's first best row among those that pass and have KL <= kl_max, else 0.
    """
    calibrated, index, _ = _by_group(calibrated, groups)
    chosen = _first_best(calibrated, index, np.flatnonzero(np.asarray(passed) & (np.asarray(kl_per_row) <= kl_max)))
    weights = np.zeros(len(calibrated))
    weights[chosen] = calibrated[chosen]
    return weights


def best_against_worst(rewards: Rewards, groups: Groups) -> list[tuple[int, int]]:
    """(chosen row, rejected row) of each group, in the groups' order; none where all rewards are equal."""
    return codpo_pairs(rewards, np.ones(len(rewards), dtype=bool), groups)


def codpo_pairs(rewards: Rewards, passed: Bool[np.ndarray, " rows"], groups: Groups) -> list[tuple[int, int]]:
    """CGPO's pairs (arXiv 2409.20370): the best row that passes against the worst that fails.

    Where none fails, the one of lowest reward is rejected, unless all are equal; where none passes, there is no pair.
    """
    rewards, index, counts = _by_group(rewards, groups)
    passed = np.asarray(passed, dtype=bool)
    pairs = []
    for rows in np.split(np.argsort(index, kind="stable"), np.cumsum(counts)[:-1]):
        passing, failing = rows[passed[rows]], rows[~passed[rows]]
        if not len(passing):
            continue
        chosen = passing[rewards[passing].argmax()]
        rejected = failing[rewards[failing].argmin()] if len(failing) else passing[rewards[passing].argmin()]
        if len(failing) or rewards[chosen] > rewards[rejected]:
            pairs.append((int(chosen), int(rejected)))
    return pairs


def _by_group(rewards: Rewards, groups: Groups) -> tuple[Rewards, Groups, Int[np.ndarray, " groups"]]:
    rewards = np.asarray(rewards, dtype=np.float64)
    groups = np.asarray(groups)
    if rewards.shape != groups.shape or rewards.ndim != 1:
        raise ValueError(f"rewards {rewards.shape} and groups {groups.shape}: expected two vectors of one length")
    if not np.isfinite(rewards).all():
        row = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise ValueError(f"the reward of row {row} is {rewards[row]}: expected a finite number")
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return rewards, index, counts


def _centred(rewards: Rewards, index: Groups, counts: Int[np.ndarray, " groups"]) -> Rewards:
    """Minus the group's mean. Exactly 0 in a group of equal rewards: rounding there would look like a signal."""
    low, high = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
    np.minimum.at(low, index, rewards)
    np.maximum.at(high, index, rewards)
    mean = np.bincount(index, rewards, minlength=len(counts)) / counts
    return np.where((low == high)[index], 0.0, rewards - mean[index])


def _std(values: Rewards) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _first_best(values: Rewards, index: Groups, rows: Int[np.ndarray, " candidates"]) -> Int[np.ndarray, " chosen"]:
    """Of each group that has a candidate, the first candidate row of the largest value."""
    order = rows[np.lexsort((rows, -values[rows], index[rows]))]
    _, first = np.unique(index[order], return_index=True)
    return order[first]
