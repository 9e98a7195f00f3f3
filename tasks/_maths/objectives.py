"""Policy objectives: pure functions from log-probabilities and advantages to a loss.

An objective is a loss per token; an aggregate says what each row's token sum is divided by. The denominators are
taken over the whole optimizer batch, so a batch may be cut into micro-batches, or over processes, and the
gradients only differ by rounding: each micro-batch adds up its tokens' losses, already divided.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks._maths.kl import KL_ESTIMATORS
from tasks._maths.metrics import Mean, Metric, Total, masked_mean
from tasks._maths.ratios import importance_ratio, ratio_metrics, sequence_ratio

Tokens = Float[Tensor, "rows time"]


@dataclass(frozen=True)
class LossInputs:
    """The rows of one micro-batch. Log-probabilities are natural logs of the sampled tokens; padding is masked.

    `old_logprobs` are those of pi_old, the ratio's denominator. `advantages` are constant along a row where the
    algorithm knows one per sequence. `weights` are the trajectory's weight times its importance correction, without
    gradient. `denominators` are the rows' own, from one of `AGGREGATES` over the whole optimizer batch.
    """

    logprobs: Tokens
    old_logprobs: Tokens
    ref_logprobs: Tokens | None
    advantages: Tokens
    weights: Tokens
    denominators: Float[Tensor, " rows"]
    mask: Tokens


@dataclass(frozen=True)
class LossOutputs:
    """`loss_sum` adds up over the micro-batches of a step to the step's loss; so do the metrics by `merge`."""

    loss_sum: Float[Tensor, ""]
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class LossOptions:
    """The ratio is clipped to [1 - clip_low, 1 + clip_high].

    `dual_clip` c > 1 bounds the loss of a negative advantage by c |A|; None leaves it unbounded. The KL estimator
    counts where reference log-probabilities are given.
    """

    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_coefficient: float
    kl_estimator: str


LossFunction = Callable[[LossInputs, LossOptions], LossOutputs]


@dataclass(frozen=True)
class StepRows:
    """All rows of an optimizer step: their answers' tokens, their groups, and what each weighs.

    A row of weight w counts as w rows: one that stands for its near-duplicates gives the loss that they would give.
    """

    lengths: Int[Tensor, " rows"]
    groups: Int[Tensor, " rows"]
    weights: Float[Tensor, " rows"]

    def everywhere(self, value: Float[Tensor, ""]) -> Float[Tensor, " rows"]:
        """The same denominator for each row; 1 where nothing weighs anything."""
        return torch.full(self.lengths.shape, float(value) or 1.0, dtype=torch.float64)


Denominator = Float[Tensor, " rows"]
Denominators = Callable[[StepRows, int], Denominator]


def clipped(inputs: LossInputs, options: LossOptions) -> LossOutputs:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) per token (PPO, arXiv 1707.06347, equation 7).

    Two separate bounds are DAPO's clip-higher (arXiv 2503.14476, equation 10); `dual_clip` is arXiv 1912.09729.
    """
    ratio = importance_ratio(inputs.logprobs, inputs.old_logprobs)
    return _surrogate(ratio, inputs, options)


def gspo(inputs: LossInputs, options: LossOptions) -> LossOutputs:
    """The surrogate of the sequence's ratio s = exp(mean_t log rho_t) (arXiv 2507.18071).

    In the form GSPO-token of the same paper: every token's ratio is sg(s) pi / sg(pi), so advantages may differ by
    token, and for constant ones value and gradient are GSPO's. The ratio metrics are the tokens' own ratios.
    """
    sequence = sequence_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).detach()
    ratio = sequence[:, None] * (inputs.logprobs - inputs.logprobs.detach()).exp()
    return _surrogate(ratio, inputs, options)


def cispo(inputs: LossInputs, options: LossOptions) -> LossOutputs:
    """-sg(clip(rho, 1 - low, 1 + high)) A log pi per token (arXiv 2506.13585): no token loses its gradient.

    `clip_low` 1 leaves only the upper bound. The clip metrics count limited ratios, whatever their advantage's sign.
    """
    ratio = importance_ratio(inputs.logprobs, inputs.old_logprobs).detach()
    low, high = 1 - options.clip_low, 1 + options.clip_high
    per_token = -ratio.clamp(low, high) * inputs.advantages * inputs.logprobs
    return _reduced(per_token, inputs, options, {"clipped_high": ratio > high, "clipped_low": ratio < low})


def likelihood(inputs: LossInputs, options: LossOptions) -> LossOutputs:
    """-A log pi per token: REINFORCE (Williams, 1992), RAFT, and supervised fine-tuning with A = 1. No clipping."""
    return _reduced(-inputs.advantages * inputs.logprobs, inputs, options, {})


OBJECTIVES: dict[str, LossFunction] = {"clipped": clipped, "gspo": gspo, "cispo": cispo, "likelihood": likelihood}


def _surrogate(ratio: Tokens, inputs: LossInputs, options: LossOptions) -> LossOutputs:
    """The clipped surrogate of any ratio; its flags are the tokens without gradient, by the bound that took it."""
    advantages, low, high = inputs.advantages, 1 - options.clip_low, 1 + options.clip_high
    per_token = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    flags = {"clipped_high": (ratio > high) & (advantages > 0), "clipped_low": (ratio < low) & (advantages < 0)}
    if options.dual_clip is not None:
        bound = -options.dual_clip * advantages
        flags["clipped_dual"] = (advantages < 0) & (per_token > bound)
        per_token = torch.where(flags["clipped_dual"], bound, per_token)
    return _reduced(per_token, inputs, options, flags)


def _reduced(
    per_token: Tokens, inputs: LossInputs, options: LossOptions, flags: dict[str, Bool[Tensor, "rows time"]]
) -> LossOutputs:
    """Adds the KL penalty, weighs, divides and sums; reports the tokens' ratios and the fraction of each flag."""
    mask, count = inputs.mask, float(inputs.mask.sum())
    metrics = ratio_metrics(importance_ratio(inputs.logprobs, inputs.old_logprobs), mask)
    metrics |= {name: Mean(float((flag * mask).sum()), count) for name, flag in flags.items()}
    if inputs.ref_logprobs is not None:
        estimator = KL_ESTIMATORS[options.kl_estimator]
        kl = estimator(inputs.logprobs, inputs.ref_logprobs, inputs.old_logprobs)
        per_token = per_token + options.kl_coefficient * kl
        metrics["kl_reference"] = masked_mean(kl, mask)
    per_row = (per_token * inputs.weights * mask).sum(dim=1)
    loss_sum = (per_row / inputs.denominators).sum()
    metrics |= {"loss": Total(float(loss_sum.detach())), "tokens": Total(count)}
    return LossOutputs(loss_sum, metrics)


def constant(rows: StepRows, max_tokens: int) -> Denominator:
    """rows x max_tokens. Dr. GRPO (arXiv 2503.20783): no length bias, unlike division by |o|."""
    return rows.everywhere(rows.weights.sum() * max_tokens)


def sequence_mean(rows: StepRows, max_tokens: int) -> Denominator:  # noqa: ARG001
    """rows x |o_i|: the mean over rows of each row's token mean. GRPO (arXiv 2402.03300), equation 3."""
    return rows.weights.sum() * rows.lengths.clamp(min=1).double()


def token_mean(rows: StepRows, max_tokens: int) -> Denominator:  # noqa: ARG001
    """The batch's tokens: every token counts equally. DAPO (arXiv 2503.14476)."""
    return rows.everywhere((rows.weights * rows.lengths).sum())


def sequence_sum(rows: StepRows, max_tokens: int) -> Denominator:  # noqa: ARG001
    """rows: the mean over rows of each row's token sum, the policy gradient itself. RLOO (arXiv 2402.14740)."""
    return rows.everywhere(rows.weights.sum())


def prompt_mean(rows: StepRows, max_tokens: int) -> Denominator:  # noqa: ARG001
    """groups x tokens of the row's group: prompts count equally. ScaleRL (arXiv 2510.13786)."""
    _, index = torch.unique(rows.groups, return_inverse=True)
    tokens = torch.bincount(index, weights=rows.weights * rows.lengths)
    return len(tokens) * torch.where(tokens > 0, tokens, 1.0)[index]


AGGREGATES: dict[str, Denominators] = {
    "constant": constant,
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "sequence_sum": sequence_sum,
    "prompt_mean": prompt_mean,
}
