"""The loss of a micro-batch of pairs: every member's own, and for what members share their mean."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from tasks._maths.metrics import Mean, Metric, Total
from tasks._maths.objectives import LossOutputs
from tasks._maths.pairwise import TIE_LOSSES, absolute_error, bradley_terry, plackett_luce
from tasks._training.heads import ScoringModel
from tasks._training.packing import pack
from tasks.reward_model.config import RewardModelConfig
from tasks.reward_model.length_terms import length_terms
from tasks.reward_model.pairs import PairBatch, Ranking

Scores = Float[Tensor, "members rows"]
PerMember = Float[Tensor, " members"]
Places = Int[Tensor, " pairs"]
# The loss's own numbers are each one entry of a parameter, which Adam moves by the learning rate a step; heads move by
# hundreds of entries together.
GAIN = 10.0


class LossNumbers(nn.Module):
    """What a loss learns of its own, per member: how often ties are seen, and people's scale (a r + b)."""

    def __init__(self, config: RewardModelConfig, tie_share: float) -> None:
        super().__init__()
        ties, members = config.loss in TIE_LOSSES, config.members
        self.tie: nn.Parameter | None = nn.Parameter(torch.zeros(members, 1)) if ties else None
        self.affine: nn.Parameter | None = (
            nn.Parameter(torch.zeros(2, members, 1)) if config.regression_weight else None
        )
        self.start = TIE_LOSSES[config.loss][1](tie_share) if ties else 0.0
        self.positive = config.loss == "rao_kupper"

    def tie_number(self) -> Float[Tensor, "members 1"]:
        """Rao and Kupper's threshold in nats, never negative, or the log of Davidson's nu."""
        assert self.tie is not None
        if not self.positive:
            return self.start + GAIN * self.tie
        before_softplus = torch.tensor(self.start).expm1().log().item()
        return softplus(before_softplus + GAIN * self.tie)

    def scale_and_shift(self) -> tuple[Float[Tensor, "members 1"], Float[Tensor, "members 1"]]:
        """a and b: 1 and 0 at the start, people's scores being standardised."""
        assert self.affine is not None
        return 1 + GAIN * self.affine[0], GAIN * self.affine[1]


@dataclass(frozen=True)
class PairTensors:
    """The pairs of a micro-batch: where their answers' scores are, and what is known of each."""

    chosen: Places
    rejected: Places
    tie: Bool[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"]
    smoothing: Float[Tensor, " pairs"]
    human: Float[Tensor, "2 pairs"]
    weights: Float[Tensor, "members pairs"]


@dataclass(frozen=True)
class RankingTensors:
    """The rankings of a micro-batch, best first, padded; `places` counts each one's answers."""

    index: Int[Tensor, "rankings most"]
    places: Int[Tensor, " rankings"]
    weights: Float[Tensor, "members rankings"]

    @property
    def ranked(self) -> Bool[Tensor, "rankings most"]:
        """False where padded."""
        return torch.arange(self.index.shape[1], device=self.index.device) < self.places[:, None]


def pair_loss(
    model: ScoringModel, numbers: LossNumbers, config: RewardModelConfig
) -> Callable[[PairBatch], LossOutputs]:
    """The loss as a function of micro-batches; it adds up over those of a step, whatever the cut.

    The mean over the members is what is minimised: a head's gradient is its own member's, but for a factor that Adam
    doesn't see, and the shared adapter's is the mean of all.
    """
    penalty = length_terms(model, config) if config.length_head else None

    def loss(pairs: PairBatch) -> LossOutputs:
        batch = pack(pairs.groups, pad_token_id=0, device=model.device)
        quality, length = model.both(batch)
        total = quality if length is None else quality + length
        place = {row: index for index, row in enumerate(batch.rows)}
        told = _pair_tensors(pairs, place, config.members, model.device)
        rankings = _ranking_tensors(pairs.rankings, place, model.device)
        summed = total.new_zeros(len(total))
        if pairs.pairs:
            summed = summed + _on_pairs(total, told, numbers, config)
        if rankings is not None:
            summed = summed + _on_rankings(total, rankings, config)
        per_pair = summed / pairs.pairs_in_step
        if penalty is not None and length is not None:
            per_pair = per_pair + penalty(pairs, batch.rows, quality, length)
        loss_sum = per_pair.mean()
        metrics = _metrics(quality.detach(), *_comparisons(told, rankings))
        return LossOutputs(loss_sum, {"loss": Total(float(loss_sum.detach()))} | metrics)

    return loss


def _pair_tensors(pairs: PairBatch, place: dict[int, int], members: int, device: torch.device) -> PairTensors:
    """The pairs that have a loss of their own."""

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    def places(side: int) -> Places:
        return torch.tensor([place[pair[side]] for pair in pairs.pairs], dtype=torch.long, device=device)

    weights = floats([weight for pair in pairs.terms for weight in pair.weights])
    return PairTensors(
        chosen=places(0),
        rejected=places(1),
        tie=torch.tensor([pair.tie for pair in pairs.terms], dtype=torch.bool, device=device),
        margin=floats([pair.margin for pair in pairs.terms]),
        smoothing=floats([pair.smoothing for pair in pairs.terms]),
        human=torch.stack([floats([pair.human[side] for pair in pairs.terms]) for side in (0, 1)]),
        weights=weights.view(len(pairs.terms), members).T,
    )


def _ranking_tensors(rankings: list[Ranking], place: dict[int, int], device: torch.device) -> RankingTensors | None:
    if not rankings:
        return None
    most = max(len(ranking.rows) for ranking in rankings)
    rows = [[place[row] for row in ranking.rows] for ranking in rankings]
    return RankingTensors(
        torch.tensor([row + [0] * (most - len(row)) for row in rows], device=device),
        torch.tensor([len(row) for row in rows], device=device),
        torch.tensor([ranking.weights for ranking in rankings], device=device).T,
    )


def _on_pairs(total: Scores, pairs: PairTensors, numbers: LossNumbers, config: RewardModelConfig) -> PerMember:
    chosen, rejected = total[:, pairs.chosen], total[:, pairs.rejected]
    if config.loss in TIE_LOSSES:
        of_ties, _ = TIE_LOSSES[config.loss]
        losses = of_ties(chosen, rejected, pairs.tie, numbers.tie_number(), pairs.smoothing)
        losses = losses + config.centering * (chosen + rejected).square()
    else:
        smoothing = torch.where(pairs.tie, 0.5, pairs.smoothing)  # a tie is half a win for each
        losses = bradley_terry(chosen, rejected, centering=config.centering, margin=pairs.margin, smoothing=smoothing)
    if config.regression_weight:
        scale, shift = numbers.scale_and_shift()
        of_chosen, of_rejected = pairs.human
        errors = absolute_error(chosen, of_chosen, scale, shift) + absolute_error(rejected, of_rejected, scale, shift)
        losses = losses + config.regression_weight * errors / 2
    return (losses * pairs.weights).sum(dim=-1)


def _on_rankings(total: Scores, rankings: RankingTensors, config: RewardModelConfig) -> PerMember:
    """Plackett-Luce; centering as on pairs: two places give what Bradley-Terry gives."""
    scores, ranked, places = total[:, rankings.index], rankings.ranked, rankings.places
    middle = (scores * ranked).sum(dim=-1) / places
    losses = plackett_luce(scores, ranked) + config.centering * (places - 1) * (2 * middle).square()
    return (losses * rankings.weights).sum(dim=-1)


def _comparisons(pairs: PairTensors, rankings: RankingTensors | None) -> tuple[Places, Places]:
    """What accuracy is of: pairs that are no tie, and neighbours in a ranking."""
    better, worse = pairs.chosen[~pairs.tie], pairs.rejected[~pairs.tie]
    if rankings is None:
        return better, worse
    both = rankings.ranked[:, 1:]
    return torch.cat([better, rankings.index[:, :-1][both]]), torch.cat([worse, rankings.index[:, 1:][both]])


def _metrics(quality: Scores, better: Places, worse: Places) -> dict[str, Metric]:
    """Accuracy (equal scores count half) and margin, over all members."""
    margin = quality[:, better] - quality[:, worse]
    right = float((margin > 0).sum() + 0.5 * (margin == 0).sum())
    return {"accuracy": Mean(right, margin.numel()), "margin": Mean(float(margin.sum()), margin.numel())}
