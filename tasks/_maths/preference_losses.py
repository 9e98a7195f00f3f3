"""Losses on preferences, of the policy itself.

A ratio is sum_t (log pi(y_t) - log ref(y_t)) of one answer, in nats: beta times it is the answer's implicit reward.
The losses on pairs take the chosen and the rejected answer's ratio, beta, and epsilon, the assumed fraction of
swapped labels (which DPO and IPO don't know); they return one loss per pair.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

Ratios = Float[Tensor, " pairs"]
PreferenceLoss = Callable[[Ratios, Ratios, float, float], Ratios]


def dpo(chosen_ratio: Ratios, rejected_ratio: Ratios, beta: float, epsilon: float) -> Ratios:  # noqa: ARG001
    """-log sigma(beta (c - r)) (arXiv 2305.18290, equation 7)."""
    return -logsigmoid(beta * (chosen_ratio - rejected_ratio))


def ipo(chosen_ratio: Ratios, rejected_ratio: Ratios, beta: float, epsilon: float) -> Ratios:  # noqa: ARG001
    """(c - r - 1 / (2 beta))^2 (arXiv 2310.12036): the margin has an optimum, it doesn't grow forever."""
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)).square()


def robust_dpo(chosen_ratio: Ratios, rejected_ratio: Ratios, beta: float, epsilon: float) -> Ratios:
    """((1 - eps) L(c, r) - eps L(r, c)) / (1 - 2 eps) (arXiv 2403.00409), L being DPO's.

    Its expectation over labels swapped with probability eps < 1/2 is DPO's loss on the true labels.
    """
    stated, swapped = dpo(chosen_ratio, rejected_ratio, beta, 0.0), dpo(rejected_ratio, chosen_ratio, beta, 0.0)
    return ((1 - epsilon) * stated - epsilon * swapped) / (1 - 2 * epsilon)


def cdpo(chosen_ratio: Ratios, rejected_ratio: Ratios, beta: float, epsilon: float) -> Ratios:
    """(1 - eps) L(c, r) + eps L(r, c), label smoothing (E. Mitchell, "A note on DPO with noisy preferences", 2023)."""
    stated, swapped = dpo(chosen_ratio, rejected_ratio, beta, 0.0), dpo(rejected_ratio, chosen_ratio, beta, 0.0)
    return (1 - epsilon) * stated + epsilon * swapped


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {"dpo": dpo, "ipo": ipo, "robust_dpo": robust_dpo, "cdpo": cdpo}


def kto(
    ratios: Float[Tensor, " rows"],
    desirable: Bool[Tensor, " rows"],
    kl_estimate: Float[Tensor, ""],
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Float[Tensor, " rows"]:
    """lambda_y - v(x, y), one loss per answer (arXiv 2402.01306, equation 8).

    v is lambda_D sigma(beta (ratio - z0)) for a desirable answer and lambda_U sigma(beta (z0 - ratio)) for another.
    z0 is `kl_estimate`, the mean ratio of mismatched answers in nats, at least 0 and without gradient.
    """
    z0 = kl_estimate.detach().clamp(min=0)
    sign = torch.where(desirable, 1.0, -1.0).to(ratios.dtype)
    weight = torch.where(desirable, desirable_weight, undesirable_weight).to(ratios.dtype)
    return weight * (1 - torch.sigmoid(beta * sign * (ratios - z0)))
