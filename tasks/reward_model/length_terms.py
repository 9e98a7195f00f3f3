"""ODIN's penalties as what each micro-batch adds to them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tasks._maths.length_head import length_penalty, overlap
from tasks._training.batching import PromptGroup
from tasks._training.heads import ScoringModel
from tasks._training.packing import pack
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.pairs import PairBatch

Scores = Float[Tensor, "members rows"]
PerMember = Float[Tensor, " members"]
LengthTerms = Callable[[PairBatch, list[int], Scores, Scores], PerMember]


@dataclass(frozen=True)
class StepSlopes:
    """Of an optimizer step: each row's column, the penalty's slopes along its two scores, the penalty's value."""

    step: list[list[PromptGroup]]
    column: dict[int, int]
    slopes: Float[Tensor, "2 members columns"]
    value: PerMember


def length_terms(model: ScoringModel, config: RewardModelConfig) -> LengthTerms:
    """A function of a micro-batch, its rows and their two scores, which adds up to the penalties of the whole step.

    A correlation is one number for all answers of an optimizer step, and no sum over micro-batches. So before a
    step's first micro-batch all its answers are scored without gradient; the correlation's slopes at those scores are
    what each answer's own score is then multiplied by. The gradient is that of the correlation over the whole step,
    at the price of a further forward pass.
    """
    present: list[StepSlopes] = []

    def terms(pairs: PairBatch, rows: list[int], quality: Scores, length: Scores) -> PerMember:
        if not present or present[0].step is not pairs.step:
            present[:] = [_slopes(model, pairs.step)]
        found = present[0]
        of_rows = found.slopes[:, :, [found.column[row] for row in rows]]
        own = ((quality - quality.detach()) * of_rows[0] + (length - length.detach()) * of_rows[1]).sum(dim=-1)
        share = len(rows) / len(found.column)
        head = model.head
        assert head.length_weight is not None
        crossing = overlap(head.weight, head.length_weight)
        return config.length_weight * (own + share * found.value) + config.orthogonality_weight * share * crossing

    return terms


def _slopes(model: ScoringModel, step: list[list[PromptGroup]]) -> StepSlopes:
    rows: list[int] = []
    parts: list[Tensor] = []
    tokens: list[float] = []
    with torch.no_grad():
        for groups in step:
            batch = pack(groups, pad_token_id=0, device=model.device)
            quality, length = model.both(batch)
            assert length is not None
            parts.append(torch.stack([quality, length]))
            rows += batch.rows
            tokens += [float(len(response)) for group in groups for response in group.responses]
    both = torch.cat(parts, dim=-1).requires_grad_()
    with torch.enable_grad():
        penalty = length_penalty(both[0], both[1], torch.tensor(tokens, device=model.device))
        (slopes,) = torch.autograd.grad(penalty.sum(), both)
    return StepSlopes(step, {row: index for index, row in enumerate(rows)}, slopes, penalty.detach())
