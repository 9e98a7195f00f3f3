"""ODIN: a second head takes what length explains of a preference, and is left out of the reward (arXiv 2402.07319)."""

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_VARIANCE = 1e-12


def correlation(scores: Float[Tensor, "*members rows"], lengths: Float[Tensor, " rows"]) -> Float[Tensor, "*members"]:
    """Pearson's, over the rows; 0 where scores or lengths are all the same."""
    x, y = scores - scores.mean(dim=-1, keepdim=True), lengths - lengths.mean()
    variance = x.square().mean(dim=-1) * y.square().mean()
    return (x * y).mean(dim=-1) / variance.clamp(min=SMALLEST_VARIANCE).sqrt()


def length_penalty(
    quality: Float[Tensor, "*members rows"], length: Float[Tensor, "*members rows"], tokens: Float[Tensor, " rows"]
) -> Float[Tensor, "*members"]:
    """|rho(r_Q, len)| + 1 - rho(r_L, len): the quality head knows no length, the length head nothing else."""
    return correlation(quality, tokens).abs() + 1 - correlation(length, tokens)


def overlap(
    quality: Float[Tensor, "members features"], length: Float[Tensor, "members features"]
) -> Float[Tensor, " members"]:
    """|W_Q W_L^T|: 0 where the two heads read orthogonal directions."""
    return torch.linalg.vecdot(quality, length).abs()
