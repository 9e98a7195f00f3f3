"""What is fixed before the first step: each token's advantage, its importance weight, the values to reach.

Pure: arrays in, arrays out, one array per row with one value per token.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from tasks._maths.advantages import calibrated_reward, crpg, crraft, group_mean, leave_one_out
from tasks._maths.corrections import importance_weights, off_policy_sequence_mask, weight_metrics
from tasks._maths.kl import KL_ESTIMATORS
from tasks._maths.token_advantages import discounted_returns, gae, whiten_tokens, with_kl_in_reward
from tasks.policy_update.config import CorrectionConfig, PolicyUpdateConfig
from tasks.policy_update.rows import TrainingRows

PerToken = list[Float[np.ndarray, " tokens"]]


@dataclass(frozen=True)
class Measured:
    """Log-probabilities (nat) and values of every row's tokens before the first step.

    `trainer` and `values` are the policy's, `reference` the reference policy's, `unrelated` the reference policy's on
    `TrainingRows.unrelated` (KTO); None where nothing needs them.
    """

    trainer: PerToken | None = None
    reference: PerToken | None = None
    values: PerToken | None = None
    unrelated: PerToken | None = None


@dataclass(frozen=True)
class Credit:
    """`old` is pi_old of the ratio; `returns` is what the critic learns, None without one."""

    old: PerToken
    reference: PerToken | None
    advantages: PerToken
    weights: PerToken
    values: PerToken | None
    returns: PerToken | None
    metrics: dict[str, float]


def give_credit(rows: TrainingRows, measured: Measured, config: PolicyUpdateConfig) -> Credit:
    """Advantages and weights of every token, as `config` says. Not for objectives on pairs."""
    trainer = measured.trainer
    use_trainer = trainer is not None and (config.old_logprobs == "trainer" or config.correction.kind != "none")
    old = trainer if use_trainer and trainer is not None else rows.old_logprobs
    advantages, returns = _advantages(rows, old, measured, config)
    if config.whiten:
        advantages = whiten_tokens(advantages)
    if config.positives_only:
        advantages = [np.maximum(line, 0.0) for line in advantages]
    directions = np.array([line.mean() for line in advantages])
    weights, metrics = _weights(rows, old, trainer, directions, config.correction)
    return Credit(old, measured.reference, advantages, weights, measured.values, returns, metrics)


def _advantages(
    rows: TrainingRows, old: PerToken, measured: Measured, config: PolicyUpdateConfig
) -> tuple[PerToken, PerToken | None]:
    beta = config.kl.coefficient if config.kl.place == "reward" else 0.0
    kl = _divergence(old, measured.reference or old, config.kl.estimator if beta else "k1")
    if config.credit == "returns":
        return discounted_returns(with_kl_in_reward(rows.rewards, kl, beta), config.gamma), None
    if config.credit == "gae":
        if measured.values is None:
            raise ValueError("credit gae: no values were measured")
        rewards = with_kl_in_reward(rows.rewards, kl, beta)
        return gae(rewards, measured.values, config.gamma, config.critic.gae_lambda)
    return _spread(_row_advantages(rows, np.array([line.sum() for line in kl]), beta, config), rows), None


def _row_advantages(
    rows: TrainingRows, kl: Float[np.ndarray, " rows"], beta: float, config: PolicyUpdateConfig
) -> Float[np.ndarray, " rows"]:
    """One advantage per row. With KL in the reward, the row's own less that of the other rows of its group."""
    if config.credit == "trajectory":
        return rows.advantages - beta * leave_one_out(kl, rows.groups) if beta else rows.advantages
    # CGPO measures a reward against a baseline answer's; the mean of the group stands for it here.
    calibrated = calibrated_reward(rows.rewards, rows.rewards - group_mean(rows.rewards, rows.groups))
    if config.credit == "crpg":
        return crpg(calibrated, rows.judged(), kl, config.cgpo_max_kl)
    return crraft(calibrated, rows.judged(), kl, config.cgpo_max_kl, rows.groups)


def _divergence(old: PerToken, reference: PerToken, estimator: str) -> PerToken:
    """The estimator's value at every token, in nats; not clamped, unlike in a loss."""
    found = []
    for line, other in zip(old, reference, strict=True):
        logprobs, ref_logprobs = torch.as_tensor(line).double(), torch.as_tensor(other).double()
        found.append(KL_ESTIMATORS[estimator](logprobs, ref_logprobs, logprobs).numpy())
    return found


def _spread(advantages: Float[np.ndarray, " rows"], rows: TrainingRows) -> PerToken:
    return [np.full(len(response), value) for value, response in zip(advantages, rows.responses, strict=True)]


def _weights(
    rows: TrainingRows,
    old: PerToken,
    trainer: PerToken | None,
    directions: Float[np.ndarray, " rows"],
    config: CorrectionConfig,
) -> tuple[PerToken, dict[str, float]]:
    """The trajectory's weight times the importance correction, and what is logged of the latter."""
    of_rows = rows.weights
    if config.negatives_within is not None and trainer is not None:
        left = np.array([np.mean(a - b) for a, b in zip(rows.old_logprobs, trainer, strict=True)])
        of_rows = of_rows * off_policy_sequence_mask(directions, left, config.negatives_within)
    corrections = importance_weights(
        old, rows.old_logprobs, kind=config.kind, level=config.level, low=config.low, high=config.high
    )
    weights = [weight * line for weight, line in zip(of_rows, corrections, strict=True)]
    if config.kind == "none" or not len(rows):
        return weights, {}
    return weights, weight_metrics(old, rows.old_logprobs, corrections, level=config.level)
