"""Losses on the scores of answers to one prompt: pairs with and without ties, rankings, absolute scores.

All are in nats, one loss per pair, ranking or answer. Scores may have axes before that one, such as the members of an
ensemble; what is known of a pair (a margin, a tie) has none and counts for all of them.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

Scores = Float[Tensor, "*members pairs"]
OfPairs = Float[Tensor, "*members pairs"] | float
Ties = Bool[Tensor, " pairs"]
TIES_AT_LEAST, TIES_AT_MOST = 0.01, 0.9
NEVER = -1e30  # instead of -inf, whose gradient is no number


def bradley_terry(
    chosen: Scores, rejected: Scores, *, centering: float = 0.0, margin: OfPairs = 0.0, smoothing: OfPairs = 0.0
) -> Scores:
    """(1 - eps) L(c, r) + eps L(r, c) + centering (r_c + r_r)^2 with L(c, r) = -log sigma(r_c - r_r - margin).

    The margin is Llama 2's (arXiv 2307.09288, equation 2). `smoothing` is eps, the probability that the label is
    swapped; 1/2 says that a pair is a tie, half a win for each side. The last term keeps the scores around zero, which
    the first leaves free (arXiv 2312.09244; TRL recommends 0.01).
    """
    difference = chosen - rejected
    stated, swapped = -logsigmoid(difference - margin), -logsigmoid(-difference - margin)
    return (1 - smoothing) * stated + smoothing * swapped + centering * (chosen + rejected).square()


def rao_kupper(chosen: Scores, rejected: Scores, tie: Ties, threshold: OfPairs, smoothing: OfPairs = 0.0) -> Scores:
    """-log P of what was said, where a difference below `threshold` often isn't seen (Rao & Kupper, JASA 62, 1967).

    With theta = exp(threshold) >= 1: P(c > r) = e^c / (e^c + theta e^r), and P(tie) = (theta^2 - 1) e^(c + r) /
    ((e^c + theta e^r) (theta e^c + e^r)), which is (theta^2 - 1) P(c > r) P(r > c). Without ties and at threshold 0
    this is Bradley-Terry.
    """
    threshold = torch.as_tensor(threshold, dtype=chosen.dtype)
    difference = chosen - rejected
    stated, swapped = -logsigmoid(difference - threshold), -logsigmoid(-difference - threshold)
    # log(theta^2 - 1); clamped for pairs that are no tie, where it isn't used but must have a gradient
    room = 2 * threshold + torch.log(-torch.expm1(-2 * threshold.clamp(min=1e-12)))
    return torch.where(tie, stated + swapped - room, (1 - smoothing) * stated + smoothing * swapped)


def davidson(chosen: Scores, rejected: Scores, tie: Ties, log_nu: OfPairs, smoothing: OfPairs = 0.0) -> Scores:
    """-log P of what was said, with P(tie) = nu sqrt(p_c p_r) / (p_c + p_r + nu sqrt(p_c p_r)), p = e^score.

    Davidson (JASA 65, 1970): a win has probability p_c over the same sum. At nu = 0 this is Bradley-Terry.
    """
    half = (chosen - rejected) / 2
    tied = torch.as_tensor(log_nu, dtype=half.dtype).expand_as(half)
    normaliser = torch.logsumexp(torch.stack([half, -half, tied]), dim=0)
    stated, swapped = normaliser - half, normaliser + half
    return torch.where(tie, normaliser - tied, (1 - smoothing) * stated + smoothing * swapped)


def rao_kupper_start(share: float) -> float:
    """The threshold at which equal answers tie with probability `share`: theta = (1 + share) / (1 - share)."""
    share = min(max(share, TIES_AT_LEAST), TIES_AT_MOST)
    return math.log((1 + share) / (1 - share))


def davidson_start(share: float) -> float:
    """The log nu at which equal answers tie with probability `share`: nu = 2 share / (1 - share)."""
    share = min(max(share, TIES_AT_LEAST), TIES_AT_MOST)
    return math.log(2 * share / (1 - share))


TieLoss = Callable[[Scores, Scores, Ties, OfPairs, OfPairs], Scores]
# The losses with a parameter of their own for ties, and where it starts for a share of ties among the pairs.
TIE_LOSSES: dict[str, tuple[TieLoss, Callable[[float], float]]] = {
    "rao_kupper": (rao_kupper, rao_kupper_start),
    "davidson": (davidson, davidson_start),
}


def plackett_luce(
    scores: Float[Tensor, "*members rankings places"], ranked: Bool[Tensor, "rankings places"]
) -> Float[Tensor, "*members rankings"]:
    """-sum_k log(exp(r_k) / sum_{j >= k} exp(r_j)) with the best answer first; `ranked` is false where padded.

    Plackett (1975) and Luce (1959): at each place the best of what is left is chosen. Two places are Bradley-Terry.
    """
    places = scores.shape[-1]
    left = torch.ones(places, places, dtype=torch.bool, device=scores.device).triu() & ranked[:, None, :]
    remaining = torch.logsumexp(scores[..., None, :].masked_fill(~left, NEVER), dim=-1)
    return torch.where(ranked, remaining - scores, 0.0).sum(dim=-1)


def absolute_error(
    scores: Float[Tensor, "*members answers"],
    human: Float[Tensor, " answers"],
    scale: Float[Tensor, "*members 1"],
    shift: Float[Tensor, "*members 1"],
) -> Float[Tensor, "*members answers"]:
    """(a r + b - h)^2 beside the loss on pairs, with a and b trained: 0 where h is NaN, that is not known.

    A monotone calibration can't change an order; this term can (methods: L_BT + mu (a r + b - h)^2).
    """
    known = ~torch.isnan(human)
    return torch.where(known, (scale * scores + shift - torch.nan_to_num(human)).square(), 0.0)
