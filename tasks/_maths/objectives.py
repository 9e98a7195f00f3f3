"""Policy objectives: pure functions from log-probabilities and advantages to a loss.

An objective is a loss per token and a denominator per row. The denominators are taken over the whole
optimizer batch, so a batch may be cut into micro-batches, or over processes, and the gradients only
differ by rounding: each micro-batch adds up its tokens' losses, already divided.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tasks._maths.kl import KL_ESTIMATORS
from tasks._maths.metrics import Mean, Metric, Total, masked_mean
from tasks._maths.ratios import importance_ratio, ratio_metrics


@dataclass(frozen=True)
class LossInputs:
    """The rows of one micro-batch. Log-probabilities are natural logs of the sampled tokens; padding is masked.

    `denominators` are the rows' own, from `Objective.denominators` over the whole optimizer batch.
    """

    logprobs: Float[Tensor, "rows time"]
    old_logprobs: Float[Tensor, "rows time"]
    ref_logprobs: Float[Tensor, "rows time"] | None
    advantages: Float[Tensor, " rows"]
    weights: Float[Tensor, " rows"]
    denominators: Float[Tensor, " rows"]
    mask: Float[Tensor, "rows time"]


@dataclass(frozen=True)
class LossOutputs:
    """`loss_sum` adds up over the micro-batches of a step to the step's loss; so do the metrics by `merge`."""

    loss_sum: Float[Tensor, ""]
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class LossOptions:
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]; `kl_coefficient` 0 means no reference policy."""

    clip_low: float
    clip_high: float
    kl_coefficient: float
    kl_estimator: str


LossFunction = Callable[[LossInputs, LossOptions], LossOutputs]
Denominators = Callable[[Int[Tensor, " rows"], int], Float[Tensor, " rows"]]


@dataclass(frozen=True)
class Objective:
    """`denominators(lengths, max_tokens)`: what each row's token sum is divided by, from the whole batch's lengths."""

    loss: LossFunction
    denominators: Denominators


def clipped_surrogate(inputs: LossInputs, options: LossOptions) -> LossOutputs:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) + beta KL per token (PPO, arXiv 1707.06347, equation 7).

    Two separate bounds are DAPO's clip-higher (arXiv 2503.14476, equation 10).
    """
    ratio = importance_ratio(inputs.logprobs, inputs.old_logprobs)
    advantages = inputs.advantages[:, None]
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)
    metrics = ratio_metrics(ratio, inputs.mask) | _clip_metrics(ratio, advantages, inputs.mask, options)
    if inputs.ref_logprobs is not None:
        kl = KL_ESTIMATORS[options.kl_estimator](inputs.logprobs, inputs.ref_logprobs)
        per_token = per_token + options.kl_coefficient * kl
        metrics["kl_reference"] = masked_mean(kl, inputs.mask)
    per_row = (per_token * inputs.mask).sum(dim=1)
    loss_sum = (per_row * inputs.weights / inputs.denominators).sum()
    metrics |= {"loss": Total(float(loss_sum.detach())), "tokens": Total(float(inputs.mask.sum()))}
    return LossOutputs(loss_sum, metrics)


def _clip_metrics(
    ratio: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows 1"],
    mask: Float[Tensor, "rows time"],
    options: LossOptions,
) -> dict[str, Metric]:
    """Fractions of tokens without gradient, because the ratio left the clip range in the advantage's direction."""
    count = float(mask.sum())
    high = (ratio > 1 + options.clip_high) & (advantages > 0)
    low = (ratio < 1 - options.clip_low) & (advantages < 0)
    return {
        "clipped_high": Mean(float((high * mask).sum()), count),
        "clipped_low": Mean(float((low * mask).sum()), count),
    }


def constant_length(lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
    """rows x max_tokens for every row. Dr. GRPO (arXiv 2503.20783): no length bias, unlike division by |o|."""
    return torch.full(lengths.shape, float(len(lengths) * max_tokens))


def own_length(lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:  # noqa: ARG001
    """rows x |o_i|: the mean over rows of each row's token mean. GRPO (arXiv 2402.03300), equation 3."""
    return len(lengths) * lengths.clamp(min=1).float()


OBJECTIVES: dict[str, Objective] = {
    "dr_grpo": Objective(clipped_surrogate, constant_length),
    "grpo": Objective(clipped_surrogate, own_length),
}
