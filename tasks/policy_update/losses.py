"""From a micro-batch to its share of the loss: one function per family of objectives, none knows the loop."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tasks._maths.metrics import Mean, Metric, Total, masked_mean
from tasks._maths.objectives import OBJECTIVES, LossInputs, LossOptions, LossOutputs
from tasks._maths.preference_losses import PREFERENCE_LOSSES, kto
from tasks._maths.value_loss import clipped_value_loss
from tasks._training.logprobs import TokenLogprobs, token_logprobs
from tasks._training.packing import PackedBatch, pack
from tasks._training.value_head import token_values
from tasks.policy_update.config import CriticConfig, PolicyUpdateConfig
from tasks.policy_update.credit import Credit, Measured, PerToken
from tasks.policy_update.measure import recompute
from tasks.policy_update.microbatches import Microbatch
from tasks.policy_update.rows import TrainingRows

LossFunction = Callable[[Microbatch], LossOutputs]
Padded = Float[Tensor, "rows time"]


def policy_gradient_loss(
    model: Any, head: nn.Linear | None, rows: TrainingRows, credit: Credit, config: PolicyUpdateConfig
) -> LossFunction:
    """The loss of objectives on single rows; with a value head, the critic's loss beside it."""
    options = LossOptions(
        config.clip_low, config.clip_high, config.dual_clip, config.kl.coefficient, config.kl.estimator
    )
    objective = OBJECTIVES[config.objective]
    in_loss = config.kl.coefficient > 0 and config.kl.place == "loss"

    def loss(microbatch: Microbatch) -> LossOutputs:
        batch = _packed(microbatch, model)
        current = _current(model, batch, rows)
        denominators = _column(microbatch.rows_of(batch), batch)
        inputs = LossInputs(
            logprobs=current.logprobs,
            old_logprobs=_padded(credit.old, batch),
            ref_logprobs=_padded(credit.reference, batch) if in_loss and credit.reference is not None else None,
            advantages=_padded(credit.advantages, batch),
            weights=_padded(credit.weights, batch),
            denominators=denominators,
            mask=batch.mask.float(),
        )
        outputs = objective(inputs, options)
        metrics = outputs.metrics | {"entropy": masked_mean(current.entropy, inputs.mask)}
        if head is None:
            return LossOutputs(outputs.loss_sum, metrics)
        critic = _critic_loss(head, current, batch, credit, denominators, config.critic)
        return LossOutputs(outputs.loss_sum + critic.loss_sum, metrics | critic.metrics)

    return loss


def _critic_loss(
    head: nn.Linear,
    current: TokenLogprobs,
    batch: PackedBatch,
    credit: Credit,
    denominators: Float[Tensor, " rows"],
    config: CriticConfig,
) -> LossOutputs:
    if credit.values is None or credit.returns is None:
        raise ValueError("a critic learns from credit gae only")
    hidden = current.hidden if config.shares_gradient else current.hidden.detach()
    values = torch.zeros_like(current.logprobs).masked_scatter(batch.mask, token_values(head, hidden))
    returns, mask = _padded(credit.returns, batch), batch.mask.float()
    per_token = clipped_value_loss(values, _padded(credit.values, batch), returns, config.value_clip) * mask
    loss_sum = config.coefficient * (per_token.sum(dim=1) / denominators).sum()
    metrics: dict[str, Metric] = {
        "value_loss": masked_mean(per_token, mask),
        "value_error": masked_mean((values - returns).square(), mask),
        "value_mean": masked_mean(values, mask),
    }
    return LossOutputs(loss_sum, metrics)


def pair_loss(model: Any, rows: TrainingRows, reference: PerToken, config: PolicyUpdateConfig) -> LossFunction:
    """DPO and its kin on pairs (chosen, rejected), with the chosen answer's likelihood beside it if configured."""
    objective = PREFERENCE_LOSSES[config.objective]
    options = config.pairs

    def loss(microbatch: Microbatch) -> LossOutputs:
        batch = _packed(microbatch, model)
        current = _current(model, batch, rows)
        mask = batch.mask.float()
        ratios = ((current.logprobs - _padded(reference, batch)) * mask).sum(dim=1)
        chosen, rejected = ratios[0::2], ratios[1::2]
        per_pair = objective(chosen, rejected, options.beta, options.label_smoothing)
        if options.sft_weight:
            likelihood = (current.logprobs * mask).sum(dim=1)[0::2] / mask.sum(dim=1)[0::2]
            per_pair = per_pair - options.sft_weight * likelihood
        loss_sum = (per_pair / _column(microbatch.rows_of(batch), batch)[0::2]).sum()
        margin = options.beta * (chosen - rejected).detach()
        count = float(len(margin))
        metrics: dict[str, Metric] = {
            "loss": Total(float(loss_sum.detach())),
            "tokens": Total(float(mask.sum())),
            "entropy": masked_mean(current.entropy, mask),
            "pair_accuracy": Mean(float((margin > 0).sum()), count),
            "pair_margin": Mean(float(margin.sum()), count),
            "chosen_logratio": Mean(float(chosen.detach().sum()), count),
            "rejected_logratio": Mean(float(rejected.detach().sum()), count),
        }
        return LossOutputs(loss_sum, metrics)

    return loss


def kto_loss(
    model: Any,
    rows: TrainingRows,
    measured: Measured,
    steps: Sequence[Sequence[Microbatch]],
    config: PolicyUpdateConfig,
) -> LossFunction:
    """KTO: rows above their group's mean are desirable.

    Its reference point z is measured before each step, over the prompts of the step's rows with the answers to other
    prompts (arXiv 2402.01306, section 4.1).
    """
    if measured.reference is None or measured.unrelated is None:
        raise ValueError("kto: no reference was measured")
    options, reference, unrelated = config.pairs, measured.reference, measured.unrelated
    strangers = rows.unrelated()
    known: dict[int, Float[Tensor, ""]] = {}

    def reference_point(step: int) -> Float[Tensor, ""]:
        members = sorted(row for microbatch in steps[step] for row in microbatch.denominators)
        logprobs, _ = recompute(model, strangers, members, config)
        ratios = [float((logprobs[row] - unrelated[row]).sum()) for row in members]
        return torch.tensor(float(np.mean(ratios)))

    def loss(microbatch: Microbatch) -> LossOutputs:
        if microbatch.step not in known:
            known.clear()
            known[microbatch.step] = reference_point(microbatch.step)
        batch = _packed(microbatch, model)
        current = _current(model, batch, rows)
        ratios = ((current.logprobs - _padded(reference, batch)) * batch.mask).sum(dim=1)
        desirable = torch.tensor(rows.advantages[batch.rows] > 0, device=ratios.device)
        point = known[microbatch.step].to(ratios.device)
        per_row = kto(ratios, desirable, point, options.beta, options.desirable_weight, options.undesirable_weight)
        loss_sum = (per_row / _column(microbatch.rows_of(batch), batch)).sum()
        mask, count = batch.mask.float(), float(len(ratios))
        metrics: dict[str, Metric] = {
            "loss": Total(float(loss_sum.detach())),
            "tokens": Total(float(mask.sum())),
            "entropy": masked_mean(current.entropy, mask),
            "logratio": Mean(float(ratios.detach().sum()), count),
            "reference_point": Mean(float(point) * count, count),
            "desirable": Mean(float(desirable.sum()), count),
        }
        return LossOutputs(loss_sum, metrics)

    return loss


def _packed(microbatch: Microbatch, model: Any) -> PackedBatch:
    device = next(model.parameters()).device
    return pack(microbatch.groups, pad_token_id=0, device=device, last_tokens=False)


def _current(model: Any, batch: PackedBatch, rows: TrainingRows) -> TokenLogprobs:
    return token_logprobs(model, batch, _column(rows.temperatures[batch.rows], batch))


def _column(values: Any, batch: PackedBatch) -> Float[Tensor, " rows"]:
    return torch.tensor(np.asarray(values), dtype=torch.float32, device=batch.mask.device)


def _padded(lines: PerToken, batch: PackedBatch) -> Padded:
    """Per-token arrays by row number as a tensor in the shape of a packed batch, 0 where padded."""
    values = np.zeros(batch.mask.shape, dtype=np.float32)
    for row, filled in zip(batch.rows, values, strict=True):
        filled[: len(lines[row])] = lines[row]
    return torch.from_numpy(values).to(batch.mask.device)
