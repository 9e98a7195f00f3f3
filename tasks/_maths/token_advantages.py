"""Returns and advantages per token, of ragged rows: one float64 array per row, as long as the row's tokens.

Every row is a finished episode: after its last token there is neither reward nor value.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tasks._maths.advantages import STD_EPSILON

Line = Float[np.ndarray, " tokens"]
Lines = Sequence[Line]


def with_kl_in_reward(terminal: Float[np.ndarray, " rows"], kl: Lines, beta: float) -> list[Line]:
    """r_t = -beta k1_t, plus the row's reward at its last token (InstructGPT, arXiv 2203.02155).

    `kl` is k1 = log pi - log ref of every token in nats: in a reward the other estimators are biased.
    """
    rewards = [-beta * np.asarray(line, dtype=np.float64) for line in kl]
    for line, reward in zip(rewards, terminal, strict=True):
        line[-1:] += reward
    return rewards


def discounted_returns(rewards: Lines, gamma: float) -> list[Line]:
    """G_t = sum_k gamma^k r_{t+k} (REINFORCE++, arXiv 2501.03262)."""
    return _backward_sums(rewards, gamma)


def gae(rewards: Lines, values: Lines, gamma: float, lam: float) -> tuple[list[Line], list[Line]]:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t, and the returns A + V.

    Generalised advantage estimation (arXiv 1506.02438). Neither is whitened.
    """
    values = [np.asarray(line, dtype=np.float64) for line in values]
    deltas = [
        np.asarray(reward, dtype=np.float64) + gamma * np.append(value, 0.0)[1:] - value
        for reward, value in zip(rewards, values, strict=True)
    ]
    advantages = _backward_sums(deltas, gamma * lam)
    return advantages, [advantage + value for advantage, value in zip(advantages, values, strict=True)]


def whiten_tokens(lines: Lines) -> list[Line]:
    """(x - mean) / (std + 1e-6) over all tokens of all rows, with the sample's standard deviation (n - 1).

    Zeros where all tokens are equal or there is only one.
    """
    flat, lengths = _flat(lines)
    if not len(flat) or np.ptp(flat) == 0:
        return [np.zeros(length) for length in lengths]
    return _split((flat - flat.mean()) / (flat.std(ddof=1) + STD_EPSILON), lengths)


def _backward_sums(lines: Lines, decay: float) -> list[Line]:
    """y_t = x_t + decay y_{t+1} along every row. One step per position for all rows that reach it."""
    flat, lengths = _flat(lines)
    starts = np.cumsum(lengths) - lengths
    by_length = np.argsort(-lengths, kind="stable")
    longest = int(lengths.max(initial=0))
    reaching = np.searchsorted(-lengths[by_length], -np.arange(longest), side="left")
    following = np.zeros(len(lengths))
    for position in range(longest - 1, -1, -1):
        rows = by_length[: reaching[position]]
        tokens = starts[rows] + position
        following[rows] = flat[tokens] + decay * following[rows]
        flat[tokens] = following[rows]
    return _split(flat, lengths)


def _flat(lines: Lines) -> tuple[Line, np.ndarray]:
    lengths = np.array([len(line) for line in lines], dtype=np.int64)
    return np.concatenate([np.zeros(0), *lines]).astype(np.float64), lengths


def _split(flat: Line, lengths: np.ndarray) -> list[Line]:
    return np.split(flat, np.cumsum(lengths))[: len(lengths)]
