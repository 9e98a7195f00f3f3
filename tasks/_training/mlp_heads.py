"""Small heads with one hidden layer over frozen states, the members of an ensemble fitted side by side."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from tasks._maths.linear_preferences import Labels
from tasks._maths.paired_answers import PairedAnswers, Standard, member_weights


@dataclass(frozen=True)
class MlpSpec:
    """A head's form and training: AdamW over all pairs at once, `steps` times; `decay` is AdamW's weight decay."""

    hidden: int
    steps: int
    learning_rate: float
    decay: float
    dropout: float


def fit_mlp_members(
    pairs: PairedAnswers, spec: MlpSpec, members: int, *, seed: int
) -> tuple[dict[str, np.ndarray], Standard]:
    """`inner`, `bias` and `outer` of every member, and the standard of the features.

    Members differ by their first weights, and by `member_weights` where there are several.
    """
    standard = Standard.of(pairs)
    answers = pairs.answers()
    features = torch.from_numpy(((pairs.states[answers] - standard.mean) / standard.scale).astype(np.float32))
    first, second = (torch.from_numpy(np.searchsorted(answers, side)) for side in (pairs.first, pairs.second))
    targets, margins = (torch.from_numpy(each).float() for each in (pairs.labels.targets, pairs.labels.margins))
    weights = torch.from_numpy(_weights(pairs.labels, pairs.clusters, members, seed)).float()
    generator = torch.Generator().manual_seed(seed)
    head = _fresh(members, features.shape[1], spec.hidden, generator)
    optimizer = torch.optim.AdamW(head.values(), lr=spec.learning_rate, weight_decay=spec.decay)
    for _ in range(spec.steps):
        kept = torch.rand(features.shape, generator=generator) >= spec.dropout
        scores = _scores(head, features * kept / (1 - spec.dropout))
        f = scores[:, first] - scores[:, second] - margins
        loss = (weights * (softplus(f) - targets * f)).sum() / len(pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in head.items()}, standard


def _weights(labels: Labels, clusters: np.ndarray, members: int, seed: int) -> Float[np.ndarray, "members pairs"]:
    if members == 1:
        return labels.weights[None]
    return np.stack([labels.weights * member_weights(clusters, member, seed=seed) for member in range(members)])


def _fresh(members: int, features: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    inner = torch.randn(members, features, hidden, generator=generator) / features**0.5
    outer = torch.randn(members, hidden, generator=generator) / (hidden + 1) ** 0.5
    head = {"inner": inner, "bias": torch.zeros(members, hidden), "outer": outer}
    return {name: tensor.requires_grad_() for name, tensor in head.items()}


def _scores(head: dict[str, Tensor], features: Float[Tensor, "answers features"]) -> Float[Tensor, "members answers"]:
    hidden = torch.tanh(features @ head["inner"] + head["bias"][:, None])
    return (hidden @ head["outer"][:, :, None]).squeeze(-1)
