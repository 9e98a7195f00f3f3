"""Importance ratios pi / pi_old between the policy that trains and the policy that sampled."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tasks._maths.metrics import Maximum, Metric, masked_mean

MAX_LOG_RATIO = 20.0


def importance_ratio(
    logprobs: Float[Tensor, "rows time"], old_logprobs: Float[Tensor, "rows time"]
) -> Float[Tensor, "rows time"]:
    """exp(logprobs - old_logprobs), with the log-ratio clamped to +-20 so that no single token overflows."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_ratio(
    logprobs: Float[Tensor, "rows time"], old_logprobs: Float[Tensor, "rows time"], mask: Float[Tensor, "rows time"]
) -> Float[Tensor, " rows"]:
    """exp(mean_t log rho_t) of each row, the mean clamped to +-20; 1 for a row without a token."""
    total = ((logprobs - old_logprobs) * mask).sum(dim=1)
    return (total / mask.sum(dim=1).clamp(min=1)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@dataclass(frozen=True)
class EffectiveFraction:
    """Kish's effective sample size as a fraction of the tokens: (sum w)^2 / (n sum w^2); 1 when on-policy."""

    total: float
    squares: float
    count: float

    def merge(self, other: "EffectiveFraction") -> "EffectiveFraction":
        return EffectiveFraction(self.total + other.total, self.squares + other.squares, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total**2 / (self.count * self.squares) if self.squares else 0.0


def ratio_metrics(ratio: Float[Tensor, "rows time"], mask: Float[Tensor, "rows time"]) -> dict[str, Metric]:
    """Mean, maximum and effective sample fraction of the ratios where `mask` is 1."""
    ratio = torch.where(mask > 0, ratio.detach(), torch.zeros_like(ratio))
    weights = EffectiveFraction(float(ratio.sum()), float(ratio.square().sum()), float(mask.sum()))
    largest = float(ratio.max()) if ratio.numel() else 0.0
    return {"ratio_mean": masked_mean(ratio, mask), "ratio_max": Maximum(largest), "ratio_effective": weights}
