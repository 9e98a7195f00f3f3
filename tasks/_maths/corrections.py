"""Importance corrections: the engine that sampled isn't the policy that trains, by numerics or by age.

Rows are ragged: one float array per row, as long as the row's tokens. Weights are constants to the loss.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from tasks._maths.ratios import MAX_LOG_RATIO

Line = Float[np.ndarray, " tokens"]
Lines = Sequence[Line]
Level = Literal["token", "sequence"]
Kind = Literal["none", "truncate", "mask", "full"]

KINDS: dict[str, Callable[[Line, float, float], Line]] = {
    "none": lambda ratios, low, high: np.ones_like(ratios),  # noqa: ARG005
    # TIS (Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025), C = high.
    "truncate": lambda ratios, low, high: np.minimum(ratios, high),  # noqa: ARG005
    # IcePop and masked importance sampling: a token out of range teaches nothing.
    "mask": lambda ratios, low, high: np.where((ratios >= low) & (ratios <= high), ratios, 0.0),
    # pi_prox / pi_behav of the decoupled objective (AReaL, arXiv 2505.24298).
    "full": lambda ratios, low, high: ratios,  # noqa: ARG005
}


def importance_weights(
    train_logprobs: Lines, engine_logprobs: Lines, *, kind: Kind, level: Level, low: float, high: float
) -> list[Line]:
    """pi_train / pi_engine of every token, limited by one of `KINDS`, as one float64 array per row.

    `level` "sequence" is the product over the row's tokens, the same weight on each: unbiased, of high variance.
    "token" is biased beyond the first token, of low variance. Log-ratios are clamped to +-20, the sequence's as well.
    Raises `ValueError` where a row's two arrays differ in length.
    """
    return [KINDS[kind](line, low, high) for line in _ratios(train_logprobs, engine_logprobs, level)]


def weight_metrics(train_logprobs: Lines, engine_logprobs: Lines, weights: Lines, *, level: Level) -> dict[str, float]:
    """Mean, maximum and effective sample fraction of the ratios before they are limited, and the fraction of tokens
    whose weight is 0. At level "sequence" a row is one sample, else a token is. Without a token: 1, 1, 1 and 0.
    """
    lines = [line for line in _ratios(train_logprobs, engine_logprobs, level) if len(line)]
    if not lines:
        return {"correction_mean": 1.0, "correction_max": 1.0, "correction_effective": 1.0, "correction_masked": 0.0}
    ratios = np.concatenate([line[:1] for line in lines] if level == "sequence" else lines)
    return {
        "correction_mean": float(ratios.mean()),
        "correction_max": float(ratios.max()),
        "correction_effective": float(ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum())),
        "correction_masked": float((np.concatenate(weights) == 0).mean()),
    }


def off_policy_sequence_mask(
    advantages: Float[np.ndarray, " rows"], mean_log_old_over_new: Float[np.ndarray, " rows"], delta: float = 0.5
) -> Float[np.ndarray, " rows"]:
    """1 for rows that train, 0 where A < 0 and mean_t log(pi_old / pi) > delta (DeepSeek-V3.2, arXiv 2512.02556).

    Such a row is one that the policy already left: pushing it down further only destabilises.
    """
    return 1.0 - ((np.asarray(advantages) < 0) & (np.asarray(mean_log_old_over_new) > delta))


def _ratios(train_logprobs: Lines, engine_logprobs: Lines, level: Level) -> list[Line]:
    ratios = []
    for row, (train, engine) in enumerate(zip(train_logprobs, engine_logprobs, strict=True)):
        if np.shape(train) != np.shape(engine):
            raise ValueError(f"row {row}: {np.shape(train)} trainer and {np.shape(engine)} engine log-probabilities")
        log_ratio = np.asarray(train, dtype=np.float64) - np.asarray(engine, dtype=np.float64)
        if level == "sequence":
            log_ratio = np.full_like(log_ratio, log_ratio.sum())
        ratios.append(np.exp(np.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)))
    return ratios
